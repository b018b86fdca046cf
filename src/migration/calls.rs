//! The operator's calls: one at a time for each migration, every change audited.

use std::sync::Arc;

use async_trait::async_trait;

use super::auditing::describe;
use super::bypass::shown;
use super::control::{
    Acknowledge, AcknowledgeUnreturned, Acknowledged, By, BypassReport, Complete, Conflict, Control,
    ControlError, DecisionList, DiffReport, EventList, Keys, MigrationView, Mismatch, NewMigration, Page,
    Part, Patience, PinList, Pinned, Plan, PreflightReport, Progress, Ramp, RampView, Refusal, RehearsalView,
    SetPins, SetRehearsal, SetShadow, SetSwitches, ShadowView, ShapeList, Steer, Switches, Throttle,
    UnreturnedList, UnreturnedPage, UnreturnedView, Verification, VerificationReport, Verify, WithoutNew,
};
use super::ending::{completion, may_be_aborted};
use super::engine::{Engine, unavailable};
use super::persist::must_be_read;
use super::pins::named;
use super::running::Running;
use super::stored;
use crate::model::percent::Percent;
use crate::model::side::Side;

impl Engine {
    /// Runs one call that changes a migration, once what is stored of it has been read.
    async fn change<T>(
        &self,
        by: &By,
        name: &str,
        what: String,
        call: impl AsyncFnOnce(&Arc<Running>) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        let call = async |running: &Arc<Running>| {
            must_be_read(running)?;
            call(running).await
        };
        self.change_routing(by, name, |_| what, call).await
    }

    /// Runs one call that changes where reads and writes go; that may be known from the clusters' records alone.
    pub(super) async fn change_routing<T>(
        &self,
        by: &By,
        name: &str,
        what: impl FnOnce(&Running) -> String,
        call: impl AsyncFnOnce(&Arc<Running>) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        let call = async |running: &Arc<Running>| {
            running.aborting.check()?;
            call(running).await
        };
        self.one_at_a_time(by, name, what, call).await
    }

    async fn one_at_a_time<T>(
        &self,
        by: &By,
        name: &str,
        what: impl FnOnce(&Running) -> String,
        call: impl AsyncFnOnce(&Arc<Running>) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        self.must_be_ready()?;
        let running = self.running(name).await?;
        let _one_at_a_time = running.calls.lock().await;
        let began = self.environment.clock.now();
        let (from, what) = (describe(&self.view(&running)), what(&running));
        let result = match by.may_change(self.view(&running).epoch) {
            Ok(()) => call(&running).await,
            Err(outdated) => Err(outdated),
        };
        self.keep_ddl(&running);
        self.note(by, &running, (what, from), &result, began).await;
        result
    }
}

#[async_trait]
impl Control for Engine {
    async fn create(&self, by: &By, new: NewMigration) -> Result<MigrationView, ControlError> {
        let began = self.environment.clock.now();
        let running = self.create_migration(new).await?;
        self.note(by, &running, ("create".into(), String::new()), &Ok(()), began).await;
        Ok(self.view(&running))
    }

    async fn list(&self) -> Result<Vec<MigrationView>, ControlError> {
        let mut views: Vec<_> =
            self.migrations.lock().await.values().map(|running| self.view(running)).collect();
        if views.is_empty() {
            // An unknown must not look like none. Those that a cluster's records name are shown all the same.
            self.must_be_ready()?;
            self.stored_unread().map_or(Ok(()), Err)?;
        }
        views.sort_by_key(|view| view.created_at);
        Ok(views)
    }

    async fn get(&self, name: &str) -> Result<MigrationView, ControlError> {
        Ok(self.view(&*self.running(name).await?))
    }

    async fn preflight(&self, name: &str) -> Result<PreflightReport, ControlError> {
        let running = self.running(name).await?;
        self.look_before(&running).await
    }

    async fn start(&self, by: &By, name: &str) -> Result<MigrationView, ControlError> {
        self.change(by, name, "start".into(), async |running| {
            self.start_undisturbed(running).await?;
            Ok(self.view(running))
        })
        .await
    }

    async fn pause(&self, by: &By, name: &str) -> Result<MigrationView, ControlError> {
        self.change(by, name, "pause".into(), async |running| {
            self.set_pause(running, true).await?;
            Ok(self.view(running))
        })
        .await
    }

    async fn resume(&self, by: &By, name: &str) -> Result<MigrationView, ControlError> {
        self.change(by, name, "resume".into(), async |running| {
            self.set_pause(running, false).await?;
            Ok(self.view(running))
        })
        .await
    }

    async fn verify(&self, by: &By, name: &str, how: Verify) -> Result<Verification, ControlError> {
        self.change(by, name, how.to_string(), async |running| {
            running.start_comparison(&self.environment, how).await
        })
        .await
    }

    async fn verification(&self, name: &str) -> Result<VerificationReport, ControlError> {
        let running = self.running(name).await?;
        running.report(&self.environment).await
    }

    async fn set_reads(&self, by: &By, name: &str, percent: Percent) -> Result<Ramp, ControlError> {
        let call = async |running: &Arc<Running>| self.reads_by_hand(running, by, percent).await;
        self.change_routing(by, name, |_| format!("reads {percent}"), call).await
    }

    async fn set_writes(
        &self,
        by: &By,
        name: &str,
        percent: Percent,
        patience: Patience,
    ) -> Result<Ramp, ControlError> {
        let ends = patience.end_transactions_after;
        let ends = ends.map_or(String::new(), |after| format!(" (may end transactions after {after} tries)"));
        let call = async |it: &Arc<Running>| self.writes_by_hand(it, by, percent, patience).await;
        self.change_routing(by, name, |_| format!("writes {percent}{ends}"), call).await
    }

    async fn pin(&self, by: &By, name: &str, asked: SetPins) -> Result<Pinned, ControlError> {
        let what = format!("pin {} to {}", named(&asked.named()), Side::from(asked.to));
        let call = async |running: &Arc<Running>| self.pin_by_hand(running, &asked).await;
        self.change_routing(by, name, |_| what, call).await
    }

    async fn unpin(&self, by: &By, name: &str, asked: Keys) -> Result<Pinned, ControlError> {
        let what = format!("unpin {}", named(&asked));
        let call = async |running: &Arc<Running>| self.unpin(running, &asked).await;
        self.change_routing(by, name, |_| what, call).await
    }

    async fn pins(&self, name: &str) -> Result<PinList, ControlError> {
        Ok(self.running(name).await?.pins())
    }

    async fn switch(&self, by: &By, name: &str, asked: SetSwitches) -> Result<Switches, ControlError> {
        let call = async |running: &Arc<Running>| self.switch(running, &asked).await;
        self.change_routing(by, name, |_| asked.to_string(), call).await
    }

    async fn rollback(&self, by: &By, name: &str) -> Result<Ramp, ControlError> {
        let what = |running: &Running| match running.pin_counts().to_new {
            0 => "rollback".to_owned(),
            pins => format!("rollback, removing {pins} pins to new"),
        };
        let call = async |running: &Arc<Running>| self.roll_back(running).await;
        self.change_routing(by, name, what, call).await
    }

    async fn rollback_without_new(
        &self,
        by: &By,
        name: &str,
        asked: WithoutNew,
        only: Option<Keys>,
    ) -> Result<Ramp, ControlError> {
        let (what, only) = (asked.described(only.as_ref()), only.as_ref());
        let call = async |it: &Arc<Running>| self.roll_back_without_new(it, &asked.reason, only).await;
        self.change(by, name, what, call).await
    }

    async fn unreturned(&self, name: &str, page: UnreturnedPage) -> Result<UnreturnedList, ControlError> {
        self.unreturned_of(&*self.running(name).await?, &page).await
    }

    async fn acknowledge_unreturned(
        &self,
        by: &By,
        name: &str,
        asked: AcknowledgeUnreturned,
    ) -> Result<UnreturnedView, ControlError> {
        let what = format!("acknowledge-unreturned: {}", asked.reason.trim());
        self.change(by, name, what, async |running| self.unreturned_is_known(running, &asked).await).await
    }

    async fn complete(&self, by: &By, name: &str, how: Complete) -> Result<MigrationView, ControlError> {
        let what = |running: &Running| {
            let lacking = self.lacking_to_complete(running).into_iter().map(|(_, why)| why);
            completion(&how, &lacking.collect::<Vec<_>>())
        };
        self.change_routing(by, name, what, async |running| {
            must_be_read(running)?;
            self.complete_migration(running, &how).await?;
            Ok(self.view(running))
        })
        .await
    }

    async fn abort(&self, by: &By, name: &str) -> Result<MigrationView, ControlError> {
        // Whatever takes long gives way; what an abort could not end anyway goes on.
        let running = self.running(name).await?;
        // Nothing gives way to one that is refused because it comes too late.
        let is_meant = by.may_change(self.view(&running).epoch).is_ok();
        let _asked = (is_meant && may_be_aborted(&running)).then(|| running.aborting.ask());
        let call = async |running: &Arc<Running>| {
            must_be_read(running)?;
            self.abort_migration(running).await?;
            Ok(self.view(running))
        };
        self.one_at_a_time(by, name, |_| "abort".into(), call).await
    }

    async fn drop_old(&self, by: &By, name: &str) -> Result<MigrationView, ControlError> {
        self.change(by, name, "drop-old".into(), async |running| {
            self.drop_old_copies(running).await?;
            Ok(self.view(running))
        })
        .await
    }

    async fn set_throttle(&self, by: &By, name: &str, throttle: Throttle) -> Result<Throttle, ControlError> {
        self.change(by, name, format!("throttle {throttle}"), async |running| {
            let bad = |rate: Option<f64>| rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0);
            if bad(throttle.documents_per_second) || bad(throttle.megabytes_per_second) {
                return Err(ControlError::new(
                    Refusal::Invalid,
                    "invalid-throttle",
                    "rates must be above 0; null is unlimited",
                ));
            }
            let state = self.environment.state()?;
            let stored = running.change_stored(state, |stored| stored.throttle = throttle).await;
            stored.map_err(|error| unavailable(error.to_string()))?;
            running.limiter.set(throttle);
            Ok(throttle)
        })
        .await
    }

    async fn progress(&self, name: &str) -> Result<Progress, ControlError> {
        Ok(self.progress_of(&*self.running(name).await?))
    }

    async fn conflicts(&self, name: &str) -> Result<Vec<Conflict>, ControlError> {
        let Some(context) = self.running(name).await?.parts() else { return Ok(Vec::new()) };
        let mut conflicts: Vec<_> = context
            .parking
            .list()
            .into_iter()
            .map(|parked| Conflict {
                namespace: parked.namespace.as_str().to_owned(),
                key: shown(&parked.key),
                error: parked.why,
                since: parked.since,
                tries: parked.tries,
            })
            .collect();
        conflicts.sort_by_key(|conflict| conflict.since);
        Ok(conflicts)
    }

    async fn mismatches(&self, name: &str) -> Result<Vec<Mismatch>, ControlError> {
        self.running(name).await?;
        stored::mismatches(self.environment.state()?, name)
            .await
            .map_err(|error| unavailable(error.to_string()))
    }

    async fn start_plan(&self, by: &By, name: &str, plan: Plan) -> Result<RampView, ControlError> {
        let what = |running: &Running| self.described(running, &plan);
        let call = async |running: &Arc<Running>| self.start_plan(running, &by.who.0, plan.clone()).await;
        self.change_routing(by, name, what, call).await
    }

    async fn steer_plan(&self, by: &By, name: &str, how: Steer) -> Result<RampView, ControlError> {
        let what = if how == Steer::Pause { "ramp pause" } else { "ramp resume" };
        self.change(by, name, what.into(), async |running| self.steer_plan(running, how).await).await
    }

    async fn stop_plan(&self, by: &By, name: &str) -> Result<RampView, ControlError> {
        self.change(by, name, "ramp stop".into(), async |running| self.stop_plan(running).await).await
    }

    async fn plan(&self, name: &str) -> Result<RampView, ControlError> {
        self.plan_of(&*self.running(name).await?).await
    }

    async fn decisions(&self, name: &str, page: Page) -> Result<DecisionList, ControlError> {
        self.decisions_of(&*self.running(name).await?, page).await
    }

    async fn shapes(&self, name: &str, part: Part) -> Result<ShapeList, ControlError> {
        self.running(name).await?.shapes(part, self.environment.clock.now())
    }

    async fn bypass_writes(&self, name: &str, page: Page) -> Result<BypassReport, ControlError> {
        let running = self.running(name).await?;
        self.bypass_report(&running, page).await
    }

    async fn acknowledge_bypass_writes(
        &self,
        by: &By,
        name: &str,
        asked: Acknowledge,
    ) -> Result<Acknowledged, ControlError> {
        self.must_be_ready()?;
        let running = self.running(name).await?;
        let _one_at_a_time = running.calls.lock().await;
        let began = self.environment.clock.now();
        let from = describe(&self.view(&running));
        let made = match by.may_change(self.view(&running).epoch) {
            Ok(()) => self.acknowledge(&by.who, &running, &asked).await,
            Err(outdated) => Err(outdated),
        };
        let what = match &made {
            Ok(made) => format!(
                "acknowledge-bypass: {} writes on old up to number {}, the last {}: {}",
                made.writes, made.up_to, made.latest, made.reason
            ),
            Err(_) => format!("acknowledge-bypass {}", asked.reason),
        };
        self.note(by, &running, (what, from), &made, began).await;
        made
    }

    async fn set_shadow(&self, by: &By, name: &str, asked: SetShadow) -> Result<ShadowView, ControlError> {
        self.change(by, name, format!("shadow {asked}"), async |running| {
            self.switch_shadow(running, asked).await
        })
        .await
    }

    async fn set_rehearsal(
        &self,
        by: &By,
        name: &str,
        asked: SetRehearsal,
    ) -> Result<RehearsalView, ControlError> {
        self.change(by, name, asked.to_string(), async |running| self.rehearse(running, &asked)).await
    }

    async fn rehearsal(&self, name: &str) -> Result<RehearsalView, ControlError> {
        Ok(self.running(name).await?.rehearsal_view(self.environment.clock.now()))
    }

    async fn diffs(&self, name: &str, page: Part) -> Result<DiffReport, ControlError> {
        self.diff_report(&*self.running(name).await?, page).await
    }

    async fn audit(&self, name: &str, page: Page) -> Result<EventList, ControlError> {
        self.running(name).await?;
        let found = stored::audited(self.environment.state()?, name, page).await;
        found.map_err(|error| unavailable(error.to_string()))
    }

    async fn not_ready(&self) -> Vec<String> {
        let reasons = self.not_ready_now();
        if reasons.is_empty() { self.clients_wait().into_iter().collect() } else { reasons }
    }
}

#[cfg(test)]
#[path = "calls_tests.rs"]
mod tests;
