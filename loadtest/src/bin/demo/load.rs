//! The application: two loads, one for each collection.

use std::time::Instant;

use anyhow::{Result, ensure};
use futures::future::{join, try_join};
use parking_lot::Mutex;
use reshard_loadtest::{Load, LoadConfig, Outcome, Profile};

use crate::Args;

/// The migration of the collection that moves by percent.
pub(crate) const ORDERS: &str = "orders";
/// The migration of the collection that moves in one step.
pub(crate) const CUSTOMERS: &str = "customers";
/// Both.
pub(crate) const BOTH: [&str; 2] = [ORDERS, CUSTOMERS];

/// `database.collection` of a migration.
pub(crate) fn namespace(migration: &str) -> String {
    format!("shop.{migration}")
}

/// Both loads.
pub(crate) struct Application {
    orders: Load,
    customers: Load,
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
    let (profile, documents, share, workers) = match migration {
        ORDERS => (Profile::Keyed, args.documents, 0.7, 8),
        _ => (Profile::Unique, args.customers, 0.3, 4),
    };
    LoadConfig {
        uri: uri.to_owned(),
        database: "shop".into(),
        collection: migration.to_owned(),
        profile,
        documents,
        workers,
        rate: Some(args.rate * share),
        document_size: 500,
        first_phase: "before".into(),
        ..LoadConfig::default()
    }
}

/// Fills both collections, at `uri`.
pub(crate) async fn fill(args: &Args, uri: &str) -> Result<()> {
    let (orders, customers) = (config(args, uri, ORDERS), config(args, uri, CUSTOMERS));
    try_join(Load::prepare(&orders), Load::prepare(&customers)).await.map(|_| ())
}

impl Application {
    pub(crate) async fn start(args: &Args, uri: &str) -> Result<Self> {
        let (orders, customers) = (config(args, uri, ORDERS), config(args, uri, CUSTOMERS));
        let (orders, customers) = try_join(Load::start(orders), Load::start(customers)).await?;
        Ok(Self { orders, customers, last: Mutex::new((Instant::now(), 0)) })
    }

    fn both(&self) -> [&Load; 2] {
        [&self.orders, &self.customers]
    }

    pub(crate) fn set_phase(&self, name: &str) {
        self.both().into_iter().for_each(|load| load.set_phase(name));
    }

    pub(crate) fn resume(&self, phase: &str) {
        self.both().into_iter().for_each(|load| load.resume(phase));
    }

    pub(crate) async fn pause(&self) -> Result<()> {
        let (orders, customers) = join(self.orders.pause(), self.customers.pause()).await;
        ensure!(orders && customers, "operations of the application do not end");
        Ok(())
    }

    pub(crate) async fn stop(self) -> [Outcome; 2] {
        let (orders, customers) = join(self.orders.stop(), self.customers.stop()).await;
        [orders, customers]
    }

    /// Operations each second are those since the last call.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn pulse(&self) -> Pulse {
        let glances = self.both().map(Load::glance);
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
