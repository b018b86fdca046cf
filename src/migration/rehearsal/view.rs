//! Rehearsals as operators see them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::migration::shapes::{ShapeView, SideLatency};

/// How a rehearsal is to run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetRehearsal {
    /// How often each read of old also runs on new, on the average: 0.1 to 5, in steps of 0.1; 0 ends it.
    pub factor: f64,
    /// After so many minutes it ends by itself: 1 to 1440; 10 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minutes: Option<u32>,
    /// Why the process ends it by itself.
    #[serde(skip)]
    pub because: Option<String>,
}

/// Rehearsals in numbers, since the process began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct RehearsalCounts {
    /// How often each read of old also runs on new; 0 while there is no rehearsal.
    pub rehearsal_factor: f64,
    /// Repetitions that new answered.
    pub rehearsal_reads: u64,
    /// Repetitions that new did not answer in time, or for a reason of its own.
    pub rehearsal_errors: u64,
    /// Reads and repetitions for which there was no room or time.
    pub rehearsal_dropped: u64,
    /// Reads that are never repeated: they wait, write, join, or are too large.
    pub rehearsal_skipped: u64,
}

/// A rehearsal, or the last one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RehearsalView {
    /// In numbers.
    #[serde(flatten)]
    pub counts: RehearsalCounts,
    /// When it began, Unix milliseconds; null if none has since the process began.
    pub began_at: Option<i64>,
    /// When it ends, or has ended.
    pub ends_at: Option<i64>,
    /// Why it has ended; null while it runs.
    pub ended: Option<String>,
    /// How long old took for what the application asked.
    pub old: SideLatency,
    /// How long new took for the repetitions, to the first reply.
    pub new: SideLatency,
    /// The same by shape.
    pub shapes: Vec<ShapeView>,
}
