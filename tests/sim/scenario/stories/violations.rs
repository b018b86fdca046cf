//! What proxies find broken by themselves: with a safeguard off its invariant is counted, and with it on it is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reshard::model::side::Side;
use reshard::policy::invariants::Invariant;
use reshard::policy::safeguards::Safeguards;

use super::{leases, moves, streams};
use crate::network::Weather;
use crate::scenario::client::COUNTERS;
use crate::scenario::operator::Step;
use crate::scenario::options::UNVERIFIED;
use crate::scenario::proxy::{LEASE, MIRROR_TIMEOUT};
use crate::scenario::stage::{Ending, Stage, tell, told};
use crate::schedules;
use crate::world::World;

/// Within this many seeds it must be counted.
const BUDGET: u64 = 6;

/// Some telling of the story counts `invariant` with `off`, and none does with `on`.
fn is_counted<F>(
    invariant: Invariant,
    off: Safeguards,
    on: Safeguards,
    story: impl Fn(Arc<Stage>) -> F + Copy,
) where
    F: Future<Output = Ending> + Send + 'static,
{
    let count = |seed: u64, safeguards: Safeguards| {
        let world = World::new(seed, Weather::calm());
        let (_, found) = told(&world, safeguards, story);
        world.end();
        found.get(&invariant).copied().unwrap_or_default()
    };
    for seed in 1..=BUDGET {
        assert_eq!(count(seed, on), 0, "{invariant:?} with its safeguard, seed {seed}");
        if count(seed, off) > 0 {
            return;
        }
    }
    panic!("{invariant:?} is not counted");
}

#[test]
fn a_write_that_a_move_overtakes_is_counted() {
    let off = Safeguards { epoch_guard: false, ..UNVERIFIED };
    is_counted(Invariant::Acknowledged, off, UNVERIFIED, moves::a_slow_write);
}

#[test]
fn a_reply_after_its_lease_is_counted() {
    let unchecked = Safeguards { send_check: false, ..UNVERIFIED };
    let off = Safeguards { reply_check: false, ..unchecked };
    is_counted(Invariant::Acknowledged, off, unchecked, |stage| {
        leases::cut_off_in_the_middle_of_a_write(stage, false)
    });
}

/// The lease cannot be renewed and ends while writes go on, on a machine that is busy: time passes between any two looks
/// at the clock.
async fn a_lease_that_ends_at_any_line(stage: Arc<Stage>) -> Ending {
    let proxy = stage.proxy(1).await;
    stage.synced().await?;
    let (network, executor) = (stage.world.network().clone(), stage.world.executor().clone());
    let is_over = AtomicBool::new(false);
    let leases = async {
        executor.be_busy(Duration::from_millis(20));
        for _ in 0..10 {
            network.hold(proxy.process.id, stage.index(Side::Old), "findAndModify", 1000);
            stage.world.sleep(LEASE + LEASE / 2).await;
            network.flush();
            stage.world.sleep(LEASE / 2).await;
        }
        executor.be_busy(Duration::ZERO);
        is_over.store(true, Ordering::Relaxed);
    };
    let mut client = stage.client(1);
    let writes = async {
        while !is_over.load(Ordering::Relaxed) {
            let write = client.prepare_step(COUNTERS);
            client.attempt(&proxy, &write).await;
        }
    };
    futures::join!(writes, leases);
    Ok(proxy)
}

#[test]
fn a_lease_that_ends_once_its_reply_may_be_shown_is_not_counted() {
    for seed in 1..=5 * BUDGET {
        let world = World::new(seed, Weather::calm());
        let (told, found) = told(&world, UNVERIFIED, a_lease_that_ends_at_any_line);
        world.end();
        assert_eq!((told, found.get(&Invariant::Acknowledged)), (Ok(()), None), "seed {seed}");
    }
}

#[test]
fn a_checkpoint_before_its_events_is_counted() {
    let off = Safeguards { checkpoint_after_done: false, ..UNVERIFIED };
    is_counted(Invariant::Checkpoint, off, UNVERIFIED, streams::a_death_with_an_event_in_hand);
}

#[test]
fn a_move_past_a_gate_is_counted() {
    is_counted(Invariant::EveryGate, UNVERIFIED, Safeguards::ALL, moves::a_document_that_new_lost);
}

#[test]
fn a_mirror_write_to_an_authority_is_counted() {
    let off = Safeguards { workers_fenced: false, ..UNVERIFIED };
    is_counted(Invariant::OnlyMirror, off, UNVERIFIED, moves::a_worker_that_is_late);
}

/// The way back to the client breaks; its slot moves; it tries again.
async fn a_retry_after_a_move(stage: Arc<Stage>) -> Ending {
    let proxy = stage.proxy(1).await;
    stage.synced().await?;
    let mut client = stage.client(1);
    let write = client.prepare_step(COUNTERS);
    let _lost = Arc::clone(&proxy).write(&stage.world, Arc::clone(&write.command)).await;
    stage.steps(&[Step::Writes(100)]).await?;
    client.attempt(&proxy, &write).await;
    Ok(proxy)
}

#[test]
fn a_retry_that_is_executed_again_is_counted() {
    let off = Safeguards { probe: false, ..UNVERIFIED };
    is_counted(Invariant::Once, off, UNVERIFIED, a_retry_after_a_move);
}

/// Reads meet the mirror, and it does not answer.
async fn a_mirror_that_hangs(stage: Arc<Stage>) -> Ending {
    let proxy = stage.proxy(1).await;
    stage.synced().await?;
    let network = stage.world.network().clone();
    network.hold(proxy.process.id, stage.index(Side::New), "find", 1);
    let mut client = stage.client(1);
    let write = client.prepare_step(COUNTERS);
    let release = async {
        stage.world.sleep(Duration::from_secs(8)).await;
        network.flush();
    };
    futures::join!(client.attempt(&proxy, &write), release);
    Ok(proxy)
}

#[test]
fn a_reply_that_waits_for_the_mirror_is_counted() {
    let off = Safeguards { mirror_bound: false, ..UNVERIFIED };
    is_counted(Invariant::NotDelayed, off, UNVERIFIED, a_mirror_that_hangs);
}

/// Two writes of one document while the mirror hangs: the later one waits for the earlier one's lane, and not as
/// long again for the mirror.
async fn two_writes_of_one_document(stage: Arc<Stage>) -> Ending {
    let proxy = stage.proxy(1).await;
    stage.synced().await?;
    let network = stage.world.network().clone();
    network.hold(proxy.process.id, stage.index(Side::New), "find", 1000);
    let (mut one, mut other) = (stage.client(1), stage.client(2));
    let (first, second) = (one.prepare_step(COUNTERS), other.prepare_step(COUNTERS));
    let begun = stage.world.executor().now();
    futures::join!(one.attempt(&proxy, &first), other.attempt(&proxy, &second));
    let took = stage.world.executor().now() - begun;
    network.flush();
    if took > MIRROR_TIMEOUT + Duration::from_millis(500) {
        return Err(format!("invariant 10: both were answered after {took:?}"));
    }
    Ok(proxy)
}

#[test]
fn lanes_and_mirror_together_keep_a_reply_for_one_limit() {
    schedules::all("lanes_and_mirror_together", 3, &Weather::calm(), |world| {
        tell(world, UNVERIFIED, two_writes_of_one_document)
    });
}
