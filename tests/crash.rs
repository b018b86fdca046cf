//! `kill -9` of the proxy in every phase: on restart it goes on, nothing is lost, nothing happens twice.

mod support;

use anyhow::{Result, ensure};
use bson::doc;
use reshard_loadtest::{Load, Profile};
use reshard_testbed::ReplicaSet;
use support::process::Server;
use support::proof::{DOCUMENTS, load, prove, work};
use support::two_sets;

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

/// Also while it prepares, and in the middle of `complete`.
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
    work(&load, 100).await?;
    // New alone goes on: what was acknowledged is there, once.
    let outcome = load.stop().await;
    let report = outcome.verify(&new.uri()).await?;
    ensure!(report.is_clean(), "{report}\n{:#?}", outcome.stats.errors);
    Ok(())
}

/// Making the collection on new takes long, and the process does not live to see the end of it.
async fn killed_while_it_prepares(server: &Server, new: &ReplicaSet, load: &Load) -> Result<()> {
    let slow = |mode: &str| {
        doc! {
            "configureFailPoint": "failCommand", "mode": mode,
            "data": { "failCommands": ["create", "createIndexes"], "blockConnection": true, "blockTimeMS": 3000 },
        }
    };
    new.fail_point(slow("alwaysOn")).await?;
    let spec = serde_json::json!({ "name": "customers", "namespaces": [{ "namespace": "shop.customers" }] });
    server.insist("POST", "/v1/migrations", Some(spec)).await?;
    let starting = server.http("POST", "/v1/migrations/customers/start", None);
    let killing = async {
        server.until("customers", "it to prepare", |progress| progress["phase"] == "preparing").await?;
        server.kill9()
    };
    let (_cut_short, killed) = tokio::join!(starting, killing);
    killed?;
    new.fail_point(slow("off")).await?;
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
