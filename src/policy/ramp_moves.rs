//! Where a ramp has been, and whether anybody but its plan has moved it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ramp::State;
use super::ramp_plan::Place;
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

/// Why it must have been moved by somebody else; `None`: it is where the plan left it, or on the way that the plan
/// itself was about to take.
#[must_use]
pub fn moved_by_others(state: &State, place: Place) -> Option<String> {
    let left = state.expected?;
    let to = state.trying.map_or(left, |trying| trying.to);
    if is_between(left, to, place) {
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

/// How a move ended that a process did not live to tell of, by what is in force now.
#[must_use]
pub fn cut_off(trying: &Trying, place: Place) -> String {
    let reached = if trying.to == place { "it was made all the same" } else { "it was not made, or in part" };
    format!("cut off: the process ended in the middle of it; {reached}: in force are {}", spelled(place))
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

    #[test]
    fn what_its_plan_did_not_do_was_done_by_others() {
        assert_eq!(moved_by_others(&State::default(), place(10, 0)), None, "it has not been seen yet");
        assert_eq!(moved_by_others(&left(place(50, 0), None), place(50, 0)), None);
        for others in [place(10, 0), place(75, 0), place(50, 10)] {
            let why = moved_by_others(&left(place(50, 0), None), others).unwrap();
            assert!(why.contains("left it at reads 50 % and writes 0 %"), "{why}");
        }
    }

    /// A process that died in the middle of a move leaves it anywhere on its way.
    #[test]
    fn the_way_of_its_own_move_is_no_move_of_others() {
        let up = left(place(25, 0), Some(place(50, 0)));
        for own in [place(25, 0), place(30, 0), place(50, 0)] {
            assert_eq!(moved_by_others(&up, own), None, "{own:?}");
        }
        assert!(moved_by_others(&up, place(75, 0)).is_some() && moved_by_others(&up, place(5, 0)).is_some());
        let down = left(place(100, 50), Some(place(0, 0)));
        assert_eq!(moved_by_others(&down, place(100, 0)), None);
        assert!(moved_by_others(&down, place(100, 75)).is_some());
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
        assert!(cut_off(&trying, place(50, 0)).contains("made all the same: in force are reads 50 %"));
        assert!(cut_off(&trying, place(25, 0)).contains("not made, or in part: in force are reads 25 %"));
    }
}
