//! A ramp by plan: whether it goes up, waits, or comes down. Unknown is never a yes, and what is broken comes down
//! at the second look.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::calendar::{Freeze, Window, closed};
use crate::model::percent::Percent;

/// How often the gates are looked at, in milliseconds.
pub const EVERY_MS: i64 = 5_000;
/// Looks at broken gates until it comes down.
const PATIENCE: u32 = 2;

/// How far down a broken gate brings it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Back {
    /// To the step below.
    #[default]
    Step,
    /// To nothing on new.
    Zero,
}

/// Whether shadow reads decide.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shadow {
    /// Their persistent differences must be known, and none.
    #[default]
    On,
    /// They do not matter.
    Off,
}

/// What is to be reached, and on what conditions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    /// Percentages of reads, rising; empty leaves reads as they are.
    #[schema(value_type = Vec<f64>)]
    pub reads: Vec<Percent>,
    /// Percentages of writes, rising, once the reads are where they are to be; empty leaves writes as they are.
    #[schema(value_type = Vec<f64>)]
    pub writes: Vec<Percent>,
    /// Seconds that all gates must have held at each step.
    pub dwell_seconds: u32,
    /// Operations that new must have answered lately before it is judged.
    pub min_samples: u64,
    /// The largest share of operations that may fail on new.
    pub max_error_rate: f64,
    /// How many times old's 99th percentile new's may be, for each shape.
    pub max_p99_ratio: f64,
    /// Seconds that either stream may be behind.
    pub max_lag_seconds: f64,
    /// Seconds that each cluster's oplog must reach back.
    pub min_oplog_window_seconds: f64,
    /// The 99th percentile that is good enough whatever old's is, in milliseconds: differences of less than a
    /// server's own unrest say nothing.
    pub p99_floor_ms: f64,
    /// Whether persistent differences of shadow reads must be known, and none.
    pub shadow: Shadow,
    /// The largest share of sampled reads since the last move that may have ended without a comparison.
    pub max_uncompared: f64,
    /// How far down a broken gate brings it.
    pub back: Back,
    /// It goes up again by itself after so many times that it came down.
    pub max_setbacks: u32,
    /// Minutes that local time is ahead of UTC, for `windows` and `freezes`.
    pub utc_offset_minutes: i16,
    /// When it may go up; empty is always.
    pub windows: Vec<Window>,
    /// Days on which it does not go up.
    pub freezes: Vec<Freeze>,
    /// Why `windows` and `freezes` do not matter now.
    pub override_reason: Option<String>,
    /// Decides and records, and moves nothing.
    pub dry_run: bool,
}

/// The steps of a plan that names none.
pub const STEPS: [Percent; 6] = [
    Percent::whole(5),
    Percent::whole(10),
    Percent::whole(25),
    Percent::whole(50),
    Percent::whole(75),
    Percent::ALL,
];

impl Default for Plan {
    fn default() -> Self {
        Self {
            reads: STEPS.to_vec(),
            writes: Vec::new(),
            dwell_seconds: 300,
            min_samples: 200,
            max_error_rate: 0.01,
            max_p99_ratio: 1.5,
            max_lag_seconds: 5.0,
            min_oplog_window_seconds: 3600.0,
            p99_floor_ms: 2.0,
            shadow: Shadow::On,
            max_uncompared: 0.2,
            back: Back::Step,
            max_setbacks: 3,
            utc_offset_minutes: 0,
            windows: Vec::new(),
            freezes: Vec::new(),
            override_reason: None,
            dry_run: false,
        }
    }
}

/// Shares of reads and writes on new.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Place {
    /// Percent of reads.
    #[schema(value_type = f64, minimum = 0, maximum = 100)]
    pub reads: Percent,
    /// Percent of writes.
    #[schema(value_type = f64, minimum = 0, maximum = 100)]
    pub writes: Percent,
}

impl Plan {
    /// What makes no sense in it, naming the field; empty is fit.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        // What is no number is not.
        let at_least = |value: f64, least: f64| value.is_finite() && value >= least;
        let mut no = |bad: bool, why: &str| {
            if bad {
                problems.push(why.to_owned());
            }
        };
        let rising = |steps: &[Percent]| {
            steps.iter().all(|step| *step > Percent::ZERO) && steps.windows(2).all(|two| two[0] < two[1])
        };
        no(!rising(&self.reads), "reads must be percentages from 0.1 to 100, each more than the one before");
        no(
            !rising(&self.writes),
            "writes must be percentages from 0.1 to 100, each more than the one before",
        );
        no(self.reads.is_empty() && self.writes.is_empty(), "reads or writes must have a step");
        let (reads, writes) = (self.reads.last(), self.writes.last());
        no(
            reads.zip(writes).is_some_and(|(reads, writes)| writes > reads),
            "writes may not end above reads; raise the last step of reads",
        );
        no(self.dwell_seconds == 0, "dwell_seconds must be at least 1");
        no(self.min_samples == 0, "min_samples must be at least 1");
        no(!(0.0..=1.0).contains(&self.max_error_rate), "max_error_rate must be from 0 to 1");
        no(!(0.0..=1.0).contains(&self.max_uncompared), "max_uncompared must be from 0 to 1");
        no(!at_least(self.max_p99_ratio, 1.0), "max_p99_ratio must be at least 1");
        no(!at_least(self.p99_floor_ms, 0.0), "p99_floor_ms must be at least 0");
        no(!at_least(self.max_lag_seconds, 0.1), "max_lag_seconds must be at least 0.1");
        no(!at_least(self.min_oplog_window_seconds, 0.0), "min_oplog_window_seconds must be at least 0");
        let reason = self.override_reason.as_deref();
        no(reason.is_some_and(|why| why.trim().is_empty()), "override_reason must say why, or be left out");
        no(self.utc_offset_minutes.abs() > 14 * 60, "utc_offset_minutes must be from -840 to 840");
        problems.extend(self.windows.iter().filter_map(Window::problem));
        problems.extend(self.freezes.iter().filter_map(Freeze::problem));
        problems
    }

    /// Its steps, the lowest first.
    #[must_use]
    pub fn steps(&self) -> Vec<Place> {
        let reads = self.reads.iter().map(|&reads| Place { reads, writes: Percent::ZERO });
        let last = self.reads.last().copied().unwrap_or_default();
        reads.chain(self.writes.iter().map(|&writes| Place { reads: last, writes })).collect()
    }

    fn moves_reads(&self) -> bool {
        !self.reads.is_empty()
    }

    fn moves_writes(&self) -> bool {
        !self.writes.is_empty()
    }

    /// Whether anything that it moves is on new.
    #[must_use]
    pub fn has_begun(&self, place: Place) -> bool {
        self.moves_reads() && place.reads > Percent::ZERO
            || self.moves_writes() && place.writes > Percent::ZERO
    }

    /// The next step up from `place`.
    fn above(&self, place: Place) -> Option<Place> {
        let step =
            self.steps().into_iter().find(|step| step.reads > place.reads || step.writes > place.writes)?;
        Some(Place { reads: step.reads.max(place.reads), writes: step.writes.max(place.writes) })
    }

    /// Where a broken gate brings it from `place`; `None`: nothing that it moves is on new.
    fn below(&self, place: Place) -> Option<Place> {
        if !self.has_begun(place) {
            return None;
        }
        let (reads, writes) = (self.moves_reads(), self.moves_writes());
        let is_below = |step: &Place| {
            let fits = (!reads || step.reads <= place.reads) && (!writes || step.writes <= place.writes);
            fits && (reads && step.reads < place.reads || writes && step.writes < place.writes)
        };
        let step = self.steps().into_iter().rev().find(is_below).filter(|_| self.back == Back::Step);
        let to = step.unwrap_or_default();
        // What it does not move stays where it is.
        Some(Place {
            reads: if reads { to.reads } else { place.reads },
            writes: if writes { to.writes } else { place.writes },
        })
    }
}

/// What one look at a gate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Measured, and good.
    Passed,
    /// Too little was measured to tell.
    TooFew,
    /// Not measured.
    Unknown,
    /// Measured, and bad.
    Broken,
}

/// One gate, with its numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gate {
    /// Which.
    pub name: String,
    /// What the look says.
    pub verdict: Verdict,
    /// The numbers, in words.
    pub detail: String,
}

/// What is remembered from look to look.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct State {
    /// Milliseconds that all gates have held at this step, while somebody looked.
    pub dwelt_ms: i64,
    /// Looks at broken gates since all of them held.
    pub broken: u32,
    /// How often it came down.
    pub setbacks: u32,
    /// An operator has halted it.
    pub paused: bool,
    /// When it was looked at last; Unix milliseconds.
    pub looked_at: Option<i64>,
    /// Looks at this plan so far.
    #[serde(default)]
    pub looks: i64,
    /// The first of the looks at broken gates, since all of them held.
    #[serde(default)]
    pub first_broken: Option<i64>,
    /// Where a dry run would be.
    pub dry: Place,
}

impl State {
    /// As a process takes it up at `now` that follows another, of a plan that began at `since` (Unix milliseconds). Not
    /// every look is stored: its number goes on above whatever the other can have counted since.
    #[must_use]
    pub fn taken_up(self, since: i64, now: i64) -> Self {
        let elapsed = now.saturating_sub(since).max(0) / EVERY_MS;
        let counted = if elapsed > 0 { elapsed + 1 } else { 0 };
        Self { looks: self.looks.max(counted), ..self }
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// Nothing now.
    Hold,
    /// Go up to there.
    Up(Place),
    /// Come down to there.
    Down(Place),
    /// All steps have been reached and held.
    Done,
}

/// What is to be done, why, and what is to be remembered if it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What.
    pub act: Act,
    /// In words.
    pub why: String,
    /// The number of the look.
    pub look: i64,
    /// The first look at gates that were broken, since all of them held.
    pub first_broken: Option<i64>,
    /// What is remembered.
    pub state: State,
}

/// Decides at `now` (Unix milliseconds), at `place`, by what `gates` say. Without a gate nothing is known.
#[must_use]
pub fn decide(plan: &Plan, state: &State, place: Place, gates: &[Gate], now: i64) -> Decision {
    let mut next = state.clone();
    let since = now.saturating_sub(next.looked_at.replace(now).unwrap_or(now));
    next.looks += 1;
    let of = |verdict| gates.iter().filter(move |gate: &&Gate| gate.verdict == verdict);
    let is_broken = !state.paused && of(Verdict::Broken).next().is_some();
    if is_broken {
        next.first_broken.get_or_insert(next.looks);
    }
    let (look, first_broken) = (next.looks, next.first_broken.filter(|_| is_broken));
    let because = |act, why: String, state| Decision { act, why, look, first_broken, state };
    let whole = |state| State { broken: 0, first_broken: None, ..state };
    if state.paused {
        return because(Act::Hold, "paused".into(), State { dwelt_ms: 0, ..whole(next) });
    }
    if is_broken {
        next.dwelt_ms = 0;
        next.broken += 1;
        let why = words("broken", of(Verdict::Broken));
        return match plan.below(place) {
            Some(below) if next.broken >= PATIENCE => {
                let state = State { setbacks: next.setbacks + 1, ..whole(next) };
                because(Act::Down(below), why, state)
            }
            _ => because(Act::Hold, why, next),
        };
    }
    if gates.is_empty() || of(Verdict::Unknown).next().is_some() {
        return because(Act::Hold, words("held", of(Verdict::Unknown)), next);
    }
    next = whole(next);
    // Time in which nobody looked proves nothing.
    next.dwelt_ms += since.clamp(0, 2 * EVERY_MS);
    if of(Verdict::TooFew).next().is_some() {
        return because(Act::Hold, words("too little measured", of(Verdict::TooFew)), next);
    }
    let (act, why) = upward(plan, &next, place, now);
    let dwelt_ms = if matches!(act, Act::Up(_)) { 0 } else { next.dwelt_ms };
    because(act, why, State { dwelt_ms, ..next })
}

/// What is to be done while all gates hold.
fn upward(plan: &Plan, state: &State, place: Place, now: i64) -> (Act, String) {
    let dwell = i64::from(plan.dwell_seconds) * 1000;
    let begins = !plan.has_begun(place) && state.setbacks == 0;
    if state.dwelt_ms < dwell && !begins {
        let why = format!("all gates hold, for {} of {} s", state.dwelt_ms / 1000, dwell / 1000);
        return (Act::Hold, why);
    }
    let Some(above) = plan.above(place) else {
        return (Act::Done, "all steps are reached, and all gates hold".into());
    };
    if state.setbacks > plan.max_setbacks {
        let why = format!("it came down {} times: it goes up when it is started again", state.setbacks);
        return (Act::Hold, why);
    }
    if plan.override_reason.is_none()
        && let Some(why) = closed(&plan.windows, &plan.freezes, plan.utc_offset_minutes, now)
    {
        return (Act::Hold, why);
    }
    (Act::Up(above), "all gates hold".into())
}

fn words<'a>(what: &str, gates: impl Iterator<Item = &'a Gate>) -> String {
    let each: Vec<_> = gates.map(|gate| format!("{}: {}", gate.name, gate.detail)).collect();
    format!("{what}: {}", each.join("; "))
}

#[cfg(test)]
#[path = "ramp_tests.rs"]
mod tests;
