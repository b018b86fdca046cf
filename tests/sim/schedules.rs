//! Runs many schedules, names the seed of each that fails, and counts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

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
    /// The hashes of all that happened, added up: the same for the same schedules, in whatever order they were run.
    pub(crate) trace: u64,
    /// Seeds that failed, with the reason.
    pub(crate) failures: Vec<(u64, String)>,
    /// How long it took.
    pub(crate) took: Duration,
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

/// What came of one seed.
pub(crate) struct Found {
    /// Commands sent.
    pub(crate) commands: u64,
    /// The hash of all that happened.
    pub(crate) trace: u64,
    /// Why it failed.
    pub(crate) failure: Option<String>,
}

/// Runs `schedule` for many seeds, on all cores: for those of the environment; or for `SIM_SECONDS`, from a seed that
/// nobody knows before; else for the first `default`.
pub(crate) fn many(name: &str, default: u64, schedule: impl Fn(u64) -> Found + Sync) -> Tally {
    let started = std::time::Instant::now();
    let limit = variable("SIM_SECONDS").map(Duration::from_secs);
    let seeds = match (limit, variable("SIM_SEED")) {
        (Some(_), None) => fresh()..u64::MAX,
        (Some(_), Some(first)) => first..u64::MAX,
        (None, _) => seeds(default),
    };
    println!("{name}: from seed {}", seeds.start);
    let next = AtomicU64::new(seeds.start);
    let tally = Mutex::new(Tally::default());
    let work = || {
        while limit.is_none_or(|limit| started.elapsed() < limit) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let found = schedule(seed);
            let mut tally = tally.lock();
            tally.schedules += 1;
            tally.commands += found.commands;
            tally.trace = tally.trace.wrapping_add(found.trace);
            tally.failures.extend(found.failure.map(|why| (seed, why)));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let mut tally = tally.into_inner();
    tally.failures.sort();
    tally.took = started.elapsed();
    let Tally { schedules, commands, trace, took, .. } = &tally;
    println!("{name}: {schedules} schedules, {commands} commands in {took:?}; histories {trace:016x}");
    tally
}

/// The first seed of `budget` from `base` on that anybody finds to fail, on all cores.
pub(crate) fn first_failure(
    base: u64,
    budget: u64,
    fails: impl Fn(u64) -> Option<String> + Sync,
) -> Option<(u64, String)> {
    let next = AtomicU64::new(base);
    let found = Mutex::new(None);
    let work = || {
        while found.lock().is_none() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= base + budget {
                return;
            }
            if let Some(why) = fails(seed) {
                *found.lock() = Some((seed, why));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    found.into_inner()
}

/// Where to begin: `SIM_SEED`, else a seed that no run had before.
pub(crate) fn base() -> u64 {
    variable("SIM_SEED").unwrap_or_else(fresh)
}

/// A seed that no run had before; `SIM_BASE` where it is given.
pub(crate) fn fresh() -> u64 {
    if let Some(base) = variable("SIM_BASE") {
        return base;
    }
    // `RandomState` is what the standard library has of randomness.
    let random = std::collections::hash_map::RandomState::new();
    std::hash::BuildHasher::hash_one(&random, 0) >> 24
}

/// Runs it; a panic is its message.
///
/// # Errors
/// The message.
pub(crate) fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| message(&*panic))
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
