//! Ramps by plan at work: every few seconds the gates are measured, and what is decided is done and recorded.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use metrics::{counter, gauge};

use super::control::{By, Control, Patience};
use super::engine::Engine;
use super::plan::{Gate, Place, RampDecision, StoredPlan, Verdict, record, words};
use super::preflight::oplog_window_seconds;
use super::running::Running;
use crate::converge::active::Active;
use crate::model::side::Side;
use crate::policy::evidence::{Known, Latency, of_migration, of_new};
use crate::policy::latency::Measured;
use crate::policy::ramp::{Act, Decision, EVERY_MS, Plan, decide};
use crate::state::shapes::{SLOT, Watched};
use crate::telemetry::metrics as names;

/// Looks between two looks at the oplogs.
const OPLOG_EVERY: u32 = 6;
/// How far back new's answers are looked at, the shortest first: as far as there are enough.
const SPANS: [u64; 4] = [10, 30, 60, 300];
/// Who moves what a plan moves, in the audit.
const WHO: &str = "plan";

/// What one process remembers of a ramp.
#[derive(Debug, Default)]
pub struct Looked {
    /// Mirror failures at the last look.
    mirror_failures: Option<u64>,
    oplog_window: [Option<f64>; 2],
    looks: u32,
    /// What stored baselines say has been taken up.
    learned: bool,
    /// The last move: what came before says nothing about the step that it led to.
    moved: Option<Moved>,
    /// What was recorded last.
    recorded: Vec<(String, Verdict)>,
}

/// When something moved, and what had been measured by then in the slots that were not over.
#[derive(Debug)]
struct Moved {
    at: Duration,
    before: HashMap<(u64, Side), Measured>,
}

impl Moved {
    fn now(active: &Active, at: Duration) -> Self {
        let all = active.shapes.all();
        let measured = |(watched, side): (&Arc<Watched>, Side)| {
            ((watched.hash, side), watched.window_from(side, at, SLOT, at))
        };
        let before =
            all.iter().flat_map(|watched| Side::BOTH.map(|side| (watched, side))).map(measured).collect();
        Self { at, before }
    }
}

/// What the last look said, for whoever asks.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// The gates.
    pub gates: Vec<Gate>,
    /// What it waits for.
    pub why: String,
}

impl Engine {
    /// Looks at every plan from time to time, each by itself: a slow one does not keep the others waiting.
    pub(super) async fn keep_ramping(self: Arc<Self>) {
        let every = Duration::from_millis(EVERY_MS.unsigned_abs());
        loop {
            let all: Vec<_> = self.migrations.lock().await.values().cloned().collect();
            for running in all {
                let engine = Arc::clone(&self);
                let look = async move {
                    engine.look_at_rehearsal(&running).await;
                    // The look before may still move something.
                    let Ok(mut looked) = running.ramping.try_lock() else { return };
                    engine.look_at_gates(&running, &mut looked).await;
                };
                self.environment.spawn.spawn("ramp", look.boxed());
            }
            self.environment.clock.sleep(every).await;
        }
    }

    async fn look_at_gates(&self, running: &Arc<Running>, looked: &mut Looked) {
        let (stored, baselines) = {
            let stored = running.stored.lock();
            if !stored.is_read() {
                return;
            }
            (stored.plan.clone(), stored.baselines.clone())
        };
        let (Some(active), Some(context)) = (running.active.lock().clone(), running.parts()) else { return };
        if !std::mem::replace(&mut looked.learned, true) {
            active.shapes.learn(&baselines);
        }
        let now = self.environment.clock.now();
        let progress = self.view(running);
        let real = running.place(stored.as_ref().map(|stored| &stored.plan));
        if real == Place::default() {
            active.shapes.note_baselines(now);
        }
        let Some(plan) = stored.filter(|plan| !plan.done && !progress.phase.is_over()) else { return };
        let place = if plan.plan.dry_run { plan.state.dry } else { real };
        let known = self.known(running, &active, &plan.plan, looked, &context.clusters).await;
        let mut gates = of_migration(&plan.plan, &known);
        if plan.plan.has_begun(place) {
            gates.extend(of_new(&plan.plan, &latencies(&active, &plan.plan, now, looked.moved.as_ref())));
        }
        let decision = decide(&plan.plan, &plan.state, place, &gates, self.environment.clock.wall_millis());
        *running.ramp_said.lock() = Said { gates: gates.clone(), why: decision.why.clone() };
        tell(&context.name, &plan, &decision, &gates);
        self.follow_decision(running, looked, &plan, place, decision, gates).await;
    }

    async fn known(
        &self,
        running: &Running,
        active: &Active,
        plan: &Plan,
        looked: &mut Looked,
        clusters: &crate::model::side::PerSide<crate::cluster::command::SharedCluster>,
    ) -> Known {
        if looked.looks.is_multiple_of(OPLOG_EVERY) {
            let (old, new) =
                futures::join!(oplog_window_seconds(&*clusters.old), oplog_window_seconds(&*clusters.new));
            looked.oplog_window = [old.ok(), new.ok()];
        }
        looked.looks = looked.looks.wrapping_add(1);
        let failures = active.counters.mirror_failures.load(std::sync::atomic::Ordering::Relaxed);
        let before = looked.mirror_failures.replace(failures);
        let progress = self.progress_of(running);
        let blocked_by = if plan.writes.is_empty() {
            self.blocked_for_reads_of_plans(running)
        } else {
            self.blocked_for_writes(running)
        };
        Known {
            blocked_by,
            lag: [progress.lag.old_to_new, progress.lag.new_to_old],
            conflicts: progress.conflicts,
            mirror_failures: before.map(|before| failures.saturating_sub(before)),
            oplog_window: looked.oplog_window,
            shadow_differences: progress.shadow.shadow_differences,
        }
    }

    /// Does what was decided, and records it.
    async fn follow_decision(
        &self,
        running: &Arc<Running>,
        looked: &mut Looked,
        plan: &StoredPlan,
        from: Place,
        decision: Decision,
        gates: Vec<Gate>,
    ) {
        let Ok(state) = self.environment.state() else { return };
        let (act, to) = words(decision.act);
        let seen: Vec<_> = gates.iter().map(|gate| (gate.name.clone(), gate.verdict)).collect();
        let is_news = decision.act != Act::Hold || seen != looked.recorded;
        let mut result = Ok(());
        if let Some(to) = to.filter(|_| !plan.plan.dry_run) {
            if plan.decisions == 0 || from == Place::default() {
                // Before the first percent: afterwards old no longer serves everything.
                let active = running.active.lock().clone();
                let baselines = active.map(|active| active.shapes.baselines()).unwrap_or_default();
                let kept =
                    running.change_stored(state, |stored| stored.baselines.clone_from(&baselines)).await;
                result = kept.map_err(|error| error.to_string());
            }
            let name = running.stored.lock().name.clone();
            if result.is_ok() || matches!(decision.act, Act::Down(_)) {
                result = self.move_to(&name, from, to).await;
            }
        }
        let moved = result.is_ok();
        if let (Some(active), true) = (running.active.lock().clone(), to.is_some()) {
            looked.moved = Some(Moved::now(&active, self.environment.clock.now()));
        }
        let number = plan.decisions + i64::from(is_news);
        let at = decision.state.looked_at.unwrap_or_default();
        let kept = running.change_stored_in_memory(plan, |stored| {
            // What could not be done is decided anew at the next look.
            let state = if moved { decision.state.clone() } else { undone(plan, &decision) };
            stored.state = state;
            stored.decisions = number;
            if let (true, Some(to)) = (plan.plan.dry_run, to) {
                stored.state.dry = to;
            }
            stored.done = decision.act == Act::Done;
        });
        if !kept || !is_news {
            return;
        }
        looked.recorded = seen;
        let recorded = RampDecision {
            number,
            at,
            act: act.to_owned(),
            dry_run: plan.plan.dry_run,
            from,
            to,
            why: decision.why,
            result: result.map_or_else(|why| why, |()| "ok".to_owned()),
            gates,
        };
        let name = running.stored.lock().name.clone();
        tracing::info!(migration = name, act, ?to, why = recorded.why, result = recorded.result, "ramp");
        let stored = running.persist(state).await;
        let stored = match record(state, &name, &recorded).await {
            Ok(()) => stored,
            failed => failed,
        };
        if let Err(error) = stored {
            tracing::warn!(%error, "a decision of the ramp could not be stored");
        }
    }

    /// Moves both shares; up reads go first, down writes.
    async fn move_to(&self, name: &str, from: Place, to: Place) -> Result<(), String> {
        let by = By::any(WHO);
        let said = |error: super::control::ControlError| format!("{}: {}", error.code, error.detail);
        if to.reads > from.reads {
            self.set_reads(&by, name, to.reads).await.map_err(said)?;
        }
        if to.writes != from.writes {
            self.set_writes(&by, name, to.writes, Patience::default()).await.map_err(said)?;
        }
        if to.reads < from.reads {
            self.set_reads(&by, name, to.reads).await.map_err(said)?;
        }
        Ok(())
    }
}

impl Running {
    /// Where reads and writes are that are not pinned, in the steps of a plan.
    pub(super) fn place(&self, plan: Option<&Plan>) -> Place {
        let Some(context) = self.parts() else { return Place::default() };
        let Some(route) = context.route() else { return Place::default() };
        let of = context.shares();
        let steps = |of: fn(&Plan) -> &Vec<_>| plan.map_or(&[][..], |plan| of(plan).as_slice());
        Place {
            reads: of.share(&route.reads_on_new, steps(|plan| &plan.reads)),
            writes: of.share(&route.owned_by_new, steps(|plan| &plan.writes)),
        }
    }

    /// Changes what is known of the plan, unless another has taken its place meanwhile. Whether it did.
    fn change_stored_in_memory(&self, plan: &StoredPlan, change: impl FnOnce(&mut StoredPlan)) -> bool {
        let mut stored = self.stored.lock();
        let same = |known: &&mut StoredPlan| {
            known.since == plan.since && known.plan == plan.plan && known.state.paused == plan.state.paused
        };
        stored.plan.as_mut().filter(same).map(change).is_some()
    }
}

/// What is remembered of a decision that could not be done: nothing was reached, and what is broken stays so.
fn undone(plan: &StoredPlan, decision: &Decision) -> crate::policy::ramp::State {
    crate::policy::ramp::State { looked_at: decision.state.looked_at, dwelt_ms: 0, ..plan.state.clone() }
}

/// What both clusters answered lately, by shape; as far back as new has enough of it.
fn latencies(active: &Active, plan: &Plan, now: Duration, moved: Option<&Moved>) -> Vec<Latency> {
    active.shapes.all().iter().map(|watched| latency(watched, plan, now, moved)).collect()
}

fn latency(watched: &Watched, plan: &Plan, now: Duration, moved: Option<&Moved>) -> Latency {
    let within = |seconds: u64, side| {
        let from = moved.map_or(Duration::ZERO, |moved| moved.at);
        let measured = watched.window_from(side, now, Duration::from_secs(seconds), from);
        let in_reach =
            now.as_secs() / SLOT.as_secs() < from.as_secs() / SLOT.as_secs() + seconds / SLOT.as_secs();
        match moved.and_then(|moved| moved.before.get(&(watched.hash, side))) {
            Some(before) if in_reach => measured.minus(before),
            _ => measured,
        }
    };
    let enough = |seconds: &u64| {
        let new = within(*seconds, Side::New);
        new.samples() + new.errors >= plan.min_samples
    };
    let span = SPANS.into_iter().find(enough).unwrap_or(SPANS[SPANS.len() - 1]);
    Latency {
        shape: format!("{} {}", watched.namespace, watched.text),
        new: within(span, Side::New),
        old: within(span, Side::Old),
        baseline_p99_ms: watched.baseline().map(|baseline| baseline.p99_ms),
    }
}

/// Publishes what a look says.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn tell(migration: &str, plan: &StoredPlan, decision: &Decision, gates: &[Gate]) {
    let of = |name: &'static str| gauge!(name, "migration" => migration.to_owned());
    of(names::MIGRATION_RAMP_DWELT).set(decision.state.dwelt_ms as f64 / 1000.0);
    of(names::MIGRATION_RAMP_SETBACKS).set(f64::from(decision.state.setbacks));
    of(names::MIGRATION_RAMP_PAUSED).set(f64::from(u8::from(plan.state.paused)));
    let (act, _) = words(decision.act);
    counter!(names::MIGRATION_RAMP_DECISIONS, "migration" => migration.to_owned(), "act" => act).increment(1);
    for gate in gates {
        let passed = f64::from(u8::from(gate.verdict == Verdict::Passed));
        gauge!(names::MIGRATION_RAMP_GATE, "migration" => migration.to_owned(), "gate" => gate.name.clone())
            .set(passed);
    }
}
