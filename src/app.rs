//! The composition root: builds everything, returns bound addresses, runs, drains.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::SystemClock;
use crate::cluster::{Cluster, ClusterError, Settings as ClusterSettings};
use crate::listener::hello::{Face, SharedFace};
use crate::listener::worker::BuildRouter;
use crate::listener::{Listener, Settings as ListenerSettings, Workers};
use crate::router::{AlwaysOld, Route, Router, Shared};
use crate::shutdown::{Spawn, Tasks};

/// How often idle cursors are forgotten and gauges are set.
const SWEEP: Duration = Duration::from_secs(5);
/// How often the clusters are looked at until both are known.
const LOOK: Duration = Duration::from_millis(50);
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
}

/// What the proxy is built from.
pub struct Builder {
    old: ClusterSettings,
    new: Option<ClusterSettings>,
    listener: ListenerSettings,
    route: Arc<dyn Route>,
}

impl Builder {
    /// A proxy for the old cluster.
    #[must_use]
    pub fn new(old: ClusterSettings, listener: ListenerSettings) -> Self {
        Self { old, new: None, listener, route: Arc::new(AlwaysOld) }
    }

    /// With a new cluster.
    #[must_use]
    pub fn with_new(mut self, new: ClusterSettings) -> Self {
        self.new = Some(new);
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
    pub async fn start(self) -> Result<Proxy, StartError> {
        let tasks = Tasks::default();
        let listener = Listener::bind(self.listener.listen)?;
        let workers = self.listener.workers.get();
        let share = |settings: &ClusterSettings| {
            usize::try_from(settings.max_pool_size).unwrap_or(usize::MAX).div_ceil(workers).max(1)
        };
        let shares = [share(&self.old), self.new.as_ref().map_or(1, share)];
        let old = Cluster::connect(self.old, &tasks).await?;
        let new = match self.new {
            Some(settings) => Some(Cluster::connect(settings, &tasks).await?),
            None => None,
        };
        let clusters = [Some(old), new];

        let face = Arc::new(SharedFace::new());
        tasks.spawn("face", Box::pin(find_face(clusters.clone(), face.clone())));
        let shared = Shared::new(Arc::new(SystemClock));
        tasks.spawn("sweep", Box::pin(sweep(shared.clone())));

        let build: BuildRouter = {
            let (clusters, shared, route) = (clusters.clone(), shared.clone(), self.route);
            Arc::new(move || {
                let pools =
                    [0, 1].map(|side| clusters[side].as_ref().map(|cluster| cluster.pools(shares[side])));
                Router::new(shared.clone(), pools, route.clone())
            })
        };
        let workers = Arc::new(Workers::start(self.listener.workers, self.listener.drain, &face, &build)?);
        let address = listener.address();
        let accepting = CancellationToken::new();
        let acceptor =
            tokio::spawn(listener.accept(workers.clone(), self.listener.max_clients, accepting.clone()));
        tracing::info!(%address, "serving clients");
        Ok(Proxy { address, tasks, workers, accepting, acceptor, clusters, shared })
    }
}

/// The running proxy.
pub struct Proxy {
    address: SocketAddr,
    tasks: Tasks,
    workers: Arc<Workers>,
    accepting: CancellationToken,
    acceptor: tokio::task::JoinHandle<()>,
    clusters: [Option<Arc<Cluster>>; 2],
    shared: Arc<Shared>,
}

impl Proxy {
    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
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
    pub async fn shutdown(self) -> bool {
        self.accepting.cancel();
        _ = self.acceptor.await;
        let drained = self.workers.stop().await;
        self.tasks.stop(STOP).await && drained
    }
}

/// Fixes what clients are told, as soon as all clusters are known.
async fn find_face(clusters: [Option<Arc<Cluster>>; 2], face: Arc<SharedFace>) {
    loop {
        let faces: Option<Vec<Face>> = clusters.iter().flatten().map(|cluster| face_of(cluster)).collect();
        if let Some(common) = faces.and_then(|faces| faces.into_iter().reduce(Face::and)) {
            if common.min_wire_version > common.max_wire_version {
                tracing::error!("the clusters have no wire version in common");
            }
            _ = face.set(common);
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn face_of(cluster: &Cluster) -> Option<Face> {
    let topology = cluster.topology();
    let (min_wire_version, max_wire_version) = topology.wire_versions()?;
    let limits = topology.limits()?;
    Some(Face {
        min_wire_version,
        max_wire_version,
        max_bson_object_size: limits.max_bson_object_size,
        max_message_size: limits.max_message_size,
        max_write_batch_size: limits.max_write_batch_size,
        session_timeout_minutes: topology.session_timeout_minutes(),
    })
}

async fn sweep(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        shared.sweep();
    }
}
