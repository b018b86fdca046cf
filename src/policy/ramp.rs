//! A ramp by plan: whether it goes up, waits, or comes down. Unknown is never a yes, and what is broken comes down
//! at the second look.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ramp_moves::Trying;
pub use super::ramp_plan::{Back, Place, Plan, STEPS, Shadow};

/// How often the gates are looked at, in milliseconds.
pub const EVERY_MS: i64 = 5_000;
/// Looks at broken gates until it comes down.
const PATIENCE: u32 = 2;

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
    /// Why it is halted, if that was not asked for by name.
    #[serde(default)]
    pub halted: Option<String>,
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
    /// Where the plan left it, or found it.
    #[serde(default)]
    pub expected: Option<Place>,
    /// The move that was begun last, until it is stored how it ended.
    #[serde(default)]
    pub trying: Option<Trying>,
}

impl State {
    /// As a process takes it up at `now` that follows another, of a plan that began at `since` (Unix milliseconds). Not
    /// every look is stored: its number goes on above whatever the other can have counted since. What the other
    /// measured at this step is gone with it, so that it dwells anew.
    #[must_use]
    pub fn taken_up(self, since: i64, now: i64) -> Self {
        let elapsed = now.saturating_sub(since).max(0) / EVERY_MS;
        let counted = if elapsed > 0 { elapsed + 1 } else { 0 };
        Self { looks: self.looks.max(counted), dwelt_ms: 0, ..self }
    }

    /// As an operator lets it go on: from whatever is in force. What is not known of a move is still to be told.
    #[must_use]
    pub fn resumed(&self) -> Self {
        Self { dry: self.dry, looks: self.looks, trying: self.trying, ..Self::default() }
    }

    /// As it is halted because of something else than being asked to.
    #[must_use]
    pub fn halted(self, why: &str) -> Self {
        Self { paused: true, halted: Some(why.to_owned()), dwelt_ms: 0, ..self }
    }

    /// Why it moves nothing while it is halted.
    #[must_use]
    pub fn why_paused(&self) -> String {
        let Some(why) = &self.halted else { return "paused".to_owned() };
        format!("paused: {why}; resume goes on from what is in force then")
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
        return because(Act::Hold, state.why_paused(), State { dwelt_ms: 0, ..whole(next) });
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
    // A percent is little, a range is all of somebody: that waits for the gates to hold before its first step.
    let begins = plan.range.is_none() && !plan.has_begun(place) && state.setbacks == 0;
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
    if let Some(why) = plan.shut(now) {
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
