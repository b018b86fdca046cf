//! Pins: slots that stay where an operator has put them, whatever percentages say.
//!
//! A pin names a key, and holds the slot of that key: the document of that `_id`, or all of a tenant where that is the
//! route key, and with it whatever else lies in the same slot, about a thousandth of every collection. Or it names a range
//! of keys, which is a slot of its own, with nothing beside it.

use super::key_ranges::KeyRanges;
use crate::model::key::Key;
use crate::model::percent::Percent;
use crate::model::side::Side;
use crate::model::slots::{Layout, Slot, SlotSet};

/// How many keys can be pinned in one migration: each is stored with its routing.
pub const MOST: usize = 256;
/// The most bytes of a key.
pub const LARGEST_KEY: usize = 512;

/// What a pin names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A key.
    Key(Key),
    /// A range, by its name.
    Range(String),
}

/// What can be held on one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    name: Name,
    slot: Slot,
}

impl Held {
    /// A key.
    ///
    /// # Errors
    /// The name of the range that it falls into, which is pinned as a whole.
    pub fn key(key: Key, ranges: &KeyRanges) -> Result<Self, String> {
        match ranges.with(&key) {
            Some(range) => Err(range.name.clone()),
            None => Ok(Self { slot: ranges.slot_of(&key), name: Name::Key(key) }),
        }
    }

    /// A range, if there is one of that name.
    #[must_use]
    pub fn range(name: &str, ranges: &KeyRanges) -> Option<Self> {
        Some(Self { slot: ranges.named(name)?, name: Name::Range(name.to_owned()) })
    }

    /// What it is called by.
    #[must_use]
    pub const fn name(&self) -> &Name {
        &self.name
    }

    /// Where it lies.
    #[must_use]
    pub const fn slot(&self) -> Slot {
        self.slot
    }
}

/// A key or a range whose slot is held on one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// What is held.
    pub held: Held,
    /// Which cluster.
    pub to: Side,
    /// Since when; Unix milliseconds.
    pub since: i64,
}

/// All pins of a migration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins(Vec<Pin>);

/// Why keys cannot be pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// A key has too many bytes.
    TooLarge,
    /// There would be so many.
    TooMany(usize),
    /// The slot of the first is held on the other cluster, by the second.
    Shared(Box<[Held; 2]>),
}

impl Pins {
    /// Those.
    #[must_use]
    pub const fn new(pins: Vec<Pin>) -> Self {
        Self(pins)
    }

    /// Each of them, in the order in which they were set.
    #[must_use]
    pub fn all(&self) -> &[Pin] {
        &self.0
    }

    /// The slots that are held.
    #[must_use]
    pub fn slots(&self) -> SlotSet {
        slots_of(self.0.iter().map(|pin| &pin.held))
    }

    /// With `all` pinned to `to`, whatever held them before.
    ///
    /// # Errors
    /// [`Refused`]: what is not among them holds one of their slots on the other cluster, or there are too many.
    pub fn with(&self, all: &[Held], to: Side, since: i64) -> Result<Self, Refused> {
        let mut next = self.0.clone();
        for held in all {
            if matches!(&held.name, Name::Key(key) if key.canonical().len() > LARGEST_KEY) {
                return Err(Refused::TooLarge);
            }
            match next.iter_mut().find(|pin| pin.held == *held) {
                Some(pin) if pin.to == to => {}
                Some(pin) => (pin.to, pin.since) = (to, since),
                None => next.push(Pin { held: held.clone(), to, since }),
            }
        }
        if next.len() > MOST {
            return Err(Refused::TooMany(next.len()));
        }
        for held in all {
            if let Some(other) = next.iter().find(|pin| pin.to != to && pin.held.slot == held.slot) {
                return Err(Refused::Shared(Box::new([held.clone(), other.held.clone()])));
            }
        }
        Ok(Self(next))
    }

    /// Without `all`.
    #[must_use]
    pub fn without(&self, all: &[Held]) -> Self {
        Self(self.0.iter().filter(|pin| !all.contains(&pin.held)).cloned().collect())
    }

    /// Those to one cluster.
    #[must_use]
    pub fn only_to(&self, side: Side) -> Self {
        Self(self.0.iter().filter(|pin| pin.to == side).cloned().collect())
    }
}

/// The slots of what is held.
#[must_use]
pub fn slots_of<'a>(all: impl IntoIterator<Item = &'a Held>) -> SlotSet {
    all.into_iter().map(Held::slot).collect()
}

/// What percentages are of: of the slots for hashes that are not pinned. Ranges that are not pinned are on new at 100 %
/// alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shares {
    /// What the slots are for.
    pub layout: Layout,
    /// What they leave where it is.
    pub pinned: SlotSet,
}

impl Shares {
    fn free(&self, percent: Percent) -> SlotSet {
        self.layout.percent(percent).minus(&self.pinned)
    }

    /// What is to be on new at a percentage: pinned slots stay where they are, in `now` or not.
    #[must_use]
    pub fn by_percent(&self, percent: Percent, now: &SlotSet) -> SlotSet {
        self.free(percent).or(&now.and(&self.pinned))
    }

    /// The percentage that `now` shows, pinned slots left aside: the largest of `steps` that would change nothing, else the
    /// smallest that would not. With all that is not pinned it is all.
    #[must_use]
    pub fn share(&self, now: &SlotSet, steps: &[Percent]) -> Percent {
        let free = now.minus(&self.pinned);
        let shows = |percent: &Percent| self.free(*percent) == free;
        if let Some(step) = steps.iter().filter(|step| shows(step)).max() {
            return *step;
        }
        if free == SlotSet::ALL.minus(&self.pinned) {
            return Percent::ALL;
        }
        let hashed = self.layout.hashed_of(&free);
        let reach = hashed.last().map_or(0, |slot| u32::from(slot.number()) + 1);
        // What is no share, as in the middle of a move, is counted.
        let counted = || self.layout.share(hashed.len());
        Some(self.layout.share(reach)).filter(shows).unwrap_or_else(counted)
    }

    /// What is to be on new once `freed` are no longer held: they go where the others of their percentage are.
    #[must_use]
    pub fn released(&self, now: &SlotSet, freed: &SlotSet) -> SlotSet {
        let share = self.share(now, &[]);
        now.minus(freed).or(&self.layout.percent(share).and(freed))
    }
}

/// Whether all of a slot is where its pin says.
#[must_use]
pub fn is_in_force(to: Side, slot: Slot, owned_by_new: &SlotSet, reads_on_new: &SlotSet) -> bool {
    let on_new = to == Side::New;
    owned_by_new.contains(slot) == on_new && reads_on_new.contains(slot) == on_new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::slots::{MOST_RANGES, SLOTS};
    use crate::policy::canonical::key_of;
    use crate::policy::key_ranges::KeyRange;
    use bson::raw::RawBsonRef;
    use proptest::prelude::*;

    fn held(key: RawBsonRef<'_>) -> Held {
        Held::key(key_of(key).unwrap(), &KeyRanges::none()).unwrap()
    }

    fn key(number: i32) -> Held {
        held(RawBsonRef::Int32(number))
    }

    fn shares(pinned: SlotSet) -> Shares {
        Shares { pinned, layout: Layout::NO_RANGES }
    }

    fn keys(numbers: impl IntoIterator<Item = i32>) -> Vec<Held> {
        numbers.into_iter().map(key).collect()
    }

    fn set(numbers: &[u16]) -> SlotSet {
        numbers.iter().filter_map(|number| Slot::from_number(*number)).collect()
    }

    /// Two keys of one slot.
    fn mates() -> [Held; 2] {
        let all = keys(0..5000);
        let of = |key: &Held| all.iter().find(|one| *one != key && one.slot == key.slot).cloned();
        let first = all.iter().find(|key| of(key).is_some()).unwrap();
        [first.clone(), of(first).unwrap()]
    }

    #[test]
    fn a_key_has_one_pin_and_its_other_spellings_are_the_same_key() {
        let pins = Pins::default().with(&keys([1, 2, 1]), Side::New, 5).unwrap();
        assert_eq!(pins.all().len(), 2);
        let double = held(RawBsonRef::Double(1.0));
        let turned = pins.with(std::slice::from_ref(&double), Side::Old, 9).unwrap();
        let told: Vec<_> = turned.all().iter().map(|pin| (pin.to, pin.since)).collect();
        assert_eq!(told, [(Side::Old, 9), (Side::New, 5)]);
        // Asked for again, it is as old as it is.
        assert_eq!(turned.with(&keys([2]), Side::New, 20).unwrap(), turned);
        assert_eq!(turned.without(&[double]).all().len(), 1);
        assert_eq!((turned.only_to(Side::Old).all().len(), turned.slots().len()), (1, 2));
    }

    #[test]
    fn a_slot_is_not_held_on_both_clusters() {
        let [one, mate] = mates();
        let pins = Pins::default().with(std::slice::from_ref(&one), Side::New, 0).unwrap();
        let refused = pins.with(std::slice::from_ref(&mate), Side::Old, 0).unwrap_err();
        assert_eq!(refused, Refused::Shared(Box::new([mate.clone(), one.clone()])));
        assert!(pins.with(std::slice::from_ref(&mate), Side::New, 0).is_ok());
        // Both at once may turn round.
        let both = pins.with(std::slice::from_ref(&mate), Side::New, 0).unwrap();
        assert!(both.with(&[one, mate], Side::Old, 0).is_ok());
    }

    #[test]
    fn there_are_bounds() {
        let most = i32::try_from(MOST).unwrap();
        let full = Pins::default().with(&keys(0..most), Side::Old, 0).unwrap();
        assert_eq!(full.with(&keys([most]), Side::Old, 0), Err(Refused::TooMany(MOST + 1)));
        let text = "x".repeat(LARGEST_KEY + 1);
        let large = held(RawBsonRef::String(&text));
        let refused = Pins::default().with(std::slice::from_ref(&large), Side::Old, 0);
        assert_eq!(refused, Err(Refused::TooLarge));
    }

    #[test]
    fn a_percentage_reads_back_beside_pins() {
        let pinned = shares(set(&[0, 50, 51, 1000]));
        let now = pinned.by_percent(Percent::whole(5), &set(&[1000]));
        assert_eq!(now, SlotSet::percent(5).minus(&pinned.pinned).or(&set(&[1000])));
        // Where pins lie at its end, several percentages would be the same: the step that was asked for counts.
        let steps = [Percent::whole(5), Percent::whole(10)];
        assert_eq!(pinned.share(&now, &steps), Percent::whole(5));
        assert_eq!(pinned.share(&now, &[]), Percent::of_tenths(49));
        let last = shares(set(&[1023]));
        assert_eq!(last.share(&last.by_percent(Percent::ALL, &SlotSet::EMPTY), &[]), Percent::ALL);
        assert_eq!(shares(set(&[7])).share(&set(&[7]), &[]), Percent::ZERO);
    }

    #[test]
    fn a_range_is_on_new_when_it_is_pinned_there_or_at_100_percent() {
        let range = |name: &str, from: i32| KeyRange {
            name: name.into(),
            from: Some(from.into()),
            to: Some((from + 10).into()),
        };
        let ranges = KeyRanges::new(vec![range("first", 0), range("late", 10)]).unwrap();
        let held = |name| Held::range(name, &ranges).unwrap();
        let (first, late) = (held("first"), held("late"));
        let one = |held: &Held| slots_of([held]);
        // A key of a range is held with it, and others lie beside it.
        let of = |number| Held::key(key_of(RawBsonRef::Int32(number)).unwrap(), &ranges);
        assert_eq!(of(5), Err("first".to_owned()));
        assert!(of(20).unwrap().slot() != first.slot() && Held::range("other", &ranges).is_none());
        let pins = Pins::default().with(std::slice::from_ref(&first), Side::New, 0).unwrap();
        let pins = pins.with(std::slice::from_ref(&late), Side::Old, 0).unwrap();
        let shares = |pins: &Pins| Shares { layout: ranges.layout(), pinned: pins.slots() };
        let now = shares(&pins).by_percent(Percent::whole(50), &one(&first));
        assert_eq!(now, ranges.layout().percent(Percent::whole(50)).or(&one(&first)));
        assert_eq!(shares(&pins).share(&now, &[]), Percent::whole(50));
        let all = shares(&pins).by_percent(Percent::ALL, &now);
        assert_eq!(all, SlotSet::ALL.minus(&one(&late)));
        assert_eq!(shares(&pins).share(&all, &[]), Percent::ALL);
        // Let go of, the one goes back at less than all, and the other comes at all.
        assert_eq!(shares(&pins).released(&now, &one(&first)), now.minus(&one(&first)));
        assert_eq!(shares(&pins).released(&all, &one(&late)), SlotSet::ALL);
        // In the middle of a move to 100 percent, less than all shows.
        let midway = now.or(&one(&late));
        let none = shares(&Pins::default());
        assert_eq!(none.share(&midway, &[]), Percent::whole(50));
        assert_eq!(none.by_percent(Percent::ALL, &midway), SlotSet::ALL);
    }

    #[test]
    fn a_pin_is_in_force_once_reads_and_writes_are_there() {
        let (slot, there, none) = (Slot::from_number(7).unwrap(), set(&[7]), SlotSet::EMPTY);
        let new = |owned, reads| is_in_force(Side::New, slot, owned, reads);
        let old = |owned, reads| is_in_force(Side::Old, slot, owned, reads);
        assert!(new(&there, &there) && !new(&none, &there) && !new(&none, &none));
        assert!(old(&none, &none) && !old(&none, &there) && !old(&there, &there));
    }

    fn slots() -> impl Strategy<Value = SlotSet> {
        proptest::collection::vec(0..SLOTS, 0..40).prop_map(|numbers| set(&numbers))
    }

    fn layouts() -> impl Strategy<Value = Layout> {
        (0..=usize::from(MOST_RANGES)).prop_map(|ranges| Layout::with_ranges(ranges).unwrap())
    }

    proptest! {
        #[test]
        fn percentages_leave_pinned_slots_alone_and_only_add_others(
            pinned in slots(), layout in layouts(), there in slots(), low in 0..=1000_u32, high in 0..=1000_u32,
        ) {
            let (low, high) = (Percent::of_tenths(low.min(high)), Percent::of_tenths(low.max(high)));
            let (held, shares) = (there.and(&pinned), Shares { layout, pinned });
            let (less, more) = (shares.by_percent(low, &held), shares.by_percent(high, &held));
            prop_assert_eq!(less.and(&pinned), held);
            prop_assert_eq!(more.and(&pinned), held);
            prop_assert!(less.minus(&more).is_empty());
            // From wherever it is, the same percentage is the same set.
            prop_assert_eq!(shares.by_percent(low, &more), less);
            // What is shown changes nothing when it is asked for.
            let shown = shares.share(&less, &[]);
            prop_assert_eq!(shares.by_percent(shown, &less), less);
        }

        #[test]
        fn a_slot_that_is_released_is_where_its_percentage_says(
            pinned in slots(), layout in layouts(), freed in slots(), there in slots(), percent in 0..=1000_u32,
        ) {
            let freed = freed.and(&pinned);
            let shares = Shares { layout, pinned };
            let now = shares.by_percent(Percent::of_tenths(percent), &there.and(&pinned));
            let after = shares.released(&now, &freed);
            let left = Shares { layout, pinned: pinned.minus(&freed) };
            // The others have not moved, and all together are the set of a percentage again.
            prop_assert_eq!(after.minus(&freed), now.minus(&freed));
            let shown = left.share(&after, &[]);
            prop_assert_eq!(left.by_percent(shown, &after), after);
        }

        #[test]
        fn reads_and_writes_are_released_in_step(
            pinned in slots(), layout in layouts(), there in slots(), reads in 0..=1000_u32, writes in 0..=1000_u32,
        ) {
            let (writes, reads) = (writes.min(reads), writes.max(reads));
            let shares = Shares { layout, pinned };
            let at = |tenths| shares.by_percent(Percent::of_tenths(tenths), &there.and(&pinned));
            let released = |tenths| shares.released(&at(tenths), &pinned);
            prop_assert!(released(writes).minus(&released(reads)).is_empty(), "writes without reads");
        }
    }
}
