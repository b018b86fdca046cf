//! One round: a fixed number of operations over some connections to one address.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use futures::future::try_join_all;
use tokio::runtime::{self, Runtime};

use crate::client::{Client, Operation};
use crate::usage;

/// Threads of the client; two, as the machine may have no more cores.
const THREADS: usize = 2;
/// Documents that finds look for.
pub(crate) const DOCUMENTS: i64 = 10_000;

/// Numbers that nobody has had: of documents, sessions and writes.
static NEXT: AtomicI64 = AtomicI64::new(DOCUMENTS);

fn fresh() -> i64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) address: SocketAddr,
    pub(crate) operation: Operation,
    pub(crate) connections: usize,
    /// Of all connections together.
    pub(crate) operations: usize,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) operations: usize,
    pub(crate) seconds: f64,
    /// Microseconds.
    pub(crate) median: f64,
    pub(crate) p99: f64,
    /// CPU of the process in the middle, if there is one.
    pub(crate) middle: Option<Duration>,
    pub(crate) server: Duration,
}

/// Runs it, and takes what the processes `middle` and `server` used meanwhile. Not to be called from async
/// code.
pub(crate) fn run(plan: Plan, middle: Option<u32>, server: u32) -> Result<Outcome> {
    let threads = THREADS.min(plan.connections);
    let ready = Arc::new(Barrier::new(threads + 1));
    let handles: Vec<_> = (0..threads)
        .map(|thread| {
            let ready = Arc::clone(&ready);
            let connections = (thread..plan.connections).step_by(threads).count();
            thread::spawn(move || work(plan, connections, &ready))
        })
        .collect();
    // All are connected and warm; the threads go on at the second barrier.
    ready.wait();
    let used = || anyhow::Ok((middle.map(usage::cpu).transpose()?, usage::cpu(server)?));
    let before = used();
    ready.wait();
    let begun = Instant::now();
    // Each holds its connections: closing them does not count.
    let results: Vec<_> = handles.into_iter().map(thread::JoinHandle::join).collect();
    let seconds = begun.elapsed().as_secs_f64();
    let (after, before) = (used()?, before?);
    let mut latencies = Vec::with_capacity(plan.operations);
    let mut open = Vec::new();
    for result in results {
        let done = result.map_err(|_| anyhow!("a client thread panicked"))??;
        latencies.extend(done.taken);
        open.push((done.clients, done.runtime));
    }
    latencies.sort_unstable();
    Ok(Outcome {
        operations: latencies.len(),
        seconds,
        median: quantile(&latencies, 50),
        p99: quantile(&latencies, 99),
        middle: after.0.zip(before.0).map(|(after, before)| after.saturating_sub(before)),
        server: after.1.saturating_sub(before.1),
    })
}

pub(crate) fn quantile(sorted: &[Duration], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |took| took.as_secs_f64() * 1e6)
}

/// What one thread hands back.
struct Done {
    /// How long each operation took.
    taken: Vec<Duration>,
    clients: Vec<Client>,
    /// Outlives the clients, whose sockets belong to it.
    runtime: Runtime,
}

fn work(plan: Plan, connections: usize, ready: &Barrier) -> Result<Done> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    let each = plan.operations / plan.connections;
    let clients = runtime.block_on(warm(plan, connections, each / 10));
    // Also after an error: the others wait here.
    ready.wait();
    ready.wait();
    let mut clients = clients?;
    let taken = runtime.block_on(try_join_all(clients.iter_mut().map(|client| many(client, plan, each))))?;
    Ok(Done { taken: taken.into_iter().flatten().collect(), clients, runtime })
}

async fn warm(plan: Plan, connections: usize, each: usize) -> Result<Vec<Client>> {
    let mut clients = Vec::with_capacity(connections);
    for _ in 0..connections {
        let session = u128::from(rand::random::<u64>()) << 64 | u128::from(rand::random::<u64>());
        let mut client = Client::connect(plan.address, plan.operation, session).await?;
        client.operate_and_check(plan.operation, id(plan.operation), fresh()).await?;
        clients.push(client);
    }
    try_join_all(clients.iter_mut().map(|client| many(client, plan, each))).await?;
    Ok(clients)
}

async fn many(client: &mut Client, plan: Plan, count: usize) -> Result<Vec<Duration>> {
    let mut taken = Vec::with_capacity(count);
    for _ in 0..count {
        let (id, number) = (id(plan.operation), fresh());
        let begun = Instant::now();
        client.operate(id, number).await?;
        taken.push(begun.elapsed());
    }
    Ok(taken)
}

/// The `_id` that comes next.
pub(crate) fn id(operation: Operation) -> i64 {
    match operation {
        // Far apart, and each as often as the others.
        Operation::Find => fresh().wrapping_mul(7_919).rem_euclid(DOCUMENTS),
        Operation::Insert => fresh(),
    }
}
