//! Old takes back what new has, while new is away.

use std::time::Duration;

use bson::Document;

use super::list::{self, Entry, NAMED};
use super::view::{AcknowledgeUnreturned, UnreturnedList, UnreturnedPage, UnreturnedState, UnreturnedView};
use crate::clock::timeout;
use crate::migration::context::Context;
use crate::migration::control::{ControlError, Ramp, Refusal};
use crate::migration::engine::{Engine, no_new, unavailable};
use crate::migration::following::half_ended;
use crate::migration::in_force::pins_as_stored;
use crate::migration::moving::Moved;
use crate::migration::ramping::conflict;
use crate::migration::running::Running;
use crate::migration::stream::ChangeStream;
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::percent::Percent;
use crate::model::side::Side;
use crate::model::slots::SlotSet;
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
/// How long the names may take to be stored.
const NAMING: Duration = Duration::from_secs(20);

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

impl Engine {
    /// Everything returns to old by old's record alone.
    pub(in crate::migration) async fn roll_back_without_new(
        &self,
        running: &Running,
        reason: &str,
    ) -> Result<Ramp, ControlError> {
        let began = self.environment.clock.now();
        let reason = reason.trim();
        if reason.is_empty() {
            return Err(no_reason("say why new is not waited for"));
        }
        let phase = running.stored.lock().phase;
        let context = running.parts().filter(|_| !phase.is_over()).ok_or_else(|| wrong_phase(phase))?;
        let known = self.old_record(&context).await?;
        if known.returning.is_some() {
            return Ok(self.answer(running, &context, Moved::default(), began));
        }
        self.must_need_it(&context, &known).await?;
        self.must_be_alone_on_old(running).await?;
        let is_halted = self.halt_plan(running).await;
        let pins = context.pins();
        let kept = pins.only_to(Side::Old);
        let removed = pins.all().len() - kept.all().len();
        let held_at = self.environment.clock.now();
        let taken = {
            let _held = Held::hold(&context, SlotSet::ALL.minus(&known.owned));
            let stored = pins_as_stored(&stored_pins(&kept))?;
            self.take_back(&context, &known, stored).await?
        };
        let pause = self.environment.clock.now() - held_at;
        tracing::warn!(migration = %context.name, epoch = taken.epoch, reason, "old has taken back what new has");
        self.name(running, &context, &taken, reason).await;
        if !is_halted {
            self.halt_plan(running).await;
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
        Ramp { unreturned, all_named, ..self.moved(context, Percent::ZERO, moved, began) }
    }

    async fn old_record(&self, context: &Context) -> Result<AuthorityRecord, ControlError> {
        let old = |why: String| unavailable(format!("old: {why}; without old and new nothing can be moved"));
        if !context.beat(Side::Old).await.map_err(|error| old(error.to_string()))? {
            return Err(old("this process may not write to it any more; restart it".into()));
        }
        context.authorities.old.known().ok_or_else(no_new)
    }

    /// Only what the ordinary rollback cannot do.
    async fn must_need_it(&self, context: &Context, known: &AuthorityRecord) -> Result<(), ControlError> {
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
        if known.owned == SlotSet::ALL {
            return Err(conflict(
                "nothing-on-new",
                "old is the authority of every document: roll back as ever, which needs no new then",
            ));
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

    /// Ends what is under way, and lets old's record say that everything is old's.
    async fn take_back(
        &self,
        context: &Context,
        known: &AuthorityRecord,
        pins: bson::Bson,
    ) -> Result<Returning, ControlError> {
        let clock = &*self.environment.clock;
        let slots = SlotSet::ALL.minus(&known.owned);
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
            context.inflight.drained(&context.name, &slots, version, &[Work::Write, Work::Converge]);
        timeout(clock, DRAIN, under_way).await.map_err(|_| {
            let oldest =
                context.inflight.oldest(&context.name, &slots, version, &[Work::Write, Work::Converge]);
            let what = oldest.map_or_else(String::new, |oldest| format!(" ({})", oldest.what));
            unavailable(format!("given up, nothing has changed: what is under way does not end{what}"))
        })?;
        if context.safeguards.barrier && context.sessions.old.any_tainted() {
            context.sessions.old.settle().await.map_err(|why| unavailable(format!("old: {why}")))?;
        }
        if let Some(fence) = known.fence.as_ref().filter(|fence| fence.state == FenceState::Open) {
            context.decide_aborted(Side::Old, fence).await;
        }
        let from_new = checkpoint::load(&context.records, &context.name, Side::New).await;
        let from_new = from_new.map_err(|error| unavailable(format!("old: {error}")))?;
        let opened = ChangeStream::open(&context.clusters.old, &context.scope, None).await;
        let (stream, batch) = opened.map_err(|why| unavailable(format!("old: {why}")))?;
        stream.close().await;
        let plain = |token: bson::RawDocumentBuf| Document::try_from(&*token);
        let token = plain(batch.token).map_err(|error| unavailable(error.to_string()))?;
        let returning = Returning {
            slots,
            epoch: Returning::epoch_above(known.epoch.max(context.epoch())),
            at: context.clock.wall_millis(),
            from_old: token,
            from_new: from_new.and_then(|token| plain(token).ok()),
            passed: context.frontiers.new.position().map(|position| position.done),
        };
        self.decide(context, &returning, pins).await?;
        Ok(returning)
    }

    /// From the moment the command is sent only the record says what holds: writes wait until that is known.
    async fn decide(
        &self,
        context: &Context,
        returning: &Returning,
        pins: bson::Bson,
    ) -> Result<(), ControlError> {
        let old = &context.authorities.old;
        let from = old.known().map_or(0, |record| record.epoch);
        loop {
            let is_it = |record: &AuthorityRecord| record.returning.as_ref() == Some(returning);
            match old.take_back(from, returning, pins.clone()).await {
                Ok(true) => return Ok(()),
                Ok(false) if old.known().is_some_and(|record| is_it(&record)) => return Ok(()),
                Ok(false) => match old.refresh().await {
                    Ok(Some(record)) if is_it(&record) => return Ok(()),
                    Ok(_) => return Err(unavailable("the routing changed meanwhile; try again".into())),
                    Err(error) => tracing::warn!(%error, "whether old has taken all back is not known yet"),
                },
                Err(error) => tracing::warn!(%error, "whether old has taken all back is not known yet"),
            }
            self.environment.clock.sleep(AGAIN).await;
        }
    }

    /// Names what only new may have acknowledged, and stores it. It is in force already: nothing here can fail it.
    async fn name(&self, running: &Running, context: &Context, taken: &Returning, reason: &str) {
        let passed = taken.passed;
        let noted = running.active.lock().as_ref().map(|active| active.unreturned.beyond(passed));
        let (mut keys, all) = noted.unwrap_or_default();
        keys.extend(parked(context, taken));
        keys.sort();
        keys.dedup();
        // What an earlier process left behind was never noted here: it counts as passed once the stream has.
        let begun = context.converger.own.judged_from(Side::New);
        let mut all_named = all && begun.is_some_and(|begun| passed.is_some_and(|passed| passed >= begun));
        let named = i64::try_from(keys.len()).unwrap_or(i64::MAX);
        let stored = timeout(&*self.environment.clock, NAMING, store_names(context, keys)).await;
        if let Err(why) = stored.unwrap_or_else(|_| Err("no answer in time".into())) {
            tracing::error!(
                why,
                "what only new has is named when new is there again: it could not be stored now"
            );
            all_named = false;
        }
        let view = UnreturnedView {
            since: taken.at,
            reason: reason.to_owned(),
            state: UnreturnedState::WaitingForNew,
            problem: None,
            named,
            all_named,
            brought_back: 0,
            on_both: 0,
            conflicts: 0,
            acknowledged: None,
        };
        let storing = running.change_stored(&context.records, |stored| {
            stored.unreturned = Some(view.clone());
            stored.all_on_new_at = None;
        });
        if let Err(error) = storing.await {
            tracing::warn!(%error, "the rollback is in force; it could not be stored what it has named");
            running.stored.lock().unreturned = Some(view);
        }
    }
}

/// What the stream has passed because it could not be made equal.
pub(super) fn parked(context: &Context, taken: &Returning) -> Vec<(Namespace, Key)> {
    let Some(route) = context.route() else { return Vec::new() };
    let parked = context.parking.list().into_iter();
    let parked = parked.filter(|it| taken.slots.meets(&route.slots_of_key(&it.namespace, &it.key)));
    parked.map(|it| (it.namespace, it.key)).collect()
}

async fn store_names(context: &Context, keys: Vec<(Namespace, Key)>) -> Result<(), String> {
    let entries = keys.into_iter().map(|(namespace, key)| Entry::of(namespace, key, NAMED));
    let entries: Vec<_> = entries.collect();
    let store = async {
        list::clear(&context.records, &context.name).await?;
        list::store(&context.records, &context.name, &entries).await
    };
    store.await.map_err(|error| error.to_string())
}

fn no_reason(what: &str) -> ControlError {
    let detail = format!("give a reason: {what}; it is kept in the audit");
    ControlError::new(Refusal::Invalid, "no-reason", detail)
}

fn wrong_phase(phase: crate::model::phase::Phase) -> ControlError {
    conflict("wrong-phase", format!("it is {phase}; there is nothing to take back"))
}
