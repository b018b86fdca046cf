//! What a sharded cluster is to be like.

use anyhow::{Context, Result, bail, ensure};
use futures::future::{try_join, try_join_all};

use super::ShardedCluster;
use super::mongos;
use super::router_server::Router;
use crate::binary::{Mongod, Version};
use crate::builder::{ReplicaSetBuilder, Role};
use crate::replica_set::ReplicaSet;

const ENGINE_JOURNAL_MS: u32 = 2;

/// Builds a [`ShardedCluster`]; see [`ShardedCluster::builder`].
#[derive(Clone, Debug)]
pub struct ShardedClusterBuilder {
    shards: usize,
    nodes: usize,
    version: Version,
    oplog_mb: u32,
    cache_gb: f64,
    noop_seconds: Option<u32>,
    election_timeout_ms: i32,
    params: Vec<(String, String)>,
}

impl ShardedClusterBuilder {
    pub(crate) fn new() -> Self {
        Self {
            shards: 2,
            nodes: 1,
            version: Version::Any,
            oplog_mb: 200,
            cache_gb: 0.25,
            noop_seconds: None,
            election_timeout_ms: 2000,
            params: Vec::new(),
        }
    }

    /// Number of shards (1 to 20); 2 if not set.
    #[must_use]
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }

    /// Number of members of each shard (1 to 7); 1 if not set.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Version of mongod; any if not set. Others than 6.0 need a `mongos` of that version.
    #[must_use]
    pub fn version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// Size of the oplog of each shard; 200 MB if not set.
    #[must_use]
    pub fn oplog_mb(mut self, megabytes: u32) -> Self {
        self.oplog_mb = megabytes;
        self
    }

    /// Size of the storage engine's cache of each server; 0.25 if not set, which is the least there is.
    #[must_use]
    pub fn cache_gb(mut self, gigabytes: f64) -> Self {
        self.cache_gb = gigabytes;
        self
    }

    /// How often the clock of a shard without writes moves on. If not set, as mongod does it: every 10 s. Until
    /// it does, change streams hold back the events of the other shards.
    #[must_use]
    pub fn noop_seconds(mut self, seconds: u32) -> Self {
        self.noop_seconds = Some(seconds);
        self
    }

    /// After how long without a primary the members of a shard elect a new one; 2 s if not set.
    #[must_use]
    pub fn election_timeout_ms(mut self, milliseconds: i32) -> Self {
        self.election_timeout_ms = milliseconds;
        self
    }

    /// A server parameter (`--setParameter`) of the shards.
    #[must_use]
    pub fn param(mut self, name: &str, value: &str) -> Self {
        self.params.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the cluster and waits until its router answers.
    pub async fn start(self) -> Result<ShardedCluster> {
        Box::pin(self.start_cluster()).await.context("starting a sharded cluster")
    }

    async fn start_cluster(self) -> Result<ShardedCluster> {
        ensure!((1..=20).contains(&self.shards), "1 to 20 shards, not {}", self.shards);
        if matches!(self.version, Version::V4_2 | Version::V4_4 | Version::V5_0)
            && mongos::find_any().is_none()
        {
            bail!(
                "a sharded cluster before 6.0 needs a mongos: set $RESHARD_MONGOS. The test bed's own router \
                 rests on commands that only mongod 6.0 has"
            );
        }
        let mongod = Mongod::find(self.version).await?;
        let mongos = mongos::find_for(&mongod)?;
        ensure!(
            mongos.is_some() || mongod.version().starts_with("6.0."),
            "mongod {} needs a mongos of its version: set $RESHARD_MONGOS. The test bed's own router rests on \
             commands that only mongod 6.0 has; ask for Version::V6_0 to use it",
            mongod.version(),
        );
        let engine = async {
            match mongos {
                Some(_) => Ok(None),
                // A mongos has no journal that a read after a time of the cluster could wait for.
                None => {
                    self.set("engine", Role::Shard, 1).journal_ms(ENGINE_JOURNAL_MS).start().await.map(Some)
                }
            }
        };
        let mut config = self.set("cfg", Role::Config, 1);
        if mongod.at_least(5, 0) {
            // Else resharding takes 5 minutes at least.
            config = config.param("reshardingMinimumOperationDurationMillis", "0");
        }
        let names: Vec<String> = (0..self.shards).map(|index| format!("s{index}")).collect();
        let shards = try_join_all(names.iter().map(|name| self.shard(name).start()));
        let ((config, engine), shards) = try_join(try_join(config.start(), engine), shards).await?;
        let router = match mongos {
            Some(mongos) => Router::of_mongos(mongos, &config)?,
            None => Router::own(engine.context("no engine")?, &config)?,
        };
        let cluster = ShardedCluster { router, shards, config };
        cluster.assemble().await?;
        Ok(cluster)
    }

    fn shard(&self, name: &str) -> ReplicaSetBuilder {
        let set = self.set(name, Role::Shard, self.nodes).oplog_mb(self.oplog_mb);
        self.params.iter().fold(set, |set, (name, value)| set.param(name, value))
    }

    fn set(&self, name: &str, role: Role, nodes: usize) -> ReplicaSetBuilder {
        ReplicaSet::builder(name)
            .role(role)
            .nodes(nodes)
            .version(self.version)
            .cache_gb(self.cache_gb)
            .noop_interval(self.noop_seconds)
            .election_timeout_ms(self.election_timeout_ms)
    }
}
