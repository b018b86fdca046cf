//! Open transactions: what each of them keeps from being moved, or from being taken for finished.
//!
//! From its first statement a transaction goes by the routing table of that moment, so that a start waits for
//! those that may have written to a collection before it migrated. From its first statement on a migrating
//! namespace it counts as under way on all slots of that migration.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::entry::{Entered, Passing};
use super::transactions::IDLE;
use crate::cluster::command::OnlyIf;
use crate::wire::error::{
    ErrorReply, HOST_UNREACHABLE, NO_SUCH_TRANSACTION, RETRYABLE_WRITE, TRANSIENT_TRANSACTION, UNKNOWN_COMMIT,
};
use crate::wire::scan::SessionId;

/// Longer than servers let a transaction live (60 s). What is older is given up: it may not commit any more.
const LONGEST: Duration = Duration::from_secs(90);
const MOST_OPEN: usize = 20_000;

/// A session and the number of its transaction.
pub(super) type TransactionKey = (SessionId, i64);

/// Open transactions, by session and number. Bounded.
#[derive(Default)]
pub struct OpenTransactions(Mutex<HashMap<TransactionKey, Open>>);

struct Open {
    state: State,
    since: Duration,
}

enum State {
    UnderWay {
        /// The table that its first statement went by.
        _passing: Option<Passing>,
        /// One for each migration whose namespaces it has touched.
        entered: Vec<Entered>,
        /// A commit was sent, and may have been executed.
        committing: bool,
    },
    /// Nothing waits for it any more.
    GivenUp,
}

impl OpenTransactions {
    /// Gives up what is older than any transaction gets. One whose commit may have been sent is waited for,
    /// for as long as its session may live.
    pub fn sweep(&self, now: Duration) {
        self.0.lock().retain(|_, open| {
            let age = now.saturating_sub(open.since);
            let committing = matches!(open.state, State::UnderWay { committing: true, .. });
            if age > LONGEST && !committing {
                open.state = State::GivenUp;
            }
            age <= IDLE
        });
    }

    /// A first statement is about to be sent, by the table that `passing` holds.
    pub(super) fn begin(
        &self,
        key: TransactionKey,
        passing: Passing,
        now: Duration,
    ) -> Result<(), ErrorReply> {
        self.entry(key, now, |open| {
            // A number that begins again is one whose first statement was sent before.
            let state = State::UnderWay { _passing: Some(passing), entered: Vec::new(), committing: false };
            *open = Open { state, since: now };
        })
    }

    /// It has entered a migration.
    pub(super) fn put(&self, key: TransactionKey, more: Entered, now: Duration) -> Result<(), ErrorReply> {
        self.entry(key, now, |open| {
            if let State::UnderWay { entered, .. } = &mut open.state {
                entered.push(more);
            }
        })
    }

    fn entry(
        &self,
        key: TransactionKey,
        now: Duration,
        change: impl FnOnce(&mut Open),
    ) -> Result<(), ErrorReply> {
        let mut open = self.0.lock();
        if open.len() >= MOST_OPEN && !open.contains_key(&key) {
            open.retain(|_, open| matches!(open.state, State::UnderWay { .. }));
            if open.len() >= MOST_OPEN {
                return Err(ErrorReply::new(HOST_UNREACHABLE, "too many transactions are open"));
            }
        }
        let state = State::UnderWay { _passing: None, entered: Vec::new(), committing: false };
        change(open.entry(key).or_insert(Open { state, since: now }));
        Ok(())
    }

    /// Whether it has entered a migration.
    pub(super) fn has_entered(&self, key: &TransactionKey, migration: &str) -> bool {
        let open = self.0.lock();
        let entered = open.get(key).and_then(|open| match &open.state {
            State::UnderWay { entered, .. } => Some(entered),
            State::GivenUp => None,
        });
        entered.is_some_and(|entered| entered.iter().any(|one| &*one.route.name == migration))
    }

    /// Whether the leases that it has begun under hold; `None` when it has entered no migration.
    pub(super) fn only_if_held(&self, key: &TransactionKey) -> Option<OnlyIf> {
        let open = self.0.lock();
        let State::UnderWay { entered, .. } = &open.get(key)?.state else { return None };
        let all: Vec<OnlyIf> = entered.iter().map(Entered::only_if_held).collect();
        (!all.is_empty()).then(|| OnlyIf(Arc::new(move || all.iter().all(|OnlyIf(holds)| holds()))))
    }

    /// Whether it is known what it keeps from being moved, and nothing can have been moved.
    pub(super) fn vouches_for(&self, key: &TransactionKey) -> bool {
        match self.0.lock().get(key).map(|open| &open.state) {
            Some(State::UnderWay { entered, .. }) => entered.iter().all(Entered::may_answer),
            Some(State::GivenUp) => true,
            None => false,
        }
    }

    /// Its commit is about to be sent: from here on it is not given up.
    pub(super) fn commits(&self, key: &TransactionKey) {
        if let Some(State::UnderWay { committing, .. }) =
            self.0.lock().get_mut(key).map(|open| &mut open.state)
        {
            *committing = true;
        }
    }

    /// Refuses one that has been given up, or whose lease has ended. As long as no commit of it was sent, it
    /// may be run again; afterwards that commit must be asked about.
    pub(super) fn must_count(&self, key: &TransactionKey) -> Result<(), ErrorReply> {
        let again =
            |why| Err(ErrorReply::new(NO_SUCH_TRANSACTION, why).labelled(vec![TRANSIENT_TRANSACTION]));
        match self.0.lock().get(key).map(|open| &open.state) {
            Some(State::GivenUp) => again("the transaction was open for too long"),
            Some(State::UnderWay { entered, committing: false, .. })
                if !entered.iter().all(Entered::may_answer) =>
            {
                again("the lease to write ended meanwhile")
            }
            _ => Ok(()),
        }
    }

    /// It has ended: the migrations that it had entered.
    pub(super) fn take(&self, key: &TransactionKey) -> Vec<Entered> {
        match self.0.lock().remove(key).map(|open| open.state) {
            Some(State::UnderWay { entered, .. }) => entered,
            Some(State::GivenUp) | None => Vec::new(),
        }
    }
}

/// Whether a commit counts is not known: the lease that its transaction began under has ended.
pub(super) fn lease_ended() -> ErrorReply {
    ErrorReply::new(HOST_UNREACHABLE, "the lease to write ended meanwhile")
        .labelled(vec![RETRYABLE_WRITE, UNKNOWN_COMMIT])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::table::Routing;

    const KEY: TransactionKey = ([1; 16], 7);

    fn begun(routing: &Routing) -> OpenTransactions {
        let open = OpenTransactions::default();
        open.begin(KEY, Passing::by(routing), Duration::ZERO).unwrap();
        open
    }

    #[test]
    fn a_start_waits_for_a_transaction_that_began_before() {
        let routing = Routing::default();
        let open = begun(&routing);
        routing.publish(|_| ());
        assert!(routing.anybody_goes_by_older());
        open.take(&KEY);
        assert!(!routing.anybody_goes_by_older());
    }

    #[test]
    fn what_is_not_waited_for_any_more_may_not_commit() {
        let routing = Routing::default();
        let open = begun(&routing);
        open.sweep(LONGEST + Duration::from_secs(1));
        let refused = open.must_count(&KEY).unwrap_err();
        assert_eq!((refused.code, refused.labels), (NO_SUCH_TRANSACTION, vec![TRANSIENT_TRANSACTION]));
        routing.publish(|_| ());
        assert!(!routing.anybody_goes_by_older());
    }

    #[test]
    fn one_whose_commit_may_have_been_executed_is_waited_for() {
        let routing = Routing::default();
        let open = begun(&routing);
        open.commits(&KEY);
        open.sweep(LONGEST + Duration::from_secs(1));
        assert!(open.must_count(&KEY).is_ok());
        routing.publish(|_| ());
        assert!(routing.anybody_goes_by_older());
    }
}
