//! Commands about collections, indexes, and the server itself.

use std::sync::Arc;

use bson::raw::{RawDocumentBuf, cstr};
use bson::{RawArrayBuf, RawDocument, rawdoc};

use super::command::Command;
use super::error::{Failure, Outcome};
use super::log::Op;
use super::read::batch_reply;
use super::state::{Place, State};
use super::store::{Collection, Doc};

/// Runs a command that is neither a read nor a write of documents.
pub(crate) fn run(state: &mut State, place: Place, command: &Command<'_>) -> Outcome<RawDocumentBuf> {
    match command.name {
        "ping" | "endSessions" | "killSessions" | "killAllSessions" | "refreshSessions" => {
            Ok(RawDocumentBuf::new())
        }
        "hello" | "isMaster" | "ismaster" => Ok(hello(state, place)),
        "buildInfo" => Ok(rawdoc! { "version": "6.0.0", "versionArray": [6, 0, 0, 0] }),
        "appendOplogNote" => {
            append(state, place, Op::Noop);
            Ok(RawDocumentBuf::new())
        }
        "create" => create(state, place, command),
        "createIndexes" => create_indexes(state, place, command),
        "drop" => drop_collection(state, place, command),
        "listCollections" => Ok(list_collections(state, place, command)),
        "listIndexes" => list_indexes(state, place, command),
        "collStats" => coll_stats(state, place, command),
        "killCursors" => Ok(kill_cursors(state, command)),
        "killOp" => {
            state.connections.kill(command.number("op").unwrap_or(0) as i32);
            Ok(rawdoc! { "info": "attempting to kill op" })
        }
        "abortTransaction" => abort_transaction(state, place, command),
        "currentOp" => {
            Ok(rawdoc! { "inprog": state.connections.describe().into_iter().collect::<RawArrayBuf>() })
        }
        other => Err(Failure::new(59, format!("no such command: '{other}'"))),
    }
}

/// There are no transactions here; a number under which something was executed stands for a committed one.
fn abort_transaction(state: &State, place: Place, command: &Command<'_>) -> Outcome<RawDocumentBuf> {
    let known = command.retryable()?.and_then(|of| state.member(place).sessions.executed(&of, 0));
    Err(match known {
        Some(_) => Failure::new(256, "the transaction has been committed"),
        None => Failure::new(251, "no such transaction"),
    })
}

/// The reply of `[{$currentOp}, ..]`.
pub(crate) fn current_op(state: &mut State, command: &Command<'_>) -> Outcome<RawDocumentBuf> {
    let mut batch: Vec<Doc> = state.connections.describe().into_iter().map(Arc::new).collect();
    for stage in command.documents("pipeline")?.into_iter().skip(1) {
        batch = super::read::through(stage, batch, &mut state.rng)?;
    }
    Ok(batch_reply("firstBatch", &batch, 0, "admin.$cmd.aggregate", None))
}

fn hello(state: &State, place: Place) -> RawDocumentBuf {
    let member = state.member(place);
    let hosts: RawArrayBuf = state.servers.iter().map(|server| &**server).collect();
    let mut election = [0; 12];
    election[8..].copy_from_slice(&member.term.to_be_bytes());
    rawdoc! {
        "isWritablePrimary": true,
        "setName": "rs",
        "setVersion": 1,
        "hosts": hosts,
        "primary": &*member.server,
        "me": &*member.server,
        "electionId": bson::oid::ObjectId::from_bytes(election),
        "lastWrite": {
            "opTime": { "ts": member.applied, "t": i64::from(member.term) },
            "majorityOpTime": { "ts": state.majority(place).time, "t": i64::from(member.term) },
        },
        "maxBsonObjectSize": 16_777_216,
        "maxMessageSizeBytes": 48_000_000,
        "maxWriteBatchSize": 100_000,
        "logicalSessionTimeoutMinutes": 30,
        "minWireVersion": 0,
        "maxWireVersion": 17,
    }
}

fn append(state: &mut State, place: Place, op: Op) {
    let (member, clock, _) = state.writer(place);
    let time = clock.tick();
    member.append(time, 0, op, None);
}

fn create(state: &mut State, place: Place, command: &Command<'_>) -> Outcome<RawDocumentBuf> {
    let ns = command.ns()?;
    if state.member(place).store.get(&ns).is_some() {
        return Err(Failure::new(48, format!("Collection {ns} already exists.")));
    }
    let uuid = state.rng.next();
    append(state, place, Op::Create { ns, uuid });
    Ok(RawDocumentBuf::new())
}

fn create_indexes(state: &mut State, place: Place, command: &Command<'_>) -> Outcome<RawDocumentBuf> {
    let ns = command.ns()?;
    let mut created = state.member(place).store.get(&ns).is_none();
    if created {
        create(state, place, command)?;
    }
    for spec in command.documents("indexes")? {
        let spec = Arc::new(spec.to_owned());
        let name = spec.get_str("name").unwrap_or_default();
        let Some(collection) = state.member(place).store.get(&ns) else { continue };
        if collection.indexes.iter().any(|index| index.spec.get_str("name").is_ok_and(|other| other == name))
        {
            continue;
        }
        collection.build(spec.clone())?;
        created = true;
        append(state, place, Op::Index { ns: ns.clone(), spec });
    }
    Ok(rawdoc! { "createdCollectionAutomatically": created })
}

fn drop_collection(state: &mut State, place: Place, command: &Command<'_>) -> Outcome<RawDocumentBuf> {
    let ns = command.ns()?;
    existing(state, place, &ns)?;
    append(state, place, Op::Drop { ns: ns.clone() });
    Ok(rawdoc! { "ns": &*ns })
}

fn existing<'a>(state: &'a State, place: Place, ns: &str) -> Outcome<&'a Collection> {
    state.member(place).store.get(ns).ok_or_else(|| Failure::new(26, format!("ns not found: {ns}")))
}

fn list_collections(state: &State, place: Place, command: &Command<'_>) -> RawDocumentBuf {
    let prefix = format!("{}.", command.database());
    let mut batch = Vec::new();
    for (ns, collection) in state.member(place).store.iter() {
        let Some(name) = ns.strip_prefix(&prefix) else { continue };
        let mut uuid = [0; 16];
        uuid[8..].copy_from_slice(&collection.uuid.to_be_bytes());
        let uuid = bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: uuid.to_vec() };
        batch.push(Arc::new(rawdoc! {
            "name": name, "type": "collection", "options": {},
            "info": { "readOnly": false, "uuid": uuid },
            "idIndex": { "v": 2, "key": { "_id": 1 }, "name": "_id_" },
        }));
    }
    if let Some(filter) = command.document("filter") {
        batch.retain(|document: &Doc| super::filter::matches(filter, document).unwrap_or(false));
    }
    batch_reply("firstBatch", &batch, 0, &format!("{}.$cmd.listCollections", command.database()), None)
}

fn list_indexes(state: &State, place: Place, command: &Command<'_>) -> Outcome<RawDocumentBuf> {
    let ns = command.ns()?;
    let collection = existing(state, place, &ns)?;
    let mut batch: Vec<Doc> = vec![Arc::new(rawdoc! { "v": 2, "key": { "_id": 1 }, "name": "_id_" })];
    batch.extend(collection.indexes.iter().map(|index| index.spec.clone()));
    Ok(batch_reply("firstBatch", &batch, 0, &ns, None))
}

fn coll_stats(state: &State, place: Place, command: &Command<'_>) -> Outcome<RawDocumentBuf> {
    let ns = command.ns()?;
    let documents = state.member(place).store.get(&ns).map(|found| &found.documents);
    let count = documents.map_or(0, std::collections::BTreeMap::len);
    let size: usize = documents
        .into_iter()
        .flat_map(|found| found.values())
        .map(|document| document.as_bytes().len())
        .sum();
    let mut stats =
        rawdoc! { "ns": &*ns, "count": count as i32, "size": size as i64, "storageSize": size as i64 };
    if let Some(average) = size.checked_div(count) {
        stats.append(cstr!("avgObjSize"), average as i32);
    }
    Ok(stats)
}

fn kill_cursors(state: &mut State, command: &Command<'_>) -> RawDocumentBuf {
    let ids = command.body.get_array("cursors").ok();
    let ids = ids.into_iter().flatten().flatten().filter_map(bson::RawBsonRef::as_i64);
    let (mut killed, mut unknown) = (RawArrayBuf::new(), RawArrayBuf::new());
    for id in ids {
        if state.cursors.kill(id) { killed.push(id) } else { unknown.push(id) }
    }
    rawdoc! { "cursorsKilled": killed, "cursorsNotFound": unknown }
}

/// Whether the pipeline of an aggregation begins with `$currentOp`.
pub(crate) fn is_current_op(command: &Command<'_>) -> bool {
    let first = command.body.get_array("pipeline").ok().and_then(|stages| stages.into_iter().next());
    let first = first.and_then(Result::ok).and_then(bson::RawBsonRef::as_document);
    first.is_some_and(|stage: &RawDocument| stage.get("$currentOp").ok().flatten().is_some())
}
