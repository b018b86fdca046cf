//! The data path: commands of clients to the engine, whose replies pass through.

use std::ops::Range;

use bson::raw::cstr;
use bson::{RawDocument, RawDocumentBuf, doc};
use bytes::{Bytes, BytesMut};
use reshard::wire::element::{Elements, TIMESTAMP};
use reshard::wire::header::HEADER_LEN;
use reshard::wire::op_msg::OpMsg;
use reshard::wire::patch::{Patch, Patched, document_element};
use reshard::wire::reply::answer_to;
use reshard::wire::scan::Command;

use super::Router;
use super::backend::Repeat;
use super::failure::{Failure, STALE};
use super::repeats::WriteId;
use super::versioned::pause;

/// How often a command that was refused for its routing table is sent again.
const ATTEMPTS: u32 = 40;

/// Fields that the engine must not get. A write with a number aborts it.
fn is_dropped(key: &[u8]) -> bool {
    matches!(
        key,
        b"$clusterTime"
            | b"txnNumber"
            | b"stmtId"
            | b"stmtIds"
            | b"apiVersion"
            | b"apiStrict"
            | b"apiDeprecationErrors"
    )
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
        let patched = self.for_engine(message, parts, command, name)?;
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

    fn for_engine(
        &self,
        message: &[u8],
        parts: &OpMsg,
        command: &Command<'_>,
        name: &str,
    ) -> Result<Patched, Failure> {
        let mut patch = Patch::new(parts);
        let key = command.first.range().start + 1;
        patch.replace(key..key + command.name.len(), name.as_bytes().to_vec());
        let elements = Elements::within(message, parts.body.clone());
        let elements = elements.map_err(|error| Failure::new(22, "InvalidBSON", error.to_string()))?;
        for element in elements.flatten().skip(1).filter(|element| is_dropped(element.key)) {
            patch.remove(element.range());
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
            if let Ok(now) = time.get_timestamp("clusterTime") {
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

    /// An insert, an update or a delete. The engine takes none with a number, so the number is taken off, and
    /// when the write comes again it is answered from memory.
    pub(super) async fn write(
        &self,
        message: &[u8],
        parts: &OpMsg,
        command: &Command<'_>,
        name: &str,
        reply: &mut BytesMut,
    ) -> Result<(), Failure> {
        let Some(id) = write_id(message, parts, command) else {
            self.to_engine(message, parts, command, name, Repeat::No, reply).await?;
            return Ok(());
        };
        let written = self.repeats.answer(id);
        let mut fresh = false;
        let answer = written.get_or_try_init(|| async {
            fresh = true;
            let seen = self.to_engine(message, parts, command, name, Repeat::No, reply).await?;
            if command.name == "update"
                && seen.write_errors
                && let Some(changed) = Box::pin(self.change_of_key(message, parts, command, reply)).await?
            {
                *reply = changed;
            }
            Ok::<_, Failure>(Bytes::copy_from_slice(reply))
        });
        let answer = answer.await?.clone();
        if !fresh {
            reply.clear();
            reply.extend_from_slice(&answer);
            answer_to(reply, parts.header.request_id);
        }
        Ok(())
    }
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
