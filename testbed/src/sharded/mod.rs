//! A sharded cluster of real servers.

mod administration;
mod builder;
mod mongos;
mod router;
mod router_server;

use anyhow::{Context, Result};
use bson::{Document, doc};
use mongodb::Client;

use crate::replica_set::ReplicaSet;

pub use builder::ShardedClusterBuilder;
pub use router_server::Router;

/// A sharded cluster whose servers run until it is dropped: a config server, shards, and a router. The
/// router is a `mongos` where there is one (`$RESHARD_MONGOS`, `PATH`), else one of the test bed's own.
///
/// The balancer is off until [`Self::balancer`] turns it on.
#[derive(Debug)]
pub struct ShardedCluster {
    // The first to go, since it speaks to all others.
    router: Router,
    shards: Vec<ReplicaSet>,
    config: ReplicaSet,
}

impl ShardedCluster {
    /// A cluster of two shards with one member each, unless the builder is told otherwise.
    pub fn builder() -> ShardedClusterBuilder {
        ShardedClusterBuilder::new()
    }

    /// `mongodb://host:port/` of the router.
    pub fn uri(&self) -> String {
        self.router.uri()
    }

    /// A new client of the router.
    pub async fn client(&self) -> Result<Client> {
        crate::access::connect(&self.uri()).await
    }

    /// Runs a command on the router, whether it is ok for the driver or not.
    pub async fn run(&self, database: &str, command: Document) -> Result<Document> {
        let name = command.keys().next().cloned().unwrap_or_default();
        let answer = crate::wire::command(self.router.address(), database, command).await;
        answer.with_context(|| format!("{name} on the router ({})", self.router.address()))
    }

    /// Runs a command on the router's `admin` database.
    pub async fn admin(&self, command: Document) -> Result<Document> {
        self.run("admin", command).await
    }

    /// The replica set of shard `index`; its name in the cluster is `s0`, `s1` and so on.
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn shard(&self, index: usize) -> &ReplicaSet {
        &self.shards[index]
    }

    /// All shards.
    pub fn shards(&self) -> &[ReplicaSet] {
        &self.shards
    }

    /// The config server.
    pub fn config(&self) -> &ReplicaSet {
        &self.config
    }

    /// The router.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// CPU time that the servers of the cluster used: shards, config server, router. Servers that were
    /// started again count from then on.
    pub fn cpu_seconds(&self) -> f64 {
        let shards: f64 = self.shards.iter().map(ReplicaSet::cpu_seconds).sum();
        shards + self.config.cpu_seconds() + self.router.cpu_seconds()
    }

    /// Makes the replica sets one cluster, with a router that runs. The shards get the names of their sets.
    async fn assemble(&self) -> Result<()> {
        let config = self.config.node(self.config.primary().await?);
        let mongos = self.router.is_mongos();
        if mongos {
            self.router.start().await?;
        }
        for shard in &self.shards {
            let (host, name) = (shard.connection_string(), shard.name());
            if mongos {
                self.admin(doc! {"addShard": host, "name": name}).await?;
                continue;
            }
            let majority = doc! {"w": "majority"};
            config.admin(doc! {"_configsvrAddShard": host, "name": name, "writeConcern": majority}).await?;
        }
        if mongos {
            return self.admin(doc! {"balancerStop": 1}).await.map(drop);
        }
        config.admin(doc! {"_configsvrBalancerStop": 1}).await?;
        self.router.prepare(&self.config).await?;
        self.router.start().await
    }
}
