//! A stand-in for mongos, for machines that have mongod alone.
//!
//! mongod 6.0 as a shard carries MongoDB's own router as the commands `clusterFind`, `clusterInsert` and so
//! on. Commands of clients are renamed to these and sent to the engine: a shard server that knows the cluster
//! and owns nothing of it. Their replies pass through unchanged. What has no such command goes straight to
//! the shards with the versions that mongos sends too. Change streams are opened on each shard and merged.

mod backend;
mod catalog;
mod chunks;
mod collections;
mod concern;
mod dispatch;
mod failure;
mod finds;
mod forward;
mod hashed;
mod hello;
mod indexes;
mod information;
mod key_change;
mod merge;
mod modify;
mod pull;
mod raw;
mod reads;
mod repeats;
mod retryable;
mod seen;
mod server;
mod sharding;
mod sizes;
mod stream;
mod table;
mod targets;
mod thread;
mod token;
mod versioned;
mod writes;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context, Result};
use bson::oid::ObjectId;
use bson::{Document, doc};
use parking_lot::Mutex;
use reshard::cluster::TimesFor;
use reshard::shutdown::Tasks;

use backend::Backend;
use finds::Cursors;
use repeats::{Killed, Repeats};
use stream::ChangeStream;
use table::Table;

pub(super) use thread::RouterThread;

/// Where the servers behind a router are, each as `name/host:port,...`.
#[derive(Clone, Debug)]
pub(super) struct Servers {
    pub(super) config: String,
    pub(super) engine: String,
}

/// The state of one router.
#[derive(Debug)]
struct Router {
    config: Arc<Backend>,
    /// Runs MongoDB's own routing.
    engine: Arc<Backend>,
    shards: Mutex<BTreeMap<String, Arc<Backend>>>,
    tables: Mutex<HashMap<String, Arc<Table>>>,
    /// The newest `$clusterTime` seen.
    time: TimesFor,
    /// Change streams that are open, by the ids of their cursors.
    streams: Mutex<HashMap<i64, Arc<ChangeStream>>>,
    /// Cursors of clients that live on shards.
    cursors: Mutex<Cursors>,
    killed: Mutex<Killed>,
    repeats: Repeats,
    /// The default of the cluster.
    write_concern: Mutex<Document>,
    /// Only one document at a time is moved to another shard.
    moves: tokio::sync::Mutex<()>,
    tasks: Tasks,
    /// One per start, as servers have it.
    process: ObjectId,
}

impl Router {
    async fn connect(servers: &Servers) -> Result<Arc<Self>> {
        let (time, tasks) = (TimesFor::default(), Tasks::default());
        let router = Self {
            config: Backend::connect(&servers.config, time.clone(), &tasks).await?,
            engine: Backend::connect(&servers.engine, time.clone(), &tasks).await?,
            shards: Mutex::default(),
            tables: Mutex::default(),
            time,
            streams: Mutex::default(),
            cursors: Mutex::default(),
            killed: Mutex::default(),
            repeats: Repeats::default(),
            write_concern: Mutex::new(concern::majority()),
            moves: tokio::sync::Mutex::default(),
            tasks,
            process: ObjectId::new(),
        };
        let failed = |failure: failure::Failure| anyhow::anyhow!("{}", failure.0);
        router.load_shards().await.map_err(failed).context("asking for the shards")?;
        router.load_write_concern().await.map_err(failed).context("asking for the write concern")?;
        // Also tells the router the time.
        router
            .engine
            .command("admin", &doc! {"ping": 1})
            .await
            .map_err(failed)
            .context("asking the engine")?;
        Ok(Arc::new(router))
    }
}
