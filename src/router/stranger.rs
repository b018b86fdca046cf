//! Commits of transactions that this process does not know: it was restarted since they began, or has answered
//! the commit before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bson::rawdoc;
use uuid::Uuid;

use super::open_transactions::TransactionKey;
use super::operation::Operation;
use super::pipeline::Router;
use super::writer::{HOLD, Writer};
use crate::cluster::command::Request;
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::model::slots::SlotSet;
use crate::state::inflight::Work;
use crate::state::records::lsid;
use crate::wire::error::{
    ErrorReply, HOST_UNREACHABLE, NO_SUCH_TRANSACTION, RETRYABLE_WRITE, UNKNOWN_COMMIT,
};

const TRANSACTION_COMMITTED: i32 = 256;

impl Router {
    /// Before a commit of a transaction on `side` of which nothing else is known. Which collections it wrote
    /// to is not known either, so it counts as under way for every migration.
    ///
    /// Where `side` is not the authority of everything (any more), what the transaction wrote would be undone
    /// there: it is ended first. The commit then says what became of it: executed before, or to be run again.
    ///
    /// # Errors
    /// The error to answer with.
    pub(super) async fn enter_commit_of_a_stranger(
        &self,
        operation: &Operation<'_>,
        writer: &Writer,
        key: TransactionKey,
        side: Option<Side>,
    ) -> Result<(), ErrorReply> {
        let table = writer.gate.routing.load();
        let one_of_each: HashMap<&str, &Namespace> =
            table.routes.iter().map(|(namespace, route)| (&*route.name, namespace)).collect();
        if one_of_each.is_empty() {
            return Ok(());
        }
        let Some(side) = side else {
            return Err(unknown("which cluster the transaction runs on is not known (any more)"));
        };
        let what: Arc<str> = "the commit of a transaction that began before this process".into();
        let hold = operation.hold().min(HOLD);
        let mut all = Vec::new();
        for namespace in one_of_each.values() {
            let entered =
                writer.gate.enter(namespace.as_str(), SlotSet::ALL, Work::Transaction, &what, hold).await;
            all.extend(entered.map_err(|error| unknown(error.message))?);
        }
        if all.iter().any(|entered| entered.route.sole_authority() != Some(side)) {
            return end(writer, key, side, hold).await;
        }
        for entered in all.into_iter().filter(|entered| entered.active.is_some()) {
            self.shared.open_transactions.put(key, entered, self.shared.clock.now())?;
        }
        Ok(())
    }
}

/// Ends a transaction, unless it has been committed.
async fn end(writer: &Writer, key: TransactionKey, side: Side, limit: Duration) -> Result<(), ErrorReply> {
    let (session, number) = key;
    let abort = rawdoc! {
        "abortTransaction": 1, "lsid": lsid(Uuid::from_bytes(session)), "txnNumber": number,
        "autocommit": false, "writeConcern": { "w": "majority" },
    };
    let request = Request::new("admin", abort).within(limit);
    let reply = writer.clusters.get(side).run(request).await.map_err(|error| unknown(error.to_string()))?;
    match reply.error() {
        None => Ok(()),
        // It has ended already, one way or the other.
        Some(error) if [TRANSACTION_COMMITTED, NO_SUCH_TRANSACTION.0].contains(&error.code) => Ok(()),
        Some(error) => Err(unknown(error.to_string())),
    }
}

fn unknown(why: impl Into<String>) -> ErrorReply {
    ErrorReply::new(HOST_UNREACHABLE, why).labelled(vec![RETRYABLE_WRITE, UNKNOWN_COMMIT])
}
