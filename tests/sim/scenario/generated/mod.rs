//! Schedules that nobody wrote: several kinds of writers, at least three faults and one move of authority, from a seed.
//!
//! One that fails is made short and told, with the command that plays exactly that again.

mod coverage;
mod plan;
mod play;
mod shrink;

use reshard::policy::safeguards::Safeguards;

use self::coverage::Coverage;
use self::plan::Plan;
use self::play::play;
use self::shrink::shrink;
use super::options::UNVERIFIED;
use crate::network::Weather;
use crate::schedules::{self, Found};
use crate::world::World;

/// The least number of commands of a schedule, and of faults and moves that were planned for it.
const LEAST_COMMANDS: u64 = 200;
/// How often a failing schedule is played again to make it short.
const TRIES: u32 = 300;

/// What must be met when many schedules run.
const WANTED: [&str; 25] = [
    "branch: a collection that came into being is part of it",
    "fault: Crash, before the start",
    "fault: Crash, reads on new",
    "fault: Crash, divided",
    "fault: Crash, in the middle of a move",
    "fault: Crash, all on new",
    "fault: Pause",
    "fault: Failover",
    "fault: Cut",
    "fault: Hold",
    "fault: Lose",
    "fault: Deafen",
    "branch: a fence committed on the way up",
    "branch: a fence committed on the way down",
    "branch: a fence aborted",
    "branch: a dead holder forgotten",
    "branch: a mirror write left to the streams",
    "branch: a read on a mirror",
    "branch: a retry answered by the former authority",
    "branch: a write without a key",
    "branch: written by a client, undone by a failover",
    "branch: written by a mirror write, undone by a failover",
    "branch: written by the copy",
    "branch: written by the copy, undone by a failover",
    "told: nothing",
];

/// The acts that `SIM_KEEP` names; else all.
fn kept(plan: Plan) -> Plan {
    let Ok(kept) = std::env::var("SIM_KEEP") else { return plan };
    plan.only(&kept.split(',').filter_map(|index| index.trim().parse().ok()).collect::<Vec<_>>())
}

/// What came of a plan.
struct Played {
    result: Result<(), String>,
    coverage: Coverage,
    commands: u64,
    trace: u64,
}

/// Plays the plan in a world of its own.
fn played(plan: &Plan, safeguards: Safeguards) -> Played {
    let world = World::new(plan.seed, Weather::calm());
    let (result, coverage) = schedules::caught(|| play(&world, plan, safeguards))
        .unwrap_or_else(|panic| (Err(format!("panicked: {panic}")), Coverage::default()));
    let (commands, trace) = (world.network().sent(), world.trace());
    world.end();
    Played { result, coverage, commands, trace }
}

/// Why the schedule of `seed` fails with these safeguards.
pub(super) fn failure(seed: u64, safeguards: Safeguards) -> Option<String> {
    played(&Plan::of(seed), safeguards).result.err()
}

/// What is wrong, without the details.
fn kind(why: &str) -> String {
    why.chars().take_while(|letter| *letter != ':' && *letter != '(').collect()
}

/// A failing schedule, made short, and how to play it again.
fn told(plan: &Plan, why: &str) -> String {
    let fails = |plan: &Plan| played(plan, UNVERIFIED).result.is_err_and(|other| kind(&other) == kind(why));
    let acts = shrink(plan, TRIES, fails);
    let short = plan.only(&acts);
    let why = played(&short, UNVERIFIED).result.err().unwrap_or_else(|| why.to_owned());
    let keep = acts.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    format!(
        "SIM_SEED={} SIM_KEEP={keep} cargo test --test sim generated_schedules -- --nocapture\n{short}    {why}",
        plan.seed
    )
}

#[test]
fn generated_schedules() {
    let total = Coverage::default();
    let tally = schedules::many("generated_schedules", 120, |seed| {
        let plan = kept(Plan::of(seed));
        let is_whole = std::env::var("SIM_KEEP").is_err();
        let Played { result, coverage, commands, trace } = played(&plan, UNVERIFIED);
        total.merge(&coverage);
        let result = result.and_then(|()| match is_whole && commands < LEAST_COMMANDS {
            true => Err(format!("a schedule of {commands} commands only")),
            false => Ok(()),
        });
        Found { commands, trace, failure: result.err() }
    });
    print!("{total}");
    for (seed, why) in tally.failures.iter().take(3) {
        println!("{}", told(&kept(Plan::of(*seed)), why));
    }
    assert!(tally.failures.is_empty(), "{} of {} failed", tally.failures.len(), tally.schedules);
    if tally.schedules >= 1000 {
        assert_eq!(total.missing(&WANTED), Vec::<&str>::new(), "nothing of this was met");
    }
}

/// Schedules that have failed once, while their seeds mean what they meant.
#[test]
fn generated_schedules_that_have_failed() {
    for seed in [89, 441] {
        assert_eq!(failure(seed, UNVERIFIED), None, "seed {seed}");
    }
}

#[test]
fn a_generated_schedule_replays_exactly() {
    let run = || {
        let (plan, world) = (Plan::of(7), World::new(7, Weather::calm()));
        let result = play(&world, &plan, UNVERIFIED).0;
        let trace = (result, world.trace(), world.executor().steps());
        world.end();
        trace
    };
    assert_eq!(run(), run());
}
