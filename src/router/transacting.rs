//! Transactions over migrating namespaces.
//!
//! A transaction counts as under way on all slots from its first statement on such a namespace until its end
//! is known: a move of authority waits for it or is given up. One that began before its namespace migrated is
//! waited for by the start.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bson::{RawDocument, Timestamp, rawdoc};
use bytes::BytesMut;

use super::entry::{Entered, Passing};
use super::foreign_commits::unknown as unknown_commit;
use super::mirroring::Effect;
use super::open_transactions::{TransactionKey, lease_ended, run_again};
use super::operation::Operation;
use super::pipeline::Router;
use super::recovery;
use super::writer::{HOLD, Writer};
use crate::cluster::command::ServerId;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::model::slots::SlotSet;
use crate::policy::classify::Class;
use crate::state::inflight::Work;
use crate::state::transactions::GivenUp;
use crate::wire::error::{
    CURSOR_NOT_FOUND, ErrorReply, HOST_UNREACHABLE, NO_WRITES_PERFORMED, NOT_NOW, RETRYABLE_WRITE,
    TRANSIENT_TRANSACTION, UNKNOWN_COMMIT,
};
use crate::wire::reply::ReplyFields;

impl Router {
    /// Before a statement, a commit or an abort: the cluster it must go to, where a migration says so.
    ///
    /// # Errors
    /// The error to answer with.
    pub(super) async fn enter_transaction(
        &self,
        operation: &Operation<'_>,
        known: Option<Side>,
    ) -> Result<Option<Side>, ErrorReply> {
        let Some(writer) = &self.writer else { return Ok(known) };
        let key = operation.command.session().zip(operation.command.txn_number);
        let open = &self.shared.open_transactions;
        if let Some(key) = key {
            // Whatever becomes of it: its events name it.
            writer.gate.registry.process.transacts(key, self.shared.clock.wall_millis());
        }
        if let Some(key) =
            key.filter(|_| !operation.command.start_transaction && operation.class != Class::Abort)
        {
            open.must_count(&key)?;
        }
        if matches!(operation.class, Class::Commit | Class::Abort) {
            let side = known.or_else(|| recovery::cluster(operation));
            if let Some(key) = key.filter(|_| operation.class == Class::Commit) {
                if !open.vouches_for(&key) {
                    // Begun by another process, or under a lease that has ended since its commit was sent.
                    let former = open.take(&key);
                    self.enter_foreign_commit(writer, operation, key, side).await?;
                    drop(former);
                }
                open.commits(&key)?;
            }
            return Ok(side);
        }
        if let Some(key) = key.filter(|_| operation.command.start_transaction) {
            // Before it is looked up whether its namespace migrates: a start waits for it either way.
            open.begin(key, Passing::by(&writer.gate.routing), self.shared.clock.now())?;
        }
        self.served_together(operation)?;
        self.must_exist(operation)?;
        self.admit(operation).await?;
        let Some(route) = self.migration_of(operation) else {
            return match known.filter(|known| *known != self.side_outside_migrations(operation)) {
                Some(known) => Err(elsewhere(known, &name_of(operation), "which does not migrate")),
                None => Ok(known),
            };
        };
        if operation.class == Class::Ddl && !route.phase.is_over() {
            let why = format!(
                "{} in a transaction would reach one cluster alone while migration {} moves this collection: run \
                 it without a transaction",
                operation.command.name, route.name
            );
            return Err(ErrorReply::new(NOT_NOW, why));
        }
        let Some(key) = key else { return Ok(known) };
        if open.has_entered(&key, &route.name) {
            return Ok(known);
        }
        let name = name_of(operation);
        let what: Arc<str> = format!("transaction on {name}").into();
        let hold = operation.hold().min(HOLD);
        let entered = writer.gate.enter(&name, SlotSet::ALL, Work::Transaction, &what, hold).await?;
        let Some(entered) = entered else { return Ok(known) };
        let Some(side) = entered.route.sole_authority() else {
            return Err(ErrorReply::new(
                NOT_NOW,
                "transactions cannot run while writes are divided between two clusters",
            ));
        };
        if let Some(known) = known.filter(|known| *known != side) {
            return Err(elsewhere(known, &name, &format!("of migration {}", route.name)));
        }
        if let Some(active) = &entered.active {
            active.counters.transactions.fetch_add(1, Ordering::Relaxed);
            open.put(key, entered, self.shared.clock.now())?;
        }
        Ok(Some(side))
    }

    async fn enter_foreign_commit(
        &self,
        writer: &Writer,
        operation: &Operation<'_>,
        key: TransactionKey,
        side: Option<Side>,
    ) -> Result<(), ErrorReply> {
        if writer.gate.routing.peek().routes.is_empty() {
            return Ok(());
        }
        let side = side.ok_or_else(|| unknown_commit("which cluster it runs on is not known (any more)"))?;
        let body = RawDocument::from_bytes(&operation.message[operation.parts.body.clone()]).ok();
        let Some(lsid) = body.and_then(|body| body.get_document("lsid").ok()) else { return Ok(()) };
        let hold = operation.hold().min(HOLD);
        let entered = writer.enter_foreign_commit(lsid, key.1, side, hold).await?;
        for entered in entered.into_iter().filter(|entered| entered.active.is_some()) {
            self.shared.open_transactions.put(key, entered, self.shared.clock.now())?;
        }
        Ok(())
    }

    /// After an answer: a transaction that has ended leaves, once the mirror has what a reader may expect.
    ///
    /// # Errors
    /// The error to answer with instead: the lease ended meanwhile.
    pub(super) async fn leave_transaction(
        &self,
        operation: &Operation<'_>,
        side: Side,
        server: &ServerId,
        fields: &ReplyFields,
    ) -> Result<(), ErrorReply> {
        let Some(writer) = &self.writer else { return Ok(()) };
        let Some(key) = operation.command.session().zip(operation.command.txn_number) else { return Ok(()) };
        if operation.class != Class::Abort && self.shared.open_transactions.is_given_up(&key) {
            // Given up while this was on its way: it may have begun on the server once more.
            let (session, number) = key;
            // By the same user.
            let abort = GivenUp { session, number, side, server: Some(server.clone()), user: None };
            let request = abort.abort(self.is_sharded(side)).within(HOLD);
            _ = writer.clusters.get(side).run(request).await;
            return Err(run_again("the transaction was ended for a move of its collections"));
        }
        // One whose first statement was refused has not begun: nobody need end it.
        let never_began = operation.command.start_transaction && !fields.ok;
        let ends = matches!(operation.class, Class::Commit | Class::Abort) || fields.transient_transaction;
        if !ends && !never_began {
            return Ok(());
        }
        let all = self.shared.open_transactions.take(&key);
        if operation.class != Class::Commit || !fields.ok {
            return Ok(());
        }
        if !all.iter().all(Entered::may_answer) {
            return Err(lease_ended());
        }
        for entered in all.into_iter().filter(|entered| entered.route.mirrors()) {
            let mut times = PerSide::default();
            *times.get_mut(side) = fields.operation_time.map(timestamp);
            let effect = Effect {
                namespace: Namespace::new("", ""),
                keys: Vec::new(),
                all_known: false,
                slots: SlotSet::ALL,
                times,
                direct: None,
                concern: rawdoc! { "w": 1 },
                aims: Arc::default(),
                lanes: None,
            };
            writer.mirroring.follow(&writer.own, entered, effect, Duration::ZERO).await;
        }
        Ok(())
    }

    /// Tells the driver where its transaction runs, so that a commit that it repeats finds the way, whatever
    /// has become of this process.
    pub(super) fn add_recovery_token(&self, side: Side, ok: bool, reply: &mut BytesMut) {
        if self.writer.is_some() && ok {
            recovery::show(side, reply);
        }
    }
}

/// Puts an error of the proxy's own into `reply`.
pub(super) fn tell(operation: &Operation<'_>, error: ErrorReply, reply: &mut BytesMut) {
    let error = if operation.command.in_transaction() { told_within(operation.class, error) } else { error };
    reply.clear();
    reply.extend_from_slice(&error.message(operation.request_id()));
}

/// An error as it is told within a transaction: what passes by itself has the label that makes the application run
/// the transaction again. A single statement is never repeated, whatever it would be outside; the end of a transaction is.
/// What would be refused again keeps what it has.
fn told_within(class: Class, mut error: ErrorReply) -> ErrorReply {
    let is_for_single_writes = |label: &&str| [RETRYABLE_WRITE, NO_WRITES_PERFORMED].contains(label);
    // A cursor that nobody here knows was opened before a restart, and its transaction may have ended with that.
    let passes = [HOST_UNREACHABLE, CURSOR_NOT_FOUND].contains(&error.code)
        || error.labels.iter().any(is_for_single_writes);
    if passes {
        error.labels = match class {
            Class::Commit => vec![RETRYABLE_WRITE, UNKNOWN_COMMIT],
            Class::Abort => vec![RETRYABLE_WRITE],
            _ => vec![TRANSIENT_TRANSACTION],
        };
    }
    error
}

/// The namespace of a statement.
pub(super) fn name_of(operation: &Operation<'_>) -> String {
    let command = &operation.command;
    format!("{}.{}", command.database.unwrap_or(""), command.collection().unwrap_or(""))
}

fn elsewhere(runs_on: Side, name: &str, of: &str) -> ErrorReply {
    ErrorReply::new(
        NOT_NOW,
        format!(
            "the transaction runs on the {runs_on} cluster, and {name}, {of}, is served by {}: move together \
             what is used together",
            runs_on.other()
        ),
    )
}

fn timestamp(packed: u64) -> Timestamp {
    #[expect(clippy::cast_possible_truncation, reason = "two halves")]
    Timestamp { time: (packed >> 32) as u32, increment: packed as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::router::entry::not_sent;
    use crate::router::open_transactions::lease_ended;
    use crate::router::{AlwaysOld, Shared};
    use crate::wire::error::NO_SUCH_TRANSACTION;
    use crate::wire::op_msg::{OpMsg, build};
    use bson::RawDocumentBuf;

    fn labels(class: Class, error: ErrorReply) -> Vec<&'static str> {
        told_within(class, error).labels
    }

    #[test]
    fn what_passes_by_itself_is_told_by_what_its_transaction_can_do() {
        let passing = || {
            let unlabelled = ErrorReply::new(HOST_UNREACHABLE, "too many transactions are open");
            [not_sent("a move takes too long".into()), unlabelled, lease_ended()]
        };
        for error in passing() {
            assert_eq!(labels(Class::Write, error.clone()), [TRANSIENT_TRANSACTION]);
            assert_eq!(labels(Class::GetMore, error.clone()), [TRANSIENT_TRANSACTION]);
            assert_eq!(labels(Class::Commit, error.clone()), [RETRYABLE_WRITE, UNKNOWN_COMMIT]);
            assert_eq!(labels(Class::Abort, error), [RETRYABLE_WRITE]);
        }
    }

    #[test]
    fn what_would_be_refused_again_is_told_as_it_is() {
        assert!(labels(Class::Write, ErrorReply::new(NOT_NOW, "divided")).is_empty());
        for class in [Class::Write, Class::Commit] {
            let again = run_again("it was given up");
            assert_eq!(again.code, NO_SUCH_TRANSACTION);
            assert_eq!(labels(class, again), [TRANSIENT_TRANSACTION]);
        }
    }

    /// The labels of the answer to a command of a client, while no cluster can be reached.
    async fn answered(body: &RawDocumentBuf) -> Vec<String> {
        let router = Router::new(Shared::new(Arc::new(SystemClock)), [None, None], Arc::new(AlwaysOld));
        let message = build(1, 0, 0, body.as_bytes(), None);
        let mut reply = BytesMut::new();
        router.handle(&Operation::parse(&message, 1).unwrap(), &mut reply).await;
        let body = OpMsg::parse(&reply).unwrap().body;
        let body = RawDocument::from_bytes(&reply[body]).unwrap();
        let labels = body.get_array("errorLabels").into_iter().flatten().flatten();
        labels.filter_map(|label| label.as_str().map(ToOwned::to_owned)).collect()
    }

    #[tokio::test]
    async fn every_answer_within_a_transaction_has_its_labels() {
        let session = bson::Binary::from(bson::Uuid::from_bytes([7; 16]));
        let within = |mut body: RawDocumentBuf| {
            body.append(bson::cstr!("lsid"), rawdoc! { "id": session.clone() });
            body.append(bson::cstr!("txnNumber"), 5_i64);
            body.append(bson::cstr!("autocommit"), false);
            body.append(bson::cstr!("$db"), "d");
            body
        };
        let statements = [
            rawdoc! { "insert": "c", "startTransaction": true },
            rawdoc! { "find": "c" },
            rawdoc! { "getMore": 5_i64, "collection": "c" },
        ];
        for statement in statements {
            assert_eq!(answered(&within(statement)).await, [TRANSIENT_TRANSACTION]);
        }
        let commit = within(rawdoc! { "commitTransaction": 1 });
        assert_eq!(answered(&commit).await, [RETRYABLE_WRITE, UNKNOWN_COMMIT]);
        assert_eq!(answered(&within(rawdoc! { "abortTransaction": 1 })).await, [RETRYABLE_WRITE]);
        assert!(answered(&rawdoc! { "getMore": 5_i64, "collection": "c", "$db": "d" }).await.is_empty());
    }
}
