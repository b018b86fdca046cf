//! What became of a write, as far as its reply tells.

use bson::raw::RawDocumentBuf;
use bson::{RawDocument, Timestamp};

use crate::cluster::command::{ServerError, number};
use crate::model::key::Key;
use crate::model::side::PerSide;
use crate::policy::writes::{Verb, WriteCommand};

/// What the authority or authorities answered.
pub(super) struct Outcome {
    /// The reply for the client.
    pub reply: RawDocumentBuf,
    /// When, on each cluster's time line.
    pub times: PerSide<Option<Timestamp>>,
    /// The most attempts that any part took.
    pub sent: u32,
    /// Keys that were found out on the way.
    pub keys: Vec<Key>,
}

/// Whether the reply proves that every statement was executed: a copy of the command changes nothing then.
pub(super) fn all_done(command: &WriteCommand, reply: &RawDocument) -> bool {
    let statements = f64::from(u32::try_from(command.statements.len()).unwrap_or(u32::MAX));
    let done = match reply.get_document("lastErrorObject") {
        Ok(last) => number(last, "n"),
        Err(_) => number(reply, "n"),
    };
    ServerError::of(reply).is_none() && reply.get_array("writeErrors").is_err() && done == Some(statements)
}

pub(super) fn nothing_found(reply: &RawDocument) -> bool {
    reply
        .get_document("lastErrorObject")
        .is_ok_and(|last| crate::cluster::command::number(last, "n").is_some_and(|n| n == 0.0))
}

/// Whether the reply to a single statement proves a change. What changes nothing may be executed twice.
pub(super) fn changed_something(command: &WriteCommand, reply: &RawDocument) -> bool {
    let is_new = reply.get_array("upserted").is_ok();
    let counted = if command.verb == Verb::Update { "nModified" } else { "n" };
    command.verb != Verb::FindAndModify
        && ServerError::of(reply).is_none()
        && (is_new || number(reply, counted) == Some(1.0))
}

/// Keys that only the reply tells.
pub(super) fn keys_in_reply(command: &WriteCommand, reply: &RawDocument) -> Vec<Key> {
    let key = |document: &RawDocument, field| {
        document.get(field).ok().flatten().and_then(crate::policy::canonical::key_of)
    };
    match command.verb {
        Verb::Insert | Verb::Delete => Vec::new(),
        Verb::Update => reply
            .get_array("upserted")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|upserted| key(upserted.as_document()?, "_id"))
            .collect(),
        Verb::FindAndModify => {
            let last = reply.get_document("lastErrorObject").ok().and_then(|last| key(last, "upserted"));
            let value = reply.get_document("value").ok().filter(|_| shows_its_id(command));
            let value = value.and_then(|value| key(value, "_id"));
            last.into_iter().chain(value).collect()
        }
    }
}

/// Whether an `_id` in what a `findAndModify` returns is the document's: a projection may put another value there.
fn shows_its_id(command: &WriteCommand) -> bool {
    let Ok(fields) = command.body.get_document("fields") else { return true };
    matches!(fields.get("_id"), Ok(None)) || number(fields, "_id").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::namespace::Namespace;
    use bson::oid::ObjectId;
    use bson::rawdoc;

    #[test]
    fn a_projection_may_put_another_value_into_the_id() {
        let found = |fields: RawDocumentBuf| {
            let body =
                rawdoc! { "findAndModify": "c", "query": { "a": 1 }, "remove": true, "fields": fields };
            let namespace = Namespace::new("d", "c");
            let command = WriteCommand::parse(namespace, Verb::FindAndModify, &body, None, ObjectId::new);
            let reply = rawdoc! { "ok": 1, "value": { "_id": 5 }, "lastErrorObject": { "n": 1 } };
            keys_in_reply(&command.unwrap(), &reply).len()
        };
        assert_eq!(found(rawdoc! {}), 1);
        assert_eq!(found(rawdoc! { "b": 1 }), 1);
        assert_eq!(found(rawdoc! { "_id": true, "b": 1 }), 1);
        assert_eq!(found(rawdoc! { "_id": 1.0 }), 1);
        assert_eq!(found(rawdoc! { "_id": "$b" }), 0);
        assert_eq!(found(rawdoc! { "_id": { "$add": ["$b", 1] } }), 0);
    }
}
