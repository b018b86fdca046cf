//! What is refused, with the reason, and changes nothing.

mod support;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc};
use mongodb::Client;
use reshard::migration::control::{Complete, Control as _, Page, Patience, Phase, Refusal};
use reshard::migration::engine::Settings;
use reshard::model::side::Side;
use reshard_testbed::wait_for;
use support::process::Server;
use support::{LONG, Operator, me, proxy, proxy_with, two_sets, until_equal, uri};

async fn some_documents(through: &str) -> Result<Client> {
    let client = Client::with_uri_str(through).await?;
    let documents: Vec<Document> = (0..2000).map(|id| doc! { "_id": id, "n": 0 }).collect();
    client.database("shop").collection("c").insert_many(documents).await?;
    Ok(client)
}

/// A proxy that must not serve ends, and says why.
async fn ends_with(old: &str, new: Option<&str>, words: &str) -> Result<()> {
    let wrong = Server::prepare(old, new)?;
    wrong.spawn()?;
    wait_for("the wrong configuration to be refused", LONG, || async { Ok(wrong.has_ended()) }).await?;
    ensure!(wrong.tail().contains(words), "{}", wrong.tail());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_that_are_not_those_it_began_with() -> Result<()> {
    let (old, new) = two_sets("identity").await?;
    let other = reshard_testbed::ReplicaSet::builder("identity-other").start().await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    some_documents(&server.uri()).await?;
    server.create_and_start("m", "shop.c").await?;
    server.until_free("m").await?;
    server.kill9()?;
    ends_with(&new.uri(), Some(&old.uri()), "swapped").await?;
    ends_with(&old.uri(), Some(&other.uri()), "not the one that migration m began with").await?;
    server.restart().await?;
    server.until_free("m").await
}

/// Also where nothing but the name of a migration is stored yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_that_change_places_before_anything_moved() -> Result<()> {
    let (old, new) = two_sets("places").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let body = serde_json::json!({ "name": "m", "namespaces": [{ "namespace": "shop.c" }] });
    let (status, made) = server.http("POST", "/v1/migrations", Some(body)).await?;
    ensure!(status == 201, "{made}");
    server.kill9()?;
    ends_with(&new.uri(), Some(&old.uri()), "swapped").await?;
    server.restart().await
}

/// Half of the writes are on new: on old alone they would be missed, and new ones lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_is_not_served_by_one_cluster_alone() -> Result<()> {
    let (old, new) = two_sets("alone").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let client = some_documents(&server.uri()).await?;
    server.create_and_start("m", "shop.c").await?;
    server.until_free("m").await?;
    server.kill9()?;
    ends_with(&old.uri(), None, "Put [new] back").await?;
    ends_with(&new.uri(), None, "both clusters must be there").await?;
    server.restart().await?;
    server.until_free("m").await?;
    server.percent("m", "reads", 100).await?;
    server.percent("m", "writes", 50).await?;
    server.kill9()?;
    ends_with(&old.uri(), None, "Put [new] back").await?;

    server.restart().await?;
    server.until_free("m").await?;
    server.percent("m", "writes", 100).await?;
    let forced = serde_json::json!({ "force": true, "reason": "a test" });
    let (status, completed) = server.http("POST", "/v1/migrations/m/complete", Some(forced)).await?;
    ensure!(status == 200, "{completed}");
    client.database("shop").collection("c").insert_one(doc! { "_id": "on new alone" }).await?;
    server.kill9()?;
    ends_with(&old.uri(), None, "was completed").await?;
    // What was new is a cluster like any other now: alone, and as the old one of the next move.
    let found = async |old: &str, new: Option<&str>| {
        let next = Server::start(old, new).await?;
        let client = Client::with_uri_str(next.uri()).await?;
        let there = doc! { "_id": "on new alone" };
        anyhow::Ok(client.database("shop").collection::<Document>("c").count_documents(there).await? == 1)
    };
    ensure!(found(&new.uri(), None).await?);
    let third = reshard_testbed::ReplicaSet::builder("alone-third").start().await?;
    ensure!(found(&new.uri(), Some(&third.uri())).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_stands_alone_again_after_an_abort() -> Result<()> {
    let (old, new) = two_sets("alone-again").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    some_documents(&server.uri()).await?;
    server.create_and_start("m", "shop.c").await?;
    server.until_free("m").await?;
    let (status, aborted) = server.http("POST", "/v1/migrations/m/abort", None).await?;
    ensure!(status == 200, "{aborted}");
    server.kill9()?;
    let alone = Server::start(&old.uri(), None).await?;
    let client = Client::with_uri_str(alone.uri()).await?;
    ensure!(client.database("shop").collection::<Document>("c").count_documents(doc! {}).await? == 2000);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_cluster_as_both() -> Result<()> {
    let old = reshard_testbed::ReplicaSet::builder("one").start().await?;
    let proxy = proxy(&old.uri(), Some(&old.direct_uri(0))).await?;
    some_documents(&uri(&proxy)).await?;
    let operator = Operator::of(&proxy, "m");
    operator.create(&["shop.c"]).await?;
    let refused = operator.engine.start(&me(), "m").await.expect_err("old is new");
    ensure!(refused.code == "same-cluster", "{refused:?}");
    proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_proxy_refuses_migrations() -> Result<()> {
    let old = reshard_testbed::ReplicaSet::builder("plain").start().await?;
    let proxy = proxy(&old.uri(), None).await?;
    let operator = Operator::of(&proxy, "m");
    let refused = operator.create(&["shop.c"]).await.expect_err("there is no new");
    ensure!(refused.to_string().contains("[new]"), "{refused}");
    proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_do_not_fit_the_phase() -> Result<()> {
    let (old, new) = two_sets("phases").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let client = some_documents(&uri(&proxy)).await?;
    let operator = Operator::of(&proxy, "m");
    let engine = &operator.engine;
    operator.create(&["shop.c"]).await?;
    operator.create(&["shop.c"]).await?;
    let code = |result: Result<(), reshard::migration::control::ControlError>| match result {
        Ok(()) => "ok",
        Err(error) if error.kind == Refusal::Conflict => error.code,
        Err(_) => "not a conflict",
    };
    ensure!(
        code(engine.set_writes(&me(), "m", 10.into(), Patience::default()).await.map(|_| ()))
            == "wrong-phase"
    );
    ensure!(code(engine.pause(&me(), "m").await.map(|_| ())) == "wrong-phase");
    operator.start().await?;
    operator.start().await?;
    operator.until_synced().await?;
    ensure!(
        code(engine.set_writes(&me(), "m", 10.into(), Patience::default()).await.map(|_| ()))
            == "writes-above-reads"
    );
    ensure!(code(engine.complete(&me(), "m", Complete::default()).await.map(|_| ())) == "not-all-on-new");

    let shop = client.database("shop");
    let dropped = shop.collection::<Document>("c").drop().await.expect_err("drop while it moves");
    ensure!(dropped.to_string().contains("migration m"), "{dropped}");
    ensure!(shop.drop().await.is_err(), "dropDatabase while a collection of it moves");

    operator.reads(60).await?;
    operator.writes(40).await?;
    ensure!(code(engine.set_reads(&me(), "m", 10.into()).await.map(|_| ())) == "reads-below-writes");
    ensure!(code(engine.abort(&me(), "m").await.map(|_| ())) == "writes-on-new");
    ensure!(code(engine.pause(&me(), "m").await.map(|_| ())) == "not-while-serving");
    operator.reads(100).await?;
    operator.writes(100).await?;
    ensure!(code(engine.complete(&me(), "m", Complete::default()).await.map(|_| ())) == "hold-period");
    let no_reason = Complete { force: true, reason: None };
    ensure!(code(engine.complete(&me(), "m", no_reason).await.map(|_| ())) == "hold-period");
    operator.complete().await?;
    operator.complete().await?;
    ensure!(code(engine.rollback(&me(), "m").await.map(|_| ())) == "wrong-phase");
    ensure!(code(engine.abort(&me(), "m").await.map(|_| ())) == "wrong-phase");

    let found = shop.collection::<Document>("c").count_documents(doc! {}).await?;
    ensure!(found == 2000, "{found} documents through the proxy");
    let events = engine.events("m").await?;
    ensure!(
        events.iter().any(|event| event.what.starts_with("writes 100") && event.result == "ok"),
        "{events:?}"
    );
    let (mut turned, mut before) = (Vec::new(), None);
    loop {
        // What happened in one millisecond is never divided: two refusals may share a page of one.
        let page = engine.audit("m", Page { limit: Some(1), before }).await?;
        let first = page.events.first().context("an empty page")?;
        ensure!(page.events.iter().all(|event| event.at == first.at), "{page:?}");
        turned.extend(page.events.iter().map(|event| (event.at, event.what.clone(), event.result.clone())));
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    let mut whole: Vec<_> =
        events.iter().map(|event| (event.at, event.what.clone(), event.result.clone())).collect();
    ensure!(turned.is_sorted_by(|newer, older| newer.0 >= older.0), "{turned:?}");
    whole.sort();
    turned.sort();
    ensure!(turned == whole, "{turned:?}, not {whole:?}");
    proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelines_that_will_be_refused_are_told_at_preflight() -> Result<()> {
    let (old, new) = two_sets("pipelines").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let client = some_documents(&uri(&proxy)).await?;
    let c = client.database("shop").collection::<Document>("c");
    client.database("shop").collection("names").insert_one(doc! { "_id": 0 }).await?;
    let lookup = doc! { "from": "names", "localField": "n", "foreignField": "_id", "as": "name" };
    for stage in [doc! { "$merge": "sums" }, doc! { "$lookup": lookup }, doc! { "$match": { "n": 1 } }] {
        c.aggregate([stage]).await?;
    }
    let operator = Operator::of(&proxy, "m");
    operator.create(&["shop.sums", "shop.names"]).await?;
    let report = operator.engine.preflight("m").await?;
    ensure!(report.ok, "{report:#?}");
    let told: Vec<_> = ["pipeline-writes", "used-together"]
        .into_iter()
        .flat_map(|code| report.findings.iter().filter(move |finding| finding.code == code))
        .map(|finding| (&*finding.code, &*finding.namespace))
        .collect();
    ensure!(
        told == [("pipeline-writes", "shop.sums"), ("used-together", "shop.names")],
        "{told:?}: {report:#?}"
    );
    proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_is_quick_and_leaves_old_as_it_was() -> Result<()> {
    let (old, new) = two_sets("abort").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let client = some_documents(&uri(&proxy)).await?;
    let operator = Operator::of(&proxy, "m");
    operator.create(&["shop.c"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    operator.reads(50).await?;
    let begun = Instant::now();
    operator.engine.abort(&me(), "m").await?;
    ensure!(begun.elapsed() < Duration::from_secs(2), "it took {:?}", begun.elapsed());
    let orders = client.database("shop").collection::<Document>("c");
    orders.insert_one(doc! { "_id": "after" }).await?;
    ensure!(orders.count_documents(doc! {}).await? == 2001);
    wait_for("new to be cleaned up", LONG, || async {
        let names = new.client().await?.database("shop").list_collection_names().await?;
        Ok(names.is_empty())
    })
    .await?;
    ensure!(operator.progress().await?.phase == Phase::Aborted);
    // Another migration of the same collection can begin.
    let again = Operator::of(&proxy, "again");
    again.create(&["shop.c"]).await?;
    again.start().await?;
    again.until_synced().await?;
    again.until_level().await?;
    until_equal(&old.uri(), &new.uri(), "shop.c").await?;
    proxy.shutdown().await;
    Ok(())
}

/// After a restart, while the cluster with the state is away, a migration is known by its name and collections alone. An
/// abort by that would forget what it has to put back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_waits_until_what_is_stored_has_been_read() -> Result<()> {
    let (old, new) = two_sets("abort-unread").await?;
    let kept_on_new = || Settings { state: Side::New, ..support::settings() };
    let first = proxy_with(&old.uri(), Some(&new.uri()), kept_on_new()).await?;
    some_documents(&uri(&first)).await?;
    let on_old = old.client().await?.database("shop");
    let ttl = doc! { "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": 3600 };
    on_old.run_command(doc! { "createIndexes": "c", "indexes": [ttl] }).await?;
    let operator = Operator::of(&first, "m");
    operator.create(&["shop.c"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    first.shutdown().await;
    new.kill9_all().await?;

    let next = proxy_with(&old.uri(), Some(&new.uri()), kept_on_new()).await?;
    let operator = Operator::of(&next, "m");
    operator.ready().await?;
    let refused = operator.engine.abort(&me(), "m").await.expect_err("nothing has been read");
    ensure!(refused.kind == Refusal::Unavailable && refused.detail.contains("read"), "{refused:?}");
    new.start_all().await?;
    wait_for("the abort to be taken", LONG, || async { Ok(operator.engine.abort(&me(), "m").await.is_ok()) })
        .await?;
    wait_for("the time to live to be put back", LONG, || async {
        let listed = on_old.run_command(doc! { "listIndexes": "c" }).await?;
        let indexes = listed.get_document("cursor")?.get_array("firstBatch")?;
        Ok(indexes.iter().filter_map(|index| index.as_document()).any(|index| {
            index.get("expireAfterSeconds").is_some_and(|after| matches!(after.to_string().as_str(), "3600"))
        }))
    })
    .await?;
    next.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_away_with_authority_fails_its_writes_in_bounded_time_and_nothing_else() -> Result<()> {
    let (old, new) = two_sets("authority-away").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let client = some_documents(&uri(&proxy)).await?;
    let operator = Operator::of(&proxy, "m");
    operator.create(&["shop.c"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    operator.reads(50).await?;
    operator.writes(50).await?;
    // Enough connections that a write which waits keeps no other one waiting in the driver.
    let wide = Client::with_uri_str(format!("{}?maxPoolSize=60", uri(&proxy))).await?;
    let orders = wide.database("shop").collection::<Document>("c");
    new.kill9_all().await?;
    let (mut worked, mut failed) = (0, 0);
    let mut tasks = tokio::task::JoinSet::new();
    for id in 0..40 {
        let orders = orders.clone();
        tasks.spawn(async move { orders.update_one(doc! { "_id": id }, doc! { "$inc": { "n": 1 } }).await });
    }
    let all = async {
        while let Some(result) = tasks.join_next().await {
            match result? {
                Ok(_) => worked += 1,
                Err(error) => {
                    ensure!(error.contains_label("RetryableWriteError"), "{error}");
                    failed += 1;
                }
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(Duration::from_secs(100), all).await??;
    ensure!(worked > 5 && failed > 5, "{worked} worked, {failed} failed");
    // Collections that do not migrate, and aborting clients, notice nothing.
    client.database("shop").collection("other").insert_one(doc! { "_id": 1 }).await?;
    new.start_all().await?;
    operator.until_synced().await?;
    orders.update_many(doc! {}, doc! { "$inc": { "n": 100 } }).await?;
    operator.until_level().await?;
    until_equal(&old.uri(), &new.uri(), "shop.c").await?;
    proxy.shutdown().await;
    Ok(())
}

/// Old holds what is stored: whether there are migrations cannot be told without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_not_said_to_be_missing() -> Result<()> {
    let new = reshard_testbed::ReplicaSet::builder("unread-new").start().await?;
    let proxy = proxy("mongodb://127.0.0.1:1/", Some(&new.uri())).await?;
    let engine = proxy.engine();
    let waits = |reasons: Vec<String>| reasons.iter().any(|why| why.contains("old does not answer"));
    wait_for("new's records to be read", LONG, || async { Ok(waits(engine.not_ready().await)) }).await?;
    let listed = engine.list().await.expect_err("an unknown is not a no");
    ensure!(listed.kind == Refusal::Unavailable && listed.detail.contains("stored on old"), "{listed:?}");
    let shown = engine.get("m").await.expect_err("an unknown is not a no");
    ensure!(shown.kind == Refusal::Unavailable, "{shown:?}");
    proxy.shutdown().await;
    Ok(())
}
