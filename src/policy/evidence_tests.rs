use super::*;
use crate::policy::latency::bucket;

fn good() -> Known {
    Known {
        lag: [Some(0.1); 2],
        mirror_failures: Some(0),
        oplog_window: [Some(1e6); 2],
        secondaries: [Secondaries::None, behind(10.0)],
        shadow: shadowed(200, 0),
        ..Known::default()
    }
}

fn behind(seconds: f64) -> Secondaries {
    Secondaries::Furthest { server: "a:1".into(), seconds }
}

fn shadowed(compared: u64, uncompared: u64) -> Shadowed {
    Shadowed { off: None, differences: Some(0), compared, uncompared }
}

fn verdicts(known: &Known) -> Vec<Verdict> {
    let gates = of_migration(&Plan::default(), known);
    gates.iter().map(|gate| gate.verdict).filter(|verdict| *verdict != Verdict::Passed).collect()
}

#[test]
fn each_gate_stands_by_itself_and_what_is_not_known_is_unknown() {
    assert_eq!(verdicts(&good()), []);
    let unknown = [
        Known { blocked_by: vec!["no verification".into()], ..good() },
        Known { lag: [None, Some(0.0)], ..good() },
        Known { mirror_failures: None, ..good() },
        Known { oplog_window: [Some(1e6), None], ..good() },
        Known { secondaries: [Secondaries::None, Secondaries::default()], ..good() },
        // Coming down would bring more reads there.
        Known { secondaries: [behind(10.1), Secondaries::None], ..good() },
        Known { switched_off: Some("plans are switched off for everything".into()), ..good() },
        Known { shadow: Shadowed { differences: None, ..shadowed(200, 0) }, ..good() },
    ];
    for known in unknown {
        assert_eq!(verdicts(&known), [Verdict::Unknown], "{known:?}");
    }
    let broken = [
        Known { lag: [Some(0.0), Some(6.0)], ..good() },
        Known { lag: [Some(f64::NAN), Some(0.0)], ..good() },
        Known { conflicts: 1, ..good() },
        Known { mirror_failures: Some(1), ..good() },
        Known { secondaries: [Secondaries::None, behind(10.1)], ..good() },
        Known { secondaries: [Secondaries::None, behind(f64::NAN)], ..good() },
        Known { oplog_window: [Some(10.0), Some(1e6)], ..good() },
        Known { shadow: Shadowed { differences: Some(1), ..shadowed(200, 0) }, ..good() },
    ];
    for known in broken {
        assert_eq!(verdicts(&known), [Verdict::Broken], "{known:?}");
    }
    let off = Plan {
        shadow: Shadow::Off,
        min_oplog_window_seconds: 0.0,
        max_secondary_lag_seconds: 0.0,
        ..Plan::default()
    };
    let (secondaries, shadow) = Default::default();
    let known = Known { oplog_window: [None; 2], secondaries, shadow, ..good() };
    assert!(of_migration(&off, &known).iter().all(|gate| gate.verdict == Verdict::Passed));
}

fn took(count: u64, ms: u64) -> Measured {
    let mut measured = Measured::default();
    measured.counts[bucket(ms * 1000)] = count;
    measured
}

fn judged(new: Measured, old: Measured, baseline_p99_ms: Option<f64>) -> Vec<Verdict> {
    let one = Latency { shape: "s".into(), new, old, baseline_p99_ms };
    of_new(&Plan::default(), &Answers { latencies: vec![one], ..Answers::default() })
        .iter()
        .map(|gate| gate.verdict)
        .collect()
}

#[test]
fn errors_and_slow_answers_break_and_too_few_answers_do_not_pass() {
    use Verdict::{Broken, Passed, TooFew, Unknown};
    let failed = |errors, count| Measured { errors, ..took(count, 10) };
    assert_eq!(judged(took(200, 10), took(200, 10), Some(10.0)), [Passed, Passed]);
    assert_eq!(judged(failed(1, 400), took(0, 10), Some(10.0)), [Passed, Passed]);
    assert_eq!(judged(failed(4, 396), took(0, 10), Some(10.0)), [Broken, Passed]);
    assert_eq!(judged(failed(2, 0), took(0, 10), Some(10.0)), [Broken, TooFew]);
    assert_eq!(judged(failed(1, 0), took(0, 10), Some(10.0)), [TooFew, TooFew]);
    assert_eq!(judged(took(199, 10), took(0, 10), Some(10.0)), [TooFew, TooFew]);
    assert_eq!(judged(took(3, 40), took(0, 10), Some(10.0)), [TooFew, Broken]);
    assert_eq!(judged(took(200, 40), took(0, 10), Some(10.0)), [Passed, Broken]);
    assert_eq!(
        judged(took(200, 40), took(200, 10), Some(40.0)),
        [Passed, Broken],
        "slower than old beside it"
    );
    assert_eq!(judged(took(200, 40), took(199, 10), Some(40.0)), [Passed, Passed]);
    assert_eq!(judged(took(200, 40), took(10, 10), None), [Passed, Unknown]);
    assert_eq!(judged(Measured::default(), took(200, 10), Some(10.0)), [TooFew, TooFew]);
}

#[test]
fn that_shadow_reads_found_nothing_counts_only_with_enough_of_them_since_the_last_move() {
    use Verdict::{Broken, Passed, TooFew, Unknown};
    let judged = |shadow: Shadowed| {
        let gates = of_migration(&Plan::default(), &Known { shadow, ..good() });
        gates.into_iter().find(|gate| gate.name == "shadow_differences").unwrap()
    };
    assert_eq!(judged(shadowed(0, 0)).verdict, TooFew);
    assert_eq!(judged(shadowed(199, 20)).verdict, TooFew, "enough could still come");
    assert_eq!(judged(shadowed(200, 0)).verdict, Passed);
    assert_eq!(judged(shadowed(800, 200)).verdict, Passed, "a fifth may be missing");
    assert_eq!(judged(shadowed(800, 201)).verdict, Unknown);
    assert_eq!(judged(shadowed(0, 41)).verdict, Unknown, "that is more than a fifth of what is needed");
    let off = Shadowed { off: Some("shop.c is switched off".into()), ..shadowed(1000, 0) };
    assert_eq!(judged(off.clone()).verdict, Unknown);
    assert_eq!(judged(off.clone()).detail, "shop.c is switched off");
    let found = Shadowed { differences: Some(3), ..off };
    assert_eq!(judged(found).verdict, Broken, "what was found stays found");
}

#[test]
fn what_has_no_shape_counts_for_errors_alone() {
    let one = Latency { shape: "s".into(), new: took(10, 1), old: took(0, 1), baseline_p99_ms: Some(1.0) };
    let with = |besides| {
        let gates = of_new(&Plan::default(), &Answers { latencies: vec![one.clone()], besides });
        gates.into_iter().map(|gate| gate.verdict).collect::<Vec<_>>()
    };
    assert_eq!(with(took(190, 60_000)), [Verdict::Passed, Verdict::TooFew]);
    assert_eq!(with(Measured { errors: 2, ..took(0, 1) }), [Verdict::Broken, Verdict::TooFew]);
}

#[test]
fn the_first_step_waits_for_a_baseline() {
    let few = of_baseline(&Plan::default(), 0, 3);
    assert_eq!((few.name.as_str(), few.verdict), ("baseline", Verdict::TooFew));
    assert!(few.detail.contains("200 operations or more of 0 shapes of 3"), "{}", few.detail);
    assert_eq!(of_baseline(&Plan::default(), 1, 3).verdict, Verdict::Passed);
}

/// Time alone does not tell how long old takes for what new alone answers: the gate says who can.
#[test]
fn what_is_not_known_of_old_names_its_shape_and_the_way_out() {
    let one = Latency {
        shape: "shop.c find {a}".into(),
        new: took(200, 10),
        old: took(10, 10),
        baseline_p99_ms: None,
    };
    let gates = of_new(&Plan::default(), &Answers { latencies: vec![one], ..Answers::default() });
    let latency = gates.into_iter().find(|gate| gate.name == "latency").unwrap();
    assert_eq!(latency.verdict, Verdict::Unknown);
    for said in ["shop.c find {a}", "200 times", "shadow NAME PERCENT", "ramp resume"] {
        assert!(latency.detail.contains(said), "{said}: {}", latency.detail);
    }
}
