//! What the answers to an operator look like.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::percent::Percent;
use crate::model::phase::Phase;
use crate::policy::shard_key::ShardKey;

use super::control::{
    NamespaceSpec, PinCounts, RangeView, RehearsalCounts, ShadowCounts, Switches, UnreturnedView,
    Verification,
};

/// Where a collection lies on new, as it was laid out at the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Placement {
    /// `database.collection`.
    pub namespace: String,
    /// By what it was sharded for this migration; null when it was not.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub shard_key: Option<ShardKey>,
    /// By which field its reads and writes are divided between the clusters; null when it is `_id`.
    #[serde(default)]
    pub route_key: Option<String>,
    /// The shard of its database, where it lies unless it is sharded; null when new is a replica set.
    #[serde(default)]
    pub primary_shard: Option<String>,
}

/// A migration as listed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MigrationView {
    /// Its name.
    pub name: String,
    /// What moves.
    pub namespaces: Vec<NamespaceSpec>,
    /// Where it is in its life.
    pub phase: Phase,
    /// Copying and following are halted by an operator.
    pub paused: bool,
    /// Share of reads served by new; pinned slots left aside.
    #[schema(value_type = f64, minimum = 0, maximum = 100)]
    pub reads_percent: Percent,
    /// Share of documents whose authority is new; pinned slots left aside.
    #[schema(value_type = f64, minimum = 0, maximum = 100)]
    pub writes_percent: Percent,
    /// Version of its routing; also the ETag.
    pub epoch: u64,
    /// Unix milliseconds.
    pub created_at: i64,
    /// Why it failed, when it did.
    pub failure: Option<String>,
    /// How fast the copy may go.
    #[serde(default)]
    pub throttle: Throttle,
    /// The last full verification, if one ran.
    pub verification: Option<Verification>,
    /// The last comparison of a part, or by digests, if one ran.
    #[serde(default)]
    pub spot_check: Option<Verification>,
    /// Where its collections lie on new; empty before the start.
    #[serde(default)]
    pub placements: Vec<Placement>,
    /// Its ranges of keys, and where each is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<RangeView>,
}

/// What a look before the start found.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct PreflightReport {
    /// Nothing below refuses the start.
    pub ok: bool,
    /// What was looked at, one line each.
    pub findings: Vec<Finding>,
}

/// One thing that preflight found.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Stable code, for scripts.
    pub code: String,
    /// `database.collection`, or empty for a whole cluster.
    pub namespace: String,
    /// What is the matter.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Writes move in one step, or another limit that the operator should know.
    Limits,
    /// The migration cannot start.
    Refused,
}

/// The answer to a change of percentage: it is in force everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ramp {
    /// The percentage now in force.
    #[schema(value_type = f64, minimum = 0, maximum = 100)]
    pub percent: Percent,
    /// The epoch that brought it.
    pub epoch: u64,
    /// How long writes were held, in milliseconds (the successful attempt).
    pub pause_ms: u64,
    /// How many times a fence was tried.
    pub attempts: u32,
    /// Open transactions that were ended for it, as `end_transactions_after` allowed.
    #[serde(default)]
    pub ended_transactions: u32,
    /// How long the whole move took, all tries and both clusters' records among it, in milliseconds.
    #[serde(default)]
    pub elapsed_ms: u64,
    /// Pins to new that a rollback of everything removed.
    #[serde(default)]
    pub removed_pins: u32,
    /// Of a rollback without new: documents that are named, as only new may have acknowledged what they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreturned: Option<u64>,
    /// Whether those are all; if not, the others are named when new is there again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all_named: bool,
}

/// How fast the copy may go; `None` is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Throttle {
    /// Documents each second.
    #[serde(default)]
    pub documents_per_second: Option<f64>,
    /// Megabytes (10^6) each second.
    #[serde(default)]
    pub megabytes_per_second: Option<f64>,
}

/// The limits, or `none`.
impl std::fmt::Display for Throttle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.documents_per_second, self.megabytes_per_second) {
            (None, None) => f.write_str("none"),
            (Some(documents), None) => write!(f, "{documents} documents/s"),
            (None, Some(megabytes)) => write!(f, "{megabytes} MB/s"),
            (Some(documents), Some(megabytes)) => write!(f, "{documents} documents/s and {megabytes} MB/s"),
        }
    }
}

/// How far one direction is behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Lag {
    /// Seconds behind for changes made on old; null while unknown.
    pub old_to_new: Option<f64>,
    /// Seconds behind for changes made on new; null while unknown.
    pub new_to_old: Option<f64>,
}

/// How a migration is going.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Where it is in its life.
    pub phase: Phase,
    /// Halted by an operator.
    pub paused: bool,
    /// Share of reads served by new.
    #[schema(value_type = f64, minimum = 0, maximum = 100)]
    pub reads_percent: Percent,
    /// Share of documents whose authority is new.
    #[schema(value_type = f64, minimum = 0, maximum = 100)]
    pub writes_percent: Percent,
    /// The routing epoch.
    pub epoch: u64,
    /// Documents of history copied so far.
    pub copied_documents: u64,
    /// Documents of history there are, by the servers' counts.
    pub total_documents: u64,
    /// Bytes copied so far.
    pub copied_bytes: u64,
    /// Bytes there are, by the servers' counts.
    pub total_bytes: u64,
    /// Documents each second over the last seconds.
    pub documents_per_second: f64,
    /// Bytes each second over the last seconds.
    pub bytes_per_second: f64,
    /// How fast the copy may go.
    #[serde(default)]
    pub throttle: Throttle,
    /// Since the start; null before it.
    pub elapsed_seconds: Option<f64>,
    /// Until the copy ends, then until the streams have caught up, at the present rate; null while unknown or
    /// done.
    pub remaining_seconds: Option<f64>,
    /// In words, when changes are followed more slowly than they are made: both rates.
    pub remaining_note: Option<String>,
    /// The worse direction; null while unknown.
    pub lag_seconds: Option<f64>,
    /// Each direction.
    pub lag: Lag,
    /// Documents made equal by the streams.
    pub converged: u64,
    /// Documents that a verification found different and made equal.
    pub repaired: u64,
    /// Inline mirror writes that failed or were late; the streams made up for them.
    pub mirror_failures: u64,
    /// How often an invariant of the protocol did not hold. It never should; see `blocked_by` and the log.
    #[serde(default)]
    pub invariant_violations: u64,
    /// Reads by `_id` on sharded collections that went to the one shard where the document lies, since the
    /// process began.
    #[serde(default)]
    pub targeted_reads: u64,
    /// The same that went to all shards.
    #[serde(default)]
    pub broadcast_reads: u64,
    /// Keys that cannot be made equal now.
    pub conflicts: u64,
    /// Writes of the last 24 h, on both clusters, that went past the proxy.
    pub bypass_writes: u64,
    /// The same, ever.
    pub bypass_writes_total: u64,
    /// Changes of which nobody can tell whether they went past the proxy, since the process began.
    pub bypass_writes_unjudged: u64,
    /// Shadow reads.
    #[serde(default, flatten)]
    pub shadow: ShadowCounts,
    /// Rehearsals.
    #[serde(default, flatten)]
    pub rehearsal: RehearsalCounts,
    /// How far back old's oplog reaches; null while unknown.
    pub oplog_window_seconds: Option<f64>,
    /// Every gate for moving writes is measured and passed.
    pub can_cut_over: bool,
    /// Why not, in words.
    pub blocked_by: Vec<String>,
    /// The last full verification, if one ran.
    pub verification: Option<Verification>,
    /// The last comparison of a part, or by digests, if one ran.
    #[serde(default)]
    pub spot_check: Option<Verification>,
    /// Where its collections lie on new; empty before the start.
    #[serde(default)]
    pub placements: Vec<Placement>,
    /// Its ranges of keys, and where each is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<RangeView>,
    /// Keys that are pinned, in numbers.
    #[serde(default)]
    pub pins: PinCounts,
    /// What is switched off.
    #[serde(default)]
    pub switches: Switches,
    /// The last rollback without new; null when there was none.
    #[serde(default)]
    pub unreturned: Option<UnreturnedView>,
}

/// A key that cannot be made equal now.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Conflict {
    /// `database.collection`.
    pub namespace: String,
    /// The `_id` as extended JSON.
    pub key: String,
    /// What stands in the way.
    pub error: String,
    /// Unix milliseconds.
    pub since: i64,
    /// How often it was tried.
    pub tries: u64,
}

/// A real difference that a verification found.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Mismatch {
    /// `database.collection`.
    pub namespace: String,
    /// The `_id` as extended JSON.
    pub key: String,
    /// `missing_on_mirror`, `extra_on_mirror` or `content`.
    pub kind: String,
    /// Of a document whose content differs: where, as paths of fields, the first twenty.
    #[serde(default)]
    pub paths: Vec<String>,
    /// It has been made equal since.
    pub repaired: bool,
    /// Unix milliseconds.
    pub at: i64,
}

/// The audit, or a part of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct EventList {
    /// Newest first; what happened in one millisecond is never divided.
    pub events: Vec<AuditEvent>,
    /// `before` of the next page; null when there are no older ones.
    #[serde(default)]
    pub next: Option<i64>,
}

/// One line of the audit.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditEvent {
    /// Unix milliseconds.
    pub at: i64,
    /// Who asked.
    pub who: String,
    /// What was asked.
    pub what: String,
    /// State before.
    pub from: String,
    /// State after.
    pub to: String,
    /// How it ended.
    pub result: String,
    /// How long it took, in milliseconds; null for what the process noted by itself, and for events of earlier versions.
    #[serde(default)]
    pub elapsed_ms: Option<u64>,
}
