//! The connections of one pool shard: one pool per server, on the reactor of the shard's runtime.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metrics::Histogram;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::command::{SendError, ServerId};
use super::connector::ConnectError;
use super::gossip::TimesFor;
use super::handle::Cluster;
use super::login::Login;
use super::pool::Pool;
use super::pooled::Pooled;
use super::queue::Waits;
use super::selection::Selection;
use crate::model::span::spoken;

/// How long a server that is named may be out of reach: no other can stand in for it, and what is wanted there is
/// mostly lost with it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Numbers about the pool of one server, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Connections that somebody uses or opens.
    pub in_use: usize,
    /// Connections that nobody uses.
    pub idle: usize,
    /// Who waits for a connection because all are in use.
    pub waiting: usize,
    /// Connections opened since the start.
    pub created: u64,
    /// Who left without one since the start: their time was over, or their client left.
    pub gave_up: u64,
}

/// The pools of one shard. Sockets live on the runtime that checks them out.
#[derive(Debug)]
pub struct Pools {
    cluster: Arc<Cluster>,
    share: usize,
    /// Connections to each server that are there before anybody asks.
    least: usize,
    /// Another user than that of the connection string.
    login: Option<Arc<Login>>,
    times: TimesFor,
    /// Where sockets live.
    runtime: Option<tokio::runtime::Handle>,
    pools: Mutex<HashMap<ServerId, Arc<Pool>>>,
    /// Picks among servers that are equally good, one after the other.
    turn: AtomicUsize,
    waits: Arc<Waits>,
}

impl Pools {
    pub(super) fn new(cluster: Arc<Cluster>, share: usize, least: usize, login: Option<Arc<Login>>) -> Self {
        let share = share.max(1);
        let has_users = cluster.settings().credential.is_some();
        let times = cluster.gossip().times_for(login.as_ref().map(|login| login.name()), has_users);
        Self {
            cluster,
            share,
            least: least.min(share),
            login,
            times,
            runtime: tokio::runtime::Handle::try_current().ok(),
            pools: Mutex::default(),
            turn: AtomicUsize::new(0),
            waits: Arc::default(),
        }
    }

    /// Where it is noted for how long a checkout waited that found no connection at rest.
    pub fn note_waits_in(&self, histogram: Histogram) {
        self.waits.go_to(histogram);
    }

    /// The cluster behind.
    #[must_use]
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// A server that fits and a connection to it, within `limit`. Servers that cannot be reached are sought
    /// again until then, one that is named for two seconds; a refused login fails at once.
    ///
    /// # Errors
    /// [`SendError::NotSent`], [`SendError::Busy`], or [`SendError::LoginRefused`].
    pub async fn checkout(&self, selection: &Selection, limit: Duration) -> Result<Pooled, SendError> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let server = self.cluster.select(selection, turn);
        if let Some(pooled) = server.and_then(|server| self.pool(&server)).and_then(|pool| pool.take_now()) {
            return Ok(pooled);
        }
        // Boxed so that the future of the usual case stays small.
        Box::pin(self.checkout_with_waiting(selection, limit)).await
    }

    async fn checkout_with_waiting(
        &self,
        selection: &Selection,
        limit: Duration,
    ) -> Result<Pooled, SendError> {
        let deadline = Instant::now() + limit;
        let patience = if matches!(selection, Selection::Server(_)) { PATIENCE } else { limit };
        let mut last_error = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).min(patience);
            let server = self.cluster.wait_for(selection, left).await.map_err(|error| match &last_error {
                Some(last) => SendError::NotSent(format!("{error}; last: {last}")),
                None => error,
            })?;
            let Some(pool) = self.pool(&server) else {
                return Err(SendError::NotSent(format!("{server} is not part of the cluster any more")));
            };
            match timeout_at(deadline, pool.take()).await {
                Ok(Ok(pooled)) => return Ok(pooled),
                Ok(Err(ConnectError::Hopeless(error))) => {
                    // The user of the connection string may be put right while this process runs.
                    let refused =
                        if self.login.is_some() { SendError::LoginRefused } else { SendError::NotSent };
                    return Err(refused(error));
                }
                Ok(Err(ConnectError::Unreachable(error) | ConnectError::TimedOut(error))) => {
                    last_error = Some(error)
                }
                Err(_) => {
                    let stats = pool.stats();
                    let why = format!("no connection to {server} within {}: {stats:?}", spoken(limit));
                    return Err(SendError::Busy(why));
                }
            }
        }
    }

    /// The right to wait at `server` for what is yet to come, as awaiting cursors do; `None`: the server is gone.
    ///
    /// # Errors
    /// [`SendError::Busy`]: nobody made room within `limit`.
    pub async fn turn_to_wait(
        &self,
        server: &ServerId,
        limit: Duration,
    ) -> Result<Option<OwnedSemaphorePermit>, SendError> {
        let Some(pool) = self.pool(server) else { return Ok(None) };
        tokio::time::timeout(limit, pool.turn_to_wait()).await.map_err(|_| {
            SendError::Busy(format!(
                "too many cursors wait for news at {server}: raise maxPoolSize in the connection string of its cluster"
            ))
        })
    }

    fn pool(&self, server: &ServerId) -> Option<Arc<Pool>> {
        let mut pools = self.pools.lock();
        if let Some(pool) = pools.get(server).filter(|pool| !pool.member().is_removed()) {
            return Some(pool.clone());
        }
        let member = self.cluster.member(server)?;
        let pool = Arc::new(Pool::new(
            self.cluster.clone(),
            member,
            self.share,
            self.login.clone(),
            self.waits.clone(),
        ));
        pools.insert(server.clone(), pool.clone());
        Some(pool)
    }

    /// The `$clusterTime`s that the user of these connections may show.
    #[must_use]
    pub fn times(&self) -> &TimesFor {
        &self.times
    }

    /// Ends all connections to `server`, in use or not.
    pub(super) fn cut(&self, server: &ServerId) {
        let pool = self.pools.lock().get(server).cloned();
        if let Some(pool) = pool {
            pool.cut();
        }
    }

    /// Closes connections that nobody needs any more.
    pub(super) fn sweep(&self) {
        let pools: Vec<Arc<Pool>> = self.pools.lock().values().cloned().collect();
        for pool in pools {
            pool.sweep(self.cluster.settings().max_idle_time);
        }
        self.pools.lock().retain(|_, pool| !pool.member().is_removed());
    }

    /// Begins to open connections where there are fewer than should always be there.
    pub(super) fn warm(&self) {
        let Some(runtime) = self.runtime.as_ref().filter(|_| self.least > 0) else { return };
        let topology = self.cluster.topology();
        let useful = topology.servers.iter().filter(|server| server.role.takes_operations());
        for pool in useful.filter_map(|server| self.pool(&server.address)) {
            runtime.spawn(pool.fill(self.least));
        }
    }

    /// Numbers per server.
    #[must_use]
    pub fn stats(&self) -> Vec<(ServerId, PoolStats)> {
        self.pools.lock().iter().map(|(server, pool)| (server.clone(), pool.stats())).collect()
    }
}
