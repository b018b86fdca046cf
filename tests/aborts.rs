//! An abort is answered at once and cleans up behind its answer, whatever hangs and whenever the process is killed.

mod support;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc};
use mongodb::{Client, Collection};
use reshard::migration::control::{Control as _, Phase, Throttle};
use reshard_testbed::{ReplicaSet, wait_for};
use support::process::Server;
use support::{LONG, Operator, me, proxy, two_sets, uri};

const DOCUMENTS: i32 = 500;
/// What an operator is promised.
const ANSWERED: Duration = Duration::from_secs(2);

/// `failCommand` on a cluster, and when it has been met.
struct FailPoint<'a> {
    set: &'a ReplicaSet,
    met_before: i32,
}

impl<'a> FailPoint<'a> {
    async fn on(set: &'a ReplicaSet, data: Document) -> Result<Self> {
        let point = doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data };
        let set_up = set.node(0).admin(point).await?;
        Ok(Self { set, met_before: set_up.get_i32("count")? })
    }

    async fn is_met(&self) -> Result<()> {
        let times = self.met_before + 1;
        let wait = doc! { "waitForFailPoint": "failCommand", "timesEntered": times, "maxTimeMS": 60_000 };
        self.set.node(0).admin(wait).await.map(drop)
    }

    async fn off(self) -> Result<()> {
        self.set.fail_point(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await
    }
}

async fn stored(old: &ReplicaSet, name: &str) -> Result<Document> {
    let stored = old.client().await?.database("reshard").collection::<Document>("migrations");
    stored.find_one(doc! { "_id": name }).await?.context("what is stored")
}

/// Nothing of the migration is left, on either cluster.
async fn is_cleaned_up(old: &ReplicaSet, new: &ReplicaSet, name: &str) -> Result<()> {
    wait_for("the clean-up to end", LONG, || async {
        let stored = stored(old, name).await?;
        Ok(stored.get_str("phase")? == "aborted" && stored.get_bool("cleaned")?)
    })
    .await?;
    let left = new.client().await?.database("shop").list_collection_names().await?;
    ensure!(left.is_empty(), "on new: {left:?}");
    for set in [old, new] {
        let records = set.client().await?.database("reshard").collection::<Document>("authority");
        ensure!(records.count_documents(doc! { "_id": name }).await? == 0, "{} has a record", set.name());
    }
    Ok(())
}

async fn indexes(set: &ReplicaSet) -> Result<Vec<bson::Bson>> {
    let found = set.client().await?.database("shop").run_command(doc! { "listIndexes": "c" }).await?;
    Ok(found.get_document("cursor")?.get_array("firstBatch")?.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_an_abort_cleans_up() -> Result<()> {
    let (old, new) = two_sets("abort-killed").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let c = Client::with_uri_str(server.uri()).await?.database("shop").collection::<Document>("c");
    c.insert_many((0..DOCUMENTS).map(|id| doc! { "_id": id, "n": id })).await?;
    let shop = old.client().await?.database("shop");
    let ttl = doc! { "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": 3600 };
    shop.run_command(doc! { "createIndexes": "c", "indexes": [ttl] }).await?;
    let before = indexes(&old).await?;
    server.create_and_start("m", "shop.c").await?;
    server.until_free("m").await?;
    server.percent("m", "reads", 50).await?;
    ensure!(indexes(&old).await? != before, "the time to live is suspended");

    // In this order: old's time to live is put back, new's collection is dropped, the records go.
    let stages = [
        (&old, "collMod", "shop.c"),
        (&new, "drop", "shop.c"),
        (&new, "delete", "reshard.authority"),
        (&old, "delete", "reshard.authority"),
        (&old, "delete", "reshard.ranges"),
    ];
    let mut last: Option<FailPoint<'_>> = None;
    for (number, (set, command, namespace)) in stages.into_iter().enumerate() {
        if let Some(last) = last.take() {
            last.off().await?;
        }
        let fails = doc! { "failCommands": [command], "namespace": namespace, "errorCode": 8 };
        let stage = FailPoint::on(set, fails).await?;
        if number == 0 {
            let began = Instant::now();
            server.call("POST", "/v1/migrations/m/abort", None).await?;
            ensure!(began.elapsed() < ANSWERED, "it took {:?}", began.elapsed());
        } else {
            server.restart().await?;
        }
        // A client whose connections have not died with the process.
        let c = Client::with_uri_str(server.uri()).await?.database("shop").collection::<Document>("c");
        c.insert_one(doc! { "_id": format!("after {number}") }).await?;
        stage.is_met().await.with_context(|| format!("{command} on {namespace}: {}", server.tail()))?;
        server.kill9()?;
        last = Some(stage);
    }
    last.context("the last one")?.off().await?;
    server.restart().await?;
    is_cleaned_up(&old, &new, "m").await?;
    ensure!(indexes(&old).await? == before, "{:?} was {before:?}", indexes(&old).await?);
    let there = shop.collection::<Document>("c").count_documents(doc! {}).await?;
    ensure!(there == u64::try_from(DOCUMENTS)? + 5, "{there} on old");
    let through = c.count_documents(doc! {}).await?;
    ensure!(through == there, "{through} of {there} through the proxy");
    // And the collection is free for another one.
    server.create_and_start("again", "shop.c").await?;
    server.until_free("again").await
}

/// Applications go on at once, as if there were no migration.
async fn old_serves(c: &Collection<Document>, round: i32) -> Result<()> {
    let began = Instant::now();
    for id in 0..20 {
        c.update_one(doc! { "_id": id }, doc! { "$inc": { "n": 1 } }).await?;
        let found = c.find_one(doc! { "_id": id }).await?;
        ensure!(found == Some(doc! { "_id": id, "n": id + round }), "{found:?} in round {round}");
    }
    ensure!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    Ok(())
}

/// New hangs, and is given up for that very reason: while it is copied to, before and while it is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_while_new_hangs() -> Result<()> {
    let (old, new) = two_sets("abort-hang").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let c = Client::with_uri_str(uri(&proxy)).await?.database("shop").collection::<Document>("c");
    c.insert_many((0..DOCUMENTS).map(|id| doc! { "_id": id, "n": id })).await?;
    for (round, name) in (1..).zip(["copying", "synced", "read"]) {
        let operator = Operator::of(&proxy, name);
        operator.create(&["shop.c"]).await?;
        if name == "copying" {
            let slowly = Throttle { documents_per_second: Some(1.0), megabytes_per_second: None };
            operator.engine.set_throttle(&me(), name, slowly).await?;
        }
        operator.start().await?;
        if name == "copying" {
            ensure!(operator.progress().await?.phase == Phase::Copying);
        } else {
            operator.until_synced().await?;
        }
        if name == "read" {
            operator.reads(100).await?;
        }
        new.pause_all().await?;
        let began = Instant::now();
        let aborted = operator.engine.abort(&me(), name).await?;
        ensure!(began.elapsed() < ANSWERED, "{name}: it took {:?}", began.elapsed());
        ensure!(aborted.phase == Phase::Aborted && aborted.reads_percent == 0, "{aborted:?}");
        old_serves(&c, round).await.context(name)?;
        ensure!(!stored(&old, name).await?.get_bool("cleaned")?, "{name}: nobody can have cleaned up new");
        new.resume_all().await?;
        is_cleaned_up(&old, &new, name).await.context(name)?;
        let there = c.count_documents(doc! {}).await?;
        ensure!(there == u64::try_from(DOCUMENTS)?, "{name}: {there} documents");
    }
    proxy.shutdown().await;
    Ok(())
}

/// A collection that a pattern names is being made part of the migration: that gives way, and whoever waits for it
/// goes on without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_while_a_collection_becomes_part() -> Result<()> {
    let (old, new) = two_sets("abort-newcomer").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let shop = Client::with_uri_str(uri(&proxy)).await?.database("shop");
    shop.collection("c").insert_many((0..DOCUMENTS).map(|id| doc! { "_id": id, "n": id })).await?;
    let operator = Operator::of(&proxy, "m");
    operator.create(&["shop.*"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    let hangs = doc! { "failCommands": ["listCollections"], "blockConnection": true, "blockTimeMS": 30_000 };
    let hangs = FailPoint::on(&new, hangs).await?;
    let born = shop.collection::<Document>("born");
    let insert = tokio::spawn(async move { born.insert_one(doc! { "_id": 1 }).await });
    hangs.is_met().await?;
    ensure!(!insert.is_finished(), "it waits for nothing: {:?}", insert.await?);
    let began = Instant::now();
    let aborted = operator.engine.abort(&me(), "m").await?;
    ensure!(began.elapsed() < ANSWERED, "it took {:?}", began.elapsed());
    ensure!(aborted.phase == Phase::Aborted, "{aborted:?}");
    insert.await??;
    old_serves(&shop.collection("c"), 1).await?;
    hangs.off().await?;
    is_cleaned_up(&old, &new, "m").await?;
    let on_old = old.client().await?.database("shop").collection::<Document>("born");
    ensure!(on_old.find_one(doc! {}).await? == Some(doc! { "_id": 1 }), "what was acknowledged is on old");
    shop.collection::<Document>("born").drop().await?;
    proxy.shutdown().await;
    Ok(())
}
