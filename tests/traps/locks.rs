//! Writes that a server keeps waiting.

use std::time::{Duration, Instant};

use crate::support::bed::{Bed, insert};
use crate::support::{LONG, settings, uri};
use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc, rawdoc};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use mongodb::{Client, Collection};
use reshard_testbed::{ReplicaSet, wait_for};

/// So many that some share a lane with those that wait.
const KEYS: i32 = 5000;
/// Longer than a write waits for a server that does not answer.
const LONG_TRANSACTION: Duration = Duration::from_secs(18);
/// More than a mirror may take, and a lane.
const AT_ONCE: Duration = Duration::from_secs(6);

async fn waiting(set: &ReplicaSet) -> Result<usize> {
    let under_way = doc! { "currentOp": 1, "ns": "shop.c", "op": "update", "active": true };
    let found = set.client().await?.database("admin").run_command(under_way).await?;
    Ok(found.get_array("inprog")?.len())
}

async fn add(c: &Collection<Document>, id: i32) -> Result<()> {
    let began = Instant::now();
    let done = c.update_one(doc! { "_id": id }, doc! { "$inc": { "m": 1 } }).await?;
    ensure!(done.modified_count == 1 && began.elapsed() < AT_ONCE, "{id}: {done:?}, {:?}", began.elapsed());
    Ok(())
}

/// Plain writes wait at the server until a transaction on their documents has ended, as without a proxy; nothing else
/// waits for them, and each counts once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_behind_an_open_transaction() -> Result<()> {
    let bed = Bed::start_with("trap-locks", settings()).await?;
    bed.write(insert((0..KEYS).map(|id| rawdoc! { "_id": id, "n": 0 }))).await?;
    bed.move_begins().await?;
    bed.operator.reads(100).await?;
    let retrying = Client::with_uri_str(uri(&bed.proxy)).await?.database("shop").collection::<Document>("c");
    let mut session = bed.client.start_session().await?;
    session.start_transaction().await?;
    for id in 0..3 {
        bed.c().update_one(doc! { "_id": id }, doc! { "$inc": { "t": 1 } }).session(&mut session).await?;
    }
    let inc = || doc! { "$inc": { "n": 1 } };
    let (plain, by_filter) = (bed.c(), bed.c());
    let writes = [
        tokio::spawn(async move { plain.update_one(doc! { "_id": 0 }, inc()).await }),
        tokio::spawn(async move { retrying.update_one(doc! { "_id": 1 }, inc()).await }),
        tokio::spawn(
            async move { by_filter.update_many(doc! { "_id": { "$in": [2] }, "n": 0 }, inc()).await },
        ),
    ];
    wait_for("all of them to wait", LONG, || async { Ok(waiting(&bed.old).await? == writes.len()) }).await?;
    let began = Instant::now();
    // The passage of time is what is tested.
    while began.elapsed() < LONG_TRANSACTION {
        let c = bed.c();
        stream::iter((3..KEYS).map(|id| add(&c, id))).buffer_unordered(8).try_collect::<Vec<()>>().await?;
    }
    ensure!(writes.iter().all(|write| !write.is_finished()), "{:?}", writes.map(|write| write.is_finished()));
    session.commit_transaction().await?;
    for write in writes {
        let done = write.await??;
        ensure!(done.modified_count == 1, "{done:?}");
    }
    for id in 0..3 {
        let found = bed.c().find_one(doc! { "_id": id }).await?.context("a document")?;
        ensure!(found == doc! { "_id": id, "n": 1, "t": 1 }, "{found}");
    }
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}
