//! The connections of one pool shard to one server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::connection::Connection;
use super::connector::ConnectError;
use super::handle::Cluster;
use super::login::Login;
use super::member::Member;
use super::pooled::Pooled;
use super::pools::PoolStats;
use super::queue::{Queue, Waits};
use super::stream::Cutter;

/// A connection that nobody uses.
#[derive(Debug)]
struct Idle {
    connection: Connection,
    generation: u64,
    since: Instant,
}

/// The connections of one pool shard to one server: at most `share`, the last used first.
#[derive(Debug)]
pub(super) struct Pool {
    cluster: Arc<Cluster>,
    member: Arc<Member>,
    share: usize,
    /// Another user than that of the connection string.
    login: Option<Arc<Login>>,
    /// One permit per connection in use; whoever waits is served in order.
    permits: Arc<Semaphore>,
    /// One permit per connection that may wait for what is yet to come: half of them, so that others get theirs.
    awaiting: Arc<Semaphore>,
    /// The last one is the last used.
    idle: Mutex<Vec<Idle>>,
    /// A connection came back, for those who wait to open one.
    returned: Notify,
    /// Reaches all connections, also those in use.
    cutters: Mutex<Vec<Cutter>>,
    queue: Queue,
    created: AtomicU64,
}

impl Pool {
    pub(super) fn new(
        cluster: Arc<Cluster>,
        member: Arc<Member>,
        share: usize,
        login: Option<Arc<Login>>,
        waits: Arc<Waits>,
    ) -> Self {
        Self {
            cluster,
            member,
            share,
            login,
            permits: Arc::new(Semaphore::new(share)),
            awaiting: Arc::new(Semaphore::new((share / 2).max(1))),
            idle: Mutex::default(),
            returned: Notify::new(),
            cutters: Mutex::default(),
            queue: Queue::new(waits),
            created: AtomicU64::new(0),
        }
    }

    pub(super) fn member(&self) -> &Arc<Member> {
        &self.member
    }

    pub(super) fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// An idle connection, without waiting for anything.
    pub(super) fn take_now(self: &Arc<Self>) -> Option<Pooled> {
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        let (connection, generation) = self.pop()?;
        Some(Pooled::new(connection, generation, self.clone(), permit))
    }

    /// A connection: waits for its turn, then takes an idle one or opens one.
    pub(super) async fn take(self: &Arc<Self>) -> Result<Pooled, ConnectError> {
        let patience = self.queue.join();
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| closed())?;
        let patience = patience.has_a_turn();
        loop {
            if let Some((connection, generation)) = self.pop() {
                patience.end();
                return Ok(Pooled::new(connection, generation, self.clone(), permit));
            }
            tokio::select! {
                biased;
                () = self.returned.notified() => {}
                slot = self.member.connecting.acquire() => {
                    // The semaphore is never closed.
                    let _slot = slot.map_err(|_| closed())?;
                    let opened = self.open(permit).await;
                    patience.end();
                    return opened;
                }
            }
        }
    }

    /// The right to keep a connection while there is nothing to tell.
    pub(super) async fn turn_to_wait(&self) -> Option<OwnedSemaphorePermit> {
        let patience = self.queue.join();
        let turn = self.awaiting.clone().acquire_owned().await.ok();
        patience.has_a_turn().end();
        turn
    }

    /// Opens connections until there are `least`, as long as nobody else opens any and none fails.
    pub(super) async fn fill(self: Arc<Self>, least: usize) {
        loop {
            let generation = self.member.generation();
            let idle = self.idle.lock().iter().filter(|idle| idle.generation == generation).count();
            if self.stats().in_use + idle >= least || self.member.is_removed() {
                return;
            }
            // Those who wait for a connection come first.
            let (Ok(permit), Ok(_slot)) =
                (self.permits.clone().try_acquire_owned(), self.member.connecting.try_acquire())
            else {
                return;
            };
            if self.open(permit).await.is_err() {
                return;
            }
        }
    }

    async fn open(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Result<Pooled, ConnectError> {
        let generation = self.member.generation();
        match self.cluster.connector().open(&self.member.address, self.login.as_deref()).await {
            Ok(opened) => {
                self.created.fetch_add(1, Ordering::Relaxed);
                self.cutters.lock().push(opened.connection.cutter());
                Ok(Pooled::new(opened.connection, generation, self.clone(), permit))
            }
            Err(error) => {
                if let ConnectError::Unreachable(reason) | ConnectError::TimedOut(reason) = &error {
                    self.cluster.note_broken_connection(&self.member, generation, reason);
                }
                Err(error)
            }
        }
    }

    /// The last used idle connection that still works.
    fn pop(&self) -> Option<(Connection, u64)> {
        loop {
            let mut idle = self.idle.lock().pop()?;
            if idle.generation == self.member.generation() && idle.connection.is_quiet() {
                return Some((idle.connection, idle.generation));
            }
        }
    }

    /// Takes back a connection at rest, unless it is of an old generation.
    pub(super) fn put_back(&self, connection: Connection, generation: u64) {
        if generation == self.member.generation() {
            self.idle.lock().push(Idle { connection, generation, since: Instant::now() });
            self.returned.notify_one();
        }
    }

    /// Closes idle connections that are old or were not used for `max_idle_time`.
    pub(super) fn sweep(&self, max_idle_time: Duration) {
        self.cutters.lock().retain(Cutter::is_of_use);
        let generation = self.member.generation();
        let keep = |idle: &Idle| idle.generation == generation && idle.since.elapsed() < max_idle_time;
        // Closed after the lock is free again.
        let _closed: Vec<Idle> = {
            let mut idle = self.idle.lock();
            let (kept, closed) = std::mem::take(&mut *idle).into_iter().partition(keep);
            *idle = kept;
            closed
        };
    }

    /// Ends all connections, in use or not: whoever waits for a reply learns that none will come.
    pub(super) fn cut(&self) {
        for cutter in self.cutters.lock().drain(..) {
            cutter.cut();
        }
    }

    pub(super) fn stats(&self) -> PoolStats {
        PoolStats {
            in_use: self.share - self.permits.available_permits().min(self.share),
            idle: self.idle.lock().len(),
            waiting: self.queue.waiting(),
            created: self.created.load(Ordering::Relaxed),
            gave_up: self.queue.gave_up(),
        }
    }
}

fn closed() -> ConnectError {
    ConnectError::Unreachable("the pool is closed".to_owned())
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
