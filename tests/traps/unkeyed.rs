//! Writes and reads that name no key.

use crate::support::bed::{Bed, answer, insert, raw, sum};
use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc, rawdoc};
use reshard::wire::op_msg::build;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_by_filter_while_writes_are_divided() -> Result<()> {
    let bed = Bed::start("trap-filter").await?;
    bed.write(insert((0..400).map(|id| rawdoc! { "_id": id, "g": id % 8, "n": 0, "a": [1, 2, 3] }))).await?;
    bed.raw(rawdoc! { "createIndexes": "c", "indexes": [{ "key": { "g": 1 }, "name": "g" }] }).await?;
    bed.move_begins().await?;
    bed.half().await?;
    let c = bed.c();
    let done = c.update_many(doc! { "g": 1 }, doc! { "$inc": { "n": 1 } }).await?;
    ensure!((done.matched_count, done.modified_count) == (50, 50), "{done:?}");
    let none = c.update_many(doc! { "g": 99 }, doc! { "$inc": { "n": 1 } }).await?;
    ensure!((none.matched_count, none.modified_count) == (0, 0), "{none:?}");
    let gone = c.delete_many(doc! { "g": 2 }).await?;
    ensure!(gone.deleted_count == 50, "{gone:?}");
    ensure!(c.delete_many(doc! { "g": 2 }).await?.deleted_count == 0);
    let made = c.update_many(doc! { "g": 77 }, doc! { "$set": { "n": 5 } }).upsert(true).await?;
    ensure!(made.upserted_id.is_some() && made.matched_count == 0, "{made:?}");
    let gone_between = (100..200).filter(|id| id % 8 == 2).count() as u64;
    let done =
        c.update_many(doc! { "_id": { "$gte": 100, "$lt": 200 } }, doc! { "$set": { "z": 1 } }).await?;
    ensure!(done.matched_count == 100 - gone_between, "{done:?}");
    let again = c.update_many(doc! { "z": 1 }, doc! { "$set": { "z": 1 } }).await?;
    ensure!(again.matched_count == done.matched_count && again.modified_count == 0, "{again:?}");
    // Positional operators, a hint, variables, and a pipeline that reads the document.
    bed.write(rawdoc! {
        "update": "c", "let": { "by": 10 }, "updates": [
            { "q": { "g": 3, "a": 2 }, "u": { "$inc": { "a.$": 10 } }, "multi": true, "hint": "g" },
            { "q": { "g": 3 }, "u": { "$inc": { "a.$[x]": 100 } }, "multi": true, "arrayFilters": [{ "x": 1 }] },
            { "q": { "$expr": { "$eq": ["$g", 4] } }, "u": [{ "$set": { "n": { "$add": ["$n", "$$by"] } } }],
              "multi": true },
        ],
    })
    .await?;
    let three = c.find_one(doc! { "_id": 3 }).await?.context("3")?;
    ensure!(three.get_array("a")? == &vec![101.into(), 12.into(), 3.into()], "{three}");
    ensure!(sum(&c, "n").await? == 50 + 5 + 500);
    let shown = c
        .find_one_and_update(doc! { "_id": 4 }, doc! { "$inc": { "n": 1 } })
        .projection(doc! { "_id": 0, "n": 1 })
        .sort(doc! { "g": 1 })
        .await?;
    ensure!(shown == Some(doc! { "n": 10 }), "{shown:?}");
    let refused = c.find_one_and_update(doc! { "g": 4 }, doc! { "$inc": { "n": 1 } }).await;
    ensure!(refused.is_err(), "two authorities could each give one");
    bed.equal().await?;
    ensure!(c.delete_many(doc! {}).await?.deleted_count == 351);
    ensure!(c.count_documents(doc! {}).await? == 0);
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

/// A read of many documents without any session, under a name by which servers remember it.
async fn read(stream: &mut TcpStream, name: &str) -> Result<()> {
    let find = rawdoc! { "find": "c", "filter": { "n": { "$gte": 0 } }, "comment": name, "$db": "shop" };
    stream.write_all(&build(1, 0, 0, find.as_bytes(), None)).await?;
    let (_, reply) = answer(stream).await?;
    let batch = reply.get_document("cursor").with_context(|| reply.to_string())?.get_array("firstBatch")?;
    ensure!(batch.len() == 10, "{reply}");
    Ok(())
}

/// A client without sessions is its connection: that one does not flip between clusters, and all of them
/// together are shared out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_sessions_stay_on_a_cluster_each() -> Result<()> {
    const READS: u64 = 5;
    let bed = Bed::start("trap-sessions").await?;
    bed.write(insert((0..10).map(|id| rawdoc! { "_id": id, "n": id }))).await?;
    bed.move_begins().await?;
    bed.operator.reads(50).await?;
    bed.equal().await?;
    let new = Bed::on(&bed.new).await?;
    raw(&new, rawdoc! { "profile": 2 }).await?;
    let names: Vec<String> = (0..40).map(|number| format!("connection {number}")).collect();
    for name in &names {
        let mut stream = TcpStream::connect(bed.proxy.address()).await?;
        for _ in 0..READS {
            read(&mut stream, name).await?;
        }
    }
    let remembered = new.collection::<Document>("system.profile");
    let mut on_new = 0;
    for name in &names {
        let reads = remembered.count_documents(doc! { "command.comment": name }).await?;
        ensure!([0, READS].contains(&reads), "{name}: {reads} of {READS} reads on new");
        on_new += u32::from(reads > 0);
    }
    ensure!((1..40).contains(&on_new), "{on_new} of 40 connections read on new");
    bed.proxy.shutdown().await;
    Ok(())
}
