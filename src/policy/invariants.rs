//! The invariants of the protocol that a running process can watch, each a predicate.
//!
//! None of them decides anything: what makes them hold is elsewhere, and these look at its outcome from another
//! side. One that does not hold is a fault of this program, or of whoever changed a record by hand.

use std::time::Duration;

use bson::RawDocument;

use super::gate::{MOST_LAG_SECONDS, Measured};
use crate::model::side::{PerSide, Side};
use crate::model::slots::SlotSet;

/// An invariant that is watched, by what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// An acknowledged write is on the authority of its key.
    Acknowledged,
    /// A checkpoint is stored only when all below it is done.
    Checkpoint,
    /// Raising a percentage only adds slots.
    OnlyAdds,
    /// No slot has two authorities.
    OneAuthority,
    /// Go needs every gate measured and passed.
    EveryGate,
    /// Trouble on the mirror delays no reply beyond its limit.
    NotDelayed,
    /// A retry is never applied twice.
    Once,
    /// No mirror write changes a document on its authority.
    OnlyMirror,
}

impl Invariant {
    /// Those that are watched.
    pub const ALL: [Self; 8] = [
        Self::Acknowledged,
        Self::Checkpoint,
        Self::OnlyAdds,
        Self::OneAuthority,
        Self::EveryGate,
        Self::NotDelayed,
        Self::Once,
        Self::OnlyMirror,
    ];

    /// Its number in the protocol.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Acknowledged => 1,
            Self::Checkpoint => 4,
            Self::OnlyAdds => 5,
            Self::OneAuthority => 6,
            Self::EveryGate => 7,
            Self::NotDelayed => 10,
            Self::Once => 11,
            Self::OnlyMirror => 12,
        }
    }

    /// Its name in metrics and where it is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Acknowledged => "acknowledged_on_authority",
            Self::Checkpoint => "checkpoint_after_done",
            Self::OnlyAdds => "percent_only_adds",
            Self::OneAuthority => "one_authority",
            Self::EveryGate => "every_gate",
            Self::NotDelayed => "mirror_does_not_delay",
            Self::Once => "retry_once",
            Self::OnlyMirror => "authority_not_mirrored_to",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|invariant| invariant.as_str() == name)
    }

    /// Whether the two sides may differ for good where it did not hold, so that nothing moves before they were
    /// compared. A reply that came late is late, and no more.
    #[must_use]
    pub const fn is_about_data(self) -> bool {
        !matches!(self, Self::NotDelayed)
    }
}

/// What is wrong, where an invariant does not hold.
pub type Holds = Result<(), String>;

fn holds(it_does: bool, otherwise: impl FnOnce() -> String) -> Holds {
    if it_does { Ok(()) } else { Err(otherwise()) }
}

/// A reply about `slots` is shown: the leases of its write hold, and no owner has changed since it began.
///
/// # Errors
/// What is wrong.
pub fn acknowledged(
    leases_hold: bool,
    slots: &SlotSet,
    began: &PerSide<SlotSet>,
    now: &PerSide<SlotSet>,
) -> Holds {
    holds(leases_hold, || "a reply was shown after the lease of its write".into())?;
    let same = |side| began.get(side).and(slots) == now.get(side).and(slots);
    holds(Side::BOTH.into_iter().all(same), || {
        "the owner of slots changed while a write to them was under way".into()
    })
}

/// The checkpoint to be stored is where everything has been worked off.
///
/// # Errors
/// What is wrong.
pub fn checkpoint(done: &RawDocument, stored: &RawDocument) -> Holds {
    holds(done.as_bytes() == stored.as_bytes(), || {
        "a checkpoint was stored before its events were done".into()
    })
}

/// Of two sets of slots one contains the other.
///
/// # Errors
/// What is wrong.
pub fn only_adds(from: &SlotSet, to: &SlotSet) -> Holds {
    let (lost, gained) = (from.minus(to), to.minus(from));
    holds(lost.is_empty() || gained.is_empty(), || {
        format!(
            "the {} slots of new are not those of a percentage: {} would go and {} come",
            from.len(),
            lost.len(),
            gained.len()
        )
    })
}

/// No slot is owned by both clusters.
///
/// # Errors
/// What is wrong.
pub fn one_authority(old: &SlotSet, new: &SlotSet) -> Holds {
    let both = old.and(new);
    holds(both.is_empty(), || format!("the records of both clusters own {} slots", both.len()))
}

/// Writes are about to move to new: everything that must be known is, and good.
///
/// # Errors
/// What is wrong.
pub fn every_gate(measured: &Measured, unverified: Option<&str>) -> Holds {
    let followed = |lag: Option<f64>| lag.is_some_and(|lag| lag <= MOST_LAG_SECONDS);
    let passed = measured.synced
        && !measured.paused
        && followed(measured.lag_old_to_new)
        && followed(measured.lag_new_to_old)
        && measured.parked == 0
        && measured.leases == (true, true)
        && measured.holders.is_empty()
        && measured.stream_problems.is_empty()
        && unverified.is_none();
    holds(passed, || format!("writes began to move to new with {measured:?}, {unverified:?}"))
}

/// A reply was kept back for the mirror for `took`, of at most `limit`. A process that did not get its turn
/// shows up here too; some of that is allowed for.
///
/// # Errors
/// What is wrong.
pub fn not_delayed(took: Duration, limit: Duration) -> Holds {
    let allowed = limit.saturating_mul(2) + Duration::from_secs(1);
    holds(took <= allowed, || format!("a reply waited {took:.1?} for the mirror, of at most {limit:.1?}"))
}

/// A retryable write changed something on `side`; `before` is where it had done so already.
///
/// # Errors
/// What is wrong.
pub fn once(before: Option<Side>, side: Side) -> Holds {
    holds(before.is_none_or(|before| before == side), || {
        format!("a write that {} had executed was executed by {side} too", side.other())
    })
}

/// The mirror of `slots` was written; `owned` is what the cluster owns now whose mirror it is.
///
/// # Errors
/// What is wrong.
pub fn only_mirror(slots: &SlotSet, owned: &SlotSet) -> Holds {
    let lost = slots.minus(owned);
    holds(lost.is_empty(), || format!("mirror writes ended after {} of their slots had moved", lost.len()))
}

/// Whether what did not hold at `at` still matters: `verified` is when the last full comparison began that went
/// through and left no difference.
#[must_use]
pub fn still_matters(at: i64, verified: Option<i64>) -> bool {
    verified.is_none_or(|begun| begun <= at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    const OLD: PerSide<SlotSet> = PerSide { old: SlotSet::ALL, new: SlotSet::EMPTY };

    #[test]
    fn names_are_read_back() {
        for invariant in Invariant::ALL {
            assert_eq!(Invariant::named(invariant.as_str()), Some(invariant));
        }
        assert_eq!(Invariant::named("x"), None);
    }

    #[test]
    fn a_reply_counts_under_its_lease_and_its_owner() {
        let moved = PerSide { old: SlotSet::ALL.minus(&SlotSet::percent(10)), new: SlotSet::percent(10) };
        let in_between = PerSide { old: moved.old, new: SlotSet::EMPTY };
        let elsewhere = SlotSet::ALL.minus(&SlotSet::percent(50));
        assert_eq!(acknowledged(true, &SlotSet::ALL, &OLD, &OLD), Ok(()));
        assert_eq!(acknowledged(true, &elsewhere, &OLD, &moved), Ok(()));
        assert!(acknowledged(false, &SlotSet::ALL, &OLD, &OLD).is_err());
        assert!(acknowledged(true, &SlotSet::percent(5), &OLD, &moved).is_err());
        assert!(acknowledged(true, &SlotSet::percent(5), &OLD, &in_between).is_err());
    }

    #[test]
    fn checkpoints_stand_where_the_work_does() {
        let (one, two) = (rawdoc! { "_data": "1" }, rawdoc! { "_data": "2" });
        assert_eq!(checkpoint(&one, &one), Ok(()));
        assert!(checkpoint(&one, &two).is_err());
    }

    #[test]
    fn sets_of_slots_contain_each_other_and_never_meet_on_two_clusters() {
        let (few, many) = (SlotSet::percent(5), SlotSet::percent(50));
        assert_eq!((only_adds(&few, &many), only_adds(&many, &few)), (Ok(()), Ok(())));
        assert!(only_adds(&SlotSet::ALL.minus(&many), &many).is_err());
        assert_eq!(one_authority(&SlotSet::ALL.minus(&few), &few), Ok(()));
        assert!(one_authority(&SlotSet::ALL, &few).is_err());
    }

    #[test]
    fn unknown_is_no() {
        let good = Measured {
            synced: true,
            lag_old_to_new: Some(0.0),
            lag_new_to_old: Some(0.0),
            leases: (true, true),
            ..Measured::default()
        };
        assert_eq!(every_gate(&good, None), Ok(()));
        assert!(every_gate(&good, Some("never verified")).is_err());
        let bad = [
            Measured { lag_old_to_new: None, ..good.clone() },
            Measured { lag_new_to_old: Some(60.0), ..good.clone() },
            Measured { leases: (true, false), ..good.clone() },
            Measured { synced: false, ..good.clone() },
            Measured { paused: true, ..good.clone() },
            Measured { parked: 1, ..good.clone() },
            Measured { holders: vec!["x".into()], ..good.clone() },
            Measured { stream_problems: vec!["x".into()], ..good },
        ];
        for measured in bad {
            assert!(every_gate(&measured, None).is_err(), "{measured:?}");
        }
    }

    #[test]
    fn mirrors_delay_and_are_written_within_limits() {
        let limit = Duration::from_secs(1);
        assert_eq!(not_delayed(limit, limit), Ok(()));
        assert!(not_delayed(Duration::from_secs(4), limit).is_err());
        assert_eq!(only_mirror(&SlotSet::percent(5), &SlotSet::percent(10)), Ok(()));
        assert!(only_mirror(&SlotSet::percent(20), &SlotSet::percent(10)).is_err());
    }

    #[test]
    fn a_write_is_executed_by_one_cluster() {
        assert_eq!((once(None, Side::New), once(Some(Side::New), Side::New)), (Ok(()), Ok(())));
        assert!(once(Some(Side::Old), Side::New).is_err());
    }

    #[test]
    fn only_a_later_comparison_settles_it() {
        assert!(still_matters(5, None) && still_matters(5, Some(5)) && !still_matters(5, Some(6)));
    }
}
