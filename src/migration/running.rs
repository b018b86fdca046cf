//! One migration at work: its tasks, and what it remembers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::aborting::Aborting;
use super::backfill::{self, Backfill, Copied};
use super::bypass::{Examiner, Log};
use super::context::Context;
use super::control::{Phase, Verification};
use super::engine::Environment;
use super::holder::{Watch, backfill_app_name};
use super::pace::{Forecast, Pace};
use super::preflight::oplog_window_seconds;
use super::ranges;
use super::rehearsal::Run;
use super::shadow::Reports;
use super::stored::Stored;
use super::tailer::{Health, Tailer};
use super::throttle::Limiter;
use super::ttl::expire_due;
use crate::converge::active::Active;
use crate::model::side::{PerSide, Side};
use crate::state::parking::MOST;
use crate::state::recent::Recent;
use crate::state::switched::SwitchedOff;

/// Keys that `Recent` remembers of each kind.
const RECENT: usize = 1_000_000;
/// Ready to be moved when both streams are at most this far behind.
const SYNCED_LAG_SECONDS: f64 = 3.0;
const LOOK: Duration = Duration::from_millis(200);
const TTL_EVERY: Duration = Duration::from_secs(30);
const OPLOG_EVERY: Duration = Duration::from_secs(30);

/// One migration, as this process runs it.
pub struct Running {
    /// What is stored of it.
    pub stored: Mutex<Stored>,
    /// Its parts; `None` before the start.
    pub context: Mutex<Option<Arc<Context>>>,
    /// What the data plane sees; `None` before the start.
    pub active: Mutex<Option<Arc<Active>>>,
    /// One store of [`Self::stored`] at a time.
    pub storing: tokio::sync::Mutex<()>,
    /// The ramp by plan: one look at a time.
    pub ramping: tokio::sync::Mutex<super::evidence::Looked>,
    /// What that look said.
    pub ramp_said: Mutex<super::planning::Said>,
    /// One operator's call at a time.
    pub calls: tokio::sync::Mutex<()>,
    /// Whether such a call is to give way to an abort.
    pub aborting: Aborting,
    /// What the tailers say.
    pub health: PerSide<Arc<Mutex<Health>>>,
    /// How much is copied.
    pub copied: Arc<Copied>,
    /// What was written past the proxy.
    pub bypass: Arc<Log>,
    /// What shadow reads have found.
    pub shadow: Arc<Reports>,
    /// The rehearsal, or the last one since the process began.
    pub rehearsal: Mutex<Option<Run>>,
    /// How fast it may go.
    pub limiter: Arc<Limiter>,
    /// The last full verification.
    pub verification: Arc<Mutex<Verification>>,
    /// The last comparison of a part, or by digests.
    pub spot_check: Arc<Mutex<Verification>>,
    /// Documents that verifications made equal.
    pub repaired: AtomicU64,
    /// For what comparisons only tell what differs.
    pub repair_off: Arc<SwitchedOff>,
    /// Other holders.
    pub watch: Arc<Watch>,
    /// Ends its tasks.
    pub token: CancellationToken,
    /// Seconds that old's oplog reaches back; unknown until asked.
    pub oplog_window: Mutex<Option<f64>>,
    /// Recent copy rates.
    pub rate: Mutex<super::progress::Rate>,
    /// Whether the streams are being caught up with.
    paces: Mutex<PerSide<Pace>>,
    /// How often streams that were cut off have been given a new beginning.
    pub begun_anew: watch::Sender<u64>,
    paused: watch::Sender<bool>,
    recent: Arc<Recent>,
}

impl Running {
    /// A migration that has been read or named.
    #[must_use]
    pub fn new(stored: Stored, environment: &Environment) -> Arc<Self> {
        let limiter = Limiter::new(environment.clock.clone());
        limiter.set(stored.throttle);
        Arc::new(Self {
            paused: watch::Sender::new(stored.paused),
            bypass: Arc::new(Log::new(&stored.name)),
            shadow: Arc::new(Reports::new(&stored.name)),
            rehearsal: Mutex::default(),
            stored: Mutex::new(stored),
            context: Mutex::default(),
            active: Mutex::default(),
            storing: tokio::sync::Mutex::default(),
            ramping: tokio::sync::Mutex::default(),
            ramp_said: Mutex::default(),
            calls: tokio::sync::Mutex::default(),
            aborting: Aborting::default(),
            health: PerSide::default(),
            copied: Arc::default(),
            limiter: Arc::new(limiter),
            verification: Arc::default(),
            spot_check: Arc::default(),
            repaired: AtomicU64::new(0),
            repair_off: Arc::default(),
            watch: Arc::default(),
            token: CancellationToken::new(),
            oplog_window: Mutex::default(),
            rate: Mutex::default(),
            paces: Mutex::default(),
            begun_anew: watch::Sender::new(0),
            recent: Arc::new(Recent::new(RECENT)),
        })
    }

    /// Halts or resumes copying and following.
    pub fn set_paused(&self, paused: bool) {
        self.paused.send_replace(paused);
        self.stored.lock().paused = paused;
    }

    /// Its parts, once it has started.
    #[must_use]
    pub fn parts(&self) -> Option<Arc<Context>> {
        self.context.lock().clone()
    }

    /// Runs a task until the migration is over.
    pub fn spawn(&self, environment: &Environment, name: &'static str, task: BoxFuture<'static, ()>) {
        let token = self.token.clone();
        let task = async move {
            futures::pin_mut!(task);
            let over = token.cancelled();
            futures::pin_mut!(over);
            futures::future::select(over, task).await;
        };
        environment.spawn.spawn(name, task.boxed());
    }

    /// Starts everything that runs from the first mirror write to the end.
    pub fn spawn_all(self: &Arc<Self>, environment: &Arc<Environment>) {
        let Some(context) = self.parts() else { return };
        let examiner = Arc::new(Examiner {
            own: Arc::clone(&context.converger.own),
            registry: Arc::clone(&environment.registry),
            log: Arc::clone(&self.bypass),
            records: Arc::clone(&context.records),
            authorities: context.authorities.clone(),
            clock: context.clock.clone(),
        });
        for side in Side::BOTH {
            let follow = Arc::clone(self).follow(side, Arc::clone(&context), Arc::clone(&examiner));
            self.spawn(environment, "tailer", follow.boxed());
        }
        let records = Arc::clone(self).keep_records_level(Arc::clone(&context));
        self.spawn(environment, "records", records.boxed());
        let level = Arc::clone(self).keep_level(Arc::clone(environment), Arc::clone(&context));
        self.spawn(environment, "level", level.boxed());
        self.spawn(environment, "judging", Arc::clone(self).keep_judging(Arc::clone(&context)).boxed());
        self.spawn(environment, "drive", Arc::clone(self).drive(Arc::clone(environment)).boxed());
        self.spawn(environment, "parked", Arc::clone(self).retry_parked(Arc::clone(&context)).boxed());
        let returning = Arc::clone(self).keep_returning(Arc::clone(&context));
        self.spawn(environment, "returning", returning.boxed());
        self.spawn(environment, "oplog", Arc::clone(self).watch_oplog(Arc::clone(&context)).boxed());
        self.spawn(environment, "settle", settle_mirrors(Arc::clone(&context)).boxed());
        self.apply_switches();
        self.spawn_shadow(environment);
        self.spawn_rehearsal(environment);
        self.spawn(environment, "ttl", Arc::clone(self).expire(context).boxed());
    }

    /// Follows the stream of `side`; once it cannot go on, from the new beginning that a `resume` gives it.
    async fn follow(self: Arc<Self>, side: Side, context: Arc<Context>, examiner: Arc<Examiner>) {
        let health = self.health.get(side);
        let mut begun_anew = self.begun_anew.subscribe();
        loop {
            self.tailer(side, &context, &examiner).run().await;
            while matches!(*health.lock(), Health::Failed(_)) {
                if begun_anew.changed().await.is_err() {
                    return;
                }
            }
        }
    }

    fn tailer(&self, side: Side, context: &Context, examiner: &Arc<Examiner>) -> Tailer {
        Tailer {
            side,
            cluster: context.clusters.get(side).clone(),
            scope: Arc::clone(&context.scope),
            newcomers: Arc::clone(&context.newcomers),
            converger: Arc::clone(&context.converger),
            frontier: Arc::clone(context.frontiers.get(side)),
            recent: Arc::clone(&self.recent),
            examiner: Arc::clone(examiner),
            parking: Arc::clone(&context.parking),
            records: Arc::clone(&context.records),
            clock: context.clock.clone(),
            paused: self.paused.subscribe(),
            health: Arc::clone(self.health.get(side)),
            begun_anew: self.begun_anew.subscribe(),
        }
    }

    /// Copies, and watches over the copy and the streams.
    async fn drive(self: Arc<Self>, environment: Arc<Environment>) {
        let Some(context) = self.parts() else { return };
        let copying = async {
            while !self.stored.lock().copied {
                if let Err(why) = self.copy(&environment, &context).await {
                    tracing::warn!(migration = %context.name, why, "the copy waits");
                    context.clock.sleep(LOOK).await;
                }
            }
        };
        let watching = async {
            loop {
                self.sample(&context);
                self.look(&context).await;
                context.clock.sleep(LOOK).await;
            }
        };
        futures::join!(copying, watching);
    }

    /// Notes how fast the copy and the streams are.
    fn sample(&self, context: &Context) {
        let now = context.clock.now();
        let copied = &self.copied;
        let (documents, bytes) =
            (copied.documents.load(Ordering::Relaxed), copied.bytes.load(Ordering::Relaxed));
        self.rate.lock().sample(now, documents, bytes);
        let mut paces = self.paces.lock();
        for side in Side::BOTH {
            let frontier = context.frontiers.get(side);
            paces.get_mut(side).sample(now, frontier.lag_seconds(now), frontier.followed());
        }
    }

    /// What becomes of each stream's lag.
    #[must_use]
    pub fn forecasts(&self) -> PerSide<Option<Forecast>> {
        let paces = self.paces.lock();
        PerSide::from_fn(|side| paces.get(side).forecast())
    }

    async fn copy(&self, environment: &Environment, context: &Context) -> Result<(), String> {
        let start = self.stored.lock().start.ok_or("its start was not stored")?;
        let ranges =
            ranges::load(&context.records, &context.name).await.map_err(|error| error.to_string())?;
        self.copied.go_on_from(&ranges);
        *self.rate.lock() = super::progress::Rate::default();
        let name = backfill_app_name(&environment.holder, &context.name);
        let clusters = (environment.open)(name.clone()).await?;
        let backfill = Backfill {
            clusters: clusters.clusters,
            converger: Arc::clone(&context.converger),
            recent: Arc::clone(&self.recent),
            parking: Arc::clone(&context.parking),
            records: Arc::clone(&context.records),
            clock: context.clock.clone(),
            authority: Arc::clone(&context.authorities.new),
            limiter: Arc::clone(&self.limiter),
            copied: Arc::clone(&self.copied),
            paused: self.paused.subscribe(),
            parallel: backfill::parallel(&environment.settings, &*context.clusters.new).await?,
            start,
        };
        let _until_copied = self.says_copying();
        backfill.run(ranges).await;
        drop(backfill);
        (clusters.close)();
        // Nothing that the copy sent may arrive later than this: its connections are gone at the servers.
        for side in Side::BOTH {
            context.until_connections_gone(side, &name).await;
        }
        let count = |count: &AtomicU64| i64::try_from(count.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        let copied = self.change_stored(&context.records, |stored| {
            stored.copied = true;
            stored.copied_documents = count(&self.copied.documents);
            stored.copied_bytes = count(&self.copied.bytes);
            stored.phase = stored.phase.max(Phase::CatchingUp);
        });
        copied.await.map_err(|error| error.to_string())
    }

    /// Moves between the phases that depend on what the streams say.
    async fn look(&self, context: &Context) {
        self.apply_switches();
        context.watch_records().await;
        let failed = Side::BOTH.into_iter().find_map(|side| match &*self.health.get(side).lock() {
            Health::CutOff(why) => Some(format!(
                "the change stream of {side} was cut off: {why}. Resume compares everything and goes on"
            )),
            Health::Failed(why) => Some(format!(
                "the change stream of {side} cannot go on: {why}. Once the cause is gone, resume compares \
                 everything and goes on"
            )),
            _ => None,
        });
        let failed = failed.or_else(|| context.parking.is_full().then(too_many_parked));
        let close = |side| {
            context
                .frontiers
                .get(side)
                .lag_seconds(context.clock.now())
                .is_some_and(|lag| lag <= SYNCED_LAG_SECONDS)
        };
        let changed = {
            let mut stored = self.stored.lock();
            let before = stored.phase;
            if before.is_over() {
                // Ended by an operator meanwhile: whatever its streams say, that stands.
            } else if let Some(why) = failed {
                stored.phase = Phase::Failed;
                stored.failure = Some(why);
            } else if stored.phase == Phase::CatchingUp
                && !stored.recheck
                && Side::BOTH.into_iter().all(close)
            {
                stored.phase = Phase::Synced;
            }
            let noted = self.take_note(&mut stored);
            (stored.phase != before || noted).then_some(stored.phase)
        };
        if let Some(phase) = changed {
            tracing::info!(migration = %context.name, %phase, "phase");
            if let Err(error) = self.persist(&context.records).await {
                tracing::warn!(%error, "the phase could not be stored; it is found out again after a restart");
            }
        }
    }

    /// Asks from time to time how far back old's oplog reaches.
    async fn watch_oplog(self: Arc<Self>, context: Arc<Context>) {
        loop {
            let window = oplog_window_seconds(&*context.clusters.old).await;
            *self.oplog_window.lock() = window
                .inspect_err(|why| tracing::debug!(why, "how far the oplog reaches back is not known"))
                .ok();
            context.clock.sleep(OPLOG_EVERY).await;
        }
    }

    async fn expire(self: Arc<Self>, context: Arc<Context>) {
        loop {
            context.clock.sleep(TTL_EVERY).await;
            if context.route().is_some_and(|route| !route.returning.is_empty()) {
                // Only new may know that a document is not due yet.
                continue;
            }
            let created = self.stored.lock().created.clone();
            if created.iter().any(|created| !created.ttl.is_empty())
                && let Err(why) = expire_due(&context, &created).await
            {
                tracing::warn!(why, "due documents stay for now");
            }
        }
    }
}

fn too_many_parked() -> String {
    format!(
        "more than {MOST} keys cannot be made equal (see conflicts). Once what stands in their way is gone, resume \
         compares everything and goes on"
    )
}

/// Bars mirror writes of unknown outcome soon: until that is done nobody reads their mirror.
async fn settle_mirrors(context: Arc<Context>) {
    loop {
        context.clock.sleep(LOOK).await;
        let lost = PerSide::from_fn(|side| context.converger.own.lost_on_mirror(side));
        if let Err(why) = context.settle_sessions().await {
            tracing::debug!(why, "mirror writes of unknown outcome are not barred yet");
        } else if context.safeguards.barrier {
            context.note_barred(lost).await;
        }
    }
}
