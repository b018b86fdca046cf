//! What the answers about a rollback without new look like.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::migration::pins::{Keys, named};

/// What a rollback without new needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WithoutNew {
    /// Why new is not waited for; kept in the audit.
    pub reason: String,
}

impl WithoutNew {
    /// For the audit.
    pub(in crate::migration) fn described(&self, only: Option<&Keys>) -> String {
        let part = only.map(|only| format!(" of {}", named(only))).unwrap_or_default();
        format!("rollback without new{part}: {}", self.reason.trim())
    }
}

/// How far bringing back is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnreturnedState {
    /// New is away; old serves everything.
    WaitingForNew,
    /// New is there, and what only it has is being brought back.
    BringingBack,
    /// Everything is back, or kept where both had changed.
    Done,
}

/// The last rollback without new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UnreturnedView {
    /// When it was; Unix milliseconds.
    pub since: i64,
    /// Why.
    pub reason: String,
    /// How far bringing back is.
    pub state: UnreturnedState,
    /// What keeps it from going on.
    #[serde(default)]
    pub problem: Option<String>,
    /// Documents that were named at once, as only new may have acknowledged what they were.
    pub named: i64,
    /// Whether those were all; if not, the others are named when new is there again.
    pub all_named: bool,
    /// Documents that were brought back.
    pub brought_back: i64,
    /// Documents that old had as new has them.
    pub on_both: i64,
    /// Documents that had changed on both: what old has stands, and what new had is kept.
    pub conflicts: i64,
    /// Why the conflicts need not stand in the way of moving writes to new any more, once an operator has said so.
    #[serde(default)]
    pub acknowledged: Option<String>,
}

impl UnreturnedView {
    /// Why writes may not move to new yet: conflicts that nobody has looked at.
    #[must_use]
    pub fn in_the_way(&self, name: &str) -> Option<String> {
        let stands = self.conflicts > 0 && self.acknowledged.is_none();
        stands.then(|| {
            format!(
                "{} documents had changed on both clusters when what only new had was brought back; old's state stands. Look \
                 at them (unreturned {name}), write what is missing, then unreturned {name} --acknowledge \"...\"",
                self.conflicts
            )
        })
    }
}

/// That conflicts of a rollback without new were looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AcknowledgeUnreturned {
    /// What was done about them; kept in the audit.
    pub reason: String,
}

/// A document that only new may have acknowledged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Unreturned {
    /// `database.collection`.
    pub namespace: String,
    /// The `_id` as extended JSON.
    pub key: String,
    /// `named`, `brought_back`, `on_both` or `conflict`.
    pub state: String,
    /// Of a conflict, in words: why it was not brought back.
    #[serde(default)]
    pub why: Option<String>,
    /// Of a conflict: what new had, as extended JSON, up to 16 KB of it; null where new had removed the document. All
    /// of it is kept in `reshard.unreturned`.
    #[serde(default)]
    pub on_new: Option<String>,
}

/// A part of what only new may have acknowledged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UnreturnedList {
    /// In no order that means anything.
    pub documents: Vec<Unreturned>,
    /// `after` of the next page; null on the last.
    #[serde(default)]
    pub next: Option<String>,
}

/// Which part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnreturnedPage {
    /// After this one: `next` of the page before.
    pub after: Option<String>,
    /// At most so many; 100 by default.
    pub limit: Option<u16>,
}
