//! One cluster as the process shares it: settings, topology, monitors, gossip.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::model::span::spoken;
use crate::shutdown::{Spawn, Tasks};

use super::command::{SendError, ServerId};
use super::connector::Connector;
use super::gossip::Gossip;
use super::hello::HelloReply;
use super::login::Login;
use super::member::Member;
use super::monitor::{self, MIN_INTERVAL};
use super::pools::Pools;
use super::selection::{Selection, Tuning, select};
use super::srv;
use super::topology::{Role, Topology, TopologyKind};
use super::uri::Settings;

/// The server gave up its role: it is asked again when it was primary.
const NOT_PRIMARY: [i32; 3] = [10107, 13435, 10058];
/// The server is changing its state or shutting down.
const RECOVERING: [i32; 5] = [11602, 13436, 189, 11600, 91];
/// Among these, the server is going away with all its connections.
const SHUTDOWN: [i32; 2] = [11600, 91];

/// How often connections that nobody needs are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Why a cluster cannot be used at all.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClusterError {
    /// A TLS file cannot be used.
    #[error("TLS: {0}")]
    Tls(String),
}

/// One cluster. Its monitors run until the tasks are stopped or [`Cluster::close`] is called.
#[derive(Debug)]
pub struct Cluster {
    settings: Settings,
    connector: Connector,
    topology: ArcSwap<Topology>,
    changes: watch::Sender<u64>,
    /// Also serialises changes of the topology.
    members: Mutex<HashMap<ServerId, Arc<Member>>>,
    gossip: Arc<Gossip>,
    shards: Mutex<Vec<Weak<Pools>>>,
    tasks: Tasks,
    runtime: tokio::runtime::Handle,
    started: Instant,
    closed: AtomicBool,
}

impl Cluster {
    /// Starts to watch the cluster and returns at once; servers may be down.
    /// Must be called on the runtime that is to run the monitors.
    ///
    /// # Errors
    /// [`ClusterError`] when the settings cannot work.
    #[expect(clippy::unused_async, reason = "starts tasks; must run on a runtime")]
    pub async fn connect(settings: Settings, tasks: &Tasks) -> Result<Arc<Self>, ClusterError> {
        let connector = Connector::new(&settings).map_err(ClusterError::Tls)?;
        let topology = Topology::new(&settings.seeds, settings.replica_set.as_deref(), settings.direct);
        let cluster = Arc::new(Self {
            settings,
            connector,
            topology: ArcSwap::from_pointee(topology),
            changes: watch::Sender::new(0),
            members: Mutex::default(),
            gossip: Arc::default(),
            shards: Mutex::default(),
            tasks: tasks.clone(),
            runtime: tokio::runtime::Handle::current(),
            started: Instant::now(),
            closed: AtomicBool::new(false),
        });
        cluster.watch_new_members();
        tasks.spawn("pool sweeper", Box::pin(sweep(Arc::downgrade(&cluster), cluster.changes())));
        if let Some(lookup) = cluster.settings.lookup.clone().filter(|_| !cluster.settings.direct) {
            tasks.spawn("lookup", Box::pin(srv::follow(Arc::downgrade(&cluster), lookup)));
        }
        Ok(cluster)
    }

    /// Ends the monitors and closes idle connections; operations fail from now on.
    pub fn close(&self) {
        {
            let mut members = self.members.lock();
            self.closed.store(true, Ordering::Release);
            for (_, member) in members.drain() {
                member.remove();
            }
        }
        self.for_all_pools(Pools::sweep);
    }

    /// How the cluster is reached.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn connector(&self) -> &Connector {
        &self.connector
    }

    /// What is known about the cluster now.
    #[must_use]
    pub fn topology(&self) -> Arc<Topology> {
        self.topology.load_full()
    }

    /// A signal that changes after every change of [`Self::topology`].
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The cluster's `$clusterTime`.
    #[must_use]
    pub fn gossip(&self) -> &Arc<Gossip> {
        &self.gossip
    }

    /// Pools of connections on the reactor of whoever uses them; `share` is the most per server.
    #[must_use]
    pub fn pools(self: &Arc<Self>, share: usize) -> Arc<Pools> {
        self.keep(Pools::new(self.clone(), share, 0, None))
    }

    /// As [`Self::pools`], of connections of another user than that of the connection string.
    pub fn pools_of(self: &Arc<Self>, share: usize, login: Arc<Login>) -> Arc<Pools> {
        self.keep(Pools::new(self.clone(), share, 0, Some(login)))
    }

    /// As [`Self::pools`], with the part of `minPoolSize` that `share` is of `maxPoolSize`, always there.
    pub fn warm_pools(self: &Arc<Self>, share: usize) -> Arc<Pools> {
        let [least, most] =
            [self.settings.min_pool_size, self.settings.max_pool_size].map(|size| size as usize);
        let pools = self.keep(Pools::new(self.clone(), share, (least * share).div_ceil(most.max(1)), None));
        pools.warm();
        pools
    }

    fn keep(&self, pools: Pools) -> Arc<Pools> {
        let pools = Arc::new(pools);
        let mut shards = self.shards.lock();
        shards.retain(|shard| shard.strong_count() > 0);
        shards.push(Arc::downgrade(&pools));
        pools
    }

    /// Waits up to `limit` for a server that fits.
    ///
    /// # Errors
    /// [`SendError::NotSent`] with what is known about the servers when there is none in time.
    pub async fn wait_for(&self, selection: &Selection, limit: Duration) -> Result<ServerId, SendError> {
        let deadline = tokio::time::Instant::now() + limit;
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            if let Some(server) = self.select(selection, rand::random::<u16>().into()) {
                return Ok(server);
            }
            let now = tokio::time::Instant::now();
            if now >= deadline || self.is_gone(selection) {
                return Err(self.no_server(selection, limit));
            }
            self.seek();
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(deadline.min(now + MIN_INTERVAL)) => {}
            }
        }
    }

    pub(super) fn select(&self, selection: &Selection, random: usize) -> Option<ServerId> {
        let tuning = Tuning {
            latency_window: self.settings.latency_window,
            heartbeat: self.settings.heartbeat,
            random,
        };
        select(&self.topology.load(), selection, tuning).map(|server| server.address.clone())
    }

    /// Whether a server is wanted that the cluster has removed, so that waiting is no use.
    fn is_gone(&self, selection: &Selection) -> bool {
        let Selection::Server(address) = selection else { return false };
        let topology = self.topology.load();
        let complete = match topology.kind {
            TopologyKind::Unknown => false,
            TopologyKind::ReplicaSet { .. } => topology.primary().is_some() || topology.is_direct(),
            TopologyKind::Standalone | TopologyKind::Sharded => true,
        };
        complete && topology.server(address).is_none()
    }

    fn no_server(&self, selection: &Selection, limit: Duration) -> SendError {
        let wanted = match selection {
            Selection::Primary => "primary or router".to_owned(),
            Selection::Server(address) => format!("server {address}"),
            Selection::ReadPreference(preference) => format!("server for {preference:?}"),
        };
        let summary = self.topology.load().summary();
        SendError::NotSent(format!("no {wanted} within {}; the servers are: {summary}", spoken(limit)))
    }

    /// Makes monitors that sleep ask now, because somebody waits for a server.
    fn seek(&self) {
        for member in self.members.lock().values() {
            member.wake.notify_one();
        }
    }

    /// Asks `server` for its state now instead of at the next heartbeat.
    pub fn request_check(&self, server: &ServerId) {
        if let Some(member) = self.member(server) {
            member.recheck.notify_one();
        }
    }

    pub(super) fn member(&self, server: &ServerId) -> Option<Arc<Member>> {
        self.members.lock().get(server).cloned()
    }

    /// Takes note of an error code in a reply of `server` (of the command or of its `writeConcernError`):
    /// not-primary and shutdown codes make it unknown until it is checked again. Other codes do nothing.
    pub fn note_reply_error(&self, server: &ServerId, code: i32) {
        let recovering = RECOVERING.contains(&code);
        if !recovering && !NOT_PRIMARY.contains(&code) {
            return;
        }
        let Some(member) = self.member(server) else { return };
        if SHUTDOWN.contains(&code) {
            member.retire_connections();
        }
        let role = self.topology.load().server(server).map(|known| known.role);
        // A late answer from before a step-down that is known already says nothing about now.
        let news = role == Some(Role::Primary) || (recovering && role != Some(Role::Unknown));
        if news {
            tracing::info!(%server, code, "the server gave up its role");
            self.update(|topology| topology.with_failure(server, format!("it answered with code {code}")));
            member.recheck.notify_one();
        }
    }

    /// Takes note that a connection of `generation` broke in use.
    pub(super) fn note_broken_connection(&self, member: &Member, generation: u64, error: &str) {
        // Many connections break at once when a server goes; the first one speaks for all.
        if member.retire_generation(generation) {
            self.update(|topology| topology.with_failure(&member.address, error.to_owned()));
            member.recheck.notify_one();
        }
    }

    pub(super) fn note_check_failed(&self, member: &Member, error: String) {
        member.retire_connections();
        self.update(|topology| topology.with_failure(&member.address, error));
    }

    /// Takes note that a server accepts connections and bytes, but does not answer. Operations on it would
    /// wait for ever, so they are ended.
    pub(super) fn note_hung(&self, member: &Member, error: String) {
        tracing::warn!(server = %member.address, error, "the server hangs; ending its connections");
        self.note_check_failed(member, error);
        self.for_all_pools(|pools| pools.cut(&member.address));
    }

    pub(super) fn note_hello(self: &Arc<Self>, address: &str, hello: &HelloReply, rtt: Option<Duration>) {
        let now_millis = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.update(|topology| topology.with_reply(address, hello, rtt, now_millis));
        self.watch_new_members();
    }

    /// Takes `servers` for all of them.
    pub(super) fn keep_to(self: &Arc<Self>, servers: &[ServerId]) {
        self.update(|topology| topology.with_servers(servers));
        self.watch_new_members();
    }

    fn update(&self, change: impl FnOnce(&Topology) -> Topology) {
        let mut members = self.members.lock();
        let before = self.topology.load_full();
        let after = Arc::new(change(&before));
        members.retain(|address, member| {
            let stays = after.server(address).is_some();
            if !stays {
                member.remove();
            }
            stays
        });
        let primary = |topology: &Topology| topology.primary().map(|server| server.address.clone());
        let (old_primary, new_primary) = (primary(&before), primary(&after));
        self.topology.store(after);
        if old_primary != new_primary {
            tracing::info!(from = ?old_primary, to = ?new_primary, "the primary changed");
            // One that was replaced may hang: find out now, not when it is next due.
            if let (Some(old), Some(_)) = (&old_primary, &new_primary)
                && let Some(member) = members.get(old)
            {
                member.recheck.notify_one();
            }
        }
        drop(members);
        self.changes.send_modify(|version| *version = version.wrapping_add(1));
    }

    /// Starts monitors for servers that are new in the topology.
    fn watch_new_members(self: &Arc<Self>) {
        let mut members = self.members.lock();
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        let _on_runtime = self.runtime.enter();
        for server in &self.topology.load().servers {
            members.entry(server.address.clone()).or_insert_with(|| {
                let member = Arc::new(Member::new(server.address.clone()));
                self.tasks.spawn("monitor", Box::pin(monitor::watch(self.clone(), member.clone())));
                member
            });
        }
    }

    fn for_all_pools(&self, act: impl Fn(&Pools)) {
        let mut shards = self.shards.lock();
        shards.retain(|shard| shard.upgrade().inspect(|pools| act(pools)).is_some());
    }
}

/// Closes connections that nobody needs, and opens those that should always be there, for as long as the cluster is in
/// use.
async fn sweep(cluster: Weak<Cluster>, mut changes: watch::Receiver<u64>) {
    let mut due = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        let swept = tokio::select! {
            _ = due.tick() => true,
            changed = changes.changed() => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
        };
        let Some(cluster) = cluster.upgrade() else { return };
        if swept {
            cluster.for_all_pools(Pools::sweep);
        }
        cluster.for_all_pools(Pools::warm);
    }
}
