//! What becomes of a message, as the seed says.

use std::time::Duration;

use crate::rng::Rng;

/// How the network behaves. Chances are per 1,000 messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Weather {
    /// The longest usual time of one way.
    pub(crate) latency: Duration,
    /// How often a command takes as long as `late_by`, while its sender is told that its outcome is unknown.
    pub(crate) late: u32,
    /// How late that is at most; the sender may be dead by then, its leases over.
    pub(crate) late_by: Duration,
    /// How often a command is lost on its way.
    pub(crate) lose_request: u32,
    /// How often a reply is lost.
    pub(crate) lose_reply: u32,
    /// How often nothing can be sent.
    pub(crate) refuse: u32,
    /// How often the command of a sender that crashed meanwhile is lost.
    pub(crate) lose_orphan: u32,
    /// The longest usual time between the arrival of a command (it can be seen and killed) and its execution.
    pub(crate) execution: Duration,
}

impl Weather {
    /// Nothing is ever lost or late.
    pub(crate) fn calm() -> Self {
        Self {
            latency: Duration::from_millis(1),
            late: 0,
            late_by: Duration::ZERO,
            lose_request: 0,
            lose_reply: 0,
            refuse: 0,
            lose_orphan: 0,
            execution: Duration::ZERO,
        }
    }

    /// Everything happens sometimes.
    pub(crate) fn rough() -> Self {
        Self {
            latency: Duration::from_millis(2),
            late: 10,
            late_by: Duration::from_secs(120),
            lose_request: 10,
            lose_reply: 10,
            refuse: 5,
            lose_orphan: 300,
            execution: Duration::from_micros(500),
        }
    }
}

/// The way of one command and of its reply.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fate {
    pub(super) refused: bool,
    pub(super) transit: Duration,
    /// The sender learns so early that it will not hear of it.
    pub(super) given_up: Option<Duration>,
    pub(super) request_lost: bool,
    pub(super) orphan_lost: bool,
    pub(super) execution: Duration,
    pub(super) reply_lost: bool,
    pub(super) reply_transit: Duration,
}

impl Fate {
    pub(super) fn roll(weather: &Weather, rng: &mut Rng) -> Self {
        let shortest = Duration::from_micros(20);
        let late = rng.chance(weather.late);
        let usual = rng.between(shortest, weather.latency);
        Self {
            refused: rng.chance(weather.refuse),
            transit: if late { usual + rng.between(Duration::ZERO, weather.late_by) } else { usual },
            given_up: (late && rng.chance(700)).then_some(usual * 2),
            request_lost: rng.chance(weather.lose_request),
            orphan_lost: rng.chance(weather.lose_orphan),
            execution: rng.between(Duration::ZERO, weather.execution),
            reply_lost: rng.chance(weather.lose_reply),
            reply_transit: rng.between(shortest, weather.latency),
        }
    }
}
