//! The end: compare from outside, and check every acknowledged write.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use reshard_loadtest::{Comparison, compare};

use crate::load::namespace;
use crate::moves::CLOCK;
use crate::screen::thousands;
use crate::script::Play;
use crate::spread::Spread;
use crate::summary::{Numbers, Summary};

/// What was seen while the application had halted.
pub(crate) struct Seen {
    pub(crate) comparisons: Vec<Comparison>,
    /// Old, then new; none of replica sets.
    pub(crate) spread: Vec<Spread>,
}

/// How long both sides may take to become equal once nothing is written any more.
const EQUAL: Duration = Duration::from_secs(20);

impl Play<'_> {
    pub(crate) async fn halt_and_compare(&self) -> Result<Seen> {
        self.screen.phase(
            "The application halts for a moment: both clusters byte by byte",
            "Not by reshard, but by the demo itself, directly on both clusters, so that nothing has to be \
             believed. A real migration needs no halt.",
        );
        self.application.pause().await?;
        self.let_run(CLOCK).await;
        for migration in self.migrations() {
            let level = self.until("level streams", migration, |now| {
                Ok(now.lag_seconds == Some(0.0) && now.blocked_by.is_empty())
            });
            let now = level.await?;
            self.screen.note(&format!(
                "{migration}: settled by the streams {}, mirror writes late or failed {}, repaired by \
                 verifications {}",
                thousands(now.converged),
                now.mirror_failures,
                now.repaired
            ));
        }
        let mut comparisons = Vec::new();
        for migration in self.migrations() {
            let comparison = self.watch(self.compare(&namespace(migration))).await?;
            let text = format!(
                "{migration}: {} documents on old, {} on new, {} different",
                thousands(comparison.documents_a),
                thousands(comparison.documents_b),
                differing(&comparison)
            );
            if comparison.is_equal() {
                self.screen.done(&text)
            } else {
                self.screen.note(&text)
            }
            comparisons.push(comparison);
        }
        Ok(Seen { comparisons, spread: self.watch(self.spread()).await? })
    }

    async fn spread(&self) -> Result<Vec<Spread>> {
        let mut all = Vec::new();
        for (name, cluster) in [("old", &self.scene.old), ("new", &self.scene.new)] {
            let Some(spread) = Spread::of(cluster).await.context("how the orders are spread")? else {
                continue;
            };
            self.screen.done(&format!(
                "{name}: a query by customer touches {:.2} shards; orders on each shard: {}",
                spread.touched,
                spread.documents()
            ));
            all.push(spread);
        }
        Ok(all)
    }

    async fn compare(&self, namespace: &str) -> Result<Comparison> {
        let (old, new) = (self.scene.old.uri(), self.scene.new.uri());
        let start = Instant::now();
        loop {
            let comparison = compare(&old, &new, namespace).await?;
            if comparison.is_equal() || start.elapsed() > EQUAL {
                return Ok(comparison);
            }
            self.screen.note(&format!("not equal yet: {comparison}"));
            tokio::time::sleep(CLOCK).await;
        }
    }

    pub(crate) async fn prove(self, seen: Seen, start: Instant) -> Result<Summary> {
        let migrations = self.migrations();
        let Self { scene, screen, application, moves, mismatches, shadowed, .. } = self;
        screen.phase(
            "Proof: every acknowledged write, on new",
            "The application knows what each document must be by all that was acknowledged to it.",
        );
        let outcomes = application.stop().await;
        let mut reports = Vec::new();
        for outcome in &outcomes {
            let report = outcome.verify(&scene.new.uri()).await.context("checking the writes on new")?;
            for line in report.to_string().lines() {
                screen.note(line);
            }
            reports.push(report);
        }
        let stats: Vec<_> = outcomes.into_iter().map(|outcome| outcome.stats).collect();
        for sample in stats.iter().flat_map(|stats| &stats.errors.first) {
            screen.note(&format!(
                "error at {:.2} s: {}: {}",
                sample.at_seconds, sample.operation, sample.message
            ));
        }
        Ok(Summary::of(Numbers {
            migrations,
            mismatches: mismatches.into_inner(),
            stats,
            reports,
            seen,
            moves: moves.into_inner(),
            shadowed: shadowed.into_inner(),
            took: start.elapsed(),
        }))
    }
}

/// Documents that are not the same on both sides.
pub(crate) fn differing(comparison: &Comparison) -> u64 {
    comparison.missing_in_a + comparison.missing_in_b + comparison.different + comparison.duplicates
}
