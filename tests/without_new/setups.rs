//! New is sharded and tenants divide the collection; and a transaction is open when new goes away.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bson::oid::ObjectId;
use bson::{Document, doc};
use mongodb::Client;
use reshard::migration::control::{
    AcknowledgeUnreturned, Cluster, Control as _, Keys, NamespaceSpec, SetPins,
};
use reshard::migration::engine::Settings;
use reshard::policy::shard_key::ShardKey;
use reshard_testbed::{ReplicaSet, ShardedCluster};
use serde_json::json;

use super::support::{self, Operator, me, proxy, proxy_with, two_sets, until_equal, uri};
use super::{conflicts, fill, hold_off_the_stream, new_serves_all_and_has_more, orders, until_held_off};

fn order(tenant: &str, n: i32) -> Document {
    doc! { "_id": ObjectId::new(), "tenant": tenant, "n": n }
}

/// Changes a tenant's documents by `_id` and key, more than are mirrored at once: a third of them is removed. Returns
/// their ids.
async fn change_all_of(through: &str, tenant: &str) -> Result<Vec<ObjectId>> {
    let shop = Client::with_uri_str(through).await?.database("shop");
    let found: Vec<Document> = futures::TryStreamExt::try_collect(
        shop.collection::<Document>("c").find(doc! { "tenant": tenant }).sort(doc! { "_id": 1 }).await?,
    )
    .await?;
    let ids = found.iter().map(|order| order.get_object_id("_id")).collect::<Result<Vec<_>, _>>()?;
    let of = |id: &ObjectId| doc! { "_id": *id, "tenant": tenant };
    let (gone, kept) = ids.split_at(ids.len() / 2);
    let updates: Vec<_> = kept.iter().map(|id| doc! { "q": of(id), "u": { "$set": { "n": 1 } } }).collect();
    let deletes: Vec<_> = gone.iter().map(|id| doc! { "q": of(id), "limit": 1 }).collect();
    for command in [doc! { "update": "c", "updates": updates }, doc! { "delete": "c", "deletes": deletes }] {
        let done = shop.run_command(command).await?;
        ensure!(done.get_i32("n")? == 80 && !done.contains_key("writeErrors"), "{done}");
    }
    Ok(ids)
}

/// A tenant that was pinned to a sharded new comes back without it; another one stays there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_comes_back_from_a_sharded_new() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ReplicaSet::builder("without-new-tenant-old").start(),
        ShardedCluster::builder().shards(2).start(),
    )?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let through = orders(&uri(&proxy)).await?;
    let tenants = ["acme", "blue", "core"];
    through.insert_many(tenants.iter().flat_map(|tenant| (0..160).map(|_| order(tenant, 0)))).await?;
    let operator = Operator::of(&proxy, "m");
    let shard_key = ShardKey::parse(&doc! { "_id": "hashed" }).map_err(anyhow::Error::msg)?;
    let spec = NamespaceSpec {
        route_key: Some("tenant".into()),
        shard_key: Some(shard_key),
        ..NamespaceSpec::plain("shop.c")
    };
    operator.create_as(vec![spec]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    let first = SetPins { keys: vec![json!("acme"), json!("blue")], ranges: Vec::new(), to: Cluster::New };
    operator.engine.pin(&me(), "m", first).await?;
    operator.until_level().await?;
    for shard in new.shards() {
        hold_off_the_stream(shard).await?;
    }
    until_held_off(&operator).await?;
    let acme = change_all_of(&uri(&proxy), "acme").await?;
    change_all_of(&uri(&proxy), "blue").await?;

    new.router().kill().await?;
    let only = Keys { keys: vec![json!("acme")], ranges: Vec::new() };
    let back = operator.take_back_without_new(Some(only)).await?;
    println!("a tenant without a sharded new: {back:?}");
    let list = operator.unreturned().await?;
    let named: BTreeSet<_> = list.documents.iter().map(|it| it.key.clone()).collect();
    let expected: BTreeSet<_> = acme.iter().map(|id| format!("{{\"$oid\":\"{id}\"}}")).collect();
    ensure!(named == expected && back.all_named, "{named:?}, not {expected:?}; {back:?}");
    let count = async |n: i32, tenant: &str| {
        anyhow::Ok(through.count_documents(doc! { "tenant": tenant, "n": n }).await?)
    };
    ensure!(count(0, "acme").await? == 160, "old serves it, as it has it");
    let last = acme.last().context("one")?;
    through.update_one(doc! { "_id": *last, "tenant": "acme" }, doc! { "$set": { "n": 5 } }).await?;
    through.insert_one(order("acme", 5)).await?;

    for shard in new.shards() {
        shard.fail_point(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await?;
    }
    new.router().restart().await?;
    operator.until_back().await?;
    for (n, expected) in [(0, 0), (1, 79), (5, 2)] {
        let found = count(n, "acme").await?;
        ensure!(found == expected, "{found} of acme with {n}, not {expected}");
    }
    ensure!(count(1, "blue").await? == 80 && count(0, "blue").await? == 0 && count(0, "core").await? == 160);
    ensure!(conflicts(&operator.unreturned().await?).len() == 1);
    let merged = AcknowledgeUnreturned { reason: "merged by hand".into() };
    operator.engine.acknowledge_unreturned(&me(), "m", merged).await?;
    operator.until_level().await?;
    until_equal(&old.uri(), &new.uri(), "shop.c").await?;
    operator.found_none_past_the_proxy().await?;
    proxy.shutdown().await;
    Ok(())
}

/// A transaction that is open on new when that hangs does not commit any more, whatever new does later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_was_open_does_not_commit() -> Result<()> {
    transaction_that_was_open("without-new-transaction", false, support::settings()).await
}

/// The same where its commit would reach new, which goes on again, and the lease there has not ended by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_was_open_does_not_commit_when_new_goes_on() -> Result<()> {
    let settings = Settings { lease: Duration::from_secs(60), ..support::settings() };
    transaction_that_was_open("without-new-reached", true, settings).await
}

async fn transaction_that_was_open(name: &str, reached: bool, settings: Settings) -> Result<()> {
    let (old, new) = two_sets(name).await?;
    let proxy = proxy_with(&old.uri(), Some(&new.uri()), settings).await?;
    let client = Client::with_uri_str(uri(&proxy)).await?;
    let through = client.database("shop").collection::<Document>("c");
    fill(&through).await?;
    let operator = Operator::of(&proxy, "m");
    new_serves_all_and_has_more(&operator, &new, &uri(&proxy)).await?;
    // What is open there when new goes on again must not hold up its documents for long.
    let lifetime = doc! { "setParameter": 1, "transactionLifetimeLimitSeconds": 10 };
    new.client().await?.database("admin").run_command(lifetime).await?;
    let mut session = client.start_session().await?;
    session.start_transaction().await?;
    through.insert_one(doc! { "_id": 5000 }).session(&mut session).await?;
    through.update_one(doc! { "_id": 300 }, doc! { "$set": { "n": 3 } }).session(&mut session).await?;
    new.pause_all().await?;
    let back = operator.roll_back_without_new().await?;
    println!("with a transaction open: {back:?}");
    if reached {
        new.resume_all().await?;
    }
    let committed = session.commit_transaction().await;
    let Err(refused) = committed else {
        bail!("new has it, and old serves: it must not be told as committed")
    };
    ensure!(refused.contains_label(mongodb::error::TRANSIENT_TRANSACTION_ERROR), "{refused:?}");
    ensure!(through.find_one(doc! { "_id": 5000 }).await?.is_none());
    through.update_one(doc! { "_id": 300 }, doc! { "$set": { "n": 4 } }).await?;

    if !reached {
        new.resume_all().await?;
    }
    // Its stream goes on.
    new.fail_point(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await?;
    operator.until_back().await?;
    let merged = AcknowledgeUnreturned { reason: "merged by hand".into() };
    operator.engine.acknowledge_unreturned(&me(), "m", merged).await?;
    operator.until_level().await?;
    until_equal(&old.uri(), &new.uri(), "shop.c").await?;
    let old = orders(&old.uri()).await?;
    ensure!(old.find_one(doc! { "_id": 5000 }).await?.is_none(), "what was not committed is there");
    ensure!(old.find_one(doc! { "_id": 300 }).await?.context("300")?.get_i32("n")? == 4);
    proxy.shutdown().await;
    Ok(())
}
