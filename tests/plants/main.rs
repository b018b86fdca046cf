//! Faults planted at random in what new has and in what it does, while plans run: the report that is for it tells of
//! each, and its plan stops or comes down within two looks.
//!
//! One of each kind, from a seed that is printed; `PLANTS=20` plants more of them, and `PLANTS_SEED=n` repeats what
//! was printed.

mod draw;
mod field;
mod finding;
#[path = "../support/mod.rs"]
mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;

use draw::{Kind, draw, waves};
use field::Field;

fn number(name: &str) -> Result<Option<u64>> {
    let text = std::env::var(name).ok();
    text.map(|text| text.parse().with_context(|| name.to_owned())).transpose()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_is_told_and_stops_its_plan() -> Result<()> {
    let fresh = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() % 1_000_000;
    let seed = number("PLANTS_SEED")?.unwrap_or(u64::try_from(fresh)?);
    let count = usize::try_from(number("PLANTS")?.unwrap_or(Kind::ALL.len() as u64))?;
    println!("PLANTS_SEED={seed} PLANTS={count}");
    sown(seed, count).await.with_context(|| format!("PLANTS_SEED={seed} PLANTS={count}"))
}

async fn sown(seed: u64, count: usize) -> Result<()> {
    let field = Field::start().await?;
    for wave in waves(draw(seed, count)) {
        let plants = wave.iter().map(async |plant| {
            field.tried(plant).await.with_context(|| format!("{plant:?}"))?;
            println!("found, and stopped: {plant:?}");
            anyhow::Ok(())
        });
        try_join_all(plants).await?;
    }
    Ok(())
}
