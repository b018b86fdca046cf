//! `kill -9` of the proxy in every phase: on restart it goes on, nothing is lost, nothing happens twice.

mod support;

use anyhow::{Result, ensure};
use bson::{Document, doc};
use futures::TryStreamExt as _;
use mongodb::Client;
use reshard_loadtest::{Load, Profile};
use reshard_testbed::{ReplicaSet, wait_for};
use serde_json::{Value, json};
use support::process::Server;
use support::proof::{DOCUMENTS, load, prove, work};
use support::{LONG, makes_collections_slowly, two_sets};

/// Kills and restarts while the load goes on.
async fn kill_and_restart(server: &Server, load: &Load) -> Result<()> {
    work(load, 50).await?;
    server.kill9()?;
    server.restart().await?;
    work(load, 50).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_every_phase_moving_by_percent() -> Result<()> {
    let (old, new) = two_sets("crash-percent").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let config = load(server.uri(), Profile::Keyed, DOCUMENTS);
    Load::prepare(&config).await?;
    let load = Load::start(config).await?;
    server.create_and_start("orders", "shop.orders").await?;
    kill_and_restart(&server, &load).await?;
    server.until_free("orders").await?;
    kill_and_restart(&server, &load).await?;
    server.percent("orders", "reads", 50).await?;
    kill_and_restart(&server, &load).await?;
    server.percent("orders", "reads", 100).await?;
    server.percent("orders", "writes", 40).await?;
    kill_and_restart(&server, &load).await?;
    server.percent("orders", "writes", 100).await?;
    kill_and_restart(&server, &load).await?;
    server.insist("POST", "/v1/migrations/orders/rollback", None).await?;
    kill_and_restart(&server, &load).await?;
    server.until_free("orders").await?;
    let outcome = load.stop().await;
    server.until_level("orders").await?;
    prove(outcome, &old, &new, &server.uri(), "shop.orders").await
}

/// Also while it prepares, in the middle of `complete`, and after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_every_phase_moving_in_one_step() -> Result<()> {
    let (old, new) = two_sets("crash-step").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let config = load(server.uri(), Profile::Unique, DOCUMENTS);
    Load::prepare(&config).await?;
    let load = Load::start(config).await?;
    killed_while_it_prepares(&server, &new, &load).await?;
    kill_and_restart(&server, &load).await?;
    server.until_free("customers").await?;
    kill_and_restart(&server, &load).await?;
    server.percent("customers", "reads", 100).await?;
    kill_and_restart(&server, &load).await?;
    server.percent("customers", "writes", 100).await?;
    kill_and_restart(&server, &load).await?;
    server.insist("POST", "/v1/migrations/customers/rollback", None).await?;
    kill_and_restart(&server, &load).await?;
    server.percent("customers", "reads", 100).await?;
    server.percent("customers", "writes", 100).await?;
    server.until_level("customers").await?;

    let complete = serde_json::json!({ "force": true, "reason": "test" });
    let call = server.http("POST", "/v1/migrations/customers/complete", Some(complete.clone()));
    let (_cut_short, killed) = tokio::join!(call, async { server.kill9() });
    killed?;
    server.restart().await?;
    work(&load, 100).await?;
    server.insist("POST", "/v1/migrations/customers/complete", Some(complete)).await?;
    server.until("customers", "its end", |progress| progress["phase"] == "completed").await?;
    kill_and_restart(&server, &load).await?;
    // New alone goes on: what was acknowledged is there, once.
    let outcome = load.stop().await;
    let report = outcome.verify(&new.uri()).await?;
    ensure!(report.is_clean(), "{report}\n{:#?}", outcome.stats.errors);
    Ok(())
}

/// Making the collection on new takes long, and the process does not live to see the end of it.
async fn killed_while_it_prepares(server: &Server, new: &ReplicaSet, load: &Load) -> Result<()> {
    makes_collections_slowly(new, true).await?;
    let spec = serde_json::json!({ "name": "customers", "namespaces": [{ "namespace": "shop.customers" }] });
    server.insist("POST", "/v1/migrations", Some(spec)).await?;
    let starting = server.http("POST", "/v1/migrations/customers/start", None);
    let killing = async {
        server.until("customers", "it to prepare", |progress| progress["phase"] == "preparing").await?;
        server.kill9()
    };
    let (_cut_short, killed) = tokio::join!(starting, killing);
    killed?;
    makes_collections_slowly(new, false).await?;
    server.restart().await?;
    work(load, 50).await?;
    server.insist("POST", "/v1/migrations/customers/start", None).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_of_moves() -> Result<()> {
    let (old, new) = two_sets("crash-move").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let config = load(server.uri(), Profile::Unique, 3_000);
    Load::prepare(&config).await?;
    let load = Load::start(config).await?;
    server.create_and_start("customers", "shop.customers").await?;
    server.until_free("customers").await?;
    server.percent("customers", "reads", 100).await?;
    for percent in [100, 0, 100] {
        let body = serde_json::json!({ "percent": percent });
        // The call dies with the process; where the move stands then is left to chance.
        let moving = server.http("PUT", "/v1/migrations/customers/writes", Some(body));
        let killing = async {
            work(&load, 5).await?;
            server.kill9()
        };
        let (_cut_short, killed) = tokio::join!(moving, killing);
        killed?;
        server.restart().await?;
        work(&load, 50).await?;
        server.percent("customers", "writes", percent).await?;
    }
    let outcome = load.stop().await;
    server.until_level("customers").await?;
    prove(outcome, &old, &new, &server.uri(), "shop.customers").await
}

/// What the ranges of the copy have stored as copied: how many of them are done, and their documents.
async fn stored_copies(old: &ReplicaSet) -> Result<(usize, u64)> {
    let ranges = old.client().await?.database("reshard").collection::<Document>("ranges");
    let ranges: Vec<Document> = ranges.find(doc! { "done": true }).await?.try_collect().await?;
    let documents = ranges.iter().map(|range| range.get_i64("copied_documents")).sum::<Result<i64, _>>()?;
    Ok((ranges.len(), u64::try_from(documents)?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_copied_before_counts_after() -> Result<()> {
    let (old, new) = two_sets("crash-counts").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let c = Client::with_uri_str(server.uri()).await?.database("shop").collection::<Document>("c");
    for first in (0..12_000).step_by(1_000) {
        c.insert_many((first..first + 1_000).map(|id| doc! { "_id": id, "text": "x".repeat(1_000) })).await?;
    }
    let spec = json!({ "name": "m", "namespaces": [{ "namespace": "shop.c" }] });
    server.insist("POST", "/v1/migrations", Some(spec)).await?;
    let slowly = json!({ "documents_per_second": 1_000 });
    server.call("PUT", "/v1/migrations/m/throttle", Some(slowly)).await?;
    server.insist("POST", "/v1/migrations/m/start", None).await?;
    wait_for("two ranges to be copied", LONG, || async { Ok(stored_copies(&old).await?.0 >= 2) }).await?;
    server.kill9()?;
    let (done, before) = stored_copies(&old).await?;
    ensure!(done < 6 && before > 2_000 && before < 12_000, "{done} ranges with {before} documents");
    server.restart().await?;
    let copied = |progress: &Value| progress["copied_documents"].as_u64().unwrap_or(0);
    let counts = parking_lot::Mutex::new(0);
    server
        .until("m", "the copy to go on", |progress| {
            *counts.lock() = copied(progress);
            copied(progress) > 0
        })
        .await?;
    let after = counts.into_inner();
    ensure!(after >= before, "{after} documents after {before}");
    server.call("PUT", "/v1/migrations/m/throttle", Some(json!({}))).await?;
    let all = |progress: &Value| {
        // Each document has 1,025 bytes.
        let bytes = progress["copied_bytes"] == 12_000 * 1_025;
        progress["phase"] == "synced" && copied(progress) == 12_000 && bytes
    };
    server.until("m", "each document to count once", all).await?;
    server.kill9()?;
    server.restart().await?;
    server.until("m", "all to count after another restart", all).await
}
