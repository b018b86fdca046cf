//! What can be switched off while a migration runs: the routing of reads, and the inline mirror.

mod support;

use anyhow::{Context as _, Result, ensure};
use bson::doc;
use reshard::migration::control::{Cluster, Control as _, SetPins, SetSwitches, Switches};
use reshard_testbed::ReplicaSet;
use serde_json::json;
use support::bed::Bed;
use support::{Operator, me, plant, proxy_with, settings, uri};

const READS_OFF: SetSwitches = SetSwitches { inline_mirror: None, read_routing: Some(false) };
const READS_ON: SetSwitches = SetSwitches { inline_mirror: None, read_routing: Some(true) };
const INLINE_OFF: SetSwitches = SetSwitches { inline_mirror: Some(false), read_routing: None };
const INLINE_ON: SetSwitches = SetSwitches { inline_mirror: Some(true), read_routing: None };

/// Who serves the reads, by what was planted on new.
async fn served_by(c: &mongodb::Collection<bson::Document>) -> Result<String> {
    let found = c.find_one(doc! { "_id": 1 }).await?.context("a document")?;
    Ok(found.get_str("on")?.to_owned())
}

/// New says that it is new, and no stream tells of that.
async fn differ(new: &ReplicaSet) -> Result<()> {
    let planted = doc! { "_id": 1, "on": "new" };
    let remove = doc! { "op": "d", "ns": "shop.c", "o": { "_id": 1 } };
    plant(new, vec![remove, doc! { "op": "i", "ns": "shop.c", "o": planted }]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_return_to_the_authority_at_once_and_keep_their_percentage() -> Result<()> {
    let bed = Bed::start("switch-reads").await?;
    bed.c().insert_one(doc! { "_id": 1, "on": "old" }).await?;
    bed.move_begins().await?;
    bed.operator.reads(100).await?;
    differ(&bed.new).await?;
    ensure!(served_by(&bed.c()).await? == "new");
    let engine = &bed.operator.engine;
    let switched = engine.switch(&me(), "m", READS_OFF).await?;
    ensure!(switched == Switches { read_routing: false, ..Switches::default() });
    for _ in 0..20 {
        ensure!(served_by(&bed.c()).await? == "old");
    }
    let progress = bed.operator.progress().await?;
    ensure!(progress.reads_percent == 100 && !progress.switches.read_routing, "{progress:?}");
    bed.proxy.shutdown().await;
    let proxy = proxy_with(&bed.old.uri(), Some(&bed.new.uri()), settings()).await?;
    let operator = Operator::of(&proxy, "m");
    operator.ready().await?;
    // What it read of the streams anew has made them equal.
    operator.until_level().await?;
    differ(&bed.new).await?;
    let client = mongodb::Client::with_uri_str(uri(&proxy)).await?;
    let c = client.database("shop").collection("c");
    ensure!(served_by(&c).await? == "old", "a successor goes by the switch");
    operator.engine.switch(&me(), "m", READS_ON).await?;
    // As soon as the successor knows the mirror to be current. Until then a late event may make both equal again.
    reshard_testbed::wait_for("reads on new", support::LONG, || async {
        differ(&bed.new).await?;
        Ok(served_by(&c).await? == "new")
    })
    .await?;
    let events = operator.engine.events("m").await?;
    ensure!(events.iter().any(|event| event.what == "switch read-routing off" && event.result == "ok"));
    proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_inline_mirror_the_streams_do_it_and_no_read_misses_a_write() -> Result<()> {
    let bed = Bed::start("switch-inline").await?;
    bed.move_begins().await?;
    let engine = &bed.operator.engine;
    bed.operator.reads(100).await?;
    engine.switch(&me(), "m", INLINE_OFF).await?;
    let converged = bed.operator.progress().await?.converged;
    for id in 0..200 {
        bed.c().insert_one(doc! { "_id": id, "n": 0 }).await?;
        bed.c().update_one(doc! { "_id": id }, doc! { "$inc": { "n": 1 } }).await?;
        let found = bed.c().find_one(doc! { "_id": id }).await?;
        ensure!(
            found.is_some_and(|found| found.get_i32("n").is_ok_and(|n| n == 1)),
            "a read misses its own write"
        );
    }
    bed.equal().await?;
    let progress = bed.operator.progress().await?;
    ensure!(progress.mirror_failures == 0, "what is switched off does not fail: {progress:?}");
    ensure!(progress.converged >= converged + 200, "the streams have done it: {progress:?}");
    // Writes are not divided meanwhile, nor is it switched off while they are.
    let divided = bed.operator.writes(50).await.err().context("it is off")?;
    ensure!(divided.to_string().contains("inline mirror is switched off"), "{divided}");
    let pin = SetPins { keys: vec![json!(1)], ranges: Vec::new(), to: Cluster::New };
    let refused = engine.pin(&me(), "m", pin).await.err().context("it is off")?;
    ensure!(refused.code == "single-step", "{refused:?}");
    engine.switch(&me(), "m", INLINE_ON).await?;
    bed.operator.writes(50).await?;
    let refused = engine.switch(&me(), "m", INLINE_OFF).await.err().context("writes are divided")?;
    ensure!(refused.code == "writes-divided", "{refused:?}");
    bed.operator.rollback().await?;
    bed.equal().await?;
    bed.operator.found_none_past_the_proxy().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

/// What cannot be divided by percentages cannot be by pins, for the same reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_writes_move_in_one_step_nothing_is_pinned() -> Result<()> {
    let bed = Bed::start("switch-pins").await?;
    let index = doc! { "key": { "email": 1 }, "name": "email", "unique": true };
    bed.shop().run_command(doc! { "createIndexes": "c", "indexes": [index] }).await?;
    bed.c().insert_one(doc! { "_id": 1, "email": "a" }).await?;
    bed.move_begins().await?;
    let engine = &bed.operator.engine;
    for to in [Cluster::New, Cluster::Old] {
        let refused =
            engine.pin(&me(), "m", SetPins { keys: vec![json!(1)], ranges: Vec::new(), to }).await.err();
        let refused = refused.context("a unique index")?;
        ensure!(refused.code == "single-step" && refused.reasons[0].contains("email"), "{refused:?}");
    }
    ensure!(engine.pins("m").await?.pins.is_empty());
    bed.proxy.shutdown().await;
    Ok(())
}

/// What keeps everything on old needs old alone; new's record follows when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_return_and_keys_stay_without_new() -> Result<()> {
    let bed = Bed::start("switch-away").await?;
    bed.c().insert_one(doc! { "_id": 1, "on": "old" }).await?;
    bed.move_begins().await?;
    let engine = &bed.operator.engine;
    bed.new.kill9_all().await?;
    engine.switch(&me(), "m", READS_OFF).await?;
    let pinned = engine
        .pin(&me(), "m", SetPins { keys: vec![json!(1)], ranges: Vec::new(), to: Cluster::Old })
        .await?;
    ensure!(pinned.pins.iter().all(|pin| pin.in_force) && pinned.pins.len() == 1, "{pinned:?}");
    ensure!(served_by(&bed.c()).await? == "old");
    bed.new.start_all().await?;
    let records = bed.new.client().await?.database("reshard").collection::<bson::Document>("authority");
    reshard_testbed::wait_for("new's record to follow", support::LONG, || async {
        let record = records.find_one(doc! { "_id": "m" }).await?.context("a record")?;
        let pins = record.get_array("pins").map_or(0, Vec::len);
        Ok(pins == 1 && record.get_bool("reads_off").unwrap_or(false))
    })
    .await?;
    bed.proxy.shutdown().await;
    Ok(())
}
