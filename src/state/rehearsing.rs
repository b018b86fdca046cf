//! Reads that old served, to be run on new as well, some times over: a rehearsal of the load to come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use xxhash_rust::xxh3::xxh3_64;

use super::handed_over::{Queue, Served};
use super::shapes::Shapes;

/// The largest factor, in tenths.
pub const MOST_TENTHS: u32 = 50;

/// The switch, the queue and what is counted, for one migration.
#[derive(Default)]
pub struct Rehearsal {
    tenths: AtomicU32,
    /// The reads on their way.
    pub queue: Queue,
    /// Reads that new answered, ever.
    pub reads: AtomicU64,
    /// Reads that new did not answer in time, or for a reason of its own.
    pub errors: AtomicU64,
    /// Reads that are never run twice, since they wait, write or ask for other collections too.
    pub skipped: AtomicU64,
    /// Repetitions that came too late.
    pub late: AtomicU64,
    shapes: ArcSwap<Shapes>,
}

impl Rehearsal {
    /// How often a read of old runs on new, in tenths; 0 while there is no rehearsal.
    #[must_use]
    pub fn tenths(&self) -> u32 {
        self.tenths.load(Ordering::Relaxed)
    }

    /// Sets how often, in tenths.
    pub fn set_tenths(&self, tenths: u32) {
        self.tenths.store(tenths.min(MOST_TENTHS), Ordering::Relaxed);
    }

    /// Forgets the latencies of the rehearsal before.
    pub fn begin_anew(&self) {
        self.shapes.store(Arc::default());
    }

    /// How long both clusters took, by shape: old for what the application asked, new for the repetitions.
    #[must_use]
    pub fn shapes(&self) -> Arc<Shapes> {
        self.shapes.load_full()
    }

    /// How often `bytes`, which stand for one operation, are to run on new. Never more for a smaller factor.
    #[must_use]
    pub fn copies(&self, bytes: &[u8]) -> u32 {
        let tenths = self.tenths();
        if tenths == 0 {
            return 0;
        }
        let one_more = xxh3_64(bytes) % 10 < u64::from(tenths % 10);
        tenths / 10 + u32::from(one_more)
    }

    /// Takes a read that was served, if there is room for it. Never waits.
    pub fn give(&self, served: &Served<'_>) {
        if !self.queue.give(served, false) {
            self.skipped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reads and repetitions for which there was no room or time.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.queue.dropped.load(Ordering::Relaxed) + self.late.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_is_met_on_the_average() {
        let rehearsal = Rehearsal::default();
        for tenths in [0, 1, 5, 10, 17, 50] {
            rehearsal.set_tenths(tenths);
            let copies: u32 = (0..20_000_u32).map(|number| rehearsal.copies(&number.to_le_bytes())).sum();
            let wanted = tenths * 2_000;
            assert!(copies.abs_diff(wanted) <= wanted / 20, "{tenths}: {copies} instead of {wanted}");
        }
        rehearsal.set_tenths(1_000);
        assert_eq!(rehearsal.copies(b"read"), 5);
    }
}
