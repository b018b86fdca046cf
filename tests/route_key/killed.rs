//! `kill -9` of the proxy while writes are divided by the field.

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use mongodb::Client;

use super::support::process::Server;
use super::support::{two_sets, until_equal};
use super::tenants::{Load, documents};

async fn kill_and_restart(server: &Server, load: &Load) -> Result<()> {
    load.work().await?;
    server.kill9()?;
    server.restart().await?;
    load.work().await
}

/// Each tenant has what it was acknowledged, once, on whichever cluster it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_tenants_are_on_both_clusters() -> Result<()> {
    let (old, new) = two_sets("route-killed").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let shop = Client::with_uri_str(server.uri()).await?.database("shop");
    shop.collection::<Document>("c").insert_many(documents()).await?;
    let index = doc! { "key": { "tenant": 1, "n": 1 }, "name": "tenant_n", "unique": true };
    shop.run_command(doc! { "createIndexes": "c", "indexes": [index] }).await?;
    let spec = serde_json::json!({ "namespace": "shop.c", "route_key": "tenant" });
    server.create_and_start_as("m", spec).await?;
    server.until_free("m").await?;
    let load = Load::start_repeatable(&server.uri()).await?;
    let steps = async {
        for (reads, writes) in [(50, 25), (100, 60)] {
            server.percent("m", "reads", reads).await?;
            kill_and_restart(&server, &load).await?;
            server.until_free("m").await?;
            server.percent("m", "writes", writes).await?;
            kill_and_restart(&server, &load).await?;
            server.until_free("m").await?;
        }
        server.insist("POST", "/v1/migrations/m/rollback", None).await?;
        kill_and_restart(&server, &load).await?;
        server.until_free("m").await?;
        server.percent("m", "reads", 100).await?;
        server.percent("m", "writes", 40).await?;
        load.work().await
    };
    let moved = steps.await;
    load.stop().await.with_context(|| server.tail())?;
    moved.with_context(|| server.tail())?;
    server.until_level("m").await?;
    until_equal(&old.uri(), &new.uri(), "shop.c").await
}
