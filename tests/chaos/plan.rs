//! What may happen next.

use std::fmt;
use std::time::Duration;

use crate::rng::Rng;

/// Members of old; one may be away.
pub(crate) const MEMBERS: usize = 3;
pub(crate) const SHARDS: usize = 2;

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Step {
    /// `kill -9` of the proxy, and its restart, with a clock that is so many seconds ahead.
    KillProxy {
        ahead: i8,
    },
    /// The proxy stands still (SIGSTOP), for longer than a lease at times.
    HangProxy(Duration),
    /// `kill -9` of the proxy, and another one takes over.
    Succeed {
        ahead: i8,
    },
    /// The proxy stands still, and another one takes over; then the first one goes on for a while. Clients of the first
    /// one stay with it, or are cut off.
    Overtake {
        hangs: Duration,
        lingers: Duration,
        stay: bool,
        ahead: i8,
    },
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
    /// New is cut off, and an operator takes back what it has without it.
    LoseNew(Duration),
    /// The same between the proxy and old, whose members still see each other.
    CutOld(Duration),
    StallOld(Duration),
    /// The proxy alone cannot reach a member of old.
    CutOldMember(usize, Duration),
    /// All connections to old break off once; others come about at once.
    ResetOld,
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
    /// Nothing for a while, until writes may move; then so many reads and writes move to new, as often as it takes.
    Climb(u8),
}

/// What a fault is about. Two that are about one place would undo each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Proxy,
    Old,
    New,
    WayToOld,
    WayToNew,
}

/// A step, and what comes in the middle of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) step: Step,
    /// Another fault, somewhere else, and how long after the beginning of the step.
    pub(crate) fault: Option<(Duration, Step)>,
    /// What an operator asks for meanwhile, and when.
    pub(crate) call: Option<(Duration, Step)>,
}

impl Moment {
    fn quiet(step: Step) -> Self {
        Self { step, fault: None, call: None }
    }

    fn any(rng: &mut Rng) -> Self {
        let step = Step::any(rng);
        if matches!(step, Step::Climb(_)) {
            return Self::quiet(step);
        }
        let within = step.lasts().unwrap_or(Duration::from_secs(1));
        let fault = rng.chance(400).then(|| (rng.between(Duration::ZERO, within), step.another_fault(rng)));
        // Whatever else there is has an end that a call waits for.
        let may_call = step.lasts().is_some() && rng.chance(600);
        let call = may_call.then(|| (rng.between(Duration::ZERO, within), Step::meanwhile(rng)));
        Self { step, fault, call }
    }
}

/// All that happens, one after the other.
pub(crate) struct Moments {
    rng: Rng,
    /// How many there are before writes move for the first time; nothing once they have.
    early: Option<u64>,
}

impl Moments {
    pub(crate) fn new(mut rng: Rng) -> Self {
        // In half of all schedules it begins while history is copied.
        let early = if rng.chance(500) { 0 } else { 1 + rng.below(3) };
        Self { rng, early: Some(early) }
    }

    /// What happens next, and how long there is nothing after it.
    pub(crate) fn next(&mut self) -> (Moment, Duration) {
        let moment = match self.early {
            Some(0) => self.climb(),
            _ => Moment::any(&mut self.rng),
        };
        self.early = self.early.and_then(|early| early.checked_sub(1));
        (moment, self.rng.between(Duration::ZERO, Duration::from_millis(1500)))
    }

    /// After all else: what was granted proves that the migration is as good as before.
    pub(crate) fn climb(&mut self) -> Moment {
        Moment::quiet(Step::climb(&mut self.rng))
    }
}

impl Step {
    /// One of them.
    fn any(rng: &mut Rng) -> Self {
        if rng.chance(500) { Self::fault(rng) } else { Self::call(rng) }
    }

    fn fault(rng: &mut Rng) -> Self {
        let briefly = |rng: &mut Rng| rng.between(Duration::from_millis(200), Duration::from_secs(2));
        let long = |rng: &mut Rng| rng.between(Duration::from_secs(1), Duration::from_secs(6));
        let ahead = |rng: &mut Rng| *rng.pick(&[0, 0, -7, 7, 100, -100]);
        match rng.below(21) {
            0 => Self::KillProxy { ahead: ahead(rng) },
            1 => Self::HangProxy(long(rng)),
            2 => Self::Succeed { ahead: ahead(rng) },
            3 | 18 => Self::Overtake {
                hangs: long(rng),
                lingers: rng.between(Duration::ZERO, Duration::from_secs(3)),
                stay: rng.chance(500),
                ahead: ahead(rng),
            },
            4 | 5 => Self::OldElects,
            6 => Self::HangOldPrimary(long(rng)),
            7 => Self::KillOldMember(rng.index(MEMBERS), briefly(rng)),
            8 | 9 => Self::CutNew(briefly(rng)),
            10 => Self::StallNew(long(rng)),
            11 => Self::KillNewShard(rng.index(SHARDS), briefly(rng)),
            12 | 13 => Self::FillNew(briefly(rng)),
            14 => Self::CutOld(briefly(rng)),
            15 => Self::StallOld(long(rng)),
            19 | 20 => Self::LoseNew(rng.between(Duration::from_secs(4), Duration::from_secs(9))),
            16 => Self::CutOldMember(rng.index(MEMBERS), long(rng)),
            _ => Self::ResetOld,
        }
    }

    /// A fault that may come while this is there.
    fn another_fault(self, rng: &mut Rng) -> Self {
        loop {
            let fault = Self::fault(rng);
            if fault.place() != self.place() {
                return fault;
            }
        }
    }

    const fn place(self) -> Option<Place> {
        match self {
            Self::KillProxy { .. } | Self::HangProxy(_) | Self::Succeed { .. } | Self::Overtake { .. } => {
                Some(Place::Proxy)
            }
            Self::OldElects | Self::HangOldPrimary(_) | Self::KillOldMember(..) => Some(Place::Old),
            Self::KillNewShard(..) | Self::FillNew(_) => Some(Place::New),
            Self::CutOld(_) | Self::StallOld(_) | Self::CutOldMember(..) | Self::ResetOld => {
                Some(Place::WayToOld)
            }
            Self::CutNew(_) | Self::StallNew(_) | Self::LoseNew(_) => Some(Place::WayToNew),
            Self::Reads(_)
            | Self::Writes(_)
            | Self::Rollback
            | Self::Pause
            | Self::Resume
            | Self::Verify
            | Self::Climb(_) => None,
        }
    }

    fn call(rng: &mut Rng) -> Self {
        match rng.below(14) {
            0 => Self::Pause,
            1 => Self::Resume,
            2 | 3 => Self::climb(rng),
            4 | 5 => Self::Verify,
            _ => Self::meanwhile(rng),
        }
    }

    pub(crate) fn climb(rng: &mut Rng) -> Self {
        Self::Climb(*rng.pick(&[5, 20, 50, 80, 100]))
    }

    /// What an operator may ask for in the middle of what lasts.
    fn meanwhile(rng: &mut Rng) -> Self {
        let percent = |rng: &mut Rng| *rng.pick(&[0, 5, 20, 50, 80, 100]);
        match rng.below(8) {
            0..=1 => Self::Reads(percent(rng)),
            2..=5 => Self::Writes(percent(rng)),
            6 => Self::Rollback,
            _ => Self::Verify,
        }
    }

    /// Whether it lasts.
    const fn lasts(self) -> Option<Duration> {
        match self {
            Self::HangProxy(time)
            | Self::HangOldPrimary(time)
            | Self::KillOldMember(_, time)
            | Self::CutNew(time)
            | Self::StallNew(time)
            | Self::LoseNew(time)
            | Self::Overtake { hangs: time, .. }
            | Self::CutOld(time)
            | Self::StallOld(time)
            | Self::CutOldMember(_, time)
            | Self::KillNewShard(_, time)
            | Self::FillNew(time) => Some(time),
            _ => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillProxy { ahead } => {
                write!(f, "the proxy is killed and started again, its clock {ahead} s ahead")
            }
            Self::Succeed { ahead } => {
                write!(f, "the proxy is killed and another one takes over, its clock {ahead} s ahead")
            }
            Self::Overtake { hangs, lingers, stay, ahead } => {
                let clients = if *stay { "stay with it" } else { "are cut off" };
                write!(
                    f,
                    "the proxy stands still for {hangs:.1?} and its clients {clients}, another one takes over, its \
                     clock {ahead} s ahead, and the first one is there for {lingers:.1?} more"
                )
            }
            Self::LoseNew(time) => {
                write!(f, "new is cut off for {time:.1?} and old takes back what it has")
            }
            Self::HangProxy(time) => write!(f, "the proxy stands still for {time:.1?}"),
            Self::OldElects => f.write_str("old's primary steps down"),
            Self::HangOldPrimary(time) => write!(f, "old's primary stands still for {time:.1?}"),
            Self::KillOldMember(member, time) => write!(f, "member {member} of old is dead for {time:.1?}"),
            Self::CutNew(time) => write!(f, "new is cut off for {time:.1?}"),
            Self::StallNew(time) => {
                write!(f, "what is on the way to new and back stays there for {time:.1?}")
            }
            Self::CutOld(time) => write!(f, "the proxy is cut off from old for {time:.1?}"),
            Self::StallOld(time) => {
                write!(f, "what is on the way to old and back stays there for {time:.1?}")
            }
            Self::CutOldMember(member, time) => {
                write!(f, "the proxy is cut off from member {member} of old for {time:.1?}")
            }
            Self::ResetOld => f.write_str("all connections to old are reset"),
            Self::KillNewShard(shard, time) => write!(f, "shard {shard} of new is dead for {time:.1?}"),
            Self::FillNew(time) => write!(f, "new's disk is full for {time:.1?}"),
            Self::Reads(percent) => write!(f, "reads {percent}"),
            Self::Writes(percent) => write!(f, "writes {percent}"),
            Self::Rollback => f.write_str("rollback"),
            Self::Pause => f.write_str("pause"),
            Self::Resume => f.write_str("resume"),
            Self::Verify => f.write_str("verify"),
            Self::Climb(percent) => write!(f, "rest, and {percent} to new"),
        }
    }
}
