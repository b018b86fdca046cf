//! A clustered collection: its documents are kept in its only index by `_id`.

use crate::support::bed::{Bed, by_id, delete, insert, update, with_id};
use anyhow::{Context as _, Result, ensure};
use bson::oid::ObjectId;
use bson::raw::RawBson;
use bson::{Document, doc, rawdoc};
use reshard_testbed::ReplicaSet;

/// What the cluster says of the collection: its options, and its indexes in order of their names.
async fn shape(set: &ReplicaSet) -> Result<(Document, Vec<Document>)> {
    let shop = Bed::on(set).await?;
    let found = shop.run_command(doc! { "listCollections": 1, "filter": { "name": "c" } }).await?;
    let found = found.get_document("cursor")?.get_array("firstBatch")?;
    let options =
        found.first().and_then(|it| it.as_document()).context("the collection")?.get_document("options")?;
    let indexes = shop.run_command(doc! { "listIndexes": "c" }).await?;
    let mut indexes: Vec<Document> = indexes
        .get_document("cursor")?
        .get_array("firstBatch")?
        .iter()
        .filter_map(|index| index.as_document().cloned())
        .collect();
    indexes.sort_by_key(|index| index.get_str("name").unwrap_or_default().to_owned());
    Ok((options.clone(), indexes))
}

/// Writes of all kinds, over keys of several types.
async fn round(bed: &Bed, round: i32) -> Result<()> {
    let id = |n: i32| match n % 3 {
        0 => RawBson::Int32(n),
        1 => RawBson::String(format!("key {n}")),
        _ => RawBson::ObjectId(ObjectId::from_bytes([u8::try_from(n % 251).unwrap_or(0); 12])),
    };
    let from = round * 60;
    bed.write(insert((from..from + 60).map(|n| with_id(id(n), &rawdoc! { "n": n })))).await?;
    for n in from..from + 30 {
        bed.write(update(by_id(&id(n)), rawdoc! { "$inc": { "n": 1000 } })).await?;
    }
    for n in from + 20..from + 40 {
        bed.write(delete(by_id(&id(n)))).await?;
    }
    let done =
        bed.c().update_many(doc! { "n": { "$gte": 1000 } }, doc! { "$set": { "round": round } }).await?;
    ensure!(done.matched_count == 20 * (u64::try_from(round)? + 1), "{done:?} in round {round}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clustered_collection_moves_whole() -> Result<()> {
    const BEFORE: i32 = 20_000;
    let bed = Bed::start("trap-clustered").await?;
    bed.raw(rawdoc! {
        "create": "c", "clusteredIndex": { "key": { "_id": 1 }, "unique": true, "name": "own order" },
        "validator": { "n": { "$ne": -1 } },
    })
    .await?;
    bed.raw(rawdoc! { "createIndexes": "c", "indexes": [{ "key": { "n": 1 }, "name": "by_n" }] }).await?;
    bed.c().insert_many((0..BEFORE).map(|n| doc! { "_id": format!("before {n}"), "m": n })).await?;
    round(&bed, 0).await?;
    let before = shape(&bed.old).await?;
    ensure!(before.0.contains_key("clusteredIndex"), "{before:?}");
    bed.move_begins().await?;
    ensure!(shape(&bed.new).await? == before, "{:?} was {before:?}", shape(&bed.new).await?);
    round(&bed, 1).await?;
    bed.half().await?;
    round(&bed, 2).await?;
    bed.equal().await?;
    bed.operator.until_synced().await?;
    bed.operator.reads(100).await?;
    bed.operator.writes(100).await?;
    round(&bed, 3).await?;
    bed.equal().await?;
    bed.operator.rollback().await?;
    bed.equal().await?;
    bed.operator.until_synced().await?;
    bed.operator.reads(100).await?;
    bed.operator.writes(100).await?;
    round(&bed, 4).await?;
    bed.equal().await?;
    ensure!(shape(&bed.new).await? == before && shape(&bed.old).await? == before);
    bed.operator.complete().await?;
    ensure!(shape(&bed.new).await? == before, "{:?} was {before:?}", shape(&bed.new).await?);
    let there = Bed::on(&bed.new).await?.collection::<Document>("c").count_documents(doc! {}).await?;
    ensure!(there == u64::try_from(BEFORE)? + 5 * 40, "{there} documents");
    bed.proxy.shutdown().await;
    Ok(())
}
