//! Stories of a proxy that is taken for dead, and is not.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::select;
use reshard::migration::control::Phase;
use reshard::model::side::Side;
use reshard::policy::safeguards::Safeguards;

use crate::network::{Message, Weather};
use crate::scenario::client::COUNTERS;
use crate::scenario::operator::{MIGRATION, Step};
use crate::scenario::options::UNVERIFIED;
use crate::scenario::proxy::{LEASE, Proxy, phase};
use crate::scenario::stage::{Ending, Stage, tell};
use crate::schedules;
use crate::world::World;

/// A register that is there from the beginning.
const THERE: i32 = 0;

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

/// A process that copies stands still with a batch in hand, for so long that it is taken for dead and forgotten. Its
/// successor copies the rest; a document of the batch is deleted. Then the first one goes on.
async fn a_copy_of_the_dead(stage: Arc<Stage>) -> Ending {
    let first = stage.proxy(1).await;
    let network = stage.world.network().clone();
    stage.steps(&[Step::Create]).await?;
    let mut batches = stage.world.rng().below(4);
    let stands_still = async {
        loop {
            let reads = |message: &Message| message.process == first.process.id && message.command == "find";
            if phase(&stage.scenario.site.clusters) == Some(Phase::Copying)
                && network.under_way().iter().any(|(_, message)| reads(message))
            {
                if batches == 0 {
                    break;
                }
                batches -= 1;
            }
            stage.world.sleep(Duration::from_micros(100)).await;
        }
        stage.world.pause(&first.process);
    };
    // Nobody answers the call.
    select(pin!(stage.steps(&[Step::Start])), pin!(stands_still)).await;
    stage.a_while(400).await;
    stage.scenario.site.cut_off(&first);
    let second = stage.proxy(2).await;
    stage.steps(&[Step::Reads(100)]).await?;
    let mut client = stage.client(1);
    let delete = client.prepare_delete(THERE);
    client.succeed(&second, &delete).await?;
    stage.a_while(1000).await;
    network.heal_all();
    stage.world.resume(&first.process);
    let until = stage.world.executor().now() + LEASE * 2;
    let copies = |message: &Message| message.process == first.process.id && message.command == "insert";
    while stage.world.executor().now() < until {
        if network.under_way().iter().any(|(_, message)| copies(message)) {
            return Err("it copies, as if nothing had been".into());
        }
        stage.world.sleep(Duration::from_micros(200)).await;
    }
    if has_a_lease(&first) {
        return Err("it was forgotten, and got its lease back".into());
    }
    stage.world.crash(&first.process);
    Ok(second)
}

fn has_a_lease(proxy: &Proxy) -> bool {
    let active = proxy.registry.get(MIGRATION);
    active
        .is_some_and(|it| Side::BOTH.into_iter().any(|side| it.authorities.get(side).lease.begin().is_some()))
}

#[test]
fn a_copy_of_the_dead_brings_nothing_back() {
    schedules::all("a_copy_of_the_dead_brings_nothing_back", 12, &Weather::calm(), |world| {
        tell(world, UNVERIFIED, a_copy_of_the_dead)
    });
}
