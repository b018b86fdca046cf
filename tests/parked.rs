//! More keys that cannot be made equal than may be parked.

mod support;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc};
use mongodb::{Client, Collection};
use reshard::migration::control::{Control as _, Phase, Throttle};
use reshard::state::parking::MOST;
use reshard_loadtest::compare;
use reshard_testbed::{ReplicaSet, wait_for};
use support::{LONG, Operator, me, proxy, two_sets, uri};

/// Keys are tried again every few seconds, and there are many.
const VERY_LONG: Duration = Duration::from_secs(400);

async fn parked(old: &ReplicaSet) -> Result<Collection<Document>> {
    Ok(old.client().await?.database("reshard").collection("parked"))
}

/// New refuses what applications write from now on.
async fn index_past_the_proxy(new: &ReplicaSet) -> Result<()> {
    let index = doc! { "key": { "g": "2dsphere" }, "name": "in the way" };
    new.client()
        .await?
        .database("shop")
        .run_command(doc! { "createIndexes": "c", "indexes": [index] })
        .await?;
    Ok(())
}

async fn drop_index(new: &ReplicaSet) -> Result<()> {
    let drop = doc! { "dropIndexes": "c", "index": "in the way" };
    new.client().await?.database("shop").run_command(drop).await?;
    Ok(())
}

async fn until_failed(operator: &Operator) -> Result<()> {
    let failed = wait_for("the migration to fail", VERY_LONG, || async {
        Ok(operator.progress().await?.phase == Phase::Failed)
    })
    .await;
    failed.with_context(|| format!("{:?}", futures::executor::block_on(operator.progress())))?;
    let why = operator.engine.get("m").await?.failure.context("a reason")?;
    ensure!(why.contains("cannot be made equal"), "{why}");
    Ok(())
}

/// What may be parked is bounded.
async fn no_more_than_may_be(old: &ReplicaSet, operator: &Operator) -> Result<u64> {
    let stored = parked(old).await?.count_documents(doc! {}).await?;
    let most = u64::try_from(MOST)?;
    ensure!(stored > most && stored < most + 100, "{stored} are stored");
    let known = u64::try_from(operator.engine.conflicts("m").await?.len())?;
    ensure!(known == stored, "{known} are known of {stored}");
    Ok(stored)
}

/// The migration fails, over a restart, and goes on once what stood in the way is gone: then nothing is left parked,
/// also not of what the process before had parked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_over_a_restart() -> Result<()> {
    let all = i32::try_from(MOST)? + 500;
    let (old, new) = two_sets("parked").await?;
    let first = proxy(&old.uri(), Some(&new.uri())).await?;
    let operator = Operator::of(&first, "m");
    let c = Client::with_uri_str(uri(&first)).await?.database("shop").collection::<Document>("c");
    c.insert_many((0..all).map(|id| doc! { "_id": id })).await?;
    operator.create(&["shop.c"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    index_past_the_proxy(&new).await?;
    c.update_many(doc! {}, doc! { "$set": { "g": "nowhere" } }).await?;
    until_failed(&operator).await?;
    let refused = operator.engine.resume(&me(), "m").await;
    ensure!(refused.as_ref().is_err_and(|why| why.code == "too-many-parked"), "{refused:?}");
    first.shutdown().await;

    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let operator = Operator::of(&proxy, "m");
    operator.ready().await?;
    wait_for("what was parked to be read", LONG, || async {
        Ok(operator.engine.conflicts("m").await?.len() > MOST)
    })
    .await?;
    no_more_than_may_be(&old, &operator).await?;
    let refused = operator.engine.resume(&me(), "m").await;
    ensure!(refused.as_ref().is_err_and(|why| why.code == "too-many-parked"), "{refused:?}");
    wait_for("keys to be tried again", LONG, || async {
        Ok(operator.engine.conflicts("m").await?.iter().any(|parked| parked.tries > 1))
    })
    .await?;
    drop_index(&new).await?;
    wait_for("it to be resumed", VERY_LONG, || async {
        Ok(operator.engine.resume(&me(), "m").await.is_ok())
    })
    .await?;
    wait_for("nothing to be parked", VERY_LONG, || async {
        Ok(parked(&old).await?.count_documents(doc! {}).await? == 0)
    })
    .await?;
    operator.until_synced().await?;
    operator.reads(100).await?;
    operator.writes(100).await?;
    ensure!(compare(&old.uri(), &new.uri(), "shop.c").await?.is_equal());
    proxy.shutdown().await;
    Ok(())
}

/// The copy, too, stops when too much of it is refused, and goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_while_it_copies() -> Result<()> {
    let all = i32::try_from(MOST)? + 3000;
    let (old, new) = two_sets("parked-copy").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let operator = Operator::of(&proxy, "m");
    let c = Client::with_uri_str(uri(&proxy)).await?.database("shop").collection::<Document>("c");
    c.insert_many((0..all).map(|id| doc! { "_id": id, "g": "nowhere" })).await?;
    operator.create(&["shop.c"]).await?;
    let slowly = Throttle { documents_per_second: Some(1.0), megabytes_per_second: None };
    operator.engine.set_throttle(&me(), "m", slowly).await?;
    operator.start().await?;
    index_past_the_proxy(&new).await?;
    operator.engine.set_throttle(&me(), "m", Throttle::default()).await?;
    until_failed(&operator).await?;
    no_more_than_may_be(&old, &operator).await?;
    drop_index(&new).await?;
    wait_for("it to be resumed", VERY_LONG, || async {
        Ok(operator.engine.resume(&me(), "m").await.is_ok())
    })
    .await?;
    operator.until_synced().await?;
    ensure!(parked(&old).await?.count_documents(doc! {}).await? == 0);
    ensure!(compare(&old.uri(), &new.uri(), "shop.c").await?.is_equal());
    proxy.shutdown().await;
    Ok(())
}
