//! Stories of a proxy that is taken for dead, and is not.

use std::sync::Arc;
use std::time::Duration;

use reshard::model::side::Side;
use reshard::policy::safeguards::Safeguards;

use crate::network::Weather;
use crate::scenario::client::COUNTERS;
use crate::scenario::operator::Step;
use crate::scenario::options::UNVERIFIED;
use crate::scenario::stage::{Ending, Stage, tell};
use crate::schedules;
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

/// A migration starts while its process still looks for those that have begun before.
async fn a_start_during_the_beginning(stage: Arc<Stage>) -> Ending {
    let proxy = stage.scenario.front.start(&stage.scenario.site, 1);
    let network = stage.world.network().clone();
    // Which clusters they are is known by then; not yet whether their records name a migration.
    network.hold_after(proxy.process.id, stage.index(Side::New), "find", 3);
    let release = async {
        stage.world.sleep(Duration::from_secs(3)).await;
        network.flush();
    };
    let (started, ()) = futures::join!(stage.synced(), release);
    started.map(|()| proxy)
}

#[test]
fn a_start_during_the_beginning_is_no_other_cluster() {
    schedules::all("a_start_during_the_beginning_is_no_other_cluster", 6, &Weather::calm(), |world| {
        tell(world, UNVERIFIED, a_start_during_the_beginning)
    });
}
