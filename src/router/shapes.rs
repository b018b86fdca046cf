//! What each cluster does for a migration's operations, noted by shape.
//!
//! What is measured is the time at one cluster, the wait for a connection included: not the time that a fence, a lane
//! or the other cluster takes. Reads and writes outside transactions, without what fetches more of a cursor.

use std::time::Duration;

use bson::RawDocument;
use bytes::BytesMut;

use super::open_transactions::TransactionKey;
use super::operation::Operation;
use super::pipeline::Router;
use super::sending::Answer;
use crate::cluster::command::ServerError;
use crate::converge::active::Active;
use crate::model::side::Side;
use crate::policy::classify::Class;
use crate::policy::latency::is_about_the_cluster;
use crate::policy::shape::Asked;
use crate::policy::writes::WriteCommand;
use crate::state::table::MigrationRoute;
use crate::wire::error::ErrorReply;
use crate::wire::reply::ReplyFields;

impl Router {
    /// Notes a read of a migrating namespace that began at `begun` on `side`.
    pub(super) fn note_read(
        &self,
        operation: &Operation<'_>,
        migration: &MigrationRoute,
        side: Side,
        begun: Duration,
        result: &Result<bool, ErrorReply>,
        reply: &BytesMut,
    ) {
        if operation.class != Class::Read {
            return;
        }
        let active = self.writer.as_ref().and_then(|writer| writer.gate.registry.get(&migration.name));
        let Some(active) = active else { return };
        self.note_read_of(operation, &active, side, begun, is_failure(result, reply));
    }

    /// The same, once it is known whether it failed in a way that speaks about the cluster.
    pub(super) fn note_read_of(
        &self,
        operation: &Operation<'_>,
        active: &Active,
        side: Side,
        begun: Duration,
        failed: bool,
    ) {
        let body = RawDocument::from_bytes(&operation.message[operation.parts.body.clone()]);
        let (Some(namespace), Ok(body)) = (super::migrating::namespace_of(operation), body) else { return };
        let now = self.shared.clock.now();
        let asked = Asked { namespace: &namespace, body, statements: None };
        active.shapes.record(&asked, side, now.saturating_sub(begun), failed, now);
    }

    /// Notes a commit or an abort in the migrations that its transaction has touched; to be called before it leaves them.
    pub(super) fn note_end(&self, operation: &Operation<'_>, key: &TransactionKey, side: Side, failed: bool) {
        if !matches!(operation.class, Class::Commit | Class::Abort) {
            return;
        }
        for active in self.shared.open_transactions.entered(key) {
            active.shapes.note_besides(side, failed, self.shared.clock.now());
        }
    }

    /// Notes a batch of a cursor, or a statement in a transaction, of a migrating namespace.
    pub(super) fn note_besides(&self, operation: &Operation<'_>, side: Side, failed: bool) {
        let Some(route) = self.migration_of(operation) else { return };
        let active = self.writer.as_ref().and_then(|writer| writer.gate.registry.get(&route.name));
        let Some(active) = active else { return };
        active.shapes.note_besides(side, failed, self.shared.clock.now());
    }
}

/// Whether a reply says that the cluster failed.
pub(super) fn failed(reply: &ReplyFields) -> bool {
    !reply.ok && is_about_the_cluster(reply.code)
}

/// Whether the answer to a statement of a transaction, or to its end, says so; a commit may have been made on too few
/// members.
pub(super) fn transaction_failed(reply: &ReplyFields) -> bool {
    let concern = reply.write_concern_error.as_ref().and_then(|code| i32::try_from(code.value).ok());
    failed(reply) || concern.is_some_and(is_about_the_cluster)
}

/// Whether an operation failed in a way that speaks about the cluster; `reply` is what it answered.
pub(super) fn is_failure(result: &Result<bool, ErrorReply>, reply: &BytesMut) -> bool {
    match result {
        Ok(true) => false,
        Ok(false) => ReplyFields::scan(reply).map_or(true, |fields| failed(&fields)),
        Err(_) => true,
    }
}

/// Notes a write, or a part of one, that began at `begun` on `side`.
pub(super) fn note_write(
    active: Option<&Active>,
    command: &WriteCommand,
    side: Side,
    begun: Duration,
    now: Duration,
    answer: &Result<Answer, ErrorReply>,
) {
    let Some(active) = active else { return };
    let failed = answer.as_ref().map_or(true, |answer| speaks_about_the_cluster(&answer.reply.body));
    let first = command.statements.first().map(|statement| &*statement.raw);
    let statements = command.verb.array().map(|field| (field, first, command.statements.len()));
    let asked = Asked { namespace: command.namespace.as_str(), body: &command.body, statements };
    active.shapes.record(&asked, side, now.saturating_sub(begun), failed, now);
}

fn speaks_about_the_cluster(reply: &RawDocument) -> bool {
    if let Some(error) = ServerError::of(reply) {
        return is_about_the_cluster(error.code);
    }
    let code = |error: &RawDocument| error.get_i32("code").is_ok_and(is_about_the_cluster);
    let concern = reply.get_document("writeConcernError").is_ok_and(code);
    let mut errors = reply.get_array("writeErrors").into_iter().flatten().flatten();
    concern || errors.any(|error| error.as_document().is_some_and(code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn what_is_wrong_with_the_data_is_no_error_of_the_cluster() {
        let duplicate = rawdoc! { "ok": 1, "n": 0, "writeErrors": [{ "index": 0, "code": 11000 }] };
        assert!(!speaks_about_the_cluster(&duplicate));
        assert!(!speaks_about_the_cluster(&rawdoc! { "ok": 0, "code": 121, "errmsg": "" }));
        assert!(speaks_about_the_cluster(&rawdoc! { "ok": 0, "code": 1, "errmsg": "" }));
        assert!(speaks_about_the_cluster(&rawdoc! { "ok": 1, "writeConcernError": { "code": 64 } }));
        let timed_out = rawdoc! { "ok": 1, "writeErrors": [{ "index": 0, "code": 50 }] };
        assert!(speaks_about_the_cluster(&timed_out));
    }
}
