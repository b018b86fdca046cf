//! What a ramp by plan is to reach, and on what conditions.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::calendar::{Freeze, Window, closed};
use crate::model::percent::Percent;

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
    /// A declared range, by name, that is moved instead of percentages: first nothing, then, once all gates have held for
    /// the dwell, its reads and writes, by a pin. `reads` and `writes` are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<String>,
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
    /// Seconds that a single secondary of either cluster may be behind, as applications may read from it; 0 leaves it
    /// out.
    pub max_secondary_lag_seconds: f64,
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
            range: None,
            reads: STEPS.to_vec(),
            writes: Vec::new(),
            dwell_seconds: 300,
            min_samples: 200,
            max_error_rate: 0.01,
            max_p99_ratio: 1.5,
            max_lag_seconds: 5.0,
            max_secondary_lag_seconds: 10.0,
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

impl Place {
    /// Everything on new.
    const ALL: Self = Self { reads: Percent::ALL, writes: Percent::ALL };
}

impl Plan {
    /// With what a plan of a range says by itself: it has no steps.
    #[must_use]
    pub fn settled(self) -> Self {
        let is_unsaid = self.range.is_some() && self.reads == STEPS;
        if is_unsaid { Self { reads: Vec::new(), ..self } } else { self }
    }

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
        let has_steps = !self.reads.is_empty() || !self.writes.is_empty();
        let is_of_range = self.range.is_some();
        no(is_of_range && has_steps, "range must stand alone: a range moves as a whole, without steps");
        no(!is_of_range && !has_steps, "reads or writes must have a step");
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
        no(!at_least(self.max_secondary_lag_seconds, 0.0), "max_secondary_lag_seconds must be at least 0");
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
        if self.range.is_some() {
            return vec![Place::ALL];
        }
        let reads = self.reads.iter().map(|&reads| Place { reads, writes: Percent::ZERO });
        let last = self.reads.last().copied().unwrap_or_default();
        reads.chain(self.writes.iter().map(|&writes| Place { reads: last, writes })).collect()
    }

    /// What it moves, in words.
    #[must_use]
    pub fn moved(&self) -> String {
        self.range.as_ref().map_or_else(|| "percentages".to_owned(), |range| format!("range {range}"))
    }

    fn moves_reads(&self) -> bool {
        self.range.is_some() || !self.reads.is_empty()
    }

    /// Whether it moves writes, and not reads alone.
    #[must_use]
    pub fn moves_writes(&self) -> bool {
        self.range.is_some() || !self.writes.is_empty()
    }

    /// Of a place what it moves; nothing of what it leaves to others.
    #[must_use]
    pub fn part(&self, place: Place) -> Place {
        let of = |moves: bool, share: Percent| if moves { share } else { Percent::ZERO };
        Place { reads: of(self.moves_reads(), place.reads), writes: of(self.moves_writes(), place.writes) }
    }

    /// Whether anything that it moves is on new.
    #[must_use]
    pub fn has_begun(&self, place: Place) -> bool {
        self.moves_reads() && place.reads > Percent::ZERO
            || self.moves_writes() && place.writes > Percent::ZERO
    }

    /// Why it may not go up at `now` (Unix milliseconds); `None`: it may.
    #[must_use]
    pub fn shut(&self, now: i64) -> Option<String> {
        let shut = || closed(&self.windows, &self.freezes, self.utc_offset_minutes, now);
        self.override_reason.is_none().then(shut).flatten()
    }

    /// The next step up from `place`.
    pub(super) fn above(&self, place: Place) -> Option<Place> {
        let step =
            self.steps().into_iter().find(|step| step.reads > place.reads || step.writes > place.writes)?;
        Some(Place { reads: step.reads.max(place.reads), writes: step.writes.max(place.writes) })
    }

    /// Where a broken gate brings it from `place`; `None`: nothing that it moves is on new.
    pub(super) fn below(&self, place: Place) -> Option<Place> {
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
