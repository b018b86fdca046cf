//! What tests do to a sharded cluster: all through its router, so that it is the same with any router.

use std::time::Duration;

use anyhow::{Context, Result};
use bson::{Document, doc};

use super::ShardedCluster;
use crate::wait::wait_for;

/// How long the balancer may take to end what it is doing.
const BALANCER: Duration = Duration::from_secs(60);

impl ShardedCluster {
    /// Makes a database with this primary shard, or allows an existing one to have sharded collections.
    pub async fn enable_sharding(&self, database: &str, primary: usize) -> Result<()> {
        let primary = self.shard(primary).name();
        self.admin(doc! {"enableSharding": database, "primaryShard": primary}).await.map(drop)
    }

    /// Shards a collection (`database.collection`): `doc! {"customer": 1}` or `doc! {"order": "hashed"}`.
    pub async fn shard_collection(&self, namespace: &str, key: Document) -> Result<()> {
        self.admin(doc! {"shardCollection": namespace, "key": key}).await.map(drop)
    }

    /// Splits a chunk at this value of the shard key.
    pub async fn split(&self, namespace: &str, middle: Document) -> Result<()> {
        self.admin(doc! {"split": namespace, "middle": middle}).await.map(drop)
    }

    /// Moves the chunk that begins at `min` to another shard, and waits until the documents are gone from the
    /// old one if `wait_for_delete`; otherwise they stay there as orphans for a while.
    pub async fn move_chunk(
        &self,
        namespace: &str,
        min: Document,
        to: usize,
        wait_for_delete: bool,
    ) -> Result<()> {
        let (database, _) = namespace.split_once('.').context("not database.collection")?;
        let uuid = self.collection_entry(namespace).await?.get("uuid").cloned();
        let find = doc! {"find": "chunks", "filter": {"uuid": uuid, "min": min}, "limit": 1};
        let chunk = first(&self.run("config", find).await?)
            .with_context(|| format!("no such chunk in {database}"))?;
        let bounds = vec![chunk.get_document("min")?.clone(), chunk.get_document("max")?.clone()];
        let command = doc! {
            "moveChunk": namespace,
            "bounds": bounds,
            "to": self.shard(to).name(),
            "_waitForDelete": wait_for_delete,
        };
        self.admin(command).await.map(drop)
    }

    /// Moves what is not sharded in a database to another shard.
    pub async fn move_primary(&self, database: &str, to: usize) -> Result<()> {
        self.admin(doc! {"movePrimary": database, "to": self.shard(to).name()}).await.map(drop)
    }

    /// Turns the balancer on or off; when this returns, it does not move anything any more.
    pub async fn balancer(&self, on: bool) -> Result<()> {
        let command = if on { "balancerStart" } else { "balancerStop" };
        self.admin(doc! {command: 1}).await?;
        if on {
            return Ok(());
        }
        wait_for("the balancer to be idle", BALANCER, || async {
            Ok(!self.admin(doc! {"balancerStatus": 1}).await?.get_bool("inBalancerRound")?)
        })
        .await
    }

    /// Moves all chunks of one shard key to another: `reshardCollection`.
    pub async fn reshard_collection(&self, namespace: &str, key: Document) -> Result<()> {
        self.admin(doc! {"reshardCollection": namespace, "key": key}).await.map(drop)
    }

    /// The entry of a sharded collection in `config.collections`.
    pub async fn collection_entry(&self, namespace: &str) -> Result<Document> {
        let find = doc! {"find": "collections", "filter": {"_id": namespace}};
        first(&self.run("config", find).await?).with_context(|| format!("{namespace} is not sharded"))
    }
}

fn first(reply: &Document) -> Option<Document> {
    let batch = reply.get_document("cursor").ok()?.get_array("firstBatch").ok()?;
    batch.first()?.as_document().cloned()
}
