//! Starts real MongoDB replica sets and sharded clusters from the command line.

use std::io::{Read, Write};

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, Parser, Subcommand};
use reshard_testbed::{Mongod, Node, ReplicaSet, ShardedCluster, ShardedClusterBuilder, Version};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

#[derive(Parser)]
#[command(version, about = "Real MongoDB clusters on the loopback interface")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a replica set, print its URI, and run it until stdin closes or SIGTERM or SIGINT comes
    Up(Up),
    /// The same with a sharded cluster; the URI is that of its router
    Sharded(Sharded),
    /// Print the path of a mongod, fetching it if need be
    Mongod {
        /// any, 6.0, 5.0, 4.4 or 4.2
        #[arg(long, default_value = "any")]
        version: Version,
    },
}

#[derive(Args)]
struct Up {
    /// Name of the replica set
    #[arg(long, default_value = "rs0")]
    name: String,
    /// Number of members
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// any, 6.0, 5.0, 4.4 or 4.2
    #[arg(long, default_value = "any")]
    version: Version,
    /// Turn access control on, with this user (role root)
    #[arg(long, value_name = "USER:PASSWORD")]
    auth: Option<String>,
    /// Require TLS
    #[arg(long)]
    tls: bool,
    /// Size of the oplog in MB
    #[arg(long, default_value_t = 200)]
    oplog_mb: u32,
    /// Cache of each member in GB
    #[arg(long, default_value_t = 0.25)]
    cache_gb: f64,
    /// Server parameter; may be given several times
    #[arg(long = "param", value_name = "NAME=VALUE")]
    params: Vec<String>,
    /// Run until a signal comes, whatever happens to stdin
    #[arg(long)]
    ignore_stdin: bool,
}

#[derive(Args)]
struct Sharded {
    /// Number of shards
    #[arg(long, default_value_t = 2)]
    shards: usize,
    /// Number of members of each shard
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// any, 6.0, 5.0, 4.4 or 4.2; others than 6.0 need a mongos ($RESHARD_MONGOS)
    #[arg(long, default_value = "any")]
    version: Version,
    /// Size of the oplog of each shard in MB
    #[arg(long, default_value_t = 200)]
    oplog_mb: u32,
    /// Cache of each server in GB
    #[arg(long, default_value_t = 0.25)]
    cache_gb: f64,
    /// How often the clock of an idle shard moves on; if not given, as mongod does it (10)
    #[arg(long, value_name = "SECONDS")]
    noop_seconds: Option<u32>,
    /// Server parameter of the shards; may be given several times
    #[arg(long = "param", value_name = "NAME=VALUE")]
    params: Vec<String>,
    /// Run until a signal comes, whatever happens to stdin
    #[arg(long)]
    ignore_stdin: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Up(up) => run(up).await,
        Command::Sharded(sharded) => run_sharded(sharded).await,
        Command::Mongod { version } => {
            println!("{}", Mongod::find(version).await?.path().display());
            Ok(())
        }
    }
}

async fn run(up: Up) -> Result<()> {
    // Before anything is started: a signal meanwhile must not leave data behind.
    let end = told_to_end(up.ignore_stdin)?;
    tokio::pin!(end);
    let set = tokio::select! {
        set = builder(&up)?.start() => set?,
        () = &mut end => return Ok(()),
    };
    say(&set.uri())?;
    describe(set.nodes())?;
    end.await;
    Ok(())
}

async fn run_sharded(sharded: Sharded) -> Result<()> {
    let end = told_to_end(sharded.ignore_stdin)?;
    tokio::pin!(end);
    let cluster = tokio::select! {
        cluster = sharded_builder(&sharded)?.start() => cluster?,
        () = &mut end => return Ok(()),
    };
    say(&cluster.uri())?;
    describe(cluster.config().nodes())?;
    cluster.shards().iter().try_for_each(|shard| describe(shard.nodes()))?;
    if let Some(engine) = cluster.router().engine() {
        describe(engine.nodes())?;
    }
    end.await;
    Ok(())
}

/// Ends when stdin closes or a signal comes.
fn told_to_end(ignore_stdin: bool) -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let closed = stdin_closed(ignore_stdin);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = closed => {}
        }
    })
}

fn say(uri: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{uri}")?;
    out.flush()?;
    Ok(())
}

/// Tells whoever reads stderr about the servers, which go on also when nobody does any more.
fn describe(nodes: &[Node]) -> Result<()> {
    for node in nodes {
        let pid = node.pid().ok_or_else(|| anyhow!("{} has ended; {}", node.name(), node.log_tail()))?;
        let version = node.mongod().version();
        let (name, address, log) = (node.name(), node.address(), node.log_path().display());
        _ = writeln!(std::io::stderr(), "{name} {address} mongod {version} pid {pid} log {log}");
    }
    Ok(())
}

fn sharded_builder(sharded: &Sharded) -> Result<ShardedClusterBuilder> {
    let mut builder = ShardedCluster::builder()
        .shards(sharded.shards)
        .nodes(sharded.nodes)
        .version(sharded.version)
        .oplog_mb(sharded.oplog_mb)
        .cache_gb(sharded.cache_gb);
    if let Some(seconds) = sharded.noop_seconds {
        builder = builder.noop_seconds(seconds);
    }
    for param in &sharded.params {
        let (name, value) = param.split_once('=').context("--param wants name=value")?;
        builder = builder.param(name, value);
    }
    Ok(builder)
}

fn builder(up: &Up) -> Result<reshard_testbed::ReplicaSetBuilder> {
    let mut builder = ReplicaSet::builder(&up.name)
        .nodes(up.nodes)
        .version(up.version)
        .tls(up.tls)
        .oplog_mb(up.oplog_mb)
        .cache_gb(up.cache_gb);
    if let Some(auth) = &up.auth {
        let (user, password) = auth.split_once(':').context("--auth wants user:password")?;
        ensure!(!user.is_empty() && !password.is_empty(), "--auth wants user:password");
        builder = builder.auth(user, password);
    }
    for param in &up.params {
        let (name, value) = param.split_once('=').context("--param wants name=value")?;
        builder = builder.param(name, value);
    }
    Ok(builder)
}

/// Ends when stdin does. The read has a thread of its own: it cannot be cancelled, and the runtime would
/// wait for it at the end.
async fn stdin_closed(never: bool) {
    if never {
        return std::future::pending().await;
    }
    let (closed, wait) = oneshot::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while std::io::stdin().read(&mut buffer).is_ok_and(|count| count > 0) {}
        let _ = closed.send(());
    });
    let _ = wait.await;
}
