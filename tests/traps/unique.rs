//! Unique values that pass from one document to another.

use std::collections::BTreeSet;

use crate::support::LONG;
use crate::support::bed::{Bed, delete, insert, raw, sum, update};
use crate::support::me;
use anyhow::{Result, ensure};
use bson::{Document, doc, rawdoc};
use futures::TryStreamExt as _;
use reshard::migration::control::{Control as _, Throttle};
use reshard_testbed::{ReplicaSet, wait_for};

/// Gives each of `ids` the `field` of the next one, by way of a value that nobody has.
async fn rotate(bed: &Bed, field: &str, ids: &[i32]) -> Result<()> {
    let mut session = bed.client.start_session().await?;
    loop {
        session.start_transaction().await?;
        let swapped = async {
            let mut values = Vec::new();
            for id in ids {
                let found = bed.c().find_one(doc! { "_id": id }).session(&mut session).await?;
                values.push(found.and_then(|found| found.get(field).cloned()));
                let away = doc! { "$set": { field: { "v": format!("away-{id}") } } };
                bed.c().update_one(doc! { "_id": id }, away).session(&mut session).await?;
            }
            values.rotate_left(1);
            for (id, value) in ids.iter().zip(values) {
                let next = doc! { "$set": { field: value }, "$inc": { "swaps": 1 } };
                bed.c().update_one(doc! { "_id": id }, next).session(&mut session).await?;
            }
            session.commit_transaction().await
        };
        match swapped.await {
            Ok(()) => return Ok(()),
            Err(error) if error.contains_label("TransientTransactionError") => {
                let _ended = session.abort_transaction().await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unique_values_that_swap_between_documents() -> Result<()> {
    let bed = Bed::start("trap-swap").await?;
    let unique =
        rawdoc! { "createIndexes": "c", "indexes": [{ "key": { "u": 1 }, "name": "u", "unique": true }] };
    bed.raw(unique).await?;
    bed.write(insert((0..9).map(|id| rawdoc! { "_id": id, "u": id, "swaps": 0 }))).await?;
    bed.move_begins().await?;
    for ids in [&[0, 1][..], &[2, 3, 4], &[5, 6], &[1, 0], &[8, 7, 6, 5, 4, 3]] {
        rotate(&bed, "u", ids).await?;
    }
    // Without a transaction: the value is taken by one that comes after its former holder has gone.
    bed.write(delete(rawdoc! { "_id": 8 })).await?;
    bed.write(insert([rawdoc! { "_id": 20, "u": 100 }])).await?;
    bed.equal().await?;
    bed.operator.reads(100).await?;
    ensure!(bed.operator.writes(50).await.is_err(), "two authorities would take one value twice");
    bed.operator.writes(100).await?;
    for ids in [&[0, 1][..], &[1, 0], &[2, 3, 4, 5]] {
        rotate(&bed, "u", ids).await?;
    }
    bed.equal().await?;
    let swaps: i32 = sum(&bed.c(), "swaps").await?;
    ensure!(swaps >= 12 + 8, "{swaps} values were given");
    ensure!(bed.operator.progress().await?.blocked_by.is_empty());
    bed.proxy.shutdown().await;
    Ok(())
}

/// Values for which a filter by the value is not how the index takes them: other documents have the same without being
/// in the index, or the index has it under another name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unique_values_of_every_kind_that_swap() -> Result<()> {
    let bed = Bed::start("trap-swap-kinds").await?;
    bed.raw(rawdoc! { "createIndexes": "c", "indexes": [
        { "key": { "p": 1 }, "name": "p", "unique": true, "partialFilterExpression": { "active": true } },
        { "key": { "n": 1 }, "name": "n", "unique": true, "sparse": true, "collation": { "locale": "en", "strength": 2 } },
        { "key": { "s.v": 1, "t": 1 }, "name": "sv", "unique": true },
    ] })
    .await?;
    let named = |id: i32, n: &str| rawdoc! { "_id": id, "n": n, "s": { "v": id } };
    bed.write(insert([named(0, "Ann"), named(1, "bob")])).await?;
    // Before them, and not in the index: they stand in nobody's way.
    bed.write(insert((10..50).map(|id| rawdoc! { "_id": id, "p": id % 2, "s": { "v": id } }))).await?;
    let active = |id: i32, p: i32| rawdoc! { "_id": id, "p": p, "active": true, "s": { "v": id } };
    bed.write(insert([active(50, 0), active(51, 1)])).await?;
    let regex = bson::Regex { pattern: bson::raw::cstr!("^x").into(), options: bson::raw::cstr!("").into() };
    let within = [
        rawdoc! { "v": bson::RawBson::Null },
        rawdoc! { "v": { "$gt": 1 } },
        rawdoc! { "v": [] },
        rawdoc! { "v": regex },
        rawdoc! { "v": [[1, 2], "list"] },
        rawdoc! { "v": "xyz" },
    ];
    bed.write(insert((60..).zip(within).map(|(id, s)| rawdoc! { "_id": id, "s": s, "t": 7 }))).await?;
    bed.write(insert([rawdoc! { "_id": 70, "s": [{ "v": 1000 }, { "v": 1001 }] }])).await?;
    bed.move_begins().await?;
    for _ in 0..2 {
        rotate(&bed, "n", &[0, 1]).await?;
        rotate(&bed, "p", &[50, 51]).await?;
        rotate(&bed, "s", &[60, 61, 62]).await?;
        rotate(&bed, "s", &[63, 65]).await?;
        rotate(&bed, "s", &[64, 63]).await?;
        rotate(&bed, "s", &[70, 0]).await?;
        bed.equal().await?;
    }
    ensure!(bed.operator.engine.conflicts("m").await?.is_empty());
    bed.operator.reads(100).await?;
    bed.operator.writes(100).await?;
    rotate(&bed, "n", &[1, 0]).await?;
    rotate(&bed, "p", &[51, 50]).await?;
    rotate(&bed, "s", &[60, 61, 62, 63, 64, 65]).await?;
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

/// A value passes from a document that is copied to one that is not yet, while new cannot be written and its stream of old
/// is late: the copy meets the value where it was, on new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unique_values_that_pass_on_while_history_is_copied() -> Result<()> {
    let bed = Bed::start("trap-copied-value").await?;
    let unique =
        rawdoc! { "createIndexes": "c", "indexes": [{ "key": { "u": 1 }, "name": "u", "unique": true }] };
    bed.raw(unique).await?;
    let fill = "x".repeat(1000);
    for first in (0..6000).step_by(1000) {
        let some = (first..first + 1000).map(|id| rawdoc! { "_id": id, "u": id, "fill": fill.as_str() });
        bed.write(insert(some)).await?;
    }
    bed.operator.create(&["shop.c"]).await?;
    let slowly = Throttle { documents_per_second: Some(120.0), megabytes_per_second: None };
    bed.operator.engine.set_throttle(&me(), "m", slowly).await?;
    bed.operator.start().await?;
    let on_new = Bed::on(&bed.new).await?.collection::<Document>("c");
    let ids: BTreeSet<i32> = (0..6000).collect();
    let on_both = async || {
        let found: Vec<Document> =
            on_new.find(doc! {}).projection(doc! { "_id": 1 }).await?.try_collect().await?;
        anyhow::Ok(found.iter().filter_map(|document| document.get_i32("_id").ok()).collect::<BTreeSet<_>>())
    };
    wait_for("some documents to be copied", LONG, || async { Ok(!on_both().await?.is_empty()) }).await?;
    let copied = on_both().await?;
    let (Some(&giver), Some(&taker)) = (copied.first(), ids.difference(&copied).last()) else {
        anyhow::bail!("everything is copied already");
    };
    let point = |commands: &[&str], mode: &str, data: Document| {
        let mut data = data;
        data.insert("failCommands", commands);
        doc! { "configureFailPoint": "failCommand", "mode": mode, "data": data }
    };
    let late = doc! { "namespace": "admin.$cmd.aggregate", "blockConnection": true, "blockTimeMS": 15_000 };
    let full = doc! { "namespace": "shop.c", "errorCode": 14031 };
    bed.old.fail_point(point(&["getMore"], "alwaysOn", late)).await?;
    bed.new.fail_point(point(&["update", "insert", "delete"], "alwaysOn", full)).await?;
    bed.write(update(rawdoc! { "_id": giver }, rawdoc! { "$set": { "u": "away" } })).await?;
    bed.write(update(rawdoc! { "_id": taker }, rawdoc! { "$set": { "u": giver } })).await?;
    bed.new.fail_point(point(&["update"], "off", doc! {})).await?;
    ensure!(on_new.find_one(doc! { "_id": giver, "u": giver }).await?.is_some(), "new has heard of it");
    bed.operator.engine.set_throttle(&me(), "m", Throttle::default()).await?;
    wait_for("the copy to bring the other one", LONG, || async {
        Ok(on_new.find_one(doc! { "_id": taker, "u": giver }).await?.is_some())
    })
    .await?;
    bed.old.fail_point(point(&["getMore"], "off", doc! {})).await?;
    bed.operator.until_synced().await?;
    bed.equal().await?;
    ensure!(on_new.find_one(doc! { "_id": giver, "u": "away" }).await?.is_some());
    bed.proxy.shutdown().await;
    Ok(())
}

/// A unique index made past the proxy while writes are divided: each cluster accepts a value for another document.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_both_authorities_accepted_are_told_and_kept() -> Result<()> {
    let bed = Bed::start("trap-unique-divided").await?;
    bed.move_begins().await?;
    bed.half().await?;
    let unique = rawdoc! { "key": { "v": 1 }, "name": "v", "unique": true };
    let refused = bed.raw(rawdoc! { "createIndexes": "c", "indexes": [unique.clone()] }).await;
    ensure!(refused.is_err(), "{refused:?}");
    for set in [&bed.old, &bed.new] {
        raw(&Bed::on(set).await?, rawdoc! { "createIndexes": "c", "indexes": [unique.clone()] }).await?;
    }
    let mut kept = Vec::new();
    for value in 0..20 {
        let claims = (0..6).map(|claim| {
            let (c, id) = (bed.c(), value * 6 + claim);
            async move { c.insert_one(doc! { "_id": id, "v": value }).await.is_ok().then_some(id) }
        });
        kept.extend(futures::future::join_all(claims).await.into_iter().flatten());
    }
    ensure!(kept.len() > 20, "nothing was accepted twice");
    wait_for("the claims of both sides to be told", LONG, || async {
        Ok(bed.operator.engine.conflicts("m").await?.len() == 2 * (kept.len() - 20))
    })
    .await?;
    let on = async |set: &ReplicaSet| {
        let found: Vec<Document> =
            Bed::on(set).await?.collection("c").find(doc! {}).await?.try_collect().await?;
        anyhow::Ok(
            found.into_iter().filter_map(|document| document.get_i32("_id").ok()).collect::<BTreeSet<_>>(),
        )
    };
    let both: BTreeSet<i32> = on(&bed.old).await?.union(&on(&bed.new).await?).copied().collect();
    let lost: Vec<_> = kept.iter().filter(|id| !both.contains(id)).collect();
    ensure!(lost.is_empty(), "acknowledged and gone: {lost:?}");
    ensure!(bed.operator.writes(100).await.is_err(), "nothing moves over a conflict");
    bed.proxy.shutdown().await;
    Ok(())
}
