//! What an operator can ask of a ramp by plan.

use std::time::Duration;

use super::control::{ControlError, Page, Refusal};
use super::engine::{Engine, unavailable};
use super::plan::{DecisionList, Plan, RampView, State, Steer, StoredPlan, decisions};
use super::planning::Said;
use super::ramping::conflict;
use super::running::Running;
use crate::clock::timeout;
use crate::converge::shards::is_sharded;
use crate::model::side::Side;

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
        let problems = plan.problems();
        if !problems.is_empty() {
            let detail = format!("the plan makes no sense: {}", problems.join("; "));
            return Err(ControlError::new(Refusal::Invalid, "invalid-plan", detail).because(problems));
        }
        let phase = running.stored.lock().phase;
        if phase.is_over() {
            return Err(conflict("wrong-phase", format!("it is {phase}; nothing can move any more")));
        }
        self.must_see_oplogs(&plan).await?;
        let decisions = running.stored.lock().plan.as_ref().map_or(0, |plan| plan.decisions);
        let since = self.environment.clock.wall_millis();
        let (by, state) = (by.to_owned(), State::default());
        let started = StoredPlan { plan, state, done: false, decisions, by, since };
        self.store_plan(running, Some(&started)).await?;
        self.plan_of(running).await
    }

    /// Routers do not show the oplogs of shards: with that gate a plan would hold for ever.
    async fn must_see_oplogs(&self, plan: &Plan) -> Result<(), ControlError> {
        let Some(clusters) = self.environment.clusters.as_ref() else { return Ok(()) };
        if plan.min_oplog_window_seconds <= 0.0 {
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
        let detail = format!(
            "how far the oplogs of {} reach back cannot be read through mongos, and the plan would hold for ever: \
             watch the shards' oplogs by other means, and set min_oplog_window_seconds to 0 \
             (--plan '{{\"min_oplog_window_seconds\": 0}}')",
            hidden.join(" and ")
        );
        Err(ControlError::new(Refusal::Invalid, "oplog-unreadable", detail))
    }

    /// Halts a plan, or lets it go on.
    pub(super) async fn steer_plan(&self, running: &Running, how: Steer) -> Result<RampView, ControlError> {
        let known = running.stored.lock().plan.clone();
        let mut plan = known.ok_or_else(|| none(&running.stored.lock().name))?;
        if plan.done {
            return Err(conflict("ramp-done", "all steps of the plan are reached; start another"));
        }
        plan.state = match how {
            Steer::Pause => State { paused: true, ..plan.state },
            Steer::Resume => State { dry: plan.state.dry, looks: plan.state.looks, ..State::default() },
        };
        self.store_plan(running, Some(&plan)).await?;
        self.plan_of(running).await
    }

    /// Forgets a plan; reads and writes stay where they are. What it was.
    pub(super) async fn stop_plan(&self, running: &Running) -> Result<RampView, ControlError> {
        let was = self.plan_of(running).await?;
        self.store_plan(running, None).await?;
        Ok(was)
    }

    async fn store_plan(&self, running: &Running, plan: Option<&StoredPlan>) -> Result<(), ControlError> {
        let state = self.environment.state()?;
        let stored = running.change_stored(state, |stored| stored.plan = plan.cloned()).await;
        *running.ramp_said.lock() = Said::default();
        stored.map_err(|error| unavailable(error.to_string()))
    }

    /// A plan as it is now.
    pub(super) async fn plan_of(&self, running: &Running) -> Result<RampView, ControlError> {
        let known = running.stored.lock().plan.clone();
        let plan = known.ok_or_else(|| none(&running.stored.lock().name))?;
        let place = if plan.plan.dry_run { plan.state.dry } else { running.place(Some(&plan.plan)) };
        let Said { gates, why } = running.ramp_said.lock().clone();
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

/// How a call reads in the audit.
pub(super) fn described(plan: &Plan) -> String {
    let mut what = format!(
        "ramp start, reads {:?}, writes {:?}, dwell {} s",
        plan.reads, plan.writes, plan.dwell_seconds
    );
    if plan.dry_run {
        what.push_str(", dry run");
    }
    if let Some(reason) = &plan.override_reason {
        what.push_str(&format!(", past windows and freezes: {reason}"));
    }
    what
}
