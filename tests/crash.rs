//! `kill -9` of the proxy in every phase: on restart it goes on, nothing is lost, nothing happens twice.

mod support;

use anyhow::Result;
use reshard_loadtest::{Load, Profile};
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
