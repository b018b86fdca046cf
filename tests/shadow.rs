//! Shadow reads between two real clusters.

mod support;

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bson::{Document, doc};
use futures::{StreamExt as _, TryStreamExt as _};
use mongodb::Collection;
use mongodb::options::FindOptions;
use reshard::migration::control::{Control as _, DiffReport, NamespaceSpec, Part, SetShadow, ShadowCounts};
use reshard::policy::shard_key::ShardKey;
use reshard_testbed::{ReplicaSet, ShardedCluster, wait_for};
use support::bed::Bed;
use support::{LONG, Operator, me, plant, proxy_with};

/// Readers beside the writes.
const READERS: i32 = 3;

async fn switch(operator: &Operator, percent: f64, show_values: bool) -> Result<()> {
    let asked = SetShadow { percent, show_values, reset: false };
    operator.engine.set_shadow(&me(), &operator.name, asked).await?;
    Ok(())
}

async fn counts(operator: &Operator) -> Result<ShadowCounts> {
    Ok(operator.progress().await?.shadow)
}

async fn diffs(operator: &Operator) -> Result<DiffReport> {
    Ok(operator.engine.diffs(&operator.name, Part::default()).await?)
}

async fn filled(name: &str, documents: i32) -> Result<Bed> {
    let bed = Bed::start(name).await?;
    let all = (0..documents)
        .map(|id| doc! { "_id": id, "n": id, "group": id % 10, "text": format!("secret {id}") });
    bed.c().insert_many(all).await?;
    bed.move_begins().await?;
    Ok(bed)
}

async fn all(c: &Collection<Document>, filter: Document, options: FindOptions) -> Result<Vec<Document>> {
    Ok(c.find(filter).with_options(options).await?.try_collect().await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_a_missing_and_an_extra_document_are_told() -> Result<()> {
    let bed = filled("shadow-planted", 300).await?;
    let entry = |op: &str, o: Document| doc! { "op": op, "ns": "shop.c", "o": o };
    let wrong =
        doc! { "op": "i", "ns": "shop.c", "o": { "_id": 7, "n": 7_i64, "group": 7, "text": "planted" } };
    plant(
        &bed.new,
        vec![
            entry("d", doc! { "_id": 7 }),
            wrong,
            entry("d", doc! { "_id": 8 }),
            entry("i", doc! { "_id": "more", "group": 9 }),
        ],
    )
    .await?;
    switch(&bed.operator, 100.0, false).await?;
    ensure!(counts(&bed.operator).await?.shadow_differences.is_none(), "nothing has been compared");
    let some = all(&bed.c(), doc! { "group": { "$lt": 5 } }, FindOptions::default()).await?;
    ensure!(some.len() == 150);
    wait_for("equal replies to be told", LONG, || async {
        Ok(counts(&bed.operator).await?.shadow_differences == Some(0))
    })
    .await?;
    // More than one batch: both sides are read to the end.
    let every = all(&bed.c(), doc! {}, FindOptions::builder().sort(doc! { "_id": 1 }).build()).await?;
    ensure!(every.len() == 300);
    bed.c().count_documents(doc! { "group": 8 }).await?;
    wait_for("the differences to be told", LONG, || async {
        Ok(counts(&bed.operator).await?.shadow_differences == Some(2))
    })
    .await
    .with_context(|| format!("{:?}", futures::executor::block_on(diffs(&bed.operator))))?;
    let report = diffs(&bed.operator).await?;
    let found = report.shapes.iter().find(|shape| shape.command == "find" && shape.different > 0);
    let found = found.context("the sorted find")?;
    let kinds: Vec<_> = found.differences.iter().map(|(kind, times)| (kind.as_str(), *times)).collect();
    ensure!(kinds == [("extra", 1), ("missing", 1), ("type", 1), ("value", 1)], "{kinds:?}");
    let mut examples: Vec<_> =
        found.examples.iter().map(|one| (one.key.clone().unwrap_or_default(), one.kind.as_str())).collect();
    examples.sort();
    let number = |id: i32| format!("{{\"$numberInt\":\"{id}\"}}");
    let expected = [("\"more\"".to_owned(), "extra"), (number(7), "changed"), (number(8), "missing")];
    ensure!(examples == expected, "{examples:?}");
    ensure!(!format!("{report:?}").contains("secret"), "values are shown: {report:?}");
    ensure!(found.old.samples > 0 && found.new.p99_ms.is_some(), "{found:?}");

    // It is kept by a process that follows.
    let stored = Bed::on(&bed.old).await?.client().database("reshard").collection::<Document>("shadow_diffs");
    wait_for("it to be stored", LONG, || async {
        Ok(stored.count_documents(doc! { "different": 1 }).await? == 2)
    })
    .await?;
    let before = diffs(&bed.operator).await?.shapes;
    let Bed { old, new, proxy, .. } = bed;
    proxy.shutdown().await;
    let proxy = proxy_with(&old.uri(), Some(&new.uri()), support::settings()).await?;
    let operator = Operator::of(&proxy, "m");
    operator.ready().await?;
    wait_for("the switch and the reports to be read", LONG, || async {
        let counts = counts(&operator).await?;
        Ok(counts.shadow_percent == 100.0 && counts.shadow_differences == Some(2))
    })
    .await?;
    ensure!(diffs(&operator).await?.shapes == before);
    let reset = SetShadow { percent: 0.0, show_values: false, reset: true };
    operator.engine.set_shadow(&me(), "m", reset).await?;
    ensure!(diffs(&operator).await?.shapes.is_empty());
    proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_being_stored_is_told_meanwhile() -> Result<()> {
    let bed = filled("shadow-storing", 50).await?;
    plant(&bed.new, vec![doc! { "op": "d", "ns": "shop.c", "o": { "_id": 8 } }]).await?;
    let data = doc! {
        "failCommands": ["findAndModify", "update"], "namespace": "reshard.shadow_diffs",
        "blockConnection": true, "blockTimeMS": 1500,
    };
    let point = doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data };
    bed.old.fail_point(point).await?;
    switch(&bed.operator, 100.0, false).await?;
    let found = async || anyhow::Ok(counts(&bed.operator).await?.shadow_differences.unwrap_or(0));
    wait_for("a difference to be told", LONG, || async {
        all(&bed.c(), doc! {}, FindOptions::default()).await?;
        Ok(found().await? > 0)
    })
    .await?;
    let stored = bed.old.client().await?.database("reshard").collection::<Document>("shadow_diffs");
    let missed = AtomicI32::new(0);
    wait_for("it to be stored", LONG, || async {
        let examples = diffs(&bed.operator).await?.shapes.iter().any(|shape| !shape.examples.is_empty());
        if found().await? == 0 || !examples {
            missed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(stored.count_documents(doc! { "different": { "$gt": 0 } }).await? > 0)
    })
    .await?;
    let missed = missed.into_inner();
    ensure!(missed == 0 && found().await? > 0, "the difference was not told at {missed} looks");
    bed.proxy.shutdown().await;
    Ok(())
}

fn tags(step: i32) -> Vec<String> {
    (0..step % 4)
        .map(|one| ["a", "Ä", "b", "B"][((step + one) % 4).unsigned_abs() as usize].to_owned())
        .collect()
}

/// Writes that meet each other and every read, until it is told to end.
async fn write_on(c: Collection<Document>, ends: &AtomicBool, wrote: &AtomicI32) -> Result<()> {
    let mut step = 0;
    while !ends.load(Ordering::Relaxed) {
        let id = step * 7 % 300;
        c.update_one(doc! { "_id": id }, doc! { "$inc": { "n": 1, "sum": 0.1 } }).await?;
        c.update_one(doc! { "_id": (id + 150) % 300 }, doc! { "$set": { "tags": tags(step) } }).await?;
        c.delete_one(doc! { "_id": 1000 + step % 20 }).await?;
        let more = doc! { "_id": 1000 + step % 20, "n": step, "group": step % 10 };
        c.replace_one(doc! { "_id": 1000 + step % 20 }, more).upsert(true).await?;
        if step % 10 == 0 {
            c.update_many(doc! { "group": step % 7 }, doc! { "$set": { "at": step } }).await?;
        }
        step += 1;
        wrote.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// One read of each kind; many of them may differ from themselves.
async fn read_all_kinds(c: &Collection<Document>, step: i32) -> Result<()> {
    let group = step % 10;
    find_all_kinds(c, step).await?;
    c.find_one(doc! { "_id": step * 7 % 300 }).await?;
    c.find_one(doc! { "group": group }).await?;
    c.count_documents(doc! { "n": { "$gt": step % 100 } }).await?;
    c.count_documents(doc! { "group": group }).limit(7).await?;
    c.estimated_document_count().await?;
    c.distinct("at", doc! { "group": group }).await?;
    c.distinct("tags", doc! { "group": { "$lt": group } }).await?;
    for pipeline in pipelines(group) {
        c.aggregate(pipeline).await?.try_collect::<Vec<_>>().await?;
    }
    Ok(())
}

/// Sorted by what several documents have alike, by nothing, or by their `_id`s; whole, in part, and in pieces.
async fn find_all_kinds(c: &Collection<Document>, step: i32) -> Result<()> {
    let group = step % 10;
    let sorted = |sort: Document| FindOptions::builder().sort(sort);
    let shown = |fields: Document| sorted(doc! { "group": 1 }).projection(fields).limit(12).build();
    let german = mongodb::options::Collation::builder().locale("de".to_owned()).build();
    let others = || doc! { "group": { "$ne": group } };
    for (filter, options) in [
        (doc! { "group": group }, FindOptions::default()),
        (doc! {}, FindOptions::builder().limit(10).build()),
        (doc! {}, sorted(doc! { "group": -1 }).limit(15).build()),
        (doc! {}, sorted(doc! { "group": 1 }).skip(25).limit(15).build()),
        (doc! {}, sorted(doc! { "tags": 1 }).limit(9).build()),
        (doc! {}, sorted(doc! { "at": -1, "group": 1 }).batch_size(50).build()),
        (doc! {}, sorted(doc! { "text": 1 }).collation(german).limit(20).build()),
        (others(), sorted(doc! { "n": 1, "_id": 1 }).skip(3).limit(20).build()),
        (others(), shown(doc! { "_id": 0, "group": 1 })),
        (others(), shown(doc! { "n": 1 })),
        (others(), shown(doc! { "chance": { "$rand": {} } })),
        (
            doc! { "$expr": { "$lt": ["$n", { "$multiply": [{ "$rand": {} }, 300] }] } },
            FindOptions::default(),
        ),
    ] {
        all(c, filter, options).await?;
    }
    Ok(())
}

fn pipelines(group: i32) -> Vec<Vec<Document>> {
    let of_group = || doc! { "$match": { "group": group } };
    let by_group = |field: &str, all: Document| doc! { "$group": { "_id": "$group", field: all } };
    let by_group_and_id = || doc! { "$sort": { "group": 1, "_id": 1 } };
    vec![
        vec![doc! { "$group": { "_id": "$group", "sum": { "$sum": "$sum" }, "n": { "$sum": 1 } } }],
        vec![by_group("mean", doc! { "$avg": "$sum" })],
        vec![of_group(), doc! { "$sort": { "n": 1 } }, doc! { "$limit": 5 }],
        vec![doc! { "$sort": { "group": 1 } }, doc! { "$skip": 12 }, doc! { "$project": { "n": 1 } }],
        vec![by_group_and_id(), by_group("first", doc! { "$first": "$n" })],
        vec![doc! { "$sort": { "n": 1 } }, by_group("least", doc! { "$first": "$_id" })],
        vec![doc! { "$sortByCount": "$at" }],
        vec![doc! { "$unwind": "$tags" }, doc! { "$group": { "_id": "$tags", "n": { "$sum": 1 } } }],
        vec![of_group(), doc! { "$count": "n" }],
        vec![of_group(), doc! { "$facet": { "n": [{ "$count": "n" }], "some": [{ "$limit": 2 }] } }],
        vec![doc! { "$bucketAuto": { "groupBy": "$n", "buckets": 4 } }],
        // Of so many a server sorts all; a cursor at random takes seconds where so much is removed.
        vec![doc! { "$sample": { "size": 50 } }],
        vec![doc! { "$match": { "$sampleRate": 0.2 } }],
        vec![of_group(), doc! { "$set": { "now": "$$NOW" } }],
        vec![of_group(), doc! { "$set": { "late": { "$gt": ["$$CLUSTER_TIME", "$at"] } } }],
        vec![doc! { "$set": { "chance": { "$rand": {} } } }, doc! { "$limit": 3 }],
        vec![by_group("all", doc! { "$push": "$_id" })],
        vec![by_group("all", doc! { "$addToSet": "$at" })],
    ]
}

/// So many shadowed reads are looked at: `SHADOWED_READS`, else few enough for every run of the tests.
fn wanted() -> Result<u64> {
    let asked = std::env::var("SHADOWED_READS").ok();
    asked.map_or(Ok(3_000), |asked| asked.parse().context("SHADOWED_READS"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_false_is_told_while_all_is_written() -> Result<()> {
    let bed = filled("shadow-load", 300).await?;
    let tag = doc! { "$set": { "tags": ["a", "b"], "at": 0 } };
    bed.c().update_many(doc! { "group": { "$gt": 3 } }, tag).await?;
    switch(&bed.operator, 100.0, true).await?;
    let wanted = wanted()?;
    let (ends, wrote) = (AtomicBool::new(false), AtomicI32::new(0));
    let read_on = async |first: i32| {
        let (mut step, mut progress) = (first, (0, Instant::now()));
        while !ends.load(Ordering::Relaxed) {
            read_all_kinds(&bed.c(), step).await?;
            step += READERS;
            let now = counts(&bed.operator).await?;
            let (compared, apart) = (now.shadow_compared, now.shadow_nondeterministic);
            if compared + apart >= wanted && compared.min(apart) >= wanted / 4 {
                break;
            }
            if compared > progress.0 {
                progress = (compared, Instant::now());
            }
            ensure!(progress.1.elapsed() < LONG, "no read is compared any more: {now:?}");
        }
        anyhow::Ok(())
    };
    let reading = async {
        let read = futures::future::try_join_all((0..READERS).map(read_on)).await;
        ends.store(true, Ordering::Relaxed);
        read
    };
    let (read, written) = futures::join!(reading, write_on(bed.c(), &ends, &wrote));
    read.with_context(|| format!("{:?}", futures::executor::block_on(diffs(&bed.operator))))?;
    written?;
    let now = counts(&bed.operator).await?;
    ensure!(wrote.load(Ordering::Relaxed) > 100);
    println!("{} writes, {now:?}", wrote.load(Ordering::Relaxed));
    ensure!(now.shadow_differences == Some(0), "{now:?} {:?}", diffs(&bed.operator).await?);
    ensure!(now.shadow_equal > 0 && now.shadow_transient > 0, "no write met a read: {now:?}");
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

/// Does one thing of every kind to document `id`; returns how long the slowest took, and how many were reads.
async fn one_of_each(c: &Collection<Document>, id: i32) -> Result<(Duration, u64)> {
    let mut slowest = Duration::ZERO;
    let mut began = Instant::now();
    let mut lap = || slowest = slowest.max(std::mem::replace(&mut began, Instant::now()).elapsed());
    let found = c.find_one(doc! { "_id": id }).await?;
    ensure!(found.is_some_and(|found| found.get_i32("n").ok() == Some(id)), "{id}");
    lap();
    ensure!(all(c, doc! {}, FindOptions::builder().batch_size(20).build()).await?.len() == 50);
    lap();
    let sums: Vec<_> =
        c.aggregate([doc! { "$group": { "_id": 0, "n": { "$sum": "$n" } } }]).await?.try_collect().await?;
    ensure!(sums.len() == 1);
    lap();
    ensure!(c.count_documents(doc! { "_id": { "$lt": 10 } }).await? == 10);
    lap();
    let before = c.find_one_and_update(doc! { "_id": id }, doc! { "$inc": { "times": 1 } }).await?;
    ensure!(before.is_some());
    lap();
    ensure!(c.update_one(doc! { "_id": id }, doc! { "$inc": { "times": 1 } }).await?.modified_count == 1);
    lap();
    Ok((slowest, 4))
}

/// Does that with eight documents at a time for so long; what the slowest of all took, and how many were reads.
async fn work_for(c: &Collection<Document>, time: Duration) -> Result<(Duration, u64)> {
    let begun = Instant::now();
    let (mut slowest, mut reads) = (Duration::ZERO, 0);
    while begun.elapsed() < time {
        let batch = futures::stream::iter(0..16).map(|id| one_of_each(c, id));
        let done: Vec<_> = batch.buffer_unordered(8).try_collect().await?;
        slowest = done.iter().map(|(took, _)| *took).fold(slowest, Duration::max);
        reads += done.iter().map(|(_, reads)| reads).sum::<u64>();
    }
    Ok((slowest, reads))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_cluster_that_hangs_costs_the_application_nothing() -> Result<()> {
    let bed = filled("shadow-hangs", 50).await?;
    let blocked = Duration::from_secs(10);
    let data = doc! {
        "failCommands": ["find", "aggregate", "count", "distinct", "getMore"], "blockConnection": true,
        "blockTimeMS": i64::try_from(blocked.as_millis())?,
    };
    let point = doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data };
    bed.new.fail_point(point).await?;
    // The mirror waits for new as it does without shadow reads.
    let (control, _) = work_for(&bed.c(), Duration::from_secs(4)).await?;
    switch(&bed.operator, 100.0, false).await?;
    let (slowest, reads) = work_for(&bed.c(), blocked).await?;
    bed.new.fail_point(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await?;
    let now = counts(&bed.operator).await?;
    // What waits for a shadow read takes as long as that is blocked; the rest is how busy the machine is.
    println!("the slowest took {slowest:?}, and {control:?} without shadow reads");
    ensure!(
        slowest < control + blocked / 4,
        "an operation took {slowest:?}, and {control:?} without shadow reads"
    );
    ensure!(now.shadow_dropped > 0, "{now:?}");
    ensure!(now.shadow_sampled == reads, "{reads} {now:?}");
    // Afterwards it goes on as if nothing had been.
    let compared = now.shadow_compared;
    wait_for("reads to be compared again", LONG, || async {
        bed.c().find_one(doc! { "_id": 1 }).await?;
        Ok(counts(&bed.operator).await?.shadow_compared > compared)
    })
    .await?;
    ensure!(counts(&bed.operator).await?.shadow_differences == Some(0));
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_new_lacks_is_told() -> Result<()> {
    let bed = filled("shadow-access", 100).await?;
    Bed::on(&bed.old)
        .await?
        .collection::<Document>("c")
        .create_index(mongodb::IndexModel::builder().keys(doc! { "group": 1 }).build())
        .await?;
    switch(&bed.operator, 100.0, false).await?;
    let told = async |command: &str| {
        let shapes = diffs(&bed.operator).await?.shapes;
        let found = shapes.into_iter().find(|shape| shape.command == command);
        anyhow::Ok(found.and_then(|shape| Some((shape.old_access?, shape.new_access?))))
    };
    wait_for("every kind of read to be explained", LONG, || async {
        all(&bed.c(), doc! { "group": 3 }, FindOptions::default()).await?;
        bed.c().count_documents(doc! { "group": 3 }).await?;
        bed.c().distinct("n", doc! { "group": 3 }).await?;
        let all = [told("find").await?, told("aggregate").await?, told("distinct").await?];
        Ok(all.into_iter().all(|one| one.is_some()))
    })
    .await
    .with_context(|| format!("{:?}", futures::executor::block_on(diffs(&bed.operator))))?;
    for command in ["find", "aggregate", "distinct"] {
        let (old, new) = told(command).await?.context("it was there")?;
        ensure!(old.scan == "index" && old.documents_examined <= 10, "{command}: {old:?}");
        ensure!(new.scan == "collection" && new.documents_examined == 100, "{command}: {new:?}");
        ensure!(new.shards == "unsharded", "{command}: {new:?}");
    }
    ensure!(counts(&bed.operator).await?.shadow_differences == Some(0));
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_many_shards_of_new_a_read_asks_is_told() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ReplicaSet::builder("shadow-sharded").start(),
        ShardedCluster::builder().shards(2).start()
    )?;
    let proxy = proxy_with(&old.uri(), Some(&new.uri()), support::settings()).await?;
    let client = mongodb::Client::with_uri_str(support::uri(&proxy)).await?;
    let orders = client.database("shop").collection::<Document>("orders");
    orders.insert_many((0..40).map(|n| doc! { "_id": n, "customer": n })).await?;
    let operator = Operator::of(&proxy, "m");
    let shard_key = ShardKey::parse(&doc! { "customer": "hashed" }).ok();
    operator.create_as(vec![NamespaceSpec { shard_key, ..NamespaceSpec::plain("shop.orders") }]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    switch(&operator, 100.0, false).await?;
    let told = async |field: &str| {
        let shapes = diffs(&operator).await?.shapes;
        let found = shapes.into_iter().find(|shape| shape.query.contains(field));
        anyhow::Ok(found.and_then(|shape| shape.new_access))
    };
    wait_for("both reads to be explained", LONG, || async {
        all(&orders, doc! { "customer": 5 }, FindOptions::default()).await?;
        all(&orders, doc! { "other": 5 }, FindOptions::default()).await?;
        Ok(told("customer").await?.is_some() && told("other").await?.is_some())
    })
    .await
    .with_context(|| format!("{:?}", futures::executor::block_on(diffs(&operator))))?;
    let (by_key, by_other) = (told("customer").await?.context("it")?, told("other").await?.context("it")?);
    ensure!((by_key.scan.as_str(), by_key.shards.as_str()) == ("index", "one"), "{by_key:?}");
    ensure!((by_other.scan.as_str(), by_other.shards.as_str()) == ("collection", "all"), "{by_other:?}");
    ensure!(by_other.documents_examined == 40, "{by_other:?}");
    proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_new_serves_are_shadowed_on_old() -> Result<()> {
    let bed = filled("shadow-back", 50).await?;
    bed.operator.reads(100).await?;
    bed.operator.writes(100).await?;
    let extra = doc! { "op": "i", "ns": "shop.c", "o": { "_id": "left", "group": 3 } };
    plant(&bed.old, vec![extra]).await?;
    switch(&bed.operator, 100.0, false).await?;
    all(&bed.c(), doc! { "group": 3 }, FindOptions::default()).await?;
    wait_for("it to be told", LONG, || async {
        Ok(counts(&bed.operator).await?.shadow_differences == Some(1))
    })
    .await?;
    let report = diffs(&bed.operator).await?;
    let Some(example) = report.shapes.iter().find_map(|shape| shape.examples.first()) else {
        bail!("{report:?}")
    };
    ensure!((example.kind.as_str(), example.served_by.as_str()) == ("missing", "new"), "{example:?}");
    bed.proxy.shutdown().await;
    Ok(())
}
