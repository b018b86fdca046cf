//! What is asked of a migration, by shape, and how long each cluster takes for it.

use std::time::Duration;

use metrics::gauge;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::control::{ControlError, Refusal};
use super::running::Running;
use crate::model::side::Side;
use crate::policy::latency::Measured;
use crate::state::shapes::{Baseline, Shapes, WINDOW, Watched};
use crate::telemetry::metrics as names;

const MOST_ON_A_PAGE: u16 = 1000;
const ON_A_PAGE: u16 = 100;

/// What one cluster did for a shape.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SideLatency {
    /// Operations that this process ever sent to it, of which these were `errors`.
    pub operations: u64,
    /// Those that failed in a way that speaks about the cluster: a duplicate key does not, a time-out does.
    pub errors: u64,
    /// Operations of the last five minutes that did not fail; the latencies are theirs.
    pub recent_operations: u64,
    /// Operations of the last five minutes that failed.
    pub recent_errors: u64,
    /// Milliseconds that half of them took at most; null without any.
    pub p50_ms: Option<f64>,
    /// Milliseconds that 95 % of them took at most.
    pub p95_ms: Option<f64>,
    /// Milliseconds that 99 % of them took at most.
    pub p99_ms: Option<f64>,
}

/// What both clusters did for one shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ShapeView {
    /// 16 hexadecimal digits, the same in every process; zeros for those that are not told apart.
    pub shape: String,
    /// `database.collection`.
    pub namespace: String,
    /// The command without its values.
    pub text: String,
    /// What old did.
    pub old: SideLatency,
    /// What new did.
    pub new: SideLatency,
    /// How many operations old's latency was taken from before anything was on new; null if it never was.
    pub baseline_samples: Option<i64>,
    /// Milliseconds that 99 % of them took at most.
    pub baseline_p99_ms: Option<f64>,
}

/// A part of the shapes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ShapeList {
    /// Shapes that are told apart.
    pub shape_count: u64,
    /// Operations of shapes beyond the bound of 256; they share one place, the last of the list.
    pub shapes_not_told_apart: u64,
    /// All shapes together, on old.
    pub old: SideLatency,
    /// All shapes together, on new.
    pub new: SideLatency,
    /// By namespace and text.
    pub shapes: Vec<ShapeView>,
    /// Where the next page begins: its `after`; null on the last one.
    pub next: Option<u64>,
}

/// A part of a list that is counted from its begin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Part {
    /// So many are left out.
    pub after: u64,
    /// At most so many.
    pub limit: Option<u16>,
}

fn latency(total: (u64, u64), measured: &Measured) -> SideLatency {
    SideLatency {
        operations: total.0,
        errors: total.1,
        recent_operations: measured.samples(),
        recent_errors: measured.errors,
        p50_ms: measured.quantile_ms(0.5),
        p95_ms: measured.quantile_ms(0.95),
        p99_ms: measured.quantile_ms(0.99),
    }
}

pub(super) fn view(watched: &Watched, now: Duration) -> ShapeView {
    let side = |side| latency(watched.total(side), &watched.window(side, now, WINDOW));
    let baseline = watched.baseline();
    ShapeView {
        shape: format!("{:016x}", watched.hash),
        namespace: watched.namespace.clone(),
        text: watched.text.clone(),
        old: side(Side::Old),
        new: side(Side::New),
        baseline_samples: baseline.map(|Baseline { samples, .. }| samples),
        baseline_p99_ms: baseline.map(|Baseline { p99_ms, .. }| p99_ms),
    }
}

/// All shapes together.
pub(super) fn together(shapes: &Shapes, side: Side, now: Duration) -> SideLatency {
    let (mut total, mut measured) = ((0, 0), Measured::default());
    for watched in shapes.all() {
        let (operations, errors) = watched.total(side);
        total = (total.0 + operations, total.1 + errors);
        measured.add(&watched.window(side, now, WINDOW));
    }
    latency(total, &measured)
}

impl Running {
    /// A part of its shapes; empty before the start and after the end.
    ///
    /// # Errors
    /// A limit that makes no sense.
    pub(super) fn shapes(&self, part: Part, now: Duration) -> Result<ShapeList, ControlError> {
        let limit = part.limit.unwrap_or(ON_A_PAGE);
        if !(1..=MOST_ON_A_PAGE).contains(&limit) {
            let detail = format!("limit must be a whole number from 1 to {MOST_ON_A_PAGE}");
            return Err(ControlError::new(Refusal::Invalid, "invalid-limit", detail));
        }
        let Some(active) = self.active.lock().clone() else { return Ok(ShapeList::default()) };
        let all = active.shapes.all();
        let after = usize::try_from(part.after).unwrap_or(usize::MAX).min(all.len());
        let page = &all[after..(after + usize::from(limit)).min(all.len())];
        let end = after + page.len();
        Ok(ShapeList {
            shape_count: active.shapes.count(),
            shapes_not_told_apart: active.shapes.not_told_apart(),
            old: together(&active.shapes, Side::Old, now),
            new: together(&active.shapes, Side::New, now),
            shapes: page.iter().map(|watched| view(watched, now)).collect(),
            next: (end < all.len()).then_some(end as u64),
        })
    }

    /// Publishes what all shapes together say, under the names of [`ShapeList`].
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub(super) fn tell_shapes(&self, migration: &str, now: Duration) {
        let Some(active) = self.active.lock().clone() else { return };
        let of = |name: &'static str| gauge!(name, "migration" => migration.to_owned());
        of(names::MIGRATION_SHAPE_COUNT).set(active.shapes.count() as f64);
        of(names::MIGRATION_SHAPES_NOT_TOLD_APART).set(active.shapes.not_told_apart() as f64);
        for side in Side::BOTH {
            let seen = together(&active.shapes, side, now);
            let set = |name: &'static str, value: f64| {
                gauge!(name, "migration" => migration.to_owned(), "cluster" => side.as_str()).set(value);
            };
            // Without samples there is no latency, which must not look like a short one.
            let or_nan = |value: Option<f64>| value.unwrap_or(f64::NAN);
            set(names::MIGRATION_SHAPE_OPERATIONS, seen.operations as f64);
            set(names::MIGRATION_SHAPE_ERRORS, seen.errors as f64);
            set(names::MIGRATION_SHAPE_RECENT_OPERATIONS, seen.recent_operations as f64);
            set(names::MIGRATION_SHAPE_RECENT_ERRORS, seen.recent_errors as f64);
            set(names::MIGRATION_SHAPE_P50, or_nan(seen.p50_ms));
            set(names::MIGRATION_SHAPE_P95, or_nan(seen.p95_ms));
            set(names::MIGRATION_SHAPE_P99, or_nan(seen.p99_ms));
        }
    }
}
