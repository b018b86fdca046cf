//! What the data plane needs of each migration that this process works on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bson::Timestamp;
use parking_lot::Mutex;

use super::converger::Converger;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::model::slots::{Slot, SlotSet};
use crate::policy::retry::Memory;
use crate::state::authority::Authority;
use crate::state::ddl::Ddl;
use crate::state::expiry::Expiries;
use crate::state::frontier::Frontier;
use crate::state::newcomers::Newcomers;
use crate::state::pipelines::Pipelines;
use crate::state::process_writes::ProcessWrites;
use crate::state::range_counts::RangeCounts;
use crate::state::rehearsing::Rehearsal;
use crate::state::shadowing::Shadow;
use crate::state::shapes::Shapes;
use crate::state::switched::SwitchedOff;
use crate::state::table::MigrationRoute;
use crate::state::transactions::Transactions;
use crate::state::unreturned::Unreturned;

/// One migration, as the data plane sees it.
pub struct Active {
    /// The primitive, with the lanes.
    pub converger: Arc<Converger>,
    /// Leases and records.
    pub authorities: PerSide<Arc<Authority>>,
    /// How far the streams are.
    pub frontiers: PerSide<Arc<Frontier>>,
    /// Numbers of sessions, to tell retries that a move has overtaken.
    pub retries: Arc<Mutex<Memory>>,
    /// Slots that must not be read on their mirror yet.
    pub unreadable: Unreadable,
    /// Mirrors that fail are left alone for a while, each.
    pub breakers: PerSide<Breaker>,
    /// How long a reply may wait for the mirror.
    pub mirror_timeout: Duration,
    /// The seconds of TTL indexes while expiry is suspended.
    pub expiries: Arc<dyn Expiries>,
    /// One change of them at a time.
    pub expiry_changes: tokio::sync::Mutex<()>,
    /// Counters for progress and metrics.
    pub counters: Counters,
    /// What is asked, and how long each cluster takes.
    pub shapes: Shapes,
    /// Where collections are told that come into being.
    pub newcomers: Arc<Newcomers>,
    /// History is being copied: nobody reads the mirror.
    pub copying: AtomicBool,
    /// An operator leaves the mirror to the streams alone. Reads may meet it all the same, so that what is left out must
    /// be marked, as where a breaker is open.
    pub inline_off: SwitchedOff,
    /// An operator has no reads compared.
    pub shadow_off: SwitchedOff,
    /// Where sampled reads go.
    pub shadow: Arc<Shadow>,
    /// Where reads go that are repeated on new.
    pub rehearsal: Arc<Rehearsal>,
    /// What only new has acknowledged.
    pub unreturned: Unreturned,
    /// What fell into ranges of keys.
    pub range_counts: RangeCounts,
}

/// What the data plane counts for a migration.
#[derive(Debug, Default)]
pub struct Counters {
    /// Inline mirror writes that failed or were late.
    pub mirror_failures: std::sync::atomic::AtomicU64,
    /// Writes that named no key.
    pub unkeyed_writes: std::sync::atomic::AtomicU64,
    /// Single-document writes with a txnNumber that named no key: they force a move in one step.
    pub unkeyed_retryable: std::sync::atomic::AtomicU64,
    /// Unique indexes that were made through this process.
    pub unique_indexes: std::sync::atomic::AtomicU64,
    /// Transactions that wrote.
    pub transactions: std::sync::atomic::AtomicU64,
    /// Retries that a move had overtaken, answered by the former authority.
    pub overtaken_retries: std::sync::atomic::AtomicU64,
}

impl Active {
    /// With nothing remembered yet.
    #[must_use]
    pub fn new(
        converger: Arc<Converger>,
        authorities: PerSide<Arc<Authority>>,
        frontiers: PerSide<Arc<Frontier>>,
        retries: Arc<Mutex<Memory>>,
        newcomers: Arc<Newcomers>,
        mirror_timeout: Duration,
        expiries: Arc<dyn Expiries>,
    ) -> Self {
        Self {
            converger,
            authorities,
            frontiers,
            retries,
            unreadable: Unreadable::default(),
            breakers: PerSide::default(),
            mirror_timeout,
            expiries,
            expiry_changes: tokio::sync::Mutex::default(),
            counters: Counters::default(),
            shapes: Shapes::default(),
            newcomers,
            copying: AtomicBool::new(false),
            inline_off: SwitchedOff::default(),
            shadow_off: SwitchedOff::default(),
            shadow: Arc::default(),
            rehearsal: Arc::default(),
            unreturned: Unreturned::default(),
            range_counts: RangeCounts::default(),
        }
    }

    /// What a write to `namespace` may do about `mirror` at `now`. One that does not keep up the lease is away or hangs, whatever its
    /// connections look like.
    #[must_use]
    pub fn attempt(&self, namespace: &Namespace, mirror: Side, now: Duration) -> Attempt {
        let breaker = self.breakers.get(mirror);
        if self.authorities.get(mirror).lease.begin().is_none() {
            breaker.open(now);
        }
        if self.inline_off.is_for(namespace) { Attempt::Not } else { breaker.attempt(now) }
    }

    /// Whether the mirror is left to the streams alone: while history is copied, one write after the other
    /// would only take time from the copy and the application. The streams do the same, many at once.
    #[must_use]
    pub fn leaves_to_streams(&self, route: &MigrationRoute) -> bool {
        self.converger.safeguards.streams_alone && self.copying.load(Ordering::Relaxed) && !route.ack_both
    }
}

/// Slots whose mirror misses an acknowledged write until the authority's stream has passed it.
///
/// A process that has just begun does not know what its predecessor left behind: until each stream has passed
/// a marker written since, no mirror is readable.
#[derive(Debug, Default)]
pub struct Unreadable(Mutex<Marks>);

#[derive(Debug, Default)]
struct Marks {
    slots: HashMap<(Side, Slot), Timestamp>,
    begun: PerSide<Begun>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Begun {
    /// No marker of this process is in the stream yet.
    #[default]
    Unknown,
    /// The stream must pass this.
    Until(Timestamp),
    /// It has.
    Level,
}

impl Unreadable {
    /// `authority`'s stream has missed changes: no mirror of it is readable until [`Self::begin`].
    pub fn forget(&self, authority: Side) {
        *self.0.lock().begun.get_mut(authority) = Begun::Unknown;
    }

    /// A marker of this process stands in `authority`'s stream at `time`.
    pub fn begin(&self, authority: Side, time: Timestamp) {
        *self.0.lock().begun.get_mut(authority) = Begun::Until(time);
    }

    /// `authority` acknowledged a write at `time` that the mirror may not have.
    pub fn mark(&self, authority: Side, slots: &SlotSet, time: Timestamp) {
        let mut marks = self.0.lock();
        for slot in (0..crate::model::slots::SLOTS).filter_map(Slot::from_number) {
            if slots.contains(slot) {
                let mark = marks.slots.entry((authority, slot)).or_insert(time);
                *mark = (*mark).max(time);
            }
        }
    }

    /// Whether the mirror of `authority` has every acknowledged write of `slots`.
    #[must_use]
    pub fn is_current(&self, authority: Side, slots: &SlotSet, frontier: &Frontier) -> bool {
        let mut marks = self.0.lock();
        match *marks.begun.get(authority) {
            Begun::Unknown => return false,
            Begun::Until(time) if !frontier.has_passed(time) => return false,
            Begun::Until(_) => *marks.begun.get_mut(authority) = Begun::Level,
            Begun::Level => {}
        }
        if marks.slots.is_empty() {
            return true;
        }
        marks.slots.retain(|(side, _), time| *side != authority || !frontier.has_passed(*time));
        !marks.slots.keys().any(|(side, slot)| *side == authority && slots.contains(*slot))
    }
}

/// Leaves a failing mirror alone: the streams make up for it.
#[derive(Debug, Default)]
pub struct Breaker(Mutex<BreakerState>);

#[derive(Debug, Default)]
struct BreakerState {
    failures: u32,
    closed_again_at: Duration,
}

/// What a write may do about a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attempt {
    /// Bring it up to date.
    Now,
    /// Try whether it answers again, while nobody waits.
    Trial,
    /// Leave it alone.
    Not,
}

const FAILURES_TO_OPEN: u32 = 5;
const OPEN_FOR: Duration = Duration::from_secs(1);

impl Breaker {
    /// Whether the mirror may be tried at `now`.
    #[must_use]
    pub fn allows(&self, now: Duration) -> bool {
        let state = self.0.lock();
        state.failures < FAILURES_TO_OPEN || now >= state.closed_again_at
    }

    /// What a write may do at `now`. Of a mirror that has failed, one at a time tries whether it is back.
    #[must_use]
    pub fn attempt(&self, now: Duration) -> Attempt {
        let mut state = self.0.lock();
        if state.failures < FAILURES_TO_OPEN {
            return Attempt::Now;
        }
        if now < state.closed_again_at {
            return Attempt::Not;
        }
        state.closed_again_at = now + OPEN_FOR;
        Attempt::Trial
    }

    /// It hangs, or cannot be there: nobody waits for it before a trial has met it again.
    pub fn open(&self, now: Duration) {
        let mut state = self.0.lock();
        if state.failures < FAILURES_TO_OPEN {
            (state.failures, state.closed_again_at) = (FAILURES_TO_OPEN, now + OPEN_FOR);
        }
    }

    /// How an attempt ended.
    pub fn note(&self, worked: bool, now: Duration) {
        let mut state = self.0.lock();
        if worked {
            state.failures = 0;
        } else {
            state.failures = state.failures.saturating_add(1);
            state.closed_again_at = now + OPEN_FOR;
        }
    }
}

/// The migrations that this process works on, by name.
#[derive(Default)]
pub struct Registry {
    active: ArcSwap<HashMap<Arc<str>, Arc<Active>>>,
    /// What the process has written beside them.
    pub process: ProcessWrites,
    /// Changes of collections and indexes.
    pub ddl: Arc<Ddl>,
    /// Pipelines over several collections.
    pub pipelines: Pipelines,
    /// Reads of some migration are handed over: one look tells that there is nothing to do.
    samples: AtomicBool,
    /// Its open transactions, once there is a data plane.
    pub transactions: OnceLock<Arc<dyn Transactions>>,
}

impl Registry {
    /// The migration of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Active>> {
        self.active.load().get(name).cloned()
    }

    /// Whether reads of any migration are sampled, or repeated.
    #[must_use]
    pub fn samples(&self) -> bool {
        self.samples.load(Ordering::Relaxed)
    }

    /// Sets the share of `active`'s reads that are sampled, in tenths of a percent.
    pub fn set_shadowing(&self, active: &Active, tenths: u32) {
        active.shadow.set_tenths(tenths);
        self.note_sampling(active);
    }

    /// Sets how often `active`'s reads of old are repeated on new, in tenths.
    pub fn set_rehearsing(&self, active: &Active, tenths: u32) {
        active.rehearsal.set_tenths(tenths);
        self.note_sampling(active);
    }

    fn note_sampling(&self, changed: &Active) {
        let samples = |active: &Active| active.shadow.tenths() > 0 || active.rehearsal.tenths() > 0;
        let any = samples(changed) || self.active.load().values().any(|active| samples(active));
        self.samples.store(any, Ordering::Relaxed);
    }

    /// Adds or replaces one.
    pub fn put(&self, name: &Arc<str>, active: &Arc<Active>) {
        self.active.rcu(|map| {
            let mut map = HashMap::clone(map);
            map.insert(Arc::clone(name), Arc::clone(active));
            map
        });
    }

    /// Forgets one.
    pub fn remove(&self, name: &str) {
        self.active.rcu(|map| {
            let mut map = HashMap::clone(map);
            map.remove(name);
            map
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breaker_opens_after_failures_and_closes_with_time_or_success() {
        let breaker = Breaker::default();
        for _ in 0..FAILURES_TO_OPEN {
            assert!(breaker.allows(Duration::ZERO));
            breaker.note(false, Duration::ZERO);
        }
        assert!(!breaker.allows(Duration::ZERO));
        assert!(breaker.allows(OPEN_FOR));
        breaker.note(true, OPEN_FOR);
        assert!(breaker.allows(OPEN_FOR));
    }

    #[test]
    fn one_write_at_a_time_tries_whether_a_mirror_is_back() {
        let breaker = Breaker::default();
        assert_eq!(breaker.attempt(Duration::ZERO), Attempt::Now);
        (0..FAILURES_TO_OPEN).for_each(|_| breaker.note(false, Duration::ZERO));
        assert_eq!(breaker.attempt(Duration::ZERO), Attempt::Not);
        assert_eq!(breaker.attempt(OPEN_FOR), Attempt::Trial);
        assert_eq!(breaker.attempt(OPEN_FOR), Attempt::Not);
        assert!(!breaker.allows(OPEN_FOR), "nor is it read while it is tried");
        breaker.note(true, OPEN_FOR);
        assert_eq!(breaker.attempt(OPEN_FOR), Attempt::Now);
    }

    #[test]
    fn a_mark_lasts_until_the_frontier_has_passed() {
        let (unreadable, frontier) = (Unreadable::default(), Frontier::default());
        let at = |increment| Timestamp { time: 1, increment };
        let current = |side| unreadable.is_current(side, &SlotSet::ALL, &frontier);
        assert!(!current(Side::Old), "nothing is known at the beginning");
        unreadable.begin(Side::Old, at(3));
        assert!(!current(Side::Old));
        frontier.advance(at(3), at(3), Duration::ZERO);
        assert!(current(Side::Old));
        unreadable.mark(Side::Old, &SlotSet::percent(1), at(5));
        assert!(!current(Side::Old));
        frontier.advance(at(5), at(5), Duration::ZERO);
        assert!(current(Side::Old));
    }
}
