//! What shadow reads cost the application: p99 at a quarter of saturation, with and without them, in pairs.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bson::RawDocumentBuf;
use futures::future::try_join_all;
use reshard_testbed::ReplicaSet;
use serde::Serialize;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::api::Api;
use crate::child::Proxy;
use crate::client::{Client, DATABASE, Operation, document};
use crate::report::median;
use crate::round::{self, DOCUMENTS, Plan, quantile};

const MIGRATION: &str = "bench";
const CONNECTIONS: usize = 64;
/// Of the throughput at saturation.
const LOAD: f64 = 0.25;
/// Percent of the reads.
const SHADOWED: u8 = 10;
/// How many times the p99 without shadow reads that with them may be.
const LIMIT: f64 = 1.1;
/// How long the copy and its verification may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// One pair, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Pair {
    without: f64,
    with: f64,
}

/// All of them.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Shadowing {
    /// Operations a second at saturation.
    saturation: f64,
    pairs: Vec<Pair>,
    ratio: f64,
    compared: u64,
}

/// Runs so many pairs, each part for so long.
pub(crate) fn measure(runtime: &Runtime, pairs: usize, part: Duration) -> Result<Shadowing> {
    let set = |name: &'static str| ReplicaSet::builder(name).cache_gb(0.5).start();
    let (old, new) = runtime.block_on(async { tokio::try_join!(set("old"), set("new")) })?;
    let folder = tempfile::Builder::new().prefix("reshard-bench-").tempdir()?;
    let proxy = runtime.block_on(async {
        let documents: Vec<RawDocumentBuf> = (0..DOCUMENTS).map(document).collect();
        let database = old.client().await?.database(DATABASE);
        let collection = database.collection::<RawDocumentBuf>(Operation::Find.collection());
        collection.insert_many(documents).await?;
        let proxy = Proxy::start(folder.path(), &old.uri(), Some(&new.uri())).await?;
        migrate(&proxy.api).await?;
        anyhow::Ok(proxy)
    })?;
    let address: SocketAddr = proxy.uri.trim_start_matches("mongodb://").trim_end_matches('/').parse()?;
    let plan =
        Plan { address, operation: Operation::Find, connections: CONNECTIONS, operations: 20 * CONNECTIONS };
    let server = old.node(0).pid().context("the server has ended")?;
    // The first is to warm up.
    round::run(plan, proxy.pid(), server)?;
    let saturated = round::run(Plan { operations: 300 * CONNECTIONS, ..plan }, proxy.pid(), server)?;
    #[expect(clippy::cast_precision_loss, reason = "counts of operations")]
    let saturation = saturated.operations as f64 / saturated.seconds;
    eprintln!("{saturation:.0} operations a second at saturation");
    runtime.block_on(pairs_at(&proxy.api, address, saturation, pairs, part))
}

async fn pairs_at(
    api: &Api,
    address: SocketAddr,
    saturation: f64,
    count: usize,
    part: Duration,
) -> Result<Shadowing> {
    let connect = (0..CONNECTIONS).map(|_| {
        let session = u128::from(rand::random::<u64>()) << 64 | u128::from(rand::random::<u64>());
        Client::connect(address, Operation::Find, session)
    });
    let mut clients = try_join_all(connect).await?;
    let mut pairs = Vec::with_capacity(count);
    for round in 0..count {
        let mut pair = Pair { without: 0.0, with: 0.0 };
        // Each comes first as often as the other.
        for with in [round % 2 == 1, round % 2 == 0] {
            api.shadow(MIGRATION, if with { SHADOWED } else { 0 }).await?;
            let p99 = at_rate(&mut clients, saturation * LOAD, part).await?;
            *(if with { &mut pair.with } else { &mut pair.without }) = p99;
        }
        eprintln!("p99 {:.0} us without, {:.0} us with shadow reads", pair.without, pair.with);
        pairs.push(pair);
    }
    let compared = api.diffs(MIGRATION).await?.shadow_compared;
    ensure!(compared > 0, "nothing was compared");
    let ratio = median(pairs.iter().map(|pair| pair.with / pair.without)).context("no pair")?;
    Ok(Shadowing { saturation, pairs, ratio, compared })
}

async fn migrate(api: &Api) -> Result<()> {
    let namespace = format!("{DATABASE}.{}", Operation::Find.collection());
    api.create(MIGRATION, &namespace, Value::Null).await?;
    api.start(MIGRATION).await?;
    let begun = Instant::now();
    loop {
        let now = api.progress(MIGRATION).await?;
        if now.phase == "synced" && now.lag_seconds == Some(0.0) {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "the copy does not end: {now:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The p99 in microseconds of so many operations a second. An operation that is due while all connections are busy
/// has waited since then.
async fn at_rate(clients: &mut [Client], rate: f64, time: Duration) -> Result<f64> {
    let (begun, next) = (Instant::now(), AtomicU64::new(0));
    let work = clients.iter_mut().map(async |client| {
        let mut taken = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            #[expect(clippy::cast_precision_loss, reason = "counts of operations")]
            let due = begun + Duration::from_secs_f64(number as f64 / rate);
            if due > begun + time {
                return anyhow::Ok(taken);
            }
            let is_late = Instant::now() > due;
            tokio::time::sleep_until(due.into()).await;
            // A timer that rings late is not the proxy's.
            let since = if is_late { due } else { Instant::now() };
            client.operate(round::id(Operation::Find), 0).await?;
            taken.push(since.elapsed());
        }
    });
    let mut all: Vec<Duration> = try_join_all(work).await?.into_iter().flatten().collect();
    all.sort_unstable();
    ensure!(!all.is_empty(), "no operation was done");
    Ok(quantile(&all, 99))
}

impl fmt::Display for Shadowing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { saturation, pairs, ratio, compared } = self;
        writeln!(
            out,
            "{SHADOWED} % of the reads shadowed, at {:.0} finds a second ({:.0} % of saturation); {compared} compared",
            saturation * LOAD,
            LOAD * 100.0
        )?;
        for Pair { without, with } in pairs {
            writeln!(out, "  p99 {without:>8.0} us without, {with:>8.0} us with: {:.2}", with / without)?;
        }
        let verdict = if *ratio <= LIMIT { "met" } else { "missed" };
        write!(out, "median of the ratios {ratio:.2}; at most {LIMIT:.2}: {verdict}")
    }
}
