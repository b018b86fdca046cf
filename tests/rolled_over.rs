//! An oplog that no longer reaches back to where a stream stopped.

mod support;

use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc};
use mongodb::{Client, Collection};
use reshard::migration::control::{Control as _, Phase};
use reshard_loadtest::compare;
use reshard_testbed::{ReplicaSet, wait_for};
use support::{LONG, Operator, me, proxy, roll_over, uri};

const DOCUMENTS: i32 = 200;

async fn is_fresh(c: &Collection<Document>) -> Result<()> {
    let changed = c.find_one(doc! { "_id": 7 }).await?;
    ensure!(changed == Some(doc! { "_id": 7, "n": 107 }), "a stale read: {changed:?}");
    ensure!(c.find_one(doc! { "_id": 8 }).await?.is_none(), "a deleted document was read");
    let all = c.count_documents(doc! {}).await?;
    ensure!(all == u64::try_from(DOCUMENTS)?, "{all} documents");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_missed_is_found_by_comparing_everything() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ReplicaSet::builder("rolled-old").oplog_mb(1).checkpoint_seconds(1).start(),
        ReplicaSet::builder("rolled-new").start()
    )?;
    let before = proxy(&old.uri(), Some(&new.uri())).await?;
    let operator = Operator::of(&before, "m");
    let c = Client::with_uri_str(uri(&before)).await?.database("shop").collection::<Document>("c");
    c.insert_many((0..DOCUMENTS).map(|id| doc! { "_id": id, "n": id })).await?;
    operator.create(&["shop.c"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    operator.reads(100).await?;
    let verified = operator.progress().await?.verification.context("a verification")?;
    before.shutdown().await;

    // Nobody follows, and nobody mirrors.
    let past = old.client().await?.database("shop").collection::<Document>("c");
    past.update_one(doc! { "_id": 7 }, doc! { "$inc": { "n": 100 } }).await?;
    past.delete_one(doc! { "_id": 8 }).await?;
    past.insert_one(doc! { "_id": "missed" }).await?;
    roll_over(&old).await?;

    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let operator = Operator::of(&proxy, "m");
    let c = Client::with_uri_str(uri(&proxy)).await?.database("shop").collection::<Document>("c");
    wait_for("the migration to say that it was cut off", LONG, || async {
        let view = operator.engine.get("m").await;
        Ok(view.is_ok_and(|view| {
            view.phase == Phase::Failed && view.failure.is_some_and(|why| why.contains("oplog"))
        }))
    })
    .await?;
    is_fresh(&c).await?;
    ensure!(operator.writes(100).await.is_err(), "nothing moves while changes are missing");
    operator.engine.resume(&me(), "m").await?;
    wait_for("the comparison to go through", LONG, || async {
        is_fresh(&c).await?;
        Ok(operator.progress().await?.can_cut_over)
    })
    .await
    .with_context(|| format!("{:?}", futures::executor::block_on(operator.progress())))?;
    // The one before does not count any more: that comparison is the verification now.
    let compared = operator.progress().await?.verification.context("a verification")?;
    ensure!(
        compared.started_at > verified.finished_at && !compared.outdated,
        "{compared:?} after {verified:?}"
    );
    // The others it may have met when it followed new once more from its last checkpoint.
    let found = operator.engine.mismatches("m").await?;
    ensure!(found.iter().any(|found| found.key == "\"missed\"" && found.repaired), "{found:?}");
    ensure!(compare(&old.uri(), &new.uri(), "shop.c").await?.is_equal());
    operator.writes(100).await?;
    c.update_one(doc! { "_id": 7 }, doc! { "$inc": { "n": 1 } }).await?;
    operator.rollback().await?;
    let kept = past.find_one(doc! { "_id": 7 }).await?;
    ensure!(kept == Some(doc! { "_id": 7, "n": 108 }), "{kept:?}");
    proxy.shutdown().await;
    Ok(())
}
