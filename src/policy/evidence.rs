//! What a ramp goes by: the gates, from what was measured. `None` is unknown.

use super::latency::Measured;
use super::ramp::{Gate, Plan, Shadow, Verdict};

/// What is known of a migration besides latencies and errors.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Known {
    /// What stands in the way of any move, copy, verification and paused streams among it.
    pub blocked_by: Vec<String>,
    /// For what an operator has switched plans off, in words.
    pub switched_off: Option<String>,
    /// Seconds behind, old to new and new to old.
    pub lag: [Option<f64>; 2],
    /// Keys that cannot be made equal now.
    pub conflicts: u64,
    /// Mirror writes that failed or were late since the look before.
    pub mirror_failures: Option<u64>,
    /// Seconds that the oplogs of old and new reach back.
    pub oplog_window: [Option<f64>; 2],
    /// How far secondaries of old and new are behind.
    pub secondaries: [Secondaries; 2],
    /// What shadow reads have seen.
    pub shadow: Shadowed,
}

/// How far the secondaries of a cluster are behind its primary, each by itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Secondaries {
    /// Not known, and why.
    Unknown(String),
    /// There is none that anybody can read from.
    None,
    /// The one that is furthest behind.
    Furthest {
        /// Which.
        server: String,
        /// How far.
        seconds: f64,
    },
}

impl Default for Secondaries {
    fn default() -> Self {
        Self::Unknown("not known".to_owned())
    }
}

/// What shadow reads have seen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shadowed {
    /// Why reads are not compared now, or not all of them.
    pub off: Option<String>,
    /// Persistent differences, ever.
    pub differences: Option<u64>,
    /// Reads that were compared to an end since the last move of the plan, or since it began.
    pub compared: u64,
    /// Reads of the sample since then of which nothing is known: dropped, not answered, or never settled.
    pub uncompared: u64,
}

/// One shape, as both clusters served it lately.
#[derive(Debug, Clone, PartialEq)]
pub struct Latency {
    /// In words.
    pub shape: String,
    /// On new.
    pub new: Measured,
    /// On old, in the same time.
    pub old: Measured,
    /// Old's 99th percentile before anything was on new.
    pub baseline_p99_ms: Option<f64>,
}

/// What both clusters answered lately.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answers {
    /// By shape.
    pub latencies: Vec<Latency>,
    /// What new answered that has no shape: of that only errors say something.
    pub besides: Measured,
}

/// The gates of a migration itself.
#[must_use]
pub fn of_migration(plan: &Plan, known: &Known) -> Vec<Gate> {
    let blocked = known.blocked_by.join("; ");
    let ready = if known.blocked_by.is_empty() { Verdict::Passed } else { Verdict::Unknown };
    let mut gates =
        vec![gate("ready", ready, if blocked.is_empty() { "nothing in the way" } else { &blocked })];
    // It holds, and keeps nothing from coming down.
    gates.push(match &known.switched_off {
        None => gate("switched_on", Verdict::Passed, "for all collections"),
        Some(why) => gate("switched_on", Verdict::Unknown, why),
    });
    for (name, lag) in ["lag_old_to_new", "lag_new_to_old"].into_iter().zip(known.lag) {
        gates.push(at_most(name, lag, plan.max_lag_seconds, "s"));
    }
    let none = |name, count: Option<u64>| match count {
        None => gate(name, Verdict::Unknown, "not known"),
        Some(0) => gate(name, Verdict::Passed, "0"),
        Some(count) => gate(name, Verdict::Broken, &count.to_string()),
    };
    gates.push(none("conflicts", Some(known.conflicts)));
    gates.push(none("mirror_failures", known.mirror_failures));
    if plan.min_oplog_window_seconds > 0.0 {
        for (name, window) in ["oplog_window_old", "oplog_window_new"].into_iter().zip(known.oplog_window) {
            gates.push(at_least(name, window, plan.min_oplog_window_seconds, "s"));
        }
    }
    if plan.max_secondary_lag_seconds > 0.0 {
        let [old, new] = &known.secondaries;
        // Coming down would send more reads to old: there it only holds.
        gates.push(secondaries("secondary_lag_old", old, plan, Verdict::Unknown));
        gates.push(secondaries("secondary_lag_new", new, plan, Verdict::Broken));
    }
    if plan.shadow == Shadow::On {
        gates.push(shadow(plan, &known.shadow));
    }
    gates
}

/// The gate of the baseline, before the first step: what old does alone can be measured only until then, and without it
/// nothing could be said of new. `shapes` of old have been asked often enough; all that are known are `of`.
#[must_use]
pub fn of_baseline(plan: &Plan, shapes: usize, of: usize) -> Gate {
    let verdict = if shapes > 0 { Verdict::Passed } else { Verdict::TooFew };
    let enough = plan.min_samples;
    gate(
        "baseline",
        verdict,
        &format!("old is known by {enough} operations or more of {shapes} shapes of {of}"),
    )
}

/// The gates of new's answers, all shapes together and each by itself.
///
/// A gate is broken as soon as it could not hold any more with as many samples as are needed: it does not wait for
/// them. Shapes that new was asked too seldom count together, and so does what has no shape.
#[must_use]
pub fn of_new(plan: &Plan, answers: &Answers) -> Vec<Gate> {
    let Answers { latencies, besides } = answers;
    let mut all = besides.clone();
    latencies.iter().for_each(|one| all.add(&one.new));
    let mut gates = vec![errors(plan, &all)];
    let mut worst: Option<Gate> = None;
    for one in latencies.iter().filter(|one| one.new.samples() > 0) {
        let judged = latency(plan, one);
        let is_worse = |known: &Gate| rank(judged.verdict) > rank(known.verdict);
        if judged.verdict != Verdict::TooFew && worst.as_ref().is_none_or(is_worse) {
            worst = Some(judged);
        }
    }
    let few = || {
        gate("latency", Verdict::TooFew, &format!("no shape has {} answers of new lately", plan.min_samples))
    };
    gates.push(worst.unwrap_or_else(few));
    gates
}

/// What was found counts for ever; that nothing was found says something only of reads since the last move, and of
/// enough of them.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn shadow(plan: &Plan, seen: &Shadowed) -> Gate {
    let say = |verdict, detail: &str| gate("shadow_differences", verdict, detail);
    match (seen.differences, &seen.off) {
        (None, _) => return say(Verdict::Unknown, "not known"),
        (Some(0), Some(off)) => return say(Verdict::Unknown, off),
        (Some(0), None) => {}
        (Some(found), _) => return say(Verdict::Broken, &found.to_string()),
    }
    let (compared, uncompared) = (seen.compared, seen.uncompared);
    let detail =
        format!("0; {compared} reads compared since the last move, and {uncompared} that could not be");
    let looked_at = (compared + uncompared).max(plan.min_samples);
    if uncompared as f64 > plan.max_uncompared * looked_at as f64 {
        let most = plan.max_uncompared * 100.0;
        return say(
            Verdict::Unknown,
            &format!("{detail}: more than {most:.1} % (a smaller share drops less)"),
        );
    }
    let enough = compared >= plan.min_samples;
    say(if enough { Verdict::Passed } else { Verdict::TooFew }, &detail)
}

fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Passed => 0,
        Verdict::TooFew => 1,
        Verdict::Unknown => 2,
        Verdict::Broken => 3,
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn errors(plan: &Plan, new: &Measured) -> Gate {
    let all = new.samples() + new.errors;
    let detail = format!("{} of {all} failed", new.errors);
    // Nothing that may come yet could make up for it.
    let verdict =
        if new.errors > 0 && new.errors as f64 >= plan.max_error_rate * all.max(plan.min_samples) as f64 {
            Verdict::Broken
        } else if all < plan.min_samples {
            Verdict::TooFew
        } else {
            Verdict::Passed
        };
    gate("errors", verdict, &detail)
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn latency(plan: &Plan, one: &Latency) -> Gate {
    let samples = one.new.samples();
    let beside = one.old.quantile_ms(0.99).filter(|_| one.old.samples() >= plan.min_samples);
    let measure = [one.baseline_p99_ms, beside].into_iter().flatten().reduce(f64::min);
    let enough = samples >= plan.min_samples;
    let Some(measure) = measure else {
        let verdict = if enough { Verdict::Unknown } else { Verdict::TooFew };
        let many = plan.min_samples;
        let detail = format!(
            "{}: how long old takes is not known, as it has not answered it {many} times within five minutes, \
             neither alone nor beside new nor for shadow reads. Of reads, more shadow reads tell it (reshard migrate \
             shadow NAME PERCENT); of writes, and reads that are not shadowed, a lower share on new does (reads or \
             writes by hand, and ramp resume once it is known)",
            one.shape
        );
        return gate("latency", verdict, &detail);
    };
    let limit = (measure * plan.max_p99_ratio).max(plan.p99_floor_ms);
    let slow = one.new.above_ms(limit);
    let p99 = one.new.quantile_ms(0.99).unwrap_or(f64::NAN);
    let detail = format!(
        "{}: p99 {p99:.1} ms on new, {measure:.1} ms on old, limit {limit:.1} ms; {slow} of {samples} above it",
        one.shape
    );
    let verdict = if slow as f64 > 0.01 * samples.max(plan.min_samples) as f64 {
        Verdict::Broken
    } else if enough {
        Verdict::Passed
    } else {
        Verdict::TooFew
    };
    gate("latency", verdict, &detail)
}

fn secondaries(name: &str, known: &Secondaries, plan: &Plan, beyond: Verdict) -> Gate {
    let limit = plan.max_secondary_lag_seconds;
    match known {
        Secondaries::Unknown(why) => gate(name, Verdict::Unknown, why),
        Secondaries::None => gate(name, Verdict::Passed, "there is none to read from"),
        Secondaries::Furthest { server, seconds } => {
            let verdict = if *seconds <= limit { Verdict::Passed } else { beyond };
            gate(name, verdict, &format!("{server}: {seconds:.1}, at most {limit} s"))
        }
    }
}

fn at_most(name: &str, value: Option<f64>, limit: f64, unit: &str) -> Gate {
    bounded(name, value, |value| value <= limit, &format!("at most {limit} {unit}"))
}

fn at_least(name: &str, value: Option<f64>, limit: f64, unit: &str) -> Gate {
    bounded(name, value, |value| value >= limit, &format!("at least {limit} {unit}"))
}

fn bounded(name: &str, value: Option<f64>, holds: impl Fn(f64) -> bool, wanted: &str) -> Gate {
    let Some(value) = value else { return gate(name, Verdict::Unknown, "not known") };
    let verdict = if holds(value) { Verdict::Passed } else { Verdict::Broken };
    gate(name, verdict, &format!("{value:.1}, {wanted}"))
}

fn gate(name: &str, verdict: Verdict, detail: &str) -> Gate {
    Gate { name: name.to_owned(), verdict, detail: detail.to_owned() }
}

#[cfg(test)]
#[path = "evidence_tests.rs"]
mod tests;
