//! One side of the move: a replica set, or a sharded cluster.

use anyhow::Result;
use bson::{Document, doc};
use clap::ValueEnum;
use reshard_testbed::{ReplicaSet, ShardedCluster};

/// What moves to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Topology {
    /// shop.orders, from one sharded cluster to another with another shard key
    Sharded,
    /// shop.orders and shop.customers, from one replica set to another
    ReplicaSets,
}

/// How often the clock of a shard without writes moves on; change streams wait for it.
const CLOCK_SECONDS: u32 = 1;
const SHARDS: usize = 2;

/// The servers of one side; they end when it is dropped.
#[derive(Debug)]
pub(crate) enum Cluster {
    Set(ReplicaSet),
    Sharded(Box<ShardedCluster>),
}

impl Cluster {
    pub(crate) async fn start(topology: Topology, name: &str, nodes: usize) -> Result<Self> {
        match topology {
            Topology::Sharded => {
                let cluster = ShardedCluster::builder().shards(SHARDS).nodes(nodes);
                let cluster = cluster.noop_seconds(CLOCK_SECONDS).start().await?;
                Ok(Self::Sharded(Box::new(cluster)))
            }
            Topology::ReplicaSets => ReplicaSet::builder(name).nodes(nodes).start().await.map(Self::Set),
        }
    }

    pub(crate) fn uri(&self) -> String {
        match self {
            Self::Set(set) => set.uri(),
            Self::Sharded(cluster) => cluster.uri(),
        }
    }

    /// What it is, in a few words.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Set(_) => "replica set".into(),
            Self::Sharded(cluster) if cluster.router().is_mongos() => {
                format!("{} shards behind a mongos", cluster.shards().len())
            }
            Self::Sharded(cluster) => {
                format!("{} shards behind the test bed's stand-in of a mongos", cluster.shards().len())
            }
        }
    }

    /// Shards an empty collection; nothing on a replica set.
    pub(crate) async fn shard(&self, database: &str, collection: &str, key: Document) -> Result<()> {
        let Self::Sharded(cluster) = self else { return Ok(()) };
        cluster.enable_sharding(database, 0).await?;
        let chunks = i32::try_from(cluster.shards().len() * 2)?;
        let command = doc! {
            "shardCollection": format!("{database}.{collection}"), "key": key, "numInitialChunks": chunks,
        };
        cluster.admin(command).await.map(drop)
    }
}
