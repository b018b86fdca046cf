//! `bulkWrite` over collections of which some migrate: divided into commands of one collection each, which go the way
//! of every other one; their answers make one.
//!
//! One that names no collection of a migration is forwarded as it came. So is one for servers that do not know it
//! (before 8.0): they refuse it themselves.

use bson::raw::RawDocumentBuf;
use bson::{RawDocument, Timestamp};
use bytes::BytesMut;

use super::operation::Operation;
use super::pipeline::Router;
use super::writer::unless_first;
use crate::model::side::Side;
use crate::policy::bulk::{BulkPart, BulkWrite};
use crate::policy::bulk_reply::BulkReply;
use crate::wire::error::{BAD_VALUE, ErrorReply, HOST_UNREACHABLE};
use crate::wire::op_msg::{OpMsg, build};

/// The first wire version with `bulkWrite`, that of MongoDB 8.0.
const WITH_BULK_WRITE: i32 = 25;

impl Router {
    /// Whether an operation is a `bulkWrite` that must be divided.
    pub(super) fn is_divided(&self, operation: &Operation<'_>) -> bool {
        let command = &operation.command;
        let Some(writer) = self.writer.as_ref().filter(|_| command.name == "bulkWrite") else { return false };
        let table = writer.gate.routing.peek();
        if table.routes.is_empty() && table.patterned.is_empty() || command.database != Some("admin") {
            return false;
        }
        let Ok(body) = RawDocument::from_bytes(&operation.message[operation.parts.body.clone()]) else {
            return false;
        };
        let mut names = BulkWrite::namespaces(body, beside(operation, b"nsInfo"));
        names.any(|name| table.route(name).is_some() || table.awaiting(name).is_some()) && self.old_knows_it()
    }

    /// Old, that it would be forwarded to; while that is not known, nothing may pass.
    fn old_knows_it(&self) -> bool {
        let topology = self.pools(Side::Old).map(|pools| pools.cluster().topology());
        topology
            .ok()
            .and_then(|topology| topology.wire_versions())
            .is_none_or(|(_, max)| max >= WITH_BULK_WRITE)
    }

    /// Runs the parts of a `bulkWrite`, one after the other; returns whether the reply says `ok: 1`.
    pub(super) async fn divided(
        &self,
        operation: &Operation<'_>,
        reply: &mut BytesMut,
    ) -> (Side, Result<bool, ErrorReply>) {
        let mut side = Side::Old;
        let result = async {
            let body = &operation.message[operation.parts.body.clone()];
            let body = RawDocument::from_bytes(body)
                .map_err(|error| ErrorReply::new(BAD_VALUE, error.to_string()))?;
            let bulk = BulkWrite::parse(body, beside(operation, b"ops"), beside(operation, b"nsInfo"));
            let bulk = bulk.map_err(|why| ErrorReply::new(BAD_VALUE, why))?;
            let mut all = BulkReply::new(bulk.errors_only);
            let mut time = None;
            for part in bulk.parts() {
                let (at, answered) = self.run_part(operation, &part, reply).await;
                side = at;
                let answered = match answered {
                    Ok(answered) => answered,
                    Err(error) if of_all(&error) => return Err(unless_first(error, all.is_empty())),
                    Err(error) => error.document(),
                };
                time = answered.get_timestamp("operationTime").ok().or(time);
                let is_ok = answered.get_f64("ok").is_ok_and(|ok| ok == 1.0);
                if !is_ok && answered.get_array("errorLabels").is_ok() {
                    // To be sent again, all of it: servers know what they have done by its number.
                    answer(operation, answered, None, reply);
                    return Ok(false);
                }
                let failed = if is_ok {
                    all.take(&part, &answered)
                } else {
                    all.refuse(&part, bulk.ordered, &answered);
                    true
                };
                if failed && bulk.ordered {
                    break;
                }
            }
            answer(operation, all.finish(), time, reply);
            Ok(true)
        };
        let result = result.await;
        (side, result)
    }

    async fn run_part(
        &self,
        whole: &Operation<'_>,
        part: &BulkPart,
        reply: &mut BytesMut,
    ) -> (Side, Result<RawDocumentBuf, ErrorReply>) {
        let statements = part.verb.array().map(|array| (array, &*part.documents));
        let message = build(whole.request_id(), 0, 0, part.body.as_bytes(), statements);
        let operation = match Operation::parse(&message, whole.client) {
            Ok(operation) => operation,
            Err(error) => return (Side::Old, Err(ErrorReply::new(BAD_VALUE, error.to_string()))),
        };
        let (side, result) = if operation.command.in_transaction() {
            Box::pin(self.transaction(&operation, reply)).await
        } else {
            Box::pin(self.outside_transactions(&operation, reply)).await
        };
        (side, result.and_then(|_| body_of(reply)))
    }
}

/// Whether an error of a part is one of the whole command: whether it was executed is not known, or it may be sent
/// again. Other errors are those of single operations.
fn of_all(error: &ErrorReply) -> bool {
    error.code == HOST_UNREACHABLE || !error.labels.is_empty()
}

fn body_of(reply: &[u8]) -> Result<RawDocumentBuf, ErrorReply> {
    let wrong = |why: String| ErrorReply::new(HOST_UNREACHABLE, why);
    let parts = OpMsg::parse(reply).map_err(|error| wrong(error.to_string()))?;
    let body = RawDocument::from_bytes(&reply[parts.body]).map_err(|error| wrong(error.to_string()))?;
    Ok(body.to_owned())
}

/// The documents that stand beside the body, for a field.
fn beside<'a>(operation: &Operation<'a>, field: &[u8]) -> Option<&'a [u8]> {
    let message = operation.message;
    let mut sequences = operation.parts.sequences.iter();
    let found = sequences.find(|sequence| &message[sequence.identifier.clone()] == field)?;
    Some(&message[found.documents.clone()])
}

fn answer(
    operation: &Operation<'_>,
    mut body: RawDocumentBuf,
    time: Option<Timestamp>,
    reply: &mut BytesMut,
) {
    if let Some(time) = time {
        body.append(bson::cstr!("operationTime"), time);
    }
    reply.clear();
    reply.extend_from_slice(&build(0, operation.request_id(), 0, body.as_bytes(), None));
}
