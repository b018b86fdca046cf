//! Everything that can happen to a migration, in an order that a seed decides, on real servers and under load.
//!
//! `make chaos` runs one for `CHAOS_SECONDS` with a fresh seed; `CHAOS_SEED` runs that one again. What exactly meets
//! what is up to the machine all the same: the seed repeats the schedule, not each interleaving.

mod bed;
mod happening;
mod plan;
mod proxies;
#[path = "../sim/rng.rs"]
#[expect(dead_code, clippy::cast_possible_truncation, reason = "the simulator needs more of it, as it is")]
mod rng;
#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use bed::Bed;
use plan::Moments;
use rng::Rng;

/// Of the test that runs with all others.
const SHORT: Duration = Duration::from_secs(40);

fn number(variable: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(variable) else { return Ok(None) };
    text.parse().map(Some).with_context(|| format!("{variable} is {text}, which is no number"))
}

/// Nothing that was acknowledged is lost, happens twice or comes back, both sides end up equal, and the application
/// sees nothing but what drivers know from MongoDB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_nothing_is_lost() -> Result<()> {
    let fresh = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() % 1_000_000;
    let seed = number("CHAOS_SEED")?.unwrap_or(u64::try_from(fresh)?);
    let length = number("CHAOS_SECONDS")?.map_or(SHORT, Duration::from_secs);
    println!("CHAOS_SEED={seed} CHAOS_SECONDS={}", length.as_secs());
    run(seed, length).await.with_context(|| format!("CHAOS_SEED={seed}"))
}

async fn run(seed: u64, length: Duration) -> Result<()> {
    let rng = Rng::new(seed);
    let bed = Bed::start().await?;
    let mut moments = Moments::new(rng);
    let started = Instant::now();
    while started.elapsed() < length {
        let (moment, pause) = moments.next();
        println!("{:6.1} s  {}", started.elapsed().as_secs_f64(), moment.step);
        let lived = bed.live(moment).await;
        lived.with_context(|| format!("at {:.1} s: {moment:?}", started.elapsed().as_secs_f64()))?;
        // Things happen at any moment of what went before.
        tokio::time::sleep(pause).await;
    }
    let last = moments.climb();
    println!("at the end {}", last.step);
    bed.live(last).await.context("at the end")?;
    bed.prove().await
}
