//! Another shard key for the same data under the same load: by the built-in `reshardCollection`, and by a
//! migration to a second cluster, in turns.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bson::{Document, doc};
use reshard_loadtest::{KeyFields, Load, LoadConfig, Mix, OpKind, Profile};
use reshard_testbed::ShardedCluster;

use crate::sharded_report::{Figures, ShardedReport, Way};
use crate::storage::{Storage, whole};
use crate::{COLLECTION, DATABASE, NAMESPACE, native, proxied};

/// Names of the load's phases.
pub(crate) const WARM_UP: &str = "warm-up";
pub(crate) const BEFORE: &str = "before";
pub(crate) const COPYING: &str = "copying";
pub(crate) const SWITCHING: &str = "switching";
pub(crate) const AFTER: &str = "after";

const OPLOG_MB: u32 = 1024;
const CACHE_GB: f64 = 0.5;
const CHUNKS: i32 = 4;
const WARMING: Duration = Duration::from_secs(2);
/// How long writes that are due may wait for a writer once the key has changed.
const BACKLOG: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);

/// What is compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) documents: usize,
    pub(crate) rounds: u32,
    /// Writes per second.
    pub(crate) rate: f64,
    /// How long the load is looked at before and after.
    pub(crate) calm: Duration,
}

/// Writes of single documents, each named by its `_id` and both shard keys.
const WRITES: [(OpKind, u32); 7] = [
    (OpKind::Insert, 20),
    (OpKind::Inc, 20),
    (OpKind::Set, 20),
    (OpKind::Push, 10),
    (OpKind::Upsert, 10),
    (OpKind::Replace, 10),
    (OpKind::Delete, 10),
];

/// Enough that a queue of arrivals is soon worked off.
const WRITERS: usize = 32;

/// The key that both ways end with.
pub(crate) fn new_key() -> Document {
    doc! { "customer_id": 1, "order_id": 1 }
}

/// All rounds.
pub(crate) async fn run(plan: &Plan) -> Result<ShardedReport> {
    let mut runs = Vec::new();
    for round in 1..=plan.rounds {
        eprintln!("another shard key, round {round} of {}: reshardCollection", plan.rounds);
        runs.push(Box::pin(native::run(plan)).await.context(Way::Native.name())?);
        eprintln!("another shard key, round {round} of {}: reshard", plan.rounds);
        runs.push(Box::pin(proxied::run(plan)).await.context(Way::Reshard.name())?);
    }
    Ok(ShardedReport::new(plan.rate, runs))
}

/// Two shards, nothing in them.
pub(crate) async fn cluster() -> Result<ShardedCluster> {
    ShardedCluster::builder().oplog_mb(OPLOG_MB).cache_gb(CACHE_GB).start().await
}

/// The orders, sharded by a hash of `order_id`.
pub(crate) async fn fill(plan: &Plan, cluster: &ShardedCluster) -> Result<()> {
    cluster.enable_sharding(DATABASE, 0).await?;
    let command = doc! {
        "shardCollection": NAMESPACE, "key": { "order_id": "hashed" }, "numInitialChunks": CHUNKS,
    };
    cluster.admin(command).await?;
    Load::prepare(&load(plan, cluster.uri())).await
}

fn load(plan: &Plan, uri: String) -> LoadConfig {
    LoadConfig {
        uri,
        database: DATABASE.into(),
        collection: COLLECTION.into(),
        profile: Profile::Keyed,
        key_fields: KeyFields::CustomerOrder,
        mix: Some(Mix::only(&WRITES)),
        workers: WRITERS,
        rate: Some(plan.rate),
        open_loop: true,
        documents: plan.documents,
        document_size: 1_000,
        first_phase: WARM_UP.into(),
        ..LoadConfig::default()
    }
}

/// What a change of the key is measured on.
pub(crate) struct Ground<'a> {
    pub(crate) way: Way,
    /// All servers. The first cluster has the orders.
    pub(crate) clusters: &'a [&'a ShardedCluster],
    /// What the load goes to.
    pub(crate) uri: &'a str,
}

impl Ground<'_> {
    /// Changes the key under load. `change` sets the phase when the copy is done, and says how long that took;
    /// `proxy` says what CPU time there is beside that of the servers.
    pub(crate) async fn measure(
        &self,
        plan: &Plan,
        proxy: impl Fn() -> Result<f64>,
        change: impl AsyncFnOnce(&Load) -> Result<Duration>,
    ) -> Result<Figures> {
        let (documents, bytes) = size(self.clusters[0]).await?;
        let storage = Storage::of(self.clusters).await?;
        let load = Load::start(load(plan, self.uri.to_owned())).await?;
        tokio::time::sleep(WARMING).await;
        load.set_phase(BEFORE);
        tokio::time::sleep(plan.calm).await;

        load.set_phase(COPYING);
        let (servers, of_proxy, begun) = (self.cpu_seconds(), proxy()?, Instant::now());
        let (copy, growth) = storage.growth_while(change(&load)).await?;
        let (took, of_proxy) = (begun.elapsed(), proxy()? - of_proxy);
        let servers = self.cpu_seconds() - servers;

        // Writes that had to wait count where they waited.
        let worked_off = until_worked_off(&load).await;
        load.set_phase(AFTER);
        tokio::time::sleep(plan.calm).await;
        let outcome = load.stop().await;
        let proof = outcome.verify(self.uri).await?;
        if !proof.is_clean() {
            eprintln!("{}: {proof}", self.way.name());
        }
        let found = self.clusters[self.clusters.len() - 1].collection_entry(NAMESPACE).await?;
        ensure!(
            keys(&found)? == keys(&doc! { "key": new_key() })?,
            "the shard key is not the new one: {found}"
        );
        let mut figures = Figures::new(self.way, documents, bytes, copy, took);
        figures.add_costs(servers + of_proxy, of_proxy, growth);
        figures.add_load(&outcome.stats, worked_off, proof.is_clean())?;
        Ok(figures)
    }

    fn cpu_seconds(&self) -> f64 {
        self.clusters.iter().map(|cluster| cluster.cpu_seconds()).sum()
    }
}

/// Until no arrival waits for a writer. False: not in the time that there is, so that more arrives than is done.
async fn until_worked_off(load: &Load) -> bool {
    let begun = Instant::now();
    while load.snapshot().backlog > 0 {
        if begun.elapsed() > BACKLOG {
            return false;
        }
        tokio::time::sleep(LOOK).await;
    }
    true
}

/// Documents, and their bytes.
async fn size(cluster: &ShardedCluster) -> Result<(u64, u64)> {
    let stats = cluster.run(DATABASE, doc! { "collStats": COLLECTION }).await?;
    let (documents, bytes) = (whole(stats.get("count")), whole(stats.get("size")));
    ensure!(documents > 0 && bytes > 0, "{NAMESPACE} is empty: {stats}");
    Ok((documents, bytes))
}

/// The fields of the shard key of an entry of `config.collections`; numbers there are of any type.
fn keys(entry: &Document) -> Result<Vec<String>> {
    Ok(entry.get_document("key").context("no shard key")?.keys().cloned().collect())
}
