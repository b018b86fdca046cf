//! Which part of the router answers which command.

use std::sync::Arc;

use bson::{Document, RawDocumentBuf, doc};
use bytes::BytesMut;
use reshard::wire::element::Elements;
use reshard::wire::scan::Command;

use super::Router;
use super::backend::Repeat;
use super::failure::Failure;
use super::forward::Asked;
use super::raw;
use super::server::Answer;
use super::targets::Kind;

/// Commands that the engine answers as they are.
const TO_ENGINE: [&str; 22] = [
    "buildInfo",
    "buildinfo",
    "connPoolStats",
    "connectionStatus",
    "endSessions",
    "features",
    "getClusterParameter",
    "getCmdLineOpts",
    "getLog",
    "getParameter",
    "getShardMap",
    "hostInfo",
    "killAllSessions",
    "killAllSessionsByPattern",
    "killSessions",
    "listCommands",
    "logout",
    "refreshSessions",
    "rolesInfo",
    "setParameter",
    "startSession",
    "whatsmyuri",
];

/// The engine's name of a read.
pub(super) fn cluster_name(name: &str) -> Option<&'static str> {
    Some(match name {
        "find" => "clusterFind",
        "aggregate" => "clusterAggregate",
        "getMore" => "clusterGetMore",
        _ => return None,
    })
}

impl Router {
    /// Runs one command of a client.
    pub(super) async fn dispatch(
        self: &Arc<Self>,
        asked: Asked<'_>,
        connection: i64,
        reply: &mut BytesMut,
    ) -> Result<Answer, Failure> {
        let command = asked.command;
        if command.autocommit.is_some() || matches!(command.name, "commitTransaction" | "abortTransaction") {
            let message = "Transactions are not supported by this router: the cluster commands of mongod 6.0 fail \
                           inside a transaction, and there is no mongos on this machine";
            return Err(Failure::new(20, "IllegalOperation", message));
        }
        if let Some(kind) = Kind::of(command.name) {
            return self.write(asked, kind, reply).await;
        }
        let Some(name) = cluster_name(command.name) else {
            return Box::pin(self.others(asked, connection)).await.map(Answer::Document);
        };
        match command.name {
            "aggregate" if is_change_stream(command) => {
                self.learn_time(command);
                let body = raw::command(asked.message, asked.parts)?;
                return Box::pin(self.open_stream(asked.database(), &body)).await.map(Answer::Document);
            }
            "getMore" => return self.more(asked, name, reply).await,
            "find" if self.find_on_one(asked, reply).await?.is_some() => {}
            _ => {
                self.to_engine(asked, name, Repeat::Yes, reply).await?;
            }
        }
        Ok(Answer::Forwarded)
    }

    /// A cursor is the router's own, a shard's, or the engine's.
    async fn more(
        self: &Arc<Self>,
        asked: Asked<'_>,
        name: &str,
        reply: &mut BytesMut,
    ) -> Result<Answer, Failure> {
        let id = asked.command.first.as_i64().unwrap_or(0);
        let stream = self.streams.lock().get(&id).cloned();
        if let Some(stream) = stream {
            let body = raw::command(asked.message, asked.parts)?;
            return Box::pin(self.more_of_stream(&stream, &body)).await.map(Answer::Document);
        }
        let shard = self.cursors.lock().get(&id).cloned();
        if let Some(shard) = shard {
            self.more_of_shard(asked, id, &shard, reply).await?;
            return Ok(Answer::Forwarded);
        }
        if self.killed.lock().contains(id) {
            return Err(Failure::new(43, "CursorNotFound", format!("cursor id {id} not found")));
        }
        self.to_engine(asked, name, Repeat::No, reply).await?;
        Ok(Answer::Forwarded)
    }

    /// What has no cluster command.
    async fn others(self: &Arc<Self>, asked: Asked<'_>, connection: i64) -> Result<RawDocumentBuf, Failure> {
        let (name, database) = (asked.command.name, asked.database());
        if matches!(name, "hello" | "isMaster" | "ismaster") {
            return Ok(self.say_hello(name, asked.body()?, connection).await);
        }
        self.learn_time(asked.command);
        let body = raw::command(asked.message, asked.parts)?;
        if matches!(name, "findAndModify" | "findandmodify") {
            return self.find_and_modify(database, &body).await;
        }
        if TO_ENGINE.contains(&name) {
            let reply = self.engine.run(database, body, Repeat::Yes).await?;
            return raw::reply(&reply);
        }
        let decoded = Document::try_from(&*body)?;
        let reply = self.by_name(name, database, &body, decoded).await?;
        Ok(RawDocumentBuf::try_from(&raw::cleaned(reply))?)
    }

    async fn by_name(
        self: &Arc<Self>,
        name: &str,
        database: &str,
        body: &RawDocumentBuf,
        command: Document,
    ) -> Result<Document, Failure> {
        match name {
            "ping" => Ok(doc! {"ok": 1.0}),
            "count" => self.count(database, body, &command).await,
            "distinct" => self.distinct(database, body, &command).await,
            "explain" => self.explain(database, &command).await,
            "killCursors" => self.kill_cursors(database, &command).await,
            "create" | "drop" | "collMod" | "renameCollection" | "dropDatabase" | "listCollections"
            | "listDatabases" => self.collections(name, database, command).await,
            "createIndexes" | "dropIndexes" | "deleteIndexes" | "listIndexes" => {
                self.indexes(name, database, body, command).await
            }
            "collStats" | "collstats" | "dbStats" | "dbstats" | "dataSize" | "datasize" | "validate" => {
                self.sizes(name, database, body, command).await
            }
            "split" | "moveChunk" | "moveRange" | "mergeChunks" => self.chunks(name, command).await,
            "currentOp" | "killOp" | "serverStatus" | "appendOplogNote" | "listShards"
            | "flushRouterConfig" | "isdbgrid" | "isDbGrid" | "replSetGetStatus" => {
                self.information(name, database, command).await
            }
            _ => self.sharding(name, command).await,
        }
    }
}

/// Whether the pipeline of an aggregate begins with `$changeStream`.
fn is_change_stream(command: &Command<'_>) -> bool {
    let stages = command.pipeline.and_then(|pipeline| pipeline.children());
    let stage = stages.and_then(|mut stages| stages.next()?.ok()).and_then(|stage| stage.children());
    stage
        .and_then(|mut stage: Elements<'_>| stage.next()?.ok())
        .is_some_and(|first| first.key == b"$changeStream")
}
