//! Safeguards switched off: each must be missed.

use std::time::Duration;

use reshard::policy::safeguards::Safeguards;

use super::faults::Mix;
use super::{Options, schedule};
use crate::network::Weather;
use crate::schedules::tally;

const ALL: Safeguards = Safeguards {
    mirror_stream: true,
    barrier: true,
    mirror_read_first: true,
    guard: true,
    reply_check: true,
    markers: true,
    epoch_guard: true,
    workers_fenced: true,
    probe: true,
    majority_reads: true,
    checkpoint_after_done: true,
    backfill_second_look: true,
};

/// A name, what is switched off, and the schedules that show it.
type Mutation = (&'static str, Safeguards, Options);

/// Writes are many, networks slow, and answers get lost.
fn busy() -> Options {
    Options {
        pause: Duration::from_millis(60),
        broken: 60,
        mix: Mix { most: 6, ..Mix::ALL },
        weather: Weather {
            latency: Duration::from_millis(15),
            late: 10,
            late_by: Duration::from_secs(5),
            ..Options::default().weather
        },
        ..Options::default()
    }
}

/// Primaries change all the time.
fn elections() -> Options {
    Options { mix: Mix { failover: 10, most: 12, every: Duration::from_secs(1), ..Mix::NONE }, ..busy() }
}

/// The copy's inserts arrive late.
fn slow_copy() -> Options {
    Options { slow_copy: true, mix: Mix::NONE, weather: Weather::calm(), ..busy() }
}

/// The proxy dies again and again.
fn crashes() -> Options {
    Options {
        mix: Mix { crash: 10, hold: 5, most: 10, every: Duration::from_secs(2), ..Mix::NONE },
        ..busy()
    }
}

fn mutations() -> Vec<Mutation> {
    vec![
        ("probe", Safeguards { probe: false, ..ALL }, busy()),
        ("markers", Safeguards { markers: false, ..ALL }, busy()),
        ("epoch_guard", Safeguards { epoch_guard: false, ..ALL }, busy()),
        ("workers_fenced", Safeguards { workers_fenced: false, ..ALL }, busy()),
        ("barrier", Safeguards { barrier: false, ..ALL }, busy()),
        ("guard", Safeguards { guard: false, ..ALL }, busy()),
        ("mirror_stream", Safeguards { mirror_stream: false, ..ALL }, busy()),
        ("guard+mirror_stream", Safeguards { guard: false, mirror_stream: false, ..ALL }, busy()),
        ("mirror_read_first", Safeguards { mirror_read_first: false, ..ALL }, busy()),
        (
            "mirror_read_first+mirror_stream",
            Safeguards { mirror_read_first: false, mirror_stream: false, ..ALL },
            busy(),
        ),
        ("majority_reads", Safeguards { majority_reads: false, ..ALL }, elections()),
        ("backfill_second_look", Safeguards { backfill_second_look: false, ..ALL }, slow_copy()),
        ("checkpoint_after_done", Safeguards { checkpoint_after_done: false, ..ALL }, crashes()),
        ("reply_check", Safeguards { reply_check: false, ..ALL }, busy()),
    ]
}

/// How often each is missed; for people, who run it with `--ignored --nocapture`.
#[test]
#[ignore = "takes minutes; tells rates"]
fn survey() {
    let seeds = crate::schedules::seeds(30);
    let only = std::env::var("SIM_ONLY").ok();
    for (name, safeguards, options) in mutations() {
        if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        let with = |safeguards: Safeguards| {
            let options = Options { safeguards, ..options.clone() };
            tally(seeds.clone(), &options.weather.clone(), |world| schedule(world, &options).map(|_| ()))
        };
        let off = with(safeguards);
        let kinds = off
            .failures
            .iter()
            .take(6)
            .map(|(seed, why)| format!("{seed}: {}", why.split(':').next().unwrap_or_default()));
        println!(
            "{name} off: {} of {} ({:?} each); {}",
            off.failures.len(),
            off.schedules,
            off.took / off.schedules as u32,
            kinds.collect::<Vec<_>>().join(", ")
        );
        let on = with(ALL);
        println!("  all on: {} of {}", on.failures.len(), on.schedules);
        for (seed, why) in on.failures.iter().take(1) {
            println!("  {seed}: {}", why.chars().take(6000).collect::<String>());
        }
    }
}
