//! The checkers: each must refuse what it is there to find.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bson::raw::RawDocumentBuf;
use bson::{RawBsonRef, rawdoc};

use super::{Rig, ask};
use crate::checks::checker::{Initial, check_equal, check_history};
use crate::checks::history::{Action, History, Told};
use crate::mongo::cluster::ClusterOptions;

const ID: RawBsonRef<'static> = RawBsonRef::Int32(1);

/// Plays `actions` one after the other, then checks `last` as the final state; returns the broken invariant.
fn verdict(actions: Vec<(Action, Told)>, last: Option<RawDocumentBuf>) -> Option<u8> {
    let rig = Rig::new(1);
    let history = History::new(rig.world.executor().clone());
    rig.cluster.load("app.c", last);
    let (world, played) = (rig.world.clone(), history.clone());
    let main = async move {
        for (action, told) in actions {
            let operation = played.invoke("app.c", ID, action);
            world.sleep(Duration::from_millis(1)).await;
            played.answer(operation, told);
            world.sleep(Duration::from_millis(1)).await;
        }
    };
    rig.world.run(main).unwrap();
    let result = check_history(&history, &Initial::new(), |_, _| &rig.cluster);
    rig.world.end();
    result.err().map(|violation| violation.invariant)
}

fn version(number: i32) -> RawDocumentBuf {
    rawdoc! { "_id": 1, "v": number }
}

#[test]
fn the_last_acknowledged_write_must_stand() {
    let put = |number| (Action::Put(version(number)), Told::Durable);
    assert_eq!(verdict(vec![put(1), put(2)], Some(version(2))), None);
    assert_eq!(verdict(vec![put(1), put(2)], Some(version(1))), Some(1));
    assert_eq!(verdict(vec![put(1), put(2)], None), Some(1));
    assert_eq!(verdict(vec![put(1), (Action::Delete, Told::Durable)], Some(version(1))), Some(3));
    let unknown = (Action::Put(version(9)), Told::Unknown);
    assert_eq!(verdict(vec![unknown.clone(), put(2)], Some(version(9))), None, "it may have landed later");
    assert_eq!(verdict(vec![(Action::Put(version(9)), Told::Refused), put(2)], Some(version(9))), Some(1));
}

#[test]
fn a_reader_must_not_see_the_past() {
    let put = |number| (Action::Put(version(number)), Told::Durable);
    let saw = |document| (Action::Read, Told::Saw(document));
    assert_eq!(verdict(vec![put(1), saw(Some(version(1))), put(2)], Some(version(2))), None);
    assert_eq!(verdict(vec![put(1), put(2), saw(Some(version(1)))], Some(version(2))), Some(1));
    let gone = (Action::Delete, Told::Durable);
    assert_eq!(verdict(vec![put(1), gone, saw(Some(version(1))), put(2)], Some(version(2))), Some(3));
}

#[test]
fn steps_count_once() {
    let step = |told: Told| vec![(Action::Increment("n"), told.clone()), (Action::Push("list", 7), told)];
    let counted = |n: i32, list: &[i64]| {
        let list: bson::RawArrayBuf = list.iter().copied().collect();
        Some(rawdoc! { "_id": 1, "n": n, "list": list })
    };
    assert_eq!(verdict(step(Told::Durable), counted(1, &[7])), None);
    assert_eq!(verdict(step(Told::Durable), counted(2, &[7])), Some(11));
    assert_eq!(verdict(step(Told::Durable), counted(1, &[7, 7])), Some(11));
    assert_eq!(verdict(step(Told::Durable), counted(0, &[])), Some(1));
    assert_eq!(verdict(step(Told::Unknown), counted(0, &[])), None);
    assert_eq!(verdict(step(Told::Unknown), counted(2, &[])), Some(11));
    assert_eq!(verdict(step(Told::Refused), counted(1, &[7])), Some(11));
}

#[test]
fn both_sides_are_compared_by_bytes() {
    let rig = Rig::new(1);
    let new = rig.world.cluster("new", ClusterOptions::default());
    let equal = |rig: &Rig| check_equal(&rig.cluster, &new, "app.c", &BTreeSet::new()).is_ok();
    rig.cluster.load("app.c", [rawdoc! { "_id": 1, "v": 0.0 }]);
    assert!(!equal(&rig));
    new.load("app.c", [rawdoc! { "_id": 1, "v": -0.0 }]);
    assert!(!equal(&rig));
    new.load("app.c", [rawdoc! { "_id": 1, "v": 0.0 }]);
    assert!(equal(&rig));
    new.load("app.c", [rawdoc! { "_id": 2 }]);
    assert!(!equal(&rig));
    rig.world.end();
}

#[test]
fn an_observer_sees_every_change_and_its_writer() {
    Rig::new(1).run(|rig| async move {
        let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let log = seen.clone();
        rig.cluster.observe(Arc::new(move |app, _, entry| log.lock().push((app.to_owned(), entry.time))));
        ask(&rig.client, rawdoc! { "insert": "c", "documents": [{ "_id": 1 }, { "_id": 2 }] }).await;
        let seen = seen.lock();
        assert_eq!(seen.len(), 3, "the collection and two documents");
        assert!(seen.iter().all(|(app, _)| app == "client") && seen.is_sorted_by_key(|(_, time)| *time));
    });
}
