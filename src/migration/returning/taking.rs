//! Old takes back what new has, while new is away.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bson::{Document, Timestamp};

use super::list;
use super::view::{AcknowledgeUnreturned, UnreturnedList, UnreturnedPage, UnreturnedState, UnreturnedView};
use crate::clock::timeout;
use crate::migration::context::Context;
use crate::migration::control::{ControlError, Ramp, Refusal};
use crate::migration::engine::{Engine, no_new, unavailable};
use crate::migration::following::half_ended;
use crate::migration::in_force::pins_as_stored;
use crate::migration::moving::Moved;
use crate::migration::pins::{Keys, read_held, refused};
use crate::migration::plan_moves::ROLLED_BACK;
use crate::migration::ramping::conflict;
use crate::migration::running::Running;
use crate::migration::stream::ChangeStream;
use crate::model::side::Side;
use crate::model::slots::SlotSet;
use crate::policy::pins::{Pins, slots_of};
use crate::state::checkpoint;
use crate::state::inflight::Work;
use crate::state::pins::stored_pins;
use crate::state::record::{AuthorityRecord, FenceState};
use crate::state::returning::Returning;

/// How long new has to answer; one that does needs no such rollback.
const PROBE: Duration = Duration::from_secs(3);
/// How long writes and converging that began before may take to end.
const DRAIN: Duration = Duration::from_secs(40);
const AGAIN: Duration = Duration::from_millis(50);

/// Writes to the slots, and converging them, wait as long as this lives.
struct Held<'a>(&'a Context);

impl<'a> Held<'a> {
    fn hold(context: &'a Context, slots: SlotSet) -> Self {
        *context.taking_back.lock() = slots;
        Self(context)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.0.taking_back.lock() = SlotSet::EMPTY;
        self.0.publish(|_| ());
    }
}

/// What is to be taken back, and what else old's record says then.
struct Wanted {
    /// Without what old has already.
    slots: SlotSet,
    reads_on_new: SlotSet,
    pins: Pins,
}

/// What was taken back.
pub(super) struct Taken {
    pub(super) slots: SlotSet,
    /// How far new's stream had been worked off.
    pub(super) passed: Option<Timestamp>,
    /// As it is stored, with what had been taken back before.
    pub(super) returning: Returning,
    /// There was such.
    pub(super) is_more: bool,
}

impl Engine {
    /// Everything returns to old by old's record alone, or what these keys and ranges name.
    pub(in crate::migration) async fn roll_back_without_new(
        &self,
        running: &Running,
        reason: &str,
        only: Option<&Keys>,
    ) -> Result<Ramp, ControlError> {
        let began = self.environment.clock.now();
        let reason = reason.trim();
        if reason.is_empty() {
            return Err(no_reason("say why new is not waited for"));
        }
        let phase = running.stored.lock().phase;
        let context = running.parts().filter(|_| !phase.is_over()).ok_or_else(|| wrong_phase(phase))?;
        let known = self.old_record(&context).await?;
        let (named, pins) = named(&context, only)?;
        let slots = named.minus(&known.owned);
        if slots.is_empty() && known.taken_back().meets(&named) {
            return Ok(self.answer(running, &context, Moved::default(), began));
        }
        self.must_need_it(&context, &known, &slots).await?;
        self.must_allow_the_rest(running, &context, &known, &slots).await?;
        self.must_be_alone_on_old(running).await?;
        // Of a part, it is the plan's business what to do with the rest; but not if that part is what it moves.
        let is_halted = match only {
            Some(only) => self.halt_plan_of(running, &only.ranges, ROLLED_BACK).await,
            None => self.halt_plan(running, ROLLED_BACK).await,
        };
        let removed = context.pins().all().len().saturating_sub(pins.all().len());
        let held_at = self.environment.clock.now();
        let taken = {
            let _held = Held::hold(&context, slots);
            let reads_on_new = known.reads_on_new.minus(&named);
            self.take_back(running, &context, &known, Wanted { slots, reads_on_new, pins }).await?
        };
        let pause = self.environment.clock.now() - held_at;
        let (epoch, slots) = (taken.returning.epoch, taken.slots.len());
        tracing::warn!(migration = %context.name, epoch, slots, reason, "old has taken back what new has");
        self.name(running, &context, &taken, reason).await;
        if !is_halted {
            self.halt_plan(running, ROLLED_BACK).await;
        }
        let moved = Moved { pause, attempts: 1, ended_transactions: 0 };
        let removed_pins = u32::try_from(removed).unwrap_or(u32::MAX);
        Ok(Ramp { removed_pins, ..self.answer(running, &context, moved, began) })
    }

    /// A part of the list of what only new may have acknowledged.
    pub(in crate::migration) async fn unreturned_of(
        &self,
        running: &Running,
        page: &UnreturnedPage,
    ) -> Result<UnreturnedList, ControlError> {
        let name = running.stored.lock().name.clone();
        let found = list::listed(self.environment.state()?, &name, page).await;
        found.map_err(|error| unavailable(error.to_string()))
    }

    /// Notes that the conflicts were looked at.
    pub(in crate::migration) async fn unreturned_is_known(
        &self,
        running: &Running,
        asked: &AcknowledgeUnreturned,
    ) -> Result<UnreturnedView, ControlError> {
        let reason = asked.reason.trim();
        if reason.is_empty() {
            return Err(no_reason("say what was done about them"));
        }
        let is_done = |view: &UnreturnedView| view.state == UnreturnedState::Done;
        if !running.stored.lock().unreturned.as_ref().is_some_and(is_done) {
            let detail = "nothing was rolled back without new, or not everything is back yet; see status";
            return Err(conflict("not-back-yet", detail));
        }
        let stored = running.change_stored(self.environment.state()?, |stored| {
            if let Some(view) = &mut stored.unreturned {
                view.acknowledged = Some(reason.to_owned());
            }
        });
        stored.await.map_err(|error| unavailable(error.to_string()))?;
        let view = running.stored.lock().unreturned.clone();
        view.ok_or_else(|| unavailable("it is gone".into()))
    }

    fn answer(&self, running: &Running, context: &Context, moved: Moved, began: Duration) -> Ramp {
        let (named, all_named) = {
            let stored = running.stored.lock();
            let view = stored.unreturned.as_ref();
            view.map_or((0, false), |view| (view.named.unsigned_abs(), view.all_named))
        };
        let unreturned = Some(named);
        let owned = context.route().map(|route| route.owned_by_new).unwrap_or_default();
        let percent = context.shares().share(&owned, &[]);
        Ramp { unreturned, all_named, ..self.moved(context, percent, moved, began) }
    }

    async fn old_record(&self, context: &Context) -> Result<AuthorityRecord, ControlError> {
        let old = |why: String| unavailable(format!("old: {why}; without old and new nothing can be moved"));
        if !context.beat(Side::Old).await.map_err(|error| old(error.to_string()))? {
            return Err(old("this process may not write to it any more; restart it".into()));
        }
        context.authorities.old.known().ok_or_else(no_new)
    }

    /// Only what the ordinary rollback cannot do.
    async fn must_need_it(
        &self,
        context: &Context,
        known: &AuthorityRecord,
        slots: &SlotSet,
    ) -> Result<(), ControlError> {
        let route = context.route().ok_or_else(no_new)?;
        if route.phase.is_over() {
            return Err(half_ended(route.phase));
        }
        if !route.mirrors() {
            return Err(wrong_phase(route.phase));
        }
        if self.environment.settings.state == Side::New {
            return Err(conflict(
                "stored-on-new",
                "what is stored of migrations is on new ([migration] state): it cannot be rolled back without it",
            ));
        }
        if slots.is_empty() {
            let what = if known.owned == SlotSet::ALL { "every document" } else { "all that is named" };
            let detail =
                format!("old is the authority of {what}: roll back as ever, which needs no new then");
            return Err(conflict("nothing-on-new", detail));
        }
        let answered = timeout(&*self.environment.clock, PROBE, context.beat(Side::New)).await;
        if matches!(answered, Ok(Ok(_))) {
            return Err(conflict(
                "new-answers",
                "new answers: roll back with it, which leaves nothing behind",
            ));
        }
        Ok(())
    }

    /// Where all is on new, a part of it may be taken back only if writes may be divided, as far as old can tell.
    async fn must_allow_the_rest(
        &self,
        running: &Running,
        context: &Context,
        known: &AuthorityRecord,
        slots: &SlotSet,
    ) -> Result<(), ControlError> {
        if !known.owned.is_empty() || *slots == SlotSet::ALL {
            return Ok(());
        }
        let whole = "roll everything back without new: leave keys and ranges out";
        if context.route().is_some_and(|route| !route.route_keys.is_empty()) {
            let detail = format!(
                "all is on new, which cannot be asked now whether a route key is an array there; {whole}"
            );
            return Err(conflict("single-step", detail));
        }
        let allowed = self.must_allow_parts(running, context).await;
        allowed.map_err(|error| ControlError { detail: format!("{}; {whole}", error.detail), ..error })
    }

    /// What another process had sent to old while that was the mirror must not arrive once it is the authority.
    async fn must_be_alone_on_old(&self, running: &Running) -> Result<(), ControlError> {
        let clock = &*self.environment.clock;
        let alone = async {
            while running.watch.problem_on(Side::Old).is_some() {
                clock.sleep(AGAIN).await;
            }
        };
        let why = |_| unavailable(running.watch.problem_on(Side::Old).unwrap_or_default());
        timeout(clock, 2 * self.environment.settings.lease + DRAIN, alone).await.map_err(why)
    }

    /// Ends what is under way, and lets old's record say that it is old's.
    async fn take_back(
        &self,
        running: &Running,
        context: &Context,
        known: &AuthorityRecord,
        wanted: Wanted,
    ) -> Result<Taken, ControlError> {
        let Wanted { slots, reads_on_new, pins } = wanted;
        let unique = || {
            let active = running.active.lock();
            active.as_ref().map_or(0, |active| active.counters.unique_indexes.load(Ordering::Relaxed))
        };
        let before = unique();
        self.end_what_is_under_way(context, known, &slots).await?;
        if unique() != before {
            return Err(unavailable("nothing has changed: a unique index was made meanwhile".into()));
        }
        let passed = context.frontiers.new.position().map(|position| position.done);
        let (from_old, from_new) = self.positions(context).await?;
        let fresh = Returning {
            slots,
            epoch: Returning::epoch_above(known.epoch.max(context.epoch())),
            at: context.clock.wall_millis(),
            from_old,
            from_new,
            passed,
        };
        let is_more = known.returning.is_some();
        let returning = match known.returning.clone() {
            Some(before) => before.and(fresh),
            None => fresh,
        };
        let pins = pins_as_stored(&stored_pins(&pins))?;
        self.decide(context, &returning, &reads_on_new, pins).await?;
        context.retries.lock().note_move(Side::New, returning.epoch);
        Ok(Taken { slots, passed, returning, is_more })
    }

    async fn end_what_is_under_way(
        &self,
        context: &Context,
        known: &AuthorityRecord,
        slots: &SlotSet,
    ) -> Result<(), ControlError> {
        let clock = &*self.environment.clock;
        let version = context.publish(|_| ()).ok_or_else(no_new)?;
        // Whatever was sent under this lease is not shown any more, also if new answers yet.
        context.authorities.new.lease.lost();
        context.converger.interrupt();
        if let Some(open) = self.environment.registry.transactions.get() {
            // Where new hangs, nobody can end them there; here they do not count any more.
            let ended = open.give_up(&context.name).len();
            tracing::info!(migration = %context.name, ended, "open transactions do not count any more");
        }
        let under_way =
            context.inflight.drained(&context.name, slots, version, &[Work::Write, Work::Converge]);
        timeout(clock, DRAIN, under_way).await.map_err(|_| {
            let oldest =
                context.inflight.oldest(&context.name, slots, version, &[Work::Write, Work::Converge]);
            let what = oldest.map_or_else(String::new, |oldest| format!(" ({})", oldest.what));
            unavailable(format!("given up, nothing has changed: what is under way does not end{what}"))
        })?;
        if context.safeguards.barrier && context.sessions.old.any_tainted() {
            context.sessions.old.settle().await.map_err(|why| unavailable(format!("old: {why}")))?;
        }
        if let Some(fence) = known.fence.as_ref().filter(|fence| fence.state == FenceState::Open) {
            context.decide_aborted(Side::Old, fence).await;
        }
        Ok(())
    }

    /// Where old's stream is now, and where new's had been worked off to.
    async fn positions(&self, context: &Context) -> Result<(Document, Option<Document>), ControlError> {
        let old = |why: String| unavailable(format!("old: {why}"));
        let from_new = checkpoint::load(&context.records, &context.name, Side::New).await;
        let from_new = from_new.map_err(|error| old(error.to_string()))?;
        let opened = ChangeStream::open(&context.clusters.old, &context.scope, None).await;
        let (stream, batch) = opened.map_err(|why| old(why.to_string()))?;
        stream.close().await;
        let plain = |token: bson::RawDocumentBuf| Document::try_from(&*token);
        let token = plain(batch.token).map_err(|error| unavailable(error.to_string()))?;
        Ok((token, from_new.and_then(|token| plain(token).ok())))
    }

    /// From the moment the command is sent only the record says what holds: writes wait until that is known.
    async fn decide(
        &self,
        context: &Context,
        returning: &Returning,
        reads_on_new: &SlotSet,
        pins: bson::Bson,
    ) -> Result<(), ControlError> {
        let old = &context.authorities.old;
        loop {
            let is_it = |record: &AuthorityRecord| record.returning.as_ref() == Some(returning);
            match old.take_back(returning, reads_on_new, pins.clone()).await {
                Ok(true) => return Ok(()),
                Ok(false) if old.known().is_some_and(|record| is_it(&record)) => return Ok(()),
                Ok(false) => match old.refresh().await {
                    Ok(Some(record)) if is_it(&record) => return Ok(()),
                    Ok(_) => {
                        let why = "the routing changed, or another process came, meanwhile; try again";
                        return Err(unavailable(why.into()));
                    }
                    Err(error) => tracing::warn!(%error, "whether old has taken all back is not known yet"),
                },
                Err(error) => tracing::warn!(%error, "whether old has taken all back is not known yet"),
            }
            self.environment.clock.sleep(AGAIN).await;
        }
    }
}

/// The slots that are meant, and what is pinned then.
fn named(context: &Context, only: Option<&Keys>) -> Result<(SlotSet, Pins), ControlError> {
    let pins = context.pins();
    let Some(only) = only else { return Ok((SlotSet::ALL, pins.only_to(Side::Old))) };
    let held = read_held(only, &context.key_ranges())?;
    let next = pins.with(&held, Side::Old, context.clock.wall_millis()).map_err(|why| refused(&why))?;
    Ok((slots_of(&held), next))
}

fn no_reason(what: &str) -> ControlError {
    let detail = format!("give a reason: {what}; it is kept in the audit");
    ControlError::new(Refusal::Invalid, "no-reason", detail)
}

fn wrong_phase(phase: crate::model::phase::Phase) -> ControlError {
    conflict("wrong-phase", format!("it is {phase}; there is nothing to take back"))
}
