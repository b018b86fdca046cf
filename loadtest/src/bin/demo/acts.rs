//! The acts before anything moves: the application alone, the copy, and comparisons.

use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cluster::Topology;
use crate::load::namespace;
use crate::screen::thousands;
use crate::script::Play;

impl Play<'_> {
    pub(crate) async fn before(&self) -> Result<()> {
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

    /// By what new shards the orders.
    fn new_key(&self) -> Value {
        match self.args.topology {
            Topology::Sharded => json!({ "customer_id": 1, "order_id": 1 }),
            Topology::ReplicaSets => Value::Null,
        }
    }

    pub(crate) async fn copy(&self) -> Result<()> {
        self.screen.phase(
            "Look, then start: every write goes to both clusters, and the history is copied",
            "Old still decides about every write and serves every read. A copied document never overwrites a \
             newer one: the copy and both change streams settle each document by what the authority has.",
        );
        for migration in self.migrations() {
            self.api().create(migration, &namespace(migration), self.new_key()).await?;
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
        for migration in self.migrations() {
            self.watch(self.api().start(migration)).await.with_context(|| format!("starting {migration}"))?;
        }
        self.screen.done("written to both clusters from now on");
        for migration in self.migrations() {
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
            return now.phase == "synced";
        }

        let left = now.remaining_seconds.map_or(String::new(), |left| format!(", {left:.0} s left"));
        let rate = now.bytes_per_second / 1e6;
        let rows = now.documents_per_second;
        self.screen.bar(done, of, &format!("{migration}: {rate:.1} MB/s, {rows:.0} documents/s{left}"));
        false
    }

    pub(crate) async fn verify(&self, title: &str) -> Result<()> {
        self.screen.phase(
            title,
            "Every document of both sides, while the application goes on. What looks different is looked at \
             again, since it may have changed between two looks: only differences that stay are counted, and \
             made equal.",
        );
        for migration in self.migrations() {
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
}

#[allow(clippy::cast_precision_loss)]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
