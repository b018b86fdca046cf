//! What can be switched off while a migration runs: the routing of reads, and the inline mirror.

mod support;

use anyhow::{Context as _, Result, ensure};
use bson::doc;
use reshard::migration::control::{
    Cluster, Control as _, SetPins, SetShadow, SetSwitches, Switches, Verification, Verify,
};
use reshard_testbed::ReplicaSet;
use serde_json::json;
use support::bed::Bed;
use support::{Operator, me, plant, proxy_with, settings, uri};

const NOTHING: SetSwitches = SetSwitches {
    namespace: None,
    inline_mirror: None,
    read_routing: None,
    shadow: None,
    repair: None,
    plan: None,
};
const READS_OFF: SetSwitches = SetSwitches { read_routing: Some(false), ..NOTHING };
const READS_ON: SetSwitches = SetSwitches { read_routing: Some(true), ..NOTHING };
const INLINE_OFF: SetSwitches = SetSwitches { inline_mirror: Some(false), ..NOTHING };
const INLINE_ON: SetSwitches = SetSwitches { inline_mirror: Some(true), ..NOTHING };

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

/// Who serves a document of another collection, as [`served_by`] does.
async fn told(bed: &Bed, collection: &str) -> Result<String> {
    served_by(&bed.shop().collection(collection)).await
}

/// Two collections of one migration, with one document each that says on new that it is there.
async fn two(name: &str) -> Result<Bed> {
    let bed = Bed::start(name).await?;
    for collection in ["c", "d"] {
        bed.shop().collection(collection).insert_one(doc! { "_id": 1, "on": "old" }).await?;
    }
    bed.operator.create(&["shop.c", "shop.d"]).await?;
    bed.operator.start().await?;
    bed.operator.until_synced().await?;
    Ok(bed)
}

async fn differ_in_both(new: &ReplicaSet) -> Result<()> {
    let mut operations = Vec::new();
    for ns in ["shop.c", "shop.d"] {
        operations.push(doc! { "op": "d", "ns": ns, "o": { "_id": 1 } });
        operations.push(doc! { "op": "i", "ns": ns, "o": { "_id": 1, "on": "new" } });
    }
    plant(new, operations).await
}

fn for_c(switches: SetSwitches) -> SetSwitches {
    SetSwitches { namespace: Some("shop.c".into()), ..switches }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_of_one_collection_return_and_another_stays() -> Result<()> {
    let bed = two("switch-one-reads").await?;
    bed.operator.reads(100).await?;
    differ_in_both(&bed.new).await?;
    let engine = &bed.operator.engine;
    let switched = engine.switch(&me(), "m", for_c(READS_OFF)).await?;
    let [of_c] = &switched.namespaces[..] else { anyhow::bail!("{switched:?}") };
    ensure!(switched.read_routing && !of_c.read_routing && of_c.repair && of_c.namespace == "shop.c");
    for _ in 0..20 {
        ensure!((told(&bed, "c").await?, told(&bed, "d").await?) == ("old".into(), "new".into()));
    }
    let wrong = SetSwitches { namespace: Some("shop.x".into()), ..READS_OFF };
    let refused = engine.switch(&me(), "m", wrong).await.err().context("no such collection")?;
    ensure!(refused.code == "invalid-switches" && refused.detail.contains("shop.x"), "{refused:?}");
    let events = engine.events("m").await?;
    ensure!(events.iter().any(|event| event.what == "switch read-routing off for shop.c"), "{events:?}");
    bed.proxy.shutdown().await;
    // Both records have it.
    for set in [&bed.old, &bed.new] {
        let records = set.client().await?.database("reshard").collection::<bson::Document>("authority");
        let record = records.find_one(doc! { "_id": "m" }).await?.context("a record")?;
        ensure!(record.get_array("reads_off_for")? == &vec!["shop.c".into()], "{record}");
        ensure!(!record.get_bool("reads_off")?, "{record}");
    }
    let proxy = proxy_with(&bed.old.uri(), Some(&bed.new.uri()), settings()).await?;
    let operator = Operator::of(&proxy, "m");
    operator.ready().await?;
    operator.until_level().await?;
    let shop = mongodb::Client::with_uri_str(uri(&proxy)).await?.database("shop");
    let told = async |name: &str| served_by(&shop.collection(name)).await;
    reshard_testbed::wait_for("reads of one collection on new", support::LONG, || async {
        differ_in_both(&bed.new).await?;
        ensure!(told("c").await? == "old", "a successor goes by the switch");
        Ok(told("d").await? == "new")
    })
    .await?;
    operator.engine.switch(&me(), "m", for_c(READS_ON)).await?;
    ensure!(operator.progress().await?.switches == Switches::default());
    reshard_testbed::wait_for("reads of both on new", support::LONG, || async {
        differ_in_both(&bed.new).await?;
        Ok(told("c").await? == "new")
    })
    .await?;
    proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_inline_mirror_of_one_collection_is_off_and_that_of_another_is_not() -> Result<()> {
    let bed = two("switch-one-inline").await?;
    let engine = &bed.operator.engine;
    engine.switch(&me(), "m", for_c(INLINE_OFF)).await?;
    // Without the streams, only an inline write comes to new.
    engine.pause(&me(), "m").await?;
    let on_new = Bed::on(&bed.new).await?;
    let is_there = async |collection: &str, id: i32| -> Result<bool> {
        let found = on_new.collection::<bson::Document>(collection).find_one(doc! { "_id": id }).await?;
        Ok(found.is_some())
    };
    for id in 100..120 {
        for collection in ["c", "d"] {
            bed.shop().collection(collection).insert_one(doc! { "_id": id }).await?;
        }
        // Behind the reply, as no read meets the mirror.
        reshard_testbed::wait_for("it on new", support::LONG, || is_there("d", id)).await?;
    }
    // What a stream had in hand when it was halted may have come.
    ensure!(!is_there("c", 119).await?, "the inline mirror of c is off");
    engine.resume(&me(), "m").await?;
    bed.operator.until_level().await?;
    reshard_testbed::wait_for("the streams to do it", support::LONG, || is_there("c", 119)).await?;
    bed.operator.until_synced().await?;
    ensure!(bed.operator.progress().await?.mirror_failures == 0, "what is off does not fail");
    bed.operator.reads(100).await?;
    let divided = bed.operator.writes(50).await.err().context("it is off for one")?;
    ensure!(divided.to_string().contains("inline mirror is switched off"), "{divided}");
    engine.switch(&me(), "m", for_c(INLINE_ON)).await?;
    bed.operator.until_synced().await?;
    bed.operator.writes(50).await?;
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shadow_reads_and_repair_of_one_collection_are_off_and_those_of_another_are_not() -> Result<()> {
    let bed = two("switch-one-shadow").await?;
    let engine = &bed.operator.engine;
    let all = SetShadow { percent: 100.0, ..SetShadow::default() };
    engine.set_shadow(&me(), "m", all).await?;
    let off = SetSwitches { shadow: Some(false), repair: Some(false), ..NOTHING };
    engine.switch(&me(), "m", for_c(off.clone())).await?;
    let sampled = async || -> Result<u64> { Ok(bed.operator.progress().await?.shadow.shadow_sampled) };
    let before = sampled().await?;
    for _ in 0..10 {
        told(&bed, "c").await?;
    }
    ensure!(sampled().await? == before, "reads of c are not compared");
    for _ in 0..10 {
        told(&bed, "d").await?;
    }
    ensure!(sampled().await? == before + 10, "those of d are");
    // A comparison tells of both and makes one equal.
    differ_in_both(&bed.new).await?;
    let verified = async || -> Result<Verification> {
        engine.verify(&me(), "m", Verify::default()).await?;
        reshard_testbed::wait_for("the comparison", support::LONG, || async {
            let last = bed.operator.progress().await?.verification;
            Ok(last.is_some_and(|last| !last.running))
        })
        .await?;
        bed.operator.progress().await?.verification.context("a comparison")
    };
    let first = verified().await?;
    ensure!((first.mismatches, first.repaired) == (2, 1), "{first:?}");
    let on_new = Bed::on(&bed.new).await?;
    let on = async |collection: &str| served_by(&on_new.collection(collection)).await;
    ensure!((on("c").await?, on("d").await?) == ("new".into(), "old".into()));
    // For everything, whatever is said of one.
    engine.switch(&me(), "m", off).await?;
    differ_in_both(&bed.new).await?;
    let second = verified().await?;
    ensure!((second.mismatches, second.repaired) == (2, 0), "{second:?}");
    let before = sampled().await?;
    told(&bed, "d").await?;
    ensure!(sampled().await? == before, "nothing is compared");
    let on_again = SetSwitches { shadow: Some(true), repair: Some(true), ..NOTHING };
    engine.switch(&me(), "m", on_again.clone()).await?;
    let switches = engine.switch(&me(), "m", for_c(on_again)).await?;
    ensure!(switches == Switches::default(), "{switches:?}");
    let third = verified().await?;
    ensure!((third.mismatches, third.repaired) == (2, 2), "{third:?}");
    bed.proxy.shutdown().await;
    Ok(())
}
