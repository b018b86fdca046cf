//! Commands that go straight to shards, with the versions by which a shard sees that the router is up to date.

use std::time::Duration;

use bson::{Document, RawDocument, RawDocumentBuf};
use reshard::cluster::command::number;

use super::Router;
use super::backend::Repeat;
use super::catalog::CONFIG;
use super::failure::{Failure, STALE, code_of, is_ok};
use super::raw;
use super::table::Table;

/// How often a refused version is looked up again.
const ATTEMPTS: u32 = 40;

/// What shards answered.
pub(super) type Replies = Vec<(String, RawDocumentBuf)>;

/// A command for one collection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Versioned<'a> {
    pub(super) database: &'a str,
    pub(super) collection: &'a str,
    pub(super) body: &'a RawDocument,
    /// Makes the database if there is none.
    pub(super) create: bool,
    pub(super) repeat: Repeat,
}

impl<'a> Versioned<'a> {
    pub(super) fn read(database: &'a str, collection: &'a str, body: &'a RawDocument) -> Self {
        Self { database, collection, body, create: false, repeat: Repeat::Yes }
    }
}

/// Pause before the attempt after this one: metadata that is just changing is there a moment later.
pub(super) async fn pause(attempt: u32) {
    tokio::time::sleep(Duration::from_millis(u64::from(20 * attempt).min(500))).await;
}

impl Router {
    /// Runs a command on the shards that `pick` names, again as long as one says that the routing table is
    /// out of date. Returns all replies, ok or not.
    pub(super) async fn versioned(
        &self,
        command: Versioned<'_>,
        pick: impl Fn(&Table) -> Result<Vec<String>, Failure>,
    ) -> Result<(std::sync::Arc<Table>, Replies), Failure> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let table = self.table(command.database, command.collection, command.create).await?;
            let shards = pick(&table)?;
            let asked = shards.into_iter().map(|shard| self.one(command, &table, shard));
            let replies = futures::future::try_join_all(asked).await?;
            if attempt < ATTEMPTS && replies.iter().any(|(_, reply)| is_stale(reply)) {
                self.forget(&table.namespace);
                if attempt > 1 {
                    pause(attempt).await;
                }
                continue;
            }
            return Ok((table, replies));
        }
    }

    async fn one(
        &self,
        command: Versioned<'_>,
        table: &Table,
        shard: String,
    ) -> Result<(String, RawDocumentBuf), Failure> {
        let backend = self.shard(&shard).await?;
        let body = if shard == CONFIG {
            command.body.to_owned()
        } else {
            raw::with(command.body, &table.version(&shard))?
        };
        let reply = backend.run(command.database, body, command.repeat).await?;
        Ok((shard, reply))
    }

    /// [`Self::versioned`] on all shards that own some of the collection; a reply that is not ok is a failure.
    pub(super) async fn on_owners(
        &self,
        command: Versioned<'_>,
    ) -> Result<(std::sync::Arc<Table>, Vec<(String, Document)>), Failure> {
        let (table, replies) = self.versioned(command, |table| Ok(table.shards())).await?;
        Ok((table, decoded(replies, true)?))
    }

    /// Runs a command on the primary shard of a database, with the database's version.
    pub(super) async fn on_primary(
        &self,
        database: &str,
        on: &str,
        command: &Document,
        create: bool,
    ) -> Result<Document, Failure> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let entry = self.database(database, create).await?;
            let shard = self.shard(entry.get_str("primary").unwrap_or(CONFIG)).await?;
            let mut command = command.clone();
            if let Ok(version) = entry.get_document("version") {
                command.insert("databaseVersion", version.clone());
            }
            let reply = shard.ask(on, &command, Repeat::Yes).await?;
            if is_ok(&reply) {
                return Ok(reply);
            }
            if attempt >= ATTEMPTS || !STALE.contains(&code_of(&reply)) {
                return Err(Failure(reply));
            }
            pause(attempt).await;
        }
    }
}

/// The replies as documents; with `check`, one that is not ok is a failure.
pub(super) fn decoded(replies: Replies, check: bool) -> Result<Vec<(String, Document)>, Failure> {
    let mut documents = Vec::with_capacity(replies.len());
    for (shard, reply) in replies {
        let reply = Document::try_from(&*reply)?;
        if check && !is_ok(&reply) {
            return Err(Failure(reply));
        }
        documents.push((shard, reply));
    }
    Ok(documents)
}

/// Whether a reply, or a write in it, was refused because of a version.
pub(super) fn is_stale(reply: &RawDocument) -> bool {
    let stale = |document: &RawDocument| {
        number(document, "code").is_some_and(|code| STALE.iter().any(|stale| f64::from(*stale) == code))
    };
    if number(reply, "ok") != Some(1.0) {
        return stale(reply);
    }
    reply
        .get_array("writeErrors")
        .is_ok_and(|errors| errors.into_iter().flatten().filter_map(|error| error.as_document()).any(stale))
}
