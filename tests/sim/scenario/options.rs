//! How schedules are made, and what they did.

use std::time::Duration;

use reshard::policy::safeguards::Safeguards;

use super::faults::Mix;
use crate::network::Weather;

/// All on, but that writes move without a comparison before. A comparison repairs: before a move it would undo
/// what a safeguard that is off lets happen, and nobody would miss that one.
pub(crate) const UNVERIFIED: Safeguards = Safeguards { verified: false, ..Safeguards::ALL };

/// How a schedule is made.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// What is switched on.
    pub(crate) safeguards: Safeguards,
    /// What goes wrong.
    pub(crate) mix: Mix,
    /// How the network is while it does.
    pub(crate) weather: Weather,
    /// Writes are made, and go wrong, before the migration begins.
    pub(crate) early_writers: bool,
    /// Writers.
    pub(crate) clients: u8,
    /// They read too.
    pub(crate) reads: bool,
    /// How many of 1,000 answers do not reach them.
    pub(crate) broken: u32,
    /// The copy's first inserts are held up.
    pub(crate) slow_copy: bool,
    /// The least number of moves of authority.
    pub(crate) moves: u64,
    /// Ranges of keys move, too.
    pub(crate) ranges: bool,
    /// A write that was sent before the migration began arrives after its first move.
    pub(crate) old_write: bool,
    /// The longest pause between two writes of one of them.
    pub(crate) pause: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            safeguards: UNVERIFIED,
            mix: Mix::ALL,
            weather: Weather {
                late: 4,
                late_by: Duration::from_secs(20),
                lose_request: 3,
                lose_reply: 3,
                refuse: 3,
                ..Weather::rough()
            },
            early_writers: false,
            clients: 4,
            reads: false,
            broken: 15,
            slow_copy: false,
            moves: 2,
            ranges: false,
            old_write: false,
            pause: Duration::from_millis(400),
        }
    }
}

/// What a schedule did, for those who ask whether it did anything.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Writes acknowledged by a majority.
    pub(crate) durable: usize,
    /// Moves of authority.
    pub(crate) moves: u32,
    /// Proxies that lived.
    pub(crate) proxies: u32,
    /// A step of the operator's that was given up.
    pub(crate) given_up: Option<String>,
}
