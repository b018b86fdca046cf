//! What happens, in order.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::future::join;
use parking_lot::Mutex;

use crate::Args;
use crate::api::{Api, Problem};
use crate::load::{Application, BOTH, CUSTOMERS, ORDERS, fill, namespace};
use crate::moves::Move;
use crate::scene::Scene;
use crate::screen::{Screen, thousands};
use crate::summary::Summary;

const TICK: Duration = Duration::from_millis(400);
/// How long the copy, a comparison, or a stream that is behind may take.
const LIMIT: Duration = Duration::from_secs(120);
const READS: [u8; 6] = [5, 10, 25, 50, 75, 100];
const WRITES: [u8; 4] = [5, 25, 50, 100];

/// The demo under way.
pub(crate) struct Play<'a> {
    pub(crate) args: &'a Args,
    pub(crate) scene: &'a Scene,
    pub(crate) screen: &'a Screen,
    pub(crate) application: Application,
    pub(crate) moves: Mutex<Vec<Move>>,
    /// Real differences that reshard's own verifications found.
    pub(crate) mismatches: AtomicU64,
}

/// Plays all of it.
pub(crate) async fn play(args: &Args, scene: &Scene, screen: &Screen) -> Result<Summary> {
    let start = Instant::now();
    screen.phase(
        "Data and an application",
        "shop.orders: any single-document writes and multi-updates. shop.customers: also a unique index, \
         transactions, and writes that do not name their _id. The application remembers every acknowledged \
         write, and checks at the end that each took effect exactly once.",
    );
    screen.live("filling both collections");
    fill(args, &scene.old.uri()).await?;
    let (orders, customers) = (args.documents, args.customers);
    screen.done(&format!("{orders} orders and {customers} customers on old"));
    let application = Application::start(args, &scene.proxy.uri).await?;
    let play =
        Play { args, scene, screen, application, moves: Mutex::default(), mismatches: AtomicU64::new(0) };
    play.before().await?;
    play.copy().await?;
    play.verify("Compare everything").await?;
    play.reads().await?;
    play.writes_by_percent().await?;
    play.writes_in_one_step().await?;
    play.rollback().await?;
    play.verify("Compare everything again, with new as the authority").await?;
    let comparisons = play.halt_and_compare().await?;
    play.after().await?;
    play.prove(comparisons, start).await
}

impl Play<'_> {
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
        let (orders, customers) = join(self.api().progress(ORDERS), self.api().progress(CUSTOMERS)).await;
        let part = |name: &str, progress: Result<crate::api::Progress>| match progress {
            Ok(now) => {
                let lag = now.lag_seconds.map_or("?".to_owned(), |lag| format!("{lag:.0} s"));
                format!("{name}: reads {} % writes {} % lag {lag}", now.reads_percent, now.writes_percent)
            }
            Err(_) => format!("{name}: on old"),
        };
        let pulse = self.application.pulse();
        self.screen.live(&format!(
            "{:.0} ops/s  p50 {:.1} ms  p99 {:.1} ms  errors {} │ {} │ {}",
            pulse.per_second,
            pulse.p50,
            pulse.p99,
            pulse.errors + pulse.violations,
            part(ORDERS, orders),
            part(CUSTOMERS, customers),
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

    async fn before(&self) -> Result<()> {
        self.screen.phase(
            "Before: the application works through reshard, on old alone",
            "Without a migration reshard passes on what applications send. This is the latency to compare with.",
        );
        self.let_run(self.args.calm()).await;
        let pulse = self.application.pulse();
        ensure!(pulse.acknowledged > 0, "the application does not get a write acknowledged");
        self.screen.done(&format!("p50 {:.1} ms, p99 {:.1} ms", pulse.p50, pulse.p99));
        Ok(())
    }

    async fn copy(&self) -> Result<()> {
        self.screen.phase(
            "Look, then start: every write goes to both clusters, and the history is copied",
            "Old still decides about every write and serves every read. A copied document never overwrites a \
             newer one: the copy and both change streams settle each document by what the authority has.",
        );
        for migration in BOTH {
            self.api().create(migration, &namespace(migration)).await?;
            let preflight = self.watch(self.api().preflight(migration)).await?;
            for finding in preflight.findings.iter().filter(|finding| finding.severity != "info") {
                self.screen.note(&format!("{migration}: {}", finding.message));
                if finding.severity == "refused" {
                    self.screen.note(&finding.remedy);
                }
            }
            ensure!(preflight.ok, "preflight refuses {migration}");
        }
        self.application.set_phase("copying");
        let start = Instant::now();
        for migration in BOTH {
            self.watch(self.api().start(migration)).await.with_context(|| format!("starting {migration}"))?;
        }
        self.screen.done("written to both clusters from now on");
        for migration in BOTH {
            let done = self.until("copy", migration, |now| Ok(self.show_copy(migration, now))).await;
            self.screen.no_bar();
            let done = done?;
            self.screen.done(&format!(
                "{migration}: {} of {} documents, {:.1} MB; followed, {:.1} s after the start",
                thousands(done.copied_documents),
                thousands(done.total_documents),
                megabytes(done.copied_bytes),
                start.elapsed().as_secs_f64()
            ));
        }
        Ok(())
    }

    /// Whether it is done.
    fn show_copy(&self, migration: &str, now: &crate::api::Progress) -> bool {
        let (done, of) = (now.copied_documents, now.total_documents);
        if now.phase != "copying" {
            let text = format!("{migration}: copied; now {}", now.blocked_by.join("; "));
            self.screen.bar(done, of, &text);
            return now.can_cut_over;
        }

        let left = now.remaining_seconds.map_or(String::new(), |left| format!(", {left:.0} s left"));
        let rate = now.bytes_per_second / 1e6;
        let rows = now.documents_per_second;
        self.screen.bar(done, of, &format!("{migration}: {rate:.1} MB/s, {rows:.0} documents/s{left}"));
        false
    }

    async fn verify(&self, title: &str) -> Result<()> {
        self.screen.phase(
            title,
            "Every document of both sides, while the application goes on. What looks different is looked at \
             again, since it may have changed between two looks: only differences that stay are counted, and \
             made equal.",
        );
        for migration in BOTH {
            self.api().verify(migration).await?;
            let start = Instant::now();
            let done = self.until("verification", migration, |now| {
                let Some(verification) = &now.verification else { return Ok(false) };
                let text = format!("{migration}, different: {}", verification.mismatches);
                self.screen.bar(verification.compared_documents, verification.total_documents, &text);
                Ok(!verification.running)
            });
            let done = done.await;
            self.screen.no_bar();
            let verification = done?.verification.context("no verification")?;
            if let Some(why) = verification.failure {
                bail!("the verification of {migration} failed: {why}");
            }
            let (documents, different) = (verification.compared_documents, verification.mismatches);
            self.mismatches.fetch_add(different, Ordering::Relaxed);
            let text = format!(
                "{migration}: {} documents compared in {:.1} s, {different} different",
                thousands(documents),
                start.elapsed().as_secs_f64()
            );
            if different == 0 { self.screen.done(&text) } else { self.screen.note(&text) }
        }
        Ok(())
    }

    async fn reads(&self) -> Result<()> {
        self.screen.phase(
            &format!("Reads move to new: {} %", READS.map(|percent| percent.to_string()).join(" - ")),
            "Old still decides about writes. From now on a write is acknowledged when new has it too, and a document \
             that new may not have yet is read from old: a read sees all that was acknowledged before it.",
        );
        self.application.set_phase("moving reads");
        for percent in READS {
            for migration in BOTH {
                self.reads_to(migration, percent).await?;
            }
            let served = self.served_while(self.let_run(self.args.step())).await?;
            let (old, new) = served;
            self.screen.done(&format!(
                "reads {percent:>3} %   served by old {:>6}, by new {:>6} ({:.1} %)",
                thousands(old),
                thousands(new),
                crate::served::share(served)
            ));
        }
        Ok(())
    }

    async fn writes_by_percent(&self) -> Result<()> {
        self.screen.phase(
            &format!(
                "Writes of orders move to new: {} % of the documents",
                WRITES.map(|percent| percent.to_string()).join(" - ")
            ),
            "Only writes to documents that change hands wait, and only until both clusters are equal on them. If \
             that takes longer than 500 ms it is given up: the waiting writes go on where they were, and it is \
             tried again.",
        );
        self.application.set_phase("moving writes");
        for percent in WRITES {
            self.writes_to(ORDERS, percent).await?;
            self.let_run(self.args.step()).await;
        }
        Ok(())
    }

    async fn writes_in_one_step(&self) -> Result<()> {
        self.screen.phase(
            "Writes of customers move to new in one step",
            "A unique index and transactions need one authority for all documents, so a part is refused, \
             whoever asks.",
        );
        match self.api().writes(CUSTOMERS, 50).await {
            Ok(_) => bail!("50 % of the writes of {CUSTOMERS} should have been refused"),
            Err(error) => match error.downcast_ref::<Problem>() {
                Some(problem) if problem.code == "single-step" => {
                    self.screen.done(&format!("50 % is refused: {}", problem.detail));
                    for reason in &problem.reasons {
                        self.screen.note(reason);
                    }
                }
                _ => return Err(error),
            },
        }
        self.writes_to(CUSTOMERS, 100).await?;
        self.let_run(self.args.step()).await;
        Ok(())
    }

    async fn rollback(&self) -> Result<()> {
        self.screen.phase(
            "Rollback of orders: old decides again",
            "Old was kept equal all the time, by the same machinery the other way round. So the way back is the \
             way there: a short wait, and nothing to restore.",
        );
        self.roll_back(ORDERS).await?;
        let now = self.api().progress(ORDERS).await?;
        ensure!(now.writes_percent == 0 && now.reads_percent == 0, "the rollback left {now:?}");
        self.let_run(self.args.step()).await;
        self.screen.done("orders: reads 0 %, writes 0 %; the application went on");
        self.screen.phase("Forward again", "Nothing has to be copied again: both clusters are equal.");
        self.reads_to(ORDERS, 100).await?;
        for percent in [50, 100] {
            self.writes_to(ORDERS, percent).await?;
            self.let_run(self.args.step()).await;
        }
        Ok(())
    }

    async fn after(&self) -> Result<()> {
        self.screen.phase(
            "Complete: new alone",
            "Here, before the hold period is over, that needs force and a reason, which the audit keeps. Old is \
             not written any more.",
        );
        for migration in BOTH {
            self.watch(self.api().complete(migration)).await?;
        }
        self.application.resume("after");
        self.let_run(self.args.calm()).await;
        let pulse = self.application.pulse();
        self.screen
            .done(&format!("the application went on: p50 {:.1} ms, p99 {:.1} ms", pulse.p50, pulse.p99));
        Ok(())
    }
}

#[allow(clippy::cast_precision_loss)]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
