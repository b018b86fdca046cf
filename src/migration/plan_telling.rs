//! What is told of a ramp by plan besides its decisions: how its steps ended, whoever took them, and metrics.

use metrics::{counter, gauge};

use super::control::ControlError;
use super::engine::{Engine, unavailable};
use super::evidence::Looked;
use super::plan::{Gate, Place, RampDecision, StoredPlan, Verdict, conclude, record, words};
use super::running::Running;
use crate::policy::ramp::Decision;
use crate::policy::ramp_moves::{Trying, cut_off};
use crate::telemetry::metrics as names;

/// Why it is not known how a step ended that another process took.
const DIED: &str = "the process ended in the middle of it";
/// The same of a plan that is no longer followed.
const LEFT: &str = "its plan was stopped or replaced before that was stored";

impl Engine {
    /// Stores how a decision ended. Where that fails, a step stays under way, and the next look tells.
    pub(super) async fn tell_end(
        &self,
        running: &Running,
        looked: &mut Looked,
        told: RampDecision,
    ) -> Result<(), String> {
        let stored = self.store_end(running, &told).await;
        if let Some(to) = told.to.filter(|_| stored.is_err() && !told.dry_run) {
            running.try_again(Trying { number: told.number, to });
            looked.untold.push(told);
        }
        stored
    }

    /// Tells how steps ended of which that could not be stored at their end. Their plan may be gone by now.
    pub(super) async fn tell_untold(&self, running: &Running, looked: &mut Looked) {
        while let Some(told) = looked.untold.first() {
            if let Err(why) = self.store_end(running, told).await {
                tracing::warn!(why, "it could not be stored how a step of the ramp ended");
                return;
            }
            looked.untold.remove(0);
        }
    }

    async fn store_end(&self, running: &Running, told: &RampDecision) -> Result<(), String> {
        let state = self.environment.state().map_err(|error| error.detail)?;
        let name = running.stored.lock().name.clone();
        record(state, &name, told).await.map_err(|error| error.to_string())
    }

    /// Tells how a move ended that another process began and did not live to tell of. Of a move of this process that is
    /// stored already; only now it is known where it led.
    pub(super) async fn tell_of_cut_off(
        &self,
        running: &Running,
        looked: &Looked,
        plan: &mut StoredPlan,
        place: Place,
    ) {
        let Some(trying) = plan.state.trying.filter(|_| looked.untold.is_empty()) else { return };
        let Ok(state) = self.environment.state() else { return };
        let name = running.stored.lock().name.clone();
        let result = cut_off(&trying, Some(place), DIED);
        match conclude(state, &name, trying.number, &result).await {
            Ok(()) => {
                running.forget_trying(trying.number);
                plan.state.trying = None;
            }
            // At the next look.
            Err(error) => tracing::warn!(%error, "it could not be stored how a step of the ramp ended"),
        }
    }

    /// Tells the same before its plan is forgotten, with which it would be under way for ever. A look that is in the
    /// middle of the step tells more when it ends.
    pub(super) async fn conclude_plan(&self, running: &Running) -> Result<(), ControlError> {
        let (name, plan) = {
            let stored = running.stored.lock();
            (stored.name.clone(), stored.plan.clone())
        };
        let Some((trying, plan)) = plan.and_then(|plan| plan.state.trying.zip(Some(plan.plan))) else {
            return Ok(());
        };
        let result = cut_off(&trying, running.place_in_force(Some(&plan)), LEFT);
        let told = conclude(self.environment.state()?, &name, trying.number, &result).await;
        told.map_err(|error| unavailable(error.to_string()))
    }
}

impl Running {
    /// A step is under way as long as it is not told how it ended.
    fn try_again(&self, trying: Trying) {
        if let Some(plan) = &mut self.stored.lock().plan {
            plan.state.trying.get_or_insert(trying);
        }
    }

    /// Whether this step counts as under way.
    pub(super) fn is_trying(&self, number: i64) -> bool {
        let stored = self.stored.lock();
        let trying = stored.plan.as_ref().and_then(|plan| plan.state.trying);
        trying.is_some_and(|trying| trying.number == number)
    }

    /// What is under way no longer.
    pub(super) fn forget_trying(&self, number: i64) {
        if let Some(plan) = &mut self.stored.lock().plan {
            plan.state.trying = plan.state.trying.filter(|trying| trying.number != number);
        }
    }
}

/// Publishes what a look says.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub(super) fn tell(migration: &str, plan: &StoredPlan, decision: &Decision) {
    let of = |name: &'static str| gauge!(name, "migration" => migration.to_owned());
    of(names::MIGRATION_RAMP_DWELT).set(decision.state.dwelt_ms as f64 / 1000.0);
    of(names::MIGRATION_RAMP_SETBACKS).set(f64::from(decision.state.setbacks));
    of(names::MIGRATION_RAMP_PAUSED).set(f64::from(u8::from(plan.state.paused)));
    let (act, _) = words(decision.act);
    counter!(names::MIGRATION_RAMP_DECISIONS, "migration" => migration.to_owned(), "act" => act).increment(1);
}

/// Publishes gates; those that were `published` before and are not judged now are not known.
pub(super) fn tell_gates(migration: &str, published: &mut Vec<String>, gates: &[Gate]) {
    for (name, value) in shown(published, gates) {
        gauge!(names::MIGRATION_RAMP_GATE, "migration" => migration.to_owned(), "gate" => name).set(value);
    }
    *published = gates.iter().map(|gate| gate.name.clone()).collect();
}

fn shown(published: &[String], gates: &[Gate]) -> Vec<(String, f64)> {
    let is_gone = |name: &&String| gates.iter().all(|gate| gate.name != **name);
    let gone = published.iter().filter(is_gone).map(|name| (name.clone(), f64::NAN));
    let of = |gate: &Gate| (gate.name.clone(), f64::from(u8::from(gate.verdict == Verdict::Passed)));
    gone.chain(gates.iter().map(of)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The baseline is judged before the first step alone: what it said then must not stand for ever.
    #[test]
    fn a_gate_that_is_no_longer_judged_is_not_shown_as_it_was() {
        let gate = |name: &str, verdict| Gate { name: name.into(), verdict, detail: String::new() };
        let published = ["ready".to_owned(), "baseline".to_owned()];
        let now = [gate("ready", Verdict::Passed), gate("errors", Verdict::TooFew)];
        let told = shown(&published, &now);
        let of = |name: &str| told.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
        assert_eq!((told.len(), of("ready"), of("errors")), (3, Some(1.0), Some(0.0)));
        assert!(of("baseline").is_some_and(f64::is_nan));
        assert!(shown(&published, &[]).iter().all(|(_, value)| value.is_nan()), "there is no plan");
    }
}
