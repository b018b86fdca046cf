//! Safeguards switched off: each must be missed.

use std::time::Duration;

use reshard::policy::safeguards::Safeguards;

use super::faults::Mix;
use super::generated;
use super::options::UNVERIFIED;
use super::stories::{away, leases, moves, readers, streams};
use super::{Options, schedule};
use crate::network::Weather;
use crate::schedules::{self, Found, tally};
use crate::world::World;

/// What stands when nothing is switched off.
const ALL: Safeguards = UNVERIFIED;

/// A story of `super::stories`.
type Story = fn(&World, Safeguards) -> Result<(), String>;

/// What is switched off, alone or in pairs where one covers for the other.
struct Mutation {
    name: &'static str,
    off: Safeguards,
    /// What happens; else schedules are generated.
    options: Option<Options>,
}

impl Mutation {
    fn failure(&self, seed: u64, safeguards: Safeguards) -> Option<String> {
        match &self.options {
            None => generated::failure(seed, safeguards),
            Some(options) => {
                let options = Options { safeguards, ..options.clone() };
                one(seed, &options.weather.clone(), |world| schedule(world, &options).map(|_| ()))
            }
        }
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

/// Writes are many, and the copy's inserts arrive late.
fn slow_copy() -> Options {
    Options {
        pause: Duration::from_millis(60),
        slow_copy: true,
        moves: 1,
        mix: Mix::NONE,
        weather: Weather::calm(),
        ..Options::default()
    }
}

fn mutations() -> Vec<Mutation> {
    let generated = |(name, off)| Mutation { name, off, options: None };
    let of = |name, off, options| Mutation { name, off, options: Some(options) };
    let mut mutations = vec![
        of("markers", Safeguards { markers: false, ..ALL }, lossy()),
        of("backfill_second_look", Safeguards { backfill_second_look: false, ..ALL }, slow_copy()),
        of("streams_alone while the copy is slow", Safeguards { streams_alone: false, ..ALL }, slow_copy()),
    ];
    mutations.extend(generated_mutations().map(generated));
    mutations
}

fn generated_mutations() -> impl Iterator<Item = (&'static str, Safeguards)> {
    [
        ("probe", Safeguards { probe: false, ..ALL }),
        ("epoch_guard", Safeguards { epoch_guard: false, ..ALL }),
        ("workers_fenced", Safeguards { workers_fenced: false, ..ALL }),
        ("barrier", Safeguards { barrier: false, ..ALL }),
        ("guard", Safeguards { guard: false, ..ALL }),
        ("mirror_stream", Safeguards { mirror_stream: false, ..ALL }),
        ("guard+mirror_stream", Safeguards { guard: false, mirror_stream: false, ..ALL }),
        ("mirror_read_first", Safeguards { mirror_read_first: false, ..ALL }),
        ("majority_reads", Safeguards { majority_reads: false, ..ALL }),
        ("checkpoint_after_done", Safeguards { checkpoint_after_done: false, ..ALL }),
        ("send_check", Safeguards { send_check: false, ..ALL }),
        ("send_check+reply_check", Safeguards { send_check: false, reply_check: false, ..ALL }),
        ("unsettled", Safeguards { unsettled: false, ..ALL }),
        ("mirrors_current", Safeguards { mirrors_current: false, ..ALL }),
        ("mirror_majority", Safeguards { mirror_majority: false, ..ALL }),
        ("mirror_bound", Safeguards { mirror_bound: false, ..ALL }),
        ("streams_alone", Safeguards { streams_alone: false, ..ALL }),
    ]
    .into_iter()
}

/// Each is missed from so many seeds on that nobody has seen before.
const BASES: u64 = 3;
/// Within this many seeds of a story, of which hardly any goes well.
const TELLINGS: u64 = 14;
/// Within this many schedules of which each fails in at least one of some 25 cases.
const SCHEDULES: u64 = 400;

/// From each base on, some of `budget` seeds fails `without`, and passes `with`.
fn shows(
    name: &str,
    (without, with): (Safeguards, Safeguards),
    budget: u64,
    run: impl Fn(u64, Safeguards) -> Option<String> + Sync,
) {
    for round in 0..BASES {
        // Apart, also where the first is given.
        let base = schedules::base() + 1_000_003 * round;
        let violation = |seed| run(seed, without).filter(|why| why.starts_with("invariant "));
        let found = schedules::first_failure(base, budget, violation);
        let (seed, why) = found.unwrap_or_else(|| panic!("{name} is not missed from seed {base} on"));
        assert_eq!(run(seed, with), None, "{name} on, seed {seed}");
        let why = why.lines().next().unwrap_or_default();
        println!("{name} is missed from {base} on at seed {seed}: {why}");
    }
}

/// Why one schedule fails.
fn one(seed: u64, weather: &Weather, run: impl Fn(&World) -> Result<(), String>) -> Option<String> {
    tally(std::iter::once(seed), weather, run).failures.into_iter().next().map(|(_, why)| why)
}

/// A story shows it.
fn is_told(name: &str, safeguards: Safeguards, story: Story) {
    tells(name, (safeguards, ALL), story);
}

fn tells(name: &str, safeguards: (Safeguards, Safeguards), story: Story) {
    let run = |seed, safeguards| one(seed, &Weather::calm(), |world| story(world, safeguards));
    shows(name, safeguards, TELLINGS, run);
}

/// Random schedules show it.
fn is_missed(name: &str) {
    let mutation = mutations().into_iter().find(|mutation| mutation.name == name).unwrap();
    shows(name, (mutation.off, ALL), SCHEDULES, |seed, safeguards| mutation.failure(seed, safeguards));
}

#[test]
fn without_the_probe_a_retry_counts_twice() {
    is_missed("probe");
}

#[test]
fn without_markers_a_move_loses_writes() {
    is_missed("markers");
}

#[test]
fn without_the_mirrors_stream_late_writes_stay() {
    is_missed("mirror_stream");
}

#[test]
fn without_guard_and_mirrors_stream_old_states_come_back() {
    is_missed("guard+mirror_stream");
}

#[test]
fn without_its_second_look_the_copy_brings_back_the_deleted() {
    let off = Safeguards { backfill_second_look: false, ..ALL };
    is_told("backfill_second_look", off, streams::slow_copy);
}

/// Every story goes well with all safeguards on, whatever the small times are.
#[test]
fn stories_go_well() {
    let stories: [Story; 19] = [
        away::whole,
        away::of_a_range,
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
        streams::slow_copy,
        streams::deaf_copy,
        streams::dead_copy,
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
    tells("reply_check", (off, unchecked), leases::cut_off_once);
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
    tells("verified", (ALL, on), moves::lost_by_new);
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

#[test]
fn what_only_new_has_is_not_overwritten_before_it_is_back() {
    let off = Safeguards { returning_waits: false, ..ALL };
    is_told("returning_waits", off, away::whole);
    is_told("returning_waits", off, away::of_a_range);
}

#[test]
fn without_a_look_ahead_the_copy_leaves_what_was_deleted() {
    let off = Safeguards { backfill_looks_ahead: false, ..ALL };
    is_told("backfill_looks_ahead", off, streams::deaf_copy);
    is_told("backfill_looks_ahead", off, streams::dead_copy);
}

/// How often each is missed; for people, who run it with `--ignored --nocapture`.
#[test]
#[ignore = "takes minutes; tells rates"]
fn survey() {
    let only = std::env::var("SIM_ONLY").ok();
    for mutation in mutations() {
        let Mutation { name, off, .. } = mutation;
        if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        let found = |seed| Found { commands: 0, trace: 0, failure: mutation.failure(seed, off) };
        let tally = schedules::many(name, 100, found);
        let kinds = tally.failures.iter().take(6);
        let kinds = kinds.map(|(seed, why)| format!("{seed}: {}", why.split(':').next().unwrap_or_default()));
        let (failed, all) = (tally.failures.len(), tally.schedules);
        println!("{name} off: {failed} of {all}; {}", kinds.collect::<Vec<_>>().join(", "));
    }
}
