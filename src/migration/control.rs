//! What an operator can ask of a migration, and what the answers look like.
//!
//! The admin API, the CLI and the console all speak in these words; the engine implements [`Control`].

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use super::bypass::{Acknowledge, Acknowledged, BypassReport, BypassWrite, Page};
pub use super::key_ranges::{CountByCluster, RangeOperations, RangeSpec, RangeView};
pub use super::moving::{MOST_ATTEMPTS, PAUSE_MS};
pub use super::pins::{Cluster, Keys, PinCounts, PinList, PinView, Pinned, SetPins};
pub use super::plan::{
    Act, Back, DecisionList, Freeze, Gate, Place, Plan, RampDecision, RampStatus, RampView, Shadow, Stay,
    Steer, Verdict, Window,
};
pub use super::rehearsal::{RehearsalCounts, RehearsalView, SetRehearsal};
pub use super::report::{Conclusion, Identities, VerificationReport};
pub use super::returning::{
    AcknowledgeUnreturned, Unreturned, UnreturnedList, UnreturnedPage, UnreturnedState, UnreturnedView,
    WithoutNew,
};
pub use super::shadow::{DiffReport, SetShadow, ShadowCounts, ShadowView};
pub use super::shapes::{Part, ShapeList, ShapeView, SideLatency};
pub use super::switches::{NamespaceSwitches, SetSwitches, Switches};
pub use super::verification::{Basis, ClusterTime, Compared, EqualUpTo, MOST_PARALLEL, Verification, Verify};
pub use super::views::{
    AuditEvent, Conflict, EventList, Finding, Lag, MigrationView, Mismatch, Placement, PreflightReport,
    Progress, Ramp, Severity, Throttle,
};
use crate::model::percent::Percent;
pub use crate::model::phase::Phase;
use crate::policy::shard_key::ShardKey;
pub use crate::policy::zones::Zone;

/// Who asked for a change, for the audit.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema, PartialEq, Eq)]
pub struct Actor(pub String);

/// By whom a change is asked for, and on what condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct By {
    /// Who asks.
    pub who: Actor,
    /// The epochs at which it is to be made, and at no other; `None` is any.
    pub only_at: Option<Vec<u64>>,
}

impl By {
    /// Without a condition.
    #[must_use]
    pub fn any(who: impl Into<String>) -> Self {
        Self { who: Actor(who.into()), only_at: None }
    }

    /// Whether the change may be made at `epoch`. To be asked while no other change can come between.
    ///
    /// # Errors
    /// [`Refusal::Outdated`].
    pub fn may_change(&self, epoch: u64) -> Result<(), ControlError> {
        if self.only_at.as_ref().is_none_or(|epochs| epochs.contains(&epoch)) {
            return Ok(());
        }
        let detail = format!(
            "If-Match does not name the present epoch, which is \"{epoch}\": the migration has changed since; look \
             at it again and decide anew"
        );
        Err(ControlError::new(Refusal::Outdated, "epoch-changed", detail))
    }
}

/// A migration to be created.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMigration {
    /// Name, unique among migrations: letters, digits, `-` and `_`, at most 64.
    pub name: String,
    /// What moves; all of it together.
    pub namespaces: Vec<NamespaceSpec>,
    /// Ranges of keys that are moved and brought back by name, each alone; 24 at most. They never change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<RangeSpec>,
}

/// One collection that moves.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct NamespaceSpec {
    /// `database.collection`, or a pattern: in the collection, `*` stands for any characters, as in `shop.*` or
    /// `shop.orders_*`. All that a pattern names is part of the migration, also what comes into being later.
    pub namespace: String,
    /// By what new is to shard it: fields in order, each with `1` or `"hashed"`. Without it, it is sharded on
    /// new only if it is there already, empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>, example = json!({ "customer_id": 1, "order_id": 1 }))]
    pub shard_key: Option<ShardKey>,
    /// The field of the top level by which reads and writes are divided between the clusters, such as a tenant's id:
    /// all documents with one value move together. The application names it in its filters and never changes it.
    /// By default it is `_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "customer_id")]
    pub route_key: Option<String>,
    /// Into how many chunks it is cut on new before the copy; four for each shard by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_chunks: Option<u32>,
    /// Which parts of it belong on which shards of new: they are laid there by the copy already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<Zone>,
}

impl NamespaceSpec {
    /// One that is not sharded, or as it is on new.
    #[must_use]
    pub fn plain(namespace: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            shard_key: None,
            route_key: None,
            initial_chunks: None,
            zones: Vec::new(),
        }
    }
}

/// What `complete` needs before the hold period is over, or without a full verification.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Complete {
    /// Do it although the hold period is not over, or no full verification has gone through.
    #[serde(default)]
    pub force: bool,
    /// Why; needed with `force`.
    #[serde(default)]
    pub reason: Option<String>,
}

/// How long a move of writes may hold them, and what it may end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Patience {
    /// How long writes may be held in one try; `None` is as configured.
    pub max_pause_ms: Option<u64>,
    /// After so many tries that were given up because of open transactions, those are ended; `None` is never.
    pub end_transactions_after: Option<u32>,
}

/// Why something was not done. Nothing has changed, unless the detail says that this is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct ControlError {
    /// What kind of refusal.
    pub kind: Refusal,
    /// Stable code, for scripts: lower case with `-`.
    pub code: &'static str,
    /// One sentence: what is the matter and the way out.
    pub detail: String,
    /// Each reason by itself, where there are several.
    pub reasons: Vec<String>,
}

/// Kinds of refusal, each with its HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The request makes no sense (400).
    Invalid,
    /// No such migration (404).
    NotFound,
    /// Does not fit the present state (409).
    Conflict,
    /// The migration is not at the epoch that was asked for (412).
    Outdated,
    /// A cluster or a proxy does not answer (503).
    Unavailable,
}

impl ControlError {
    /// A refusal with one reason.
    #[must_use]
    pub fn new(kind: Refusal, code: &'static str, detail: impl Into<String>) -> Self {
        Self { kind, code, detail: detail.into(), reasons: Vec::new() }
    }

    /// With each reason by itself.
    #[must_use]
    pub fn because(mut self, reasons: Vec<String>) -> Self {
        self.reasons = reasons;
        self
    }
}

/// Everything an operator can do. Repeating a call is harmless.
#[async_trait]
pub trait Control: Send + Sync {
    /// Makes a migration known; changes nothing else.
    async fn create(&self, by: &By, new: NewMigration) -> Result<MigrationView, ControlError>;
    /// All migrations, oldest first.
    async fn list(&self) -> Result<Vec<MigrationView>, ControlError>;
    /// One migration.
    async fn get(&self, name: &str) -> Result<MigrationView, ControlError>;
    /// Looks whether it could start; changes nothing.
    async fn preflight(&self, name: &str) -> Result<PreflightReport, ControlError>;
    /// Starts: prepare, dual write, copy. Answers once dual writing has begun; the copy goes on behind.
    async fn start(&self, by: &By, name: &str) -> Result<MigrationView, ControlError>;
    /// Halts copying and following; application traffic goes on.
    async fn pause(&self, by: &By, name: &str) -> Result<MigrationView, ControlError>;
    /// Ends a pause.
    async fn resume(&self, by: &By, name: &str) -> Result<MigrationView, ControlError>;
    /// Starts a comparison of both sides in the background.
    async fn verify(&self, by: &By, name: &str, how: Verify) -> Result<Verification, ControlError>;
    /// What comparisons have proved so far, to be kept.
    async fn verification(&self, name: &str) -> Result<VerificationReport, ControlError>;
    /// Moves reads; answers when in force.
    async fn set_reads(&self, by: &By, name: &str, percent: Percent) -> Result<Ramp, ControlError>;
    /// Moves authority; answers when in force.
    async fn set_writes(
        &self,
        by: &By,
        name: &str,
        percent: Percent,
        patience: Patience,
    ) -> Result<Ramp, ControlError>;
    /// Holds the slots of keys on one cluster, whatever percentages say; answers when in force.
    async fn pin(&self, by: &By, name: &str, asked: SetPins) -> Result<Pinned, ControlError>;
    /// Lets them go where the percentages say; answers when in force.
    async fn unpin(&self, by: &By, name: &str, asked: Keys) -> Result<Pinned, ControlError>;
    /// What is pinned.
    async fn pins(&self, name: &str) -> Result<PinList, ControlError>;
    /// Switches parts of the data plane off and on.
    async fn switch(&self, by: &By, name: &str, asked: SetSwitches) -> Result<Switches, ControlError>;
    /// Returns all writes, then all reads, to old; what is pinned to new too.
    async fn rollback(&self, by: &By, name: &str) -> Result<Ramp, ControlError>;
    /// The same while new is away, by old's record alone, of everything or of some keys and ranges; what only new has is
    /// named, and brought back later.
    async fn rollback_without_new(
        &self,
        by: &By,
        name: &str,
        asked: WithoutNew,
        only: Option<Keys>,
    ) -> Result<Ramp, ControlError>;
    /// What only new may have acknowledged, and what has become of it.
    async fn unreturned(&self, name: &str, page: UnreturnedPage) -> Result<UnreturnedList, ControlError>;
    /// Notes that its conflicts were looked at: they do not stand in the way of moves to new any more.
    async fn acknowledge_unreturned(
        &self,
        by: &By,
        name: &str,
        asked: AcknowledgeUnreturned,
    ) -> Result<UnreturnedView, ControlError>;
    /// Ends it with new serving.
    async fn complete(&self, by: &By, name: &str, how: Complete) -> Result<MigrationView, ControlError>;
    /// Ends it with old serving; cleans up in the background.
    async fn abort(&self, by: &By, name: &str) -> Result<MigrationView, ControlError>;
    /// Drops the old copies of a completed migration.
    async fn drop_old(&self, by: &By, name: &str) -> Result<MigrationView, ControlError>;
    /// Sets how fast the copy may go.
    async fn set_throttle(&self, by: &By, name: &str, throttle: Throttle) -> Result<Throttle, ControlError>;
    /// How it is going.
    async fn progress(&self, name: &str) -> Result<Progress, ControlError>;
    /// Keys that cannot be made equal now.
    async fn conflicts(&self, name: &str) -> Result<Vec<Conflict>, ControlError>;
    /// Differences that verifications found, newest first, at most 1,000.
    async fn mismatches(&self, name: &str) -> Result<Vec<Mismatch>, ControlError>;
    /// Starts a ramp by plan, in place of the one before.
    async fn start_plan(&self, by: &By, name: &str, plan: Plan) -> Result<RampView, ControlError>;
    /// Halts a ramp by plan, or lets it go on.
    async fn steer_plan(&self, by: &By, name: &str, how: Steer) -> Result<RampView, ControlError>;
    /// Forgets a plan; nothing moves.
    async fn stop_plan(&self, by: &By, name: &str) -> Result<RampView, ControlError>;
    /// How a ramp by plan is going.
    async fn plan(&self, name: &str) -> Result<RampView, ControlError>;
    /// What a ramp decided, newest first.
    async fn decisions(&self, name: &str, page: Page) -> Result<DecisionList, ControlError>;
    /// What is asked, by shape, and how long each cluster takes for it.
    async fn shapes(&self, name: &str, part: Part) -> Result<ShapeList, ControlError>;
    /// Writes that went past the proxy.
    async fn bypass_writes(&self, name: &str, page: Page) -> Result<BypassReport, ControlError>;
    /// Notes that they are known and do not matter: only later ones stand in the way of moves.
    async fn acknowledge_bypass_writes(
        &self,
        by: &By,
        name: &str,
        asked: Acknowledge,
    ) -> Result<Acknowledged, ControlError>;
    /// Sets which share of the reads also runs on the other cluster.
    async fn set_shadow(&self, by: &By, name: &str, asked: SetShadow) -> Result<ShadowView, ControlError>;
    /// Begins a rehearsal of load on new, or ends it.
    async fn set_rehearsal(
        &self,
        by: &By,
        name: &str,
        asked: SetRehearsal,
    ) -> Result<RehearsalView, ControlError>;
    /// How the rehearsal goes, or how the last one went.
    async fn rehearsal(&self, name: &str) -> Result<RehearsalView, ControlError>;
    /// What shadow reads have found, by query shape.
    async fn diffs(&self, name: &str, page: Part) -> Result<DiffReport, ControlError>;
    /// The audit, newest first, at most 1,000.
    async fn events(&self, name: &str) -> Result<Vec<AuditEvent>, ControlError> {
        Ok(self.audit(name, Page::default()).await?.events)
    }
    /// A part of the audit, newest first; without a limit 1,000.
    async fn audit(&self, name: &str, page: Page) -> Result<EventList, ControlError>;
    /// Why the process is not ready to serve; empty when it is.
    async fn not_ready(&self) -> Vec<String>;
}
