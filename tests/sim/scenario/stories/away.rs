//! Stories of new being away: what it has taken back from it, and what only it has.

use std::sync::Arc;

use reshard::model::side::Side;
use reshard::policy::safeguards::Safeguards;

use crate::network::Weather;
use crate::scenario::client::COUNTERS;
use crate::scenario::operator::Step;
use crate::scenario::options::UNVERIFIED;
use crate::scenario::stage::{Ending, Stage, tell};
use crate::schedules;
use crate::world::World;

/// A register that is there from the beginning, in no range; and one of the range `registers`.
const BESIDE: i32 = 0;
const WITHIN: i32 = 2;
/// One that nothing else is done to.
const NOBODYS: i32 = 1;
/// Another one of the range.
const AND_WITHIN: i32 = 3;

/// New acknowledges two writes, and is gone before old gets them. They come back when it does, wherever the operator has
/// taken back the slots in between, or one of them.
async fn what_only_new_has(stage: Arc<Stage>, range: Option<&'static str>) -> Ending {
    let proxy = stage.proxy(1).await;
    stage.steps(&[Step::CreateWithRanges, Step::Start, Step::Reads(100), Step::Writes(100)]).await?;
    stage.a_while(2000).await;
    let network = stage.world.network().clone();
    let (old, new) = (stage.index(Side::Old), stage.index(Side::New));
    network.hold(proxy.process.id, new, "getMore", 1000);
    network.hold(proxy.process.id, old, "find", 1000);
    stage.a_while(300).await;
    let mut client = stage.client(1);
    for id in [BESIDE, WITHIN] {
        let write = client.prepare_put(id, false);
        client.succeed(&proxy, &write).await?;
    }
    network.take_down(new);
    network.forget_holds();
    network.flush();
    stage.steps(&[Step::WithoutNew(range)]).await?;
    // Old serves these meanwhile.
    let write = client.prepare_put(AND_WITHIN, false);
    client.succeed(&proxy, &write).await?;
    stage.a_while(3000).await;
    network.bring_up(new);
    // New goes on with its own at once, while the others are brought back.
    let beside = range.map_or(NOBODYS, |_| BESIDE);
    let write = client.prepare_put(beside, false);
    client.succeed(&proxy, &write).await?;
    stage.a_while(4000).await;
    Ok(proxy)
}

/// New executes a write and the mirror gets it; its process dies before it tells the client. New goes away, and old takes
/// everything back. Then the client tries again.
async fn a_retry_after_all_was_taken_back(stage: Arc<Stage>) -> Ending {
    let first = stage.proxy(1).await;
    stage.synced().await?;
    stage.steps(&[Step::Writes(100)]).await?;
    stage.a_while(2000).await;
    let network = stage.world.network().clone();
    let mut client = stage.client(1);
    let write = client.prepare_step(COUNTERS);
    let _never_heard = Arc::clone(&first).write(&stage.world, Arc::clone(&write.command)).await;
    stage.a_while(2000).await;
    stage.world.crash(&first.process);
    let second = stage.proxy(2).await;
    stage.a_while(8000).await;
    network.take_down(stage.index(Side::New));
    stage.steps(&[Step::WithoutNew(None)]).await?;
    // Whatever it is answered: it counts once.
    client.attempt(&second, &write).await;
    let next = client.prepare_step(COUNTERS);
    client.succeed(&second, &next).await?;
    network.bring_up(stage.index(Side::New));
    stage.a_while(4000).await;
    Ok(second)
}

#[test]
fn a_retry_after_all_was_taken_back_counts_once() {
    schedules::all("a_retry_after_all_was_taken_back_counts_once", 3, &Weather::calm(), |world| {
        tell(world, UNVERIFIED, a_retry_after_all_was_taken_back)
    });
}

pub(in crate::scenario) fn whole(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, |stage| what_only_new_has(stage, None))
}

pub(in crate::scenario) fn of_a_range(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, |stage| what_only_new_has(stage, Some("registers")))
}
