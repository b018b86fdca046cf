//! How a migration is going, in numbers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::control::{Lag, MigrationView, Phase, Progress};
use super::engine::Engine;
use super::pace;
use super::prepare::Created;
use super::running::Running;
use super::stored::Stored;
use crate::converge::looks::Looks;
use crate::model::side::PerSide;

/// Copy rates over the last seconds.
#[derive(Debug, Default)]
pub struct Rate(VecDeque<(Duration, u64, u64)>);

const WINDOW: Duration = Duration::from_secs(10);

impl Rate {
    /// Adds a sample; to be called several times each second.
    pub fn sample(&mut self, now: Duration, documents: u64, bytes: u64) {
        self.0.push_back((now, documents, bytes));
        while self.0.front().is_some_and(|(at, _, _)| now - *at > WINDOW) {
            self.0.pop_front();
        }
    }

    /// Documents and bytes each second over the window.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "rates")]
    pub fn now(&self) -> (f64, f64) {
        let (Some(first), Some(last)) = (self.0.front(), self.0.back()) else { return (0.0, 0.0) };
        let seconds = (last.0 - first.0).as_secs_f64();
        if seconds <= 0.0 {
            return (0.0, 0.0);
        }
        (last.1.saturating_sub(first.1) as f64 / seconds, last.2.saturating_sub(first.2) as f64 / seconds)
    }
}

impl Running {
    /// Documents and bytes of history that have been copied, by whichever process.
    fn copied_so_far(&self, stored: &Stored) -> (u64, u64) {
        if stored.copied && stored.copied_documents > 0 {
            return (stored.copied_documents.unsigned_abs(), stored.copied_bytes.unsigned_abs());
        }
        (self.copied.documents.load(Ordering::Relaxed), self.copied.bytes.load(Ordering::Relaxed))
    }
}

impl Engine {
    pub(super) fn view(&self, running: &Running) -> MigrationView {
        let context = running.parts();
        let route = context.as_ref().and_then(|context| context.route());
        let of = context.map(|context| context.shares()).unwrap_or_default();
        let shares = route.as_ref().map(|route| [route.reads_on_new, route.owned_by_new]).unwrap_or_default();
        let [reads_percent, writes_percent] = shares.map(|slots| of.share(&slots, &[]));
        let ranges = running.range_views();
        let stored = running.stored.lock();
        MigrationView {
            name: stored.name.clone(),
            namespaces: stored.namespaces.clone(),
            phase: stored.phase,
            paused: stored.paused,
            reads_percent,
            writes_percent,
            epoch: route.as_ref().map_or(0, |route| route.epoch),
            created_at: stored.created_at,
            failure: stored.failure.clone(),
            throttle: stored.throttle,
            verification: running.verification_of(&stored),
            spot_check: running.spot_check_of(&stored),
            placements: stored.created.iter().map(Created::placement).collect(),
            ranges,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "rates and times for people")]
    pub(super) fn progress_of(&self, running: &Running) -> Progress {
        let view = self.view(running);
        let blocked_by = self.blocked_for_writes(running);
        let bypass = self.bypass_counts(running);
        let (documents_per_second, bytes_per_second) = running.rate.lock().now();
        let context = running.parts();
        let stored = running.stored.lock().clone();
        let (documents, bytes) = running.copied_so_far(&stored);
        let counted = u64::try_from(stored.total_documents).unwrap_or(0);
        let copied_documents = if stored.copied { documents.max(counted) } else { documents };
        // The copy also meets what was inserted after the servers counted.
        let total_documents = counted.max(copied_documents);
        let left = total_documents.saturating_sub(copied_documents);
        let copying = stored.phase == Phase::Copying;
        let lag = context.as_ref().map_or(Lag::default(), |context| Lag {
            old_to_new: context.frontiers.old.lag_seconds(context.clock.now()),
            new_to_old: context.frontiers.new.lag_seconds(context.clock.now()),
        });
        let follows = matches!(stored.phase, Phase::Copying | Phase::CatchingUp | Phase::Synced);
        let forecasts = if follows && !stored.paused { running.forecasts() } else { PerSide::default() };
        let (verification, spot_check) = (view.verification, view.spot_check);
        let looks = |of: fn(&Looks) -> &AtomicU64| {
            context.as_ref().map_or(0, |context| of(&context.converger.looks).load(Ordering::Relaxed))
        };
        let count =
            |of: fn(&crate::converge::active::Active) -> u64| running.active.lock().as_deref().map_or(0, of);
        Progress {
            phase: view.phase,
            paused: view.paused,
            reads_percent: view.reads_percent,
            writes_percent: view.writes_percent,
            epoch: view.epoch,
            copied_documents,
            total_documents,
            copied_bytes: bytes,
            total_bytes: u64::try_from(stored.total_bytes).unwrap_or(0).max(bytes),
            documents_per_second,
            bytes_per_second,
            throttle: view.throttle,
            elapsed_seconds: stored.started_at.map(|at| {
                let until = stored.ended_at.unwrap_or_else(|| self.environment.clock.wall_millis());
                (until - at).max(0) as f64 / 1000.0
            }),
            remaining_seconds: if copying {
                (documents_per_second > 0.0).then(|| left as f64 / documents_per_second)
            } else {
                pace::remaining(&forecasts)
            },
            remaining_note: pace::note(&forecasts),
            lag_seconds: match (lag.old_to_new, lag.new_to_old) {
                (Some(old), Some(new)) => Some(old.max(new)),
                _ => None,
            },
            lag,
            converged: context
                .as_ref()
                .map_or(0, |context| context.converger.converged.load(Ordering::Relaxed)),
            repaired: running.repaired.load(Ordering::Relaxed)
                + [&verification, &spot_check].into_iter().flatten().map(|last| last.repaired).sum::<u64>(),
            mirror_failures: count(|active| active.counters.mirror_failures.load(Ordering::Relaxed)),
            invariant_violations: context.as_ref().map_or(0, |context| context.converger.violations.total()),
            targeted_reads: looks(|looks| &looks.targeted),
            broadcast_reads: looks(|looks| &looks.broadcast),
            conflicts: context.as_ref().map_or(0, |context| context.parking.len() as u64),
            bypass_writes: bypass.bypass_writes,
            bypass_writes_total: bypass.bypass_writes_total,
            bypass_writes_unjudged: bypass.bypass_writes_unjudged,
            shadow: running.shadow_counts(),
            rehearsal: running.rehearsal_counts(),
            oplog_window_seconds: *running.oplog_window.lock(),
            can_cut_over: blocked_by.is_empty(),
            blocked_by,
            verification,
            spot_check,
            placements: view.placements,
            ranges: view.ranges,
            pins: running.pin_counts(),
            switches: running.switches(),
            unreturned: stored.unreturned,
        }
    }
}
