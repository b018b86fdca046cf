//! Which documents only new has acknowledged, as far as this process knows: what a rollback without new names.
//!
//! A write that new has acknowledged is noted with its keys before its reply is sent, and forgotten once the mirror has
//! it or new's stream has passed it. It decides nothing: new's stream tells all of them once new is there again.

use std::collections::{HashMap, HashSet};

use bson::Timestamp;
use parking_lot::Mutex;

use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::slots::{Slot, SlotSet};

/// Keys remembered of each kind.
const MOST: usize = 100_000;

/// The register; one for each migration.
#[derive(Debug)]
pub struct Unreturned {
    state: Mutex<State>,
    limit: usize,
}

#[derive(Debug)]
struct Noted {
    namespace: Namespace,
    key: Key,
    /// The slot of its document, if the write named it.
    slot: Option<Slot>,
    time: Timestamp,
}

#[derive(Debug, Default)]
struct State {
    keys: HashMap<u128, Noted>,
    /// The newest write that did not name its keys, or found no room.
    unnamed: Option<Timestamp>,
    /// Size of `keys` after it was last cleared out.
    cleared_to: usize,
    /// Written on old since it has taken slots back, whether that changed anything or not.
    written: HashSet<u128>,
    /// There were more than are remembered.
    overflow: bool,
}

impl Default for Unreturned {
    fn default() -> Self {
        Self { state: Mutex::default(), limit: MOST }
    }
}

impl Unreturned {
    /// New has acknowledged a write of `keys` at `time`, each with the slot of its document where that is known;
    /// `all_known`: it touched no others. `passed` is how far new's stream has been worked off.
    pub fn note<'a>(
        &self,
        namespace: &Namespace,
        keys: impl Iterator<Item = (&'a Key, Option<Slot>)>,
        all_known: bool,
        time: Timestamp,
        passed: Option<Timestamp>,
    ) {
        let mut state = self.state.lock();
        if state.keys.len() > 2 * state.cleared_to + 1024 {
            state.keys.retain(|_, noted| passed.is_none_or(|passed| noted.time > passed));
            state.cleared_to = state.keys.len();
        }
        if !all_known {
            state.unnamed = state.unnamed.max(Some(time));
        }
        for (key, slot) in keys {
            if state.keys.len() >= self.limit {
                state.unnamed = state.unnamed.max(Some(time));
                return;
            }
            let new = || Noted { namespace: namespace.clone(), key: key.clone(), slot, time };
            let noted = state.keys.entry(key.fingerprint_in(namespace)).or_insert_with(new);
            noted.time = noted.time.max(time);
            // By another's `_id` that was free again the document may lie elsewhere now.
            noted.slot = noted.slot.filter(|known| Some(*known) == slot);
        }
    }

    /// The mirror has what new acknowledged of `keys` up to `time`.
    pub fn mirrored(&self, namespace: &Namespace, keys: &[Key], time: Timestamp) {
        let mut state = self.state.lock();
        for key in keys {
            let fingerprint = key.fingerprint_in(namespace);
            if state.keys.get(&fingerprint).is_some_and(|noted| noted.time <= time) {
                state.keys.remove(&fingerprint);
            }
        }
    }

    /// What new has acknowledged beyond `passed` that may lie in `slots`, and whether that is all of it.
    #[must_use]
    pub fn beyond(&self, passed: Option<Timestamp>, slots: &SlotSet) -> (Vec<(Namespace, Key)>, bool) {
        let state = self.state.lock();
        let is_beyond = |time: Timestamp| passed.is_none_or(|passed| time > passed);
        let is_meant =
            |noted: &&Noted| is_beyond(noted.time) && noted.slot.is_none_or(|slot| slots.contains(slot));
        let keys = state.keys.values().filter(is_meant);
        let keys = keys.map(|noted| (noted.namespace.clone(), noted.key.clone())).collect();
        (keys, state.unnamed.is_none_or(|time| !is_beyond(time)))
    }

    /// Old has acknowledged a write of these since it took their slots back.
    pub fn note_written<'a>(&self, namespace: &Namespace, keys: impl Iterator<Item = &'a Key>) {
        let mut state = self.state.lock();
        for key in keys {
            if state.written.len() >= self.limit * 10 {
                state.overflow = true;
                return;
            }
            state.written.insert(key.fingerprint_in(namespace));
        }
    }

    /// Whether old may have acknowledged a write of this key since.
    #[must_use]
    pub fn may_be_written(&self, fingerprint: u128) -> bool {
        let state = self.state.lock();
        state.overflow || state.written.contains(&fingerprint)
    }

    /// Nothing is to be returned any more. What new has acknowledged of other slots stays.
    pub fn forget_written(&self) {
        let mut state = self.state.lock();
        (state.written, state.overflow) = (HashSet::new(), false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::canonical::key_of;
    use bson::raw::RawBsonRef;

    fn key(id: i32) -> Key {
        key_of(RawBsonRef::Int32(id)).unwrap()
    }

    fn at(increment: u32) -> Timestamp {
        Timestamp { time: 1, increment }
    }

    #[test]
    fn what_is_neither_mirrored_nor_passed_is_named() {
        let (unreturned, c) = (Unreturned::default(), Namespace::new("shop", "c"));
        for id in 1..=4 {
            unreturned.note(&c, [(&key(id), None)].into_iter(), true, at(id.unsigned_abs()), None);
        }
        unreturned.mirrored(&c, &[key(2)], at(2));
        // Written again since: what the mirror has is not the last of it.
        unreturned.note(&c, [(&key(3), None)].into_iter(), true, at(9), None);
        unreturned.mirrored(&c, &[key(3)], at(3));
        let named = |passed| {
            let (mut keys, all) = unreturned.beyond(passed, &SlotSet::ALL);
            keys.sort();
            (keys.into_iter().map(|(_, key)| key).collect::<Vec<_>>(), all)
        };
        assert_eq!(named(None), (vec![key(1), key(3), key(4)], true));
        assert_eq!(named(Some(at(4))), (vec![key(3)], true));
        unreturned.note(&c, [].into_iter(), false, at(10), None);
        assert_eq!(named(Some(at(9))), (vec![], false), "some cannot be named");
        assert_eq!(named(Some(at(10))), (vec![], true));
    }

    #[test]
    fn of_some_slots_only_what_may_lie_there_is_named() {
        let (unreturned, c) = (Unreturned::default(), Namespace::new("shop", "c"));
        let slot = Slot::from_number;
        let slots: SlotSet = slot(5).into_iter().collect();
        for (id, slot) in [(1, slot(5)), (2, slot(6)), (3, None), (4, slot(5))] {
            unreturned.note(&c, [(&key(id), slot)].into_iter(), true, at(1), None);
        }
        // Another document of that `_id` since.
        unreturned.note(&c, [(&key(4), slot(6))].into_iter(), true, at(2), None);
        let (mut keys, all) = unreturned.beyond(None, &slots);
        keys.sort();
        assert!(all && keys.iter().map(|(_, key)| key).eq([&key(1), &key(3), &key(4)]));
        unreturned.note_written(&c, [&key(1)].into_iter());
        unreturned.forget_written();
        assert!(!unreturned.may_be_written(key(1).fingerprint_in(&c)));
        assert_eq!(unreturned.beyond(None, &slots).0.len(), 3);
    }

    #[test]
    fn what_finds_no_room_cannot_be_named() {
        let unreturned = Unreturned { limit: 2, ..Unreturned::default() };
        let c = Namespace::new("shop", "c");
        let keys = [key(1), key(2), key(3)];
        unreturned.note(&c, keys.iter().map(|key| (key, None)), true, at(5), None);
        let (keys, all) = unreturned.beyond(None, &SlotSet::ALL);
        assert_eq!((keys.len(), all), (2, false));
        assert!(!unreturned.may_be_written(key(7).fingerprint_in(&c)));
        unreturned.note_written(&c, [key(7)].iter());
        assert!(unreturned.may_be_written(key(7).fingerprint_in(&c)));
    }
}
