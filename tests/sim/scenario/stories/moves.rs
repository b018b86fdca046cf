//! Stories of what is under way while slots move.

use std::sync::Arc;
use std::time::Duration;

use bson::RawBsonRef;
use reshard::model::side::Side;
use reshard::policy::safeguards::Safeguards;

use crate::scenario::client::{COUNTERS, NS};
use crate::scenario::operator::Step;
use crate::scenario::proxy::Proxy;
use crate::scenario::stage::{Ending, Stage, tell};
use crate::world::World;

/// A register that is there from the beginning, and one that is not.
const THERE: i32 = 0;
const NOT_THERE: i32 = 1;
/// A document that nobody writes.
const NOBODYS: i32 = 1000;

/// Every copy of a write is held up on its way to old. Its slot moves; they arrive, and are undone. Then the
/// application tries once more.
async fn a_late_write_and_its_retry(stage: Arc<Stage>, before_the_start: bool) -> Ending {
    let proxy = stage.proxy(1).await;
    if !before_the_start {
        stage.synced().await?;
    }
    let network = stage.world.network().clone();
    network.lose_track(proxy.process.id, stage.index(Side::Old), "update", 4);
    let mut client = stage.client(1);
    let write = client.prepare_step(COUNTERS);
    if client.attempt(&proxy, &write).await {
        return Err("nobody can have answered".into());
    }
    network.forget_holds();
    if before_the_start {
        stage.synced().await?;
    }
    stage.steps(&[Step::Writes(100)]).await?;
    network.flush();
    stage.a_while(2000).await;
    client.attempt(&proxy, &write).await;
    Ok(proxy)
}

pub(in crate::scenario) fn unsettled(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, |stage| a_late_write_and_its_retry(stage, false))
}

pub(in crate::scenario) fn unsettled_early(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, |stage| a_late_write_and_its_retry(stage, true))
}

/// A write is under way, slowly, when its slot begins to move.
pub(super) async fn a_slow_write(stage: Arc<Stage>) -> Ending {
    let proxy = stage.proxy(1).await;
    stage.synced().await?;
    let network = stage.world.network().clone();
    network.hold(proxy.process.id, stage.index(Side::Old), "delete", 1);
    let mut client = stage.client(1);
    let write = client.prepare_delete(THERE);
    let release = async {
        stage.world.sleep(Duration::from_millis(200)).await;
        network.flush();
    };
    let (_, moved, ()) =
        futures::join!(client.attempt(&proxy, &write), stage.steps(&[Step::Writes(100)]), release);
    moved.map(|()| proxy)
}

pub(in crate::scenario) fn slow_write(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, a_slow_write)
}

async fn until(stage: &Stage, proxy: &Proxy, is: impl Fn(&Proxy) -> bool) {
    while !is(proxy) {
        stage.world.sleep(Duration::from_micros(100)).await;
    }
}

/// A write of unknown outcome is executed by old after the streams have passed the markers of a move, and
/// before that is decided: the stream's event makes a worker change new, which owns the slot by then.
pub(super) async fn a_worker_that_is_late(stage: Arc<Stage>) -> Ending {
    let proxy = stage.proxy(1).await;
    stage.synced().await?;
    let network = stage.world.network().clone();
    let (id, old, new) = (proxy.process.id, stage.index(Side::Old), stage.index(Side::New));
    network.lose_track(id, old, "update", 4);
    let mut client = stage.client(1);
    let write = client.prepare_step(COUNTERS);
    client.attempt(&proxy, &write).await;
    network.forget_holds();
    let meanwhile = async {
        until(&stage, &proxy, |proxy| proxy.route().is_some_and(|route| !route.held.is_empty())).await;
        let late: Vec<u64> = network.under_way().into_iter().map(|(number, _)| number).collect();
        // The decision takes its time; so does what the worker writes.
        network.hold(id, old, "findAndModify", 3);
        until(&stage, &proxy, |proxy| proxy.route().is_some_and(|route| !route.sealed.is_empty())).await;
        network.hold(id, new, "update", 1);
        late.iter().for_each(|number| network.release(*number));
        stage.a_while(120).await;
        network.forget_holds();
        network.release_held(old);
        until(&stage, &proxy, |proxy| proxy.route().is_some_and(|route| route.held.is_empty())).await;
        network.flush();
    };
    let (moved, ()) = futures::join!(stage.steps(&[Step::Writes(100)]), meanwhile);
    moved.map(|()| proxy)
}

pub(in crate::scenario) fn late_worker(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, a_worker_that_is_late)
}

/// New loses a document that nobody writes any more. No stream tells; only a comparison before the move does.
pub(super) async fn a_document_that_new_lost(stage: Arc<Stage>) -> Ending {
    let proxy = stage.proxy(1).await;
    stage.synced().await?;
    stage.a_while(1000).await;
    stage.scenario.site.clusters.new.lose(NS, RawBsonRef::Int32(NOBODYS));
    stage.steps(&[Step::Writes(100)]).await?;
    Ok(proxy)
}

pub(in crate::scenario) fn lost_by_new(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, a_document_that_new_lost)
}

/// An insertion that the mirror was told of is held up. The streams make up for it; the document is deleted;
/// its slot moves. Then the insertion arrives.
async fn a_late_mirror_write(stage: Arc<Stage>) -> Ending {
    let proxy = stage.proxy(1).await;
    stage.synced().await?;
    let network = stage.world.network().clone();
    network.lose_track(proxy.process.id, stage.index(Side::New), "insert", 1);
    let mut client = stage.client(1);
    let insert = client.prepare_put(NOT_THERE, true);
    client.succeed(&proxy, &insert).await?;
    stage.a_while(2000).await;
    let delete = client.prepare_delete(NOT_THERE);
    client.succeed(&proxy, &delete).await?;
    stage.a_while(1000).await;
    stage.steps(&[Step::Writes(100)]).await?;
    network.flush();
    stage.a_while(1000).await;
    Ok(proxy)
}

pub(in crate::scenario) fn late_mirror_write(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, a_late_mirror_write)
}
