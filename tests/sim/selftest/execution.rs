//! The executor: order by seed, time, crash, pause, deadlock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::executor::Halt;
use crate::network::Weather;
use crate::world::World;

fn world(seed: u64) -> World {
    World::new(seed, Weather::calm())
}

#[test]
fn the_seed_orders_ready_tasks() {
    let order = |seed| {
        let world = world(seed);
        let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let process = world.process("p");
        for number in 0..8 {
            let order = order.clone();
            process.spawn("task", async move { order.lock().push(number) });
        }
        let sleeper = world.clone();
        world.run(async move { sleeper.sleep(Duration::from_secs(1)).await }).unwrap();
        order.lock().clone()
    };
    assert_eq!(order(7), order(7));
    assert!((1..20).any(|seed| order(seed) != order(7)));
}

#[test]
fn time_jumps_to_the_next_timer() {
    let world = world(1);
    let process = world.process_with("p", 200);
    let clock = process.clock();
    let elapsed = world.run(async move {
        let before = clock.now();
        clock.sleep(Duration::from_secs(3600)).await;
        clock.now() - before
    });
    let elapsed = elapsed.unwrap();
    assert!(elapsed >= Duration::from_secs(3600) && elapsed < Duration::from_millis(3_600_001));
    assert!(world.executor().now() < Duration::from_secs(3600), "its clock is too fast");
}

#[test]
fn a_crash_ends_all_tasks_at_their_awaits() {
    let world = world(1);
    let process = world.process("p");
    let ticks = Arc::new(AtomicU32::new(0));
    let (clock, counter) = (process.clock(), ticks.clone());
    process.spawn("ticker", async move {
        loop {
            clock.sleep(Duration::from_secs(1)).await;
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    let inside = world.clone();
    let victim = process.clone();
    let main = async move {
        inside.sleep(Duration::from_millis(3500)).await;
        inside.crash(&victim);
        inside.sleep(Duration::from_secs(10)).await;
    };
    world.run(main).unwrap();
    assert_eq!(ticks.load(Ordering::Relaxed), 3);
    assert_eq!(Arc::strong_count(&ticks), 1, "the task was dropped");
}

#[test]
fn a_fuse_crashes_a_process_at_a_poll() {
    let world = world(1);
    let process = world.process("p");
    let ticks = Arc::new(AtomicU32::new(0));
    let (clock, counter) = (process.clock(), ticks.clone());
    process.spawn("ticker", async move {
        loop {
            counter.fetch_add(1, Ordering::Relaxed);
            clock.sleep(Duration::from_secs(1)).await;
        }
    });
    world.crash_after(&process, 4);
    let inside = world.clone();
    world.run(async move { inside.sleep(Duration::from_secs(60)).await }).unwrap();
    assert_eq!(ticks.load(Ordering::Relaxed), 4);
}

#[test]
fn a_paused_process_is_not_polled_while_time_goes_on() {
    let world = world(1);
    let process = world.process("p");
    let woke = Arc::new(parking_lot::Mutex::new(None));
    let (clock, slot) = (process.clock(), woke.clone());
    let start = clock.now();
    process.spawn("sleeper", async move {
        clock.sleep(Duration::from_secs(1)).await;
        *slot.lock() = Some(clock.now() - start);
    });
    let (inside, paused) = (world.clone(), process.clone());
    let main = async move {
        inside.pause(&paused);
        inside.sleep(Duration::from_secs(30)).await;
        inside.resume(&paused);
        inside.sleep(Duration::from_secs(1)).await;
    };
    world.run(main).unwrap();
    assert_eq!(*woke.lock(), Some(Duration::from_secs(30)));
}

#[test]
fn deadlocks_and_endless_runs_are_reported() {
    let stuck = world(1);
    let halt = stuck.run(std::future::pending::<()>());
    assert!(matches!(halt, Err(Halt::Deadlock { .. })));
    let endless = world(1);
    endless.executor().limit_steps(1000);
    let inside = endless.clone();
    let halt = endless.run(async move {
        loop {
            inside.sleep(Duration::from_millis(1)).await;
        }
    });
    let halt: Result<(), Halt> = halt;
    assert!(matches!(halt, Err(Halt::StepLimit { .. })));
    stuck.end();
    endless.end();
}
