//! The router of a sharded cluster: a mongos, or the test bed's own in a thread of this process.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use bson::doc;
use parking_lot::{Mutex, RwLock};

use super::router::{RouterThread, Servers};
use crate::access::Access;
use crate::binary::Mongod;
use crate::data_dir::DataDir;
use crate::ports::Port;
use crate::process::{Node, Plan};
use crate::replica_set::ReplicaSet;

/// The router of a sharded cluster. It keeps its address when it is killed and started again.
#[derive(Debug)]
pub struct Router {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Own(Own),
    Mongos { node: Node, _data: DataDir },
}

#[derive(Debug)]
struct Own {
    thread: Mutex<Option<RouterThread>>,
    servers: Servers,
    port: Port,
    address: String,
    /// Runs MongoDB's own routing code; owns nothing.
    engine: ReplicaSet,
}

impl Router {
    pub(super) fn own(engine: ReplicaSet, config: &ReplicaSet) -> Result<Self> {
        let port = Port::reserve()?;
        let servers = Servers { config: config.connection_string(), engine: engine.connection_string() };
        let address = format!("{}:{}", Ipv4Addr::LOCALHOST, port.number());
        let own = Own { thread: Mutex::default(), servers, port, address, engine };
        Ok(Self { kind: Kind::Own(own) })
    }

    pub(super) fn of_mongos(mongos: Mongod, config: &ReplicaSet) -> Result<Self> {
        let data = DataDir::create("mongos")?;
        let plan = Plan {
            name: String::from("mongos"),
            mongod: mongos,
            folder: data.path(),
            args: vec![String::from("--configdb"), config.connection_string()],
            access: Arc::new(RwLock::new(Access::default())),
        };
        Ok(Self { kind: Kind::Mongos { node: Node::router(plan)?, _data: data } })
    }

    /// Gives the engine the identity by which it knows the cluster. It is no shard all the same, since the
    /// config server does not know it.
    pub(super) async fn prepare(&self, config: &ReplicaSet) -> Result<()> {
        let Kind::Own(own) = &self.kind else { return Ok(()) };
        let primary = config.node(config.primary().await?);
        let reply = primary.run("config", doc! {"find": "version", "limit": 1}).await?;
        let found = reply.get_document("cursor")?.get_array("firstBatch")?;
        let version = found.first().and_then(|version| version.as_document());
        let id = version.and_then(|version| version.get("clusterId")).context("the cluster has no id")?;
        let identity = doc! {
            "shardName": "engine",
            "clusterId": id.clone(),
            "configsvrConnectionString": config.connection_string(),
        };
        own.engine.node(0).admin(doc! {"_addShard": 1, "shardIdentity": identity}).await?;
        Ok(())
    }

    /// `mongodb://host:port/`
    pub fn uri(&self) -> String {
        format!("mongodb://{}/", self.address())
    }

    /// `127.0.0.1:port`
    pub fn address(&self) -> &str {
        match &self.kind {
            Kind::Own(own) => &own.address,
            Kind::Mongos { node, .. } => node.address(),
        }
    }

    /// Whether it is a real mongos.
    pub fn is_mongos(&self) -> bool {
        matches!(self.kind, Kind::Mongos { .. })
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        match &self.kind {
            Kind::Own(own) => own.thread.lock().is_some(),
            Kind::Mongos { node, .. } => node.pid().is_some(),
        }
    }

    /// Starts it, if it is not running, and waits until it answers.
    pub async fn start(&self) -> Result<()> {
        let own = match &self.kind {
            Kind::Own(own) => own,
            Kind::Mongos { node, .. } => return node.start().await,
        };
        if self.is_running() {
            return Ok(());
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, own.port.number()))
            .with_context(|| format!("listening on {}", own.address))?;
        let thread = RouterThread::start(listener, own.servers.clone()).await;
        let thread = thread.map_err(|error| anyhow!("the router: {error:#}; {}", own.engine.log_tails()))?;
        *own.thread.lock() = Some(thread);
        Ok(())
    }

    /// Ends it at once, as a crash would: all connections break. What it remembers of writes is gone.
    pub async fn kill(&self) -> Result<()> {
        match &self.kind {
            Kind::Own(own) => {
                let thread = own.thread.lock().take();
                drop(thread);
                Ok(())
            }
            Kind::Mongos { node, .. } => node.kill9().await,
        }
    }

    /// Kills it and starts it again.
    pub async fn restart(&self) -> Result<()> {
        self.kill().await?;
        self.start().await
    }

    /// CPU time that it has used since it was started, with that of the server it makes use of.
    pub fn cpu_seconds(&self) -> f64 {
        match &self.kind {
            Kind::Own(own) => own.engine.cpu_seconds() + self.own_cpu_seconds(),
            Kind::Mongos { node, .. } => node.cpu_seconds().unwrap_or(0.0),
        }
    }

    /// Of [`Self::cpu_seconds`] what the router of the test bed uses itself; 0 with a real mongos.
    pub fn own_cpu_seconds(&self) -> f64 {
        match &self.kind {
            Kind::Own(own) => own.thread.lock().as_ref().and_then(RouterThread::cpu_seconds).unwrap_or(0.0),
            Kind::Mongos { .. } => 0.0,
        }
    }

    /// The server that does the routing for the test bed's own router; none with a real mongos. Tests that
    /// kill it see what a dying mongos does.
    pub fn engine(&self) -> Option<&ReplicaSet> {
        match &self.kind {
            Kind::Own(own) => Some(&own.engine),
            Kind::Mongos { .. } => None,
        }
    }
}
