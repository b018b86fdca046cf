use super::super::calendar::Freeze;
use super::*;
use crate::model::percent::Percent;
use proptest::prelude::*;

fn gate(verdict: Verdict) -> Gate {
    Gate { name: "errors".into(), verdict, detail: "1 of 2".into() }
}

fn plan() -> Plan {
    Plan { writes: steps(&[50, 100]), dwell_seconds: 10, ..Plan::default() }
}

fn steps(percents: &[u8]) -> Vec<Percent> {
    percents.iter().copied().map(Percent::whole).collect()
}

fn place(reads: u8, writes: u8) -> Place {
    Place { reads: reads.into(), writes: writes.into() }
}

#[test]
fn a_clean_plan_goes_up_step_by_step_and_ends() {
    let plan = plan();
    let (mut state, mut at, mut now, mut reached) = (State::default(), place(0, 0), 0, Vec::new());
    for _ in 0..1000 {
        let decision = decide(&plan, &state, at, &[gate(Verdict::Passed)], now);
        state = decision.state;
        match decision.act {
            Act::Up(to) => {
                at = to;
                reached.push((now, to));
            }
            Act::Done => break,
            act => assert_eq!(act, Act::Hold),
        }
        now += EVERY_MS;
    }
    assert_eq!(reached.iter().map(|(_, to)| *to).collect::<Vec<_>>(), plan.steps());
    assert!(reached.windows(2).all(|two| two[1].0 - two[0].0 >= 10_000), "{reached:?}");
    assert_eq!(at, place(100, 100));
}

#[test]
fn a_broken_gate_comes_down_at_the_second_look_by_policy() {
    let at = |back, place| {
        let plan = Plan { back, ..plan() };
        let first = decide(&plan, &State::default(), place, &[gate(Verdict::Broken)], 0);
        assert_eq!(first.act, Act::Hold);
        decide(&plan, &first.state, place, &[gate(Verdict::Broken)], EVERY_MS).act
    };
    assert_eq!(at(Back::Step, place(25, 0)), Act::Down(place(10, 0)));
    assert_eq!(at(Back::Step, place(37, 0)), Act::Down(place(25, 0)));
    assert_eq!(at(Back::Step, place(5, 0)), Act::Down(place(0, 0)));
    assert_eq!(at(Back::Step, place(100, 100)), Act::Down(place(100, 50)));
    assert_eq!(at(Back::Step, place(100, 50)), Act::Down(place(100, 0)));
    assert_eq!(at(Back::Zero, place(100, 50)), Act::Down(place(0, 0)));
    assert_eq!(at(Back::Zero, place(0, 0)), Act::Hold);
}

#[test]
fn every_look_has_a_number_and_what_comes_down_names_the_first_that_was_broken() {
    let (plan, mut state) = (plan(), State::default());
    let mut seen = Vec::new();
    for verdict in [Verdict::Passed, Verdict::Broken, Verdict::Unknown, Verdict::Broken, Verdict::Broken] {
        let decision = decide(&plan, &state, place(25, 0), &[gate(verdict)], 0);
        seen.push((decision.look, decision.first_broken, matches!(decision.act, Act::Down(_))));
        state = decision.state;
    }
    let expected =
        [(1, None, false), (2, Some(2), false), (3, None, false), (4, Some(2), true), (5, Some(5), false)];
    assert_eq!(seen, expected);
    let healed = decide(&plan, &state, place(25, 0), &[gate(Verdict::TooFew)], 0).state;
    assert_eq!((healed.looks, healed.first_broken, healed.broken), (6, None, 0));
}

/// A successor finds the number of the last look that was recorded, and others may have been made since.
#[test]
fn numbers_of_looks_go_on_after_a_restart() {
    let (plan, since) = (plan(), 1_000);
    let mut state = State::default().taken_up(since, since);
    let mut used = Vec::new();
    let stored = decide(&plan, &state, place(25, 0), &[gate(Verdict::Passed)], since).state;
    for look in 0..20 {
        let now = since + look * EVERY_MS;
        let decision = decide(&plan, &state, place(25, 0), &[gate(Verdict::Passed)], now);
        used.push(decision.look);
        state = decision.state;
        let next = decide(&plan, &stored.clone().taken_up(since, now + 1), place(25, 0), &[], now + 1);
        assert!(!used.contains(&next.look), "{} after {used:?}", next.look);
    }
    assert_eq!((used[0], used[19]), (1, 20));
    let set_back = stored.clone().taken_up(since, 0);
    assert_eq!(set_back.looks, stored.looks, "a clock that was set back takes nothing away");
}

#[test]
fn it_waits_for_samples_and_windows_and_after_too_many_setbacks() {
    let ready = State { dwelt_ms: 10_000, ..State::default() };
    let hold = |plan: &Plan, state: &State, verdict| decide(plan, state, place(5, 0), &[gate(verdict)], 0);
    assert!(matches!(hold(&plan(), &ready, Verdict::Passed).act, Act::Up(_)));
    let few = hold(&plan(), &ready, Verdict::TooFew);
    assert_eq!(few.act, Act::Hold);
    assert!(few.why.contains("too little measured: errors: 1 of 2"), "{}", few.why);
    let frozen = Freeze { from: "1970-01-01".into(), to: "1970-01-02".into() };
    let frozen = Plan { freezes: vec![frozen], ..plan() };
    assert_eq!(hold(&frozen, &ready, Verdict::Passed).act, Act::Hold);
    let overridden = Plan { override_reason: Some("agreed".into()), ..frozen };
    assert!(matches!(hold(&overridden, &ready, Verdict::Passed).act, Act::Up(_)));
    let often = State { setbacks: 4, ..ready.clone() };
    assert_eq!(hold(&plan(), &often, Verdict::Passed).act, Act::Hold);
    let paused = State { paused: true, ..ready };
    assert_eq!(hold(&plan(), &paused, Verdict::Passed).act, Act::Hold);
}

/// What the process before measured at this step is gone with it.
#[test]
fn a_successor_dwells_anew_and_one_that_is_resumed_too() {
    let dwelt = State { dwelt_ms: 9_999, setbacks: 2, expected: Some(place(5, 0)), ..State::default() };
    let taken_up = dwelt.clone().taken_up(0, 0);
    assert_eq!((taken_up.dwelt_ms, taken_up.setbacks, taken_up.expected), (0, 2, Some(place(5, 0))));
    let halted = dwelt.halted("ann moved reads to 10 %");
    let held = decide(&plan(), &halted, place(10, 0), &[gate(Verdict::Passed)], 0);
    assert_eq!(held.act, Act::Hold);
    assert!(held.why.contains("ann moved reads to 10 %"), "{}", held.why);
    let resumed = halted.resumed();
    assert_eq!((resumed.dwelt_ms, resumed.expected, resumed.paused), (0, None, false));
    let (mut state, mut now) = (resumed, 0);
    let to = loop {
        let decision = decide(&plan(), &state, place(10, 0), &[gate(Verdict::Passed)], now);
        state = decision.state;
        if let Act::Up(to) = decision.act {
            break to;
        }
        now += EVERY_MS;
    };
    assert_eq!((to, now), (place(25, 0), 10_000), "from where it is, after the dwell");
}

/// Nothing, then the gates for a while, then all of it; and back when a gate breaks.
#[test]
fn a_plan_of_a_range_waits_for_its_gates_and_moves_it_as_a_whole() {
    let plan = Plan { range: Some("eu".into()), dwell_seconds: 10, ..Plan::default() }.settled();
    assert_eq!(plan.problems(), Vec::<String>::new());
    let (mut state, mut at, mut now, mut moved) = (State::default(), Place::default(), 0, Vec::new());
    let acts = [Verdict::Passed; 6].into_iter().chain([Verdict::Broken; 2]).chain([Verdict::Passed; 6]);
    for verdict in acts {
        let decision = decide(&plan, &state, at, &[gate(verdict)], now);
        state = decision.state;
        if let Act::Up(to) | Act::Down(to) = decision.act {
            at = to;
            moved.push((now / EVERY_MS, to));
        }
        now += EVERY_MS;
    }
    assert_eq!(moved, [(2, place(100, 100)), (7, place(0, 0)), (9, place(100, 100))]);
    let half = decide(&plan, &state, place(100, 0), &[gate(Verdict::Broken)], now);
    let half = decide(&plan, &half.state, place(100, 0), &[gate(Verdict::Broken)], now);
    assert_eq!(half.act, Act::Down(place(0, 0)), "a move that came half way goes back too");
    let steps = Plan { reads: steps(&[50]), ..plan }.settled();
    assert!(steps.problems().iter().any(|why| why.starts_with("range")), "{:?}", steps.problems());
}

#[test]
fn time_in_which_nobody_looked_does_not_count() {
    let looked = State { looked_at: Some(0), ..State::default() };
    let later = decide(&plan(), &looked, place(5, 0), &[gate(Verdict::Passed)], 3_600_000);
    assert!(later.state.dwelt_ms <= 2 * EVERY_MS);
}

#[test]
fn a_plan_that_makes_no_sense_names_the_field() {
    assert_eq!(Plan::default().problems(), Vec::<String>::new());
    assert_eq!(plan().problems(), Vec::<String>::new());
    let bad = [
        (Plan { reads: steps(&[5, 5]), ..plan() }, "reads"),
        (Plan { writes: steps(&[0]), ..plan() }, "writes"),
        (Plan { reads: steps(&[50]), ..plan() }, "writes may not end above reads"),
        (Plan { dwell_seconds: 0, ..plan() }, "dwell_seconds"),
        (Plan { max_p99_ratio: f64::NAN, ..plan() }, "max_p99_ratio"),
        (Plan { max_secondary_lag_seconds: -1.0, ..plan() }, "max_secondary_lag_seconds"),
        (Plan { max_uncompared: 1.5, ..plan() }, "max_uncompared"),
        (Plan { max_error_rate: 2.0, ..plan() }, "max_error_rate"),
        (Plan { override_reason: Some(" ".into()), ..plan() }, "override_reason"),
    ];
    for (plan, field) in bad {
        assert!(plan.problems().iter().any(|why| why.starts_with(field)), "{field}: {:?}", plan.problems());
    }
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![Just(Verdict::Passed), Just(Verdict::TooFew), Just(Verdict::Unknown), Just(Verdict::Broken)]
}

proptest! {
    #[test]
    fn it_never_goes_up_unless_every_gate_was_measured_and_passed(
        verdicts in proptest::collection::vec(verdict(), 0..6), dwelt in 0..1_000_000_i64, reads in 0..=100_u8,
    ) {
        let gates: Vec<_> = verdicts.iter().copied().map(gate).collect();
        let state = State { dwelt_ms: dwelt, ..State::default() };
        let act = decide(&plan(), &state, place(reads, 0), &gates, 0).act;
        let all_passed = !gates.is_empty() && verdicts.iter().all(|verdict| *verdict == Verdict::Passed);
        prop_assert!(all_passed || !matches!(act, Act::Up(_) | Act::Done), "{:?}", act);
    }

    #[test]
    fn two_looks_at_broken_gates_bring_it_down_whatever_was_before(
        before in proptest::collection::vec(verdict(), 0..30), reads in 1..=100_u8, writes in 0..=100_u8, zero: bool,
    ) {
        let at = place(reads.max(writes), writes);
        let plan = Plan { back: if zero { Back::Zero } else { Back::Step }, ..plan() };
        let (mut state, mut now) = (State::default(), 0);
        for verdict in before {
            state = decide(&plan, &state, at, &[gate(verdict)], now).state;
            now += EVERY_MS;
        }
        let mut looks = 0;
        let down = loop {
            looks += 1;
            let decision = decide(&plan, &state, at, &[gate(Verdict::Broken), gate(Verdict::Unknown)], now);
            state = decision.state;
            if let Act::Down(to) = decision.act {
                break to;
            }
            prop_assert!(looks < 2);
        };
        prop_assert!(down.reads < at.reads || down.writes < at.writes);
        prop_assert!(down.reads <= at.reads && down.writes <= at.writes && down.writes <= down.reads);
    }
}
