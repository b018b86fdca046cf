//! Users, roles and default concerns: told to both clusters while collections move from one to the other, new first.
//! What new refuses, old does not get.

use bson::raw::CString;
use bson::{RawDocument, RawDocumentBuf};
use bytes::BytesMut;

use super::operation::Operation;
use super::pipeline::Router;
use crate::cluster::command::{Request, ServerError};
use crate::converge::read::ask;
use crate::model::side::Side;
use crate::policy::accounts::{is_for_both, is_so_already, undo};
use crate::wire::error::{ErrorReply, HOST_UNREACHABLE};
use crate::wire::reply::ReplyFields;

impl Router {
    /// Whether an operation is for both clusters now.
    pub(super) fn is_for_both(&self, operation: &Operation<'_>) -> bool {
        let moves = || self.writer.as_ref().is_some_and(|writer| writer.gate.routing.peek().moves_anything());
        is_for_both(operation.command.name) && moves()
    }

    /// Runs one on both clusters; the reply is old's.
    pub(super) async fn on_both(
        &self,
        operation: &Operation<'_>,
        reply: &mut BytesMut,
    ) -> (Side, Result<bool, ErrorReply>) {
        let name = operation.command.name;
        let told_new = match self.plain(operation, Side::New, reply).await {
            Ok(true) => true,
            Ok(false) => match refusal(reply) {
                Some(refused) if is_so_already(name, refused.code) => false,
                // As a server says it: most of what new refuses, old would have refused in the same words.
                refused => {
                    tracing::warn!(command = name, ?refused, "new refuses it, and old does not get it");
                    return (Side::New, Ok(false));
                }
            },
            Err(error) => return (Side::New, Err(in_doubt(name, Side::New, &error))),
        };
        let told_old = self.plain(operation, Side::Old, reply).await;
        match &told_old {
            Ok(true) => (Side::Old, Ok(true)),
            Err(error) => (Side::Old, Err(in_doubt(name, Side::Old, error))),
            Ok(false) if !told_new => (Side::Old, Ok(false)),
            Ok(false) => (Side::Old, self.taken_back(operation, reply).await.map(|()| false)),
        }
    }

    /// Takes back what new has done, as old has refused it with `reply`.
    async fn taken_back(&self, operation: &Operation<'_>, reply: &BytesMut) -> Result<(), ErrorReply> {
        let command = &operation.command;
        let undo = undo(command.name).and_then(|undo| CString::try_from(undo).ok());
        let result = match (undo, command.first.as_str(), command.database, &self.writer) {
            (Some(undo), Some(what), Some(database), Some(writer)) => {
                let mut body = RawDocumentBuf::new();
                body.append(undo, what);
                ask(&**writer.own.get(Side::New), Request::new(database, body)).await.map(|_| ())
            }
            _ => Err("it cannot be taken back".to_owned()),
        };
        result.map_err(|why| {
            let refused = refusal(reply).map_or_else(String::new, |refused| refused.message);
            let message = format!("old refuses {} ({refused}), and new has done it: {why}", command.name);
            ErrorReply::new(HOST_UNREACHABLE, message)
        })
    }
}

/// The error in a reply.
fn refusal(reply: &[u8]) -> Option<ServerError> {
    let fields = ReplyFields::scan(reply).ok()?;
    ServerError::of(RawDocument::from_bytes(&reply[fields.body]).ok()?)
}

fn in_doubt(name: &str, side: Side, error: &ErrorReply) -> ErrorReply {
    let other = if side == Side::New { "old has not" } else { "new has" };
    let message = format!(
        "whether {side} has done {name} is not known, and {other}: call it again ({})",
        error.message
    );
    ErrorReply::new(error.code, message)
}
