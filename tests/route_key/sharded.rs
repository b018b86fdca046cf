//! The same on a sharded new, whose shard key begins with the tenant.

use super::by_tenant;
use super::support::{Operator, proxy, uri};
use super::tenants::{Load, documents};
use anyhow::{Error, Result};
use bson::{Document, doc};
use mongodb::Client;
use reshard::migration::control::NamespaceSpec;
use reshard::policy::shard_key::ShardKey;
use reshard_loadtest::compare;
use reshard_testbed::{ReplicaSet, ShardedCluster, wait_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_move_to_shards_under_load_and_back() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ReplicaSet::builder("route-shards-old").start(),
        ShardedCluster::builder().shards(2).start()
    )?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let operator = Operator::of(&proxy, "m");
    let shop = Client::with_uri_str(uri(&proxy)).await?.database("shop");
    shop.collection::<Document>("c").insert_many(documents()).await?;
    let index = doc! { "key": { "tenant": 1, "n": 1 }, "name": "tenant_n", "unique": true };
    shop.run_command(doc! { "createIndexes": "c", "indexes": [index] }).await?;
    let shard_key = ShardKey::parse(&doc! { "tenant": 1, "n": 1 }).map_err(Error::msg)?;
    operator.create_as(vec![NamespaceSpec { shard_key: Some(shard_key), ..by_tenant() }]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    let load = Load::start(&uri(&proxy)).await?;
    let steps = async {
        operator.reads(50).await?;
        operator.writes(50).await?;
        load.work().await?;
        operator.writes(0).await?;
        load.work().await?;
        operator.writes(25).await?;
        load.work().await
    };
    let moved = steps.await;
    load.stop().await?;
    moved?;
    operator.until_level().await?;
    wait_for("both sides to be equal", super::support::LONG, || async {
        Ok(compare(&old.uri(), &new.uri(), "shop.c").await?.is_equal())
    })
    .await?;
    operator.found_none_past_the_proxy().await?;
    proxy.shutdown().await;
    Ok(())
}
