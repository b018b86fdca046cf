//! What no driver sends: damaged, half, endless and oversized messages. Nothing panics, nobody else is disturbed,
//! memory stays where it was.
//!
//! Damage is by a seed, which is printed; `RESHARD_SEED` repeats it.
#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests too.

#[path = "../../fuzz/mutate.rs"]
mod mutate;
#[path = "../raw/mod.rs"]
mod raw;
#[path = "../support/mod.rs"]
mod support;
#[path = "../../fuzz/targets.rs"]
mod targets;

mod cases;
mod decoders;
mod doors;
mod exchange;
mod live;

use std::path::Path;

use mutate::{Dice, mutate, twist};

/// Frames that drivers have sent, by name.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/frames");
    let mut frames: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    frames.sort();
    frames
}

fn seed() -> u64 {
    let given = std::env::var("RESHARD_SEED").ok().map(|seed| seed.parse().unwrap());
    let now = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros().try_into().unwrap();
    let seed = given.unwrap_or_else(now);
    println!("RESHARD_SEED={seed}");
    seed
}
