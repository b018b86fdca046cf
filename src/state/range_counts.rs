//! How many reads and writes that name their key fell into each range of keys, by the cluster they went to.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::side::{PerSide, Side};
use crate::model::slots::{Layout, MOST_RANGES, Slot};

/// What was counted of one range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Reads.
    pub reads: PerSide<u64>,
    /// Documents that acknowledged writes have named.
    pub writes: PerSide<u64>,
}

#[derive(Debug, Default)]
struct Counts {
    reads: PerSide<AtomicU64>,
    writes: PerSide<AtomicU64>,
}

/// The counts of a migration since the process began.
#[derive(Debug, Default)]
pub struct RangeCounts([Counts; MOST_RANGES as usize]);

impl RangeCounts {
    fn of(&self, layout: Layout, slot: Slot) -> Option<&Counts> {
        self.0.get(usize::from(slot.number().checked_sub(layout.hashed())?))
    }

    /// A read of `slot` goes to `side`; slots of no range are left out.
    pub fn read(&self, layout: Layout, slot: Slot, side: Side) {
        if let Some(counts) = self.of(layout, slot) {
            counts.reads.get(side).fetch_add(1, Ordering::Relaxed);
        }
    }

    /// `side` has acknowledged a write of a document of `slot`; slots of no range are left out.
    pub fn written(&self, layout: Layout, slot: Slot, side: Side) {
        if let Some(counts) = self.of(layout, slot) {
            counts.writes.get(side).fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was counted of a range, by its slot.
    #[must_use]
    pub fn counted(&self, layout: Layout, slot: Slot) -> Counted {
        let Some(counts) = self.of(layout, slot) else { return Counted::default() };
        let load = |of: &PerSide<AtomicU64>| PerSide::from_fn(|side| of.get(side).load(Ordering::Relaxed));
        Counted { reads: load(&counts.reads), writes: load(&counts.writes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_ranges_are_counted_and_no_others() {
        let counts = RangeCounts::default();
        let layout = Layout::with_ranges(2).unwrap();
        let slot = |number| layout.of_range(number).unwrap();
        counts.read(layout, slot(1), Side::New);
        counts.written(layout, slot(1), Side::Old);
        counts.written(layout, slot(1), Side::Old);
        let hashed = Slot::from_number(0).unwrap();
        counts.read(layout, hashed, Side::Old);
        counts.written(Layout::NO_RANGES, slot(1), Side::Old);
        let counted = counts.counted(layout, slot(1));
        assert_eq!((counted.reads.new, counted.reads.old), (1, 0));
        assert_eq!((counted.writes.new, counted.writes.old), (0, 2));
        assert_eq!(counts.counted(layout, slot(0)), Counted::default());
        assert_eq!(counts.counted(layout, hashed), Counted::default());
    }
}
