//! What is asked of one migration, by shape, and how long each cluster takes for it.
//!
//! Written by the data plane at every operation and read by whoever judges the clusters. One load of a table and a few
//! relaxed additions for each operation; nothing is locked but when a shape is seen for the first time. A slot of a
//! window that is begun anew while others write to it may lose or keep a few of their operations: what is measured
//! here is for judging latencies, not for proving anything.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::model::side::{PerSide, Side};
use crate::policy::latency::{BUCKETS, Measured, bucket};
use crate::policy::shape::Asked;

/// Shapes that are told apart; the others share one place.
pub const MOST_SHAPES: usize = 256;
/// One slot of a window.
pub const SLOT: Duration = Duration::from_secs(10);
/// A window.
pub const WINDOW: Duration = Duration::from_secs(300);
/// Its slots.
const SLOTS: usize = 30;
/// The hash of the place that the others share.
pub const OTHER: u64 = 0;
/// The hash of what is beside all shapes.
const BESIDES: u64 = 1;

/// How long old took for a shape before anything was on new.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Operations that it is made of.
    pub samples: i64,
    /// Milliseconds that half of them took at most.
    pub p50_ms: f64,
    /// Milliseconds that 95 % of them took at most.
    pub p95_ms: f64,
    /// Milliseconds that 99 % of them took at most.
    pub p99_ms: f64,
}

impl Baseline {
    /// Of what was measured; `None` without samples.
    #[must_use]
    pub fn of(measured: &Measured) -> Option<Self> {
        Some(Self {
            samples: i64::try_from(measured.samples()).unwrap_or(i64::MAX),
            p50_ms: measured.quantile_ms(0.5)?,
            p95_ms: measured.quantile_ms(0.95)?,
            p99_ms: measured.quantile_ms(0.99)?,
        })
    }
}

/// One shape, as both clusters serve it.
#[derive(Debug)]
pub struct Watched {
    /// Of namespace and shape; [`OTHER`] for those that are not told apart.
    pub hash: u64,
    /// `database.collection`.
    pub namespace: String,
    /// In words.
    pub text: String,
    sides: PerSide<OnceLock<Box<Window>>>,
    baseline: Mutex<Option<Baseline>>,
}

impl Watched {
    fn new(hash: u64, namespace: &str, text: String) -> Arc<Self> {
        let (sides, baseline) = Default::default();
        Arc::new(Self { hash, namespace: namespace.to_owned(), text, sides, baseline })
    }

    /// What `side` did for it in the last `span` before `now`, and what is in one slot with the oldest of that.
    #[must_use]
    pub fn window(&self, side: Side, now: Duration, span: Duration) -> Measured {
        self.window_from(side, now, span, Duration::ZERO)
    }

    /// The same, without the slots before the one in which `from` lies.
    #[must_use]
    pub fn window_from(&self, side: Side, now: Duration, span: Duration, from: Duration) -> Measured {
        self.sides.get(side).get().map_or_else(Measured::default, |window| window.last(now, span, from))
    }

    /// Operations that `side` has ever done for it, and those of them that failed.
    #[must_use]
    pub fn total(&self, side: Side) -> (u64, u64) {
        self.sides
            .get(side)
            .get()
            .map_or((0, 0), |window| (window.done.load(Relaxed), window.errors.load(Relaxed)))
    }

    /// How long old took before anything was on new, if that was ever measured.
    #[must_use]
    pub fn baseline(&self) -> Option<Baseline> {
        *self.baseline.lock()
    }

    fn record(&self, side: Side, took: Duration, failed: bool, now: Duration) {
        self.sides.get(side).get_or_init(Box::default).record(took, failed, now);
    }
}

struct Window {
    slots: [Slot; SLOTS],
    done: AtomicU64,
    errors: AtomicU64,
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} operations", self.done.load(Relaxed))
    }
}

struct Slot {
    /// Its number since the clock began, plus one; 0 is none yet.
    number: AtomicU64,
    counts: [AtomicU32; BUCKETS],
    errors: AtomicU32,
}

impl Default for Window {
    fn default() -> Self {
        let counts = || std::array::from_fn(|_| AtomicU32::new(0));
        let slot = |_| Slot { number: AtomicU64::new(0), counts: counts(), errors: AtomicU32::new(0) };
        Self { slots: std::array::from_fn(slot), done: AtomicU64::new(0), errors: AtomicU64::new(0) }
    }
}

fn number(now: Duration) -> u64 {
    now.as_secs() / SLOT.as_secs() + 1
}

/// How many slots a `span` meets that ends anywhere in one, but for the longest.
fn slots_of(span: Duration) -> u64 {
    (span.as_secs().div_ceil(SLOT.as_secs()) + 1).min(SLOTS as u64)
}

/// Whether what was done `at` that time is in the window of `span` before `now`.
#[must_use]
pub fn is_in_window(at: Duration, now: Duration, span: Duration) -> bool {
    number(at) + slots_of(span) > number(now)
}

impl Window {
    #[expect(clippy::cast_possible_truncation, reason = "below SLOTS")]
    fn record(&self, took: Duration, failed: bool, now: Duration) {
        let number = number(now);
        let slot = &self.slots[(number % SLOTS as u64) as usize];
        let found = slot.number.load(Relaxed);
        if found < number && slot.number.compare_exchange(found, number, Relaxed, Relaxed).is_ok() {
            slot.errors.store(0, Relaxed);
            slot.counts.iter().for_each(|count| count.store(0, Relaxed));
        }
        self.done.fetch_add(1, Relaxed);
        if failed {
            self.errors.fetch_add(1, Relaxed);
            slot.errors.fetch_add(1, Relaxed);
        } else {
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            slot.counts[bucket(micros)].fetch_add(1, Relaxed);
        }
    }

    fn last(&self, now: Duration, span: Duration, from: Duration) -> Measured {
        let (newest, oldest) = (number(now), number(from));
        let many = slots_of(span);
        let mut measured = Measured::default();
        for slot in &self.slots {
            let number = slot.number.load(Relaxed);
            if number > newest || number + many <= newest || number < oldest {
                continue;
            }
            measured.errors += u64::from(slot.errors.load(Relaxed));
            for (sum, count) in measured.counts.iter_mut().zip(&slot.counts) {
                *sum += u64::from(count.load(Relaxed));
            }
        }
        measured
    }
}

/// The shapes of one migration.
#[derive(Debug)]
pub struct Shapes {
    table: ArcSwap<HashMap<u64, Arc<Watched>>>,
    adding: Mutex<()>,
    other: Arc<Watched>,
    /// What has no shape: further batches of cursors, and statements in transactions.
    besides: Arc<Watched>,
}

impl Default for Shapes {
    fn default() -> Self {
        let (table, adding) = Default::default();
        let text = "(all others)".to_owned();
        let besides = Watched::new(BESIDES, "", "(cursors and transactions)".to_owned());
        Self { table, adding, other: Watched::new(OTHER, "", text), besides }
    }
}

impl Shapes {
    /// Notes that `side` took so long for a command, or failed in a way that speaks about the cluster.
    pub fn record(&self, asked: &Asked<'_>, side: Side, took: Duration, failed: bool, now: Duration) {
        self.of(asked).record(side, took, failed, now);
    }

    /// Notes what has no shape: how long it took says nothing, only whether it failed.
    pub fn note_besides(&self, side: Side, failed: bool, now: Duration) {
        self.besides.record(side, Duration::ZERO, failed, now);
    }

    /// What has no shape.
    #[must_use]
    pub const fn besides(&self) -> &Arc<Watched> {
        &self.besides
    }

    /// The place of a command's shape.
    #[must_use]
    pub fn of(&self, asked: &Asked<'_>) -> Arc<Watched> {
        let hash = asked.hash();
        if let Some(known) = self.table.load().get(&hash) {
            return Arc::clone(known);
        }
        let _one_at_a_time = self.adding.lock();
        let table = self.table.load_full();
        match table.get(&hash) {
            Some(known) => Arc::clone(known),
            None if table.len() >= MOST_SHAPES || hash == OTHER => Arc::clone(&self.other),
            None => {
                let watched = Watched::new(hash, asked.namespace, asked.text());
                self.put(&table, &watched);
                watched
            }
        }
    }

    fn put(&self, table: &HashMap<u64, Arc<Watched>>, watched: &Arc<Watched>) {
        let mut table = table.clone();
        table.insert(watched.hash, Arc::clone(watched));
        self.table.store(Arc::new(table));
    }

    /// All that are known, by namespace and text; the place of the others last, once something is there.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Watched>> {
        let mut all: Vec<_> = self.table.load().values().cloned().collect();
        all.sort_by(|a, b| (&a.namespace, &a.text, a.hash).cmp(&(&b.namespace, &b.text, b.hash)));
        if Side::BOTH.into_iter().any(|side| self.other.total(side).0 > 0) {
            all.push(Arc::clone(&self.other));
        }
        all
    }

    /// Shapes that are told apart.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.table.load().len() as u64
    }

    /// Operations that the place of the others took.
    #[must_use]
    pub fn not_told_apart(&self) -> u64 {
        Side::BOTH.into_iter().map(|side| self.other.total(side).0).sum()
    }

    /// Takes what old did lately for the baseline. To be called as long as nothing is on new.
    pub fn note_baselines(&self, now: Duration) {
        for watched in self.all() {
            let measured = watched.window(Side::Old, now, WINDOW);
            if let Some(baseline) = Baseline::of(&measured) {
                *watched.baseline.lock() = Some(baseline);
            }
        }
    }

    /// Once something is on new: where less than `enough` was known of old before that, what old does beside new is
    /// taken, or what it did for `shadowed` reads, as long as that is more.
    pub fn note_missing_baselines(&self, shadowed: &Self, now: Duration, enough: u64) {
        let samples = |baseline: &Baseline| baseline.samples.unsigned_abs();
        let shadowed = shadowed.all();
        for watched in self.all() {
            let known = watched.baseline().as_ref().map_or(0, samples);
            if known >= enough {
                continue;
            }
            let of = |watched: &Watched| Baseline::of(&watched.window(Side::Old, now, WINDOW));
            // What applications have waited for goes before what nobody waits for, if there is enough of it.
            let beside = of(watched.as_ref());
            let is_enough = beside.as_ref().is_some_and(|baseline| samples(baseline) >= enough);
            let same = shadowed.iter().find(|other| !is_enough && other.hash == watched.hash);
            let most = [beside, same.and_then(|other| of(other))].into_iter().flatten().max_by_key(samples);
            if let Some(baseline) = most.filter(|baseline| samples(baseline) > known) {
                *watched.baseline.lock() = Some(baseline);
            }
        }
    }

    /// Baselines as they are to be stored after what is `stored` already: nothing of that is lost but for what was
    /// measured anew.
    #[must_use]
    pub fn baselines_after(&self, stored: &[StoredBaseline]) -> Vec<StoredBaseline> {
        self.learn(stored);
        let mut all = self.baselines();
        let is_left = |known: &&StoredBaseline| !all.iter().any(|one| one.shape == known.shape);
        let left: Vec<_> = stored.iter().filter(is_left).cloned().collect();
        all.extend(left);
        all.truncate(MOST_SHAPES + 1);
        all
    }

    /// Baselines as they are stored: namespace, text, and hash of each shape.
    #[must_use]
    pub fn baselines(&self) -> Vec<StoredBaseline> {
        let stored = |watched: Arc<Watched>| {
            let (namespace, text) = (watched.namespace.clone(), watched.text.clone());
            let shape = format!("{:016x}", watched.hash);
            watched.baseline().map(|baseline| StoredBaseline { shape, namespace, text, baseline })
        };
        self.all().into_iter().filter_map(stored).collect()
    }

    /// Takes up what another process measured; what this one measured itself stays.
    pub fn learn(&self, stored: &[StoredBaseline]) {
        let _one_at_a_time = self.adding.lock();
        for known in stored {
            let Ok(hash) = u64::from_str_radix(&known.shape, 16) else { continue };
            let table = self.table.load_full();
            let watched = match table.get(&hash) {
                Some(watched) => Arc::clone(watched),
                None if hash == OTHER => Arc::clone(&self.other),
                None if table.len() >= MOST_SHAPES => continue,
                None => {
                    let watched = Watched::new(hash, &known.namespace, known.text.clone());
                    self.put(&table, &watched);
                    watched
                }
            };
            watched.baseline.lock().get_or_insert(known.baseline);
        }
    }
}

/// A baseline, as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredBaseline {
    /// The hash, 16 hexadecimal digits.
    pub shape: String,
    /// `database.collection`.
    pub namespace: String,
    /// In words.
    pub text: String,
    /// How long old took.
    #[serde(flatten)]
    pub baseline: Baseline,
}

#[cfg(test)]
#[path = "shapes_tests.rs"]
mod tests;
