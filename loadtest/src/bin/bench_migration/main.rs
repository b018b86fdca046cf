//! How fast a migration copies, how long writes wait when they move, and both beside the built-in way to another
//! shard key.

#[allow(dead_code, reason = "the benchmark needs only some of it")]
#[path = "../demo/api.rs"]
mod api;
mod backfill;
#[allow(dead_code, reason = "the benchmark needs only some of it")]
#[path = "../demo/child.rs"]
mod child;
mod moves;
mod native;
mod proxied;
mod raw_copy;
mod report;
mod sharded;
mod sharded_report;
mod storage;
#[allow(dead_code, reason = "the benchmark needs only some of it")]
#[path = "../bench/usage.rs"]
mod usage;
#[path = "../bench/wire.rs"]
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bson::{Document, doc};
use clap::Parser;
use mongodb::{Client, IndexModel};
use reshard_loadtest::{Load, LoadConfig, Profile};
use reshard_testbed::ReplicaSet;
use serde::Serialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::api::Api;
use crate::child::Proxy;
use crate::raw_copy::{Copied, Copy};
use crate::report::{Report, Run};
use crate::sharded::Plan;
use crate::sharded_report::ShardedReport;

const DATABASE: &str = "shop";
const COLLECTION: &str = "orders";
const NAMESPACE: &str = "shop.orders";
const SCRATCH: &str = "scratch";
const OPLOG_MB: u32 = 4096;
/// Lets the servers write back what the copy before has left.
const REST: Duration = Duration::from_secs(2);
/// How long writes to sharded clusters are looked at before and after.
const CALM: Duration = Duration::from_secs(10);
const CALM_QUICK: Duration = Duration::from_secs(2);

/// Compares a migration's copy with a plain copy of the same documents, in turns within one run, and then moves
/// writes to and fro under load and looks how long they wait. Then gives a sharded collection another shard key, by
/// MongoDB's reshardCollection and by a migration to a second cluster, in turns, under the same load.
#[derive(Parser)]
#[command(name = "bench-migration")]
struct Args {
    /// Documents of about 1 KB.
    #[arg(long, default_value_t = 200_000)]
    documents: usize,
    /// Copies of each kind.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Operations per second while writes move.
    #[arg(long, default_value_t = 400.0)]
    rate: f64,
    /// Writers of that load.
    #[arg(long, default_value_t = 8)]
    writers: usize,
    /// Few documents: shows that everything works, and measures little.
    #[arg(long)]
    quick: bool,
    /// Only the copies between replica sets.
    #[arg(long)]
    copy_only: bool,
    /// Nothing on sharded clusters.
    #[arg(long, conflicts_with = "only_sharded")]
    skip_sharded: bool,
    /// Nothing between replica sets.
    #[arg(long, conflicts_with = "copy_only")]
    only_sharded: bool,
    /// Documents of about 1 KB that get another shard key.
    #[arg(long, default_value_t = 100_000)]
    sharded_documents: usize,
    /// Changes of the shard key in each way.
    #[arg(long, default_value_t = 2)]
    sharded_rounds: u32,
    /// Writes per second meanwhile.
    #[arg(long, default_value_t = 200.0)]
    sharded_rate: f64,
    /// Write the results to this file too.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = Args::parse();
    if args.quick {
        args.documents = args.documents.min(10_000);
        args.rounds = 1;
        args.sharded_documents = args.sharded_documents.min(5_000);
        args.sharded_rounds = 1;
    }
    ensure!(args.rounds > 0 && args.sharded_rounds > 0, "nothing to do: rounds must be above 0");
    let mut results = Results::default();
    if !args.only_sharded {
        let report = Box::pin(replica_sets(&args)).await?;
        println!("{report}");
        results.replica_sets = Some(report);
    }
    if !args.skip_sharded && !args.copy_only {
        let report = Box::pin(sharded::run(&args.plan())).await?;
        println!("{report}");
        results.sharded = Some(report);
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&results)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// What was run.
#[derive(Default, Serialize)]
struct Results {
    replica_sets: Option<Report>,
    sharded: Option<ShardedReport>,
}

impl Args {
    fn plan(&self) -> Plan {
        Plan {
            documents: self.sharded_documents,
            rounds: self.sharded_rounds,
            rate: self.sharded_rate,
            calm: if self.quick { CALM_QUICK } else { CALM },
        }
    }
}

async fn replica_sets(args: &Args) -> Result<Report> {
    let mut bench = Bench::start(args).await?;
    let report = bench.run(args).await;
    if report.is_err() {
        eprintln!("The last lines of reshard's log:\n{}", bench.proxy.log_tail());
    }
    bench.proxy.end().await;
    report
}

struct Bench {
    proxy: Proxy,
    old: ReplicaSet,
    new: ReplicaSet,
    to_new: Client,
    _folder: TempDir,
}

fn load(args: &Args, uri: String) -> LoadConfig {
    LoadConfig {
        uri,
        database: DATABASE.into(),
        collection: COLLECTION.into(),
        profile: Profile::Keyed,
        workers: args.writers,
        rate: Some(args.rate),
        documents: args.documents,
        document_size: 1_000,
        ..LoadConfig::default()
    }
}

impl Bench {
    async fn start(args: &Args) -> Result<Self> {
        child::program()?;
        let set = |name: &str| ReplicaSet::builder(name).cache_gb(1.0).oplog_mb(OPLOG_MB).start();
        let (old, new) = tokio::try_join!(set("old"), set("new"))?;
        eprintln!("{} documents for old", args.documents);
        Load::prepare(&load(args, old.uri())).await?;
        let folder = tempfile::Builder::new().prefix("reshard-bench-").tempdir()?;
        let proxy = Proxy::start(folder.path(), &old.uri(), Some(&new.uri())).await?;
        let to_new = new.client().await?;
        Ok(Self { proxy, old, new, to_new, _folder: folder })
    }

    fn api(&self) -> &Api {
        &self.proxy.api
    }

    async fn run(&self, args: &Args) -> Result<Report> {
        let mut runs = Vec::new();
        for round in 1..=args.rounds {
            eprintln!("copies: {round} of {}", args.rounds);
            tokio::time::sleep(REST).await;
            runs.push(Run::new(true, self.plain_copy().await?));
            tokio::time::sleep(REST).await;
            let migration = format!("copy-{round}");
            runs.push(Run::new(false, backfill::run(self.api(), &migration, NAMESPACE, Value::Null).await?));
            backfill::abort(self.api(), &migration, &self.to_new, NAMESPACE).await?;
        }
        if args.copy_only {
            return Ok(Report::new(runs, Vec::new(), 0.0, true));
        }
        eprintln!("a migration under load");
        backfill::run(self.api(), "moves", NAMESPACE, Value::Null).await?;
        moves::until_free(self.api(), "moves").await?;
        let moves = moves::run(self.api(), "moves", load(args, self.proxy.uri.clone())).await?;
        let proof = moves.outcome.verify(&self.proxy.uri).await?;
        if !proof.is_clean() {
            eprintln!("{proof}");
        }
        Ok(Report::new(runs, moves.moved, moves.operations, proof.is_clean()))
    }

    /// Into a collection with the same indexes, which is dropped again.
    async fn plain_copy(&self) -> Result<Copied> {
        let scratch = self.to_new.database(DATABASE).collection::<Document>(SCRATCH);
        scratch.drop().await?;
        let index = IndexModel::builder().keys(doc! { "group": 1 }).build();
        scratch.create_index(index).await?;
        let (from, to) = (self.old.node(0).address().to_owned(), self.new.node(0).address().to_owned());
        let copied = tokio::task::spawn_blocking(move || {
            let copy = Copy { from: &from, to: &to, database: DATABASE, source: COLLECTION, target: SCRATCH };
            copy.run()
        });
        let copied = copied.await??;
        let found = scratch.estimated_document_count().await?;
        ensure!(found == copied.documents, "{found} documents, not {}", copied.documents);
        scratch.drop().await?;
        Ok(copied)
    }
}
