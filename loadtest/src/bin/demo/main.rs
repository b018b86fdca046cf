//! A whole migration under load in the terminal, between two real clusters, and proof that nothing was lost.
//! Steers the proxy over its admin API only.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

mod acts;
mod api;
mod child;
mod cluster;
mod load;
mod moves;
mod proof;
mod scene;
mod screen;
mod script;
mod served;
mod shadow;
mod shift;
mod spread;
mod summary;

use cluster::Topology;
use load::{BOTH, ORDERS};
use screen::Screen;

/// Changes the shard key of a collection under load by moving it from one sharded cluster to another, and proves
/// that nothing was lost.
#[derive(Debug, Clone, Parser)]
#[command(name = "demo", version)]
struct Args {
    /// What moves to what
    #[arg(long, value_enum, default_value = "sharded")]
    topology: Topology,
    /// Documents of shop.orders, which moves by percent
    #[arg(long, default_value_t = 50_000)]
    documents: usize,
    /// Documents of shop.customers, which has a unique index and transactions and moves in one step; between
    /// replica sets only
    #[arg(long, default_value_t = 20_000)]
    customers: usize,
    /// Members of each replica set, and of each shard
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=7))]
    nodes: u8,
    /// Operations each second, over all collections
    #[arg(long, default_value_t = 400.0, value_parser = positive)]
    rate: f64,
    /// Less of everything: under a minute
    #[arg(long)]
    quick: bool,
    /// At the end everything goes on running until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Write the summary as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the diff reports of shadow reads to this folder; else they become temporary files, which stay
    #[arg(long, value_name = "FOLDER")]
    reports: Option<PathBuf>,
    /// Do not open the diff reports in a browser at the end, as happens on a terminal of a desktop
    #[arg(long)]
    no_open: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("a number above 0 is needed".into()),
    }
}

impl Args {
    fn settled(mut self) -> Self {
        if self.quick {
            self.documents = self.documents.min(10_000);
            self.customers = self.customers.min(4_000);
        }
        self
    }

    /// The migrations, each of the collection of that name.
    fn migrations(&self) -> &'static [&'static str] {
        match self.topology {
            Topology::Sharded => &[ORDERS],
            Topology::ReplicaSets => &BOTH,
        }
    }

    /// How long each step lasts that only shows how things go on.
    fn step(&self) -> Duration {
        if self.quick { Duration::from_millis(700) } else { Duration::from_millis(2_500) }
    }

    /// How long the phases before and after the migration last.
    fn calm(&self) -> Duration {
        Duration::from_secs(if self.quick { 2 } else { 5 })
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse().settled();
    match until_signal(args).await {
        Ok(Some(true)) => ExitCode::SUCCESS,
        Ok(Some(false)) => ExitCode::from(1),
        Ok(None) => {
            println!("\nInterrupted; everything that was started has ended.");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("\nThe demo failed: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Everything that runs belongs to the future given up here, and ends with it.
async fn until_signal(args: Args) -> Result<Option<bool>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = Box::pin(run(&args)) => done.map(Some),
        _ = interrupt.recv() => Ok(None),
        _ = terminate.recv() => Ok(None),
    }
}

async fn run(args: &Args) -> Result<bool> {
    let start = Instant::now();
    let screen = Screen::new(start);
    let mut scene = scene::Scene::start(args, &screen).await?;
    let summary = match script::play(args, &scene, &screen).await {
        Ok(summary) => summary,
        Err(error) => {
            screen.end();
            scene.failed();
            return Err(error);
        }
    };
    screen.end();
    println!("{summary}");
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&summary)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    for shadowed in summary.shadowed.iter().filter(|_| !args.no_open && shadow::can_open()) {
        if let Err(error) = shadow::open(&shadowed.report) {
            eprintln!("The report cannot be opened: {error:#}");
        }
    }
    if !summary.good {
        scene.keep_log();
    }
    if args.keep {
        scene.show_addresses();
        std::future::pending::<()>().await;
    }
    scene.end().await;
    Ok(summary.good)
}
