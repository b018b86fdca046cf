//! Writes and reads that name no key.

use crate::support::bed::{Bed, answer, insert, raw, sum};
use crate::support::{LONG, settings};
use anyhow::{Context as _, Result, ensure};
use bson::{Document, RawBsonRef, doc, rawdoc};
use futures::TryStreamExt as _;
use reshard::model::slots::SlotSet;
use reshard::policy::canonical::key_of;
use reshard::wire::op_msg::build;
use reshard_testbed::wait_for;
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

/// Whether the proxy's lease to write to new has ended: asked with a write that finds nothing there.
async fn lease_on_new_is_over(bed: &Bed) -> Result<bool> {
    let mut ids = (0..).map(|n| format!("nobody {n}"));
    let on_new =
        |id: &String| key_of(RawBsonRef::String(id)).is_some_and(|key| half_on_new().contains(key.id_slot()));
    let id = ids.find(on_new).context("a key")?;
    let write = rawdoc! { "update": "c", "updates": [{ "q": { "_id": id }, "u": { "$inc": { "n": 1 } } }], "maxTimeMS": 50 };
    let answer = bed.raw(write).await;
    Ok(answer.is_err_and(|why| format!("{why:#}").contains("does not grant this proxy the lease")))
}

fn half_on_new() -> SlotSet {
    SlotSet::percent(50)
}

/// While a write by filter waits on old, the lease to write to new ends, and is granted again: the write was not
/// begun under that one, and nothing of it is sent to new any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_by_filter_ends_with_its_lease() -> Result<()> {
    const DOCUMENTS: i32 = 100;
    let bed = Bed::start_with("trap-filter-lease", settings()).await?;
    bed.write(insert((0..DOCUMENTS).map(|id| rawdoc! { "_id": id, "n": 0 }))).await?;
    bed.move_begins().await?;
    bed.half().await?;
    let is_on_new =
        |id: i32| key_of(RawBsonRef::Int32(id)).is_some_and(|key| half_on_new().contains(key.id_slot()));
    let held = (0..DOCUMENTS).find(|id| !is_on_new(*id)).context("a document of old")?;
    let past = bed.old.client().await?;
    let mut session = past.start_session().await?;
    session.start_transaction().await?;
    let locked = past.database("shop").collection::<Document>("c");
    locked.update_one(doc! { "_id": held }, doc! { "$set": { "m": 1 } }).session(&mut session).await?;

    let c = bed.c();
    let write =
        tokio::spawn(async move { c.update_many(doc! { "n": 0 }, doc! { "$set": { "n": 1 } }).await });
    let reached = wait_for("the write to wait on old", LONG, || async {
        let under_way = doc! { "currentOp": 1, "ns": "shop.c", "op": "update", "active": true };
        let found = past.database("admin").run_command(under_way).await?;
        Ok(!found.get_array("inprog")?.is_empty())
    });
    reached.await?;
    let refuse = doc! { "failCommands": ["findAndModify"], "namespace": "reshard.authority", "errorCode": 8 };
    let grants = async |mode: &str| {
        bed.new
            .fail_point(doc! { "configureFailPoint": "failCommand", "mode": mode, "data": refuse.clone() })
            .await
    };
    grants("alwaysOn").await?;
    wait_for("the lease to end", LONG, || lease_on_new_is_over(&bed)).await?;
    grants("off").await?;
    wait_for("another lease", LONG, || async { Ok(!lease_on_new_is_over(&bed).await?) }).await?;
    session.abort_transaction().await?;

    let answer = write.await?;
    ensure!(answer.is_err(), "it is answered as if all of it had been written: {answer:?}");
    bed.equal().await?;
    // How many of old's were reached before is open; new's were not to be written under another lease.
    let changed: Vec<Document> = bed.c().find(doc! { "n": 1 }).await?.try_collect().await?;
    for document in &changed {
        ensure!(!is_on_new(document.get_i32("_id")?), "{document} is new's");
    }
    bed.proxy.shutdown().await;
    Ok(())
}
