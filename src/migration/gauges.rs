//! A migration's numbers in Prometheus, under the names that `progress` gives them.

use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};

use super::control::{
    NamespaceSwitches, Phase, Progress, RangeView, Switches, UnreturnedState, UnreturnedView,
};
use super::engine::Engine;
use super::preflight::oplog_window_seconds;
use crate::policy::invariants::Invariant;
use crate::telemetry::metrics as names;

const TELL_EVERY: Duration = Duration::from_secs(2);
/// Rounds of telling for each look at the oplog.
const OPLOG_EVERY: u32 = 15;

impl Engine {
    /// Publishes every migration's numbers from time to time, and measures old's oplog.
    pub(super) async fn keep_telling(self: Arc<Self>) {
        let mut round = 0_u32;
        loop {
            let all: Vec<_> = self.migrations.lock().await.values().cloned().collect();
            for running in all {
                let Some(context) = running.parts() else { continue };
                if round.is_multiple_of(OPLOG_EVERY) && !running.stored.lock().phase.is_over() {
                    let window = oplog_window_seconds(&*context.clusters.old).await.ok();
                    *running.oplog_window.lock() = window;
                }
                publish(&context.name, &self.progress_of(&running));
                running.tell_shapes(&context.name, context.clock.now());
                for invariant in Invariant::ALL {
                    let labels = [
                        ("migration", context.name.to_string()),
                        ("invariant", invariant.as_str().to_owned()),
                    ];
                    let count = context.converger.violations.count(invariant);
                    counter!(names::INVARIANT_VIOLATIONS, &labels).absolute(count);
                }
            }
            round = round.wrapping_add(1);
            self.environment.clock.sleep(TELL_EVERY).await;
        }
    }
}

/// How far what only new had is back.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn publish_unreturned(migration: &str, unreturned: Option<&UnreturnedView>) {
    let returning = unreturned.is_some_and(|view| view.state != UnreturnedState::Done);
    gauge!(names::MIGRATION_RETURNING, "migration" => migration.to_owned())
        .set(f64::from(u8::from(returning)));
    let Some(view) = unreturned else { return };
    for (state, documents) in
        [("named", view.named), ("brought_back", view.brought_back), ("conflict", view.conflicts)]
    {
        let labels = [("migration", migration.to_owned()), ("state", state.to_owned())];
        gauge!(names::MIGRATION_UNRETURNED, &labels).set(documents as f64);
    }
}

/// Where ranges are, and what went to them: at most 24.
fn publish_ranges(migration: &str, ranges: &[RangeView]) {
    for view in ranges {
        let of = |more: &[(&'static str, &'static str)]| {
            let mut labels = vec![("migration", migration.to_owned()), ("range", view.range.name.clone())];
            labels.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
            labels
        };
        gauge!(names::MIGRATION_RANGE_READS_PERCENT, &of(&[])).set(view.reads_percent);
        gauge!(names::MIGRATION_RANGE_WRITES_PERCENT, &of(&[])).set(view.writes_percent.unwrap_or(f64::NAN));
        for (operation, counted) in [("reads", view.operations.reads), ("writes", view.operations.writes)] {
            for (cluster, count) in [("old", counted.old), ("new", counted.new)] {
                let labels = of(&[("operation", operation), ("cluster", cluster)]);
                counter!(names::MIGRATION_RANGE_OPERATIONS, &labels).absolute(count);
            }
        }
    }
}

/// What is on for everything, and for how many collections it is not.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn publish_switches(migration: &str, switches: &Switches) {
    type Is = fn(&NamespaceSwitches) -> bool;
    let all: [(&str, bool, Is); 5] = [
        ("inline_mirror", switches.inline_mirror, |of| of.inline_mirror),
        ("read_routing", switches.read_routing, |of| of.read_routing),
        ("shadow", switches.shadow, |of| of.shadow),
        ("repair", switches.repair, |of| of.repair),
        ("plan", switches.plan, |of| of.plan),
    ];
    for (switch, on, is_on) in all {
        let labels = [("migration", migration.to_owned()), ("switch", switch.to_owned())];
        gauge!(names::MIGRATION_SWITCH, &labels).set(f64::from(u8::from(on)));
        let off = switches.namespaces.iter().filter(|of| !is_on(of)).count();
        gauge!(names::MIGRATION_SWITCHED_OFF_COLLECTIONS, &labels).set(off as f64);
    }
}

/// Publishes `progress` of `migration`.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn publish(migration: &str, progress: &Progress) {
    let set = |name: &'static str, value: f64| gauge!(name, "migration" => migration.to_owned()).set(value);
    set(names::MIGRATION_READS_PERCENT, progress.reads_percent.into());
    set(names::MIGRATION_WRITES_PERCENT, progress.writes_percent.into());
    set(names::MIGRATION_EPOCH, progress.epoch as f64);
    set(names::MIGRATION_COPIED_DOCUMENTS, progress.copied_documents as f64);
    set(names::MIGRATION_TOTAL_DOCUMENTS, progress.total_documents as f64);
    set(names::MIGRATION_COPIED_BYTES, progress.copied_bytes as f64);
    set(names::MIGRATION_TOTAL_BYTES, progress.total_bytes as f64);
    set(names::MIGRATION_CONVERGED, progress.converged as f64);
    set(names::MIGRATION_REPAIRED, progress.repaired as f64);
    set(names::MIGRATION_MIRROR_FAILURES, progress.mirror_failures as f64);
    set(names::MIGRATION_TARGETED_READS, progress.targeted_reads as f64);
    set(names::MIGRATION_BROADCAST_READS, progress.broadcast_reads as f64);
    set(names::MIGRATION_BYPASS_WRITES, progress.bypass_writes as f64);
    set(names::MIGRATION_BYPASS_WRITES_TOTAL, progress.bypass_writes_total as f64);
    set(names::MIGRATION_BYPASS_WRITES_UNJUDGED, progress.bypass_writes_unjudged as f64);
    set(names::MIGRATION_CONFLICTS, progress.conflicts as f64);
    set(names::MIGRATION_CAN_CUT_OVER, f64::from(u8::from(progress.can_cut_over)));
    set(names::MIGRATION_PINS_NOT_IN_FORCE, progress.pins.not_in_force as f64);
    for (side, pins) in [("old", progress.pins.to_old), ("new", progress.pins.to_new)] {
        let labels = [("migration", migration.to_owned()), ("cluster", side.to_owned())];
        gauge!(names::MIGRATION_PINS, &labels).set(pins as f64);
    }
    publish_unreturned(migration, progress.unreturned.as_ref());
    publish_ranges(migration, &progress.ranges);
    publish_switches(migration, &progress.switches);
    set(names::MIGRATION_PAUSED, f64::from(u8::from(progress.paused)));
    // No limit must not look like one of 0.
    let limit = |rate: Option<f64>| rate.unwrap_or(f64::INFINITY);
    set(names::MIGRATION_THROTTLE_DOCUMENTS, limit(progress.throttle.documents_per_second));
    set(names::MIGRATION_THROTTLE_MEGABYTES, limit(progress.throttle.megabytes_per_second));
    if let Some(last) = &progress.verification {
        let seconds = |at: Option<i64>| at.map_or(f64::NAN, |millis| millis as f64 / 1000.0);
        set(names::MIGRATION_VERIFICATION_MISMATCHES, last.mismatches as f64);
        set(names::MIGRATION_VERIFICATION_REPAIRED, last.repaired as f64);
        set(names::MIGRATION_VERIFICATION_STARTED, seconds(last.started_at));
        set(names::MIGRATION_VERIFICATION_FINISHED, seconds(last.finished_at));
    }
    if let Some(last) = &progress.spot_check {
        set(names::MIGRATION_SPOT_CHECK_MISMATCHES, last.mismatches as f64);
        set(names::MIGRATION_SPOT_CHECK_REPAIRED, last.repaired as f64);
    }
    if let Some(seconds) = progress.oplog_window_seconds {
        set(names::MIGRATION_OPLOG_WINDOW, seconds);
    }
    let shadow = &progress.shadow;
    set(names::SHADOW_PERCENT, shadow.shadow_percent);
    set(names::REHEARSAL_FACTOR, progress.rehearsal.rehearsal_factor);
    set(names::SHADOW_DIFFERENCES, shadow.shadow_differences.map_or(f64::NAN, |found| found as f64));
    for (name, count) in [
        (names::SHADOW_SAMPLED, shadow.shadow_sampled),
        (names::SHADOW_COMPARED, shadow.shadow_compared),
        (names::SHADOW_EQUAL, shadow.shadow_equal),
        (names::SHADOW_TRANSIENT, shadow.shadow_transient),
        (names::SHADOW_NONDETERMINISTIC, shadow.shadow_nondeterministic),
        (names::SHADOW_UNSETTLED, shadow.shadow_unsettled),
        (names::SHADOW_FAILED, shadow.shadow_failed),
        (names::SHADOW_DROPPED, shadow.shadow_dropped),
        (names::SHADOW_SKIPPED, shadow.shadow_skipped),
        (names::REHEARSAL_READS, progress.rehearsal.rehearsal_reads),
        (names::REHEARSAL_ERRORS, progress.rehearsal.rehearsal_errors),
        (names::REHEARSAL_DROPPED, progress.rehearsal.rehearsal_dropped),
        (names::REHEARSAL_SKIPPED, progress.rehearsal.rehearsal_skipped),
    ] {
        set(name, count as f64);
    }
    for (direction, lag) in [("old_to_new", progress.lag.old_to_new), ("new_to_old", progress.lag.new_to_old)]
    {
        // Unknown must not look like none.
        let lag = lag.unwrap_or(f64::NAN);
        gauge!(names::MIGRATION_LAG, "migration" => migration.to_owned(), "direction" => direction).set(lag);
    }
    for phase in Phase::ALL {
        let is_it = f64::from(u8::from(phase == progress.phase));
        gauge!(names::MIGRATION_PHASE, "migration" => migration.to_owned(), "phase" => phase.as_str())
            .set(is_it);
    }
}
