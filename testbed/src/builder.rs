//! What a replica set is to be like.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use parking_lot::RwLock;

use crate::access::{Access, User};
use crate::binary::{Mongod, Version};
use crate::data_dir::DataDir;
use crate::process::{Node, Plan};
use crate::replica_set::ReplicaSet;
use crate::tls::TlsFiles;

const KEY_FILE: &str = "keyfile";
const NOOP_INTERVAL: &str = "periodicNoopIntervalSecs";
/// Signatures of cluster times are looked at always.
const VALIDATE_CLUSTER_TIME: &str = "failpoint.alwaysValidateClientsClusterTime={\"mode\":\"alwaysOn\"}";

/// Options that servers of every kind are started with.
#[derive(Clone, Debug)]
pub(crate) struct ServerOptions {
    pub(crate) cache_gb: f64,
    pub(crate) params: BTreeMap<String, String>,
    pub(crate) majority_reads: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        let params = [("enableTestCommands", "1"), ("diagnosticDataCollectionEnabled", "false")];
        Self {
            cache_gb: 0.25,
            params: params.into_iter().map(|(key, value)| (String::from(key), String::from(value))).collect(),
            majority_reads: true,
        }
    }
}

impl ServerOptions {
    pub(crate) fn args(&self, mongod: &Mongod) -> Vec<String> {
        let mut args = vec![
            String::from("--wiredTigerCacheSizeGB"),
            self.cache_gb.to_string(),
            // Journal files of 100 MB, laid out ahead, would fill the memory the data lies in.
            String::from("--wiredTigerEngineConfigString"),
            String::from("log=(file_max=32MB,prealloc=false)"),
        ];
        let mut params = self.params.clone();
        if mongod.at_least(5, 0) {
            // Else a primary that is stopped waits up to 15 s for someone to take over.
            params
                .entry(String::from("shutdownTimeoutMillisForSignaledShutdown"))
                .or_insert(String::from("1000"));
        }
        if !self.majority_reads {
            args.extend(["--enableMajorityReadConcern", "false"].map(String::from));
        }
        for (key, value) in params {
            args.push(String::from("--setParameter"));
            args.push(format!("{key}={value}"));
        }
        args
    }
}

/// What a replica set is in a sharded cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// No part of one.
    Alone,
    /// Its config server.
    Config,
    /// A shard of it.
    Shard,
}

/// Builds a [`ReplicaSet`]; see [`ReplicaSet::builder`].
#[derive(Clone, Debug)]
pub struct ReplicaSetBuilder {
    name: String,
    nodes: usize,
    version: Version,
    user: Option<User>,
    tls: bool,
    oplog_mb: u32,
    checkpoint_seconds: Option<u32>,
    journal_ms: Option<u32>,
    election_timeout_ms: i32,
    role: Role,
    server: ServerOptions,
}

impl ReplicaSetBuilder {
    pub(crate) fn new(name: &str) -> Self {
        let mut server = ServerOptions::default();
        // Else the time of an idle cluster moves on every 10 s only, and tests that wait for it with it.
        server.params.insert(NOOP_INTERVAL.to_owned(), String::from("1"));
        Self {
            name: name.to_owned(),
            nodes: 1,
            version: Version::Any,
            user: None,
            tls: false,
            oplog_mb: 200,
            checkpoint_seconds: None,
            journal_ms: None,
            election_timeout_ms: 2000,
            role: Role::Alone,
            server,
        }
    }

    /// Number of members (1 to 7); 1 if not set.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Version of mongod; any if not set.
    #[must_use]
    pub fn version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// Turns access control on, with one user who has the role `root`.
    #[must_use]
    pub fn auth(mut self, user: &str, password: &str) -> Self {
        self.user = Some(User { name: user.to_owned(), password: password.to_owned() });
        self
    }

    /// Requires TLS on all connections, with a certificate of a throw-away authority.
    #[must_use]
    pub fn tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// Size of the oplog; 200 MB if not set.
    #[must_use]
    pub fn oplog_mb(mut self, megabytes: u32) -> Self {
        self.oplog_mb = megabytes;
        self
    }

    /// How often the storage engine makes a checkpoint; 60 s if not set. The oplog is not cut short of the last.
    #[must_use]
    pub fn checkpoint_seconds(mut self, seconds: u32) -> Self {
        self.checkpoint_seconds = Some(seconds);
        self
    }

    /// How often the journal is written where nobody asks for it; mongod's 100 ms if not set.
    pub(crate) fn journal_ms(mut self, milliseconds: u32) -> Self {
        self.journal_ms = Some(milliseconds);
        self
    }

    /// Size of the storage engine's cache of each member; 0.25 if not set, which is the least there is.
    #[must_use]
    pub fn cache_gb(mut self, gigabytes: f64) -> Self {
        self.server.cache_gb = gigabytes;
        self
    }

    /// A server parameter (`--setParameter`).
    #[must_use]
    pub fn param(mut self, name: &str, value: &str) -> Self {
        self.server.params.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Without reads of what the majority has (`--enableMajorityReadConcern false`; up to 4.4).
    #[must_use]
    pub fn without_majority_reads(mut self) -> Self {
        self.server.majority_reads = false;
        self
    }

    /// After how long without a primary the others elect a new one; 2 s if not set.
    #[must_use]
    pub fn election_timeout_ms(mut self, milliseconds: i32) -> Self {
        self.election_timeout_ms = milliseconds;
        self
    }

    pub(crate) fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    /// How often an idle primary moves the time on; `None` leaves it to mongod (10 s).
    pub(crate) fn noop_interval(mut self, seconds: Option<u32>) -> Self {
        match seconds {
            Some(seconds) => self.server.params.insert(NOOP_INTERVAL.to_owned(), seconds.to_string()),
            None => self.server.params.remove(NOOP_INTERVAL),
        };
        self
    }

    /// Starts the set and waits until it has a primary and all members are in order.
    pub async fn start(self) -> Result<ReplicaSet> {
        let name = self.name.clone();
        Box::pin(self.start_set()).await.with_context(|| format!("starting the replica set {name}"))
    }

    async fn start_set(self) -> Result<ReplicaSet> {
        ensure!((1..=7).contains(&self.nodes), "1 to 7 nodes, not {}", self.nodes);
        let mongod = Mongod::find(self.version).await?;
        let data = DataDir::create(&self.name)?;
        let tls = if self.tls { Some(TlsFiles::generate(data.path())?) } else { None };
        // The user is added to it once it exists in the database.
        let access = Arc::new(RwLock::new(Access { user: None, tls }));
        let args = self.args(&mongod, &access.read(), data.path())?;
        let launches = (0..self.nodes).map(|index| {
            Node::launch(Plan {
                name: format!("{}-{index}", self.name),
                mongod: mongod.clone(),
                folder: data.path(),
                args: args.clone(),
                access: access.clone(),
            })
        });
        let nodes = futures::future::try_join_all(launches).await?;
        let set = ReplicaSet::new(self.name, nodes, access, data);
        set.initiate(self.election_timeout_ms, self.role, self.user).await?;
        Ok(set)
    }

    fn args(&self, mongod: &Mongod, access: &Access, folder: &Path) -> Result<Vec<String>> {
        let mut args = vec![String::from("--replSet"), self.name.clone()];
        args.extend([String::from("--oplogSize"), self.oplog_mb.to_string()]);
        if let Some(seconds) = self.checkpoint_seconds {
            args.extend([String::from("--syncdelay"), seconds.to_string()]);
        }
        if let Some(milliseconds) = self.journal_ms {
            args.extend([String::from("--journalCommitInterval"), milliseconds.to_string()]);
        }
        match self.role {
            Role::Alone => {}
            Role::Config => args.push(String::from("--configsvr")),
            Role::Shard => args.push(String::from("--shardsvr")),
        }
        if self.user.is_some() {
            let path = folder.join(KEY_FILE);
            fs::write(&path, "dGhyb3ctYXdheS1rZXktb2YtYS10ZXN0LWJlZC1vbi1sb29wYmFjaw==")?;
            // mongod refuses a key that others may read.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o400))?;
            args.extend([String::from("--keyFile"), path.to_string_lossy().into_owned()]);
        }
        // Else the time of another cluster is taken without a look at its signature, as long as it is not ahead.
        let tests = self.server.params.get("enableTestCommands").is_some_and(|value| value == "1");
        if tests && mongod.at_least(5, 0) {
            args.extend([String::from("--setParameter"), String::from(VALIDATE_CLUSTER_TIME)]);
        }
        if let Some(tls) = &access.tls {
            args.extend(
                ["--tlsMode", "requireTLS", "--tlsAllowConnectionsWithoutCertificates"].map(String::from),
            );
            args.extend([String::from("--tlsCertificateKeyFile"), tls.server.to_string_lossy().into_owned()]);
            args.extend([String::from("--tlsCAFile"), tls.ca.to_string_lossy().into_owned()]);
        }
        args.extend(self.server.args(mongod));
        Ok(args)
    }
}
