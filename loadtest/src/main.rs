//! The load generator as a program.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use reshard_loadtest::{Comparison, KeyFields, Load, LoadConfig, Mix, Profile, Report, Stats, compare};
use serde::Serialize;

#[derive(Parser)]
#[command(
    about = "Load for any MongoDB address, with proof that every acknowledged write took effect exactly once"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fills the collection, runs the load, and checks the result. Exit code 0:
    /// clean, 1: violations, 2: it could not run.
    Run(Box<RunArgs>),
    /// Compares a collection on two clusters byte by byte.
    Compare {
        /// One side.
        #[arg(long)]
        uri: String,
        /// The other side.
        #[arg(long)]
        with: String,
        /// database.collection
        #[arg(long)]
        namespace: String,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct RunArgs {
    /// Address the load is sent to; further ones share the workers.
    #[arg(long, required = true)]
    uri: Vec<String>,
    #[arg(long, default_value = "loadtest")]
    database: String,
    #[arg(long, default_value = "items")]
    collection: String,
    #[arg(long, value_enum, default_value = "keyed")]
    profile: Profile,
    /// Exactly these weights, as in inc=10,push=5.
    #[arg(long)]
    mix: Option<Mix>,
    #[arg(long, default_value_t = 16)]
    workers: usize,
    /// Operations per second of all workers.
    #[arg(long)]
    rate: Option<f64>,
    /// Arrivals at the fixed rate; latency counts from the intended start.
    #[arg(long, requires = "rate")]
    open_loop: bool,
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
    /// Documents to preload.
    #[arg(long, default_value_t = 10_000)]
    documents: usize,
    /// Approximate bytes of one document.
    #[arg(long, default_value_t = 1_000)]
    document_size: usize,
    #[arg(long, default_value_t = 50)]
    hot_keys: usize,
    #[arg(long, default_value_t = 200)]
    own_keys: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// By what operations name a document; a sharded collection needs its whole shard key named.
    #[arg(long, value_enum, default_value = "id")]
    key_fields: KeyFields,
    /// Drop the collection first.
    #[arg(long)]
    drop: bool,
    /// The collection is as `run` or `Load::prepare` with this seed filled it.
    #[arg(long)]
    no_prepare: bool,
    /// Fill the collection at this address instead of the load's.
    #[arg(long)]
    prepare_uri: Option<String>,
    /// Documents of others are no violation.
    #[arg(long)]
    allow_foreign: bool,
    /// Do not check what reads return.
    #[arg(long)]
    no_read_checks: bool,
    /// Address the result is read from; default: the load's.
    #[arg(long)]
    verify_uri: Option<String>,
    /// Compare the collection with that on another cluster at the end.
    #[arg(long)]
    compare_with: Option<String>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Summary {
    clean: bool,
    stats: Stats,
    report: Report,
    comparison: Option<Comparison>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => Box::pin(run(*args)).await,
        Command::Compare { uri, with, namespace, json } => compare_only(&uri, &with, &namespace, json).await,
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn config(args: &RunArgs) -> LoadConfig {
    LoadConfig {
        uri: args.uri.first().cloned().unwrap_or_default(),
        more_uris: args.uri.iter().skip(1).cloned().collect(),
        database: args.database.clone(),
        collection: args.collection.clone(),
        profile: args.profile,
        mix: args.mix.clone(),
        workers: args.workers,
        rate: args.rate,
        open_loop: args.open_loop,
        documents: args.documents,
        document_size: args.document_size,
        hot_keys: args.hot_keys,
        own_keys_per_worker: args.own_keys,
        seed: args.seed,
        key_fields: args.key_fields,
        drop_first: args.drop,
        allow_foreign: args.allow_foreign,
        check_reads: !args.no_read_checks,
        ..LoadConfig::default()
    }
}

async fn run(args: RunArgs) -> Result<bool> {
    let config = config(&args);
    if !args.no_prepare {
        let start = Instant::now();
        let mut target = config.clone();
        if let Some(uri) = &args.prepare_uri {
            target.uri.clone_from(uri);
        }
        Load::prepare(&target).await?;
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("prepared {} with {} documents in {seconds:.1} s", config.namespace(), config.documents);
    }
    let verify_uri = args.verify_uri.clone().unwrap_or_else(|| config.uri.clone());
    let namespace = config.namespace();
    let load = Load::start(config).await?;
    watch(&load, Duration::from_secs_f64(args.seconds.max(0.0))).await;
    let outcome = load.stop().await;
    let report = outcome.verify(&verify_uri).await?;
    let comparison = match &args.compare_with {
        Some(other) => Some(compare(&verify_uri, other, &namespace).await?),
        None => None,
    };
    let clean = report.is_clean() && comparison.as_ref().is_none_or(Comparison::is_equal);
    let summary = Summary { clean, stats: outcome.stats, report, comparison };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        println!("{}\n{}", summary.stats, summary.report);
        if let Some(comparison) = &summary.comparison {
            println!("{comparison}");
        }
    }
    Ok(clean)
}

/// A line each second, until the time is over or Ctrl-C.
async fn watch(load: &Load, duration: Duration) {
    let end = tokio::time::Instant::now() + duration;
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.tick().await;
    let mut before = 0;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(end) => return,
            _ = tokio::signal::ctrl_c() => return,
            _ = ticks.tick() => {}
        }
        let now = load.snapshot();
        let done = now.total.operations;
        eprintln!(
            "{:>5.0} s {:>7} ops/s  p99 {:>8.2} ms  max {:>8.1} ms  oldest {:>7.1} ms  errors {}  unknown {}  violations {}{}",
            now.seconds,
            done - before,
            now.total.latency.p99,
            now.total.latency.max,
            now.oldest_outstanding_ms,
            now.errors.total,
            now.unknown,
            now.violations,
            if now.backlog > 0 { format!("  backlog {}", now.backlog) } else { String::new() },
        );
        before = done;
    }
}

async fn compare_only(uri: &str, with: &str, namespace: &str, json: bool) -> Result<bool> {
    let comparison = compare(uri, with, namespace).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&comparison)?);
    } else {
        println!("{comparison}");
    }
    Ok(comparison.is_equal())
}
