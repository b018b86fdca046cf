//! The data path: commands of clients to the engine, whose replies pass through.

use std::ops::Range;

use bson::raw::cstr;
use bson::{Document, RawDocument, RawDocumentBuf, doc};
use bytes::{Bytes, BytesMut};
use reshard::cluster::command::number;
use reshard::wire::element::{Elements, TIMESTAMP};
use reshard::wire::header::HEADER_LEN;
use reshard::wire::op_msg::{self, OpMsg};
use reshard::wire::patch::{Patch, Patched, document_element};
use reshard::wire::reply::answer_to;
use reshard::wire::scan::Command;

use super::Router;
use super::backend::Repeat;
use super::failure::{Failure, STALE};
use super::modify::WOULD_CHANGE_SHARD;
use super::repeats::WriteId;
use super::server::Answer;
use super::versioned::pause;

/// How often a command that was refused for its routing table is sent again.
const ATTEMPTS: u32 = 40;

/// Fields that a server must not get.
fn is_for_routers(key: &[u8]) -> bool {
    matches!(key, b"$clusterTime" | b"apiVersion" | b"apiStrict" | b"apiDeprecationErrors")
}

/// Fields that the engine must not get: a write with a number aborts it.
fn is_number(key: &[u8]) -> bool {
    matches!(key, b"txnNumber" | b"stmtId" | b"stmtIds")
}

/// What the router reads in a reply, from one walk over it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) ok: bool,
    pub(super) code: i64,
    pub(super) write_errors: bool,
    cluster_time: Option<Range<usize>>,
    operation_time: Option<Range<usize>>,
}

impl Seen {
    pub(super) fn scan(reply: &[u8]) -> Result<Self, Failure> {
        let unusable = |_| Failure::bad_value("unusable reply");
        let mut seen = Self::default();
        // A reply has no section but the body.
        for element in Elements::within(reply, HEADER_LEN + 5..reply.len()).map_err(unusable)? {
            let element = element.map_err(unusable)?;
            match element.key {
                b"ok" => seen.ok = element.as_bool() == Some(true),
                b"code" => seen.code = element.as_i64().unwrap_or(0),
                b"writeErrors" => seen.write_errors = true,
                b"$clusterTime" => seen.cluster_time = Some(element.value_range()),
                b"operationTime" if element.kind == TIMESTAMP => {
                    seen.operation_time = Some(element.value_range());
                }
                _ => {}
            }
        }
        Ok(seen)
    }

    fn is_stale(&self) -> bool {
        !self.ok && STALE.iter().any(|code| i64::from(*code) == self.code)
    }
}

impl Router {
    /// Sends a command to the engine under another name; its reply is in `reply`.
    pub(super) async fn to_engine(
        &self,
        message: &[u8],
        parts: &OpMsg,
        command: &Command<'_>,
        name: &str,
        repeat: Repeat,
        reply: &mut BytesMut,
    ) -> Result<Seen, Failure> {
        let patched = self.patched(message, parts, command, Some(name), &Document::new())?;
        let pieces = patched.parts(message);
        let mut attempt = 0;
        loop {
            attempt += 1;
            self.engine.exchange(&pieces, reply, repeat).await?;
            let seen = Seen::scan(reply)?;
            self.take_times(&seen, reply);
            // mongos repeats a command that was refused for its routing table; the engine does not.
            if !seen.is_stale() || command.name == "getMore" || attempt >= ATTEMPTS {
                return Ok(seen);
            }
            self.engine.command("admin", &doc! {"flushRouterConfig": 1}).await?;
            if attempt > 1 {
                pause(attempt).await;
            }
        }
    }

    /// A command as a server gets it: for the engine under a new name, for a shard under its own.
    pub(super) fn patched(
        &self,
        message: &[u8],
        parts: &OpMsg,
        command: &Command<'_>,
        name: Option<&str>,
        fields: &Document,
    ) -> Result<Patched, Failure> {
        let mut patch = Patch::new(parts);
        if let Some(name) = name {
            let key = command.first.range().start + 1;
            patch.replace(key..key + command.name.len(), name.as_bytes().to_vec());
        }
        let elements = Elements::within(message, parts.body.clone());
        let elements = elements.map_err(|error| Failure::new(22, "InvalidBSON", error.to_string()))?;
        for element in elements.flatten().skip(1) {
            if is_for_routers(element.key) || (name.is_some() && is_number(element.key)) {
                patch.remove(element.range());
            }
        }
        for (key, value) in fields {
            if let Some(value) = value.as_document() {
                patch.append(document_element(key, &value.to_vec()?));
            }
        }
        self.learn_time(command);
        if let Some(time) = self.time.latest() {
            patch.append(document_element("$clusterTime", time.as_bytes()));
        }
        Ok(patch.finish())
    }

    /// Clients bring times that they heard elsewhere.
    pub(super) fn learn_time(&self, command: &Command<'_>) {
        if let Some(time) = command.cluster_time
            && let Ok(time) = RawDocument::from_bytes(time.value())
        {
            self.time.observe(time);
        }
    }

    /// Adds the newest times to a reply.
    pub(super) fn stamped(&self, mut document: RawDocumentBuf) -> RawDocumentBuf {
        if let Some(time) = self.time.latest() {
            let told = matches!(document.get("operationTime"), Ok(Some(_)));
            if let Some(now) = time.get_timestamp("clusterTime").ok().filter(|_| !told) {
                document.append(cstr!("operationTime"), now);
            }
            document.append(cstr!("$clusterTime"), &**time);
        }
        document
    }

    /// Takes note of the time in a reply. The engine's own operation time may lie before what a shard did
    /// for it; the cluster's time does not.
    pub(super) fn take_times(&self, seen: &Seen, reply: &mut [u8]) {
        let Some(place) = &seen.cluster_time else { return };
        let Ok(time) = RawDocument::from_bytes(&reply[place.clone()]) else { return };
        self.time.observe(time);
        if let (Ok(time), Some(place)) = (time.get_timestamp("clusterTime"), &seen.operation_time) {
            let value = (u64::from(time.time) << 32) | u64::from(time.increment);
            reply[place.clone()].copy_from_slice(&value.to_le_bytes());
        }
    }

    /// An insert, an update or a delete. One with a number goes to the shards, which know it when it comes
    /// again. Where only the engine knows the shards, the number is taken off, since the engine takes none,
    /// and when the write comes again it is answered from memory.
    pub(super) async fn write(
        &self,
        message: &[u8],
        parts: &OpMsg,
        command: &Command<'_>,
        name: &str,
        reply: &mut BytesMut,
    ) -> Result<Answer, Failure> {
        let Some(id) = write_id(message, parts, command) else {
            self.to_engine(message, parts, command, name, Repeat::No, reply).await?;
            return Ok(Answer::Forwarded);
        };
        if let Some(known) = self.repeats.known(&id) {
            repeat_answer(&known, parts, reply);
            return Ok(Answer::Forwarded);
        }
        let done = Box::pin(self.retryable(message, parts, command)).await?;
        if let Some(done) = done.as_ref().filter(|done| !leaves_its_shard(done)) {
            return Ok(Answer::Document((*done).clone()));
        }
        let written = self.repeats.answer(id);
        let answer = written.get_or_try_init(|| async {
            if done.is_none() {
                let seen = self.to_engine(message, parts, command, name, Repeat::No, reply).await?;
                if command.name != "update" || !seen.write_errors || !refuses_key(reply) {
                    return Ok(Bytes::copy_from_slice(reply));
                }
            }
            let changed = Box::pin(self.change_of_key(message, parts, command)).await?;
            match (changed, &done) {
                (Some(changed), _) => Ok(changed.freeze()),
                (None, Some(done)) => Ok(self.message(done.clone(), parts).freeze()),
                (None, None) => Ok::<_, Failure>(Bytes::copy_from_slice(reply)),
            }
        });
        let answer = answer.await?.clone();
        repeat_answer(&answer, parts, reply);
        Ok(Answer::Forwarded)
    }

    /// A whole reply.
    pub(super) fn message(&self, document: RawDocumentBuf, parts: &OpMsg) -> BytesMut {
        let document = self.stamped(document);
        BytesMut::from(&op_msg::build(0, parts.header.request_id, 0, document.as_bytes(), None)[..])
    }
}

fn repeat_answer(answer: &[u8], parts: &OpMsg, reply: &mut BytesMut) {
    reply.clear();
    reply.extend_from_slice(answer);
    answer_to(reply, parts.header.request_id);
}

/// Whether the engine refuses an update since it changes a shard key.
fn refuses_key(reply: &[u8]) -> bool {
    let text = b"update to shard key field";
    reply.windows(text.len()).any(|window| window == text)
}

/// Whether a shard says that a document would have to go to another.
fn leaves_its_shard(reply: &RawDocument) -> bool {
    if number(reply, "code") == Some(WOULD_CHANGE_SHARD) {
        return true;
    }
    reply.get_array("writeErrors").is_ok_and(|errors| {
        let mut errors = errors.into_iter().flatten().filter_map(|error| error.as_document());
        errors.any(|error| number(error, "code") == Some(WOULD_CHANGE_SHARD))
    })
}

/// By what a retryable write is recognised when it comes again.
fn write_id(message: &[u8], parts: &OpMsg, command: &Command<'_>) -> Option<WriteId> {
    let (session, number) = (command.session()?, command.txn_number?);
    let elements = Elements::within(message, parts.body.clone()).ok()?;
    let mut statements = Vec::new();
    for element in elements.flatten().filter(|element| matches!(element.key, b"stmtId" | b"stmtIds")) {
        statements.extend_from_slice(element.value());
    }
    Some(WriteId { session, number, statements })
}
