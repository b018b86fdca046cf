//! Ramps by plan at work: every few seconds the gates are measured, and what is decided is done and recorded.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;

use super::engine::Engine;
use super::evidence::{Looked, answers, baselines_of};
use super::plan::{Gate, Place, Plan, RampDecision, StoredPlan, UNDER_WAY, Verdict, record, words};
use super::plan_moves::{Attempt, Done};
use super::plan_telling::{tell, tell_gates};
use super::running::Running;
use super::stored::Stored;
use crate::clock::timeout;
use crate::policy::evidence::{of_baseline, of_migration, of_new};
use crate::policy::ramp::{Act, Decision, EVERY_MS, State, decide};
use crate::policy::ramp_moves::{Trying, after_step, is_known_again, note_stay};
use crate::state::records::RecordError;

/// How long a step down waits until it is stored that it is about to be taken.
const ANNOUNCING: Duration = Duration::from_secs(2);
/// Why it is not stored then.
const LATE: &str = "no answer in time";

/// What is said while nothing is known of where it is.
const UNPLACED: &str = "where reads and writes are is not known: old's record has not been read yet, or not since \
                        the last step, of which it is not known how it ended";

/// What is said of a dry run while nothing has measured new.
const NOT_JUDGED: &str = "; errors and latency of new are not judged: a dry run sends nothing to it, and neither \
                          shadow reads nor a rehearsal have measured it lately";

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
                    engine.tell_untold(&running, &mut looked).await;
                    if engine.look_at_gates(&running, &mut looked).await.is_none() {
                        let name = running.stored.lock().name.clone();
                        tell_gates(&name, &mut looked.published, &[]);
                    }
                };
                self.environment.spawn.spawn("ramp", look.boxed());
            }
            self.environment.clock.sleep(every).await;
        }
    }

    /// `None`: there is nothing to be judged.
    async fn look_at_gates(&self, running: &Arc<Running>, looked: &mut Looked) -> Option<()> {
        let (stored, baselines) = {
            let stored = running.stored.lock();
            if !stored.is_read() {
                return None;
            }
            (stored.plan.clone(), stored.baselines.clone())
        };
        let (active, context) = (running.active.lock().clone()?, running.parts()?);
        if !std::mem::replace(&mut looked.learned, true) {
            active.shapes.learn(&baselines);
        }
        let now = self.environment.clock.now();
        let progress = self.view(running);
        let on_new = running.on_new();
        if on_new == Some(false) {
            active.shapes.note_baselines(now);
        }
        // Also without a plan: who goes up by hand may leave the rest to one.
        let enough = stored.as_ref().map_or(Plan::default().min_samples, |plan| plan.plan.min_samples);
        active.shapes.note_missing_baselines(&active.shadow.shapes, now, enough);
        let mut plan = stored.filter(|plan| !plan.done && !progress.phase.is_over())?;
        let wall = self.environment.clock.wall_millis();
        if looked.begin(&plan, || running.mark(&active, now)) {
            plan.state = plan.state.taken_up(plan.since, wall);
        }
        if is_known_again(looked.failed, context.authorities.old.heard()) {
            looked.failed = None;
        }
        let real = match looked.failed {
            None => self.where_it_is(running, &mut plan).await,
            Some(_) => None,
        };
        let Some((real, on_new)) = real.zip(on_new) else {
            *running.ramp_said.lock() = Said { gates: Vec::new(), why: UNPLACED.to_owned() };
            return None;
        };
        self.tell_of_cut_off(running, looked, &mut plan, real).await;
        let place = if plan.plan.dry_run { plan.state.dry } else { real };
        if note_stay(&mut plan.stays, place, wall) {
            // Whoever moved it, and also where it begins: what was measured elsewhere says nothing of this step.
            looked.has_moved(running.mark(&active, now));
        }
        let known = self.known(running, &active, &plan.plan, looked, &context).await;
        let mut gates = of_migration(&plan.plan, &known);
        let has_begun = plan.plan.has_begun(place);
        if !has_begun {
            let (enough, all) = baselines_of(&active.shapes, plan.plan.min_samples);
            gates.push(of_baseline(&plan.plan, enough, all));
        }
        let mut unjudged = "";
        // Whoever has moved something by hand, or another part of it, has new judged before the first step, too.
        if has_begun || on_new {
            match answers(&active, &plan.plan, now, looked) {
                Some(answers) => gates.extend(of_new(&plan.plan, &answers)),
                None => unjudged = NOT_JUDGED,
            }
        }
        let wall = self.environment.clock.wall_millis();
        let mut decision = decide(&plan.plan, &plan.state, place, &gates, wall);
        decision.why.push_str(unjudged);
        *running.ramp_said.lock() = Said { gates: gates.clone(), why: decision.why.clone() };
        tell(&context.name, &plan, &decision);
        tell_gates(&context.name, &mut looked.published, &gates);
        self.follow_decision(running, looked, &plan, place, decision, gates).await;
        Some(())
    }

    /// Does what was decided, and records it: before anything moves, and once it is known how that ended.
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
        let mut seen: Vec<_> = gates.iter().map(|gate| (gate.name.clone(), gate.verdict)).collect();
        if plan.state.paused {
            // Whatever the gates say: that it is halted is recorded, and that it goes on.
            seen.push(("paused".to_owned(), Verdict::Unknown));
        }
        let is_news = decision.act != Act::Hold || !looked.recorded_same(&seen);
        let mut told = RampDecision {
            number: plan.decisions + i64::from(is_news),
            at: decision.state.looked_at.unwrap_or_default(),
            act: act.to_owned(),
            dry_run: plan.plan.dry_run,
            from,
            to: wanted,
            look: decision.look,
            first_broken_look: decision.first_broken,
            reached_at: plan.stays.last().map(|stay| stay.reached_at),
            left_at: None,
            why: decision.why.clone(),
            result: UNDER_WAY.to_owned(),
            gates,
        };
        let mut done = Done { to: wanted, result: Ok(()), besides: String::new(), announced: false };
        if let Some(to) = wanted.filter(|_| !plan.plan.dry_run) {
            done = self.try_move(running, Attempt { plan, from, to }, &told).await;
        }
        let active = running.active.lock().clone();
        if let Some(active) = active.filter(|_| wanted.is_some()) {
            looked.has_moved(running.mark(&active, self.environment.clock.now()));
        }
        let now = self.environment.clock.wall_millis();
        let moved = done.result.is_ok();
        if !moved {
            // It may have been made all the same: old's record has to be heard before anything else is tried.
            looked.failed = Some(self.environment.clock.now());
        }
        told.left_at = wanted.filter(|_| moved).map(|_| now);
        let kept = running.keep(plan, &decision, &done, told.number, now);
        // What was announced is told to its end, even if another plan has taken the place of this one.
        let is_told = kept || done.announced;
        if !is_news || !is_told {
            return;
        }
        looked.record(seen);
        told.to = done.to;
        told.why.push_str(&done.besides);
        told.result = done.result.map_or_else(|why| why, |()| "ok".to_owned());
        let name = running.stored.lock().name.clone();
        tracing::info!(migration = name, act, to = ?told.to, why = told.why, result = told.result, "ramp");
        let stored = if done.announced {
            // That nothing is under way any more is stored last: until then whoever follows tells how it ended.
            match self.tell_end(running, looked, told).await {
                Ok(()) => running.persist(state).await.map_err(|error| error.to_string()),
                Err(why) => Err(why),
            }
        } else {
            // The number first: nobody uses it again.
            let numbered = running.persist(state).await.map_err(|error| error.to_string());
            let told = self.tell_end(running, looked, told).await;
            numbered.and(told)
        };
        if let Err(why) = stored {
            tracing::warn!(why, "a decision of the ramp could not be stored");
        }
    }

    /// Records a step, and then takes it.
    async fn try_move(&self, running: &Arc<Running>, attempt: Attempt<'_>, told: &RampDecision) -> Done {
        let name = running.stored.lock().name.clone();
        let is_down = told.act == "down";
        let announced = if is_down {
            // What is broken comes down, whether that can be stored or not.
            let announced = self.announce(running, attempt, told);
            timeout(&*self.environment.clock, ANNOUNCING, announced)
                .await
                .unwrap_or_else(|_| Err(LATE.to_owned()))
        } else {
            self.announce(running, attempt, told).await
        };
        if let Err(why) = &announced {
            tracing::warn!(why, "a step of the ramp could not be recorded before it is taken");
        }
        // Of what was not answered in time a part may be stored: that is told to its end, too.
        let has_announced = announced.is_ok() || running.is_trying(told.number);
        let done = match announced {
            _ if is_down => self.come_down(&name, attempt).await,
            Ok(()) => Done::at(attempt.to, self.move_to(&name, attempt).await),
            Err(why) => {
                Done::at(attempt.to, Err(format!("it could not be recorded before it is taken: {why}")))
            }
        };
        Done { announced: has_announced, ..done }
    }

    /// Stores what is about to be tried, with the numbers that it was decided by, and the number of its decision, so that
    /// whoever follows tells how it ended.
    async fn announce(
        &self,
        running: &Running,
        attempt: Attempt<'_>,
        told: &RampDecision,
    ) -> Result<(), String> {
        let said = |error: RecordError| error.to_string();
        let state = self.environment.state().map_err(|error| error.detail)?;
        let Attempt { plan, from, to } = attempt;
        if plan.state.trying.is_some() {
            return Err("how the step before it ended could not be stored yet".to_owned());
        }
        let active = running.active.lock().clone();
        let change = |stored: &mut Stored| {
            // At every step: afterwards old serves less, and of what came up since the last one maybe nothing.
            if let Some(active) = &active {
                stored.baselines = active.shapes.baselines_after(&stored.baselines);
            }
            if let Some(known) = stored.plan.as_mut().filter(|known| plan.is_same(known)) {
                known.decisions = told.number;
                known.state.trying = Some(Trying { number: told.number, to });
                known.state.expected = Some(from);
                known.stays.clone_from(&plan.stays);
            }
        };
        running.change_stored(state, change).await.map_err(said)?;
        let name = {
            let stored = running.stored.lock();
            if !stored.plan.as_ref().is_some_and(|known| plan.is_same(known)) {
                return Err("the plan was halted or replaced meanwhile".to_owned());
            }
            stored.name.clone()
        };
        record(state, &name, told).await.map_err(said)
    }
}

impl Running {
    /// Whether anything is on new that is not pinned there; `None`: not known.
    fn on_new(&self) -> Option<bool> {
        // A plan of a range does not see what else is on new, and percentages do not see ranges.
        let of_plan = self.stored.lock().plan.as_ref().map(|plan| plan.plan.clone());
        let places = [self.place_in_force(None)?, self.place_in_force(of_plan.as_ref())?];
        Some(places.iter().any(|place| *place != Place::default()))
    }

    /// Remembers what came of a decision, unless another plan has taken the place of this one meanwhile. Whether it did.
    pub(super) fn keep(
        &self,
        plan: &StoredPlan,
        decision: &Decision,
        done: &Done,
        number: i64,
        now: i64,
    ) -> bool {
        let place = self.place_in_force(Some(&plan.plan));
        self.forget_trying(number);
        let mut stored = self.stored.lock();
        let Some(known) = stored.plan.as_mut().filter(|known| plan.is_same(known)) else { return false };
        // What could not be done is decided anew at the next look.
        let state = if done.result.is_ok() { decision.state.clone() } else { undone(plan, decision) };
        known.state = state;
        known.decisions = number;
        known.done = decision.act == Act::Done;
        known.stays.clone_from(&plan.stays);
        let Some(to) = done.to else { return true };
        // The step that it led to begins now, and not when it was decided on.
        known.state.looked_at = Some(now);
        if plan.plan.dry_run {
            known.state.dry = to;
            note_stay(&mut known.stays, to, now);
        } else {
            let place = place.filter(|_| done.result.is_ok());
            known.state = after_step(known.state.clone(), Trying { number, to }, place);
            if let Some(place) = place {
                note_stay(&mut known.stays, place, now);
            }
        }
        true
    }
}

impl StoredPlan {
    /// Whether it is still the plan that was looked at, and nobody has halted it or let it go on.
    pub(super) fn is_same(&self, known: &Self) -> bool {
        known.since == self.since
            && known.plan == self.plan
            && known.state.paused == self.state.paused
            && known.resumed == self.resumed
    }
}

/// What is remembered of a decision that could not be done: nothing was reached, and what is broken stays so.
fn undone(plan: &StoredPlan, decision: &Decision) -> State {
    let State { looked_at, looks, .. } = decision.state;
    State { looked_at, looks, dwelt_ms: 0, ..plan.state.clone() }
}
