//! Both clusters of a migration, for tests on real servers.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use async_trait::async_trait;
use bson::{Document, RawDocumentBuf, doc};
use reshard::cluster::command::{Commands, Reply, Request, SendError, SharedCluster};
use reshard::cluster::{Cluster, Settings};
use reshard::migration::control::{PreflightReport, Severity};
use reshard::model::side::PerSide;
use reshard::shutdown::Tasks;
use reshard_testbed::{ReplicaSet, Version};

/// Connects without waiting longer than the test wants to.
pub(crate) async fn connect(uri: &str, tasks: &Tasks) -> Result<SharedCluster> {
    let cluster = Cluster::connect(Settings::parse(uri).await?.app_name("reshard-test"), tasks).await?;
    Ok(cluster.pools(16))
}

/// Two replica sets of one member and the ways to them.
pub(crate) struct Pair {
    pub(crate) sets: PerSide<ReplicaSet>,
    pub(crate) clusters: PerSide<SharedCluster>,
    pub(crate) tasks: Tasks,
}

impl Pair {
    pub(crate) async fn start() -> Result<Self> {
        Self::of_versions(Version::Any, Version::Any).await
    }

    pub(crate) async fn of_versions(old: Version, new: Version) -> Result<Self> {
        let start = |name, version| ReplicaSet::builder(name).version(version).start();
        let (old, new) = tokio::try_join!(start("old", old), start("new", new))?;
        Self::of(old, new).await
    }

    pub(crate) async fn of(old: ReplicaSet, new: ReplicaSet) -> Result<Self> {
        let tasks = Tasks::default();
        let clusters =
            PerSide { old: connect(&old.uri(), &tasks).await?, new: connect(&new.uri(), &tasks).await? };
        Ok(Self { sets: PerSide { old, new }, clusters, tasks })
    }

    pub(crate) async fn on_old(&self, command: Document) -> Result<Document> {
        run(&*self.clusters.old, "shop", &command).await
    }

    pub(crate) async fn on_new(&self, command: Document) -> Result<Document> {
        run(&*self.clusters.new, "shop", &command).await
    }

    /// Hashes of all data of the test's database on both sides.
    pub(crate) async fn hashes(&self) -> Result<[Document; 2]> {
        let mut hashes = [self.on_old(doc! { "dbHash": 1 }).await?, self.on_new(doc! { "dbHash": 1 }).await?];
        for hash in &mut hashes {
            hash.remove("timeMillis");
        }
        Ok(hashes)
    }
}

/// Runs a command that must succeed, write errors included.
pub(crate) async fn run(cluster: &dyn Commands, database: &str, command: &Document) -> Result<Document> {
    let reply = cluster.run(Request::new(database, RawDocumentBuf::try_from(command)?)).await?;
    if let Some(error) = reply.error() {
        anyhow::bail!("{command}: {error}");
    }
    let body = Document::try_from(&*reply.body)?;
    ensure!(!body.contains_key("writeErrors"), "{command}: {body}");
    Ok(body)
}

/// Changes the reply to a command of this name.
type Change = Box<dyn Fn(&str, &mut Document) + Send + Sync>;

/// A cluster whose answers are changed on their way, and that refuses to be changed.
pub(crate) struct Looking {
    cluster: SharedCluster,
    change: Change,
}

const READS: [&str; 13] = [
    "hello",
    "isMaster",
    "find",
    "getMore",
    "listCollections",
    "listIndexes",
    "listDatabases",
    "getParameter",
    "replSetGetConfig",
    "collStats",
    "getDefaultRWConcern",
    "connectionStatus",
    "ping",
];

impl Looking {
    pub(crate) fn at(cluster: &SharedCluster) -> SharedCluster {
        Arc::new(Self { cluster: cluster.clone(), change: Box::new(|_, _| ()) })
    }

    /// `change` gets each reply to `command`.
    pub(crate) fn changed(
        cluster: &SharedCluster,
        command: &'static str,
        change: impl Fn(&mut Document) + Send + Sync + 'static,
    ) -> SharedCluster {
        let change: Change = Box::new(move |name, reply| {
            if name == command {
                change(reply);
            }
        });
        Arc::new(Self { cluster: cluster.clone(), change })
    }
}

fn name_of(request: &Request) -> String {
    request
        .body
        .iter()
        .next()
        .and_then(Result::ok)
        .map(|(name, _)| name.as_str().to_owned())
        .unwrap_or_default()
}

#[async_trait]
impl Commands for Looking {
    async fn run(&self, request: Request) -> Result<Reply, SendError> {
        let name = name_of(&request);
        assert!(READS.contains(&name.as_str()), "{name} is sent by something that may only look");
        let mut reply = self.cluster.run(request).await?;
        let mut body = Document::try_from(&*reply.body).expect("a readable reply");
        (self.change)(&name, &mut body);
        reply.body = RawDocumentBuf::try_from(&body).expect("a document");
        Ok(reply)
    }
}

/// A cluster that goes away after so many changes of its catalogue.
pub(crate) struct Dying {
    pub(crate) cluster: SharedCluster,
    pub(crate) left: Arc<AtomicUsize>,
}

#[async_trait]
impl Commands for Dying {
    async fn run(&self, request: Request) -> Result<Reply, SendError> {
        if !READS.contains(&name_of(&request).as_str()) {
            let spent =
                self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            if spent.is_err() {
                return Err(SendError::Unknown("gone".into()));
            }
        }
        self.cluster.run(request).await
    }
}

/// The codes of all refusals, each with its namespace.
pub(crate) fn refusals(report: &PreflightReport) -> Vec<(String, String)> {
    codes(report, Severity::Refused)
}

/// The codes of all findings of one severity, each with its namespace.
pub(crate) fn codes(report: &PreflightReport, severity: Severity) -> Vec<(String, String)> {
    let found = report.findings.iter().filter(|finding| finding.severity == severity);
    found.map(|finding| (finding.code.clone(), finding.namespace.clone())).collect()
}

/// Waits for something that takes a moment.
pub(crate) async fn eventually(what: &str, mut check: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..300 {
        if check().await? {
            return Ok(());
        }
        // Between two looks.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("{what} did not come true within 15 s")
}
