//! Commits of transactions that another process began.
//!
//! No move has waited for such a transaction: its process may have died with it open on the server. Where
//! slots have moved since, a commit would be acknowledged and then undone by the streams. So it is aborted
//! first: a server that has committed it says so, and then it was in time, since nothing moves before the
//! connections of the dead are gone.

use std::sync::Arc;
use std::time::Duration;

use bson::{RawDocument, rawdoc};

use super::entry::Entered;
use super::writer::Writer;
use crate::cluster::command::Request;
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::model::slots::SlotSet;
use crate::state::inflight::Work;
use crate::wire::error::{
    ErrorReply, HOST_UNREACHABLE, NO_SUCH_TRANSACTION, RETRYABLE_WRITE, TRANSIENT_TRANSACTION, UNKNOWN_COMMIT,
};

const TRANSACTION_COMMITTED: i32 = 256;
const PATIENCE: Duration = Duration::from_secs(5);

impl Writer {
    /// Before transaction `number` of `lsid`, which this process knows nothing of, is committed on `side`:
    /// what must be held until there is an answer.
    ///
    /// # Errors
    /// The error to answer with: it was aborted, or nothing is known of it.
    pub async fn enter_foreign_commit(
        &self,
        lsid: &RawDocument,
        number: i64,
        side: Side,
        hold: Duration,
    ) -> Result<Vec<Entered>, ErrorReply> {
        let mut all: Vec<Entered> = Vec::new();
        for namespace in self.one_namespace_of_each() {
            let what: Arc<str> = "a commit of another process's transaction".into();
            let name = namespace.as_str();
            let entered = self.gate.enter(name, SlotSet::ALL, Work::Transaction, &what, hold).await;
            all.extend(entered.map_err(|error| unknown(&error.message))?);
        }
        if all.iter().any(|entered| entered.route.sole_authority() != Some(side)) {
            self.abort_first(lsid, number, side).await?;
        }
        Ok(all)
    }

    fn one_namespace_of_each(&self) -> Vec<Namespace> {
        let table = self.gate.routing.load();
        let mut found: Vec<(&Arc<str>, &Namespace)> = Vec::new();
        for (namespace, route) in &table.routes {
            if !found.iter().any(|(name, _)| **name == route.name) {
                found.push((&route.name, namespace));
            }
        }
        found.into_iter().map(|(_, namespace)| namespace.clone()).collect()
    }

    async fn abort_first(&self, lsid: &RawDocument, number: i64, side: Side) -> Result<(), ErrorReply> {
        let abort = rawdoc! { "abortTransaction": 1, "lsid": lsid.to_owned(), "txnNumber": number, "autocommit": false };
        let asked = self.clusters.get(side).run(Request::new("admin", abort).within(PATIENCE)).await;
        let reply = asked.map_err(|error| unknown(&error.to_string()))?;
        match reply.error() {
            Some(error) if error.code == TRANSACTION_COMMITTED => Ok(()),
            Some(error) if error.code != NO_SUCH_TRANSACTION.0 => Err(unknown(&error.to_string())),
            _ => Err(ErrorReply::new(NO_SUCH_TRANSACTION, "it was open while what it wrote to moved")
                .labelled(vec![TRANSIENT_TRANSACTION])),
        }
    }
}

pub(super) fn unknown(why: &str) -> ErrorReply {
    ErrorReply::new(HOST_UNREACHABLE, format!("whether the transaction was committed is not known: {why}"))
        .labelled(vec![RETRYABLE_WRITE, UNKNOWN_COMMIT])
}
