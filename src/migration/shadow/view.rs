//! What an operator sees of shadow reads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How shadow reads are to run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetShadow {
    /// Share of the reads that also run on the other cluster: 0 to 100, in steps of 0.1; 0 switches it off.
    pub percent: f64,
    /// Examples show values of documents, not only where they differ. Off by default.
    #[serde(default)]
    pub show_values: bool,
    /// Forget what was found so far.
    #[serde(default)]
    pub reset: bool,
}

/// The switch as stored and in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ShadowView {
    /// Share of the reads that also run on the other cluster.
    pub percent: f64,
    /// Examples show values of documents.
    pub show_values: bool,
}

/// Shadow reads in numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ShadowCounts {
    /// Share of the reads that also run on the other cluster.
    pub shadow_percent: f64,
    /// Reads that were in the sample, since the process began.
    pub shadow_sampled: u64,
    /// Reads that were compared to an end.
    pub shadow_compared: u64,
    /// Of those, with the same reply, also in another order where the query allows it.
    pub shadow_equal: u64,
    /// Differed at first, and no longer when they were looked at again.
    pub shadow_transient: u64,
    /// Reads with a difference that stays; null while shadowing is off or nothing has been compared.
    pub shadow_differences: Option<u64>,
    /// Reads that may differ from themselves, which says nothing about the clusters.
    pub shadow_nondeterministic: u64,
    /// Reads whose difference changed at every look.
    pub shadow_unsettled: u64,
    /// Reads that a cluster did not answer in time.
    pub shadow_failed: u64,
    /// Reads in the sample for which there was no room or time, since the process began.
    pub shadow_dropped: u64,
    /// Reads in the sample that are never compared, since the process began.
    pub shadow_skipped: u64,
}

/// How long reads took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LatencyView {
    /// Reads measured.
    pub samples: i64,
    /// Half of them were not slower, in milliseconds; null without any.
    pub p50_ms: Option<f64>,
    /// 95 % of them were not slower.
    pub p95_ms: Option<f64>,
    /// 99 % of them were not slower.
    pub p99_ms: Option<f64>,
}

/// How a cluster gets at the documents of a read, by its `explain` of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccessView {
    /// When it was asked; Unix milliseconds.
    pub at: i64,
    /// `collection` (at least one shard looks at every document), `index`, or `nothing` (it knows without looking).
    pub scan: String,
    /// Documents that it looked at, on all shards together.
    pub documents_examined: i64,
    /// How many of its shards it asked: `one`, `several` or `all`; `unsharded` where there are none.
    pub shards: String,
}

/// Where a document differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExampleField {
    /// The field, with a dot between names.
    pub path: String,
    /// In what way: `value`, `type`, `field_missing`, `field_extra`, `field_order`, `nan`, `negative_zero` or
    /// `decimal128`.
    pub kind: String,
    /// What old has: its type, or the value as extended JSON where values are shown.
    pub old: Option<String>,
    /// What new has.
    pub new: Option<String>,
}

/// One difference that stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Example {
    /// When it was found; Unix milliseconds.
    pub at: i64,
    /// `missing` (new lacks it), `extra` (only new has it), `changed`, `order`, `count`, `values` or `error_code`.
    pub kind: String,
    /// The cluster that served the read.
    pub served_by: String,
    /// The `_id` as extended JSON, where there is one.
    pub key: Option<String>,
    /// Where it differs.
    pub fields: Vec<ExampleField>,
}

/// What reads of one shape came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ShapeDiff {
    /// What stands for the shape: its hash.
    pub shape: String,
    /// `database.collection`.
    pub namespace: String,
    /// The command.
    pub command: String,
    /// The query without its values.
    pub query: String,
    /// Reads in the sample that were looked at.
    pub runs: i64,
    /// With equal replies.
    pub equal: i64,
    /// With the same in another order, which the query allows.
    pub permuted: i64,
    /// With a difference that has gone.
    pub transient: i64,
    /// With a difference that stays.
    pub different: i64,
    /// That may differ from themselves.
    pub nondeterministic: i64,
    /// Whose difference changed at every look.
    pub unsettled: i64,
    /// That a cluster did not answer in time.
    pub failed: i64,
    /// Differences that stay, by kind.
    pub differences: BTreeMap<String, i64>,
    /// When the first was found; Unix milliseconds.
    pub first_seen: Option<i64>,
    /// When the last was found; Unix milliseconds.
    pub last_seen: Option<i64>,
    /// The newest of them.
    pub examples: Vec<Example>,
    /// How long old took.
    pub old: LatencyView,
    /// How long new took.
    pub new: LatencyView,
    /// How old got at the documents of one of them, when it was last asked; null before that.
    pub old_access: Option<AccessView>,
    /// How new did.
    pub new_access: Option<AccessView>,
}

/// What shadow reads have found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DiffReport {
    /// All in numbers.
    #[serde(flatten)]
    pub counts: ShadowCounts,
    /// Reads that were not run, by reason, since the process began.
    pub skipped: BTreeMap<String, u64>,
    /// By shape; those with most differences come first.
    pub shapes: Vec<ShapeDiff>,
    /// `after` of the next page; null when there is none.
    pub next: Option<u64>,
}
