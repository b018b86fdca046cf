//! What was done already: answers to writes that may come again, and cursors that were killed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use reshard::wire::scan::SessionId;
use tokio::sync::OnceCell;

/// How many writes are remembered.
const WRITES: usize = 20_000;
const CURSORS: usize = 10_000;

/// What tells a write from all others: session, number, and the numbers of its statements if it has any.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct WriteId {
    pub(super) session: SessionId,
    pub(super) number: i64,
    pub(super) statements: Vec<u8>,
}

/// The answer to a write, once there is one.
pub(super) type Written = Arc<OnceCell<Bytes>>;

/// Answers to the last writes with a number.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    answers: HashMap<WriteId, Written>,
    order: VecDeque<WriteId>,
}

impl Repeats {
    /// The answer to a write that was done.
    pub(super) fn known(&self, id: &WriteId) -> Option<Bytes> {
        self.0.lock().answers.get(id)?.get().cloned()
    }

    /// Where the answer to a write is or will be.
    pub(super) fn answer(&self, id: WriteId) -> Written {
        let mut inner = self.0.lock();
        if let Some(known) = inner.answers.get(&id) {
            return known.clone();
        }
        let answer = Written::default();
        inner.answers.insert(id.clone(), answer.clone());
        inner.order.push_back(id);
        if inner.order.len() > WRITES
            && let Some(oldest) = inner.order.pop_front()
        {
            inner.answers.remove(&oldest);
        }
        answer
    }
}

/// Cursors of the engine that clients killed: no command kills them there, they time out.
#[derive(Debug, Default)]
pub(super) struct Killed {
    ids: HashSet<i64>,
    order: VecDeque<i64>,
}

impl Killed {
    pub(super) fn add(&mut self, id: i64) {
        if self.ids.insert(id) {
            self.order.push_back(id);
        }
        if self.order.len() > CURSORS
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }

    pub(super) fn contains(&self, id: i64) -> bool {
        self.ids.contains(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_writes_are_forgotten() {
        let repeats = Repeats::default();
        let id = |number: i64| WriteId { session: [1; 16], number, statements: Vec::new() };
        let first = repeats.answer(id(0));
        first.get_or_init(|| async { Bytes::from_static(b"done") }).await;
        assert!(repeats.answer(id(0)).initialized());
        for number in 1..=i64::try_from(WRITES).unwrap() {
            repeats.answer(id(number));
        }
        assert!(!repeats.answer(id(0)).initialized());
    }
}
