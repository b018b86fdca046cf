//! The checker of invariant 6 must refuse what it is there to find.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bson::RawBsonRef;
use reshard::model::side::Side;
use reshard::model::slots::{Slot, SlotSet};

use crate::checks::one_authority::{Acknowledged, Happened, WriteId, check_one_authority};
use crate::mongo::key::key_of;

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn write(number: i64) -> WriteId {
    (Arc::from([0_u8; 21]), number)
}

fn executed(millis: u64, side: Side, number: i64) -> (Duration, Happened) {
    let (key, slot) = (key_of(RawBsonRef::Int32(1)), Slot::of_hash(0));
    (at(millis), Happened::Executed { side, key, slot, write: write(number) })
}

fn owns(millis: u64, side: Side, slots: SlotSet) -> (Duration, Happened) {
    (at(millis), Happened::Owns { side, slots, taken_back: Box::new(SlotSet::EMPTY) })
}

/// Everything moves to new at 10 and 11 ms.
fn moved() -> [(Duration, Happened); 2] {
    [owns(10, Side::Old, SlotSet::EMPTY), owns(11, Side::New, SlotSet::ALL)]
}

/// Whether it holds when writes 1 to 3 were sent at 0 ms, and the answer was shown at `shown`.
fn holds(events: Vec<(Duration, Happened)>, shown: u64) -> bool {
    holds_where(events, shown, true)
}

fn holds_where(mut events: Vec<(Duration, Happened)>, shown: u64, found_all: bool) -> bool {
    events.sort_by_key(|(at, _)| *at);
    let told = Acknowledged { sent: at(0), shown: at(shown), durable: true, found_all };
    let acknowledged: BTreeMap<_, _> = (1..=3).map(|number| (write(number), told)).collect();
    check_one_authority(&events, &acknowledged).is_ok()
}

fn with_move(events: impl IntoIterator<Item = (Duration, Happened)>) -> Vec<(Duration, Happened)> {
    moved().into_iter().chain(events).collect()
}

#[test]
fn writes_before_and_after_a_move_are_right() {
    assert!(holds(with_move([executed(5, Side::Old, 1), executed(20, Side::New, 2)]), 30));
    // A late copy of what its authority has executed, or of what nobody was told: the streams undo it.
    assert!(holds(with_move([executed(20, Side::New, 1), executed(25, Side::Old, 1)]), 30));
    assert!(holds(with_move([executed(25, Side::Old, 9)]), 30));
}

#[test]
fn a_write_that_only_the_former_authority_executed_is_found() {
    assert!(!holds(with_move([executed(20, Side::Old, 1)]), 30));
    assert!(!holds(with_move([executed(5, Side::New, 1)]), 30));
}

#[test]
fn a_write_under_two_authorities_is_found() {
    assert!(!holds(with_move([executed(5, Side::Old, 1), executed(20, Side::New, 1)]), 30));
}

#[test]
fn an_answer_before_the_write_is_found() {
    assert!(!holds(with_move([executed(20, Side::New, 1)]), 15));
}

#[test]
fn slots_with_two_owners_are_found() {
    let both = [owns(10, Side::New, SlotSet::percent(1)), owns(11, Side::Old, SlotSet::EMPTY)];
    assert!(!holds(both.into_iter().collect(), 30));
}

#[test]
fn a_late_copy_of_a_write_that_found_nothing_is_nobodys_fault() {
    let late = || vec![executed(40, Side::Old, 1)];
    assert!(holds_where(late(), 30, false));
    assert!(!holds_where(late(), 30, true));
    // It still runs under one authority.
    let twice = with_move([executed(5, Side::Old, 1), executed(40, Side::New, 1)]);
    assert!(!holds_where(twice, 30, false));
}
