//! Many schedules of the whole migration.

use std::time::Duration;

use super::faults::Mix;
use super::{Options, schedule};
use crate::network::Weather;
use crate::schedules;
use crate::world::World;

#[test]
fn a_calm_migration() {
    let options = Options { mix: Mix::NONE, weather: Weather::calm(), ..Options::default() };
    let calm = options.weather.clone();
    schedules::all("a_calm_migration", 5, &calm, |world| {
        let done = schedule(world, &options)?;
        if let Some(why) = done.given_up {
            return Err(format!("refused in calm weather: {why}"));
        }
        if done.moves < 2 || done.durable < 20 {
            return Err(format!("hardly anything was done: {done:?}"));
        }
        Ok(())
    });
}

#[test]
fn a_migration_with_everything_that_can_happen() {
    let options = Options::default();
    schedules::all("a_migration_with_everything_that_can_happen", 12, &options.weather, |world| {
        schedule(world, &options).map(|_| ())
    });
}

#[test]
fn a_migration_whose_proxies_get_lost() {
    let options = Options { mix: Mix { lost: 8, ..Mix::ALL }, ..Options::default() };
    schedules::all("a_migration_whose_proxies_get_lost", 6, &options.weather, |world| {
        schedule(world, &options).map(|_| ())
    });
}

/// No failovers: what a deposed primary answers is the same without a proxy. No pauses: a process that was
/// taken for dead goes on reading by its own table.
#[test]
fn a_migration_with_readers() {
    let mix = Mix { failover: 0, pause: 0, ..Mix::ALL };
    let options = Options { reads: true, mix, ..Options::default() };
    schedules::all("a_migration_with_readers", 5, &options.weather, |world| {
        schedule(world, &options).map(|_| ())
    });
}

/// Two writes that were sent before the start arrive much later. Until then the start waits for them: executed
/// after a move, one of them would be acknowledged by whoever was the authority when it was sent.
#[test]
fn a_write_sent_before_the_start_is_waited_for() {
    let options = Options {
        mix: Mix::NONE,
        weather: Weather::calm(),
        early_writers: true,
        old_write: true,
        ..Options::default()
    };
    schedules::all("a_write_sent_before_the_start_is_waited_for", 5, &Weather::calm(), |world| {
        let done = schedule(world, &options)?;
        done.given_up.map_or(Ok(()), |why| Err(format!("the operator gave up: {why}")))
    });
}

#[test]
fn a_migration_replays_exactly() {
    let options = Options { pause: Duration::from_millis(200), ..Options::default() };
    let run = |seed| {
        let world = World::new(seed, options.weather.clone());
        let result = schedule(&world, &options).map(|done| done.durable);
        let trace = (result, world.trace(), world.executor().steps(), world.executor().now());
        world.end();
        trace
    };
    for seed in 1..2 {
        assert_eq!(run(seed), run(seed));
    }
}
