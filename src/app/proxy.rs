//! The running proxy: builds everything, returns bound addresses, drains.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::capabilities::find_capabilities;
use super::control::{ControlPlane, defaults, opener, plain_engine, writer};
use super::sockets::{bind_admin, bind_all, go_on_with, keep};
use crate::admin;
use crate::clock::SystemClock;
use crate::cluster::uri::UriError;
use crate::cluster::{Cluster, ClusterError, Settings as ClusterSettings};
use crate::handover::{Handed, Left};
use crate::listener::hello::SharedCapabilities;
use crate::listener::worker::{BuildRouter, User};
use crate::listener::{Listener, Settings as ListenerSettings, Workers};
use crate::migration::engine::{Engine, Settings as MigrationSettings};
use crate::migration::holder::app_name;
use crate::model::side::{PerSide, Side};
use crate::router::entry::Gate;
use crate::router::{AlwaysOld, Route, Router, Shared};
use crate::shutdown::{Spawn, Tasks};
use crate::telemetry::recorder;

/// How often idle cursors are forgotten and gauges are set.
const SWEEP: Duration = Duration::from_secs(5);
/// How long operations may take to end when another program takes over. New clients wait meanwhile.
const HAND_OVER: Duration = Duration::from_secs(5);
/// How long background tasks may take to end.
const STOP: Duration = Duration::from_secs(5);

/// Why the proxy cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A cluster cannot be used.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A thread or a socket cannot be had.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// An address cannot be listened on.
    #[error("[{section}] address: {error}; give it a free one, or end the process that listens there")]
    Address {
        /// The section of the configuration.
        section: String,
        /// The address and why not.
        error: std::io::Error,
    },
    /// A connection string cannot be used.
    #[error("[{0}] uri: {1}")]
    Uri(Side, UriError),
    /// Metrics cannot be collected.
    #[error("metrics: {0}")]
    Metrics(String),
    /// What is stored with the clusters does not fit the configuration.
    #[error("{0}")]
    Refused(String),
}

/// What the proxy is built from.
pub struct Builder {
    old: ClusterSettings,
    new: Option<ClusterSettings>,
    listener: ListenerSettings,
    route: Arc<dyn Route>,
    migrations: MigrationSettings,
    admin: Option<SocketAddr>,
    holder: String,
    handed: Handed,
}

impl Builder {
    /// A proxy for the old cluster.
    #[must_use]
    pub fn new(old: ClusterSettings, listener: ListenerSettings) -> Self {
        let holder = uuid::Uuid::new_v4().simple().to_string();
        Self {
            old,
            new: None,
            listener,
            route: Arc::new(AlwaysOld),
            migrations: defaults(),
            admin: None,
            holder,
            handed: Handed::default(),
        }
    }

    /// With these times and limits of migrations.
    #[must_use]
    pub fn with_migrations(mut self, migrations: MigrationSettings) -> Self {
        self.migrations = migrations;
        self
    }

    /// With the admin API at `address`; port 0 takes a free one.
    #[must_use]
    pub fn with_admin(mut self, address: SocketAddr) -> Self {
        self.admin = Some(address);
        self
    }

    /// With a new cluster.
    #[must_use]
    pub fn with_new(mut self, new: ClusterSettings) -> Self {
        self.new = Some(new);
        self
    }

    /// With sockets that this process was started with: used for the addresses that they listen on.
    #[must_use]
    pub fn with_sockets(mut self, handed: Handed) -> Self {
        self.handed = handed;
        self
    }

    /// With another route.
    #[must_use]
    pub fn with_route(mut self, route: Arc<dyn Route>) -> Self {
        self.route = route;
        self
    }

    /// Starts everything on this runtime and on threads of the workers.
    ///
    /// # Errors
    /// [`StartError`]; clusters that do not answer are no error.
    pub async fn start(mut self) -> Result<Proxy, StartError> {
        // First of all: a handle of a metric that is made before there is a recorder counts nothing, ever.
        let metrics = self.admin.map(|_| recorder::install()).transpose().map_err(StartError::Metrics)?;
        let tasks = Tasks::default();
        let entrances = bind_all(&self.listener, &mut self.handed)?;
        let admin = self.admin.map(|address| bind_admin(address, &mut self.handed)).transpose()?;
        for address in self.handed.left() {
            tracing::warn!(%address, "closed a socket that was handed over: the configuration does not name it");
        }
        let kept = keep(&entrances, admin.as_ref())?;
        let workers = self.listener.workers.get();
        let share = |settings: &ClusterSettings| {
            usize::try_from(settings.max_pool_size).unwrap_or(usize::MAX).div_ceil(workers).max(1)
        };
        let shares = [share(&self.old), self.new.as_ref().map_or(1, share)];
        let named = |settings: ClusterSettings| settings.app_name(app_name(&self.holder));
        let (old, new) = (named(self.old), self.new.map(named));
        let opener = new.clone().map(|new| opener(old.clone(), new));
        let old = Cluster::connect(old, &tasks).await?;
        let new = match new {
            Some(settings) => Some(Cluster::connect(settings, &tasks).await?),
            None => None,
        };
        let clusters = [Some(old), new];
        if let [Some(old), Some(new)] = &clusters {
            old.gossip().expect_foreign_times();
            new.gossip().expect_foreign_times();
        }

        let capabilities = Arc::new(SharedCapabilities::new());
        let shared = Shared::new(Arc::new(SystemClock));
        tasks.spawn("sweep", Box::pin(sweep(shared.clone())));
        let control =
            opener.map(|open| ControlPlane::new(&self.holder, &clusters, open, self.migrations, &tasks));

        if let Some(control) = &control {
            control.knows_transactions(shared.clone());
        }
        let build = routers(Parts {
            clusters: clusters.clone(),
            shares,
            shared: shared.clone(),
            route: self.route,
            gate: control.as_ref().map(ControlPlane::data),
            tasks: tasks.clone(),
        });
        let workers = Arc::new(Workers::start(&self.listener, &capabilities, &build)?);
        go_on_with(&mut self.handed, &entrances, &workers);
        let addresses: Vec<(String, SocketAddr)> =
            entrances.iter().map(|(name, listener)| (name.clone(), listener.address())).collect();
        let address = addresses[0].1;
        let accepting = CancellationToken::new();
        let accept = |(_, listener): (String, Listener)| {
            tokio::spawn(listener.accept(workers.clone(), self.listener.max_clients, accepting.clone()))
        };
        let acceptors = entrances.into_iter().map(accept).collect();
        let engine =
            control.map_or_else(|| plain_engine(&self.holder, &clusters, &tasks), |control| control.engine);
        engine.will_show(Arc::clone(&capabilities));
        if self.listener.entrances.iter().any(|entrance| entrance.login) {
            engine.clients_log_in();
        }
        let finding = find_capabilities(Arc::clone(&engine), clusters.clone(), capabilities);
        tasks.spawn("capabilities", Box::pin(finding));
        let begin = Arc::clone(&engine);
        tasks.spawn("engine", Box::pin(async move { begin.begin().await }));
        let admin = match admin.zip(metrics) {
            Some((socket, metrics)) => Some(serve_admin(socket, Arc::clone(&engine), metrics, &tasks)?),
            None => None,
        };
        tracing::info!(%address, ?admin, "serving clients");
        Ok(Proxy { addresses, admin, engine, tasks, workers, accepting, acceptors, clusters, shared, kept })
    }
}

/// The running proxy.
pub struct Proxy {
    addresses: Vec<(String, SocketAddr)>,
    admin: Option<SocketAddr>,
    engine: Arc<Engine>,
    tasks: Tasks,
    workers: Arc<Workers>,
    accepting: CancellationToken,
    acceptors: Vec<tokio::task::JoinHandle<()>>,
    clusters: [Option<Arc<Cluster>>; 2],
    shared: Arc<Shared>,
    /// All listening sockets once more: clients can connect as long as these are open.
    kept: Vec<OwnedFd>,
}

impl Proxy {
    /// Where clients connect: the address of the first listener.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.addresses[0].1
    }

    /// Where the clients of the listener `name` connect: its own address, then those of its secondaries.
    #[must_use]
    pub fn addresses_of(&self, name: &str) -> Vec<SocketAddr> {
        self.addresses.iter().filter(|(of, _)| of == name).map(|(_, address)| *address).collect()
    }

    /// Where the admin API listens.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// The control plane.
    #[must_use]
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The clusters, by [`crate::model::side::Side::index`].
    #[must_use]
    pub fn clusters(&self) -> &[Option<Arc<Cluster>>; 2] {
        &self.clusters
    }

    /// The tables that the workers share.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Stops accepting, lets running operations end, closes clients between operations, stops everything.
    /// Returns whether it all ended within the grace.
    pub async fn shutdown(mut self) -> bool {
        // Who connects now is refused at once, and need not wait.
        self.kept.clear();
        let (drained, ended) = self.end(|workers| workers.stop(Duration::MAX)).await;
        drained && ended
    }

    /// As [`Self::shutdown`], but the listening sockets stay open, and who connects waits there for another process
    /// to take them; so do clients that are connected, if that one goes on with them. Operations get less time: drivers
    /// give up waiting after 10 s.
    pub async fn hand_over(mut self, clients: bool) -> Left {
        let listening = std::mem::take(&mut self.kept);
        let (clients, _) = if clients {
            self.end(|workers| workers.leave_clients(HAND_OVER)).await
        } else {
            self.end(|workers| workers.stop(HAND_OVER).map(|_| Vec::new())).await
        };
        Left { listening, clients, ..Left::default() }
    }

    /// Ends the workers by `leave`, and everything else; returns what came of that, and whether all ended in time.
    async fn end<Leaving: Future>(
        self,
        leave: impl FnOnce(Arc<Workers>) -> Leaving,
    ) -> (Leaving::Output, bool) {
        self.accepting.cancel();
        futures::future::join_all(self.acceptors).await;
        let left = leave(self.workers).await;
        self.engine.leave().await;
        let ended = self.tasks.stop(STOP).await;
        for cluster in self.clusters.iter().flatten() {
            cluster.close();
        }
        (left, ended)
    }
}

/// What routers are made of.
struct Parts {
    clusters: [Option<Arc<Cluster>>; 2],
    /// Connections of one worker and one user to each server.
    shares: [usize; 2],
    shared: Arc<Shared>,
    route: Arc<dyn Route>,
    gate: Option<Gate>,
    tasks: Tasks,
}

/// Makes the routers of workers and of users.
fn routers(parts: Parts) -> BuildRouter {
    Arc::new(move |user: Option<User<'_>>| {
        let login = user.as_ref().map(|user| user.login.clone());
        let pools = [0, 1].map(|side: usize| {
            let cluster = parts.clusters[side].as_ref();
            cluster.map(|cluster| match &login {
                None => cluster.warm_pools(parts.shares[side]),
                Some(login) => cluster.pools_of(parts.shares[side], login.clone()),
            })
        });
        let router = Router::new(parts.shared.clone(), pools.clone(), parts.route.clone());
        let (router, own) = match user {
            None => (router, pools.clone()),
            Some(user) => (router.of_user(user.digest), user.beside.all_pools().clone()),
        };
        match (&parts.gate, pools, own) {
            (Some(gate), [Some(old), Some(new)], [Some(own_old), Some(own_new)]) => {
                let (pools, own) = (PerSide { old, new }, PerSide { old: own_old, new: own_new });
                router.with_writer(writer(gate, pools, own, &parts.tasks))
            }
            _ => router,
        }
    })
}

/// Serves the admin API in the background; returns where.
fn serve_admin(
    listener: TcpListener,
    engine: Arc<Engine>,
    metrics: PrometheusHandle,
    tasks: &Tasks,
) -> Result<SocketAddr, StartError> {
    let bound = listener.local_addr()?;
    let router = admin::router(engine, metrics);
    let token = tasks.token();
    let serve = async move {
        if let Err(error) = admin::serve(listener, router, token).await {
            tracing::error!(%error, "the admin API ended");
        }
    };
    tasks.spawn("admin", Box::pin(serve));
    Ok(bound)
}

async fn sweep(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        shared.sweep();
    }
}
