//! The sample of reads that run on the other cluster too, to be compared.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_64;

use super::handed_over::{Queue, Served};
use super::shapes::Shapes;
use crate::policy::shadow::eligible::Reason;

/// The switch, the queue and what is counted, for one migration.
#[derive(Default)]
pub struct Shadow {
    tenths: AtomicU32,
    /// The reads on their way.
    pub queue: Queue,
    /// Reads that were in the sample.
    pub sampled: AtomicU64,
    /// How long both clusters took for those that came in one batch, by shape, and which the other one failed.
    pub shapes: Shapes,
    skipped: [AtomicU64; Reason::ALL.len()],
}

impl Shadow {
    /// The share of reads that are in the sample, in tenths of a percent.
    #[must_use]
    pub fn tenths(&self) -> u32 {
        self.tenths.load(Ordering::Relaxed)
    }

    /// Sets the share, in tenths of a percent.
    pub fn set_tenths(&self, tenths: u32) {
        self.tenths.store(tenths.min(1000), Ordering::Relaxed);
    }

    /// Whether the operation `message` is in the sample. By its bytes, among them the number that its driver gave
    /// it: the same operation is in every larger sample too.
    #[must_use]
    pub fn samples(&self, message: &[u8]) -> bool {
        let tenths = self.tenths();
        tenths > 0 && xxh3_64(message) % 1000 < u64::from(tenths)
    }

    /// Takes a read that was served, if there is room for it. Never waits.
    pub fn give(&self, served: &Served<'_>) {
        self.sampled.fetch_add(1, Ordering::Relaxed);
        if !self.queue.give(served, true) {
            self.skip(Reason::TooLarge);
        }
    }

    /// Counts a read that is not run.
    pub fn skip(&self, reason: Reason) {
        self.skipped[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many were not run, and why.
    #[must_use]
    pub fn skipped(&self, reason: Reason) -> u64 {
        self.skipped[reason as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::handed_over::MOST_REQUEST;
    use super::*;
    use crate::model::side::Side;

    #[test]
    fn a_larger_sample_holds_every_smaller_one() {
        let shadow = Shadow::default();
        let count = |tenths: u32| -> Vec<u32> {
            shadow.set_tenths(tenths);
            (0..20_000_u32).filter(|number| shadow.samples(&number.to_le_bytes())).collect()
        };
        assert_eq!(count(0), [0; 0]);
        let (few, more) = (count(100), count(101));
        assert!((1800..2200).contains(&few.len()), "{}", few.len());
        assert!(more.len() > few.len() && few.iter().all(|number| more.contains(number)));
        assert_eq!(count(1000).len(), 20_000);
    }

    #[test]
    fn what_is_too_large_is_counted_with_its_reason() {
        let shadow = Shadow::default();
        let large = vec![0; MOST_REQUEST + 1];
        let (side, zero) = (Side::Old, Duration::ZERO);
        shadow.give(&Served { database: "shop", body: &large, reply: b"", side, took: zero, at: zero });
        assert_eq!(shadow.skipped(Reason::TooLarge), 1);
        assert_eq!(shadow.sampled.load(Ordering::Relaxed), 1);
    }
}
