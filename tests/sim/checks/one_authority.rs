//! Invariant 6: no write is acknowledged under two authorities for one key in overlapping times.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use reshard::model::side::{PerSide, Side};
use reshard::model::slots::{Slot, SlotSet};
use reshard::policy::invariants::one_authority;

use super::checker::Violation;
use crate::mongo::key::Key;

/// A client's write: the bytes of its `lsid`, and its number.
pub(crate) type WriteId = (Arc<[u8]>, i64);

/// What happened at the clusters and lasted, in order.
pub(crate) enum Happened {
    /// A cluster's record says from now on that it owns these slots; and old's, of which new's has no word any more.
    Owns {
        /// Whose.
        side: Side,
        /// Its own.
        slots: SlotSet,
        /// Taken back without new.
        taken_back: Box<SlotSet>,
    },
    /// A client's write changed a document.
    Executed {
        /// Where.
        side: Side,
        /// Which document.
        key: Key,
        /// Its slot.
        slot: Slot,
        /// Which write.
        write: WriteId,
    },
}

/// A write that a client was told to be done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acknowledged {
    /// When it was sent first.
    pub(crate) sent: Duration,
    /// When the answer came.
    pub(crate) shown: Duration,
    /// A majority has it.
    pub(crate) durable: bool,
    /// Each of its statements found a document. One that did not changed nothing, and servers do not remember
    /// it: a late copy of it is executed if it finds one then, with a proxy as without.
    pub(crate) found_all: bool,
}

/// What became of one write on one document.
#[derive(Default)]
struct Executions {
    /// When its authority executed it, and which that was.
    by_owner: Vec<(Duration, Side)>,
    /// When a cluster executed it that was not the authority.
    elsewhere: Vec<(Duration, Side)>,
}

/// The acknowledged write that an authority executed last on a document.
struct Last {
    side: Side,
    slot: Slot,
    /// That cluster has given the slot up since.
    moved: bool,
}

/// At no moment both clusters own a slot. An acknowledged write was executed by the owner of its slot, before
/// its answer was shown, and by one owner only. Between two acknowledged writes of a document on different
/// clusters the first one's cluster has given the slot up.
///
/// # Errors
/// The first violation, and the key that it is about.
pub(crate) fn check_one_authority(
    events: &[(Duration, Happened)],
    acknowledged: &BTreeMap<WriteId, Acknowledged>,
) -> Result<(), (Violation, Option<Key>)> {
    let wrong = |text: String, key: Option<&Key>| Err((Violation { invariant: 6, text }, key.cloned()));
    let mut owned = PerSide { old: SlotSet::ALL, new: SlotSet::EMPTY };
    let (mut said_by_new, mut taken) = (SlotSet::EMPTY, SlotSet::EMPTY);
    let mut executions: BTreeMap<(&WriteId, &Key), Executions> = BTreeMap::new();
    let mut last: BTreeMap<&Key, Last> = BTreeMap::new();
    for (at, what) in events {
        match what {
            Happened::Owns { side, slots, taken_back } => {
                let before = owned;
                match side {
                    Side::Old => (owned.old, taken) = (*slots, **taken_back),
                    Side::New => said_by_new = *slots,
                }
                owned.new = said_by_new.minus(&taken);
                if let Err(why) = one_authority(&owned.old, &owned.new) {
                    return wrong(format!("{why} at {at:?}"), None);
                }
                for last in last.values_mut() {
                    let lost = before.get(last.side).minus(owned.get(last.side));
                    last.moved |= lost.contains(last.slot);
                }
            }
            Happened::Executed { side, key, slot, write } => {
                let executions = executions.entry((write, key)).or_default();
                if !owned.get(*side).contains(*slot) {
                    executions.elsewhere.push((*at, *side));
                    continue;
                }
                executions.by_owner.push((*at, *side));
                if !acknowledged.contains_key(write) {
                    continue;
                }
                let before = last.insert(key, Last { side: *side, slot: *slot, moved: false });
                if before.is_some_and(|before| before.side != *side && !before.moved) {
                    let text = format!("{side} executed an acknowledged write at {at:?} without a move");
                    return wrong(text, Some(key));
                }
            }
        }
    }
    for ((write, key), executions) in executions {
        let Some(told) = acknowledged.get(write) else { continue };
        let Executions { by_owner, elsewhere } = executions;
        let of = format!("number {} of {:02x?}, {told:?}", write.1, session(&write.0));
        if by_owner.is_empty() && told.durable && told.found_all {
            let text = format!("acknowledged, but executed on a mirror only ({elsewhere:?}): {of}");
            return wrong(text, Some(key));
        }
        if by_owner.iter().any(|(_, side)| *side != by_owner[0].1) {
            return wrong(format!("executed by two authorities ({by_owner:?}): {of}"), Some(key));
        }
        if by_owner.first().is_some_and(|(at, _)| told.found_all && *at > told.shown || *at < told.sent) {
            return wrong(format!("not executed ({by_owner:?}) when it was acknowledged: {of}"), Some(key));
        }
    }
    Ok(())
}

/// The bytes of a session that tell one from another: the first three of its UUID.
fn session(lsid: &[u8]) -> &[u8] {
    lsid.len().checked_sub(17).map_or(lsid, |at| &lsid[at..at + 3])
}
