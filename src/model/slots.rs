//! Slots: the unit in which authority and reads move.

use super::percent::Percent;

/// How many slots there are. Part of the stored format.
pub const SLOTS: u16 = 1024;
/// How many of them can be for ranges of keys: with so many, a tenth of a percent of the others is a slot still.
pub const MOST_RANGES: u16 = 24;
const WORDS: usize = SLOTS as usize / 64;

/// One of the [`SLOTS`] slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u16);

impl Slot {
    /// The slot of a hash, where no slot is for a range.
    #[must_use]
    pub fn of_hash(hash: u64) -> Self {
        Layout::default().of_hash(hash)
    }

    /// Its number, from 0.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The slot with this number, if there is one.
    #[must_use]
    pub const fn from_number(number: u16) -> Option<Self> {
        if number < SLOTS { Some(Self(number)) } else { None }
    }
}

/// What the slots of a migration are for: the first ones for hashes, and each of the last ones for a range of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Layout {
    ranges: u16,
}

impl Layout {
    /// Every slot is for hashes.
    pub const NO_RANGES: Self = Self { ranges: 0 };

    /// With as many ranges; `None` for more than [`MOST_RANGES`].
    #[must_use]
    pub fn with_ranges(ranges: usize) -> Option<Self> {
        let ranges = u16::try_from(ranges).ok().filter(|ranges| *ranges <= MOST_RANGES)?;
        Some(Self { ranges })
    }

    /// How many slots are for hashes.
    #[must_use]
    pub const fn hashed(self) -> u16 {
        SLOTS - self.ranges
    }

    /// The slot of a hash.
    #[must_use]
    pub fn of_hash(self, hash: u64) -> Slot {
        #[expect(clippy::cast_possible_truncation, reason = "below SLOTS")]
        Slot((hash % u64::from(self.hashed())) as u16)
    }

    /// The slot of a range, by its number from 0.
    #[must_use]
    pub fn of_range(self, number: usize) -> Option<Slot> {
        let number = u16::try_from(number).ok().filter(|number| *number < self.ranges)?;
        Some(Slot(self.hashed() + number))
    }

    /// The first `percent` of the slots for hashes, rounded down, and no range; 100 is every slot, ranges too. A tenth of
    /// a percent is a slot at least. Raising the percentage only adds slots.
    #[must_use]
    pub fn percent(self, percent: Percent) -> SlotSet {
        if percent == Percent::ALL {
            return SlotSet::ALL;
        }
        let count = u32::from(percent.tenths()) * u32::from(self.hashed()) / 1000;
        (0..self.hashed()).filter(|number| u32::from(*number) < count).map(Slot).collect()
    }

    /// The smallest percentage that holds `slots` of those for hashes.
    #[must_use]
    pub fn share(self, slots: u32) -> Percent {
        Percent::of_tenths((slots * 1000).div_ceil(u32::from(self.hashed())))
    }

    /// Those of `set` that are for hashes.
    #[must_use]
    pub fn hashed_of(self, set: &SlotSet) -> SlotSet {
        (0..self.hashed()).map(Slot).filter(|slot| set.contains(*slot)).collect()
    }
}

/// A set of slots.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SlotSet([u64; WORDS]);

impl SlotSet {
    /// No slot.
    pub const EMPTY: Self = Self([0; WORDS]);
    /// Every slot.
    pub const ALL: Self = Self([u64::MAX; WORDS]);

    /// The set of a percentage where no slot is for a range.
    #[must_use]
    pub fn percent(percent: impl Into<Percent>) -> Self {
        Layout::default().percent(percent.into())
    }

    /// Whether `slot` is in it.
    #[must_use]
    pub const fn contains(&self, slot: Slot) -> bool {
        self.0[slot.0 as usize / 64] & (1 << (slot.0 % 64)) != 0
    }

    /// Adds `slot`.
    pub const fn insert(&mut self, slot: Slot) {
        self.0[slot.0 as usize / 64] |= 1 << (slot.0 % 64);
    }

    /// How many slots are in it.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The one with the highest number.
    #[must_use]
    pub fn last(&self) -> Option<Slot> {
        (0..SLOTS).rev().map(Slot).find(|slot| self.contains(*slot))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }

    /// Those in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a & b)
    }

    /// Those in either.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a | b)
    }

    /// Those here that are not in `other`.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a & !b)
    }

    /// Whether any slot is in both.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        !self.and(other).is_empty()
    }

    fn zip(&self, other: &Self, op: impl Fn(u64, u64) -> u64) -> Self {
        Self(std::array::from_fn(|word| op(self.0[word], other.0[word])))
    }

    /// The smallest percentage that holds as many slots.
    #[must_use]
    pub fn as_percent(&self) -> Percent {
        Layout::default().share(self.len())
    }

    /// The stored form: 128 bytes, little-endian words.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// From the stored form; `None` when it is not 128 bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != WORDS * 8 {
            return None;
        }
        let mut set = Self::EMPTY;
        for (word, chunk) in set.0.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().ok()?);
        }
        Some(set)
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        let mut set = Self::EMPTY;
        for slot in slots {
            set.insert(slot);
        }
        set
    }
}

impl std::fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} slots", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn percentages_only_add_slots_and_read_back() {
        for percent in 0..100 {
            let (lower, upper) = (SlotSet::percent(percent), SlotSet::percent(percent + 1));
            assert!(lower.minus(&upper).is_empty());
            assert_eq!(lower.as_percent(), percent);
        }
        assert_eq!(SlotSet::percent(100), SlotSet::ALL);
    }

    #[test]
    fn ranges_take_slots_from_the_end_and_no_percentage_below_100_has_one() {
        assert_eq!(Layout::with_ranges(usize::from(MOST_RANGES) + 1), None);
        for ranges in [0, 1, 7, MOST_RANGES] {
            let layout = Layout::with_ranges(ranges.into()).unwrap();
            let of_ranges: Vec<u16> =
                (0..).map_while(|number| layout.of_range(number)).map(Slot::number).collect();
            assert_eq!(of_ranges, (SLOTS - ranges..SLOTS).collect::<Vec<_>>());
            for tenths in 0..1000 {
                let of = |tenths| layout.percent(Percent::of_tenths(tenths));
                let (lower, upper) = (of(tenths), of(tenths + 1));
                assert!(lower.minus(&upper).is_empty() && upper.len() > lower.len());
                assert_eq!(lower, layout.hashed_of(&lower));
                let shown = layout.share(lower.len());
                assert_eq!(layout.percent(shown), lower);
            }
            assert_eq!(layout.percent(Percent::ALL), SlotSet::ALL);
        }
    }

    proptest! {
        #[test]
        fn a_hash_never_falls_into_a_range(hash: u64, ranges in 0..=usize::from(MOST_RANGES)) {
            let layout = Layout::with_ranges(ranges).unwrap();
            prop_assert!(layout.of_hash(hash).number() < layout.hashed());
        }

        #[test]
        fn stored_form_round_trips(numbers in proptest::collection::vec(0..SLOTS, 0..200)) {
            let set: SlotSet = numbers.iter().map(|n| Slot(*n)).collect();
            prop_assert_eq!(SlotSet::from_bytes(&set.to_bytes()), Some(set));
            prop_assert!(numbers.iter().all(|n| set.contains(Slot(*n))));
        }
    }
}
