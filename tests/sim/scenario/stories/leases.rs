//! Stories of a proxy that is taken for dead, and is not.

use std::sync::Arc;
use std::time::Duration;

use reshard::policy::safeguards::Safeguards;

use crate::scenario::client::COUNTERS;
use crate::scenario::operator::Step;
use crate::scenario::stage::{Ending, Stage, tell};
use crate::world::World;

/// A proxy is cut off in the middle of a write: nothing of it was sent yet, and it goes on trying. The servers
/// find its connections dead. A successor moves the slot. Then the way is open again.
pub(super) async fn cut_off_in_the_middle_of_a_write(stage: Arc<Stage>, tries_again: bool) -> Ending {
    let first = stage.proxy(1).await;
    stage.synced().await?;
    let network = stage.world.network().clone();
    stage.scenario.site.cut_off(&first);
    let mut client = stage.client(1);
    let write = client.prepare_step(COUNTERS);
    let succession = async {
        let second = stage.proxy(2).await;
        stage.steps(&[Step::Writes(100)]).await?;
        network.heal_all();
        Ok::<_, String>(second)
    };
    let (answered, second) = futures::join!(client.attempt(&first, &write), succession);
    let second = second?;
    stage.world.crash(&first.process);
    if !answered && tries_again {
        client.attempt(&second, &write).await;
    }
    stage.world.sleep(Duration::from_secs(1)).await;
    Ok(second)
}

pub(in crate::scenario) fn cut_off(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, |stage| cut_off_in_the_middle_of_a_write(stage, true))
}

/// The application takes its first answer.
pub(in crate::scenario) fn cut_off_once(world: &World, safeguards: Safeguards) -> Result<(), String> {
    tell(world, safeguards, |stage| cut_off_in_the_middle_of_a_write(stage, false))
}
