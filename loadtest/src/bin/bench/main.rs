//! What the proxy costs: the same load straight to a server, through HAProxy, and through reshard, in turns.

#[allow(dead_code, reason = "the benchmark needs only some of it")]
#[path = "../demo/api.rs"]
mod api;
#[allow(dead_code, reason = "the benchmark needs only some of it")]
#[path = "../demo/child.rs"]
mod child;
mod client;
mod haproxy;
mod idle;
mod report;
mod round;
mod shadow;
mod usage;
mod wire;

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bson::RawDocumentBuf;
use clap::Parser;
use reshard_testbed::ReplicaSet;
use serde::Serialize;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::child::Proxy;
use crate::client::{DATABASE, Operation, document};
use crate::haproxy::Haproxy;
use crate::report::{Cell, Idle, Path, Report};
use crate::round::{DOCUMENTS, Outcome, Plan};

/// Compares a direct connection, HAProxy in TCP mode and reshard, in turns within one run: CPU per operation,
/// latency, throughput, memory per idle client.
#[derive(Parser)]
#[command(name = "bench")]
struct Args {
    /// Rounds of each load on each path; what is printed are medians over them.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Operations of one round.
    #[arg(long, default_value_t = 20_000)]
    operations: usize,
    /// Numbers of connections.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    connections: Vec<usize>,
    /// Idle clients, for the memory of one.
    #[arg(long, default_value_t = 2_000)]
    idle: u16,
    /// Measure only what shadow reads cost, in so many pairs with and without them.
    #[arg(long, value_name = "N")]
    shadow_pairs: Option<usize>,
    /// Seconds of each half of such a pair.
    #[arg(long, default_value_t = 15)]
    pair_seconds: u64,
    /// Few and short rounds: shows that everything works, and measures little.
    #[arg(long)]
    quick: bool,
    /// Write the results to this file too.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if args.quick {
        args.rounds = args.rounds.min(2);
        args.operations = args.operations.min(2_000);
        args.idle = args.idle.min(200);
    }
    ensure!(
        args.rounds > 0 && args.connections.iter().all(|count| (1..=1_000).contains(count)),
        "nothing to do"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Some(pairs) = args.shadow_pairs {
        ensure!(pairs > 0 && args.pair_seconds > 0, "nothing to do");
        return told(&shadow::measure(&runtime, pairs, Duration::from_secs(args.pair_seconds))?, &args);
    }
    told(&Bench::new(&runtime)?.run(&args)?, &args)
}

fn told(report: &(impl Display + Serialize), args: &Args) -> Result<()> {
    println!("{report}");
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(report)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// The processes in the middle, before one server.
struct Middle {
    haproxy: Option<Haproxy>,
    proxy: Proxy,
    _folder: TempDir,
}

impl Middle {
    async fn start(server: &ReplicaSet) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("reshard-bench-").tempdir()?;
        let haproxy = match haproxy::program() {
            Some(program) => Some(Haproxy::start(&program, folder.path(), server.node(0).address()).await?),
            None => None,
        };
        let proxy = Proxy::start(folder.path(), &server.uri(), None).await?;
        Ok(Self { haproxy, proxy, _folder: folder })
    }

    /// Address and process of each path.
    fn paths(&self, server: &ReplicaSet) -> Result<Vec<(Path, SocketAddr, Option<u32>)>> {
        let mut paths = vec![(Path::Direct, server.node(0).address().parse()?, None)];
        paths.extend(self.haproxy.as_ref().map(|it| (Path::Haproxy, it.address, Some(it.pid))));
        let address = self.proxy.uri.trim_start_matches("mongodb://").trim_end_matches('/').parse()?;
        paths.push((Path::Reshard, address, Some(self.proxy.pid().context("reshard has ended")?)));
        Ok(paths)
    }
}

struct Bench<'a> {
    runtime: &'a Runtime,
    server: ReplicaSet,
}

impl<'a> Bench<'a> {
    fn new(runtime: &'a Runtime) -> Result<Self> {
        match haproxy::program() {
            Some(program) => println!("{}", haproxy::version(&program).unwrap_or_default()),
            None => println!("HAProxy is not installed (Debian: haproxy): no comparison with it."),
        }
        let server = runtime.block_on(async {
            let server = ReplicaSet::builder("bench").cache_gb(0.5).start().await?;
            let client = server.client().await?;
            let documents: Vec<RawDocumentBuf> = (0..DOCUMENTS).map(document).collect();
            let collection =
                client.database(DATABASE).collection::<RawDocumentBuf>(Operation::Find.collection());
            collection.insert_many(documents).await?;
            anyhow::Ok(server)
        })?;
        Ok(Self { runtime, server })
    }

    fn run(&self, args: &Args) -> Result<Report> {
        let idle = self.idle(args.idle)?;
        let middle = self.runtime.block_on(Middle::start(&self.server))?;
        let mut cells = Vec::new();
        for operation in Operation::ALL {
            for &connections in &args.connections {
                eprintln!("{}, {connections} connections", operation.name());
                cells.extend(self.load(&middle, args, operation, connections)?);
            }
        }
        Ok(Report::new(cells, idle))
    }

    /// In processes of their own, which have not had memory that they could use again.
    fn idle(&self, count: u16) -> Result<Vec<Idle>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        eprintln!("{count} idle clients");
        self.runtime.block_on(async {
            let middle = Middle::start(&self.server).await?;
            let mut measured = Vec::new();
            for (path, address, pid) in middle.paths(&self.server)? {
                if let Some(pid) = pid {
                    measured.push(Idle::new(path, count, idle::measure(address, pid, count).await?));
                }
            }
            Ok(measured)
        })
    }

    fn load(
        &self,
        middle: &Middle,
        args: &Args,
        operation: Operation,
        connections: usize,
    ) -> Result<Vec<Cell>> {
        let server = self.server.node(0).pid().context("the server has ended")?;
        let paths = middle.paths(&self.server)?;
        let mut rounds: Vec<Vec<Outcome>> = vec![Vec::new(); paths.len()];
        // One connection is slower than many by about this factor.
        let operations = if connections == 1 { args.operations / 3 } else { args.operations };
        for round in 0..args.rounds {
            for turn in 0..paths.len() {
                // Each path follows each other path equally often.
                let at = (round + turn) % paths.len();
                let (_, address, pid) = paths[at];
                let plan = Plan { address, operation, connections, operations };
                rounds[at].push(round::run(plan, pid, server)?);
                if operation == Operation::Insert {
                    self.runtime.block_on(self.clear())?;
                }
            }
        }
        let cells = paths.iter().zip(&rounds);
        Ok(cells.map(|((path, ..), rounds)| Cell::new(operation, connections, *path, rounds)).collect())
    }

    /// Inserted documents would fill the memory in which the server keeps its files.
    async fn clear(&self) -> Result<()> {
        let client = self.server.client().await?;
        let inserts = client.database(DATABASE).collection::<RawDocumentBuf>(Operation::Insert.collection());
        inserts.drop().await?;
        Ok(())
    }
}
