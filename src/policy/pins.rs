//! Pins: slots that stay where an operator has put them, whatever percentages say.
//!
//! A pin names a key, and holds the slot of that key: the document of that `_id`, or all of a tenant where that is the
//! route key, and with it whatever else lies in the same slot, about a thousandth of every collection.

use crate::model::key::Key;
use crate::model::percent::Percent;
use crate::model::side::Side;
use crate::model::slots::{SLOTS, Slot, SlotSet};

/// How many keys can be pinned in one migration: each is stored with its routing.
pub const MOST: usize = 256;
/// The most bytes of a key.
pub const LARGEST_KEY: usize = 512;

/// A key whose slot is held on one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// The key.
    pub key: Key,
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
    /// The slot of the first key is held on the other cluster, by the second.
    Shared(Box<[Key; 2]>),
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
        slots_of(self.0.iter().map(|pin| &pin.key))
    }

    /// With `keys` pinned to `to`, whatever held those keys before.
    ///
    /// # Errors
    /// [`Refused`]: a key that is not among them holds one of their slots on the other cluster, or there are too many.
    pub fn with(&self, keys: &[Key], to: Side, since: i64) -> Result<Self, Refused> {
        let mut next = self.0.clone();
        for key in keys {
            if key.canonical().len() > LARGEST_KEY {
                return Err(Refused::TooLarge);
            }
            match next.iter_mut().find(|pin| pin.key == *key) {
                Some(pin) if pin.to == to => {}
                Some(pin) => (pin.to, pin.since) = (to, since),
                None => next.push(Pin { key: key.clone(), to, since }),
            }
        }
        if next.len() > MOST {
            return Err(Refused::TooMany(next.len()));
        }
        for key in keys {
            let slot = key.id_slot();
            if let Some(other) = next.iter().find(|pin| pin.to != to && pin.key.id_slot() == slot) {
                return Err(Refused::Shared(Box::new([key.clone(), other.key.clone()])));
            }
        }
        Ok(Self(next))
    }

    /// Without `keys`.
    #[must_use]
    pub fn without(&self, keys: &[Key]) -> Self {
        Self(self.0.iter().filter(|pin| !keys.contains(&pin.key)).cloned().collect())
    }

    /// Those to one cluster.
    #[must_use]
    pub fn only_to(&self, side: Side) -> Self {
        Self(self.0.iter().filter(|pin| pin.to == side).cloned().collect())
    }
}

/// The slots of keys.
#[must_use]
pub fn slots_of<'a>(keys: impl IntoIterator<Item = &'a Key>) -> SlotSet {
    keys.into_iter().map(Key::id_slot).collect()
}

/// What is to be on new at a percentage: `pinned` slots stay where they are, in `now` or not.
#[must_use]
pub fn by_percent(percent: Percent, now: &SlotSet, pinned: &SlotSet) -> SlotSet {
    SlotSet::percent(percent).minus(pinned).or(&now.and(pinned))
}

/// The percentage that `now` shows, pinned slots left aside: the largest of `steps` that would change nothing, else the
/// smallest that would not. With all that is not pinned it is all.
#[must_use]
pub fn share(now: &SlotSet, pinned: &SlotSet, steps: &[Percent]) -> Percent {
    let free = now.minus(pinned);
    let shows = |percent: &Percent| SlotSet::percent(*percent).minus(pinned) == free;
    if let Some(step) = steps.iter().filter(|step| shows(step)).max() {
        return *step;
    }
    if free == SlotSet::ALL.minus(pinned) {
        return Percent::ALL;
    }
    let tenths = |slots: u32| Percent::of_tenths((slots * 1000).div_ceil(u32::from(SLOTS)));
    let reach = free.last().map_or(0, |slot| u32::from(slot.number()) + 1);
    // What is no share, as in the middle of a move, is counted.
    Some(tenths(reach)).filter(shows).unwrap_or_else(|| tenths(free.len()))
}

/// What is to be on new once `freed` are no longer held: they go where the others of their percentage are.
#[must_use]
pub fn released(now: &SlotSet, pinned: &SlotSet, freed: &SlotSet) -> SlotSet {
    let share = share(now, pinned, &[]);
    now.minus(freed).or(&SlotSet::percent(share).and(freed))
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
    use crate::policy::canonical::key_of;
    use bson::raw::RawBsonRef;
    use proptest::prelude::*;

    fn key(number: i32) -> Key {
        key_of(RawBsonRef::Int32(number)).unwrap()
    }

    fn keys(numbers: impl IntoIterator<Item = i32>) -> Vec<Key> {
        numbers.into_iter().map(key).collect()
    }

    fn set(numbers: &[u16]) -> SlotSet {
        numbers.iter().filter_map(|number| Slot::from_number(*number)).collect()
    }

    /// Two keys of one slot.
    fn mates() -> [Key; 2] {
        let all = keys(0..5000);
        let of = |key: &Key| all.iter().find(|one| *one != key && one.id_slot() == key.id_slot()).cloned();
        let first = all.iter().find(|key| of(key).is_some()).unwrap();
        [first.clone(), of(first).unwrap()]
    }

    #[test]
    fn a_key_has_one_pin_and_its_other_spellings_are_the_same_key() {
        let pins = Pins::default().with(&keys([1, 2, 1]), Side::New, 5).unwrap();
        assert_eq!(pins.all().len(), 2);
        let double = key_of(RawBsonRef::Double(1.0)).unwrap();
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
        let large = key_of(RawBsonRef::String(&text)).unwrap();
        let refused = Pins::default().with(std::slice::from_ref(&large), Side::Old, 0);
        assert_eq!(refused, Err(Refused::TooLarge));
    }

    #[test]
    fn a_percentage_reads_back_beside_pins() {
        let pinned = set(&[0, 50, 51, 1000]);
        let now = by_percent(Percent::whole(5), &set(&[1000]), &pinned);
        assert_eq!(now, SlotSet::percent(5).minus(&pinned).or(&set(&[1000])));
        // Where pins lie at its end, several percentages would be the same: the step that was asked for counts.
        let steps = [Percent::whole(5), Percent::whole(10)];
        assert_eq!(share(&now, &pinned, &steps), Percent::whole(5));
        assert_eq!(share(&now, &pinned, &[]), Percent::of_tenths(49));
        let all = by_percent(Percent::ALL, &SlotSet::EMPTY, &set(&[1023]));
        assert_eq!(share(&all, &set(&[1023]), &[]), Percent::ALL);
        assert_eq!(share(&set(&[7]), &set(&[7]), &[]), Percent::ZERO);
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

    proptest! {
        #[test]
        fn percentages_leave_pinned_slots_alone_and_only_add_others(
            pinned in slots(), there in slots(), low in 0..=1000_u32, high in 0..=1000_u32,
        ) {
            let (low, high) = (Percent::of_tenths(low.min(high)), Percent::of_tenths(low.max(high)));
            let held = there.and(&pinned);
            let (less, more) = (by_percent(low, &held, &pinned), by_percent(high, &held, &pinned));
            prop_assert_eq!(less.and(&pinned), held);
            prop_assert_eq!(more.and(&pinned), held);
            prop_assert!(less.minus(&more).is_empty());
            // From wherever it is, the same percentage is the same set.
            prop_assert_eq!(by_percent(low, &more, &pinned), less);
            // What is shown changes nothing when it is asked for.
            let shown = share(&less, &pinned, &[]);
            prop_assert_eq!(by_percent(shown, &less, &pinned), less);
        }

        #[test]
        fn a_slot_that_is_released_is_where_its_percentage_says(
            pinned in slots(), freed in slots(), there in slots(), percent in 0..=1000_u32,
        ) {
            let freed = freed.and(&pinned);
            let now = by_percent(Percent::of_tenths(percent), &there.and(&pinned), &pinned);
            let after = released(&now, &pinned, &freed);
            let left = pinned.minus(&freed);
            // The others have not moved, and all together are the set of a percentage again.
            prop_assert_eq!(after.minus(&freed), now.minus(&freed));
            let shown = share(&after, &left, &[]);
            prop_assert_eq!(by_percent(shown, &after, &left), after);
        }

        #[test]
        fn reads_and_writes_are_released_in_step(
            pinned in slots(), there in slots(), reads in 0..=1000_u32, writes in 0..=1000_u32,
        ) {
            let (writes, reads) = (writes.min(reads), writes.max(reads));
            let held = there.and(&pinned);
            let at = |tenths| by_percent(Percent::of_tenths(tenths), &held, &pinned);
            let (owned, read) = (at(writes), at(reads));
            let (owned, read) = (released(&owned, &pinned, &pinned), released(&read, &pinned, &pinned));
            prop_assert!(owned.minus(&read).is_empty(), "writes without reads");
        }
    }
}
