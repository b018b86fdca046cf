//! Safeguards switched off: each must be missed.

use std::time::Duration;

use reshard::policy::safeguards::Safeguards;

use super::faults::Mix;
use super::options::UNVERIFIED;
use super::stories::{leases, moves, readers, streams};
use super::{Options, schedule};
use crate::network::Weather;
use crate::schedules::{self, tally};
use crate::world::World;

/// What stands when nothing is switched off.
const ALL: Safeguards = UNVERIFIED;

/// A name, what is switched off, and the schedules that show it.
type Mutation = (&'static str, Safeguards, Options);

/// A story of `super::stories`.
type Story = fn(&World, Safeguards) -> Result<(), String>;

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

/// Many moves, many writes, and much that gets lost.
fn lossy() -> Options {
    Options {
        pause: Duration::from_millis(25),
        broken: 0,
        moves: 8,
        mix: Mix::NONE,
        weather: Weather {
            latency: Duration::from_millis(12),
            lose_request: 25,
            lose_reply: 5,
            ..Weather::calm()
        },
        ..Options::default()
    }
}

/// Primaries change all the time.
fn elections() -> Options {
    Options { mix: Mix { failover: 10, most: 30, every: Duration::from_millis(600), ..Mix::NONE }, ..busy() }
}

/// The copy's inserts arrive late.
fn slow_copy() -> Options {
    Options { slow_copy: true, mix: Mix::NONE, weather: Weather::calm(), ..busy() }
}

/// The same among faults, and with readers.
fn copy_among_faults() -> Options {
    Options { slow_copy: true, reads: true, mix: Mix { failover: 0, pause: 0, ..Mix::ALL }, ..busy() }
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
        ("markers", Safeguards { markers: false, ..ALL }, lossy()),
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
        ("streams_alone", Safeguards { streams_alone: false, ..ALL }, slow_copy()),
        ("streams_alone among faults", Safeguards { streams_alone: false, ..ALL }, copy_among_faults()),
    ]
}

/// Within this many seeds each must be missed.
const BUDGET: u64 = 14;

/// From its first seed on, some schedule fails with the mutation, and passes without it.
fn is_missed(name: &str, first: u64) {
    let found = mutations().into_iter().find(|(other, ..)| *other == name);
    let (_, safeguards, options) = found.unwrap();
    shows(name, safeguards, ALL, first, &options.weather.clone(), |world, safeguards| {
        schedule(world, &Options { safeguards, ..options.clone() }).map(|_| ())
    });
}

/// The same of a story, in calm weather.
fn is_told(name: &str, safeguards: Safeguards, story: Story) {
    shows(name, safeguards, ALL, 1, &Weather::calm(), story);
}

/// Some schedule fails `without`, and passes `with`.
fn shows(
    name: &str,
    without: Safeguards,
    with: Safeguards,
    first: u64,
    weather: &Weather,
    run: impl Fn(&World, Safeguards) -> Result<(), String>,
) {
    let one = |seed: u64, safeguards: Safeguards| {
        let tally = tally(seed..seed + 1, weather, |world| run(world, safeguards));
        tally.failures.into_iter().next().map(|(_, why)| why)
    };
    for seed in first..first + BUDGET {
        let Some(why) = one(seed, without) else {
            assert_eq!(one(seed, with), None, "on, seed {seed}");
            continue;
        };
        assert!(why.starts_with("invariant "), "{name} off, seed {seed}: {why}");
        assert_eq!(one(seed, with), None, "on, seed {seed}");
        println!("{name} is missed at seed {seed}: {}", why.lines().next().unwrap_or_default());
        return;
    }
    panic!("{name} is not missed");
}

#[test]
fn without_the_probe_a_retry_counts_twice() {
    is_missed("probe", 2);
}

#[test]
fn without_markers_a_move_loses_writes() {
    is_missed("markers", 2);
}

#[test]
fn without_the_mirrors_stream_late_writes_stay() {
    is_missed("mirror_stream", 10);
}

#[test]
fn without_guard_and_mirrors_stream_old_states_come_back() {
    is_missed("guard+mirror_stream", 12);
}

#[test]
fn without_its_second_look_the_copy_brings_back_the_deleted() {
    is_missed("backfill_second_look", 8);
}

/// Every story goes well with all safeguards on, whatever the small times are.
#[test]
fn stories_go_well() {
    let stories: [Story; 14] = [
        leases::cut_off,
        moves::unsettled,
        moves::unsettled_early,
        moves::slow_write,
        moves::late_worker,
        moves::late_mirror_write,
        streams::event_in_hand,
        streams::forgetful_mirror,
        streams::late_converge,
        streams::late_look,
        streams::late_insertion,
        readers::partial_way_back,
        readers::after_the_copy,
        readers::unconcerned,
    ];
    schedules::all_and(&[52, 59], "stories_go_well", 5, &Weather::calm(), |world| {
        // One after the other, each in a world of its own.
        stories.iter().enumerate().try_for_each(|(number, story)| {
            let world = World::new(world.seed() * 100 + number as u64, Weather::calm());
            let told = story(&world, ALL);
            world.end();
            told.map_err(|why| format!("story {number}: {why}"))
        })
    });
}

#[test]
fn a_retry_is_not_taken_for_done_by_a_late_copy_of_it() {
    is_told("unsettled", Safeguards { unsettled: false, ..ALL }, moves::unsettled);
    is_told("unsettled", Safeguards { unsettled: false, ..ALL }, moves::unsettled_early);
}

#[test]
fn nothing_is_sent_after_a_lease() {
    is_told("send_check", Safeguards { send_check: false, ..ALL }, leases::cut_off);
}

/// The check before a reply is shown is missed only where there is none before a write is sent: what was sent
/// in time is executed while the lease is held, or keeps its connection in the server's list, and nobody moves
/// anything before that is empty.
#[test]
fn no_reply_is_shown_after_a_lease() {
    let unchecked = Safeguards { send_check: false, ..ALL };
    let off = Safeguards { reply_check: false, ..unchecked };
    shows("reply_check", off, unchecked, 1, &Weather::calm(), leases::cut_off_once);
}

#[test]
fn without_the_epoch_guard_a_move_overtakes_a_write() {
    is_told("epoch_guard", Safeguards { epoch_guard: false, ..ALL }, moves::slow_write);
}

#[test]
fn without_fenced_workers_one_changes_the_authority() {
    is_told("workers_fenced", Safeguards { workers_fenced: false, ..ALL }, moves::late_worker);
}

#[test]
fn without_its_order_a_checkpoint_skips_an_event() {
    let off = Safeguards { checkpoint_after_done: false, ..ALL };
    is_told("checkpoint_after_done", off, streams::event_in_hand);
}

#[test]
fn without_barriers_a_late_mirror_write_changes_the_authority() {
    is_told("barrier", Safeguards { barrier: false, ..ALL }, moves::late_mirror_write);
}

#[test]
fn without_majority_reads_what_a_failover_undoes_counts_as_done() {
    is_told("majority_reads", Safeguards { majority_reads: false, ..ALL }, streams::forgetful_mirror);
}

#[test]
fn without_a_comparison_a_move_loses_what_new_has_lost() {
    let on = Safeguards::ALL;
    shows("verified", ALL, on, 1, &Weather::calm(), moves::lost_by_new);
}

#[test]
fn without_the_guard_a_reader_sees_the_mirror_go_back() {
    is_told("guard", Safeguards { guard: false, ..ALL }, streams::late_converge);
}

#[test]
fn without_the_order_of_reads_a_reader_sees_the_mirror_go_back() {
    is_told("mirror_read_first", Safeguards { mirror_read_first: false, ..ALL }, streams::late_look);
}

#[test]
fn a_reader_meets_no_mirror_whose_writes_nobody_waited_for() {
    let off = Safeguards { mirrors_current: false, ..ALL };
    is_told("mirrors_current", off, readers::partial_way_back);
    is_told("mirrors_current", off, readers::after_the_copy);
}

#[test]
fn a_mirror_has_by_majority_what_its_authority_has_so() {
    is_told("mirror_majority", Safeguards { mirror_majority: false, ..ALL }, readers::unconcerned);
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
