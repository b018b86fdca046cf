//! Starts real MongoDB replica sets from the command line.

use std::io::{Read, Write};

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, Parser, Subcommand};
use reshard_testbed::{Mongod, ReplicaSet, Version};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

#[derive(Parser)]
#[command(version, about = "Real MongoDB replica sets on the loopback interface")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a replica set, print its URI, and run it until stdin closes or SIGTERM or SIGINT comes
    Up(Up),
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

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Up(up) => run(up).await,
        Command::Mongod { version } => {
            println!("{}", Mongod::find(version).await?.path().display());
            Ok(())
        }
    }
}

async fn run(up: Up) -> Result<()> {
    // Before anything is started: a signal meanwhile must not leave data behind.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let closed = stdin_closed(up.ignore_stdin);
    let end = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = closed => {}
        }
    };
    tokio::pin!(end);
    let set = tokio::select! {
        set = builder(&up)?.start() => set?,
        () = &mut end => return Ok(()),
    };
    let mut out = std::io::stdout();
    writeln!(out, "{}", set.uri())?;
    out.flush()?;
    for node in set.nodes() {
        let pid = node.pid().ok_or_else(|| anyhow!("{} has ended; {}", node.name(), node.log_tail()))?;
        let version = node.mongod().version();
        eprintln!(
            "{} {} mongod {version} pid {pid} log {}",
            node.name(),
            node.address(),
            node.log_path().display()
        );
    }
    end.await;
    Ok(())
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
