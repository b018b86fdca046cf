//! Runs many schedules, names the seed of each that fails, and counts.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::network::Weather;
use crate::world::World;

/// What became of many schedules.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Schedules run.
    pub(crate) schedules: u64,
    /// Polls made in all of them.
    pub(crate) steps: u64,
    /// Commands sent in all of them.
    pub(crate) commands: u64,
    /// Seeds that failed, with the reason.
    pub(crate) failures: Vec<(u64, String)>,
    /// How long it took.
    pub(crate) took: std::time::Duration,
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The seeds to run: `SIM_SEED` alone, or `SIM_SCHEDULES` (else `default`) from there.
pub(crate) fn seeds(default: u64) -> std::ops::Range<u64> {
    let (seed, count) = (variable("SIM_SEED"), variable("SIM_SCHEDULES"));
    let first = seed.unwrap_or(1);
    let count = count.unwrap_or(if seed.is_some() { 1 } else { default });
    first..first + count
}

/// The same, and first those that have failed once. They lose their meaning when a schedule takes another turn: what
/// they showed has a test of its own, too.
fn seeds_and(kept: &[u64], default: u64) -> Vec<u64> {
    let kept = if variable("SIM_SEED").is_some() { &[] } else { kept };
    kept.iter().copied().chain(seeds(default)).collect()
}

/// Runs `schedule` for every seed; errors and panics are failures of their seed.
pub(crate) fn tally(
    seeds: impl IntoIterator<Item = u64>,
    weather: &Weather,
    schedule: impl Fn(&World) -> Result<(), String>,
) -> Tally {
    let started = std::time::Instant::now();
    let mut tally = Tally::default();
    for seed in seeds {
        let world = World::new(seed, weather.clone());
        let result = catch_unwind(AssertUnwindSafe(|| schedule(&world)));
        tally.schedules += 1;
        tally.steps += world.executor().steps();
        tally.commands += world.network().sent();
        match result {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => tally.failures.push((seed, reason)),
            Err(panic) => tally.failures.push((seed, message(&*panic))),
        }
        world.end();
    }
    tally.took = started.elapsed();
    tally
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned()
}

/// Runs `schedule` for the seeds of the environment and panics with the seeds that failed.
pub(crate) fn all(
    name: &str,
    default: u64,
    weather: &Weather,
    schedule: impl Fn(&World) -> Result<(), String>,
) -> Tally {
    all_and(&[], name, default, weather, schedule)
}

/// The same, beginning with `kept` seeds, see [`seeds_and`].
pub(crate) fn all_and(
    kept: &[u64],
    name: &str,
    default: u64,
    weather: &Weather,
    schedule: impl Fn(&World) -> Result<(), String>,
) -> Tally {
    let tally = tally(seeds_and(kept, default), weather, schedule);
    println!(
        "{name}: {} schedules, {} commands, {} steps in {:?}",
        tally.schedules, tally.commands, tally.steps, tally.took
    );
    for (seed, reason) in tally.failures.iter().take(5) {
        println!("  SIM_SEED={seed} cargo test --test sim {name} -- --nocapture\n    {reason}");
    }
    assert!(tally.failures.is_empty(), "{name}: {} of {} failed", tally.failures.len(), tally.schedules);
    tally
}
