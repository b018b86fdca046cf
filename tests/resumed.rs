//! A migration that has failed has a way out, wherever its reads and writes are.

mod support;

use anyhow::{Result, ensure};
use bson::{Document, doc};
use mongodb::options::IndexOptions;
use mongodb::{Client, Collection, IndexModel};
use reshard::migration::control::{Control as _, Phase};
use reshard_loadtest::compare;
use reshard_testbed::{ReplicaSet, wait_for};
use support::bed::Bed;
use support::{LONG, me};

const DOCUMENTS: i32 = 200;

async fn until_failed(bed: &Bed) -> Result<()> {
    wait_for("the migration to fail", LONG, || async {
        Ok(bed.operator.progress().await?.phase == Phase::Failed)
    })
    .await
}

async fn on(set: &ReplicaSet) -> Result<Collection<Document>> {
    Ok(Bed::on(set).await?.collection("c"))
}

async fn begin(name: &str) -> Result<Bed> {
    let bed = Bed::start(name).await?;
    bed.c().insert_many((0..DOCUMENTS).map(|id| doc! { "_id": id, "n": id })).await?;
    let options = IndexOptions::builder().name("by_n".to_owned()).build();
    bed.c().create_index(IndexModel::builder().keys(doc! { "n": 1 }).options(options).build()).await?;
    bed.move_begins().await?;
    Ok(bed)
}

async fn rename(client: &Client, from: &str, to: &str) -> Result<()> {
    let command = doc! { "renameCollection": format!("shop.{from}"), "to": format!("shop.{to}") };
    client.database("admin").run_command(command).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_with_half_of_the_writes_on_new() -> Result<()> {
    let bed = begin("resume-half").await?;
    bed.half().await?;
    let past = bed.old.client().await?;
    rename(&past, "c", "away").await?;
    rename(&past, "away", "c").await?;
    until_failed(&bed).await?;
    let failure = bed.operator.engine.get("m").await?.failure.unwrap_or_default();
    ensure!(failure.contains("rename") && failure.contains("resume"), "{failure}");
    // Writes go on, and nothing moves.
    for id in 0..DOCUMENTS {
        bed.c().update_one(doc! { "_id": id }, doc! { "$inc": { "n": 1000 } }).await?;
    }
    ensure!(bed.operator.rollback().await.is_err(), "what was missed is not known");
    ensure!(bed.operator.engine.abort(&me(), "m").await.is_err(), "writes are on new");
    bed.operator.engine.resume(&me(), "m").await?;
    bed.operator.until_synced().await?;
    bed.operator.rollback().await?;
    bed.equal().await?;
    let returned = on(&bed.old).await?.count_documents(doc! { "n": { "$gte": 1000 } }).await?;
    ensure!(returned == u64::try_from(DOCUMENTS)?, "{returned} on old");
    bed.operator.engine.abort(&me(), "m").await?;
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_was_dropped_past_the_proxy() -> Result<()> {
    let bed = begin("resume-drop").await?;
    // Nobody goes by new: it is made again, as it was.
    on(&bed.new).await?.drop().await?;
    until_failed(&bed).await?;
    bed.operator.engine.resume(&me(), "m").await?;
    bed.operator.until_synced().await?;
    bed.equal().await?;
    let indexes = on(&bed.new).await?.list_index_names().await?;
    ensure!(indexes.iter().any(|name| name == "by_n"), "{indexes:?}");

    bed.operator.reads(100).await?;
    bed.operator.writes(100).await?;
    on(&bed.old).await?.drop().await?;
    until_failed(&bed).await?;
    let refused = bed.operator.engine.resume(&me(), "m").await;
    let told = refused.as_ref().is_err_and(|why| {
        why.code == "collection-gone"
            && why.detail.contains("shop.c is gone on old")
            && why.detail.contains("create it")
    });
    ensure!(told, "{refused:?}");
    Bed::on(&bed.old).await?.create_collection("c").await?;
    bed.operator.engine.resume(&me(), "m").await?;
    wait_for("all to be on both", LONG, || async {
        Ok(compare(&bed.old.uri(), &bed.new.uri(), "shop.c").await?.is_equal())
    })
    .await?;
    wait_for("the way back", LONG, || async { Ok(bed.operator.rollback().await.is_ok()) }).await?;

    // Where it decides, nobody makes an empty one and takes it for the truth.
    on(&bed.old).await?.drop().await?;
    until_failed(&bed).await?;
    let refused = bed.operator.engine.resume(&me(), "m").await;
    let told = refused.as_ref().is_err_and(|why| why.detail.contains("restore it there"));
    ensure!(told, "{refused:?}");
    let kept = on(&bed.new).await?.count_documents(doc! {}).await?;
    ensure!(kept == u64::try_from(DOCUMENTS)?, "{kept} on new");
    bed.proxy.shutdown().await;
    Ok(())
}
