//! A whole migration under load, with a proxy in this process.

use std::time::Duration;

use anyhow::Result;
use reshard::app::Proxy;
use reshard::migration::engine::Settings;
use reshard_loadtest::{ErrorStats, Load, Profile};
use reshard_testbed::ReplicaSet;

use super::proof::{are_equal_at_rest, each_write_counts_once, load, no_errors, prove, work};
use super::{Operator, proxy_with, uri};

/// Two clusters, a proxy, a load, and the migration of what the load works on.
pub(crate) struct Trial {
    pub(crate) old: ReplicaSet,
    pub(crate) new: ReplicaSet,
    pub(crate) operator: Operator,
    proxy: Proxy,
    load: Load,
    namespace: String,
}

/// What is there after the proof; the clusters run until this goes.
pub(crate) struct Held {
    pub(crate) proxy: Proxy,
    pub(crate) operator: Operator,
    _clusters: [ReplicaSet; 2],
}

impl Trial {
    /// The load goes on, and the migration has started.
    pub(crate) async fn start(
        old: ReplicaSet,
        new: ReplicaSet,
        profile: Profile,
        documents: usize,
    ) -> Result<Self> {
        let trial = Self::create(old, new, profile, documents).await?;
        trial.operator.start().await?;
        Ok(trial)
    }

    /// The load goes on, and the migration is yet to be started.
    pub(crate) async fn create(
        old: ReplicaSet,
        new: ReplicaSet,
        profile: Profile,
        documents: usize,
    ) -> Result<Self> {
        // As long as leases are by default: here no process follows another, and elections take their time.
        let settings = Settings { lease: Duration::from_secs(6), ..super::settings() };
        let proxy = proxy_with(&old.uri(), Some(&new.uri()), settings).await?;
        let config = load(uri(&proxy), profile, documents);
        let namespace = config.namespace();
        let operator = Operator::of(&proxy, &config.collection);
        Load::prepare(&config).await?;
        let load = Load::start(config).await?;
        operator.create(&[&namespace]).await?;
        Ok(Self { old, new, operator, proxy, load, namespace })
    }

    /// The connection string of applications.
    pub(crate) fn uri(&self) -> String {
        uri(&self.proxy)
    }

    /// The load makes so many more operations.
    pub(crate) async fn work(&self, operations: u64) -> Result<()> {
        work(&self.load, operations).await
    }

    /// All reads and then all writes move to new, while the load goes on.
    pub(crate) async fn all_to_new(&self) -> Result<()> {
        self.operator.reads(100).await?;
        self.operator.writes(100).await?;
        self.work(200).await
    }

    /// All goes back to old, while the load goes on.
    pub(crate) async fn back(&self) -> Result<()> {
        self.operator.rollback().await?;
        self.work(200).await
    }

    /// Both sides are equal; then it completes, while the load goes on.
    pub(crate) async fn complete(&self) -> Result<()> {
        let level = async {
            self.operator.until_level().await?;
            self.operator.found_none_past_the_proxy().await
        };
        are_equal_at_rest(&self.load, level, (&self.old, &self.new), &self.namespace).await?;
        self.operator.complete().await?;
        self.work(200).await
    }

    /// After [`Self::complete`]: every write counts once on new, which is alone now. The application has seen no
    /// error but such as `allowed` allows.
    pub(crate) async fn holds_on_new(self, allowed: impl Fn(&ErrorStats) -> Result<()>) -> Result<()> {
        let outcome = self.load.stop().await;
        allowed(&outcome.stats.errors)?;
        each_write_counts_once(&outcome, &self.new.uri()).await?;
        self.proxy.shutdown().await;
        Ok(())
    }

    /// The application has seen no error; every write counts once, and both sides are equal.
    pub(crate) async fn holds(self) -> Result<Held> {
        self.holds_but_for(no_errors).await
    }

    /// As [`Self::holds`], but the application may have seen errors that `allowed` allows.
    pub(crate) async fn holds_but_for(self, allowed: impl Fn(&ErrorStats) -> Result<()>) -> Result<Held> {
        let outcome = self.load.stop().await;
        allowed(&outcome.stats.errors)?;
        self.operator.until_level().await?;
        self.operator.found_none_past_the_proxy().await?;
        prove(outcome, &self.old, &self.new, &uri(&self.proxy), &self.namespace).await?;
        Ok(Held { proxy: self.proxy, operator: self.operator, _clusters: [self.old, self.new] })
    }
}
