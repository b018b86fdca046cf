//! Stories of readers of a mirror that is not as far as it should be.

use std::sync::Arc;
use std::time::Duration;

use bson::RawBsonRef;
use reshard::model::side::Side;
use reshard::model::slots::{Slot, SlotSet};
use reshard::policy::canonical::key_of;
use reshard::policy::safeguards::Safeguards;

use crate::network::Weather;
use crate::scenario::client::{COUNTERS, Client, REGISTERS};
use crate::scenario::operator::Step;
use crate::scenario::options::UNVERIFIED;
use crate::scenario::proxy::{MIRROR_TIMEOUT, Proxy, Reading};
use crate::scenario::stage::{Ending, Stage, tell};
use crate::schedules;
use crate::world::World;

/// A register that is there from the beginning.
const THERE: i32 = 0;
/// Where authority is divided.
const PART: u8 = 60;

/// Reads again and again, for `looks` milliseconds.
async fn watch(stage: &Stage, reader: &Client, proxy: &Arc<Proxy>, (id, how): (i32, Reading), looks: u32) {
    for _ in 0..looks {
        reader.read_as(proxy, id, how).await;
        stage.world.sleep(Duration::from_millis(1)).await;
    }
}

/// A register of the first `PART` percent that is there from the beginning.
fn that_stays_on_new() -> i32 {
    let stays = |id: &i32| SlotSet::percent(PART).contains(key_of(RawBsonRef::Int32(*id)).unwrap().id_slot());
    (0..REGISTERS).step_by(2).find(stays).unwrap()
}

/// A connection whose reads without a key go to old then.
fn that_reads_old() -> u64 {
    let slot = |connection: &u64| Slot::of_hash(xxhash_rust::xxh3::xxh3_64(&connection.to_le_bytes()));
    (0..).find(|connection| !SlotSet::percent(PART).contains(slot(connection))).unwrap()
}

/// Everything is on new, where no read meets a mirror and no reply waits for one. A slow write is under way while
/// a part of the others goes back; it is executed when reads without a key meet old, and old hears of it late.
async fn a_partial_way_back(stage: Arc<Stage>) -> Ending {
    let proxy = stage.proxy(1).await;
    stage.synced().await?;
    stage.steps(&[Step::Writes(100)]).await?;
    let network = stage.world.network().clone();
    let (process, old, new) = (proxy.process.id, stage.index(Side::Old), stage.index(Side::New));
    let id = that_stays_on_new();
    network.hold(process, new, "delete", 1);
    let mut client = stage.client(1);
    let write = client.prepare_delete(id);
    let how = Reading { names_key: false, connection: that_reads_old(), ..Reading::KEYED };
    let slowly = async {
        // As soon as reads have moved; where they wait for it, after a while.
        let give_up = stage.world.executor().now() + Duration::from_secs(10);
        let moved = || proxy.route().is_some_and(|route| route.reads_on_new == SlotSet::percent(PART));
        while !moved() && stage.world.executor().now() < give_up {
            stage.world.sleep(Duration::from_millis(1)).await;
        }
        // Its own mirror write, and that of the stream.
        network.hold(process, old, "delete", 2);
        network.release_held(new);
    };
    let writing = async {
        client.succeed(&proxy, &write).await?;
        watch(&stage, &stage.client(2), &proxy, (id, how), 60).await;
        network.flush();
        Ok::<_, String>(())
    };
    let back = async {
        stage.a_while(100).await;
        stage.steps(&[Step::Writes(PART), Step::Reads(PART)]).await
    };
    let ((), written, moved) = futures::join!(slowly, writing, back);
    written.and(moved).map(|()| proxy)
}

pub(in crate::scenario) fn partial_way_back(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, a_partial_way_back)
}

/// A write while history is copied is left to the streams, and theirs is behind. Then reads move to new.
async fn reads_that_follow_the_copy(stage: Arc<Stage>) -> Ending {
    let proxy = stage.proxy(1).await;
    let network = stage.world.network().clone();
    let (process, old, new) = (proxy.process.id, stage.index(Side::Old), stage.index(Side::New));
    network.hold(process, new, "insert", 1);
    stage.steps(&[Step::Create, Step::Start]).await?;
    // What the stream waits for at the moment ends; the next time it asks it is not heard.
    network.hold(process, old, "getMore", 1);
    stage.a_while(3000).await;
    let mut client = stage.client(1);
    let write = client.prepare_put(THERE, false);
    client.succeed(&proxy, &write).await?;
    network.release_held(new);
    let reader = stage.client(2);
    let reading = watch(&stage, &reader, &proxy, (THERE, Reading::KEYED), 1500);
    let later = async {
        stage.a_while(1500).await;
        network.flush();
    };
    let (moved, (), ()) = futures::join!(stage.steps(&[Step::Reads(100)]), reading, later);
    moved.map(|()| proxy)
}

pub(in crate::scenario) fn after_the_copy(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, reads_that_follow_the_copy)
}

/// A write without a write concern, on clusters that make it one by majority, and a reader of what a majority of
/// the mirror has, which takes its time.
async fn a_write_without_a_concern(stage: Arc<Stage>) -> Ending {
    let proxy = stage.proxy(1).await;
    stage.synced().await?;
    let clusters = stage.scenario.site.clusters.clone();
    for side in Side::BOTH {
        clusters.get(side).state().default_majority = true;
    }
    let mut client = stage.client(1);
    let write = client.prepare_put_unconcerned(THERE);
    let reader = stage.client(2);
    let slowly = async {
        clusters.new.hold_commits(true);
        stage.a_while(400).await;
        clusters.new.hold_commits(false);
    };
    let writing = async {
        client.succeed(&proxy, &write).await?;
        watch(&stage, &reader, &proxy, (THERE, Reading { majority: true, ..Reading::KEYED }), 60).await;
        Ok::<_, String>(())
    };
    let ((), written) = futures::join!(slowly, writing);
    written.map(|()| proxy)
}

pub(in crate::scenario) fn unconcerned(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, a_write_without_a_concern)
}

/// New does not get a write before its proxy dies. The next one knows new's record before old's, and reads are to go
/// to new.
async fn a_restart_that_hears_of_old_late(stage: Arc<Stage>) -> Ending {
    let first = stage.proxy(1).await;
    stage.synced().await?;
    let network = stage.world.network().clone();
    let (old, new) = (stage.index(Side::Old), stage.index(Side::New));
    network.cut(first.process.id, new);
    let mut client = stage.client(1);
    let write = client.prepare_put(THERE, false);
    client.succeed(&first, &write).await?;
    stage.world.crash(&first.process);
    let second = stage.scenario.front.start(&stage.scenario.site, 2);
    network.hold(second.process.id, old, "findAndModify", 1);
    network.hold(second.process.id, old, "aggregate", 1000);
    watch(&stage, &stage.client(2), &second, (THERE, Reading::KEYED), 400).await;
    network.flush();
    Ok(second)
}

pub(in crate::scenario) fn restart(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, a_restart_that_hears_of_old_late)
}

#[test]
fn a_restart_reads_no_mirror_before_it_knows_the_authority() {
    schedules::all("a_restart_reads_no_mirror_before_it_knows_the_authority", 4, &Weather::calm(), |world| {
        restart(world, UNVERIFIED)
    });
}

/// Everything is on new, and old does not answer: no read meets it, and no reply waits for it.
async fn a_mirror_that_nobody_reads(stage: Arc<Stage>) -> Ending {
    let proxy = stage.proxy(1).await;
    stage.synced().await?;
    stage.steps(&[Step::Writes(100)]).await?;
    let network = stage.world.network().clone();
    network.hold(proxy.process.id, stage.index(Side::Old), "find", 2);
    let mut client = stage.client(1);
    let write = client.prepare_step(COUNTERS);
    let begun = stage.world.executor().now();
    client.succeed(&proxy, &write).await?;
    let took = stage.world.executor().now() - begun;
    network.flush();
    if took >= MIRROR_TIMEOUT {
        return Err(format!("invariant 10: a reply waited {took:?} for a mirror that no read can meet"));
    }
    Ok(proxy)
}

#[test]
fn no_reply_waits_for_a_mirror_that_no_read_can_meet() {
    schedules::all("no_reply_waits_for_a_mirror_that_no_read_can_meet", 3, &Weather::calm(), |world| {
        tell(world, UNVERIFIED, a_mirror_that_nobody_reads)
    });
}
