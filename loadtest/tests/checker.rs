//! The checker on a real server: clean after an honest run, and able to fail
//! after damage of every kind.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use bson::{Bson, Document, doc};
use common::{Server, config, run};
use mongodb::Collection;
use reshard_loadtest::{Load, LoadConfig, Mix, OpKind, Outcome, Profile, Report, ViolationKind, compare};

async fn check(outcome: &Outcome, server: &Server) -> Report {
    let report = outcome.verify(&server.uri()).await.unwrap();
    println!("{report}\n");
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_runs_are_clean() {
    let Some(server) = Server::start().await else { return };
    for (name, profile) in [("keyed", Profile::Keyed), ("unique", Profile::Unique)] {
        let outcome = run(config(&server, name, profile), 4.0).await;
        let report = check(&outcome, &server).await;
        assert!(report.is_clean(), "{report}\n{}", outcome.stats);
        assert_eq!(outcome.stats.errors.total, 0, "{}", outcome.stats);
        assert_eq!(outcome.stats.unknown, 0);
        assert!(report.acknowledged > 100);
        let used = &outcome.stats.total.by_kind;
        let mix = Mix::of(profile);
        let unused: Vec<_> = OpKind::ALL
            .iter()
            .filter(|kind| mix.weight(**kind) > 2 && !used.contains_key(kind.name()))
            .collect();
        assert!(unused.is_empty(), "{unused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_damage_is_named() {
    let Some(server) = Server::start().await else { return };
    let outcome = run(config(&server, "damage", Profile::Keyed), 3.0).await;
    assert!(check(&outcome, &server).await.is_clean());
    let coll = server.collection("damage").await;

    let hot = coll.find_one(doc! { "key": "hot-1" }).await.unwrap().unwrap();
    let tokens = hot.get_array("toks").unwrap().clone();
    assert!(tokens.len() > 2);
    let by_id = |document: &Document| doc! { "_id": document.get("_id").unwrap().clone() };

    // A token lost, alone and with its counter.
    let update = doc! { "$pull": { "toks": tokens[0].clone() }, "$inc": { "c": -1_i64 } };
    damaged(&outcome, &server, &coll, by_id(&hot), update, &[(ViolationKind::LostWrite, "hot-1")]).await;
    // A token twice.
    let update = doc! { "$push": { "toks": tokens[1].clone() }, "$inc": { "c": 1_i64 } };
    damaged(&outcome, &server, &coll, by_id(&hot), update, &[(ViolationKind::DoubleEffect, "hot-1")]).await;
    // Hot counters: an increment lost, and one too many.
    let update = doc! { "$inc": { "n": -1_i64 } };
    damaged(&outcome, &server, &coll, by_id(&hot), update, &[(ViolationKind::LostWrite, "hot-1")]).await;
    let update = doc! { "$inc": { "n": 1_i64 } };
    damaged(&outcome, &server, &coll, by_id(&hot), update, &[(ViolationKind::DoubleEffect, "hot-1")]).await;
    // A push that changed one of its two fields.
    let update = doc! { "$inc": { "c": 1_i64 } };
    damaged(&outcome, &server, &coll, by_id(&hot), update, &[(ViolationKind::WrongContent, "hot-1")]).await;

    // Own and preloaded documents, touched or not.
    for filter in [doc! { "key": { "$regex": "^own" } }, doc! { "key": { "$regex": "^history" } }] {
        let own = coll.find_one(filter).await.unwrap().unwrap();
        let name = own.get_str("key").unwrap().to_owned();
        let cases = [
            (doc! { "$inc": { "rev": 1_i64 } }, ViolationKind::DoubleEffect),
            (doc! { "$inc": { "rev": -1_i64 } }, ViolationKind::LostWrite),
            (doc! { "$inc": { "m": 1_i64 } }, ViolationKind::DoubleEffect),
            (doc! { "$set": { "val": "other" } }, ViolationKind::WrongContent),
            (doc! { "$unset": { "val": "" } }, ViolationKind::WrongContent),
            (doc! { "$set": { "more": 1 } }, ViolationKind::WrongContent),
        ];
        for (update, kind) in cases {
            damaged(&outcome, &server, &coll, by_id(&own), update, &[(kind, &name)]).await;
        }
        coll.delete_one(by_id(&own)).await.unwrap();
        let report = check(&outcome, &server).await;
        assert_eq!(report.count(ViolationKind::MissingDocument), 1);
        assert!(report.examples.iter().any(|example| example.document == name));
        coll.insert_one(&own).await.unwrap();
    }

    // Documents that nobody wrote.
    coll.insert_one(doc! { "_id": "stranger" }).await.unwrap();
    let report = check(&outcome, &server).await;
    assert_eq!(report.count(ViolationKind::UnexpectedDocument), 1);
    coll.delete_one(doc! { "_id": "stranger" }).await.unwrap();
    assert!(check(&outcome, &server).await.is_clean());
}

/// Does the damage, expects exactly these violations, and undoes it.
async fn damaged(
    outcome: &Outcome,
    server: &Server,
    coll: &Collection<Document>,
    filter: Document,
    update: Document,
    wanted: &[(ViolationKind, &str)],
) {
    let before = coll.find_one(filter.clone()).await.unwrap().unwrap();
    println!("damage: {update}");
    assert_eq!(coll.update_one(filter.clone(), update).await.unwrap().modified_count, 1);
    let report = check(outcome, server).await;
    let found: Vec<_> = report.examples.iter().map(|v| (v.kind, v.document.as_str())).collect();
    assert_eq!(found, wanted);
    coll.replace_one(filter, before).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_document_that_is_back_is_named() {
    let Some(server) = Server::start().await else { return };
    let config = LoadConfig {
        mix: Some(Mix::only(&[(OpKind::Insert, 3), (OpKind::Delete, 3), (OpKind::Inc, 2)])),
        ..config(&server, "back", Profile::Keyed)
    };
    Load::prepare(&config).await.unwrap();
    let coll = server.collection("back").await;
    let load = Load::start(config).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut kept = Vec::new();
    for n in 0..60 {
        kept.extend(coll.find_one(doc! { "key": format!("own-1-{n}") }).await.unwrap());
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let outcome = load.stop().await;
    assert!(check(&outcome, &server).await.is_clean());

    let mut back = 0;
    for document in &kept {
        back += u64::from(coll.insert_one(document).await.is_ok());
    }
    assert!(back > 0);
    let report = check(&outcome, &server).await;
    assert_eq!(report.count(ViolationKind::Resurrected), back);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_vanishes_while_the_load_runs_is_seen_at_once() {
    let Some(server) = Server::start().await else { return };
    let config = LoadConfig {
        mix: Some(Mix::only(&[(OpKind::Insert, 5), (OpKind::Inc, 5), (OpKind::FindById, 5)])),
        documents: 0,
        ..config(&server, "vanish", Profile::Keyed)
    };
    Load::prepare(&config).await.unwrap();
    let coll = server.collection("vanish").await;
    let load = Load::start(config).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let deleted = coll.delete_many(doc! { "key": { "$regex": "^own-2-" } }).await.unwrap().deleted_count;
    assert!(deleted > 0);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let outcome = load.stop().await;
    let report = check(&outcome, &server).await;
    assert!(report.count(ViolationKind::WrongReply) + report.count(ViolationKind::WrongRead) > 0);
    assert!(report.count(ViolationKind::MissingDocument) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_loop_counts_from_the_intended_start() {
    let Some(server) = Server::start().await else { return };
    let config = LoadConfig {
        rate: Some(100.0),
        open_loop: true,
        workers: 2,
        mix: Some(Mix::only(&[(OpKind::HotInc, 1)])),
        documents: 0,
        ..config(&server, "open", Profile::Keyed)
    };
    Load::prepare(&config).await.unwrap();
    let load = Load::start(config).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    load.set_phase("during");
    // Every command waits half a second.
    let admin = server.client().await.database("admin");
    admin.run_command(doc! { "fsync": 1, "lock": true }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(load.snapshot().oldest_outstanding_ms > 300.0);
    admin.run_command(doc! { "fsyncUnlock": 1 }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    load.set_phase("after");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let outcome = load.stop().await;
    println!("{}", outcome.stats);
    assert!(check(&outcome, &server).await.is_clean());
    let during = outcome.stats.phase("during").unwrap();
    let gap = during.longest_write.as_ref().unwrap().milliseconds;
    assert!((400.0..5000.0).contains(&gap), "{gap}");
    // Two workers were stuck, and yet every late arrival was counted.
    assert!(during.latency.p90 > 100.0, "{:?}", during.latency);
    // The rate was made up for.
    assert!((90.0..=110.0).contains(&outcome.stats.total.throughput), "{}", outcome.stats.total.throughput);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_the_server_is_no_violation() {
    let Some(mut server) = Server::start().await else { return };
    let config = config(&server, "crash", Profile::Unique);
    Load::prepare(&config).await.unwrap();
    let load = Load::start(config).await.unwrap();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        server.crash().await;
    }
    tokio::time::sleep(Duration::from_secs(12)).await;
    let outcome = load.stop().await;
    println!("{}", outcome.stats);
    let report = check(&outcome, &server).await;
    assert!(report.is_clean(), "{report}");
    assert!(outcome.stats.total.longest_outage.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_outcomes_may_be_there_or_not() {
    let Some(server) = Server::start().await else { return };
    let config = LoadConfig {
        operation_timeout: Duration::from_millis(400),
        ..config(&server, "unknown", Profile::Unique)
    };
    Load::prepare(&config).await.unwrap();
    let load = Load::start(config).await.unwrap();
    let admin = server.client().await.database("admin");
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        admin.run_command(doc! { "fsync": 1, "lock": true }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(900)).await;
        admin.run_command(doc! { "fsyncUnlock": 1 }).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let outcome = load.stop().await;
    println!("{}", outcome.stats);
    assert!(outcome.stats.unknown > 0 && outcome.stats.errors.total > 0);
    assert!(outcome.stats.total.longest_outage.as_ref().unwrap().milliseconds > 500.0);
    let report = check(&outcome, &server).await;
    assert!(report.is_clean(), "{report}");
    assert!(report.unknown_applied + report.unknown_not_applied > 0, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_are_compared_byte_by_byte() {
    let (Some(a), Some(b)) = (Server::start().await, Server::start().await) else { return };
    for server in [&a, &b] {
        Load::prepare(&config(server, "same", Profile::Keyed)).await.unwrap();
    }
    let equal = compare(&a.uri(), &b.uri(), "loadtest.same").await.unwrap();
    assert!(equal.is_equal(), "{equal}");
    assert_eq!(equal.documents_a, 505);

    let coll = b.collection("same").await;
    let find = async |key: &str| coll.find_one(doc! { "key": key }).await.unwrap().unwrap();
    let filter = |document: &Document| doc! { "_id": document.get("_id").unwrap().clone() };
    // Another number type in a field, another order of fields, one missing, one more.
    let first = find("history-1").await;
    coll.update_one(filter(&first), doc! { "$set": { "rev": 0_i32 } }).await.unwrap();
    let mut second = find("history-2").await;
    let val = second.remove("val").unwrap();
    second.insert("val", val);
    coll.replace_one(filter(&second), &second).await.unwrap();
    coll.delete_one(filter(&find("history-3").await)).await.unwrap();
    coll.insert_one(doc! { "_id": "more" }).await.unwrap();
    // The same _id for the server, in another type.
    let other = a.collection("same").await;
    other.insert_one(doc! { "_id": 77_000_000_i32 }).await.unwrap();
    coll.insert_one(doc! { "_id": Bson::Double(77_000_000.0) }).await.unwrap();

    let result = compare(&a.uri(), &b.uri(), "loadtest.same").await.unwrap();
    println!("{result}");
    assert_eq!((result.missing_in_a, result.missing_in_b, result.different), (1, 1, 3));
    assert_eq!(result.examples.len(), 5);
}
