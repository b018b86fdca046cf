//! `find`, `getMore`, `count` and small aggregations.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;

use bson::raw::{RawDocumentBuf, cstr};
use bson::{RawArrayBuf, RawBsonRef, RawDocument, rawdoc};
use reshard::cluster::command::number;

use super::command::Command;
use super::cursor::{Cursor, Scan, Source};
use super::error::{BAD_VALUE, CURSOR_NOT_FOUND, Failure, Outcome};
use super::filter::{evaluate, matches};
use super::key::{Key, key_of};
use super::state::{Place, State};
use super::store::{Doc, Store};
use super::write::point_keys;
use crate::rng::Rng;

const FIRST_BATCH: usize = 101;

/// The store that a read with this concern sees.
fn store(state: &State, place: Place, majority: bool) -> &Store {
    if majority { &state.majority(place).store } else { &state.member(place).store }
}

/// Runs `find`.
pub(crate) fn find(state: &mut State, place: Place, command: &Command<'_>) -> Outcome<RawDocumentBuf> {
    let bound = |name| command.document(name).and_then(|bound| bound.get("_id").ok().flatten()).map(key_of);
    let limit = command.number("limit").unwrap_or(0).unsigned_abs() as usize;
    let mut scan = Scan {
        filter: command.document("filter").map(RawDocument::to_owned).unwrap_or_default(),
        projection: command.document("projection").map(RawDocument::to_owned),
        after: None,
        low: bound("min"),
        high: bound("max"),
        left: if limit == 0 { usize::MAX } else { limit },
        majority: command.read_concern().majority,
    };
    let size = command.number("batchSize").map_or(FIRST_BATCH, |size| size as usize);
    let majority = scan.majority;
    let ns = command.ns()?;
    let (batch, exhausted) = next_batch(&mut scan, store(state, place, majority), &ns, size)?;
    let exhausted = exhausted || command.flag("singleBatch", false);
    let id = if exhausted {
        0
    } else {
        let term = state.member(place).term;
        state.cursors.insert(Cursor { ns: ns.clone(), term, source: Source::Scan(Box::new(scan)) })
    };
    Ok(batch_reply("firstBatch", &batch, id, &ns, None))
}

/// Reads on from a cursor that is not a stream.
pub(crate) fn more(state: &mut State, place: Place, id: i64, size: Option<usize>) -> Outcome<RawDocumentBuf> {
    let mut cursor = state.cursors.take(id).ok_or_else(|| not_found(id))?;
    let size = size.unwrap_or(usize::MAX);
    let (batch, exhausted) = match &mut cursor.source {
        Source::Scan(scan) => next_batch(scan, store(state, place, scan.majority), &cursor.ns, size)?,
        Source::Results(results) => {
            let batch: Vec<Doc> = results.drain(..size.min(results.len())).collect();
            let exhausted = results.is_empty();
            (batch, exhausted)
        }
        Source::Stream(_) => return Err(Failure::new(BAD_VALUE, "a stream is read elsewhere")),
    };
    let ns = cursor.ns.clone();
    if !exhausted {
        state.cursors.put_back(id, cursor);
    }
    Ok(batch_reply("nextBatch", &batch, if exhausted { 0 } else { id }, &ns, None))
}

/// The failure of a cursor that is gone.
pub(crate) fn not_found(id: i64) -> Failure {
    Failure::new(CURSOR_NOT_FOUND, format!("cursor id {id} not found"))
}

/// Up to `size` further documents, and whether these are the last.
fn next_batch(scan: &mut Scan, store: &Store, ns: &str, size: usize) -> Outcome<(Vec<Doc>, bool)> {
    let Some(collection) = store.get(ns) else { return Ok((Vec::new(), true)) };
    let mut batch = Vec::new();
    let wanted = size.min(scan.left);
    if let Some(keys) = point_keys(&scan.filter) {
        for key in keys {
            let above = scan.after.as_ref().is_none_or(|after| key > *after);
            if let Some(document) = collection.documents.get(&key)
                && above
                && !take(scan, &key, document, &mut batch, wanted)?
            {
                return Ok(finish(scan, batch));
            }
        }
        return Ok((batch, true));
    }
    let low = match (&scan.after, &scan.low) {
        (Some(after), _) => Bound::Excluded(after.clone()),
        (None, Some(low)) => Bound::Included(low.clone()),
        (None, None) => Bound::Unbounded,
    };
    let high = scan.high.clone().map_or(Bound::Unbounded, Bound::Excluded);
    if let (Bound::Included(low) | Bound::Excluded(low), Bound::Excluded(high)) = (&low, &high)
        && low >= high
    {
        return Ok((batch, true));
    }
    for (key, document) in collection.documents.range((low, high)) {
        if !take(scan, key, document, &mut batch, wanted)? {
            return Ok(finish(scan, batch));
        }
    }
    Ok((batch, true))
}

fn finish(scan: &Scan, batch: Vec<Doc>) -> (Vec<Doc>, bool) {
    (batch, scan.left == 0)
}

/// Takes a document if it matches; false when the batch was full before it.
fn take(scan: &mut Scan, key: &Key, document: &Doc, batch: &mut Vec<Doc>, wanted: usize) -> Outcome<bool> {
    if !matches(&scan.filter, document)? {
        return Ok(true);
    }
    if batch.len() >= wanted {
        return Ok(false);
    }
    batch.push(match &scan.projection {
        Some(projection) => Arc::new(project(projection, document)?),
        None => document.clone(),
    });
    scan.after = Some(key.clone());
    scan.left = scan.left.saturating_sub(1);
    Ok(true)
}

/// The reply of a cursor command.
pub(crate) fn batch_reply(
    field: &str,
    batch: &[Doc],
    id: i64,
    ns: &str,
    token: Option<&str>,
) -> RawDocumentBuf {
    let mut array = RawArrayBuf::new();
    for document in batch {
        array.push(&***document);
    }
    let name = if field == "firstBatch" { cstr!("firstBatch") } else { cstr!("nextBatch") };
    let mut cursor = RawDocumentBuf::new();
    cursor.append(name, array);
    cursor.append(cstr!("id"), id);
    cursor.append(cstr!("ns"), ns);
    if let Some(token) = token {
        cursor.append(cstr!("postBatchResumeToken"), rawdoc! { "_data": token });
    }
    rawdoc! { "cursor": cursor }
}

/// Keeps or removes top-level fields.
pub(crate) fn project(projection: &RawDocument, document: &RawDocument) -> Outcome<RawDocumentBuf> {
    let shown = |name: &str| number(projection, name).map(|value| value != 0.0);
    let inclusive = projection.iter().flatten().any(|(name, value)| {
        name.as_str() != "_id" && !matches!(value, RawBsonRef::Int32(0) | RawBsonRef::Boolean(false))
    }) || shown("_id") == Some(true);
    let mut result = RawDocumentBuf::new();
    for element in document {
        let (name, value) = element?;
        let default = if name.as_str() == "_id" { true } else { !inclusive };
        if shown(name.as_str()).unwrap_or(default) {
            result.append(name, value);
        }
    }
    Ok(result)
}

/// Runs `count`.
pub(crate) fn count(state: &State, place: Place, command: &Command<'_>) -> Outcome<RawDocumentBuf> {
    let query = command.document("query").map(RawDocument::to_owned).unwrap_or_default();
    let store = store(state, place, command.read_concern().majority);
    let mut n = 0;
    for document in store.get(&command.ns()?).into_iter().flat_map(|found| found.documents.values()) {
        n += i32::from(matches(&query, document)?);
    }
    Ok(rawdoc! { "n": n })
}

/// Runs an aggregation over one collection.
pub(crate) fn aggregate(state: &mut State, place: Place, command: &Command<'_>) -> Outcome<RawDocumentBuf> {
    let ns = command.ns()?;
    let majority = command.read_concern().majority;
    let found = store(state, place, majority).get(&ns);
    let mut documents: Vec<Doc> =
        found.map(|found| found.documents.values().cloned().collect()).unwrap_or_default();
    let stages = command.documents("pipeline")?;
    for stage in stages {
        documents = through(stage, documents, &mut state.rng)?;
    }
    let size = command.document("cursor").and_then(|cursor| number(cursor, "batchSize"));
    let size = size.map_or(FIRST_BATCH, |size| size as usize).min(documents.len());
    let mut rest: VecDeque<Doc> = documents.into();
    let batch: Vec<Doc> = rest.drain(..size).collect();
    let id = if rest.is_empty() {
        0
    } else {
        let term = state.member(place).term;
        state.cursors.insert(Cursor { ns: ns.clone(), term, source: Source::Results(rest) })
    };
    Ok(batch_reply("firstBatch", &batch, id, &ns, None))
}

/// Runs one stage of a pipeline.
pub(crate) fn through(stage: &RawDocument, documents: Vec<Doc>, rng: &mut Rng) -> Outcome<Vec<Doc>> {
    let (name, argument) = stage.iter().next().ok_or_else(|| Failure::new(BAD_VALUE, "empty stage"))??;
    run_stage(name.as_str(), argument, documents, rng)
}

fn run_stage(
    name: &str,
    argument: RawBsonRef<'_>,
    mut documents: Vec<Doc>,
    rng: &mut Rng,
) -> Outcome<Vec<Doc>> {
    let body = argument.as_document();
    let needs_document = || Failure::new(BAD_VALUE, format!("{name} needs a document"));
    match name {
        "$match" => {
            let filter = body.ok_or_else(needs_document)?;
            let mut kept = Vec::new();
            for document in documents {
                if matches(filter, &document)? {
                    kept.push(document);
                }
            }
            Ok(kept)
        }
        "$sample" => {
            let size = number(body.ok_or_else(needs_document)?, "size").unwrap_or(0.0) as usize;
            let mut chosen = Vec::new();
            while chosen.len() < size && !documents.is_empty() {
                chosen.push(documents.swap_remove(rng.index(documents.len())));
            }
            Ok(chosen)
        }
        "$project" => {
            let projection = body.ok_or_else(needs_document)?;
            documents.iter().map(|document| project(projection, document).map(Arc::new)).collect()
        }
        "$sort" => Ok(sorted(documents, body.ok_or_else(needs_document)?)),
        "$limit" => {
            let limit = argument.as_i64().or_else(|| argument.as_i32().map(i64::from)).unwrap_or(0);
            documents.truncate(limit as usize);
            Ok(documents)
        }
        "$count" => {
            let mut counted = RawDocumentBuf::new();
            let field = bson::raw::CString::try_from(argument.as_str().unwrap_or("n"))?;
            counted.append(field, documents.len() as i32);
            Ok(if documents.is_empty() { Vec::new() } else { vec![Arc::new(counted)] })
        }
        "$group" => group(body.ok_or_else(needs_document)?, &documents),
        other => Err(Failure::new(40324, format!("Unrecognized pipeline stage name: '{other}'"))),
    }
}

fn sorted(mut documents: Vec<Doc>, by: &RawDocument) -> Vec<Doc> {
    let fields: Vec<(&str, bool)> = by
        .iter()
        .flatten()
        .map(|(name, _)| (name.as_str(), number(by, name.as_str()).is_some_and(|order| order < 0.0)))
        .collect();
    documents.sort_by(|left, right| {
        for (field, descending) in &fields {
            let value =
                |document: &Doc| key_of(document.get(field).ok().flatten().unwrap_or(RawBsonRef::Null));
            let order = value(left).cmp(&value(right));
            if order.is_ne() {
                return if *descending { order.reverse() } else { order };
            }
        }
        std::cmp::Ordering::Equal
    });
    documents
}

/// `{_id: <expression>, n: {$sum: 1}}`.
fn group(spec: &RawDocument, documents: &[Doc]) -> Outcome<Vec<Doc>> {
    let id = spec.get("_id")?.unwrap_or(RawBsonRef::Null);
    let mut groups: std::collections::BTreeMap<Key, (bson::RawBson, i32)> = std::collections::BTreeMap::new();
    for document in documents {
        let value = evaluate(id, document)?.unwrap_or(RawBsonRef::Null);
        groups.entry(key_of(value)).or_insert_with(|| (value.into(), 0)).1 += 1;
    }
    let counted = groups.into_values().map(|(id, count)| {
        let mut result = RawDocumentBuf::new();
        result.append(cstr!("_id"), id.as_raw_bson_ref());
        for (name, _) in spec.iter().flatten().filter(|(name, _)| name.as_str() != "_id") {
            result.append(name, count);
        }
        Arc::new(result)
    });
    Ok(counted.collect())
}
