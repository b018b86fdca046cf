//! The application: one load for each collection.

use std::time::Instant;

use anyhow::{Result, ensure};
use futures::future::{join_all, try_join_all};
use parking_lot::Mutex;
use reshard_loadtest::{KeyFields, Load, LoadConfig, Outcome, Profile};

use crate::Args;
use crate::cluster::Topology;

/// The database of all of them.
pub(crate) const DATABASE: &str = "shop";
/// The migration of the collection that moves by percent.
pub(crate) const ORDERS: &str = "orders";
/// The migration of the collection that moves in one step.
pub(crate) const CUSTOMERS: &str = "customers";
/// Both.
pub(crate) const BOTH: [&str; 2] = [ORDERS, CUSTOMERS];

/// `database.collection` of a migration.
pub(crate) fn namespace(migration: &str) -> String {
    format!("{DATABASE}.{migration}")
}

/// All loads.
pub(crate) struct Application {
    loads: Vec<Load>,
    last: Mutex<(Instant, u64)>,
}

/// How the application is doing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pulse {
    pub(crate) per_second: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) acknowledged: u64,
    pub(crate) errors: u64,
    pub(crate) violations: u64,
}

fn config(args: &Args, uri: &str, migration: &str) -> LoadConfig {
    let (profile, documents, share, workers) = match (args.topology, migration) {
        (Topology::Sharded, _) => (Profile::Keyed, args.documents, 1.0, 8),
        (Topology::ReplicaSets, ORDERS) => (Profile::Keyed, args.documents, 0.7, 8),
        (Topology::ReplicaSets, _) => (Profile::Unique, args.customers, 0.3, 4),
    };
    let key_fields = match args.topology {
        Topology::Sharded => KeyFields::CustomerOrder,
        Topology::ReplicaSets => KeyFields::Id,
    };
    LoadConfig {
        uri: uri.to_owned(),
        database: DATABASE.into(),
        collection: migration.to_owned(),
        profile,
        key_fields,
        documents,
        workers,
        rate: Some(args.rate * share),
        document_size: 500,
        first_phase: "before".into(),
        ..LoadConfig::default()
    }
}

/// Fills all collections, at `uri`.
pub(crate) async fn fill(args: &Args, uri: &str) -> Result<()> {
    let configs: Vec<_> = args.migrations().iter().map(|migration| config(args, uri, migration)).collect();
    try_join_all(configs.iter().map(Load::prepare)).await.map(|_| ())
}

impl Application {
    pub(crate) async fn start(args: &Args, uri: &str) -> Result<Self> {
        let starts = args.migrations().iter().map(|migration| Load::start(config(args, uri, migration)));
        Ok(Self { loads: try_join_all(starts).await?, last: Mutex::new((Instant::now(), 0)) })
    }

    pub(crate) fn set_phase(&self, name: &str) {
        self.loads.iter().for_each(|load| load.set_phase(name));
    }

    pub(crate) fn resume(&self, phase: &str) {
        self.loads.iter().for_each(|load| load.resume(phase));
    }

    pub(crate) async fn pause(&self) -> Result<()> {
        let paused = join_all(self.loads.iter().map(Load::pause)).await;
        ensure!(paused.into_iter().all(|paused| paused), "operations of the application do not end");
        Ok(())
    }

    /// In the order of the migrations.
    pub(crate) async fn stop(self) -> Vec<Outcome> {
        join_all(self.loads.into_iter().map(Load::stop)).await
    }

    /// Operations each second are those since the last call.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn pulse(&self) -> Pulse {
        let glances: Vec<_> = self.loads.iter().map(Load::glance).collect();
        let operations = glances.iter().map(|glance| glance.operations).sum::<u64>();
        let per_second = {
            let (at, before) = std::mem::replace(&mut *self.last.lock(), (Instant::now(), operations));
            operations.saturating_sub(before) as f64 / at.elapsed().as_secs_f64().max(0.001)
        };
        let worst = |of: fn(&reshard_loadtest::Latency) -> f64| {
            glances.iter().map(|glance| of(&glance.latency)).fold(0.0, f64::max)
        };
        Pulse {
            per_second,
            p50: worst(|latency| latency.p50),
            p99: worst(|latency| latency.p99),
            acknowledged: glances.iter().map(|glance| glance.acknowledged).sum(),
            errors: glances.iter().map(|glance| glance.errors).sum(),
            violations: glances.iter().map(|glance| glance.violations).sum(),
        }
    }
}
