//! What happens, in order.

use std::future::Future;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use bson::doc;
use futures::future::join_all;
use parking_lot::Mutex;

use crate::Args;
use crate::api::Api;
use crate::cluster::Topology;
use crate::load::{Application, DATABASE, ORDERS, fill};
use crate::moves::Move;
use crate::scene::Scene;
use crate::screen::Screen;
use crate::shadow::Shadowed;
use crate::summary::Summary;

const TICK: Duration = Duration::from_millis(400);
/// How long the copy, a comparison, or a stream that is behind may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// The demo under way.
pub(crate) struct Play<'a> {
    pub(crate) args: &'a Args,
    pub(crate) scene: &'a Scene,
    pub(crate) screen: &'a Screen,
    pub(crate) application: Application,
    pub(crate) moves: Mutex<Vec<Move>>,
    /// Real differences that reshard's own verifications found.
    pub(crate) mismatches: AtomicU64,
    /// What shadow reads came to.
    pub(crate) shadowed: Mutex<Vec<Shadowed>>,
}

/// Plays all of it.
pub(crate) async fn play(args: &Args, scene: &Scene, screen: &Screen) -> Result<Summary> {
    let start = Instant::now();
    set_up(args, scene, screen).await?;
    let application = Application::start(args, &scene.proxy.uri).await?;
    let (moves, mismatches, shadowed) = Default::default();
    let play = Play { args, scene, screen, application, moves, mismatches, shadowed };
    play.before().await?;
    play.copy().await?;
    play.verify("Compare everything").await?;
    play.shadow().await?;
    play.reads().await?;
    play.writes_by_percent().await?;
    if args.topology == Topology::ReplicaSets {
        play.writes_in_one_step().await?;
    }
    play.rollback().await?;
    play.verify("Compare everything again, with new as the authority").await?;
    let seen = play.halt_and_compare().await?;
    play.after().await?;
    play.prove(seen, start).await
}

/// The collections on old, filled.
async fn set_up(args: &Args, scene: &Scene, screen: &Screen) -> Result<()> {
    match args.topology {
        Topology::Sharded => screen.phase(
            "Data and an application",
            "shop.orders is sharded by a hash of order_id, so that a query by customer goes to all shards: it is \
             to be sharded by customer_id and order_id. Any single-document writes, and multi-updates. The \
             application remembers every acknowledged write, and checks at the end that each took effect \
             exactly once.",
        ),
        Topology::ReplicaSets => screen.phase(
            "Data and an application",
            "shop.orders: any single-document writes and multi-updates. shop.customers: also a unique index, \
             transactions, and writes that do not name their _id. The application remembers every acknowledged \
             write, and checks at the end that each took effect exactly once.",
        ),
    }
    screen.live("filling the collections");
    scene.old.shard(DATABASE, ORDERS, doc! { "order_id": "hashed" }).await?;
    fill(args, &scene.old.uri()).await?;
    let (orders, customers) = (args.documents, args.customers);
    screen.done(&match args.topology {
        Topology::Sharded => format!("{orders} orders on old"),
        Topology::ReplicaSets => format!("{orders} orders and {customers} customers on old"),
    });
    Ok(())
}

impl Play<'_> {
    /// The migrations.
    pub(crate) fn migrations(&self) -> &'static [&'static str] {
        self.args.migrations()
    }

    pub(crate) fn api(&self) -> &Api {
        &self.scene.proxy.api
    }

    /// Shows how things are until `work` is done.
    pub(crate) async fn watch<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                _ = ticks.tick() => {}
            }
            let show = self.tick();
            tokio::pin!(show);
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = &mut show => {}
            }
        }
    }

    async fn tick(&self) {
        let progress = self.migrations().iter().map(|migration| self.api().progress(migration));
        let progress = join_all(progress).await;
        let part = |(name, progress): (&&str, Result<crate::api::Progress>)| match progress {
            Ok(now) => {
                let lag = now.lag_seconds.map_or("?".to_owned(), |lag| format!("{lag:.0} s"));
                format!(" │ {name}: reads {} % writes {} % lag {lag}", now.reads_percent, now.writes_percent)
            }
            Err(_) => format!(" │ {name}: on old"),
        };
        let parts: String = self.migrations().iter().zip(progress).map(part).collect();
        let pulse = self.application.pulse();
        self.screen.live(&format!(
            "{:.0} ops/s  p50 {:.1} ms  p99 {:.1} ms  errors {}{parts}",
            pulse.per_second,
            pulse.p50,
            pulse.p99,
            pulse.errors + pulse.violations,
        ));
    }

    pub(crate) async fn let_run(&self, time: Duration) {
        self.watch(tokio::time::sleep(time)).await;
    }

    /// Polls until `good`, for at most `LIMIT`.
    pub(crate) async fn until(
        &self,
        what: &str,
        migration: &str,
        mut good: impl FnMut(&crate::api::Progress) -> Result<bool>,
    ) -> Result<crate::api::Progress> {
        let start = Instant::now();
        let polling = async {
            loop {
                let progress = self.api().progress(migration).await?;
                if progress.phase == "failed" {
                    bail!("the migration {migration} failed: {:?}", progress.blocked_by);
                }
                if good(&progress)? {
                    return Ok(progress);
                }
                ensure!(start.elapsed() < LIMIT, "{migration}: no {what} after {LIMIT:?}: {progress:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        self.watch(polling).await
    }
}
