//! How a plan moves, and what it does when others move what it moves: it never takes back, or goes past, what an
//! operator did by hand.

use std::sync::Arc;
use std::time::Duration;

use super::control::{By, Cluster, ControlError, Patience, Ramp, SetPins};
use super::engine::{Engine, unavailable};
use super::plan::{Place, Plan, StoredPlan};
use super::ramping::conflict;
use super::running::Running;
use super::stored::Stored;
use crate::clock::timeout;
use crate::model::percent::Percent;
use crate::model::side::Side;
use crate::model::slots::SlotSet;
use crate::policy::ramp_moves::{is_between, moved_by_others, spelled};

/// Who moves what a plan moves, in the audit.
const WHO: &str = "plan";
/// Why a plan is halted after a rollback.
pub(super) const ROLLED_BACK: &str = "a rollback was asked for";
/// How long an operator's call waits until something is stored: that a plan is halted, or baselines.
const HALTING: Duration = Duration::from_secs(2);

/// A step that a plan has decided on.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub(super) plan: &'a StoredPlan,
    pub(super) from: Place,
    pub(super) to: Place,
}

/// What became of it.
pub(super) struct Done {
    /// Where it went, or was to go.
    pub(super) to: Option<Place>,
    pub(super) result: Result<(), String>,
    /// What is to be said besides why it was decided.
    pub(super) besides: String,
    /// It was recorded before it was tried.
    pub(super) announced: bool,
}

impl Done {
    /// Nothing is to be said besides.
    pub(super) fn at(to: Place, result: Result<(), String>) -> Self {
        Self { to: Some(to), result, besides: String::new(), announced: false }
    }
}

impl Engine {
    /// Comes down. A step that is not zero needs new too; reads alone return to old without it.
    pub(super) async fn come_down(&self, name: &str, attempt: Attempt<'_>) -> Done {
        let Attempt { plan, from, to } = attempt;
        let Err(why) = self.move_to(name, attempt).await else { return Done::at(to, Ok(())) };
        let parts = self.running(name).await.ok().and_then(|running| running.parts());
        let route = parts.and_then(|context| context.route());
        if route.is_none_or(|route| !route.owned_by_new.is_empty()) {
            let part = plan.plan.range.as_ref().map_or(String::new(), |range| format!(" --range {range}"));
            let way = format!(
                "new holds writes, so that nothing comes down by itself until it and the streams are well again: if \
                 it does not come back, reshard migrate rollback {name} --without-new{part} (it was: {why})"
            );
            return Done::at(to, Err(way));
        }
        if to.reads >= from.reads || to.reads == Percent::ZERO {
            return Done::at(to, Err(why));
        }
        // New has no writes, or none any more.
        let (from, lowest) = (Place { writes: Percent::ZERO, ..from }, Place::default());
        match self.move_to(name, Attempt { plan, from, to: lowest }).await {
            Ok(()) => {
                let besides =
                    format!("; reads go to 0, which needs old alone: the step below failed ({why})");
                Done { besides, ..Done::at(lowest, Ok(())) }
            }
            // That may have been made all the same.
            Err(last) => Done::at(lowest, Err(format!("{why}; reads to 0: {last}"))),
        }
    }

    /// Moves both shares; up reads go first, down writes.
    pub(super) async fn move_to(&self, name: &str, attempt: Attempt<'_>) -> Result<(), String> {
        let by = By::any(WHO);
        let said = |error: ControlError| format!("{}: {}", error.code, error.detail);
        let Attempt { plan, from, to } = attempt;
        let now = || self.environment.clock.wall_millis();
        if let Some(range) = &plan.plan.range {
            return self.move_range(name, attempt, range).await.map_err(said);
        }
        let reads = async || {
            let call = async |running: &Arc<Running>| {
                running.must_be_wanted(attempt, to.reads > from.reads, now())?;
                self.move_reads(running, to.reads).await
            };
            self.change_routing(&by, name, |_| format!("reads {}", to.reads), call).await.map_err(said)
        };
        if to.reads > from.reads {
            reads().await?;
        }
        if to.writes != from.writes {
            let call = async |running: &Arc<Running>| {
                running.must_be_wanted(attempt, to.writes > from.writes, now())?;
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

    /// A range moves by a pin, which holds it there: back to old as a rollback of it alone does.
    async fn move_range(&self, name: &str, attempt: Attempt<'_>, range: &str) -> Result<(), ControlError> {
        let up = attempt.to != Place::default();
        let asked = SetPins {
            keys: Vec::new(),
            ranges: vec![range.to_owned()],
            to: if up { Cluster::New } else { Cluster::Old },
        };
        let call = async |running: &Arc<Running>| {
            running.must_be_wanted(attempt, up, self.environment.clock.wall_millis())?;
            self.pin(running, &asked).await.map(drop)
        };
        let what = format!("pin range {range} to {}", Side::from(asked.to));
        self.change_routing(&By::any(WHO), name, |_| what, call).await
    }
}

impl Engine {
    /// Moves reads for an operator: a plan that moves the same is halted, and says why.
    pub(super) async fn reads_by_hand(
        &self,
        running: &Running,
        by: &By,
        percent: Percent,
    ) -> Result<Ramp, ControlError> {
        let why = format!("{} moved reads to {percent} %", by.who.0);
        if percent > running.place(None).reads {
            self.keep_baselines(running).await;
        }
        self.by_hand(running, why, self.move_reads(running, percent)).await
    }

    /// The same of writes.
    pub(super) async fn writes_by_hand(
        &self,
        running: &Running,
        by: &By,
        percent: Percent,
        patience: Patience,
    ) -> Result<Ramp, ControlError> {
        let why = format!("{} moved writes to {percent} %", by.who.0);
        if percent > running.place(None).writes {
            self.keep_baselines(running).await;
        }
        self.by_hand(running, why, Box::pin(self.move_writes(running, percent, patience))).await
    }

    /// Stores what is known of old before it serves less: a plan of later, and whoever follows this process, goes by it.
    /// Where that cannot be stored, this does not hold up what an operator does.
    async fn keep_baselines(&self, running: &Running) {
        let Some(active) = running.active.lock().clone() else { return };
        let known = running.stored.lock().baselines.clone();
        if active.shapes.baselines_after(&known) == known {
            return;
        }
        let storing = async {
            let state = self.environment.state().map_err(|error| error.detail)?;
            let change =
                |stored: &mut Stored| stored.baselines = active.shapes.baselines_after(&stored.baselines);
            running.change_stored(state, change).await.map_err(|error| error.to_string())
        };
        let stored = timeout(&*self.environment.clock, HALTING, storing).await;
        if let Err(why) = stored.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
            tracing::warn!(why, "how long old takes could not be stored before a move by hand");
        }
    }

    /// What changed nothing of what the plan moves, or failed, leaves it as it is; what failed half way does not.
    async fn by_hand(
        &self,
        running: &Running,
        why: String,
        call: impl Future<Output = Result<Ramp, ControlError>>,
    ) -> Result<Ramp, ControlError> {
        let place = || {
            let plan = running.stored.lock().plan.as_ref().map(|plan| plan.plan.clone());
            plan.map(|plan| plan.part(running.place(Some(&plan))))
        };
        let before = place();
        let moved = call.await;
        // A dry run moves nothing that could be taken back.
        let is_dry = running.stored.lock().plan.as_ref().is_some_and(|plan| plan.plan.dry_run);
        if place() != before && !is_dry {
            self.halt_plan(running, &why).await;
        }
        moved
    }

    /// Halts the plan of a range that somebody else now moves or holds: it would move it again by itself.
    pub(super) async fn halt_plan_of(&self, running: &Running, ranges: &[String], why: &str) -> bool {
        let plan = running.stored.lock().plan.as_ref().and_then(|plan| plan.plan.range.clone());
        !plan.is_some_and(|range| ranges.contains(&range)) || self.halt_plan(running, why).await
    }

    /// A plan would move it again by itself, and so would a successor's. Where that cannot be stored, this does not hold
    /// up what an operator does: `false`.
    pub(super) async fn halt_plan(&self, running: &Running, why: &str) -> bool {
        match &mut running.stored.lock().plan {
            None => return true,
            // What has ended does not begin again.
            Some(plan) if plan.done => return true,
            // Who halted it first says why; that may not be stored yet.
            Some(plan) if plan.state.paused => {}
            Some(plan) => plan.state = plan.state.clone().halted(why),
        }
        let storing = async {
            running.persist(self.environment.state()?).await.map_err(|error| unavailable(error.to_string()))
        };
        let why = match timeout(&*self.environment.clock, HALTING, storing).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error.detail,
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::warn!(why, "it could not be stored that the ramp is halted");
        false
    }

    /// Where reads and writes are, as a look goes by it. Nobody else moves them meanwhile: in the middle of a call they
    /// are nowhere in particular, and what was known before it counts.
    ///
    /// A plan that finds itself somewhere else than it went is halted: whoever moved it, also through another process,
    /// or before this one, meant that.
    pub(super) async fn where_it_is(&self, running: &Running, plan: &mut StoredPlan) -> Option<Place> {
        let Ok(_turn) = running.calls.try_lock() else {
            // Where a step led that is still to be told is not known from before.
            return plan.state.expected.filter(|_| plan.state.trying.is_none());
        };
        let place = running.place_in_force(Some(&plan.plan))?;
        if plan.plan.dry_run || plan.state.paused {
            plan.state.expected = Some(place);
            return Some(place);
        }
        if let Some(why) = moved_by_others(&plan.plan, &plan.state, place) {
            tracing::warn!(why, "the ramp is halted");
            self.halt_plan(running, &why).await;
            plan.state = plan.state.clone().halted(&why);
        }
        plan.state.expected = Some(place);
        Some(place)
    }
}

impl Running {
    /// Where reads and writes are that are not pinned, in the steps of a plan; or where its range is.
    pub(super) fn place(&self, plan: Option<&Plan>) -> Place {
        let Some(context) = self.parts() else { return Place::default() };
        let Some(route) = context.route() else { return Place::default() };
        // Until new's record has been read, what old does not own may be new's.
        let unread = route.unread == Some(Side::New);
        let owned_by_new = if unread { SlotSet::ALL.minus(&route.owned_by_old) } else { route.owned_by_new };
        if let Some(range) = plan.and_then(|plan| plan.range.as_ref()) {
            let slot = route.key_ranges.named(range);
            let share = |on_new: &SlotSet| match slot {
                Some(slot) if on_new.contains(slot) => Percent::ALL,
                _ => Percent::ZERO,
            };
            return Place { reads: share(&route.reads_on_new), writes: share(&owned_by_new) };
        }
        let of = context.shares();
        let steps = |of: fn(&Plan) -> &Vec<_>| plan.map_or(&[][..], |plan| of(plan).as_slice());
        Place {
            reads: of.share(&route.reads_on_new, steps(|plan| &plan.reads)),
            writes: of.share(&owned_by_new, steps(|plan| &plan.writes)),
        }
    }

    /// The same; `None` as long as old's record has not been read, which is the first to hear of moves.
    pub(super) fn place_in_force(&self, plan: Option<&Plan>) -> Option<Place> {
        let route = self.parts()?.route()?;
        (route.unread != Some(Side::Old)).then(|| self.place(plan))
    }

    /// A step that was decided on before an operator halted the plan, put another in its place, switched plans off, or
    /// moved something by hand must not follow that call, nor one whose time has passed. To be asked while no other
    /// call is under way.
    pub(super) fn must_be_wanted(
        &self,
        attempt: Attempt<'_>,
        up: bool,
        now: i64,
    ) -> Result<(), ControlError> {
        let Attempt { plan, from, to } = attempt;
        if !self.stored.lock().plan.as_ref().is_some_and(|known| plan.is_same(known)) {
            return Err(conflict("plan-changed", "the plan was halted or replaced meanwhile"));
        }
        let of = |place| plan.plan.part(place);
        let is_elsewhere = |place: &Place| !is_between(of(from), of(to), of(*place));
        if let Some(place) = self.place_in_force(Some(&plan.plan)).filter(is_elsewhere) {
            return Err(conflict(
                "moved-meanwhile",
                format!("somebody else has moved it to {}", spelled(place)),
            ));
        }
        if !up {
            return Ok(());
        }
        if let Some(why) = plan.plan.shut(now) {
            return Err(conflict("outside-windows", why));
        }
        self.plan_is_off().map_or(Ok(()), |why| Err(conflict("plan-switched-off", why)))
    }
}
