//! Change streams: events of what the majority has, resume tokens, high-water marks.

use std::sync::Arc;

use bson::raw::{RawDocumentBuf, cstr};
use bson::{RawBsonRef, RawDocument, Timestamp, rawdoc};

use super::command::Command;
use super::cursor::{Cursor, Source};
use super::error::{BAD_VALUE, Failure, HISTORY_LOST, Outcome};
use super::filter::matches;
use super::log::{Entry, Kind, Op};
use super::read::{batch_reply, project};
use super::state::{Place, State};
use super::store::{Doc, Ns};

/// A place in the log: all before it has been seen.
type Position = (Timestamp, u32);

/// An open change stream.
pub(crate) struct Stream {
    /// The next entry is at or above this.
    position: Position,
    /// The token of the last reply.
    token: String,
    database: Option<String>,
    collection: Option<Ns>,
    stages: Vec<RawDocumentBuf>,
    /// Some stage looks at whole documents; else only events that are shown get theirs.
    looks_inside: bool,
}

/// Whether an aggregation opens a stream.
pub(crate) fn is_stream(command: &Command<'_>) -> bool {
    first_stage(command).is_some_and(|stage| stage.get("$changeStream").ok().flatten().is_some())
}

fn first_stage<'a>(command: &Command<'a>) -> Option<&'a RawDocument> {
    command.body.get_array("pipeline").ok()?.into_iter().next()?.ok()?.as_document()
}

/// Opens a stream.
pub(crate) fn open(state: &mut State, place: Place, command: &Command<'_>) -> Outcome<RawDocumentBuf> {
    let options = first_stage(command)
        .and_then(|stage| stage.get_document("$changeStream").ok())
        .ok_or_else(|| Failure::new(BAD_VALUE, "$changeStream needs a document"))?;
    let position = start(state, place, options)?;
    let collection = command.argument.as_str().map(|name| command.named(name));
    let everywhere = options.get_bool("allChangesForCluster").unwrap_or(false);
    let ns = collection.clone().unwrap_or_else(|| command.named("$cmd.aggregate"));
    let stages = command.documents("pipeline")?.into_iter().skip(1);
    let stages: Vec<RawDocumentBuf> = stages.map(RawDocument::to_owned).collect();
    let mut stream = Stream {
        position,
        token: token_at(position),
        database: (!everywhere).then(|| command.database().to_owned()),
        collection,
        looks_inside: stages.iter().any(looks_inside),
        stages,
    };
    let size = command.document("cursor").and_then(|cursor| cursor.get_i32("batchSize").ok());
    let batch = advance(&mut stream, state, size.map_or(1000, |size| size as usize))?;
    let token = stream.token.clone();
    let term = state.member(place).term;
    let id = state.cursors.insert(Cursor { ns: ns.clone(), term, source: Source::Stream(Box::new(stream)) });
    Ok(batch_reply("firstBatch", &batch, id, &ns, Some(&token)))
}

/// Further events of a stream; the reply is `None` if there are none and the caller can still wait.
pub(crate) fn more(
    state: &mut State,
    place: Place,
    id: i64,
    size: Option<usize>,
    wait: bool,
) -> Outcome<Option<RawDocumentBuf>> {
    let mut cursor = state.cursors.take(id).ok_or_else(|| super::read::not_found(id))?;
    let Source::Stream(stream) = &mut cursor.source else {
        return Err(Failure::new(BAD_VALUE, "not a stream"));
    };
    let size = size.unwrap_or(1000);
    // A deposed member learns nothing new.
    let batch = if place == Place::Primary { advance(stream, state, size)? } else { Vec::new() };
    let reply = (!batch.is_empty() || !wait)
        .then(|| batch_reply("nextBatch", &batch, id, &cursor.ns, Some(&stream.token)));
    state.cursors.put_back(id, cursor);
    Ok(reply)
}

/// Where a stream with these options begins.
fn start(state: &State, place: Place, options: &RawDocument) -> Outcome<Position> {
    for name in ["resumeAfter", "startAfter"] {
        if let Ok(token) = options.get_document(name) {
            let position = parse(token.get_str("_data").unwrap_or_default())?;
            return reachable(state, position);
        }
    }
    match options.get_timestamp("startAtOperationTime") {
        Ok(time) => reachable(state, (time, 0)),
        Err(_) => Ok((state.member(place).applied, u32::MAX)),
    }
}

fn reachable(state: &State, position: Position) -> Outcome<Position> {
    if position.0 < state.log_start {
        let message =
            "Resume of change stream was not possible, as the resume point may no longer be in the oplog.";
        return Err(Failure::new(HISTORY_LOST, message));
    }
    Ok(position)
}

/// Up to `size` events; moves the position and the token past what was seen.
fn advance(stream: &mut Stream, state: &State, size: usize) -> Outcome<Vec<Doc>> {
    if stream.position.0 < state.log_start {
        return Err(Failure::new(HISTORY_LOST, "the oplog no longer has the position of the stream"));
    }
    let mut batch = Vec::new();
    let first = state.log.partition_point(|entry| entry.position() < stream.position);
    for entry in state.log.range(first..) {
        if batch.len() >= size {
            return Ok(batch);
        }
        if let Some(event) = stream.event(entry)? {
            batch.push(Arc::new(event));
            stream.token = event_token(entry);
        }
        stream.position = (entry.time, entry.part + 1);
    }
    let mark = high_water(state.majority.time);
    if mark > stream.token {
        stream.token = mark;
    }
    Ok(batch)
}

impl Stream {
    /// The event of an entry, `None` if the stream does not show it.
    fn event(&self, entry: &Entry) -> Outcome<Option<RawDocumentBuf>> {
        let Some(ns) = namespace(&entry.op) else { return Ok(None) };
        let (database, collection) = ns.split_once('.').unwrap_or((ns, ""));
        let wanted = self.database.as_ref().is_none_or(|wanted| wanted == database)
            && self.collection.as_ref().is_none_or(|wanted| wanted == ns);
        if !wanted || matches!(database, "admin" | "local" | "config") {
            return Ok(None);
        }
        let mut event = describe(entry, database, collection)?;
        if self.looks_inside {
            show_document(&mut event, entry);
        }
        for stage in &self.stages {
            if let Ok(filter) = stage.get_document("$match") {
                if !matches(filter, &event)? {
                    return Ok(None);
                }
            } else if let Ok(projection) = stage.get_document("$project") {
                event = project(projection, &event)?;
            } else if !stage.iter().flatten().any(|(name, _)| name.as_str() == "$changeStreamSplitLargeEvent")
            {
                return Err(Failure::new(BAD_VALUE, format!("the simulator knows no stage {stage:?}")));
            }
        }
        if !self.looks_inside {
            show_document(&mut event, entry);
        }
        Ok(Some(event))
    }
}

/// Whether a stage needs the document of an event: all do but filters that do not name it, and the one that splits.
fn looks_inside(stage: &RawDocumentBuf) -> bool {
    let named = |bytes: &[u8]| bytes.windows(12).any(|name| name == b"fullDocument");
    match stage.get_document("$match") {
        Ok(filter) => named(filter.as_bytes()),
        Err(_) => stage.get("$changeStreamSplitLargeEvent").ok().flatten().is_none(),
    }
}

/// Appends the document that an event shows.
fn show_document(event: &mut RawDocumentBuf, entry: &Entry) {
    if let Op::Put { document, kind: Kind::Insert | Kind::Replace, .. } = &entry.op {
        event.append(cstr!("fullDocument"), RawBsonRef::Document(document));
    }
}

/// The namespace of a change that streams show.
fn namespace(op: &Op) -> Option<&Ns> {
    match op {
        Op::Put { ns, .. } | Op::Delete { ns, .. } | Op::Drop { ns } => Some(ns),
        Op::Create { .. } | Op::Index { .. } | Op::Noop => None,
    }
}

fn describe(entry: &Entry, database: &str, collection: &str) -> Outcome<RawDocumentBuf> {
    let (operation, id) = match &entry.op {
        Op::Put { document, kind, .. } => {
            let name = match kind {
                Kind::Insert => "insert",
                Kind::Update => "update",
                Kind::Replace => "replace",
            };
            (name, document.get("_id")?)
        }
        Op::Delete { id, .. } => ("delete", Some(id.as_raw_bson_ref())),
        _ => ("drop", None),
    };
    let mut event = rawdoc! {
        "_id": { "_data": event_token(entry) },
        "operationType": operation,
        "clusterTime": entry.time,
        "ns": { "db": database, "coll": collection },
    };
    if let Some(id) = id {
        let mut key = RawDocumentBuf::new();
        key.append(cstr!("_id"), id);
        event.append(cstr!("documentKey"), key);
    }
    Ok(event)
}

fn high_water(time: Timestamp) -> String {
    format!("82{:08x}{:08x}00", time.time, time.increment)
}

fn event_token(entry: &Entry) -> String {
    format!("82{:08x}{:08x}80{:08x}5a1004", entry.time.time, entry.time.increment, entry.part)
}

/// The token of a stream that begins at `position`.
fn token_at((time, part): Position) -> String {
    match part {
        0 => high_water(time),
        part => format!("82{:08x}{:08x}80{:08x}5a1004", time.time, time.increment, part - 1),
    }
}

fn parse(token: &str) -> Outcome<Position> {
    let number =
        |range: std::ops::Range<usize>| token.get(range).and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let invalid = || Failure::new(50811, "not a resume token");
    let (Some(time), Some(increment)) = (number(2..10), number(10..18)) else { return Err(invalid()) };
    let time = Timestamp { time, increment };
    match token.get(18..20) {
        Some("00") => Ok((time, 0)),
        Some("80") => Ok((time, number(20..28).ok_or_else(invalid)?.saturating_add(1))),
        _ => Err(invalid()),
    }
}
