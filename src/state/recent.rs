//! Keys that the streams have seen change lately, for the backfill's sake.
//!
//! A batch of the backfill holds documents as they were when it read them. A change whose event was worked
//! off between that read and the insert's arrival would be lost under a late insert: after its inserts are
//! acknowledged the backfill asks here for such keys and converges them. And the mirror's stream asks here
//! whether an insert it sees is one of the backfill's own, already accounted for.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use bson::Timestamp;
use parking_lot::Mutex;

/// What happened to keys lately. Bounded; see [`Reading::changed`] for what it does when full.
#[derive(Debug)]
pub struct Recent {
    state: Mutex<State>,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    changed: ByFingerprint<Timestamp>,
    /// Everything at or below this may have been forgotten.
    forgotten: Option<Timestamp>,
    /// The backfill's inserts whose events are awaited, each with its load.
    copied: ByFingerprint<Load>,
    loads: HashMap<Load, Underway>,
    reading: HashMap<u64, Timestamp>,
    next: u64,
}

/// Documents that the backfill inserts with one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Load(u64);

#[derive(Debug)]
struct Underway {
    /// The mirror's time when the insert was acknowledged; `None` until then.
    acknowledged: Option<Timestamp>,
    /// Keys in `copied`.
    awaited: usize,
}

type ByFingerprint<T> = HashMap<u128, T, BuildHasherDefault<Fingerprints>>;

/// Fingerprints are hashes already.
#[derive(Debug, Default)]
struct Fingerprints(u64);

impl Hasher for Fingerprints {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    #[expect(clippy::cast_possible_truncation, reason = "half of a hash is one")]
    fn write_u128(&mut self, fingerprint: u128) {
        self.0 = fingerprint as u64;
    }
}

/// A range that the backfill is reading; changes since its start are remembered until it is dropped.
#[derive(Debug)]
pub struct Reading<'a> {
    recent: &'a Recent,
    id: u64,
    since: Timestamp,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut state = self.recent.state.lock();
        state.reading.remove(&self.id);
        let oldest = state.reading.values().min().copied();
        match oldest {
            None => state.changed.clear(),
            Some(oldest) => state.changed.retain(|_, time| *time > oldest),
        }
    }
}

impl Recent {
    /// At most `limit` keys of each kind, 48 bytes each.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), limit }
    }

    /// Begins to remember every change; [`Reading::reads_after`] says later which of them matter.
    pub fn reading(&self) -> Reading<'_> {
        let since = Timestamp { time: 0, increment: 0 };
        let mut state = self.state.lock();
        state.next += 1;
        let id = state.next;
        state.reading.insert(id, since);
        Reading { recent: self, id, since }
    }

    /// The authority's stream has seen a change of a key; to be called before the key is converged.
    pub fn note_change(&self, fingerprint: u128, time: Timestamp) {
        let mut state = self.state.lock();
        if state.reading.is_empty() {
            return;
        }
        if state.changed.len() >= self.limit {
            state.changed.clear();
            state.forgotten = state.forgotten.max(Some(time));
        }
        let entry = state.changed.entry(fingerprint).or_insert(time);
        *entry = (*entry).max(time);
    }

    /// How many more copied keys can be remembered.
    #[must_use]
    pub fn room_for_copied(&self) -> usize {
        self.limit.saturating_sub(self.state.lock().copied.len())
    }

    /// The backfill is about to insert these keys.
    #[must_use]
    pub fn note_copying(&self, fingerprints: impl Iterator<Item = u128>) -> Load {
        let mut state = self.state.lock();
        state.next += 1;
        let load = Load(state.next);
        state.loads.insert(load, Underway { acknowledged: None, awaited: 0 });
        for fingerprint in fingerprints {
            let before = state.copied.insert(fingerprint, load);
            state.expect(load, 1);
            before.into_iter().for_each(|before| state.expect(before, -1));
        }
        load
    }

    /// The insert of this load is acknowledged, but for what was forgotten; the mirror's time is now `time`.
    pub fn note_copied(&self, load: Load, time: Timestamp) {
        let mut state = self.state.lock();
        if let Some(underway) = state.loads.get_mut(&load) {
            underway.acknowledged = Some(time);
        }
        state.expect(load, 0);
    }

    /// The insert of this key failed or its outcome is unknown. `false`: an event has been taken for it, so
    /// that the key must be converged.
    #[must_use]
    pub fn forget_copying(&self, fingerprint: u128) -> bool {
        let mut state = self.state.lock();
        let load = state.copied.remove(&fingerprint);
        load.into_iter().for_each(|load| state.expect(load, -1));
        load.is_some()
    }

    /// Whether an insert that the mirror's stream shows is the backfill's own; says yes once for each.
    pub fn take_copied(&self, fingerprint: u128, time: Timestamp) -> bool {
        let mut state = self.state.lock();
        let Some(load) = state.copied.get(&fingerprint).copied() else { return false };
        let acknowledged = state.loads.get(&load).and_then(|underway| underway.acknowledged);
        if acknowledged.is_some_and(|acknowledged| time > acknowledged) {
            return false;
        }
        state.copied.remove(&fingerprint);
        state.expect(load, -1);
        true
    }

    /// Everything that the mirror's stream had to show up to `time` has been seen: forgets what was
    /// copied before.
    pub fn mirror_passed(&self, time: Timestamp) {
        let State { loads, copied, .. } = &mut *self.state.lock();
        let all = loads.len();
        loads.retain(|_, underway| underway.acknowledged.is_none_or(|at| at > time));
        // Rarely: events of all the others have been taken, and their loads with them.
        if loads.len() < all {
            copied.retain(|_, load| loads.contains_key(load));
        }
    }
}

impl State {
    /// Changes how many events of a load are awaited; a load that awaits none is forgotten.
    fn expect(&mut self, load: Load, more: isize) {
        let Some(underway) = self.loads.get_mut(&load) else { return };
        underway.awaited = underway.awaited.saturating_add_signed(more);
        if underway.awaited == 0 && underway.acknowledged.is_some() {
            self.loads.remove(&load);
        }
    }
}

impl Reading<'_> {
    /// The documents are read at or after `time`, by majority: changes at or below it are in what is read.
    pub fn reads_after(&mut self, time: Timestamp) {
        self.since = time;
        self.recent.state.lock().reading.insert(self.id, time);
    }

    /// Which of these keys changed since the reading began. Says yes to all of them when too many changes
    /// came in to remember them one by one.
    #[must_use]
    pub fn changed(&self, fingerprint: u128) -> bool {
        let state = self.recent.state.lock();
        state.forgotten.is_some_and(|forgotten| forgotten > self.since)
            || state.changed.get(&fingerprint).is_some_and(|time| *time > self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(increment: u32) -> Timestamp {
        Timestamp { time: 1, increment }
    }

    #[test]
    fn changes_during_a_reading_are_known_to_it() {
        let recent = Recent::new(10);
        recent.note_change(1, at(4));
        let mut reading = recent.reading();
        recent.note_change(2, at(5));
        recent.note_change(4, at(7));
        reading.reads_after(at(5));
        recent.note_change(3, at(6));
        assert!(reading.changed(4), "seen before the time to read after was known");
        assert!(!reading.changed(1) && !reading.changed(2) && reading.changed(3));
    }

    #[test]
    fn when_full_every_key_counts_as_changed() {
        let recent = Recent::new(2);
        let mut reading = recent.reading();
        reading.reads_after(at(1));
        for key in 0..3 {
            recent.note_change(key, at(9));
        }
        assert!(reading.changed(77));
        drop(reading);
        let mut later = recent.reading();
        later.reads_after(at(9));
        assert!(!later.changed(77));
    }

    #[test]
    fn an_insert_of_the_backfill_is_taken_once() {
        let recent = Recent::new(10);
        let early = recent.note_copying([3, 4].into_iter());
        assert!(recent.take_copied(3, at(9)), "its event may come before its acknowledgement");
        assert!(!recent.forget_copying(3));
        assert!(recent.forget_copying(4));
        recent.note_copied(early, at(5));
        let load = recent.note_copying([1, 2].into_iter());
        recent.note_copied(load, at(5));
        assert!(recent.take_copied(1, at(4)));
        assert!(!recent.take_copied(1, at(5)));
        assert!(!recent.take_copied(2, at(6)));
        assert_eq!(recent.room_for_copied(), 9);
        recent.mirror_passed(at(5));
        assert_eq!(recent.room_for_copied(), 10);
        assert!(recent.state.lock().loads.is_empty());
    }

    #[test]
    fn a_load_that_is_sent_again_counts_once() {
        let recent = Recent::new(10);
        let first = recent.note_copying([1, 2].into_iter());
        let second = recent.note_copying([2, 3].into_iter());
        recent.note_copied(first, at(3));
        recent.note_copied(second, at(6));
        recent.mirror_passed(at(4));
        assert!(recent.take_copied(2, at(6)), "it belongs to the later load");
        assert!(!recent.take_copied(1, at(2)), "the stream has passed its load");
    }
}
