//! What a whole process has written beside its migrations: transactions, which are known by their session and
//! number in their change events, and writes that no migration knows of.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use bson::Timestamp;
use parking_lot::Mutex;

use super::own_writes::LOST_FOR;

/// A session's UUID and the number of its transaction.
pub type Transaction = ([u8; 16], i64);

/// Transactions remembered.
const MOST_TRANSACTIONS: usize = 200_000;
/// Longer than from a transaction's first statement to its last event, in seconds.
const LONGEST: u32 = 180;
const MOST_STRAYS: usize = 10_000;

/// The register; one for each process.
#[derive(Debug)]
pub struct ProcessWrites {
    transactions: Mutex<Transactions>,
    strays: Mutex<HashMap<String, Stray>>,
    limit: usize,
}

#[derive(Debug, Default)]
struct Transactions {
    known: HashSet<Transaction>,
    order: VecDeque<(Transaction, u32)>,
    /// When the newest that is not remembered any more began, in Unix seconds.
    forgotten: Option<u32>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Stray {
    under_way: u32,
    until: Duration,
}

impl Default for ProcessWrites {
    fn default() -> Self {
        Self { transactions: Mutex::default(), strays: Mutex::default(), limit: MOST_TRANSACTIONS }
    }
}

impl ProcessWrites {
    /// A statement or the commit of a transaction is about to be sent; it is `wall_millis` now.
    pub fn transacts(&self, transaction: Transaction, wall_millis: i64) {
        let mut transactions = self.transactions.lock();
        if !transactions.known.insert(transaction) {
            return;
        }
        let seconds = u32::try_from(wall_millis / 1000).unwrap_or(u32::MAX);
        transactions.order.push_back((transaction, seconds));
        if transactions.order.len() > self.limit
            && let Some((oldest, began)) = transactions.order.pop_front()
        {
            transactions.known.remove(&oldest);
            transactions.forgotten = transactions.forgotten.max(Some(began));
        }
    }

    /// Whether a transaction that has an event at `time` is one of this process; `None`: it may be one that is
    /// not remembered any more.
    #[must_use]
    pub fn is_own(&self, transaction: &Transaction, time: Timestamp) -> Option<bool> {
        let transactions = self.transactions.lock();
        if transactions.known.contains(transaction) {
            return Some(true);
        }
        let may_be_forgotten =
            transactions.forgotten.is_some_and(|began| time.time <= began.saturating_add(LONGEST));
        (!may_be_forgotten).then_some(false)
    }

    /// A write that is not followed is about to be sent to a collection that migrates.
    pub fn stray_begins(&self, namespace: &str) {
        self.strays.lock().entry(namespace.to_owned()).or_default().under_way += 1;
    }

    /// It has been answered.
    pub fn stray_ends(&self, namespace: &str) {
        if let Some(stray) = self.strays.lock().get_mut(namespace) {
            stray.under_way = stray.under_way.saturating_sub(1);
        }
    }

    /// A write that is not followed may be executed from `now` on.
    pub fn stray(&self, namespace: &str, now: Duration) {
        let mut strays = self.strays.lock();
        if strays.len() >= MOST_STRAYS {
            strays.retain(|_, stray| stray.under_way > 0 || stray.until >= now);
        }
        strays.entry(namespace.to_owned()).or_default().until = now + LOST_FOR;
    }

    /// Whether an event of a collection may be of a write that is not followed.
    #[must_use]
    pub fn may_be_stray(&self, namespace: &str, now: Duration) -> bool {
        self.strays.lock().get(namespace).is_some_and(|stray| stray.under_way > 0 || now <= stray.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time: u32) -> Timestamp {
        Timestamp { time, increment: 1 }
    }

    #[test]
    fn transactions_are_known_by_session_and_number() {
        let writes = ProcessWrites { limit: 2, ..ProcessWrites::default() };
        let (one, two) = (([1; 16], 1), ([1; 16], 2));
        writes.transacts(one, 5_000_000);
        assert_eq!((writes.is_own(&one, at(1)), writes.is_own(&two, at(1))), (Some(true), Some(false)));
        writes.transacts(one, 5_001_000);
        writes.transacts(two, 5_002_000);
        assert_eq!(writes.is_own(&one, at(1)), Some(true), "it counts once");
        writes.transacts(([2; 16], 1), 6_000_000);
        assert_eq!(writes.is_own(&one, at(5_000 + LONGEST)), None, "it may be what was forgotten");
        assert_eq!(writes.is_own(&one, at(5_001 + LONGEST)), Some(false));
    }

    #[test]
    fn strays_are_remembered_for_as_long_as_their_sessions_live() {
        let writes = ProcessWrites::default();
        assert!(!writes.may_be_stray("d.c", Duration::ZERO));
        writes.stray_begins("d.c");
        assert!(writes.may_be_stray("d.c", Duration::ZERO));
        writes.stray_ends("d.c");
        assert!(!writes.may_be_stray("d.c", Duration::from_secs(1)));
        writes.stray("d.c", Duration::from_secs(1));
        assert!(writes.may_be_stray("d.c", LOST_FOR) && !writes.may_be_stray("d.d", LOST_FOR));
        assert!(!writes.may_be_stray("d.c", LOST_FOR + Duration::from_secs(2)));
    }
}
