//! Ramps by plan at work: every few seconds the gates are measured, and what is decided is done and recorded.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use metrics::{counter, gauge};

use super::control::{By, Cluster, ControlError, Patience, SetPins};
use super::engine::Engine;
use super::evidence::{Looked, answers};
use super::plan::{Gate, Place, RampDecision, StoredPlan, Verdict, record, words};
use super::ramping::conflict;
use super::running::Running;
use crate::model::percent::Percent;
use crate::model::side::Side;
use crate::model::slots::SlotSet;
use crate::policy::evidence::{of_migration, of_new};
use crate::policy::ramp::{Act, Decision, EVERY_MS, Plan, State, decide};
use crate::telemetry::metrics as names;

/// Who moves what a plan moves, in the audit.
const WHO: &str = "plan";

/// What is said of a dry run while nothing has measured new.
const NOT_JUDGED: &str = "; errors and latency of new are not judged: a dry run sends nothing to it, and neither \
                          shadow reads nor a rehearsal have measured it lately";

/// What became of a decision.
struct Done {
    /// Where it went, or was to go.
    to: Option<Place>,
    result: Result<(), String>,
    /// What is to be said besides why it was decided.
    besides: String,
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
        // A plan of a range does not see what else is on new.
        if real == Place::default() && running.place(None) == Place::default() {
            active.shapes.note_baselines(now);
        }
        let Some(mut plan) = stored.filter(|plan| !plan.done && !progress.phase.is_over()) else { return };
        active.shapes.note_missing_baselines(now, plan.plan.min_samples);
        let wall = self.environment.clock.wall_millis();
        if looked.begin(&plan, || running.mark(&active, now)) {
            plan.state = plan.state.taken_up(plan.since, wall);
        }
        let place = if plan.plan.dry_run { plan.state.dry } else { real };
        let known = self.known(running, &active, &plan.plan, looked, &context).await;
        let mut gates = of_migration(&plan.plan, &known);
        let mut unjudged = "";
        if plan.plan.has_begun(place) {
            match answers(&active, &plan.plan, now, looked) {
                Some(answers) => gates.extend(of_new(&plan.plan, &answers)),
                None => unjudged = NOT_JUDGED,
            }
        }
        let wall = self.environment.clock.wall_millis();
        let mut decision = decide(&plan.plan, &plan.state, place, &gates, wall);
        decision.why.push_str(unjudged);
        *running.ramp_said.lock() = Said { gates: gates.clone(), why: decision.why.clone() };
        tell(&context.name, &plan, &decision, &gates);
        self.follow_decision(running, looked, &plan, place, decision, gates).await;
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
        let (act, wanted) = words(decision.act);
        let seen: Vec<_> = gates.iter().map(|gate| (gate.name.clone(), gate.verdict)).collect();
        let is_news = decision.act != Act::Hold || !looked.recorded_same(&seen);
        let mut done = Done { to: wanted, result: Ok(()), besides: String::new() };
        if let Some(to) = wanted.filter(|_| !plan.plan.dry_run) {
            if plan.decisions == 0 || from == Place::default() {
                // Before the first percent: afterwards old no longer serves everything.
                let active = running.active.lock().clone();
                let baselines = active.map(|active| active.shapes.baselines()).unwrap_or_default();
                let kept =
                    running.change_stored(state, |stored| stored.baselines.clone_from(&baselines)).await;
                done.result = kept.map_err(|error| error.to_string());
            }
            let name = running.stored.lock().name.clone();
            if let Act::Down(_) = decision.act {
                done = self.come_down(&name, plan, from, to).await;
            } else if done.result.is_ok() {
                done.result = self.move_to(&name, plan, from, to).await;
            }
        }
        let Done { to, result, besides } = done;
        let moved = result.is_ok();
        let active = running.active.lock().clone();
        if let Some(active) = active.filter(|_| to.is_some()) {
            looked.has_moved(running.mark(&active, self.environment.clock.now()));
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
        looked.record(seen);
        let recorded = RampDecision {
            number,
            at,
            act: act.to_owned(),
            dry_run: plan.plan.dry_run,
            from,
            to,
            look: decision.look,
            first_broken_look: decision.first_broken,
            why: decision.why + &besides,
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

    /// Comes down. A step that is not zero needs new too; reads alone return to old without it.
    async fn come_down(&self, name: &str, plan: &StoredPlan, from: Place, to: Place) -> Done {
        let done = |to, result, besides| Done { to: Some(to), result, besides };
        let Err(why) = self.move_to(name, plan, from, to).await else {
            return done(to, Ok(()), String::new());
        };
        let parts = self.running(name).await.ok().and_then(|running| running.parts());
        let route = parts.and_then(|context| context.route());
        if route.is_none_or(|route| !route.owned_by_new.is_empty()) {
            let part = plan.plan.range.as_ref().map_or(String::new(), |range| format!(" --range {range}"));
            let way = format!(
                "new holds writes, so that nothing comes down by itself until it and the streams are well again: if \
                 it does not come back, reshard migrate rollback {name} --without-new{part} (it was: {why})"
            );
            return done(to, Err(way), String::new());
        }
        let lowest = Place { reads: Percent::ZERO, writes: from.writes };
        if to.reads >= from.reads || to.reads == Percent::ZERO {
            return done(to, Err(why), String::new());
        }
        match self.move_to(name, plan, from, lowest).await {
            Ok(()) => {
                let besides =
                    format!("; reads go to 0, which needs old alone: the step below failed ({why})");
                done(lowest, Ok(()), besides)
            }
            Err(last) => done(to, Err(format!("{why}; reads to 0: {last}")), String::new()),
        }
    }

    /// Moves both shares; up reads go first, down writes.
    async fn move_to(&self, name: &str, plan: &StoredPlan, from: Place, to: Place) -> Result<(), String> {
        let by = By::any(WHO);
        let said = |error: ControlError| format!("{}: {}", error.code, error.detail);
        if let Some(range) = &plan.plan.range {
            return self.move_range(name, plan, range, to).await.map_err(said);
        }
        let reads = async || {
            let call = async |running: &Arc<Running>| {
                running.must_be_wanted(plan, to.reads > from.reads)?;
                self.move_reads(running, to.reads).await
            };
            self.change_routing(&by, name, |_| format!("reads {}", to.reads), call).await.map_err(said)
        };
        if to.reads > from.reads {
            reads().await?;
        }
        if to.writes != from.writes {
            let call = async |running: &Arc<Running>| {
                running.must_be_wanted(plan, to.writes > from.writes)?;
                self.move_writes(running, to.writes, Patience::default()).await
            };
            let moved = self.change_routing(&by, name, |_| format!("writes {}", to.writes), call).await;
            moved.map_err(said)?;
        }
        if to.reads < from.reads {
            reads().await?;
        }
        Ok(())
    }
}

impl Engine {
    /// A range moves by a pin, which holds it there: back to old as a rollback of it alone does.
    async fn move_range(
        &self,
        name: &str,
        plan: &StoredPlan,
        range: &str,
        to: Place,
    ) -> Result<(), ControlError> {
        let up = to != Place::default();
        let asked = SetPins {
            keys: Vec::new(),
            ranges: vec![range.to_owned()],
            to: if up { Cluster::New } else { Cluster::Old },
        };
        let call = async |running: &Arc<Running>| {
            running.must_be_wanted(plan, up)?;
            self.pin(running, &asked).await.map(drop)
        };
        let what = format!("pin range {range} to {}", Side::from(asked.to));
        self.change_routing(&By::any(WHO), name, |_| what, call).await
    }

    /// Halts the plan of a range that somebody else now moves or holds: it would move it again by itself.
    pub(super) async fn halt_plan_of(&self, running: &Running, ranges: &[String]) -> bool {
        let plan = running.stored.lock().plan.as_ref().and_then(|plan| plan.plan.range.clone());
        !plan.is_some_and(|range| ranges.contains(&range)) || self.halt_plan(running).await
    }
}

impl Running {
    /// Where reads and writes are that are not pinned, in the steps of a plan; or where its range is.
    pub(super) fn place(&self, plan: Option<&Plan>) -> Place {
        let Some(context) = self.parts() else { return Place::default() };
        let Some(route) = context.route() else { return Place::default() };
        if let Some(range) = plan.and_then(|plan| plan.range.as_ref()) {
            let slot = route.key_ranges.named(range);
            let share = |on_new: &SlotSet| match slot {
                Some(slot) if on_new.contains(slot) => Percent::ALL,
                _ => Percent::ZERO,
            };
            return Place { reads: share(&route.reads_on_new), writes: share(&route.owned_by_new) };
        }
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
        stored.plan.as_mut().filter(|known| is_same(known, plan)).map(change).is_some()
    }

    /// A step that was decided on before an operator halted the plan, put another in its place, or switched plans off
    /// must not follow that call. To be asked while no other call is under way.
    pub(super) fn must_be_wanted(&self, plan: &StoredPlan, up: bool) -> Result<(), ControlError> {
        if !self.stored.lock().plan.as_ref().is_some_and(|known| is_same(known, plan)) {
            return Err(conflict("plan-changed", "the plan was halted or replaced meanwhile"));
        }
        match self.plan_is_off().filter(|_| up) {
            Some(why) => Err(conflict("plan-switched-off", why)),
            None => Ok(()),
        }
    }
}

fn is_same(known: &StoredPlan, plan: &StoredPlan) -> bool {
    known.since == plan.since && known.plan == plan.plan && known.state.paused == plan.state.paused
}

/// What is remembered of a decision that could not be done: nothing was reached, and what is broken stays so.
fn undone(plan: &StoredPlan, decision: &Decision) -> State {
    let State { looked_at, looks, .. } = decision.state;
    State { looked_at, looks, dwelt_ms: 0, ..plan.state.clone() }
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
