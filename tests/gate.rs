//! Writes move to new, and a migration completes, only after a full verification that went through.

mod support;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc};
use mongodb::Client;
use reshard::app::Proxy;
use reshard::migration::control::{
    Basis, Complete, Conclusion, Control as _, ControlError, Patience, Phase, Verification, Verify,
};
use reshard::migration::engine::Settings;
use reshard_testbed::{ReplicaSet, wait_for};
use serde_json::Value;
use support::process::{Server, but_for_a_verification};
use support::{LONG, Operator, me, proxy_with, two_sets, uri, wants_verification};

const DOCUMENTS: i32 = 500;
const WAY_OUT: &str = "reshard migrate verify m --wait";

/// Nothing but the gate keeps it from completing.
async fn without_hold(old: &ReplicaSet, new: &ReplicaSet) -> Result<Proxy> {
    let settings = Settings { hold: Duration::ZERO, ..support::settings() };
    proxy_with(&old.uri(), Some(&new.uri()), settings).await
}

async fn fill(through: &str) -> Result<()> {
    let c = Client::with_uri_str(through).await?.database("shop").collection::<Document>("c");
    c.insert_many((0..DOCUMENTS).map(|id| doc! { "_id": id, "n": id })).await?;
    Ok(())
}

async fn until_but_for_a_verification(operator: &Operator) -> Result<()> {
    let waited = wait_for("nothing but a verification to be lacking", LONG, || async {
        let progress = operator.progress().await?;
        Ok(progress.phase == Phase::Synced && progress.blocked_by.iter().all(|why| wants_verification(why)))
    });
    waited.await.with_context(|| format!("{:?}", futures::executor::block_on(operator.progress())))
}

async fn verified(operator: &Operator) -> Result<Verification> {
    operator.engine.verify(&me(), "m", Verify::default()).await?;
    wait_for("the verification to end", LONG, || async {
        Ok(operator.progress().await?.verification.is_some_and(|last| !last.running))
    })
    .await?;
    operator.progress().await?.verification.context("a verification")
}

/// Refused for want of a verification alone, with the way out.
fn refused_as(refused: Result<(), ControlError>, code: &str, words: &str) -> Result<()> {
    let refused = refused.err().context("it should be refused")?;
    ensure!(refused.code == code && refused.reasons.len() == 1, "{refused:?} {:?}", refused.reasons);
    ensure!(refused.reasons[0].contains(words) && refused.reasons[0].contains(WAY_OUT), "{refused:?}");
    ensure!(refused.detail.contains(WAY_OUT), "{refused:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_move_only_after_a_verification_that_outlives_the_process() -> Result<()> {
    let (old, new) = two_sets("gate").await?;
    let first = without_hold(&old, &new).await?;
    fill(&uri(&first)).await?;
    let operator = Operator::of(&first, "m");
    operator.create(&["shop.c"]).await?;
    operator.start().await?;
    until_but_for_a_verification(&operator).await?;
    // Reads do not need it.
    operator.reads(100).await?;
    let move_writes = async |operator: &Operator| {
        operator.engine.set_writes(&me(), "m", 40.into(), Patience::default()).await
    };
    refused_as(move_writes(&operator).await.map(|_| ()), "blocked", "no full verification")?;
    let progress = operator.progress().await?;
    ensure!(!progress.can_cut_over && progress.verification.is_none(), "{progress:?}");

    let result = verified(&operator).await?;
    ensure!(result.failure.is_none() && !result.outdated && result.mismatches == 0, "{result:?}");
    ensure!(result.namespaces == ["shop.c"] && result.started_at <= result.finished_at, "{result:?}");
    let documents = u64::try_from(DOCUMENTS)?;
    ensure!(result.compared_documents == documents && result.total_documents == documents, "{result:?}");
    ensure!(operator.progress().await?.can_cut_over);
    first.shutdown().await;

    let next = without_hold(&old, &new).await?;
    let operator = Operator::of(&next, "m");
    operator.ready().await?;
    wait_for("what is stored to be read", LONG, || async {
        Ok(operator.progress().await.is_ok_and(|progress| progress.verification.is_some()))
    })
    .await?;
    let view = operator.engine.get("m").await?;
    ensure!(view.verification == Some(result.clone()), "{view:?} after {result:?}");
    wait_for("the successor to be free to move", LONG, || async {
        Ok(operator.progress().await?.can_cut_over)
    })
    .await?;
    operator.writes(40).await?;

    // One that leaves a difference closes the gate again, upwards.
    let indexed = doc! { "createIndexes": "c", "indexes": [{ "key": { "n": 1 }, "name": "n_1" }] };
    old.client().await?.database("shop").run_command(indexed.clone()).await?;
    let result = verified(&operator).await?;
    ensure!(result.mismatches == 1 && result.repaired == 0, "{result:?}");
    refused_as(
        operator.engine.set_writes(&me(), "m", 100.into(), Patience::default()).await.map(|_| ()),
        "blocked",
        "left 1 diff",
    )?;
    let began = std::time::Instant::now();
    let back = operator.rollback().await?;
    let took = u64::try_from(began.elapsed().as_millis())?;
    ensure!(
        (1..=took).contains(&back.elapsed_ms) && back.elapsed_ms >= back.pause_ms,
        "{back:?} of {took} ms"
    );
    let events = operator.engine.events("m").await?;
    let told = events.iter().find(|event| event.what == "rollback").and_then(|event| event.elapsed_ms);
    ensure!(told.is_some_and(|told| (back.elapsed_ms..=took).contains(&told)), "{back:?} {events:?}");
    new.client().await?.database("shop").run_command(indexed).await?;
    verified(&operator).await?;
    operator.reads(100).await?;
    operator.writes(100).await?;
    next.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_completes_verified_or_by_force_that_the_audit_names() -> Result<()> {
    let (old, new) = two_sets("gate-complete").await?;
    let proxy = without_hold(&old, &new).await?;
    fill(&uri(&proxy)).await?;
    let operator = Operator::of(&proxy, "m");
    operator.create(&["shop.c"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    operator.reads(100).await?;
    operator.writes(100).await?;
    let indexed = doc! { "createIndexes": "c", "indexes": [{ "key": { "n": 1 }, "name": "n_1" }] };
    old.client().await?.database("shop").run_command(indexed).await?;
    verified(&operator).await?;
    let complete = async |how: Complete| operator.engine.complete(&me(), "m", how).await.map(|_| ());
    refused_as(complete(Complete::default()).await, "not-verified", "left 1 diff")?;
    let no_reason = Complete { force: true, reason: None };
    refused_as(complete(no_reason).await, "not-verified", "left 1 diff")?;
    complete(Complete { force: true, reason: Some("the index is not needed".into()) }).await?;
    let events = operator.engine.events("m").await?;
    let done = events.iter().find(|event| event.result == "ok" && event.what.starts_with("complete"));
    let what = &done.with_context(|| format!("{events:?}"))?.what;
    ensure!(what.contains("the index is not needed") && what.contains("left 1 differences"), "{what}");
    proxy.shutdown().await;
    Ok(())
}

/// A part of it, or digests, open no gate; differences that they leave close it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spot_checks_prove_nothing_and_can_disprove() -> Result<()> {
    let (old, new) = two_sets("gate-spot").await?;
    let proxy = without_hold(&old, &new).await?;
    fill(&uri(&proxy)).await?;
    let operator = Operator::of(&proxy, "m");
    operator.create(&["shop.c"]).await?;
    operator.start().await?;
    until_but_for_a_verification(&operator).await?;
    operator.reads(100).await?;
    let checked = async |asked: Verify| {
        operator.engine.verify(&me(), "m", asked).await?;
        wait_for("the spot check to end", LONG, || async {
            Ok(operator.progress().await?.spot_check.is_some_and(|last| !last.running))
        })
        .await?;
        operator.progress().await?.spot_check.context("a spot check")
    };
    let digest = Verify { compare: Basis::Digest, repair: false, ..Verify::default() };
    let result = checked(digest).await?;
    ensure!(result.failure.is_none() && result.mismatches == 0, "{result:?}");
    let move_writes =
        async || operator.engine.set_writes(&me(), "m", 40.into(), Patience::default()).await.map(|_| ());
    refused_as(move_writes().await, "blocked", "no full verification")?;
    let report = operator.engine.verification("m").await?;
    ensure!(report.conclusion == Conclusion::NotProved && !report.blind_spots.is_empty(), "{report:?}");
    verified(&operator).await?;
    let report = operator.engine.verification("m").await?;
    ensure!(report.conclusion == Conclusion::Equal && !report.clusters.new.is_empty(), "{report:?}");
    let indexed = doc! { "createIndexes": "c", "indexes": [{ "key": { "n": 1 }, "name": "n_1" }] };
    old.client().await?.database("shop").run_command(indexed).await?;
    checked(Verify { sample_percent: 5.0, ..Verify::default() }).await?;
    refused_as(move_writes().await, "blocked", "has 1 differences")?;
    let report = operator.engine.verification("m").await?;
    ensure!(report.conclusion == Conclusion::Different && report.mismatches.len() == 1, "{report:?}");
    let bad = operator.engine.verify(&me(), "m", Verify { parallel: 0, ..Verify::default() }).await;
    ensure!(bad.is_err_and(|refused| refused.reasons.len() == 1));
    proxy.shutdown().await;
    Ok(())
}

/// One that ran when the process died counts only when the next process has brought it to its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verification_that_a_crash_cut_short_goes_on() -> Result<()> {
    let (old, new) = two_sets("gate-crash").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    fill(&server.uri()).await?;
    server.create_and_start("m", "shop.c").await?;
    server.until_free("m").await?;
    // With nobody following, a difference cannot be decided about: it goes on looking.
    server.call("POST", "/v1/migrations/m/pause", None).await?;
    let past = old.client().await?.database("shop").collection::<Document>("c");
    past.insert_one(doc! { "_id": "not followed" }).await?;
    let running = server.call("POST", "/v1/migrations/m/verify", None).await?;
    ensure!(running["running"] == true, "{running}");
    let says = |progress: &Value, words: &str| progress["blocked_by"].to_string().contains(words);
    server.until("m", "a running one not to count", |progress| says(progress, "is running")).await?;
    server.kill9()?;
    server.restart().await?;
    server.until("m", "it to go on", |progress| says(progress, "is running")).await?;
    server.insist("POST", "/v1/migrations/m/resume", None).await?;
    // What the test wrote past the proxy is acknowledged as soon as it is found.
    wait_for("nothing else to be lacking", LONG, || async {
        let reason = serde_json::json!({ "reason": "the test wrote past the proxy" });
        let _none_yet =
            server.http("POST", "/v1/migrations/m/bypass-writes/acknowledge", Some(reason)).await?;
        let (_, progress) = server.get("/v1/migrations/m/progress").await?;
        Ok(but_for_a_verification(&progress))
    })
    .await?;
    let ended = |progress: &Value| progress["verification"]["running"] == false;
    server.until("m", "it to end", ended).await?;
    let (_, view) = server.get("/v1/migrations/m").await?;
    let last = &view["verification"];
    ensure!(last["started_at"] == running["started_at"] && last["failure"].is_null(), "{view} {running}");
    ensure!(last["compared_documents"] == DOCUMENTS + 1 && last["mismatches"] == last["repaired"], "{view}");
    server.until_free("m").await
}
