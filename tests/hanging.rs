//! A mirror that hangs: it takes what it is sent, keeps its connections open, and answers nothing.

mod support;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc};
use futures::future::try_join_all;
use mongodb::{Client, Collection};
use reshard::app::Proxy;
use reshard::migration::engine::Settings;
use reshard_testbed::{ReplicaSet, wait_for};
use support::{LONG, Operator, proxy_with, two_sets, until_equal, uri, wants_verification};

/// Long, so that a write which waits for the mirror cannot be taken for one that is merely slow.
const MIRROR_TIMEOUT: Duration = Duration::from_secs(8);
/// A write that waits for nobody takes less, also on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);
const KEYS: i32 = 40;

/// Adds one to `id`; returns how long it took.
async fn add(c: &Collection<Document>, id: i32) -> Result<Duration> {
    let began = Instant::now();
    let done = c.update_one(doc! { "_id": id }, doc! { "$inc": { "n": 1 } }).await;
    let done = done.with_context(|| format!("{id} after {:?}", began.elapsed()))?;
    ensure!(done.modified_count == 1, "{id}: {done:?}");
    Ok(began.elapsed())
}

/// By the authority, every key has been added to so many times.
async fn counts(c: &Collection<Document>, times: i32) -> Result<()> {
    for id in 0..KEYS {
        let found = c.find_one(doc! { "_id": id }).await?;
        ensure!(found == Some(doc! { "_id": id, "n": times }), "{found:?}, not {times}");
    }
    Ok(())
}

async fn new_hangs(reads: u8, name: &str) -> Result<()> {
    let (old, new) = two_sets(name).await?;
    let settings = Settings { mirror_timeout: MIRROR_TIMEOUT, ..support::settings() };
    let proxy = proxy_with(&old.uri(), Some(&new.uri()), settings).await?;
    let operator = Operator::of(&proxy, "m");
    let c = Client::with_uri_str(format!("{}?maxPoolSize=100", uri(&proxy)))
        .await?
        .database("shop")
        .collection::<Document>("c");
    c.insert_many((0..KEYS).map(|id| doc! { "_id": id, "n": 0 })).await?;
    operator.create(&["shop.c"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    if reads > 0 {
        operator.reads(reads).await?;
    }

    new.pause_all().await?;
    let longest = try_join_all((0..KEYS).map(|id| add(&c, id))).await?.into_iter().max();
    ensure!(longest.is_some_and(|longest| longest < MIRROR_TIMEOUT + AT_ONCE), "{longest:?}");
    // Behind the replies it may still be tried.
    wait_for("the mirror to be left alone", LONG, || async {
        Ok(operator.progress().await?.mirror_failures >= u64::try_from(KEYS)?)
    })
    .await?;
    let began = Instant::now();
    let mut times = 1;
    // The passage of time is what is tested: the mirror is tried again every now and then, and still nobody waits.
    while began.elapsed() < Duration::from_secs(4) {
        times += 1;
        for id in 0..KEYS {
            let took = add(&c, id).await?;
            ensure!(took < AT_ONCE, "{id} waited for {took:?}, {:?} after", began.elapsed());
        }
    }
    let all = Instant::now();
    let done = c.update_many(doc! {}, doc! { "$inc": { "n": 1 } }).await?;
    ensure!(done.modified_count == u64::try_from(KEYS)?, "{done:?}");
    ensure!(all.elapsed() < AT_ONCE, "a write of many documents waited for {:?}", all.elapsed());
    counts(&c, times + 1).await?;
    let blocked_by = operator.progress().await?.blocked_by;
    ensure!(!blocked_by.iter().all(|why| wants_verification(why)), "nothing moves to a cluster that hangs");

    new.resume_all().await?;
    operator.until_level().await?;
    until_equal(&old.uri(), &new.uri(), "shop.c").await?;
    counts(&c, times + 1).await?;
    operator.reads(100).await?;
    counts(&c, times + 1).await?;
    proxy.shutdown().await;
    Ok(())
}

/// One write after the other: the first may find out that new hangs, and no other waits for it. None at all does once
/// new is known not to keep up its lease.
async fn one_after_the_other(name: &str, lease_has_ended: bool) -> Result<()> {
    let (old, new) = two_sets(name).await?;
    // Each finds out by itself: a lease that outlives the first write's wait tells nothing.
    let lease = if lease_has_ended { support::settings().lease } else { 4 * MIRROR_TIMEOUT };
    let settings = Settings { mirror_timeout: MIRROR_TIMEOUT, lease, ..support::settings() };
    let proxy = proxy_with(&old.uri(), Some(&new.uri()), settings).await?;
    let operator = Operator::of(&proxy, "m");
    let c = Client::with_uri_str(uri(&proxy)).await?.database("shop").collection::<Document>("c");
    c.insert_many((0..KEYS).map(|id| doc! { "_id": id, "n": 0 })).await?;
    operator.create(&["shop.c"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    operator.reads(50).await?;
    new.pause_all().await?;
    if lease_has_ended {
        wait_for("the lease to end", LONG, || async {
            let blocked_by = operator.progress().await?.blocked_by;
            Ok(blocked_by.iter().any(|why| why.contains("the new cluster does not grant the lease")))
        })
        .await?;
    }
    let mut waited = Vec::new();
    for id in 0..KEYS {
        let took = add(&c, id).await?;
        if took >= AT_ONCE {
            waited.push((id, took));
        }
    }
    ensure!(waited.len() <= usize::from(!lease_has_ended), "{waited:?}");
    new.resume_all().await?;
    operator.until_level().await?;
    until_equal(&old.uri(), &new.uri(), "shop.c").await?;
    proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_hangs_and_writes_come_one_after_the_other() -> Result<()> {
    one_after_the_other("hang-one", false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_has_hung_for_longer_than_its_lease() -> Result<()> {
    one_after_the_other("hang-lease", true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_hangs_while_no_read_meets_it() -> Result<()> {
    new_hangs(0, "hang-unread").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_hangs_while_reads_meet_it() -> Result<()> {
    new_hangs(50, "hang-read").await
}

/// All reads are on new. The application's driver repeats less, as `options` say.
async fn read_on_new(
    old: &ReplicaSet,
    new: &ReplicaSet,
    options: &str,
) -> Result<(Proxy, Operator, Collection<Document>)> {
    let proxy = proxy_with(&old.uri(), Some(&new.uri()), support::settings()).await?;
    let operator = Operator::of(&proxy, "m");
    let c =
        Client::with_uri_str(format!("{}?{options}", uri(&proxy))).await?.database("shop").collection("c");
    c.insert_many((0..KEYS).map(|id| doc! { "_id": id, "n": 0 })).await?;
    operator.create(&["shop.c"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    operator.reads(100).await?;
    Ok((proxy, operator, c))
}

/// New hangs when everything is on it: a write there gets an error as soon as the lease that it was sent under has
/// ended, and does not wait for an answer for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_hangs_when_it_decides_everything() -> Result<()> {
    let (old, new) = two_sets("hang-decides").await?;
    let (proxy, operator, c) = read_on_new(&old, &new, "retryWrites=false").await?;
    operator.writes(100).await?;
    new.pause_all().await?;
    let write =
        tokio::time::timeout(LONG, c.update_one(doc! { "_id": 1 }, doc! { "$inc": { "n": 1 } })).await?;
    ensure!(write.is_err(), "{write:?}");
    new.resume_all().await?;
    operator.until_synced().await?;
    operator.rollback().await?;
    let found =
        old.client().await?.database("shop").collection::<Document>("c").find_one(doc! { "_id": 1 }).await?;
    let n = found.context("a document")?.get_i32("n")?;
    ensure!((0..=1).contains(&n), "{n}");
    proxy.shutdown().await;
    Ok(())
}

/// New answers, but its reads fail as a router's do that cannot reach a shard. Drivers ask once more at most, and this
/// one not even once: it hears nothing of it, since old decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_answers_that_it_lost_somebody_behind_it() -> Result<()> {
    let (old, new) = two_sets("hang-lost").await?;
    let (proxy, _, c) = read_on_new(&old, &new, "retryReads=false").await?;
    let admin = new.client().await?.database("admin");
    for code in [6, 7, 89, 134, 262, 9001] {
        let fails = doc! { "failCommands": ["find", "aggregate"], "namespace": "shop.c", "errorCode": code };
        let meets = async {
            loop {
                let how = doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": &fails };
                admin.run_command(how).await?;
                counts(&c, 0).await?;
                let count = c.count_documents(doc! {}).await?;
                ensure!(count == u64::try_from(KEYS)?, "{count}");
                let how = doc! { "configureFailPoint": "failCommand", "mode": "off" };
                let off = admin.run_command(how).await?;
                if off.get_i64("count").or_else(|_| off.get_i32("count").map(i64::from))? > 0 {
                    return Ok(());
                }
            }
        };
        tokio::time::timeout(LONG, meets).await.context("no read met it")?.with_context(|| code)?;
    }
    proxy.shutdown().await;
    Ok(())
}
