//! Moving the authority of slots from one cluster to the other: the fence.
//!
//! 1. A fence document is opened on the cluster that gives the slots away. New writes to them wait.
//! 2. What was under way finishes; mirror sessions with an unknown outcome are barred.
//! 3. A marker on each cluster; both streams must pass them.
//! 4. Converging is sealed off too, and drained.
//! 5. One compare-and-set decides: `open` → `committed`, or at the deadline `open` → `aborted`.
//!
//! Nobody ends a fence by a clock of his own: the document decides, and while its state is not known the
//! writes go on waiting.

use std::sync::Arc;
use std::time::Duration;

use super::aborting::Aborting;
use super::context::Context;
use crate::clock::timeout;
use crate::converge::shards::is_sharded;
use crate::model::side::Side;
use crate::model::slots::SlotSet;
use crate::model::span::spoken;
use crate::state::inflight::Work;
use crate::state::record::{Fence, FenceState};
use crate::state::transactions::{GivenUp, Transactions};

/// Slots that are to change hands.
#[derive(Clone)]
pub struct Transfer {
    /// Who gives them away.
    pub from: Side,
    /// Which.
    pub slots: SlotSet,
    /// How long writes may be held in one attempt.
    pub max_pause: Duration,
    /// After so many tries that open transactions kept from coming to anything, these are ended.
    pub ending: Option<(u32, Arc<dyn Transactions>)>,
    /// Asked once no write is under way any more: whether what allowed the move still holds.
    pub still_allowed: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// An abort that is asked for meanwhile ends the attempts.
    pub aborting: Aborting,
}

/// Authority has moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// How long writes were held.
    pub pause: Duration,
    /// How many attempts it took.
    pub attempts: u32,
    /// Transactions that were ended for it.
    pub ended_transactions: u32,
}

/// Why an attempt came to nothing.
enum GaveUp {
    /// Worth another attempt.
    Again(String),
    /// The same; an open transaction did not end.
    Transaction(String),
    /// The clusters' records do not allow it.
    Refused(String),
}

fn given_up(because_of: Work, why: String) -> GaveUp {
    if because_of == Work::Transaction { GaveUp::Transaction(why) } else { GaveUp::Again(why) }
}

/// Whether an attempt may end open transactions, and how many were.
struct Ending<'a> {
    transactions: Option<&'a (u32, Arc<dyn Transactions>)>,
    ended: &'a mut u32,
}

/// How short and how long writes may be held in one try, in milliseconds; configured or asked for.
pub const PAUSE_MS: std::ops::RangeInclusive<u32> = 50..=10_000;
/// How often a move is tried.
pub const MOST_ATTEMPTS: u32 = 8;
const SOFT_DRAIN: Duration = Duration::from_secs(10);
const WRITERS: [Work; 2] = [Work::Write, Work::Transaction];

impl Context {
    /// Moves `transfer.slots`; on failure nothing has changed.
    ///
    /// # Errors
    /// Each attempt's reason, in words.
    pub async fn transfer(&self, transfer: Transfer) -> Result<Moved, Vec<String>> {
        let mut reasons = Vec::new();
        let (mut by_transactions, mut ended_transactions) = (0, 0);
        for attempt in 1..=MOST_ATTEMPTS {
            if let Err(cut_short) = transfer.aborting.check() {
                reasons.push(cut_short.detail);
                return Err(reasons);
            }
            let mut ending = Ending {
                transactions: transfer.ending.as_ref().filter(|(after, _)| by_transactions >= *after),
                ended: &mut ended_transactions,
            };
            let gave_up = match self.attempt(&transfer, &mut ending).await {
                Ok(pause) => return Ok(Moved { pause, attempts: attempt, ended_transactions }),
                Err(gave_up) => gave_up,
            };
            by_transactions += u32::from(matches!(gave_up, GaveUp::Transaction(_)));
            match gave_up {
                GaveUp::Refused(why) => {
                    reasons.push(why);
                    return Err(reasons);
                }
                GaveUp::Again(why) | GaveUp::Transaction(why) => {
                    tracing::info!(attempt, why, "the fence was given up");
                    reasons.push(format!("attempt {attempt}: {why}"));
                    let pause = self.clock.sleep(Duration::from_millis(100 << attempt.min(5)));
                    // Seen at the next attempt.
                    _ = transfer.aborting.unless_asked(pause).await;
                }
            }
        }
        Err(reasons)
    }

    async fn attempt(&self, transfer: &Transfer, ending: &mut Ending<'_>) -> Result<Duration, GaveUp> {
        let kinds = if ending.transactions.is_some() { &WRITERS[..1] } else { &WRITERS };
        let drained = transfer.aborting.unless_asked(self.soft_drain(transfer, kinds)).await;
        drained.map_err(|cut_short| GaveUp::Again(cut_short.detail))??;
        let fence = self.new_fence(transfer)?;
        let giver = self.authorities.get(transfer.from);
        let opened = giver.open_fence(&fence).await;
        if !matches!(opened, Ok(true)) {
            let why =
                opened.err().map_or("the record is at another epoch".to_owned(), |error| error.to_string());
            // It may be open after all.
            self.decide_aborted(transfer.from, &fence).await;
            return Err(GaveUp::Again(why));
        }
        // Whoever joined before the fence was opened may not know of it; whoever joins later does.
        if let Some(other) = self.another_holder(transfer.from) {
            self.decide_aborted(transfer.from, &fence).await;
            return Err(GaveUp::Again(format!("process {other} has joined")));
        }
        let held_at = self.clock.now();
        let deadline = held_at + transfer.max_pause;
        let equal = timeout(&*self.clock, transfer.max_pause, self.make_equal(transfer, fence, ending));
        let ready = match transfer.aborting.unless_asked(equal).await {
            Ok(Ok(ready)) => ready.map_err(GaveUp::Again),
            Ok(Err(_)) => Err(self.what_stands_in_the_way(transfer)),
            Err(cut_short) => Err(GaveUp::Again(cut_short.detail)),
        };
        match ready {
            Ok(fence) if self.clock.now() < deadline => self.decide_committed(transfer, fence).await?,
            Ok(fence) => {
                self.decide_aborted(transfer.from, &fence).await;
                return Err(GaveUp::Again("the deadline passed".into()));
            }
            Err(gave_up) => {
                let id = self.authorities.get(transfer.from).known().and_then(|record| record.fence);
                if let Some(fence) = id {
                    self.decide_aborted(transfer.from, &fence).await;
                }
                return Err(gave_up);
            }
        }
        Ok(self.clock.now() - held_at)
    }

    fn another_holder(&self, side: Side) -> Option<String> {
        let authority = self.authorities.get(side);
        let record = authority.known()?;
        record.holders.into_keys().find(|holder| holder != authority.holder())
    }

    fn new_fence(&self, transfer: &Transfer) -> Result<Fence, GaveUp> {
        let giver = self.authorities.get(transfer.from);
        let record = giver.known().ok_or_else(|| GaveUp::Again("its record is not known".into()))?;
        if !transfer.slots.minus(&record.owned).is_empty() {
            return Err(GaveUp::Refused(format!("{} does not own all of these slots", transfer.from)));
        }
        Ok(Fence {
            // Unique: one fence at most is opened at each of its holder's beats.
            id: format!("{}/{}/{}", giver.holder(), record.epoch, self.clock.now().as_nanos()),
            slots: transfer.slots,
            to: transfer.from.other(),
            epoch: record.epoch,
            state: FenceState::Open,
            coordinator: giver.holder().to_owned(),
            drained: Vec::new(),
            marker_from: None,
            marker_to: None,
            decided_at: None,
        })
    }

    /// Waits until nothing old is under way, before anybody is held up.
    async fn soft_drain(&self, transfer: &Transfer, kinds: &[Work]) -> Result<(), GaveUp> {
        let give_up = self.clock.now() + SOFT_DRAIN;
        loop {
            let oldest = self.inflight.oldest(&self.name, &transfer.slots, u64::MAX, kinds);
            match oldest {
                Some(oldest) if oldest.age > transfer.max_pause / 2 => {
                    if self.clock.now() >= give_up {
                        let (what, age) = (oldest.what, oldest.age);
                        return Err(given_up(
                            oldest.work,
                            format!("{what} has been under way for {age:.1?}"),
                        ));
                    }
                }
                _ => return Ok(()),
            }
            self.clock.sleep(Duration::from_millis(20)).await;
        }
    }

    fn what_stands_in_the_way(&self, transfer: &Transfer) -> GaveUp {
        let kinds = [Work::Write, Work::Transaction, Work::Converge];
        let pause = spoken(transfer.max_pause);
        match self.inflight.oldest(&self.name, &transfer.slots, u64::MAX, &kinds) {
            Some(oldest) => given_up(oldest.work, format!("{} did not end within {pause}", oldest.what)),
            None => GaveUp::Again(format!("the streams did not catch up within {pause}")),
        }
    }

    /// Under a fence no transaction begins; those that are open get a part of the pause to end by themselves.
    async fn end_transactions(&self, transfer: &Transfer, held: u64, ending: &mut Ending<'_>) {
        let Some((_, open)) = ending.transactions else { return };
        let by_themselves = self.inflight.drained(&self.name, &transfer.slots, held, &[Work::Transaction]);
        if timeout(&*self.clock, transfer.max_pause / 4, by_themselves).await.is_ok() {
            return;
        }
        let given_up = open.give_up(&self.name);
        *ending.ended += u32::try_from(given_up.len()).unwrap_or(u32::MAX);
        let aborts =
            given_up.iter().map(|transaction| self.abort_transaction(transaction, transfer.max_pause));
        futures::future::join_all(aborts).await;
    }

    /// Frees what it holds. That it cannot commit does not rest on this.
    async fn abort_transaction(&self, transaction: &GivenUp, limit: Duration) {
        let cluster = &**self.clusters.get(transaction.side);
        let aborted = async {
            let request = transaction.abort(is_sharded(cluster).await?).within(limit);
            cluster.run(request).await.map_err(|error| error.to_string())
        };
        let number = transaction.number;
        match aborted.await {
            Ok(_) => tracing::info!(migration = %self.name, number, "a transaction was ended for a move"),
            Err(why) => tracing::warn!(number, why, "a transaction is left to the server to end"),
        }
    }

    /// Brings both sides to equality on the slots, with nothing under way.
    async fn make_equal(
        &self,
        transfer: &Transfer,
        mut fence: Fence,
        ending: &mut Ending<'_>,
    ) -> Result<Fence, String> {
        let slots = transfer.slots;
        let held = self.publish(|_| ()).ok_or("its records are not known")?;
        self.end_transactions(transfer, held, ending).await;
        if self.safeguards.epoch_guard {
            self.inflight.drained(&self.name, &slots, held, &WRITERS).await;
        }
        (transfer.still_allowed)()?;
        self.settle_sessions().await?;
        let from = self.mark(transfer.from, transfer.max_pause).await?;
        let to = self.mark(transfer.from.other(), transfer.max_pause).await?;
        if self.safeguards.markers {
            self.frontiers.get(transfer.from).wait_past(from, &*self.clock, transfer.max_pause).await;
            let passed = self.frontiers.get(transfer.from).has_passed(from);
            let mirror = self.frontiers.get(transfer.from.other());
            let mirror_passed = !self.safeguards.mirror_stream
                || mirror.wait_past(to, &*self.clock, transfer.max_pause).await;
            if !passed || !mirror_passed {
                return Err("the streams did not pass the markers".into());
            }
        }
        let sealed = self.publish(|route| route.sealed = slots).ok_or("its records are not known")?;
        if self.safeguards.workers_fenced {
            self.inflight.drained(&self.name, &slots, sealed, &[Work::Converge]).await;
        }
        self.settle_sessions().await?;
        let route = self.route().ok_or("its records are not known")?;
        if self.parking.any_in(&slots, |namespace, key| route.slots_of_key(namespace, key)) {
            return Err("keys that cannot be made equal lie in these slots".into());
        }
        fence.marker_from = Some(from);
        fence.marker_to = Some(to);
        Ok(fence)
    }

    /// Bars mirror sessions whose last write may still arrive.
    ///
    /// # Errors
    /// Why some are not barred.
    pub(super) async fn settle_sessions(&self) -> Result<(), String> {
        if !self.safeguards.barrier {
            return Ok(());
        }
        for side in Side::BOTH {
            if self.sessions.get(side).any_tainted() {
                self.sessions.get(side).settle().await?;
            }
        }
        Ok(())
    }

    /// Decides for the move. From the moment the command is sent only the document says what holds.
    async fn decide_committed(&self, transfer: &Transfer, fence: Fence) -> Result<(), GaveUp> {
        let giver = self.authorities.get(transfer.from);
        let owned = giver.known().map_or(SlotSet::EMPTY, |record| record.owned).minus(&fence.slots);
        loop {
            let committed = giver.commit_fence(&fence, owned).await;
            match committed {
                Ok(true) => break,
                Ok(false) => match self.state_of(transfer.from, &fence).await {
                    FenceState::Committed => break,
                    FenceState::Aborted | FenceState::Open => {
                        // Another epoch, or another's decision: nothing has moved.
                        self.decide_aborted(transfer.from, &fence).await;
                        return Err(GaveUp::Again("somebody else gave the fence up".into()));
                    }
                },
                Err(error) => tracing::warn!(%error, "whether the move is decided is not known yet"),
            }
            self.clock.sleep(Duration::from_millis(50)).await;
        }
        if let Some(record) = giver.known() {
            self.note_company(transfer.from, &record);
            self.retries.lock().note_move(transfer.from, fence.epoch + 1);
        }
        self.finish_gain(&fence).await;
        self.publish(|_| ());
        Ok(())
    }

    /// Records the gain; until that is done nobody owns the slots, and writes to them wait.
    pub(super) async fn finish_gain(&self, fence: &Fence) {
        while let Err(error) = self.authorities.get(fence.to).gain(fence).await {
            tracing::warn!(%error, "a gain is not recorded yet");
            self.clock.sleep(Duration::from_millis(50)).await;
        }
    }

    async fn state_of(&self, side: Side, fence: &Fence) -> FenceState {
        loop {
            if let Ok(Some(record)) = self.authorities.get(side).refresh().await {
                return match record.fence {
                    Some(now) if now.id == fence.id => now.state,
                    _ => FenceState::Aborted,
                };
            }
            self.clock.sleep(Duration::from_millis(50)).await;
        }
    }

    /// Decides against the move, and lets the held writes go on where they would have gone.
    pub(super) async fn decide_aborted(&self, side: Side, fence: &Fence) {
        let giver = self.authorities.get(side);
        loop {
            match giver.abort_fence(&fence.id).await {
                Ok(true) => break,
                Ok(false) => {
                    if self.state_of(side, fence).await == FenceState::Committed {
                        self.finish_gain(fence).await;
                    }
                    break;
                }
                Err(error) => tracing::warn!(%error, "whether the fence is given up is not known yet"),
            }
            self.clock.sleep(Duration::from_millis(50)).await;
        }
        self.publish(|_| ());
    }
}
