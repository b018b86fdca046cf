//! Stories of the streams: what they take for done, and what readers of the mirror see meanwhile.

use std::sync::Arc;
use std::time::Duration;

use reshard::model::side::Side;
use reshard::policy::safeguards::Safeguards;

use crate::scenario::operator::Step;
use crate::scenario::stage::{Ending, Stage, tell};
use crate::world::World;

/// A register that is there from the beginning, and one that is not.
const THERE: i32 = 0;
const NOT_THERE: i32 = 1;

/// A proxy dies with an event in hand: the mirror does not answer.
pub(super) async fn a_death_with_an_event_in_hand(stage: Arc<Stage>) -> Ending {
    let first = stage.proxy(1).await;
    stage.synced().await?;
    stage.world.network().hold(first.process.id, stage.index(Side::New), "find", 1000);
    let mut client = stage.client(1);
    let write = client.prepare_put(THERE, false);
    let death = async {
        stage.a_while(900).await;
        stage.world.crash(&first.process);
    };
    let (_, ()) = futures::join!(client.attempt(&first, &write), death);
    let second = stage.proxy(2).await;
    stage.a_while(2000).await;
    Ok(second)
}

pub(in crate::scenario) fn event_in_hand(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, a_death_with_an_event_in_hand)
}

/// The mirror's primary has a write that its majority has not, and fails over.
async fn a_mirror_that_forgets(stage: Arc<Stage>) -> Ending {
    let proxy = stage.proxy(1).await;
    stage.synced().await?;
    let new = stage.scenario.site.clusters.new.clone();
    let network = stage.world.network().clone();
    network.hold(proxy.process.id, stage.index(Side::Old), "getMore", 1);
    stage.a_while(800).await;
    new.hold_commits(true);
    let mut client = stage.client(1);
    let write = client.prepare_put(THERE, false);
    client.succeed(&proxy, &write).await?;
    // Only now does the stream tell of it.
    network.flush();
    stage.a_while(600).await;
    new.failover_with(0, None);
    new.hold_commits(false);
    stage.a_while(1000).await;
    Ok(proxy)
}

pub(in crate::scenario) fn forgetful_mirror(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, a_mirror_that_forgets)
}

/// A worker's write is held up while the application writes once more; then a reader looks at the mirror.
async fn a_worker_that_goes_back(stage: Arc<Stage>, command: &'static str) -> Ending {
    let proxy = stage.proxy(1).await;
    stage.synced().await?;
    let network = stage.world.network().clone();
    let (id, new) = (proxy.process.id, stage.index(Side::New));
    let mut client = stage.client(1);
    if command == "update" {
        // The first is the proxy's own, behind its answer from old; the second the worker's.
        network.hold_after(id, new, command, 1);
    } else {
        network.hold(id, new, command, 1);
    }
    let first = client.prepare_put(THERE, false);
    client.attempt(&proxy, &first).await;
    stage.a_while(100).await;
    let second = client.prepare_put(THERE, false);
    client.attempt(&proxy, &second).await;
    let reader = stage.client(2);
    let reading = async {
        for _ in 0..60 {
            reader.read(&proxy, THERE).await;
            stage.world.sleep(Duration::from_millis(1)).await;
        }
    };
    network.flush();
    reading.await;
    Ok(proxy)
}

pub(in crate::scenario) fn late_converge(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, |stage| a_worker_that_goes_back(stage, "update"))
}

pub(in crate::scenario) fn late_look(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, |stage| a_worker_that_goes_back(stage, "find"))
}

/// An insertion that the mirror was told of is held up. The streams make up for it; the document is deleted.
/// Then the insertion arrives, and a reader looks.
async fn a_late_insertion_and_a_reader(stage: Arc<Stage>) -> Ending {
    let proxy = stage.proxy(1).await;
    stage.synced().await?;
    let network = stage.world.network().clone();
    network.lose_track(proxy.process.id, stage.index(Side::New), "insert", 1);
    let mut client = stage.client(1);
    let insert = client.prepare_put(NOT_THERE, true);
    client.succeed(&proxy, &insert).await?;
    stage.a_while(30).await;
    let delete = client.prepare_delete(NOT_THERE);
    client.succeed(&proxy, &delete).await?;
    network.flush();
    for _ in 0..60 {
        client.read(&proxy, NOT_THERE).await;
        stage.world.sleep(Duration::from_micros(300)).await;
    }
    Ok(proxy)
}

pub(in crate::scenario) fn late_insertion(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, a_late_insertion_and_a_reader)
}

/// The copy's insert comes late. Meanwhile a document of it has been deleted, and the stream found nothing to delete.
async fn a_slow_copy(stage: Arc<Stage>) -> Ending {
    let proxy = stage.proxy(1).await;
    let network = stage.world.network().clone();
    network.hold(proxy.process.id, stage.index(Side::New), "insert", 1);
    stage.steps(&[Step::Create, Step::Start]).await?;
    let mut client = stage.client(1);
    let delete = client.prepare_delete(THERE);
    client.succeed(&proxy, &delete).await?;
    stage.a_while(2000).await;
    network.flush();
    stage.a_while(1000).await;
    Ok(proxy)
}

pub(in crate::scenario) fn slow_copy(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, a_slow_copy)
}

/// The copy's insert comes late, and its answer never. Meanwhile a document of it has been deleted: the copy does not
/// find it any more when it tries again. `dies`: nor does its process learn that there was no answer.
async fn a_copy_that_hears_nothing(stage: Arc<Stage>, dies: bool) -> Ending {
    let first = stage.proxy(1).await;
    let network = stage.world.network().clone();
    network.swallow(first.process.id, stage.index(Side::New), "insert", 1);
    stage.steps(&[Step::Create, Step::Start]).await?;
    let mut client = stage.client(1);
    let delete = client.prepare_delete(THERE);
    client.succeed(&first, &delete).await?;
    // The stream finds nothing to delete on new; then the insert arrives, and the streams store where they are.
    stage.a_while(2000).await;
    network.flush();
    stage.world.sleep(Duration::from_secs(3)).await;
    if !dies {
        return Ok(first);
    }
    stage.world.crash(&first.process);
    let second = stage.proxy(2).await;
    stage.steps(&[Step::Reads(100)]).await?;
    Ok(second)
}

pub(in crate::scenario) fn deaf_copy(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, |stage| a_copy_that_hears_nothing(stage, false))
}

pub(in crate::scenario) fn dead_copy(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, |stage| a_copy_that_hears_nothing(stage, true))
}
