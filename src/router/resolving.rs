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
use crate::cluster::command::{Request, ServerError, Target};
use crate::converge::read::{cursor_id, id_of};
use crate::model::key::Key;
use crate::model::number::number;
use crate::model::side::{PerSide, Side};
use crate::policy::canonical::key_of;
use crate::policy::failover::Kind;
use crate::policy::route_key::RouteKey;
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
    let (mut touched, mut all_known) = (Vec::new(), true);
    let by = entered.route.by(&command.namespace);
    for (index, statement) in command.statements.iter().enumerate() {
        let named = command.slot_of(statement, by).and_then(|slot| entered.route.authority(slot));
        let found = match named {
            Some(_) => Found::Documents(Vec::new()),
            None => {
                let found = find(writer, command, statement, entered, hold).await;
                found.map_err(|error| unless_first(error, replies.is_empty()))?
            }
        };
        let (mut found, refused) = match found {
            Found::Documents(found) => (found, None),
            Found::Refused(error) => (Vec::new(), Some(error)),
        };
        let mut upserts = false;
        if found.is_empty() && statement.upsert && refused.is_none() && named.is_none() {
            let id = rawdoc! { "_id": ObjectId::new() };
            // By a route key it would have been refused: whose it would be is not known.
            let slot = by.of_document(&id);
            let side = slot.and_then(|slot| entered.route.authority(slot));
            let key = id.get("_id").ok().flatten().and_then(key_of);
            found.extend(side.zip(key).map(|(side, key)| One { side, key, condition: None }));
            upserts = true;
        }
        let mut plan = by_authority(&found);
        // It names its documents itself, and may upsert.
        let as_it_is = named.is_some();
        plan.extend(named.map(|side| (side, Vec::new())));
        if plan.is_empty() {
            // It matches nothing, or nothing can match it: a server says what is wrong with it.
            plan.push((Side::Old, Vec::new()));
        }
        let mut stop = false;
        for (side, keys) in plan {
            for keys in keys.chunks(CHUNK).chain(keys.is_empty().then_some(&[][..])) {
                // Each anew: the keys may be many, and what is sent later than a lease is not this write any more.
                let request =
                    keyed(command, statement, keys, as_it_is, upserts).only_if(entered.only_if_held());
                let cluster = &**writer.clusters.get(side);
                let answer = send(cluster, request, Kind::Once, hold, &writer.gate.clock).await;
                let answer = answer.map_err(|error| unless_first(error, replies.is_empty()))?;
                *times.get_mut(side) = answer.reply.operation_time.or(*times.get(side));
                if answer.reply.error().is_some() {
                    let keys = if all_known { touched } else { Vec::new() };
                    return Ok(Outcome { reply: answer.reply.body, times, sent: 1, keys });
                }
                let mut reply = answer.reply.body;
                if let Some(error) = refused.as_ref().filter(|_| reply.get_array("writeErrors").is_err()) {
                    reply = failed(command.verb, error);
                }
                stop |= command.ordered && reply.get_array("writeErrors").is_ok();
                replies.push((Part { side, indexes: vec![index; keys.len().max(1)] }, reply));
            }
        }
        all_known &= named.is_none() || statement.key.is_some();
        touched.extend(found.into_iter().map(|one| one.key).chain(statement.key.clone()));
        if stop {
            break;
        }
    }
    let keys = if all_known { touched } else { Vec::new() };
    Ok(Outcome { reply: merge(&replies), times, sent: 1, keys })
}

/// A document that a statement is to be sent for.
struct One {
    /// Whose it is.
    side: Side,
    key: Key,
    /// What holds as long as it is.
    condition: Option<RawDocumentBuf>,
}

/// What came of looking for the documents of a statement.
enum Found {
    Documents(Vec<One>),
    /// A server does not take its filter.
    Refused(ServerError),
}

/// The reply to a statement that a server refuses.
fn failed(verb: Verb, error: &ServerError) -> RawDocumentBuf {
    let error = rawdoc! { "index": 0, "code": error.code, "errmsg": error.message.as_str() };
    let mut reply = rawdoc! { "n": 0, "writeErrors": [error] };
    if verb == Verb::Update {
        reply.append(cstr!("nModified"), 0);
    }
    reply
}

fn by_authority(found: &[One]) -> Vec<(Side, Vec<&One>)> {
    Side::BOTH
        .into_iter()
        .map(|side| (side, found.iter().filter(|one| one.side == side).collect::<Vec<_>>()))
        .filter(|(_, found)| !found.is_empty())
        .collect()
}

/// The documents that match on the authority of their slot.
async fn find(
    writer: &Writer,
    command: &WriteCommand,
    statement: &Statement,
    entered: &Entered,
    hold: Duration,
) -> Result<Found, ErrorReply> {
    let filter =
        statement.raw.get_document("q").map_err(|_| ErrorReply::new(BAD_VALUE, "a statement without q"))?;
    let by = entered.route.by(&command.namespace);
    let projection = by.field().map_or_else(|| rawdoc! { "_id": 1 }, RouteKey::projection);
    let mut keys = Vec::new();
    for side in Side::BOTH {
        // Servers let whoever may write find what to write.
        let cluster = &**writer.own.get(side);
        let mut body = rawdoc! {
            "find": command.namespace.collection(), "filter": filter.to_owned(), "projection": projection.clone(),
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
                return Ok(Found::Refused(error));
            }
            let found = batch(&answer.reply.body, field).map_err(|why| ErrorReply::new(BAD_VALUE, why))?;
            keys.extend(found.iter().filter_map(|document| {
                let owner = entered.route.authority(by.of_document(document)?)?;
                let condition = by.field().map(|field| field.condition(document));
                (owner == side).then_some(One { side, key: id_of(document)?, condition })
            }));
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
    Ok(Found::Documents(keys))
}

/// The statement for each of `keys`, or as it is. Without any, for a document that there is not.
fn keyed(
    command: &WriteCommand,
    statement: &Statement,
    keys: &[&One],
    as_it_is: bool,
    upserts: bool,
) -> Request {
    let mut documents = Vec::new();
    if as_it_is {
        documents.extend_from_slice(statement.raw.as_bytes());
    } else {
        for key in keys {
            documents.extend_from_slice(one(&statement.raw, Some(key), upserts).as_bytes());
        }
        if keys.is_empty() {
            documents.extend_from_slice(one(&statement.raw, None, false).as_bytes());
        }
    }
    let mut body = RawDocumentBuf::new();
    let mut is_ordered = Some(false);
    for (name, value) in command.body.iter().flatten() {
        match (name.as_str(), value) {
            ("ordered", RawBsonRef::Boolean(_)) => {}
            ("txnNumber", _) if command.txn_number.is_some() => {}
            (name_of, _) => {
                if name_of == "ordered" {
                    // Of another type: for the server to refuse.
                    is_ordered = None;
                }
                body.append(name, value);
            }
        }
    }
    if let Some(ordered) = is_ordered {
        body.append(cstr!("ordered"), ordered);
    }
    let request = Request::new(command.namespace.database(), body);
    request.sequence(command.verb.array().unwrap_or("updates"), documents)
}

/// A statement for the document of one key; `None`: for none.
fn one(raw: &RawDocument, key: Option<&One>, upserts: bool) -> RawDocumentBuf {
    let mut copy = RawDocumentBuf::new();
    for (name, value) in raw.iter().flatten() {
        match (name.as_str(), value) {
            ("q", RawBsonRef::Document(filter)) => {
                let mut equal = RawDocumentBuf::new();
                match key {
                    Some(one) => equal.append(cstr!("_id"), one.key.value()),
                    None => equal.append(cstr!("_id"), rawdoc! { "$in": [] }),
                }
                let mut both = RawArrayBuf::new();
                both.push(equal);
                both.push(filter.to_owned());
                key.and_then(|one| one.condition.as_ref()).into_iter().for_each(|it| both.push(it.clone()));
                copy.append(name, rawdoc! { "$and": both });
            }
            // All that match, of which there is one now. Other limits are for the server to refuse.
            ("limit", _) if key.is_some() && number(raw, "limit") == Some(0.0) => copy.append(name, 1),
            ("upsert", RawBsonRef::Boolean(_)) => copy.append(name, upserts),
            _ => copy.append(name, value),
        }
    }
    copy
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::namespace::Namespace;

    fn found(id: i32) -> One {
        One { side: Side::Old, key: key_of(RawBsonRef::Int32(id)).unwrap(), condition: None }
    }

    /// The statements of the batch's second statement, as sent for `keys`.
    fn sent(statement: RawDocumentBuf, keys: &[i32], upserts: bool) -> Vec<RawDocumentBuf> {
        let body = rawdoc! { "update": "c", "updates": [statement], "txnNumber": 4_i64 };
        let command =
            WriteCommand::parse(Namespace::new("d", "c"), Verb::Update, &body, None, ObjectId::new).unwrap();
        let found: Vec<One> = keys.iter().map(|id| found(*id)).collect();
        let found: Vec<&One> = found.iter().collect();
        let as_it_is = command.statements[0].key.is_some();
        let request = keyed(&command, &command.statements[0], &found, as_it_is, upserts);
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

    #[test]
    fn a_document_is_written_only_as_long_as_it_has_the_route_key_that_it_was_found_with() {
        let tenant = RouteKey::parse("tenant").unwrap();
        let with = One { condition: Some(tenant.condition(&rawdoc! { "_id": 2, "tenant": 7 })), ..found(2) };
        let sent = one(&rawdoc! { "q": { "a": 1 }, "limit": 0 }, Some(&with), false);
        let filter = rawdoc! { "$and": [{ "_id": 2 }, { "a": 1 }, { "tenant": { "$eq": 7 } }] };
        assert_eq!(sent.get_document("q").unwrap(), &*filter);
    }

    #[test]
    fn what_a_server_refuses_stays_as_it_is() {
        let key = found(7);
        let limit = |limit: bson::raw::RawBson| {
            let mut delete = rawdoc! { "q": { "a": 1 } };
            delete.append(cstr!("limit"), limit);
            number(&one(&delete, Some(&key), false), "limit")
        };
        assert_eq!((limit(0.into()), limit(0.0.into()), limit(2.into())), (Some(1.0), Some(1.0), Some(2.0)));
        let missing = one(&rawdoc! { "q": { "a": 1 } }, Some(&key), false);
        assert!(missing.get("limit").unwrap().is_none());
        let body = rawdoc! {
            "update": "c", "updates": [{ "q": { "a": 1 }, "u": { "$set": { "b": 1 } }, "multi": true }],
            "txnNumber": 4, "ordered": 1,
        };
        let command =
            WriteCommand::parse(Namespace::new("d", "c"), Verb::Update, &body, None, ObjectId::new).unwrap();
        let sent = keyed(&command, &command.statements[0], &[], false, false);
        assert_eq!((sent.body.get_i32("txnNumber").unwrap(), sent.body.get_i32("ordered").unwrap()), (4, 1));
        let nothing = rawdoc! { "$and": [{ "_id": { "$in": [] } }, { "a": 1 }] };
        let statement = RawDocument::from_bytes(&sent.sequence.unwrap().documents).unwrap().to_owned();
        assert_eq!(statement.get_document("q").unwrap(), &*nothing);
    }
}
