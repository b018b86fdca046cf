//! Commands of clients go on to servers, changed in few bytes.

use bson::raw::cstr;
use bson::{Document, RawDocument, RawDocumentBuf, doc};
use bytes::BytesMut;
use reshard::wire::element::Elements;
use reshard::wire::op_msg::{self, OpMsg};
use reshard::wire::patch::{Patch, Patched, document_element};
use reshard::wire::scan::Command;

use super::Router;
use super::backend::Repeat;
use super::concern::writes;
use super::failure::Failure;
use super::seen::Seen;
use super::table::Table;
use super::versioned::pause;

/// How often a command that was refused for its routing table is sent again.
pub(super) const ATTEMPTS: u32 = 40;

/// How often a command is sent to the next primary.
const FAILOVERS: u32 = 4;

/// A command of a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) message: &'a [u8],
    pub(super) parts: &'a OpMsg,
    pub(super) command: &'a Command<'a>,
}

impl<'a> Asked<'a> {
    pub(super) fn body(&self) -> Result<&'a RawDocument, Failure> {
        Ok(RawDocument::from_bytes(self.message.get(self.parts.body.clone()).unwrap_or_default())?)
    }

    pub(super) fn database(&self) -> &'a str {
        self.command.database.unwrap_or("admin")
    }

    pub(super) fn collection(&self) -> &'a str {
        self.command.collection().unwrap_or_default()
    }
}

/// Fields that a server must not get.
fn is_for_routers(key: &[u8]) -> bool {
    matches!(key, b"$clusterTime" | b"apiVersion" | b"apiStrict" | b"apiDeprecationErrors")
}

/// Fields that the engine must not get: a write with a number aborts it.
fn is_number(key: &[u8]) -> bool {
    matches!(key, b"txnNumber" | b"stmtId" | b"stmtIds")
}

impl Router {
    /// Sends a command to the engine under another name; its reply is in `reply`.
    pub(super) async fn to_engine(
        &self,
        asked: Asked<'_>,
        name: &str,
        repeat: Repeat,
        reply: &mut BytesMut,
    ) -> Result<Seen, Failure> {
        let patched = self.patched(asked, Some(name), &Document::new())?;
        let pieces = patched.parts(asked.message);
        let mut attempt = 0;
        loop {
            attempt += 1;
            self.engine.exchange(&pieces, reply, repeat).await?;
            let mut seen = Seen::scan(reply)?;
            seen.tell(&self.time, reply);
            seen.correct_operation_time(reply);
            seen.strip(reply);
            // mongos repeats a command that was refused for its routing table; the engine does not.
            if !seen.is_stale() || asked.command.name == "getMore" || attempt >= ATTEMPTS {
                return Ok(seen);
            }
            self.engine.command("admin", &doc! {"flushRouterConfig": 1}).await?;
            if attempt > 1 {
                pause(attempt).await;
            }
        }
    }

    /// Sends a command to a shard as it is, with the shard's version. Nothing if the shard refuses all or some
    /// of it for that version.
    pub(super) async fn to_shard(
        &self,
        asked: Asked<'_>,
        table: &Table,
        shard: &str,
        repeat: Repeat,
        reply: &mut BytesMut,
    ) -> Result<Option<Seen>, Failure> {
        let patched = self.patched(asked, None, &table.version(shard))?;
        let (pieces, shard) = (patched.parts(asked.message), self.shard(shard).await?);
        let mut attempt = 0;
        let mut seen = loop {
            attempt += 1;
            let server = shard.exchange(&pieces, reply, repeat).await?;
            let seen = Seen::scan(reply)?;
            seen.tell(&self.time, reply);
            if seen.ok || !shard.lost_primary(&server, seen.code, repeat) || attempt >= FAILOVERS {
                break seen;
            }
        };
        if seen.has_stale(reply) {
            return Ok(None);
        }
        seen.strip(reply);
        Ok(Some(seen))
    }

    /// A command as a server gets it: for the engine under a new name, for a shard under its own.
    pub(super) fn patched(
        &self,
        asked: Asked<'_>,
        name: Option<&str>,
        fields: &Document,
    ) -> Result<Patched, Failure> {
        let (mut patch, command) = (Patch::new(asked.parts), asked.command);
        if let Some(name) = name {
            let key = command.first.range().start + 1;
            patch.replace(key..key + command.name.len(), name.as_bytes().to_vec());
        }
        let elements = Elements::within(asked.message, asked.parts.body.clone());
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
        if writes(command) {
            let own = command.write_concern.map(|own| RawDocument::from_bytes(own.value())).transpose()?;
            if let Some(concern) = self.write_concern(own)? {
                command.write_concern.into_iter().for_each(|own| patch.remove(own.range()));
                patch.append(document_element("writeConcern", concern.as_bytes()));
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

    /// A whole reply.
    pub(super) fn message(&self, document: RawDocumentBuf, parts: &OpMsg) -> BytesMut {
        let document = self.stamped(document);
        BytesMut::from(&op_msg::build(0, parts.header.request_id, 0, document.as_bytes(), None)[..])
    }
}
