//! Moving reads and writes by percentages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bson::doc;

use super::catalog::describe;
use super::context::Context;
use super::control::{ControlError, Patience, Ramp, Refusal};
use super::engine::{Engine, no_new, unavailable};
use super::following::half_ended;
use super::gates::unblocked;
use super::in_force::{pins_as_stored, slots};
use super::moving::{Moved, Transfer};
use super::noted::{TRANSACTIONS_SEEN, UNKEYED_SEEN};
use super::plan_moves::ROLLED_BACK;
use super::preflight::single_step_reasons_of;
use super::running::Running;
use crate::model::percent::Percent;
use crate::model::side::Side;
use crate::model::slots::SlotSet;
use crate::policy::invariants::{Invariant, every_gate, only_adds};
use crate::policy::pins::Pins;
use crate::state::pins::stored_pins;
use crate::state::record::AuthorityRecord;
use crate::state::table::MigrationRoute;

const DESCRIBE_LIMIT: Duration = Duration::from_secs(10);

pub(super) fn conflict(code: &'static str, detail: impl Into<String>) -> ControlError {
    ControlError::new(Refusal::Conflict, code, detail)
}

/// A move of writes, before it is tried.
pub(super) struct Wanted {
    /// What is to be on new.
    pub(super) slots: SlotSet,
    pub(super) patience: Patience,
    /// Whether it may be that authority is divided afterwards.
    pub(super) parts: Parts,
}

/// What is known of whether authority may be divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parts {
    /// Nothing: it is to be asked.
    Ask,
    /// It was asked, and may be.
    Allowed,
    /// It is divided already, or will not be.
    Settled,
}

impl Engine {
    pub(super) async fn move_reads(&self, running: &Running, percent: Percent) -> Result<Ramp, ControlError> {
        let began = self.environment.clock.now();
        let (context, route) = routed(running).await?;
        let wanted = context.shares().by_percent(percent, &route.reads_on_new);
        self.reads_to(running, &context, wanted, None).await?;
        Ok(self.moved(&context, percent, Moved::default(), began))
    }

    /// Moves reads to `wanted`, and with that, at once, sets `pins`.
    pub(super) async fn reads_to(
        &self,
        running: &Running,
        context: &Context,
        wanted: SlotSet,
        pins: Option<&Pins>,
    ) -> Result<(), ControlError> {
        let route = context.route().ok_or_else(no_new)?;
        if !route.owned_by_new.minus(&wanted).is_empty() {
            return Err(conflict(
                "reads-below-writes",
                "reads may not be less on new than writes; lower writes first",
            ));
        }
        let stored = pins.map(stored_pins);
        if wanted == route.reads_on_new && stored.is_none() {
            return Ok(());
        }
        if !wanted.minus(&route.reads_on_new).is_empty() {
            self.let_obstacles_pass(running).await?;
            unblocked(self.blocked_for_reads(running))?;
            let current = running.aborting.unless_asked(context.make_mirrors_current()).await;
            if let Err(error) = current.and_then(|current| current) {
                context.publish(|_| ());
                return Err(error);
            }
        }
        let mut fields = doc! { "reads_on_new": slots(&wanted) };
        if let Some(stored) = &stored {
            fields.insert("pins", pins_as_stored(stored)?);
        }
        let is_there = |record: &AuthorityRecord| {
            record.reads_on_new == wanted && stored.as_ref().is_none_or(|pins| *pins == record.pins)
        };
        context.put_in_force(fields, wanted.is_empty(), is_there).await
    }

    pub(super) async fn move_writes(
        &self,
        running: &Running,
        percent: Percent,
        patience: Patience,
    ) -> Result<Ramp, ControlError> {
        let began = self.environment.clock.now();
        let (context, route) = routed(running).await?;
        let slots = context.shares().by_percent(percent, &route.owned_by_new);
        let moved = self.writes_to(running, &context, Wanted { slots, patience, parts: Parts::Ask }).await?;
        Ok(self.moved(&context, percent, moved, began))
    }

    /// Moves writes to what is wanted, which only adds to what new has, or only takes from it.
    pub(super) async fn writes_to(
        &self,
        running: &Running,
        context: &Context,
        wanted: Wanted,
    ) -> Result<Moved, ControlError> {
        let route = context.route().ok_or_else(no_new)?;
        let Wanted { slots: wanted, patience, parts } = wanted;
        let (up, down) = (wanted.minus(&route.owned_by_new), route.owned_by_new.minus(&wanted));
        let is_all = wanted == SlotSet::ALL;
        if up.is_empty() && down.is_empty() {
            if is_all && running.stored.lock().all_on_new_at.is_none() {
                // The process that moved them died before it could note that.
                self.note_all_on_new(running, context, is_all).await;
            }
            return Ok(Moved::default());
        }
        let nested = only_adds(&route.owned_by_new, &wanted);
        context.converger.violations.watch(Invariant::OnlyAdds, nested.clone());
        nested.map_err(|why| conflict("slots-not-nested", format!("{why}; only 0 and 100 can be set")))?;
        if !up.is_empty() && !wanted.minus(&route.reads_on_new).is_empty() {
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
        let in_parts = parts != Parts::Settled && !is_all && !wanted.is_empty();
        if in_parts && parts == Parts::Ask {
            running.aborting.unless_asked(self.must_allow_parts(running, context)).await??;
        }
        let still_allowed: Arc<dyn Fn() -> Result<(), String> + Send + Sync> = Arc::new(move || {
            let holds = !in_parts || unique() == before;
            holds.then_some(()).ok_or_else(|| "a unique index was made meanwhile".to_owned())
        });
        self.let_obstacles_pass(running).await?;
        self.must_pass_gates(running, context, !up.is_empty())?;
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
        self.note_all_on_new(running, context, is_all).await;
        Ok(moved)
    }

    /// The gates of a move of writes, `up` to new or back to old.
    pub(super) fn must_pass_gates(
        &self,
        running: &Running,
        context: &Context,
        up: bool,
    ) -> Result<(), ControlError> {
        if !up {
            return unblocked(self.blocked(running));
        }
        let gates = self.gates(running);
        unblocked(gates.reasons)?;
        let holds = every_gate(&gates.measured.unwrap_or_default(), gates.unverified.as_deref());
        context.converger.violations.watch(Invariant::EveryGate, holds);
        Ok(())
    }

    /// The answer to a move that was asked for at `began`.
    pub(super) fn moved(&self, context: &Context, percent: Percent, moved: Moved, began: Duration) -> Ramp {
        let Moved { attempts, ended_transactions, pause } = moved;
        Ramp {
            percent,
            epoch: context.epoch(),
            pause_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            attempts,
            ended_transactions,
            elapsed_ms: self.millis_since(began),
            removed_pins: 0,
            unreturned: None,
            all_named: false,
        }
    }

    /// Refuses a partial percentage where it could not be right; there is no force.
    pub(super) async fn must_allow_parts(
        &self,
        running: &Running,
        context: &Context,
    ) -> Result<(), ControlError> {
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
            if active.inline_off.is_for_any() {
                // A read that meets both would wait for the streams to be level, and with writes they hardly ever are.
                reasons.push(
                    "the inline mirror is switched off (see switches in status); switch it on first".into(),
                );
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

    async fn note_all_on_new(&self, running: &Running, context: &Context, is_all: bool) {
        running.stored.lock().all_on_new_at = is_all.then(|| context.clock.wall_millis());
        if let Err(error) = running.persist(&context.records).await {
            tracing::warn!(%error, "the begin of the hold period could not be stored");
        }
    }

    /// Everything returns to old, what is pinned to new too: those pins are removed.
    pub(super) async fn roll_back(&self, running: &Running) -> Result<Ramp, ControlError> {
        let began = self.environment.clock.now();
        let is_halted = self.halt_plan(running, ROLLED_BACK).await;
        let (context, _) = routed(running).await?;
        let pins = context.pins();
        let kept = pins.only_to(Side::Old);
        let removed = pins.all().len() - kept.all().len();
        let all = Wanted { slots: SlotSet::EMPTY, patience: Patience::default(), parts: Parts::Settled };
        let moved = self.writes_to(running, &context, all).await?;
        let changed = (removed > 0).then_some(&kept);
        self.reads_to(running, &context, SlotSet::EMPTY, changed).await?;
        if !is_halted {
            self.halt_plan(running, ROLLED_BACK).await;
        }
        let removed_pins = u32::try_from(removed).unwrap_or(u32::MAX);
        Ok(Ramp { removed_pins, ..self.moved(&context, Percent::ZERO, moved, began) })
    }
}

/// Its parts and its routing, while reads and writes may move.
///
/// # Errors
/// [`ControlError`]: they may not.
pub(super) async fn routed(running: &Running) -> Result<(Arc<Context>, MigrationRoute), ControlError> {
    let phase = running.stored.lock().phase;
    let context =
        running.parts().ok_or_else(|| conflict("wrong-phase", format!("it is {phase}; start it first")))?;
    let mut route = context.route().ok_or_else(no_new)?;
    if !phase.is_over() && route.phase.is_over() {
        return Err(half_ended(route.phase));
    }
    if phase.is_over() || !route.mirrors() {
        return Err(conflict(
            "wrong-phase",
            format!("it is {phase}; reads and writes can move while it is synced"),
        ));
    }
    if route.unread == Some(Side::Old) {
        // It is the first to hear of pins and of moves of reads: without it neither is known.
        context.level_epochs().await?;
        route = context.route().ok_or_else(no_new)?;
    }
    Ok((context, route))
}
