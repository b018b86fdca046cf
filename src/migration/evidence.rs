//! What a ramp goes by, as one process measures it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::context::Context;
use super::engine::Engine;
use super::plan::{RampDecision, StoredPlan, Verdict};
use super::preflight::oplog_window_seconds;
use super::running::Running;
use super::secondaries::furthest_behind;
use super::shadow::Tally;
use crate::converge::active::Active;
use crate::model::side::Side;
use crate::policy::evidence::{Answers, Known, Latency, Shadowed};
use crate::policy::latency::Measured;
use crate::policy::ramp::Plan;
use crate::state::shapes::{SLOT, Shapes, Watched, is_in_window};

/// Looks between two looks at the oplogs.
const OPLOG_EVERY: u32 = 6;
/// How far back new's answers are looked at, the shortest first: as far as there are enough.
const SPANS: [u64; 4] = [10, 30, 60, 300];

/// What one process remembers of a ramp.
#[derive(Debug, Default)]
pub struct Looked {
    /// Mirror failures at the last look.
    mirror_failures: Option<u64>,
    oplog_window: [Option<f64>; 2],
    looks: u32,
    /// What stored baselines say has been taken up.
    pub(super) learned: bool,
    /// When the plan began that was looked at last.
    plan_since: Option<i64>,
    /// Shadow reads when it began, or at its last move: what came before says nothing about the step that it led to.
    shadow: Tally,
    /// The last move, which counts likewise for what new answers.
    moved: Option<Mark>,
    /// When a step failed, until it is known where it led.
    pub(super) failed: Option<Duration>,
    /// Steps of which it could not be stored yet how they ended, the oldest first.
    pub(super) untold: Vec<RampDecision>,
    /// Gates in the metrics.
    pub(super) published: Vec<String>,
    /// What was recorded last.
    recorded: Vec<(String, Verdict)>,
}

/// What had been measured at some time.
#[derive(Debug)]
pub(super) struct Mark {
    at: Duration,
    /// In the slots that were not over.
    before: HashMap<(u64, Side), Measured>,
    shadow: Tally,
}

impl Looked {
    /// Takes note that a plan is looked at: what was compared before it began does not count. Whether this process has
    /// never looked at it before.
    pub(super) fn begin(&mut self, plan: &StoredPlan, now: impl FnOnce() -> Mark) -> bool {
        let is_first = self.plan_since.replace(plan.since) != Some(plan.since);
        if is_first {
            self.shadow = now().shadow;
            // No step is taken by what was measured for the plan before, which may be long ago.
            (self.mirror_failures, self.oplog_window, self.looks) = Default::default();
            self.recorded.clear();
        }
        is_first
    }

    /// Takes note of a move.
    pub(super) fn has_moved(&mut self, now: Mark) {
        self.shadow = now.shadow;
        self.moved = Some(now);
    }

    pub(super) fn recorded_same(&self, seen: &[(String, Verdict)]) -> bool {
        self.recorded == seen
    }

    pub(super) fn record(&mut self, seen: Vec<(String, Verdict)>) {
        self.recorded = seen;
    }
}

impl Running {
    /// What has been measured by `at`, which is now.
    pub(super) fn mark(&self, active: &Active, at: Duration) -> Mark {
        let mut all = active.shapes.all();
        all.push(Arc::clone(active.shapes.besides()));
        let measured = |(watched, side): (&Arc<Watched>, Side)| {
            ((watched.hash, side), watched.window_from(side, at, SLOT, at))
        };
        let before =
            all.iter().flat_map(|watched| Side::BOTH.map(|side| (watched, side))).map(measured).collect();
        Mark { at, before, shadow: self.shadow_tally() }
    }
}

impl Engine {
    /// What is known besides new's answers.
    pub(super) async fn known(
        &self,
        running: &Running,
        active: &Active,
        plan: &Plan,
        looked: &mut Looked,
        context: &Context,
    ) -> Known {
        if looked.looks.is_multiple_of(OPLOG_EVERY) {
            let (old, new) = (&*context.clusters.old, &*context.clusters.new);
            let (old, new) = futures::join!(oplog_window_seconds(old), oplog_window_seconds(new));
            let now = context.clock.now();
            // What counts is how far the oplog reaches back beyond where its stream would be taken up again.
            let ahead = |window: Result<f64, String>, side| {
                let age = context.frontiers.get(side).age_seconds(now).unwrap_or(0.0);
                window.ok().map(|seconds| (seconds - age).max(0.0))
            };
            looked.oplog_window = [ahead(old, Side::Old), ahead(new, Side::New)];
        }
        looked.looks = looked.looks.wrapping_add(1);
        let secondaries = if plan.max_secondary_lag_seconds > 0.0 {
            let (old, new) = (&*context.clusters.old, &*context.clusters.new);
            let (old, new) =
                futures::join!(furthest_behind(old, &*context.clock), furthest_behind(new, &*context.clock));
            [old, new]
        } else {
            Default::default()
        };
        let failures = active.counters.mirror_failures.load(Ordering::Relaxed);
        let before = looked.mirror_failures.replace(failures);
        let progress = self.progress_of(running);
        let blocked_by = if !plan.moves_writes() {
            self.blocked_for_reads_of_plans(running)
        } else {
            self.blocked_for_writes(running)
        };
        Known {
            blocked_by,
            switched_off: running.plan_is_off(),
            lag: [progress.lag.old_to_new, progress.lag.new_to_old],
            conflicts: progress.conflicts,
            mirror_failures: before.map(|before| failures.saturating_sub(before)),
            oplog_window: looked.oplog_window,
            secondaries,
            shadow: shadowed(running, &looked.shadow),
        }
    }
}

fn shadowed(running: &Running, before: &Tally) -> Shadowed {
    let now = running.shadow_tally();
    Shadowed {
        off: running.shadow_is_off(),
        differences: running.shadow_differences(),
        compared: now.compared.saturating_sub(before.compared),
        uncompared: now.uncompared.saturating_sub(before.uncompared),
    }
}

/// What new answered, beside what old did. A dry run sends it nothing: there, what shadow reads and rehearsals
/// measured counts too, and if that is nothing, `None`.
pub(super) fn answers(active: &Active, plan: &Plan, now: Duration, looked: &Looked) -> Option<Answers> {
    let moved = looked.moved.as_ref().filter(|_| !plan.dry_run);
    let of = |watched: &Arc<Watched>| latency(watched, watched, plan, now, moved);
    let all = active.shapes.all();
    let besides = of(active.shapes.besides()).new;
    let mut latencies: Vec<_> = all.iter().map(of).collect();
    if !plan.dry_run {
        return Some(Answers { latencies, besides });
    }
    for elsewhere in [active.shadow.shapes.all(), active.rehearsal.shapes().all()] {
        latencies.extend(elsewhere.iter().map(|measured| {
            let known = all.iter().find(|watched| watched.hash == measured.hash).unwrap_or(measured);
            latency(measured, known, plan, now, None)
        }));
    }
    let measured = latencies.iter().any(|one| one.new.samples() + one.new.errors > 0);
    measured.then_some(Answers { latencies, besides })
}

/// Of how many shapes at least `enough` operations are known that old did before anything was on new; and how many there
/// are.
pub(super) fn baselines_of(shapes: &Shapes, enough: u64) -> (usize, usize) {
    let all = shapes.all();
    let is_known = |watched: &&Arc<Watched>| {
        watched.baseline().is_some_and(|baseline| baseline.samples.unsigned_abs() >= enough)
    };
    (all.iter().filter(is_known).count(), all.len())
}

/// What both clusters answered lately, as far back as new has enough of it; `known` has the baseline.
fn latency(watched: &Watched, known: &Watched, plan: &Plan, now: Duration, moved: Option<&Mark>) -> Latency {
    let within = |seconds: u64, side| {
        let from = moved.map_or(Duration::ZERO, |moved| moved.at);
        let span = Duration::from_secs(seconds);
        let measured = watched.window_from(side, now, span, from);
        match moved.and_then(|moved| moved.before.get(&(watched.hash, side))) {
            Some(before) if is_in_window(from, now, span) => measured.minus(before),
            _ => measured,
        }
    };
    let enough = |seconds: &u64| {
        let new = within(*seconds, Side::New);
        new.samples() + new.errors >= plan.min_samples
    };
    let span = SPANS.into_iter().find(enough).unwrap_or(SPANS[SPANS.len() - 1]);
    let baseline = known.baseline().filter(|baseline| baseline.samples.unsigned_abs() >= plan.min_samples);
    Latency {
        shape: format!("{} {}", watched.namespace, watched.text),
        new: within(span, Side::New),
        old: within(span, Side::Old),
        baseline_p99_ms: baseline.map(|baseline| baseline.p99_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::plan::State;
    use crate::state::shapes::{Baseline, StoredBaseline};

    fn plan(since: i64) -> StoredPlan {
        let (plan, state, by, stays) = (Plan::default(), State::default(), "ann".to_owned(), Vec::new());
        StoredPlan { plan, state, done: false, decisions: 0, by, since, resumed: 0, stays }
    }

    /// A plan that is over was looked at last who knows when.
    #[test]
    fn a_plan_does_not_begin_with_the_numbers_of_the_one_before() {
        let mark = || Mark { at: Duration::ZERO, before: HashMap::new(), shadow: Tally::default() };
        let mut looked = Looked {
            mirror_failures: Some(3),
            oplog_window: [Some(1e6); 2],
            looks: 4,
            plan_since: Some(1),
            ..Looked::default()
        };
        assert!(!looked.begin(&plan(1), mark));
        assert_eq!((looked.mirror_failures, looked.looks), (Some(3), 4));
        assert!(looked.begin(&plan(2), mark));
        assert_eq!((looked.mirror_failures, looked.oplog_window, looked.looks), (None, [None; 2], 0));
    }

    /// As many operations as are to be judged by, of each shape by itself.
    #[test]
    fn a_baseline_is_known_by_enough_operations() {
        let baseline = |samples| Baseline { samples, p50_ms: 1.0, p95_ms: 1.0, p99_ms: 1.0 };
        let stored = |shape: &str, samples| StoredBaseline {
            shape: shape.to_owned(),
            namespace: "shop.c".to_owned(),
            text: shape.to_owned(),
            baseline: baseline(samples),
        };
        let shapes = Shapes::default();
        assert_eq!(baselines_of(&shapes, 1), (0, 0));
        shapes.learn(&[stored("000000000000000a", 199), stored("000000000000000b", 200)]);
        assert_eq!((baselines_of(&shapes, 200), baselines_of(&shapes, 201)), ((1, 2), (0, 2)));
    }
}
