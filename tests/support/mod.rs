//! A proxy between two real replica sets, in this process, and its operator.
#![allow(dead_code, reason = "every test file uses its own part")]

pub(crate) mod bed;
pub(crate) mod process;
pub(crate) mod proof;
pub(crate) mod ramps;
pub(crate) mod raw_load;
pub(crate) mod relay;
pub(crate) mod trial;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bson::{Document, doc};
use reshard::app::{Builder, Proxy};
use reshard::cluster::Settings as ClusterSettings;
use reshard::listener::Settings as ListenerSettings;
use reshard::migration::control::{
    Acknowledge, Acknowledged, By, BypassReport, Complete, Control, NamespaceSpec, NewMigration, Page,
    Patience, Phase, Progress, Ramp, RangeSpec, Verify,
};
use reshard::migration::engine::{Engine, Settings as MigrationSettings};
use reshard::model::percent::Percent;
use reshard::model::side::Side;
use reshard::policy::invariants::Invariant;
use reshard_loadtest::compare;
use reshard_testbed::{ReplicaSet, wait_for};

pub(crate) const LONG: Duration = Duration::from_secs(300);

/// Times of migrations for tests: short leases, so that a successor may move soon.
pub(crate) fn settings() -> MigrationSettings {
    MigrationSettings {
        max_pause: Duration::from_millis(2000),
        mirror_timeout: Duration::from_secs(1),
        lease: Duration::from_secs(3),
        hold: Duration::from_secs(7 * 24 * 60 * 60),
        backfill_parallel: Some(2),
        mirror_sessions: 64,
        state: Side::Old,
    }
}

/// Two replica sets of one node each.
pub(crate) async fn two_sets(name: &str) -> Result<(ReplicaSet, ReplicaSet)> {
    let (old, new) = (format!("{name}-old"), format!("{name}-new"));
    tokio::try_join!(ReplicaSet::builder(&old).start(), ReplicaSet::builder(&new).start())
}

/// A proxy in this process.
pub(crate) async fn proxy(old: &str, new: Option<&str>) -> Result<Proxy> {
    proxy_with(old, new, settings()).await
}

pub(crate) async fn proxy_with(old: &str, new: Option<&str>, settings: MigrationSettings) -> Result<Proxy> {
    let mut listener = ListenerSettings::new("127.0.0.1:0".parse()?);
    // The test knows when it is over.
    listener.farewell = Duration::ZERO;
    let mut builder = Builder::new(ClusterSettings::parse(old).await?, listener).with_migrations(settings);
    if let Some(new) = new {
        builder = builder.with_new(ClusterSettings::parse(new).await?);
    }
    Ok(builder.start().await?)
}

/// Waits until both clusters hold the same bytes of a collection.
pub(crate) async fn until_equal(old: &str, new: &str, namespace: &str) -> Result<()> {
    wait_for("both sides to be equal", LONG, || async { Ok(compare(old, new, namespace).await?.is_equal()) })
        .await
}

/// The connection string of applications.
pub(crate) fn uri(proxy: &Proxy) -> String {
    format!("mongodb://{}/", proxy.address())
}

/// Making a collection takes long on a cluster, so that something can happen meanwhile.
pub(crate) async fn makes_collections_slowly(set: &ReplicaSet, slowly: bool) -> Result<()> {
    set.fail_point(doc! {
        "configureFailPoint": "failCommand", "mode": if slowly { "alwaysOn" } else { "off" },
        "data": { "failCommands": ["create", "createIndexes"], "blockConnection": true, "blockTimeMS": 3000 },
    })
    .await
}

/// Changes documents of a cluster such that its change stream does not tell: what the product would put right
/// at once stays.
pub(crate) async fn plant(set: &ReplicaSet, operations: Vec<Document>) -> Result<()> {
    let admin = set.client().await?.database("admin");
    let applied = admin.run_command(doc! { "applyOps": operations }).await?;
    let all = applied.get_array("results")?.iter().all(|result| result.as_bool() == Some(true));
    ensure!(all, "{applied}");
    Ok(())
}

/// Writes until nothing of what is in the oplog now is left.
pub(crate) async fn roll_over(set: &ReplicaSet) -> Result<()> {
    let client = set.client().await?;
    let oplog = client.database("local").collection::<Document>("oplog.rs");
    let last = oplog.find_one(doc! {}).sort(doc! { "$natural": -1 }).await?.context("an oplog")?;
    let fill = client.database("other").collection("c");
    wait_for("the oplog to roll over", LONG, || async {
        for _ in 0..5 {
            fill.insert_one(doc! { "fill": "x".repeat(1 << 20) }).await?;
        }
        let first = oplog.find_one(doc! {}).await?.context("an oplog")?;
        Ok(first.get_timestamp("ts")? > last.get_timestamp("ts")?)
    })
    .await
}

/// An operator of one migration.
pub(crate) struct Operator {
    pub(crate) engine: Arc<Engine>,
    pub(crate) name: String,
}

/// Whether what blocks a move is that no full verification has gone through.
pub(crate) fn wants_verification(why: &str) -> bool {
    why.contains("reshard migrate verify ")
}

pub(crate) fn me() -> By {
    By::any("test")
}

impl Operator {
    pub(crate) fn of(proxy: &Proxy, name: &str) -> Self {
        Self { engine: Arc::clone(proxy.engine()), name: name.into() }
    }

    pub(crate) async fn ready(&self) -> Result<()> {
        wait_for("the proxy to be ready", LONG, || async { Ok(self.engine.not_ready().await.is_empty()) })
            .await
    }

    pub(crate) async fn create(&self, namespaces: &[&str]) -> Result<()> {
        let namespaces = namespaces.iter().map(|namespace| NamespaceSpec::plain(*namespace)).collect();
        self.create_as(namespaces).await
    }

    pub(crate) async fn create_as(&self, namespaces: Vec<NamespaceSpec>) -> Result<()> {
        self.create_with(namespaces, Vec::new()).await
    }

    pub(crate) async fn create_with(
        &self,
        namespaces: Vec<NamespaceSpec>,
        ranges: Vec<RangeSpec>,
    ) -> Result<()> {
        self.ready().await?;
        self.engine.create(&me(), NewMigration { name: self.name.clone(), namespaces, ranges }).await?;
        Ok(())
    }

    pub(crate) async fn start(&self) -> Result<()> {
        let started = self.engine.start(&me(), &self.name).await;
        if let Err(error) = started {
            bail!("start: {error} {:?}", error.reasons);
        }
        Ok(())
    }

    pub(crate) async fn progress(&self) -> Result<Progress> {
        Ok(self.engine.progress(&self.name).await?)
    }

    /// Waits until writes may move; a full verification that this needs is asked for.
    pub(crate) async fn until_synced(&self) -> Result<()> {
        let synced = wait_for("the migration to be synced and free to move", LONG, || async {
            let progress = self.progress().await?;
            if progress.phase == Phase::Failed {
                bail!("it failed: {:?}", self.engine.get(&self.name).await?.failure);
            }
            let verifying = progress.verification.is_some_and(|last| last.running);
            let lacking = progress.blocked_by.iter().all(|why| wants_verification(why));
            if !progress.can_cut_over && lacking && !verifying {
                self.engine.verify(&me(), &self.name, Verify::default()).await?;
            }
            Ok(progress.can_cut_over)
        })
        .await;
        synced.with_context(|| format!("{:?}", futures::executor::block_on(self.progress())))
    }

    pub(crate) async fn reads(&self, percent: impl Into<Percent>) -> Result<Ramp> {
        let percent = percent.into();
        let moved = self.engine.set_reads(&me(), &self.name, percent).await;
        moved.map_err(|error| anyhow::anyhow!("reads {percent}: {error} {:?}", error.reasons))
    }

    pub(crate) async fn writes(&self, percent: impl Into<Percent>) -> Result<Ramp> {
        let percent = percent.into();
        let moved = self.engine.set_writes(&me(), &self.name, percent, Patience::default()).await;
        moved.map_err(|error| anyhow::anyhow!("writes {percent}: {error} {:?}", error.reasons))
    }

    pub(crate) async fn rollback(&self) -> Result<Ramp> {
        let moved = self.engine.rollback(&me(), &self.name).await;
        let conflicts = self.engine.conflicts(&self.name).await?;
        moved.map_err(|error| {
            anyhow::anyhow!(
                "rollback: {error} {:?} {:?}",
                error.reasons,
                conflicts.iter().take(3).collect::<Vec<_>>()
            )
        })
    }

    pub(crate) async fn complete(&self) -> Result<()> {
        let how = Complete { force: true, reason: Some("test".into()) };
        self.engine.complete(&me(), &self.name, how).await?;
        Ok(())
    }

    pub(crate) async fn bypass(&self) -> Result<BypassReport> {
        Ok(self.engine.bypass_writes(&self.name, Page::default()).await?)
    }

    pub(crate) async fn until_bypass(&self, total: u64) -> Result<()> {
        let found = wait_for("writes past the proxy to be found", LONG, || async {
            Ok(self.progress().await?.bypass_writes_total >= total)
        })
        .await;
        found.with_context(|| format!("{:?}", futures::executor::block_on(self.progress())))
    }

    /// All that was written went through the proxy, and it knows that.
    pub(crate) async fn found_none_past_the_proxy(&self) -> Result<()> {
        let progress = self.progress().await?;
        if progress.bypass_writes_total > 0 {
            bail!("writes are taken for such as went past the proxy: {:?}", self.bypass().await?);
        }
        let active = self.engine.environment.registry.get(&self.name);
        // A late reply may be this machine's.
        let broken = Invariant::ALL.into_iter().find(|invariant| {
            let count = active.as_ref().map(|active| active.converger.violations.count(*invariant));
            invariant.is_about_data() && count > Some(0)
        });
        if let Some(broken) = broken {
            bail!("{broken:?} did not hold: {progress:?}");
        }
        Ok(())
    }

    pub(crate) async fn acknowledge(&self) -> Result<Acknowledged> {
        let asked = Acknowledge { reason: "the test writes past the proxy".into(), up_to: None };
        Ok(self.engine.acknowledge_bypass_writes(&me(), &self.name, asked).await?)
    }

    /// Waits until everything acknowledged by now has reached the other side.
    pub(crate) async fn until_level(&self) -> Result<()> {
        let level = wait_for("both streams to be level", LONG, || async {
            let progress = self.progress().await?;
            let free = progress.blocked_by.iter().all(|why| wants_verification(why));
            Ok(progress.lag_seconds == Some(0.0) && free)
        })
        .await;
        level.with_context(|| format!("{:?}", futures::executor::block_on(self.progress())))
    }
}
