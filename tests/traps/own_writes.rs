//! Nothing that goes through the proxy is taken for a writer that goes past it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::support::bed::{Bed, answer, insert, raw};
use crate::support::{LONG, uri};
use anyhow::{Result, ensure};
use bson::{Document, doc, rawdoc};
use mongodb::Client;
use reshard::migration::control::BypassReport;
use reshard::wire::op_msg::build;
use reshard_testbed::wait_for;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

const KEYS: i32 = 40;

/// One of many kinds of writes; its error, if any, is the load's business.
async fn one(client: &Client, kind: u32, n: i32) -> mongodb::error::Result<()> {
    let shop = client.database("shop");
    let c = shop.collection::<Document>("c");
    let (id, inc) = (n % KEYS, doc! { "$inc": { "n": 1 } });
    match kind % 14 {
        0 => drop(c.update_one(doc! { "_id": id }, inc).await?),
        1 => drop(c.update_one(doc! { "group": n % 5 }, inc).await?),
        2 => drop(c.update_many(doc! { "group": n % 5 }, inc).await?),
        3 => drop(c.find_one_and_update(doc! { "group": n % 5 }, inc).await?),
        4 => drop(
            c.find_one_and_update(doc! { "group": n % 5 }, inc).projection(doc! { "_id": "$group" }).await?,
        ),
        5 => drop(c.update_one(doc! { "more": n }, inc).upsert(true).await?),
        6 => drop(c.replace_one(doc! { "_id": id }, doc! { "group": id % 5, "n": n }).upsert(true).await?),
        7 => _ = c.delete_one(doc! { "_id": id }).await?,
        8 => _ = c.delete_many(doc! { "more": { "$lt": n - 20 } }).await?,
        9 => drop(c.insert_many((0..5).map(|more| doc! { "more": n, "group": more })).await?),
        10 => {
            let statements: Vec<_> =
                (0..10).map(|id| doc! { "q": { "_id": id }, "u": &inc, "upsert": true }).collect();
            drop(shop.run_command(doc! { "update": "c", "updates": statements, "ordered": false }).await?);
        }
        11 => {
            let nowhere = doc! { "w": 0 };
            let statement = doc! { "q": { "group": n % 5 }, "u": inc, "multi": true };
            drop(
                shop.run_command(doc! { "update": "c", "updates": [statement], "writeConcern": nowhere })
                    .await?,
            );
        }
        12 => drop(c.update_many(doc! { "more": -1 }, inc).await?),
        _ => {
            let mut session = client.start_session().await?;
            session.start_transaction().await?;
            c.update_one(doc! { "_id": id }, inc.clone()).session(&mut session).await?;
            c.update_many(doc! { "group": n % 5 }, inc).session(&mut session).await?;
            c.insert_one(doc! { "more": n }).session(&mut session).await?;
            if n % 4 == 0 {
                session.abort_transaction().await?;
            } else {
                session.commit_transaction().await?;
            }
        }
    }
    Ok(())
}

async fn load(client: Client, worker: u32, over: &AtomicBool, done: &AtomicU32) {
    let mut n = 0;
    while !over.load(Ordering::Relaxed) {
        n += 1;
        let number = u32::try_from(n).unwrap_or(0);
        if one(&client, worker + number, n).await.is_ok() {
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes over a connection that knows no sessions.
async fn without_sessions(bed: &Bed, over: &AtomicBool) -> Result<()> {
    let mut stream = TcpStream::connect(bed.proxy.address()).await?;
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        number += 1;
        let update = rawdoc! {
            "update": "c", "updates": [{ "q": { "group": number % 5 }, "u": { "$inc": { "n": 1 } } }], "$db": "shop",
        };
        stream.write_all(&build(number, 0, 0, update.as_bytes(), None)).await?;
        answer(&mut stream).await?;
    }
    Ok(())
}

/// Writes of clients that are gone before their answer.
async fn hang_up(bed: &Bed, number: i32) -> Result<()> {
    for id in 0..5 {
        let mut stream = TcpStream::connect(bed.proxy.address()).await?;
        let id = 1000 + 10 * number + id;
        let update = rawdoc! {
            "update": "c", "updates": [{ "q": { "_id": id }, "u": { "$inc": { "n": 1 } }, "upsert": true }], "$db": "shop",
        };
        stream.write_all(&build(1, 0, 0, update.as_bytes(), None)).await?;
    }
    Ok(())
}

/// Servers drop connections in the middle, and so do clients, again and again.
async fn trouble(bed: &Bed, over: &AtomicBool) -> Result<()> {
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        for set in [&bed.old, &bed.new] {
            let data = doc! {
                "failCommands": ["update", "findAndModify", "insert", "commitTransaction"], "closeConnection": true,
                "namespace": "shop.c",
            };
            set.fail_point(
                doc! { "configureFailPoint": "failCommand", "mode": { "times": 2 }, "data": data },
            )
            .await?;
            number += 1;
            hang_up(bed, number).await?;
            // Some work in between; how much does not matter.
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }
    for set in [&bed.old, &bed.new] {
        set.fail_point(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await?;
    }
    Ok(())
}

async fn moves(bed: &Bed, done: &AtomicU32, over: &AtomicBool) -> Result<()> {
    let moved = async {
        let some = async || {
            let before = done.load(Ordering::Relaxed);
            wait_for("some writes", LONG, || async { Ok(done.load(Ordering::Relaxed) > before + 300) }).await
        };
        some().await?;
        bed.operator.until_synced().await?;
        // The streams may be in trouble just then.
        wait_for("reads to move", LONG, || async { Ok(bed.operator.reads(100).await.is_ok()) }).await?;
        some().await?;
        wait_for("writes to move", LONG, || async { Ok(bed.operator.writes(100).await.is_ok()) }).await?;
        some().await?;
        wait_for("the way back", LONG, || async { Ok(bed.operator.rollback().await.is_ok()) }).await?;
        some().await
    };
    let moved = moved.await;
    over.store(true, Ordering::Relaxed);
    moved
}

/// A load of everything through a whole migration; what is known of writes past the proxy after it.
async fn migrated(bed: &Bed, with_trouble: bool) -> Result<BypassReport> {
    bed.write(insert((0..KEYS).map(|id| rawdoc! { "_id": id, "group": id % 5, "n": 0 }))).await?;
    let (over, done) = (AtomicBool::new(false), AtomicU32::new(0));
    let retrying = Client::with_uri_str(uri(&bed.proxy)).await?;
    bed.move_begins().await?;
    let loads = (0..6).map(|worker| {
        let client = if worker % 2 == 0 { bed.client.clone() } else { retrying.clone() };
        load(client, worker, &over, &done)
    });
    let loads = futures::future::join_all(loads);
    let trouble = async { if with_trouble { trouble(bed, &over).await } else { Ok(()) } };
    let (_, without, troubled, moved) =
        tokio::join!(loads, without_sessions(bed, &over), trouble, moves(bed, &done, &over));
    moved?;
    without?;
    troubled?;
    bed.equal().await?;
    bed.operator.bypass().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_through_the_proxy_are_not_taken_for_writes_past_it() -> Result<()> {
    let bed = Bed::start("trap-own").await?;
    let report = migrated(&bed, false).await?;
    ensure!(report.bypass_writes_total == 0, "{report:?}");
    // Each was judged, but perhaps those at the very beginning; and one that does go past is found.
    ensure!(report.bypass_writes_unjudged < 200, "{report:?}");
    raw(&Bed::on(&bed.old).await?, rawdoc! { "insert": "c", "documents": [{ "_id": "past" }] }).await?;
    bed.operator.until_bypass(1).await?;
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_are_those_whose_answers_are_lost() -> Result<()> {
    let bed = Bed::start("trap-lost").await?;
    let report = migrated(&bed, true).await?;
    ensure!(report.bypass_writes_total == 0, "{report:?}");
    bed.proxy.shutdown().await;
    Ok(())
}

/// Equal `_id`s of two collections that are copied at once are four documents, not two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_of_collections_with_equal_ids() -> Result<()> {
    const DOCUMENTS: i32 = 60_000;
    let bed = Bed::start("own-copies").await?;
    let namespaces = ["shop.c", "shop.d"];
    for name in ["c", "d"] {
        let documents = (0..DOCUMENTS).map(|id| doc! { "_id": id, "in": name, "more": "x".repeat(100) });
        bed.shop().collection::<Document>(name).insert_many(documents).await?;
    }
    bed.operator.create(&namespaces).await?;
    bed.operator.start().await?;
    bed.operator.until_synced().await?;
    bed.operator.until_level().await?;
    bed.operator.found_none_past_the_proxy().await?;
    for namespace in namespaces {
        let compared = reshard_loadtest::compare(&bed.old.uri(), &bed.new.uri(), namespace).await?;
        ensure!(compared.is_equal(), "{compared}");
    }
    bed.proxy.shutdown().await;
    Ok(())
}
