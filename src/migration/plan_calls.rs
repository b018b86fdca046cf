//! What an operator can ask of a ramp by plan.

use std::time::Duration;

use super::control::{ControlError, Page, Refusal};
use super::engine::{Engine, unavailable};
use super::persist::must_be_read;
use super::pins::{Keys, read_held};
use super::plan::{DecisionList, Plan, RampView, State, Steer, StoredPlan, decisions};
use super::planning::Said;
use super::ramping::{conflict, routed};
use super::running::Running;
use crate::clock::timeout;
use crate::converge::shards::is_sharded;
use crate::model::side::Side;
use crate::policy::calendar_change::dropped;

/// How long a cluster may take to say what it is.
const ASK_LIMIT: Duration = Duration::from_secs(5);
const MOST_ON_A_PAGE: u16 = 1000;

fn none(name: &str) -> ControlError {
    let detail = format!("there is no plan for {name}; start one: reshard migrate ramp start {name}");
    ControlError::new(Refusal::NotFound, "no-plan", detail)
}

impl Engine {
    /// Takes up a plan, in place of the one before.
    pub(super) async fn start_plan(
        &self,
        running: &Running,
        by: &str,
        plan: Plan,
    ) -> Result<RampView, ControlError> {
        must_be_read(running)?;
        let plan = plan.settled();
        let problems = plan.problems();
        if !problems.is_empty() {
            let detail = format!("the plan makes no sense: {}", problems.join("; "));
            return Err(ControlError::new(Refusal::Invalid, "invalid-plan", detail).because(problems));
        }
        let phase = running.stored.lock().phase;
        if phase.is_over() {
            return Err(conflict("wrong-phase", format!("it is {phase}; nothing can move any more")));
        }
        must_be_the_only_one(running, &plan)?;
        self.must_see_shards(&plan).await?;
        if let Some(range) = &plan.range {
            self.must_be_movable(running, range).await?;
        }
        let since = self.environment.clock.wall_millis();
        must_keep_windows(running, &plan, since)?;
        let newest = self.newest_decision(running).await?;
        self.conclude_plan(running).await?;
        self.change_plan(running, |stored| {
            let decisions = stored.as_ref().map_or(newest, |plan| plan.decisions);
            let (plan, by, state, stays) = (plan.clone(), by.to_owned(), State::default(), Vec::new());
            *stored = Some(StoredPlan { plan, state, done: false, decisions, by, since, resumed: 0, stays });
        })
        .await?;
        self.plan_of(running).await
    }

    /// The number of the last decision of any plan: those of one that was stopped are kept, too.
    async fn newest_decision(&self, running: &Running) -> Result<i64, ControlError> {
        let known = {
            let stored = running.stored.lock();
            stored.plan.as_ref().map(|plan| plan.decisions).ok_or_else(|| stored.name.clone())
        };
        let name = match known {
            Ok(known) => return Ok(known),
            Err(name) => name,
        };
        let last = Page { limit: Some(1), ..Page::default() };
        let found = decisions(self.environment.state()?, &name, last).await;
        let found = found.map_err(|error| unavailable(error.to_string()))?;
        Ok(found.decisions.first().map_or(0, |newest| newest.number))
    }

    /// A range moves alone, which divides writes: what stands in the way of that for good is told at once.
    async fn must_be_movable(&self, running: &Running, range: &str) -> Result<(), ControlError> {
        read_held(&only(range), &running.key_ranges())?;
        match routed(running).await {
            Ok((context, _)) => self.must_allow_parts(running, &context).await,
            // What has not started yet waits, as with any plan.
            Err(_) => Ok(()),
        }
    }

    /// Routers show neither the oplogs of shards nor their secondaries: with these gates a plan would hold for ever.
    async fn must_see_shards(&self, plan: &Plan) -> Result<(), ControlError> {
        let Some(clusters) = self.environment.clusters.as_ref() else { return Ok(()) };
        let asks = [
            (plan.min_oplog_window_seconds, "min_oplog_window_seconds"),
            (plan.max_secondary_lag_seconds, "max_secondary_lag_seconds"),
        ];
        let asks: Vec<_> =
            asks.into_iter().filter(|(bound, _)| *bound > 0.0).map(|(_, field)| field).collect();
        if asks.is_empty() {
            return Ok(());
        }
        let ask = async |side: Side| {
            let sharded =
                timeout(&*self.environment.clock, ASK_LIMIT, is_sharded(&**clusters.get(side))).await;
            // Who does not answer may be a replica set: the gate is unknown until it does.
            matches!(sharded, Ok(Ok(true)))
        };
        let (old, new) = futures::join!(ask(Side::Old), ask(Side::New));
        let hidden: Vec<_> =
            [(old, "old"), (new, "new")].into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect();
        if hidden.is_empty() {
            return Ok(());
        }
        let zeros: Vec<_> = asks.iter().map(|field| format!("\"{field}\": 0")).collect();
        let detail = format!(
            "how far the oplogs of {} reach back, and how far single secondaries are behind, cannot be read through \
             mongos, and the plan would hold for ever: watch the shards by other means, and set {} to 0 \
             (--plan '{{{}}}')",
            hidden.join(" and "),
            asks.join(" and "),
            zeros.join(", ")
        );
        Err(ControlError::new(Refusal::Invalid, "oplog-unreadable", detail))
    }

    /// Halts a plan, or lets it go on.
    pub(super) async fn steer_plan(&self, running: &Running, how: Steer) -> Result<RampView, ControlError> {
        let known = running.stored.lock().plan.clone();
        let plan = known.ok_or_else(|| none(&running.stored.lock().name))?;
        if plan.done {
            return Err(conflict("ramp-done", "all steps of the plan are reached; start another"));
        }
        let now = self.environment.clock.wall_millis();
        self.change_plan(running, |stored| {
            let Some(plan) = stored else { return };
            match how {
                Steer::Pause => plan.state.paused = true,
                Steer::Resume => (plan.state, plan.resumed) = (plan.state.resumed(), now),
            }
        })
        .await?;
        self.plan_of(running).await
    }

    /// Forgets a plan; reads and writes stay where they are. What it was.
    pub(super) async fn stop_plan(&self, running: &Running) -> Result<RampView, ControlError> {
        let was = self.plan_of(running).await?;
        self.conclude_plan(running).await?;
        self.change_plan(running, |stored| *stored = None).await?;
        Ok(was)
    }

    async fn change_plan(
        &self,
        running: &Running,
        change: impl Fn(&mut Option<StoredPlan>) + Send + Sync,
    ) -> Result<(), ControlError> {
        let state = self.environment.state()?;
        let stored = running.change_stored(state, |stored| change(&mut stored.plan)).await;
        *running.ramp_said.lock() = Said::default();
        stored.map_err(|error| unavailable(error.to_string()))
    }

    /// A plan as it is now.
    pub(super) async fn plan_of(&self, running: &Running) -> Result<RampView, ControlError> {
        let known = running.stored.lock().plan.clone();
        let plan = known.ok_or_else(|| none(&running.stored.lock().name))?;
        let place = if plan.plan.dry_run { plan.state.dry } else { running.place(Some(&plan.plan)) };
        let Said { gates, why } = running.ramp_said.lock().clone();
        let why = if plan.state.paused { plan.state.why_paused() } else { why };
        Ok(RampView {
            status: plan.status(),
            by: plan.by,
            since: plan.since,
            reads_percent: place.reads,
            writes_percent: place.writes,
            dwelt_seconds: u64::try_from(plan.state.dwelt_ms / 1000).unwrap_or(0),
            setbacks: plan.state.setbacks,
            plan: plan.plan,
            gates,
            why,
            steps: plan.stays,
        })
    }

    /// A part of what was decided.
    pub(super) async fn decisions_of(
        &self,
        running: &Running,
        page: Page,
    ) -> Result<DecisionList, ControlError> {
        if page.limit.is_some_and(|limit| !(1..=MOST_ON_A_PAGE).contains(&limit)) {
            let detail = format!("limit must be a whole number from 1 to {MOST_ON_A_PAGE}");
            return Err(ControlError::new(Refusal::Invalid, "invalid-limit", detail));
        }
        let name = running.stored.lock().name.clone();
        let found = decisions(self.environment.state()?, &name, page).await;
        found.map_err(|error| unavailable(error.to_string()))
    }
}

/// A range, as calls name it.
fn only(range: &str) -> Keys {
    Keys { keys: Vec::new(), ranges: vec![range.to_owned()] }
}

/// The gates are those of the migration: with two plans at once neither would know whose step broke one, and each would
/// dwell over the other's moves.
fn must_be_the_only_one(running: &Running, plan: &Plan) -> Result<(), ControlError> {
    let known = running.stored.lock().plan.clone();
    let Some(other) = known.filter(|known| !known.done && known.plan.range != plan.range) else {
        return Ok(());
    };
    let detail = format!(
        "there is a plan that moves {} and is not done, and one is followed at a time: stop that first (ramp stop)",
        other.plan.moved()
    );
    Err(conflict("plan-running", detail))
}

/// What the plan in force does not allow, another in its place does not in passing: who wrote it may not be who asks.
fn must_keep_windows(running: &Running, plan: &Plan, now: i64) -> Result<(), ControlError> {
    let dropped = drops(running, plan, now);
    if dropped.is_empty() || plan.override_reason.is_some() {
        return Ok(());
    }
    let detail = format!(
        "the plan in force may not go up when this one may; keep its windows and freezes, or say why they do not \
         matter (override_reason, --override-reason), which is audited: {}",
        dropped.join("; ")
    );
    Err(conflict("drops-windows", detail).because(dropped))
}

/// What a plan drops of the windows and freezes of the one in force.
fn drops(running: &Running, plan: &Plan, now: i64) -> Vec<String> {
    let known = running.stored.lock().plan.clone();
    known.filter(|known| !known.done).map_or_else(Vec::new, |known| dropped(&known.plan, plan, now))
}

impl Engine {
    /// How the start of a plan reads in the audit.
    pub(super) fn described(&self, running: &Running, plan: &Plan) -> String {
        let mut what = described(plan);
        let dropped = drops(running, plan, self.environment.clock.wall_millis());
        if !dropped.is_empty() {
            what.push_str(&format!(" (dropping of the plan in force: {})", dropped.join("; ")));
        }
        what
    }
}

fn described(plan: &Plan) -> String {
    let steps = match &plan.range {
        Some(range) => format!("range {range}"),
        None => format!("reads {:?}, writes {:?}", plan.reads, plan.writes),
    };
    let mut what = format!("ramp start, {steps}, dwell {} s", plan.dwell_seconds);
    if plan.dry_run {
        what.push_str(", dry run");
    }
    if let Some(reason) = &plan.override_reason {
        what.push_str(&format!(", past windows and freezes: {reason}"));
    }
    what
}
