//! Which documents only new has acknowledged, as far as this process knows: what a rollback without new names.
//!
//! A write that new has acknowledged is noted with its keys before its reply is sent, and forgotten once the mirror has
//! it or new's stream has passed it. It decides nothing: new's stream tells all of them once new is there again.

use std::collections::{HashMap, HashSet};

use bson::Timestamp;
use parking_lot::Mutex;

use crate::model::key::Key;
use crate::model::namespace::Namespace;

/// Keys remembered of each kind.
const MOST: usize = 100_000;

/// The register; one for each migration.
#[derive(Debug)]
pub struct Unreturned {
    state: Mutex<State>,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    keys: HashMap<u128, (Namespace, Key, Timestamp)>,
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
    /// New has acknowledged a write of `keys` at `time`; `all_known`: it touched no others. `passed` is how far new's
    /// stream has been worked off.
    pub fn note<'a>(
        &self,
        namespace: &Namespace,
        keys: impl Iterator<Item = &'a Key>,
        all_known: bool,
        time: Timestamp,
        passed: Option<Timestamp>,
    ) {
        let mut state = self.state.lock();
        if state.keys.len() > 2 * state.cleared_to + 1024 {
            state.keys.retain(|_, (_, _, at)| passed.is_none_or(|passed| *at > passed));
            state.cleared_to = state.keys.len();
        }
        if !all_known {
            state.unnamed = state.unnamed.max(Some(time));
        }
        for key in keys {
            if state.keys.len() >= self.limit {
                state.unnamed = state.unnamed.max(Some(time));
                return;
            }
            let fingerprint = key.fingerprint_in(namespace);
            let noted =
                state.keys.entry(fingerprint).or_insert_with(|| (namespace.clone(), key.clone(), time));
            noted.2 = noted.2.max(time);
        }
    }

    /// The mirror has what new acknowledged of `keys` up to `time`.
    pub fn mirrored(&self, namespace: &Namespace, keys: &[Key], time: Timestamp) {
        let mut state = self.state.lock();
        for key in keys {
            let fingerprint = key.fingerprint_in(namespace);
            if state.keys.get(&fingerprint).is_some_and(|(_, _, at)| *at <= time) {
                state.keys.remove(&fingerprint);
            }
        }
    }

    /// What new has acknowledged beyond `passed`, and whether that is all of it.
    #[must_use]
    pub fn beyond(&self, passed: Option<Timestamp>) -> (Vec<(Namespace, Key)>, bool) {
        let state = self.state.lock();
        let is_beyond = |time: Timestamp| passed.is_none_or(|passed| time > passed);
        let keys = state.keys.values().filter(|(_, _, time)| is_beyond(*time));
        let keys = keys.map(|(namespace, key, _)| (namespace.clone(), key.clone())).collect();
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

    /// Nothing is to be returned any more.
    pub fn forget(&self) {
        *self.state.lock() = State::default();
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
            unreturned.note(&c, [key(id)].iter(), true, at(id.unsigned_abs()), None);
        }
        unreturned.mirrored(&c, &[key(2)], at(2));
        // Written again since: what the mirror has is not the last of it.
        unreturned.note(&c, [key(3)].iter(), true, at(9), None);
        unreturned.mirrored(&c, &[key(3)], at(3));
        let named = |passed| {
            let (mut keys, all) = unreturned.beyond(passed);
            keys.sort();
            (keys.into_iter().map(|(_, key)| key).collect::<Vec<_>>(), all)
        };
        assert_eq!(named(None), (vec![key(1), key(3), key(4)], true));
        assert_eq!(named(Some(at(4))), (vec![key(3)], true));
        unreturned.note(&c, [].iter(), false, at(10), None);
        assert_eq!(named(Some(at(9))), (vec![], false), "some cannot be named");
        assert_eq!(named(Some(at(10))), (vec![], true));
    }

    #[test]
    fn what_finds_no_room_cannot_be_named() {
        let unreturned = Unreturned { limit: 2, ..Unreturned::default() };
        let c = Namespace::new("shop", "c");
        unreturned.note(&c, [key(1), key(2), key(3)].iter(), true, at(5), None);
        let (keys, all) = unreturned.beyond(None);
        assert_eq!((keys.len(), all), (2, false));
        assert!(!unreturned.may_be_written(key(7).fingerprint_in(&c)));
        unreturned.note_written(&c, [key(7)].iter());
        assert!(unreturned.may_be_written(key(7).fingerprint_in(&c)));
    }
}
