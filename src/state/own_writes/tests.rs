//! Tests of the register of own writes.

use super::*;
use crate::clock::SystemClock;
use crate::policy::canonical::key_of;
use bson::raw::RawBsonRef;

const OLD: Side = Side::Old;

fn at(increment: u32) -> Timestamp {
    Timestamp { time: 1, increment }
}

fn key(id: i32) -> Key {
    key_of(RawBsonRef::Int32(id)).unwrap()
}

fn c() -> Namespace {
    Namespace::new("shop", "c")
}

/// A register that can judge everything, and has heard of time 10.
fn own() -> Arc<OwnWrites> {
    let own = OwnWrites::new(Arc::new(SystemClock));
    own.set_router(OLD, false);
    own.judge_from(OLD, Some(at(1)));
    own.passed(OLD, at(10));
    own
}

fn judge(own: &OwnWrites, id: i32, increment: u32) -> Verdict {
    own.judge(OLD, [(&c(), &key(id), at(increment))])[0]
}

#[test]
fn a_write_accounts_for_the_events_between_its_sending_and_its_answer() {
    let own = own();
    let writing = own.begin(OLD, &c(), &[key(1)], By::Connections);
    assert_eq!(judge(&own, 1, 99), Verdict::Own, "its answer may come after its event");
    assert_eq!(judge(&own, 2, 99), Verdict::Foreign);
    writing.ended(Some(at(12)));
    assert_eq!(judge(&own, 1, 12), Verdict::Own);
    assert_eq!(judge(&own, 1, 13), Verdict::Foreign, "after its answer");
    assert_eq!(own.judge(OLD, [(&Namespace::new("shop", "d"), &key(1), at(12))]), [Verdict::Foreign]);
    assert_eq!(own.judge(Side::New, [(&c(), &key(1), at(12))]), [Verdict::Unknown]);
}

#[test]
fn what_was_there_before_it_was_sent_is_not_its_own() {
    let own = own();
    own.begin(OLD, &c(), &[key(1)], By::Connections).ended(Some(at(20)));
    own.begin(OLD, &c(), &[key(2)], By::Connections).ended(Some(at(30)));
    assert_eq!(judge(&own, 2, 15), Verdict::Foreign);
    assert_eq!(judge(&own, 2, 25), Verdict::Own);
}

#[test]
fn a_write_without_an_answer_accounts_for_its_keys_for_ever() {
    let own = own();
    drop(own.begin(OLD, &c(), &[key(1)], By::Connections));
    own.passed(OLD, at(5000));
    assert_eq!((judge(&own, 1, 9000), judge(&own, 2, 9000)), (Verdict::Own, Verdict::Foreign));
}

#[test]
fn a_mirror_write_without_an_answer_does_so_until_it_is_barred() {
    let own = own();
    drop(own.begin(OLD, &c(), &[key(1)], By::MirrorSession));
    let number = own.lost_on_mirror(OLD).unwrap();
    drop(own.begin(OLD, &c(), &[key(2)], By::MirrorSession));
    own.barred(OLD, number, at(20));
    assert_eq!((judge(&own, 1, 20), judge(&own, 1, 21)), (Verdict::Own, Verdict::Foreign));
    assert_eq!(judge(&own, 2, 21), Verdict::Own, "lost after the barrier was begun");
}

/// A router may have sent it more than once, and answer for the attempt that did nothing.
#[test]
fn behind_a_router_a_write_accounts_for_a_minute_around_it() {
    let own = own();
    own.set_router(OLD, true);
    own.passed(OLD, Timestamp { time: 1000, increment: 1 });
    own.begin(OLD, &c(), &[key(1)], By::Connections).nothing();
    let judge = |time| own.judge(OLD, [(&c(), &key(1), Timestamp { time, increment: 1 })])[0];
    assert_eq!((judge(1055), judge(1065)), (Verdict::Own, Verdict::Foreign));
}

#[test]
fn behind_a_router_it_does_so_for_ever() {
    let own = own();
    own.set_router(OLD, true);
    drop(own.begin(OLD, &c(), &[key(1)], By::MirrorSession));
    assert_eq!(own.lost_on_mirror(OLD), None);
    own.passed(OLD, at(5000));
    assert_eq!(judge(&own, 1, 9000), Verdict::Own);
}

#[test]
fn a_write_that_did_nothing_accounts_for_nothing() {
    let own = own();
    own.begin(OLD, &c(), &[key(1)], By::Connections).nothing();
    own.begin_whole(OLD, &c()).nothing();
    assert_eq!(judge(&own, 1, 12), Verdict::Foreign);
}

#[test]
fn a_write_without_keys_accounts_for_its_whole_collection_while_it_lasts() {
    let own = own();
    let writing = own.begin_whole(OLD, &c());
    assert_eq!(judge(&own, 7, 50), Verdict::Own);
    assert_eq!(own.judge(OLD, [(&Namespace::new("shop", "d"), &key(7), at(50))]), [Verdict::Foreign]);
    writing.ended(Some(at(20)));
    assert_eq!((judge(&own, 7, 20), judge(&own, 7, 21)), (Verdict::Own, Verdict::Foreign));
    let found = own.begin_whole(OLD, &c());
    found.ended_on(&[key(8)], Some(at(30)));
    assert_eq!((judge(&own, 8, 30), judge(&own, 7, 30)), (Verdict::Own, Verdict::Foreign));
    drop(own.begin_whole(OLD, &c()));
    assert_eq!(judge(&own, 7, 40), Verdict::Unknown, "its answer was lost");
}

#[test]
fn many_spans_are_joined_and_none_is_lost() {
    let own = own();
    for n in 0..2000 {
        let writing = own.begin_whole(OLD, &c());
        own.begin(OLD, &c(), &[key(0)], By::Connections).ended(Some(at(100 + 10 * n)));
        writing.ended(Some(at(105 + 10 * n)));
    }
    assert!(own.lines.old.lock().spans[&c()].done.len() <= line::MOST_SPANS);
    for n in 0..2000 {
        assert_eq!(judge(&own, 7, 100 + 10 * n), Verdict::Own);
    }
}

#[test]
fn before_it_is_known_who_else_writes_nothing_is_judged() {
    let own = own();
    own.judge_from(OLD, Some(at(30)));
    assert_eq!((judge(&own, 1, 30), judge(&own, 1, 31)), (Verdict::Unknown, Verdict::Foreign));
    own.judge_from(OLD, None);
    assert_eq!(judge(&own, 1, 31), Verdict::Unknown);
}

#[test]
fn an_event_that_is_shown_again_is_not_judged_again() {
    let own = own();
    assert_eq!(judge(&own, 1, 15), Verdict::Foreign);
    own.passed(OLD, at(16));
    assert_eq!(judge(&own, 1, 15), Verdict::Own);
}

#[test]
fn what_cannot_be_remembered_makes_judging_impossible() {
    let mut own = OwnWrites::new(Arc::new(SystemClock));
    Arc::get_mut(&mut own).unwrap().limit = 2;
    own.set_router(OLD, false);
    own.judge_from(OLD, Some(at(1)));
    own.begin(OLD, &c(), &[key(1), key(2)], By::Connections).ended(Some(at(10)));
    let third = own.begin(OLD, &c(), &[key(3)], By::Connections);
    assert_eq!(judge(&own, 9, 99), Verdict::Unknown);
    third.ended(Some(at(20)));
    assert_eq!((judge(&own, 3, 20), judge(&own, 9, 21)), (Verdict::Unknown, Verdict::Foreign));
    own.passed(OLD, at(50));
    own.begin(OLD, &c(), &[key(4)], By::Connections).ended(Some(at(60)));
    assert_eq!(judge(&own, 4, 55), Verdict::Own, "there is room again");
}

#[test]
fn memory_is_given_back_as_the_stream_goes_on() {
    let own = own();
    for id in 0..5000 {
        own.begin(OLD, &c(), &[key(id)], By::Connections).ended(Some(at(20)));
    }
    own.passed(OLD, at(21));
    assert_eq!(own.lines.old.lock().keys.len(), 0);
}

#[test]
fn connections_apart_neither_know_nor_tell_of_times() {
    let own = own();
    own.begin(OLD, &c(), &[key(1)], By::ConnectionsApart).ended(Some(at(50)));
    own.begin(OLD, &c(), &[key(2)], By::Connections).ended(Some(at(30)));
    assert_eq!(
        judge(&own, 2, 20),
        Verdict::Own,
        "its event may be older than what the other connections heard"
    );
    let apart = own.begin(OLD, &c(), &[key(3)], By::ConnectionsApart);
    assert_eq!(judge(&own, 3, 11), Verdict::Own);
    apart.ended(Some(at(12)));
}
