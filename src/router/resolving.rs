//! Multi-document writes without a key while authority is mixed.
//!
//! Resolved once: the matching `_id`s on each slot's authority; then written by `_id` plus the original filter
//! on each key's authority, each key at most once. An upsert that matches nothing gets its `_id`, and so its
//! slot, from the proxy.

use std::time::Duration;

use bson::raw::{RawArrayBuf, RawBsonRef, RawDocumentBuf, cstr};
use bson::{RawDocument, oid::ObjectId, rawdoc};

use super::entry::Entered;
use super::outcome::Outcome;
use super::sending::send;
use super::writer::{Writer, unless_first};
use crate::cluster::command::{Request, Target};
use crate::converge::read::{cursor_id, id_of};
use crate::model::key::Key;
use crate::model::side::{PerSide, Side};
use crate::policy::canonical::key_of;
use crate::policy::failover::Kind;
use crate::policy::split::{Part, merge};
use crate::policy::statement::Statement;
use crate::policy::writes::{Verb, WriteCommand};
use crate::state::records::batch;
use crate::wire::error::{BAD_VALUE, ErrorReply};

const CHUNK: usize = 1000;

/// Runs the statements one after the other, each resolved.
pub(super) async fn resolve(
    writer: &Writer,
    command: &WriteCommand,
    entered: &Entered,
    hold: Duration,
) -> Result<Outcome, ErrorReply> {
    let mut replies: Vec<(Part, RawDocumentBuf)> = Vec::new();
    let mut times = PerSide::default();
    let mut touched = Vec::new();
    for (index, statement) in command.statements.iter().enumerate() {
        let mut found = match &statement.key {
            Some(key) => vec![key.clone()],
            None => {
                let found = find(writer, command, statement, entered, hold).await;
                found.map_err(|error| unless_first(error, replies.is_empty()))?
            }
        };
        let mut plan = by_authority(&found, entered);
        let mut upserts = false;
        if found.is_empty() && statement.upsert {
            let id = rawdoc! { "_id": ObjectId::new() };
            let key = id.get("_id").ok().flatten().and_then(key_of);
            found.extend(key);
            plan = by_authority(&found, entered);
            upserts = true;
        }
        let mut stop = false;
        for (side, keys) in plan {
            for keys in keys.chunks(CHUNK) {
                // Each anew: the keys may be many, and what is sent later than a lease is not this write any more.
                let request = keyed(command, statement, keys, upserts).only_if(entered.only_if_held());
                let cluster = &**writer.clusters.get(side);
                let answer = send(cluster, request, Kind::Once, hold, &writer.gate.clock).await;
                let answer = answer.map_err(|error| unless_first(error, replies.is_empty()))?;
                *times.get_mut(side) = answer.reply.operation_time.or(*times.get(side));
                if answer.reply.error().is_some() {
                    return Ok(Outcome { reply: answer.reply.body, times, sent: 1, keys: touched });
                }
                stop |= command.ordered && answer.reply.body.get_array("writeErrors").is_ok();
                let part = Part { side, indexes: vec![index; keys.len()] };
                replies.push((part, answer.reply.body));
            }
        }
        touched.extend(found);
        if stop {
            break;
        }
    }
    if replies.is_empty() && command.verb == Verb::Update {
        // Nothing matched anywhere; a server says then how many it modified, too.
        replies.push((Part { side: Side::Old, indexes: Vec::new() }, rawdoc! { "n": 0, "nModified": 0 }));
    }
    Ok(Outcome { reply: merge(&replies), times, sent: 1, keys: touched })
}

fn by_authority(keys: &[Key], entered: &Entered) -> Vec<(Side, Vec<Key>)> {
    Side::BOTH
        .into_iter()
        .map(|side| {
            let owned = keys.iter().filter(|key| entered.route.authority(key.slot()) == Some(side));
            (side, owned.cloned().collect::<Vec<_>>())
        })
        .filter(|(_, keys)| !keys.is_empty())
        .collect()
}

/// The keys that match on the authority of their slot.
async fn find(
    writer: &Writer,
    command: &WriteCommand,
    statement: &Statement,
    entered: &Entered,
    hold: Duration,
) -> Result<Vec<Key>, ErrorReply> {
    let filter =
        statement.raw.get_document("q").map_err(|_| ErrorReply::new(BAD_VALUE, "a statement without q"))?;
    let mut keys = Vec::new();
    for side in Side::BOTH {
        let cluster = &**writer.clusters.get(side);
        let mut body = rawdoc! {
            "find": command.namespace.collection(), "filter": filter.to_owned(), "projection": { "_id": 1 },
            "batchSize": 10_000, "readConcern": { "level": "local" },
        };
        for (name, field) in
            [(cstr!("collation"), "collation"), (cstr!("hint"), "hint"), (cstr!("let"), "let")]
        {
            let value = statement.raw.get(field).ok().flatten().or(command.body.get(field).ok().flatten());
            if let Some(value) = value {
                body.append(name, value);
            }
        }
        let request = Request::new(command.namespace.database(), body).only_if(entered.only_if_held());
        let mut answer = send(cluster, request, Kind::Read, hold, &writer.gate.clock).await?;
        let mut field = "firstBatch";
        loop {
            if let Some(error) = answer.reply.error() {
                return Err(ErrorReply::new(BAD_VALUE, error.to_string()));
            }
            let found = batch(&answer.reply.body, field).map_err(|why| ErrorReply::new(BAD_VALUE, why))?;
            let here = |key: &Key| entered.route.authority(key.slot()) == Some(side);
            keys.extend(found.iter().filter_map(|document| id_of(document)).filter(here));
            let cursor = cursor_id(&answer.reply.body);
            if cursor == 0 {
                break;
            }
            let more = rawdoc! { "getMore": cursor, "collection": command.namespace.collection() };
            let target = Target::Server(answer.reply.server.clone());
            let request = Request::new(command.namespace.database(), more).to(target);
            let request = request.only_if(entered.only_if_held());
            answer = send(cluster, request, Kind::Follower, hold, &writer.gate.clock).await?;
            field = "nextBatch";
        }
    }
    Ok(keys)
}

/// The statement for each of `keys`; one that names its key is sent as it is.
fn keyed(command: &WriteCommand, statement: &Statement, keys: &[Key], upserts: bool) -> Request {
    let mut documents = Vec::new();
    if statement.key.is_some() {
        // It names its key itself, and may upsert.
        documents.extend_from_slice(statement.raw.as_bytes());
    } else {
        for key in keys {
            documents.extend_from_slice(one(command.verb, &statement.raw, key, upserts).as_bytes());
        }
    }
    let mut body = RawDocumentBuf::new();
    for (name, value) in command.body.iter().flatten() {
        match name.as_str() {
            "ordered" | "stmtIds" | "txnNumber" => {}
            _ => body.append(name, value),
        }
    }
    body.append(cstr!("ordered"), false);
    let request = Request::new(command.namespace.database(), body);
    request.sequence(command.verb.array().unwrap_or("updates"), documents)
}

fn one(verb: Verb, raw: &RawDocument, key: &Key, upserts: bool) -> RawDocumentBuf {
    let mut copy = RawDocumentBuf::new();
    for (name, value) in raw.iter().flatten() {
        match (name.as_str(), value) {
            ("q", RawBsonRef::Document(filter)) => {
                let mut equal = RawDocumentBuf::new();
                equal.append(cstr!("_id"), key.value());
                let mut both = RawArrayBuf::new();
                both.push(equal);
                both.push(filter.to_owned());
                copy.append(name, rawdoc! { "$and": both });
            }
            ("limit", _) if verb == Verb::Delete => copy.append(name, 1),
            ("upsert", _) => copy.append(name, upserts),
            _ => copy.append(name, value),
        }
    }
    copy
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::namespace::Namespace;

    /// The statements of the batch's second statement, as sent for `keys`.
    fn sent(statement: RawDocumentBuf, keys: &[i32], upserts: bool) -> Vec<RawDocumentBuf> {
        let body = rawdoc! { "update": "c", "updates": [statement], "txnNumber": 4_i64 };
        let command =
            WriteCommand::parse(Namespace::new("d", "c"), Verb::Update, &body, None, ObjectId::new).unwrap();
        let ids: Vec<Key> = keys.iter().filter_map(|id| key_of(RawBsonRef::Int32(*id))).collect();
        let request = keyed(&command, &command.statements[0], &ids, upserts);
        assert!(request.body.get("txnNumber").unwrap().is_none());
        let bytes = request.sequence.unwrap().documents;
        let mut rest = &bytes[..];
        let mut documents = Vec::new();
        while let Some(length) = rest.first_chunk().map(|four| i32::from_le_bytes(*four)) {
            let (one, after) = rest.split_at(usize::try_from(length).unwrap());
            documents.push(RawDocument::from_bytes(one).unwrap().to_owned());
            rest = after;
        }
        documents
    }

    #[test]
    fn a_statement_that_names_its_key_stays_as_it_is() {
        let upsert = rawdoc! { "q": { "_id": 7, "a": 1 }, "u": { "$set": { "b": 1 } }, "upsert": true };
        assert_eq!(sent(upsert.clone(), &[7], false), [upsert]);
    }

    #[test]
    fn one_that_does_not_is_sent_for_each_key() {
        let many = rawdoc! { "q": { "a": 1 }, "u": { "$set": { "b": 1 } }, "multi": true, "upsert": true };
        let both = sent(many.clone(), &[1, 2], false);
        assert_eq!(both.len(), 2);
        assert_eq!(both[1].get_document("q").unwrap(), &*rawdoc! { "$and": [{ "_id": 2 }, { "a": 1 }] });
        assert!(!both[1].get_bool("upsert").unwrap());
        assert!(sent(many, &[3], true)[0].get_bool("upsert").unwrap());
    }
}
