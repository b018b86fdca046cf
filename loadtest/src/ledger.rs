//! What one worker knows of the documents that only it writes.
//!
//! An entry holds the state that was last acknowledged and, while a write is
//! under way or its outcome is unknown, the state that write leads to. Such a
//! document is left alone from then on, so there are never more than two
//! states, also if the write lands late.

use std::collections::HashMap;

use crate::docs::{Builder, DocState};
use crate::keys::{GROUP_SIZE, Key};

/// A write's effect on one document: the state after it, `None` if absent.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) key: Key,
    pub(crate) after: Option<DocState>,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Acknowledged: it took effect, once.
    Acknowledged,
    /// Refused: it had no effect.
    Failed,
    /// No answer that tells: it took effect once or not at all.
    Unknown,
}

/// The other state a document may be in.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) after: Option<DocState>,
    /// Transaction whose effects are all there or none.
    pub(crate) joint: Option<u64>,
}

/// One document.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    pub(crate) now: Option<DocState>,
    pub(crate) pending: Option<Pending>,
    /// Was there and has been deleted.
    pub(crate) deleted: bool,
}

/// Numbers of writes by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) acknowledged: u64,
    pub(crate) failed: u64,
    pub(crate) unknown: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Acknowledged => self.acknowledged += 1,
            Verdict::Failed => self.failed += 1,
            Verdict::Unknown => self.unknown += 1,
        }
    }
}

/// The documents of one worker.
#[derive(Debug)]
pub(crate) struct Ledger {
    entries: HashMap<Key, Entry>,
    next_email: u64,
    next_token: i64,
}

impl Ledger {
    pub(crate) fn new(worker: u16) -> Self {
        let high = u64::from(worker) + 1;
        Self { entries: HashMap::new(), next_email: high << 40, next_token: i64::from(worker) << 40 }
    }

    /// A value for `email` that nothing had before.
    pub(crate) fn fresh_email(&mut self) -> u64 {
        self.next_email += 1;
        self.next_email
    }

    /// A token that nothing had before.
    pub(crate) fn fresh_token(&mut self) -> i64 {
        self.next_token += 1;
        self.next_token
    }

    fn entry(&self, key: Key) -> Entry {
        self.entries.get(&key).cloned().unwrap_or_else(|| untouched(key))
    }

    /// The document's state if it is known for certain: `Some(None)` is absent.
    pub(crate) fn settled(&self, key: Key) -> Option<Option<DocState>> {
        let entry = self.entry(key);
        entry.pending.is_none().then_some(entry.now)
    }

    /// The members of a group with their states, if all are known for certain.
    pub(crate) fn settled_group(&self, key: Key, documents: u32) -> Option<Vec<(Key, Option<DocState>)>> {
        members(key, documents).into_iter().map(|key| Some((key, self.settled(key)?))).collect()
    }

    /// Records a write before it is sent.
    pub(crate) fn begin(&mut self, change: &Change, joint: Option<u64>) {
        let entry = self.entries.entry(change.key).or_insert_with(|| untouched(change.key));
        entry.pending = Some(Pending { after: change.after.clone(), joint });
    }

    /// Records how it ended.
    pub(crate) fn finish(&mut self, key: Key, verdict: Verdict) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        match verdict {
            Verdict::Acknowledged => {
                if let Some(pending) = entry.pending.take() {
                    entry.deleted = match (&entry.now, &pending.after) {
                        (Some(_), None) => true,
                        (_, Some(_)) => false,
                        (None, None) => entry.deleted,
                    };
                    entry.now = pending.after;
                }
            }
            Verdict::Failed => entry.pending = None,
            Verdict::Unknown => {}
        }
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (Key, &Entry)> {
        self.entries.iter().map(|(key, entry)| (*key, entry))
    }
}

fn untouched(key: Key) -> Entry {
    let now = match key {
        Key::History(n) => Some(Builder::history(n)),
        Key::Own { .. } | Key::Hot(_) => None,
    };
    Entry { now, pending: None, deleted: false }
}

/// The keys that share a group with this one; preloaded ones end at `documents`.
pub(crate) fn members(key: Key, documents: u32) -> Vec<Key> {
    let range = |n: u32| (n / GROUP_SIZE * GROUP_SIZE)..(n / GROUP_SIZE * GROUP_SIZE + GROUP_SIZE);
    match key {
        Key::Own { worker, n } => range(n).map(|n| Key::Own { worker, n }).collect(),
        Key::History(n) => range(n).filter(|&n| n < documents).map(Key::History).collect(),
        Key::Hot(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key::Own { worker: 1, n: 5 };

    fn change(after: Option<DocState>) -> Change {
        Change { key: KEY, after }
    }

    #[test]
    fn an_acknowledged_write_becomes_the_state() {
        let mut ledger = Ledger::new(1);
        assert_eq!(ledger.settled(KEY), Some(None));
        let state = DocState::new(9);
        ledger.begin(&change(Some(state.clone())), None);
        assert_eq!(ledger.settled(KEY), None);
        ledger.finish(KEY, Verdict::Acknowledged);
        assert_eq!(ledger.settled(KEY), Some(Some(state)));
        ledger.begin(&change(None), None);
        ledger.finish(KEY, Verdict::Acknowledged);
        assert!(ledger.entries().all(|(_, entry)| entry.deleted));
    }

    #[test]
    fn a_failed_write_changes_nothing() {
        let mut ledger = Ledger::new(1);
        ledger.begin(&change(Some(DocState::new(9))), None);
        ledger.finish(KEY, Verdict::Failed);
        assert_eq!(ledger.settled(KEY), Some(None));
    }

    #[test]
    fn an_unknown_write_keeps_both_states_and_bars_the_document() {
        let mut ledger = Ledger::new(1);
        ledger.begin(&change(Some(DocState::new(9))), Some(3));
        ledger.finish(KEY, Verdict::Unknown);
        assert_eq!(ledger.settled(KEY), None);
        assert!(ledger.settled_group(Key::Own { worker: 1, n: 0 }, 0).is_none());
        let (_, entry) = ledger.entries().next().unwrap();
        assert!(entry.now.is_none());
        assert_eq!(entry.pending.as_ref().and_then(|pending| pending.joint), Some(3));
    }

    #[test]
    fn preloaded_documents_are_there_from_the_start() {
        let ledger = Ledger::new(0);
        assert_eq!(ledger.settled(Key::History(4)), Some(Some(Builder::history(4))));
        assert_eq!(ledger.settled_group(Key::History(12), 15).map(|group| group.len()), Some(5));
    }

    #[test]
    fn values_are_fresh() {
        let (mut a, mut b) = (Ledger::new(0), Ledger::new(1));
        assert_ne!(a.fresh_email(), b.fresh_email());
        assert_ne!(a.fresh_token(), a.fresh_token());
        assert_ne!(a.fresh_token(), b.fresh_token());
    }
}
