//! Moving reads and writes by percentages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bson::{Bson, Document, doc};

use super::catalog::describe;
use super::context::Context;
use super::control::{ControlError, Patience, Ramp, Refusal};
use super::engine::{Engine, no_new, unavailable};
use super::following::half_ended;
use super::gates::unblocked;
use super::moving::{Moved, Transfer};
use super::noted::{TRANSACTIONS_SEEN, UNKEYED_SEEN};
use super::preflight::single_step_reasons_of;
use super::running::Running;
use crate::clock::timeout;
use crate::model::percent::Percent;
use crate::model::side::Side;
use crate::model::slots::SlotSet;
use crate::policy::invariants::{Invariant, every_gate, only_adds};
use crate::state::table::MigrationRoute;

const DESCRIBE_LIMIT: Duration = Duration::from_secs(10);
/// How long a rollback waits until it is stored that a plan is halted.
const HALTING: Duration = Duration::from_secs(2);

pub(super) fn conflict(code: &'static str, detail: impl Into<String>) -> ControlError {
    ControlError::new(Refusal::Conflict, code, detail)
}

impl Context {
    /// Raises the epoch on both records and sets fields with it.
    ///
    /// # Errors
    /// [`ControlError`]; when only the first record is changed, the change is in force and the second follows.
    pub(super) async fn raise_both(&self, fields: Document) -> Result<(), ControlError> {
        match self.raise_in_force(fields).await? {
            None => Ok(()),
            Some(why) => Err(unavailable(format!("{why}; old has it already; try again"))),
        }
    }

    /// The same. From the moment that old's record is changed the change is in force: why new's has to follow
    /// later is no failure.
    ///
    /// # Errors
    /// [`ControlError`]; it is in force if old's record was changed without an answer.
    pub(super) async fn raise_in_force(&self, fields: Document) -> Result<Option<String>, ControlError> {
        self.level_epochs().await?;
        let from = self.epoch();
        let raised = self.authorities.old.raise(from, fields.clone()).await;
        if !raised.map_err(|error| unavailable(format!("old: {error}")))? {
            return Err(unavailable("another process changed the routing meanwhile; try again".into()));
        }
        let caught_up = self.authorities.new.catch_up(from + 1, fields).await;
        Ok(caught_up.err().map(|error| format!("new: {error}")))
    }

    /// Raises the epoch on old's record alone, which is the newer one then.
    async fn raise_old(&self, fields: Document) -> Result<(), ControlError> {
        let old = |error| unavailable(format!("old: {error}"));
        self.beat(Side::Old).await.map_err(|error| old(error.to_string()))?;
        let from = self.authorities.old.known().map_or(0, |record| record.epoch).max(self.epoch());
        let caught_up = self.authorities.old.catch_up(from + 1, fields).await;
        caught_up.map(|_| ()).map_err(|error| old(error.to_string()))
    }

    /// Brings both records to one epoch, with what the newer one says.
    pub(super) async fn level_epochs(&self) -> Result<(), ControlError> {
        for side in Side::BOTH {
            let alive = self.beat(side).await;
            if !alive.map_err(|error| unavailable(format!("{side}: {error}")))? {
                return Err(unavailable(format!(
                    "this process may not write to {side} any more; restart it"
                )));
            }
        }
        let (Some(old), Some(new)) = (self.authorities.old.known(), self.authorities.new.known()) else {
            return Err(unavailable("the clusters' records are not known".into()));
        };
        if old.epoch == new.epoch {
            return Ok(());
        }
        let (newer, behind) = if old.epoch > new.epoch { (&old, Side::New) } else { (&new, Side::Old) };
        let fields = doc! {
            "phase": newer.phase.as_str(),
            "reads_on_new": slots(&newer.reads_on_new),
            "namespaces": newer.namespaces.clone(),
            "shard_keys": bson::serialize_to_bson(&newer.shard_keys)
                .map_err(|error| unavailable(error.to_string()))?,
        };
        let leveled = self.authorities.get(behind).catch_up(newer.epoch, fields).await;
        leveled.map(|_| ()).map_err(|error| unavailable(format!("{behind}: {error}")))
    }
}

/// A slot set as records hold it.
#[must_use]
pub(super) fn slots(slots: &SlotSet) -> Bson {
    Bson::Binary(bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: slots.to_bytes() })
}

impl Engine {
    pub(super) async fn move_reads(&self, running: &Running, percent: Percent) -> Result<Ramp, ControlError> {
        let began = self.environment.clock.now();
        let (context, route) = routed(running)?;
        let wanted = SlotSet::percent(percent);
        if percent < route.owned_by_new.as_percent() {
            return Err(conflict(
                "reads-below-writes",
                "reads may not be less on new than writes; lower writes first",
            ));
        }
        if wanted != route.reads_on_new {
            if wanted.len() > route.reads_on_new.len() {
                self.let_obstacles_pass(running).await?;
                unblocked(self.blocked_for_reads(running))?;
                let current = running.aborting.unless_asked(context.make_mirrors_current()).await;
                if let Err(error) = current.and_then(|current| current) {
                    context.publish(|_| ());
                    return Err(error);
                }
            }
            set_reads(&context, &route, wanted).await?;
        }
        Ok(Ramp {
            percent,
            epoch: context.epoch(),
            pause_ms: 0,
            attempts: 1,
            ended_transactions: 0,
            elapsed_ms: self.millis_since(began),
        })
    }

    pub(super) async fn move_writes(
        &self,
        running: &Running,
        percent: Percent,
        patience: Patience,
    ) -> Result<Ramp, ControlError> {
        let began = self.environment.clock.now();
        let (context, route) = routed(running)?;
        let wanted = SlotSet::percent(percent);
        let (up, down) = (wanted.minus(&route.owned_by_new), route.owned_by_new.minus(&wanted));
        if up.is_empty() && down.is_empty() {
            if percent == 100 && running.stored.lock().all_on_new_at.is_none() {
                // The process that moved them died before it could note that.
                self.note_all_on_new(running, &context, percent).await;
            }
            return Ok(Ramp {
                percent,
                epoch: route.epoch,
                pause_ms: 0,
                attempts: 0,
                ended_transactions: 0,
                elapsed_ms: self.millis_since(began),
            });
        }
        let nested = only_adds(&route.owned_by_new, &wanted);
        context.converger.violations.watch(Invariant::OnlyAdds, nested.clone());
        nested.map_err(|why| conflict("slots-not-nested", format!("{why}; only 0 and 100 can be set")))?;
        if !up.is_empty() && percent > route.reads_on_new.as_percent() {
            return Err(conflict(
                "writes-above-reads",
                "writes may not be more on new than reads; raise reads first",
            ));
        }
        let active = running.active.lock().clone();
        let unique = move || {
            active.as_ref().map_or(0, |active| active.counters.unique_indexes.load(Ordering::Relaxed))
        };
        let before = unique();
        let in_parts = percent.is_part();
        if in_parts {
            running.aborting.unless_asked(self.must_allow_parts(running, &context)).await??;
        }
        let still_allowed: Arc<dyn Fn() -> Result<(), String> + Send + Sync> = Arc::new(move || {
            let holds = !in_parts || unique() == before;
            holds.then_some(()).ok_or_else(|| "a unique index was made meanwhile".to_owned())
        });
        self.let_obstacles_pass(running).await?;
        if up.is_empty() {
            unblocked(self.blocked(running))?;
        } else {
            let gates = self.gates(running);
            unblocked(gates.reasons)?;
            let holds = every_gate(&gates.measured.unwrap_or_default(), gates.unverified.as_deref());
            context.converger.violations.watch(Invariant::EveryGate, holds);
        }
        context.level_epochs().await?;
        let _until_moved = context.keep_mirrors_current();
        if !route.ack_both {
            // Once authority is mixed, reads may meet mirrors, also of slots that do not move.
            running.aborting.unless_asked(context.make_mirrors_current()).await??;
        }
        let max_pause = self.environment.settings.max_pause;
        let max_pause = patience.max_pause_ms.map_or(max_pause, Duration::from_millis);
        let open = self.environment.registry.transactions.get().cloned();
        let ending = patience.end_transactions_after.zip(open);
        let (from, slots) = if up.is_empty() { (Side::New, down) } else { (Side::Old, up) };
        let aborting = running.aborting.clone();
        let transfer = Transfer { from, slots, max_pause, ending, still_allowed, aborting };
        let moved = context.transfer(transfer).await.map_err(|reasons| {
            let detail =
                format!("given up, nothing has changed: {}", reasons.last().map_or("", String::as_str));
            conflict("given-up", detail).because(reasons)
        })?;
        self.note_all_on_new(running, &context, percent).await;
        let pause_ms = u64::try_from(moved.pause.as_millis()).unwrap_or(u64::MAX);
        let Moved { attempts, ended_transactions, .. } = moved;
        Ok(Ramp {
            percent,
            epoch: context.epoch(),
            pause_ms,
            attempts,
            ended_transactions,
            elapsed_ms: self.millis_since(began),
        })
    }

    /// Refuses a partial percentage where it could not be right; there is no force.
    async fn must_allow_parts(&self, running: &Running, context: &Context) -> Result<(), ControlError> {
        let mut reasons = running.stored.lock().single_step.clone();
        let route = context.route().ok_or_else(no_new)?;
        for namespace in &context.scope.known() {
            let route_key = route.by(namespace).field();
            // An index may have been made since preflight.
            let found = describe(&*context.clusters.old, namespace, DESCRIBE_LIMIT).await;
            let found = found.map_err(|error| unavailable(format!("{namespace} on old: {error}")))?;
            reasons.extend(
                found.iter().flat_map(|found| single_step_reasons_of(namespace, &found.indexes, route_key)),
            );
        }
        if let Some(active) = &*running.active.lock() {
            if active.counters.unkeyed_retryable.load(Ordering::Relaxed) > 0 {
                reasons.push(UNKEYED_SEEN.into());
            }
            if active.counters.transactions.load(Ordering::Relaxed) > 0 {
                reasons.push(TRANSACTIONS_SEEN.into());
            }
        }
        reasons.sort();
        reasons.dedup();
        if reasons.is_empty() {
            return context.must_have_no_arrays(&route).await;
        }
        Err(conflict("single-step", "writes of this migration move in one step: use 0 or 100")
            .because(reasons))
    }

    async fn note_all_on_new(&self, running: &Running, context: &Context, percent: Percent) {
        running.stored.lock().all_on_new_at = (percent == 100).then(|| context.clock.wall_millis());
        if let Err(error) = running.persist(&context.records).await {
            tracing::warn!(%error, "the begin of the hold period could not be stored");
        }
    }

    pub(super) async fn roll_back(&self, running: &Running) -> Result<Ramp, ControlError> {
        let began = self.environment.clock.now();
        let is_halted = self.halt_plan(running).await;
        let writes = self.move_writes(running, Percent::ZERO, Patience::default()).await?;
        let reads = self.move_reads(running, Percent::ZERO).await?;
        if !is_halted {
            self.halt_plan(running).await;
        }
        let elapsed_ms = self.millis_since(began);
        Ok(Ramp { pause_ms: writes.pause_ms, attempts: writes.attempts, elapsed_ms, ..reads })
    }

    /// A plan would go up again by itself, and so would a successor's. Where that cannot be stored, this does not hold
    /// up the way back: `false`.
    async fn halt_plan(&self, running: &Running) -> bool {
        match &mut running.stored.lock().plan {
            Some(plan) => plan.state.paused = true,
            None => return true,
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
}

/// Brings reads into force by old's record; new's follows.
async fn set_reads(context: &Context, route: &MigrationRoute, wanted: SlotSet) -> Result<(), ControlError> {
    let fields = doc! { "reads_on_new": slots(&wanted) };
    let raised = context.raise_in_force(fields.clone()).await;
    // The way back works without new, as long as new has no authority.
    let raised = match raised {
        Err(_) if wanted.is_empty() && route.owned_by_new.is_empty() => {
            context.raise_old(fields).await.map(|()| None)
        }
        raised => raised,
    };
    let in_force = match raised {
        Ok(None) => Ok(()),
        Ok(Some(why)) => {
            tracing::warn!(migration = %context.name, why, "reads have moved; the other record follows");
            Ok(())
        }
        Err(error) => is_in_force(context, wanted, error).await,
    };
    context.publish(|_| ());
    in_force
}

/// After a failure: old's record may have been changed although no answer came.
async fn is_in_force(context: &Context, wanted: SlotSet, error: ControlError) -> Result<(), ControlError> {
    match context.authorities.old.refresh().await {
        Ok(Some(record)) if record.reads_on_new == wanted => Ok(()),
        Ok(_) => Err(error),
        Err(_) => Err(unavailable(format!(
            "{}; whether the move is in force is known when old answers: see status, or call it again",
            error.detail
        ))),
    }
}

fn routed(running: &Running) -> Result<(std::sync::Arc<Context>, MigrationRoute), ControlError> {
    let phase = running.stored.lock().phase;
    let context =
        running.parts().ok_or_else(|| conflict("wrong-phase", format!("it is {phase}; start it first")))?;
    let route = context.route().ok_or_else(no_new)?;
    if !phase.is_over() && route.phase.is_over() {
        return Err(half_ended(route.phase));
    }
    if phase.is_over() || !route.mirrors() {
        return Err(conflict(
            "wrong-phase",
            format!("it is {phase}; reads and writes can move while it is synced"),
        ));
    }
    Ok((context, route))
}
