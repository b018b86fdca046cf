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
use crate::converge::active::Active;
use crate::model::side::Side;
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

    /// Gives up those that have entered `migration`, but for those whose commit may have been sent.
    pub(super) fn give_up(&self, migration: &str) -> Vec<(TransactionKey, Side)> {
        let mut open = self.0.lock();
        let mut given_up = Vec::new();
        for (key, open) in open.iter_mut() {
            let State::UnderWay { entered, committing: false, .. } = &open.state else { continue };
            let Some(touched) = entered.iter().find(|one| &*one.route.name == migration) else { continue };
            given_up.push((*key, touched.route.sole_authority().unwrap_or(Side::Old)));
            open.state = State::GivenUp;
        }
        given_up
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

    /// The migrations that it has entered, as far as they are active here.
    pub(super) fn entered(&self, key: &TransactionKey) -> Vec<Arc<Active>> {
        let open = self.0.lock();
        let Some(State::UnderWay { entered, .. }) = open.get(key).map(|open| &open.state) else {
            return Vec::new();
        };
        entered.iter().filter_map(|one| one.active.clone()).collect()
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

    /// Its commit is about to be sent: from here on it is not given up. Refuses one that is given up already.
    pub(super) fn commits(&self, key: &TransactionKey) -> Result<(), ErrorReply> {
        match self.0.lock().get_mut(key).map(|open| &mut open.state) {
            Some(State::UnderWay { committing, .. }) => *committing = true,
            Some(State::GivenUp) => return Err(run_again(GIVEN_UP)),
            None => {}
        }
        Ok(())
    }

    /// Whether nothing of it counts any more.
    pub(super) fn is_given_up(&self, key: &TransactionKey) -> bool {
        self.0.lock().get(key).is_some_and(|open| matches!(open.state, State::GivenUp))
    }

    /// Refuses one that has been given up, or whose lease has ended. As long as no commit of it was sent, it
    /// may be run again; afterwards that commit must be asked about.
    pub(super) fn must_count(&self, key: &TransactionKey) -> Result<(), ErrorReply> {
        let again = |why| Err(run_again(why));
        match self.0.lock().get(key).map(|open| &open.state) {
            Some(State::GivenUp) => again(GIVEN_UP),
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

const GIVEN_UP: &str = "the transaction was open for too long, or ended for a move of its collections";

/// It does not count, and may be run again.
pub(super) fn run_again(why: &str) -> ErrorReply {
    ErrorReply::new(NO_SUCH_TRANSACTION, why).labelled(vec![TRANSIENT_TRANSACTION])
}

/// Whether a commit counts is not known: the lease that its transaction began under has ended.
pub(super) fn lease_ended() -> ErrorReply {
    ErrorReply::new(HOST_UNREACHABLE, "the lease to write ended meanwhile")
        .labelled(vec![RETRYABLE_WRITE, UNKNOWN_COMMIT])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::model::slots::SlotSet;
    use crate::state::inflight::{Inflight, Work};
    use crate::state::table::{MigrationRoute, Routing};

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
        assert!(open.is_given_up(&KEY) && open.commits(&KEY).is_err());
        routing.publish(|_| ());
        assert!(!routing.anybody_goes_by_older());
    }

    /// Only what has touched the migration, and of which no commit was sent, is given up for it.
    #[test]
    fn a_move_ends_what_it_would_wait_for_but_no_commit() {
        let routing = Arc::new(Routing::default());
        let inflight = Inflight::new(Arc::clone(&routing), Arc::new(SystemClock));
        let open = begun(&routing);
        let enter = |key, name: &str| {
            let route =
                Arc::new(MigrationRoute { owned_by_old: SlotSet::ALL, ..MigrationRoute::named(name) });
            let ticket =
                inflight.enter(&route.name, SlotSet::ALL, Work::Transaction, &"a transaction".into());
            open.put(key, Entered::of(ticket, route), Duration::ZERO).unwrap();
        };
        let (elsewhere, committing): (TransactionKey, TransactionKey) = (([2; 16], 1), ([3; 16], 1));
        enter(KEY, "m");
        enter(elsewhere, "other");
        enter(committing, "m");
        open.commits(&committing).unwrap();
        assert_eq!(open.give_up("m"), [(KEY, Side::Old)]);
        let left = |name| inflight.oldest(name, &SlotSet::ALL, u64::MAX, &[Work::Transaction]).is_some();
        assert!(open.is_given_up(&KEY) && !open.is_given_up(&elsewhere) && !open.is_given_up(&committing));
        assert!(left("m") && left("other"));
        open.take(&committing);
        assert!(!left("m"), "nothing waits for what was given up");
        assert!(open.must_count(&KEY).is_err() && open.commits(&KEY).is_err());
    }

    #[test]
    fn one_whose_commit_may_have_been_executed_is_waited_for() {
        let routing = Routing::default();
        let open = begun(&routing);
        open.commits(&KEY).unwrap();
        open.sweep(LONGEST + Duration::from_secs(1));
        assert!(open.must_count(&KEY).is_ok());
        routing.publish(|_| ());
        assert!(routing.anybody_goes_by_older());
    }
}
