//! What may happen next.

use std::fmt;
use std::time::Duration;

use crate::rng::Rng;

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Step {
    /// `kill -9` of the proxy, and its restart.
    KillProxy,
    /// The proxy stands still (SIGSTOP), for longer than a lease at times.
    HangProxy(Duration),
    /// Another member of old becomes primary.
    OldElects,
    /// Old's primary stands still; the others elect one.
    HangOldPrimary(Duration),
    /// A member of old dies and comes back.
    KillOldMember(usize, Duration),
    /// Connections to new break off, and there are no others.
    CutNew(Duration),
    /// What is sent to new and from it stays on the way, and arrives later.
    StallNew(Duration),
    /// A shard of new dies and comes back.
    KillNewShard(usize, Duration),
    /// New cannot write to its disk: `insert` and `update` fail as such servers say.
    FillNew(Duration),
    /// An operator's calls.
    Reads(u8),
    Writes(u8),
    Rollback,
    Pause,
    Resume,
    Verify,
    /// Nothing for a while, until writes may move.
    Rest,
}

impl Step {
    /// What an operator may ask for in the middle of it: whatever else there is has an end that it waits for.
    pub(crate) fn call(rng: &mut Rng) -> Self {
        let percent = |rng: &mut Rng| *rng.pick(&[0, 5, 20, 50, 80, 100]);
        match rng.below(8) {
            0..=1 => Self::Reads(percent(rng)),
            2..=5 => Self::Writes(percent(rng)),
            6 => Self::Rollback,
            _ => Self::Verify,
        }
    }

    /// Whether it lasts.
    pub(crate) const fn lasts(self) -> Option<Duration> {
        match self {
            Self::HangProxy(time)
            | Self::HangOldPrimary(time)
            | Self::KillOldMember(_, time)
            | Self::CutNew(time)
            | Self::StallNew(time)
            | Self::KillNewShard(_, time)
            | Self::FillNew(time) => Some(time),
            _ => None,
        }
    }

    /// One of them.
    pub(crate) fn any(rng: &mut Rng) -> Self {
        let percent = |rng: &mut Rng| *rng.pick(&[0, 5, 20, 50, 80, 100]);
        let briefly = |rng: &mut Rng| rng.between(Duration::from_millis(200), Duration::from_secs(2));
        let long = |rng: &mut Rng| rng.between(Duration::from_secs(1), Duration::from_secs(6));
        match rng.below(26) {
            0 | 1 => Self::KillProxy,
            2 => Self::HangProxy(long(rng)),
            3 | 4 => Self::OldElects,
            5 => Self::HangOldPrimary(long(rng)),
            6 => Self::KillOldMember(rng.index(3), briefly(rng)),
            7 | 8 => Self::CutNew(briefly(rng)),
            9 => Self::StallNew(long(rng)),
            10 => Self::KillNewShard(rng.index(2), briefly(rng)),
            11 => Self::FillNew(briefly(rng)),
            12..=14 => Self::Reads(percent(rng)),
            15..=18 => Self::Writes(percent(rng)),
            19 => Self::Rollback,
            20 => Self::Pause,
            21 => Self::Resume,
            22 => Self::Rest,
            _ => Self::Verify,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillProxy => f.write_str("the proxy is killed and started again"),
            Self::HangProxy(time) => write!(f, "the proxy stands still for {time:.1?}"),
            Self::OldElects => f.write_str("old's primary steps down"),
            Self::HangOldPrimary(time) => write!(f, "old's primary stands still for {time:.1?}"),
            Self::KillOldMember(member, time) => write!(f, "member {member} of old is dead for {time:.1?}"),
            Self::CutNew(time) => write!(f, "new is cut off for {time:.1?}"),
            Self::StallNew(time) => {
                write!(f, "what is on the way to new and back stays there for {time:.1?}")
            }
            Self::KillNewShard(shard, time) => write!(f, "shard {shard} of new is dead for {time:.1?}"),
            Self::FillNew(time) => write!(f, "new's disk is full for {time:.1?}"),
            Self::Reads(percent) => write!(f, "reads {percent}"),
            Self::Writes(percent) => write!(f, "writes {percent}"),
            Self::Rollback => f.write_str("rollback"),
            Self::Pause => f.write_str("pause"),
            Self::Resume => f.write_str("resume"),
            Self::Verify => f.write_str("verify"),
            Self::Rest => f.write_str("rest"),
        }
    }
}
