//! Where a ramp has been, and whether anybody but its plan has moved it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ramp::State;
use super::ramp_plan::{Place, Plan};
use crate::model::percent::Percent;

/// Steps that are remembered; a later one takes the place of the oldest.
const MOST_STAYS: usize = 100;

/// A step while it was in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stay {
    /// Percent of reads.
    #[schema(value_type = f64, minimum = 0, maximum = 100)]
    pub reads: Percent,
    /// Percent of writes.
    #[schema(value_type = f64, minimum = 0, maximum = 100)]
    pub writes: Percent,
    /// When it was reached, or the plan found it; Unix milliseconds.
    pub reached_at: i64,
    /// When it was left; null while it is in force.
    #[serde(default)]
    pub left_at: Option<i64>,
}

/// A move that was begun, as long as it is not stored how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Trying {
    /// The number of its decision.
    pub number: i64,
    /// Where it was to lead.
    pub to: Place,
}

/// Takes note that it is at `place` at `now` (Unix milliseconds): whatever it was at before has been left. Whether
/// that is another place than before.
pub fn note_stay(stays: &mut Vec<Stay>, place: Place, now: i64) -> bool {
    let Place { reads, writes } = place;
    if let Some(last) = stays.last_mut() {
        if last.left_at.is_none() && (last.reads, last.writes) == (reads, writes) {
            return false;
        }
        last.left_at.get_or_insert(now);
    }
    stays.push(Stay { reads, writes, reached_at: now, left_at: None });
    let many = stays.len().saturating_sub(MOST_STAYS);
    stays.drain(..many);
    true
}

/// What is remembered after a step that left it at `place`. `None`: that is not known, as the step failed, or old's
/// record has not been read; then it is somewhere on its way.
#[must_use]
pub fn after_step(state: State, step: Trying, place: Option<Place>) -> State {
    if place.is_some() {
        return State { expected: place, ..state };
    }
    // The first of which it is not told how it ended is still to be told.
    let number = state.trying.map_or(step.number, |before| before.number);
    State { trying: Some(Trying { number, ..step }), ..state }
}

/// Whether it is known where a step led that `failed` at that time: old's record, which is the first to hear of moves,
/// has been `heard` since.
#[must_use]
pub fn is_known_again(failed: Option<Duration>, heard: Option<Duration>) -> bool {
    failed.is_none_or(|failed| heard.is_some_and(|heard| heard > failed))
}

/// Why somebody else must have moved what `plan` moves; `None`: it is where the plan left it, or on the way that the plan
/// itself was about to take.
#[must_use]
pub fn moved_by_others(plan: &Plan, state: &State, place: Place) -> Option<String> {
    let left = state.expected?;
    let to = state.trying.map_or(left, |trying| trying.to);
    if is_between(plan.part(left), plan.part(to), plan.part(place)) {
        return None;
    }
    Some(format!(
        "somebody else has moved it: its plan left it at {}, and it is at {}",
        spelled(left),
        spelled(place)
    ))
}

/// Whether it is on the way from one place to another, reads and writes each by themselves.
#[must_use]
pub fn is_between(from: Place, to: Place, place: Place) -> bool {
    let lies = |from: Percent, to: Percent, at: Percent| from.min(to) <= at && at <= from.max(to);
    lies(from.reads, to.reads, place.reads) && lies(from.writes, to.writes, place.writes)
}

/// How a move ended of which nobody has told that, and `why` not, by what is in force now.
#[must_use]
pub fn cut_off(trying: &Trying, place: Option<Place>, why: &str) -> String {
    let Some(place) = place else { return format!("cut off: {why}; what is in force was not known then") };
    let reached = if trying.to == place { "it was made all the same" } else { "it was not made, or in part" };
    format!("cut off: {why}; {reached}: in force are {}", spelled(place))
}

/// A place, in words.
#[must_use]
pub fn spelled(place: Place) -> String {
    format!("reads {} % and writes {} %", place.reads, place.writes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(reads: u8, writes: u8) -> Place {
        Place { reads: reads.into(), writes: writes.into() }
    }

    fn left(at: Place, to: Option<Place>) -> State {
        let trying = to.map(|to| Trying { number: 1, to });
        State { expected: Some(at), trying, ..State::default() }
    }

    fn moved(state: &State, place: Place) -> Option<String> {
        let plan = Plan { writes: vec![Percent::ALL], ..Plan::default() };
        moved_by_others(&plan, state, place)
    }

    #[test]
    fn what_its_plan_did_not_do_was_done_by_others() {
        assert_eq!(moved(&State::default(), place(10, 0)), None, "it has not been seen yet");
        assert_eq!(moved(&left(place(50, 0), None), place(50, 0)), None);
        for others in [place(10, 0), place(75, 0), place(50, 10)] {
            let why = moved(&left(place(50, 0), None), others).unwrap();
            assert!(why.contains("left it at reads 50 % and writes 0 %"), "{why}");
        }
    }

    /// A process that died in the middle of a move leaves it anywhere on its way.
    #[test]
    fn the_way_of_its_own_move_is_no_move_of_others() {
        let up = left(place(25, 0), Some(place(50, 0)));
        for own in [place(25, 0), place(30, 0), place(50, 0)] {
            assert_eq!(moved(&up, own), None, "{own:?}");
        }
        assert!(moved(&up, place(75, 0)).is_some() && moved(&up, place(5, 0)).is_some());
        let down = left(place(100, 50), Some(place(0, 0)));
        assert_eq!(moved(&down, place(100, 0)), None);
        assert!(moved(&down, place(100, 75)).is_some());
    }

    #[test]
    fn a_step_tells_when_it_was_reached_and_left() {
        let mut stays = Vec::new();
        for (at, now) in
            [(place(0, 0), 1), (place(0, 0), 2), (place(5, 0), 3), (place(5, 0), 4), (place(0, 0), 5)]
        {
            note_stay(&mut stays, at, now);
        }
        let told: Vec<_> = stays.iter().map(|stay| (stay.reads, stay.reached_at, stay.left_at)).collect();
        let (none, five) = (Percent::ZERO, Percent::whole(5));
        assert_eq!(told, [(none, 1, Some(3)), (five, 3, Some(5)), (none, 5, None)]);
        for now in 6..300 {
            note_stay(&mut stays, place(u8::from(now % 2 == 0), 0), now);
        }
        assert_eq!((stays.len(), stays.last().unwrap().reached_at), (MOST_STAYS, 299));
    }

    #[test]
    fn a_move_that_was_cut_off_tells_what_came_of_it() {
        let trying = Trying { number: 3, to: place(50, 0) };
        assert!(
            cut_off(&trying, Some(place(50, 0)), "x").contains("made all the same: in force are reads 50 %")
        );
        assert!(
            cut_off(&trying, Some(place(25, 0)), "x")
                .contains("not made, or in part: in force are reads 25 %")
        );
        assert_eq!(cut_off(&trying, None, "x"), "cut off: x; what is in force was not known then");
    }

    /// What a plan does not move is nobody's business of its.
    #[test]
    fn what_a_plan_does_not_move_others_may() {
        let (reads, writes) = (Plan::default(), Plan { reads: Vec::new(), ..Plan::default() });
        let writes = Plan { writes: vec![Percent::ALL], ..writes };
        let range = Plan { range: Some("eu".into()), ..Plan::default() }.settled();
        let at = left(place(50, 0), None);
        let halts = |plan: &Plan, to| moved_by_others(plan, &at, to).is_some();
        assert_eq!((halts(&reads, place(50, 5)), halts(&reads, place(40, 0))), (false, true));
        assert_eq!((halts(&writes, place(40, 0)), halts(&writes, place(50, 5))), (false, true));
        assert!(halts(&range, place(40, 0)) && halts(&range, place(50, 5)));
    }

    /// Old was changed, but did not answer: what is known of it is from before the step.
    #[test]
    fn a_step_that_failed_may_have_been_made_all_the_same() {
        let (from, to) = (place(25, 0), place(50, 0));
        let step = Trying { number: 7, to };
        let failed = after_step(left(from, None), step, None);
        assert_eq!(failed.trying, Some(step));
        for own in [from, to] {
            assert_eq!(moved(&failed, own), None, "{own:?}");
        }
        assert!(moved(&failed, place(75, 0)).is_some());
        let again = after_step(failed, Trying { number: 8, to: from }, None);
        assert_eq!(again.trying, Some(Trying { number: 7, to: from }), "the first is not told yet");
        let done = after_step(left(from, None), step, Some(to));
        assert_eq!((done.expected, done.trying), (Some(to), None));
        let at = |seconds| Some(Duration::from_secs(seconds));
        assert!(is_known_again(None, None) && is_known_again(at(9), at(10)));
        assert!(!is_known_again(at(9), at(9)) && !is_known_again(at(9), None));
    }
}
