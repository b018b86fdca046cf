//! Everything that can happen to a migration, in an order that a seed decides, on real servers and under load.
//!
//! `make chaos` runs one for `CHAOS_SECONDS` with a fresh seed; `CHAOS_SEED` runs that one again. What exactly meets
//! what is up to the machine all the same: the seed repeats the schedule, not each interleaving.

mod bed;
mod plan;
#[path = "../sim/rng.rs"]
#[expect(dead_code, clippy::cast_possible_truncation, reason = "the simulator needs more of it, as it is")]
mod rng;
#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use bed::Bed;
use plan::Step;
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
    let mut rng = Rng::new(seed);
    let bed = Bed::start().await?;
    if rng.chance(500) {
        // Else it begins while history is copied.
        bed.take(Step::Rest).await?;
    }
    let started = Instant::now();
    while started.elapsed() < length {
        let step = Step::any(&mut rng);
        println!("{:6.1} s  {step}", started.elapsed().as_secs_f64());
        let meanwhile = meanwhile(step, &mut rng);
        let both = async { tokio::try_join!(bed.take(step), bed.later(meanwhile)).map(|_| ()) };
        both.await.with_context(|| format!("at {:.1} s: {step}", started.elapsed().as_secs_f64()))?;
        let pause = rng.between(Duration::ZERO, Duration::from_millis(1500));
        // Things happen at any moment of what went before.
        tokio::time::sleep(pause).await;
    }
    bed.prove().await
}

/// What an operator asks for while something lasts, and how long after its beginning.
fn meanwhile(step: Step, rng: &mut Rng) -> Option<(Duration, Step)> {
    let lasts = step.lasts()?;
    rng.chance(600).then(|| (rng.between(Duration::ZERO, lasts), Step::call(rng)))
}
