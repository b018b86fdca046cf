//! Building the control plane, and what the data plane needs of it.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::clock::{SharedClock, SystemClock};
use crate::cluster::command::SharedCluster;
use crate::cluster::{Cluster, Pools, Settings as ClusterSettings};
use crate::converge::active::Registry;
use crate::converge::sessions::SESSIONS;
use crate::migration::engine::{Engine, Environment, Open, Opened, Settings};
use crate::migration::{rehearsal, shadow};
use crate::model::side::{PerSide, Side};
use crate::policy::safeguards::Safeguards;
use crate::router::entry::{Gate, MOST_HELD};
use crate::router::mirroring::{MOST_JOBS, Mirroring};
use crate::router::writer::Writer;
use crate::shutdown::{SharedSpawn, Tasks};
use crate::state::inflight::Inflight;
use crate::state::records::Records;
use crate::state::table::Routing;
use crate::state::transactions::Transactions;

/// Connections of the control plane to each server.
const CONNECTIONS: usize = 100;
/// Connections of a copy to each server.
const COPY_CONNECTIONS: usize = 32;
/// How long a record may take to be read or changed.
const RECORD_LIMIT: Duration = Duration::from_secs(10);

/// The control plane, and the way into it for the data plane.
pub(super) struct ControlPlane {
    /// The engine.
    pub engine: Arc<Engine>,
    gate: Gate,
}

/// The defaults of the configuration.
pub(super) const fn defaults() -> Settings {
    Settings {
        max_pause: Duration::from_millis(500),
        mirror_timeout: Duration::from_secs(1),
        lease: Duration::from_secs(6),
        hold: Duration::from_secs(7 * 24 * 60 * 60),
        backfill_parallel: None,
        mirror_sessions: SESSIONS,
        state: Side::Old,
    }
}

impl ControlPlane {
    pub(super) fn new(
        holder: &str,
        clusters: &[Option<Arc<Cluster>>; 2],
        open: Open,
        settings: Settings,
        tasks: &Tasks,
    ) -> Self {
        let clock: SharedClock = Arc::new(SystemClock);
        let routing = Arc::new(Routing::default());
        let inflight = Inflight::new(Arc::clone(&routing), clock.clone());
        let registry = Arc::new(Registry::default());
        let shared = PerSide::from_fn(|side| {
            clusters[side.index()].as_ref().map(|cluster| cluster.pools(CONNECTIONS) as SharedCluster)
        });
        let records = PerSide::from_fn(|side| {
            let cluster = shared.get(side).clone()?;
            Some(Arc::new(Records::new(cluster, clock.clone(), Uuid::new_v4(), RECORD_LIMIT)))
        });
        let shadow = match clusters {
            [Some(old), Some(new)] => {
                let own = |cluster: &Arc<Cluster>| {
                    cluster.pools(shadow::connections(cluster.settings().max_pool_size)) as SharedCluster
                };
                Some(PerSide { old: own(old), new: own(new) })
            }
            _ => None,
        };
        let rehearsal = clusters[Side::New.index()]
            .as_ref()
            .map(|new| new.pools(rehearsal::CONNECTIONS) as SharedCluster);
        let clusters = match shared {
            PerSide { old: Some(old), new: Some(new) } => Some(PerSide { old, new }),
            _ => None,
        };
        let gate = Gate {
            routing: Arc::clone(&routing),
            inflight: Arc::clone(&inflight),
            registry: Arc::clone(&registry),
            waiting: Arc::new(Semaphore::new(MOST_HELD)),
            unsettled: Arc::default(),
            clock: clock.clone(),
        };
        let engine = Engine::new(Environment {
            holder: holder.to_owned(),
            clusters,
            shadow,
            rehearsal,
            open,
            settings,
            clock,
            spawn: Arc::new(tasks.clone()),
            routing,
            inflight,
            registry,
            safeguards: Safeguards::default(),
            records,
        });
        Self { engine, gate }
    }

    /// Moves may end the open transactions of the data plane.
    pub(super) fn knows_transactions(&self, transactions: Arc<dyn Transactions>) {
        // Told once, when the process is put together.
        _ = self.gate.registry.transactions.set(transactions);
    }

    /// What the data plane needs.
    pub(super) fn data(&self) -> Gate {
        self.gate.clone()
    }
}

/// The engine of a plain proxy: it refuses migrations with the reason.
pub(super) fn plain_engine(holder: &str, clusters: &[Option<Arc<Cluster>>; 2], tasks: &Tasks) -> Arc<Engine> {
    let nothing: Open = Arc::new(|_| async { Err("there is no [new]".to_owned()) }.boxed());
    ControlPlane::new(holder, clusters, nothing, defaults(), tasks).engine
}

/// The way through migrations for one worker and one user; `own` are the pools of this process's user.
pub(super) fn writer(
    gate: &Gate,
    pools: PerSide<Arc<Pools>>,
    own: PerSide<Arc<Pools>>,
    tasks: &Tasks,
) -> Writer {
    let spawn: SharedSpawn = Arc::new(tasks.clone());
    let mirroring = Mirroring { spawn, jobs: Arc::new(Semaphore::new(MOST_JOBS)), clock: gate.clock.clone() };
    Writer {
        clusters: PerSide { old: pools.old as SharedCluster, new: pools.new },
        own: PerSide { old: own.old as SharedCluster, new: own.new },
        gate: gate.clone(),
        mirroring,
    }
}

/// Opens connections of their own under another application name.
pub(super) fn opener(old: ClusterSettings, new: ClusterSettings) -> Open {
    Arc::new(move |name| {
        let (old, new) = (old.clone().app_name(name.clone()), new.clone().app_name(name));
        async move {
            let tasks = Tasks::default();
            let old = Cluster::connect(old, &tasks).await.map_err(|error| error.to_string())?;
            let new = Cluster::connect(new, &tasks).await.map_err(|error| error.to_string())?;
            let clusters = PerSide {
                old: old.pools(COPY_CONNECTIONS) as SharedCluster,
                new: new.pools(COPY_CONNECTIONS) as SharedCluster,
            };
            let close = Box::new(move || {
                old.close();
                new.close();
                tasks.token().cancel();
            });
            Ok(Opened { clusters, close })
        }
        .boxed()
    })
}
