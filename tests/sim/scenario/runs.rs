//! Many schedules of the whole migration.

use std::time::Duration;

use reshard::policy::safeguards::Safeguards;

use super::faults::Mix;
use super::{Options, schedule};
use crate::network::Weather;
use crate::rng::Rng;
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

/// Ranges of keys go first, stay and come back, each by itself, while percentages move the rest.
#[test]
fn a_migration_with_ranges() {
    let calm = Options { mix: Mix::NONE, weather: Weather::calm(), ranges: true, ..Options::default() };
    schedules::all("a_calm_migration_with_ranges", 3, &calm.weather, |world| {
        let done = schedule(world, &calm)?;
        let few = (done.moves < 4).then(|| format!("hardly anything was done: {done:?}"));
        few.map_or(Ok(()), Err)
    });
    let options = Options { ranges: true, ..Options::default() };
    schedules::all("a_migration_with_ranges", 8, &options.weather, |world| {
        schedule(world, &options).map(|_| ())
    });
}

/// The comparison that a move of writes asks for goes through whatever happens meanwhile.
#[test]
fn a_migration_that_is_verified_before_writes_move() {
    let options = Options { safeguards: Safeguards::ALL, ..Options::default() };
    let (kept, name) = ([5017, 5019], "a_migration_that_is_verified_before_writes_move");
    schedules::all_and(&kept, name, 5, &options.weather, |world| {
        let done = schedule(world, &options)?;
        done.given_up.map_or(Ok(()), |why| Err(format!("the operator gave up: {why}")))
    });
}

/// Weather and faults from the seed, too.
fn storm(seed: u64) -> Options {
    let mut rng = Rng::new(seed);
    let millis = |rng: &mut Rng, choices: &[u64]| Duration::from_millis(*rng.pick(choices));
    let mut weight = |most: u64| rng.below(most + 1);
    let mix = Mix {
        crash: weight(4),
        pause: weight(3),
        failover: weight(6),
        cut: weight(3),
        hold: weight(6),
        lost: weight(3),
        most: 4 + weight(16),
        every: Duration::from_millis(500 + weight(3500)),
    };
    let weather = Weather {
        latency: millis(&mut rng, &[1, 4, 15, 30]),
        late: *rng.pick(&[0, 5, 20]),
        late_by: millis(&mut rng, &[500, 5_000, 30_000]),
        lose_request: *rng.pick(&[0, 5, 25]),
        lose_reply: *rng.pick(&[0, 5, 25]),
        refuse: *rng.pick(&[0, 10]),
        lose_orphan: *rng.pick(&[0, 300, 900]),
        execution: millis(&mut rng, &[0, 1, 10]),
    };
    Options {
        reads: mix.failover == 0 && mix.pause == 0 && mix.lost == 0,
        mix,
        weather,
        slow_copy: rng.chance(300),
        moves: 1 + rng.below(6),
        broken: *rng.pick(&[0, 15, 60]),
        pause: millis(&mut rng, &[30, 100, 400]),
        clients: 2 + rng.below(5) as u8,
        ..Options::default()
    }
}

#[test]
fn a_migration_in_any_storm() {
    schedules::all("a_migration_in_any_storm", 4, &Weather::calm(), |world| {
        schedule(world, &storm(world.seed())).map(|_| ())
    });
}

/// No failovers: what a deposed primary answers is the same without a proxy. No pauses: a process that was
/// taken for dead goes on reading by its own table.
#[test]
fn a_migration_with_readers() {
    let mix = Mix { failover: 0, pause: 0, ..Mix::ALL };
    let options = Options { reads: true, mix, ..Options::default() };
    schedules::all_and(&[1103], "a_migration_with_readers", 5, &options.weather, |world| {
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
