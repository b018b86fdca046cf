//! What an operator sees of writes that went past the proxy.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A write that no write of this process accounts for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BypassWrite {
    /// Counted from 1 for each migration.
    pub number: i64,
    /// Unix milliseconds when it was seen.
    pub at: i64,
    /// When it was made, on its cluster's time line: seconds since 1970, a dot, and a counter.
    pub cluster_time: String,
    /// `old` or `new`.
    pub side: String,
    /// `database.collection`.
    pub namespace: String,
    /// The `_id` as extended JSON.
    pub key: String,
    /// `insert`, `update`, `replace` or `delete`.
    pub kind: String,
    /// The other cluster had the authority over the document, so that it was, or is about to be, made as it is
    /// there.
    #[serde(default)]
    pub undone: bool,
    /// With `undone`, what was lost: the document as it was here, as extended JSON, at most 16 KB of it; null
    /// where there was none any more.
    #[serde(default)]
    pub image: Option<String>,
    /// The image is not all of the document.
    #[serde(default)]
    pub image_truncated: bool,
}

/// An operator knows of everything that went past the proxy up to a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Acknowledged {
    /// Writes with this number and lower ones are acknowledged.
    pub up_to: i64,
    /// Writes to old that this acknowledgement adds.
    pub writes: i64,
    /// The last of them: its collection and `_id`; empty where there is none.
    pub latest: String,
    /// Unix milliseconds.
    pub at: i64,
    /// Who.
    pub who: String,
    /// Why they do not matter.
    pub reason: String,
}

/// What `acknowledge` needs.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Acknowledge {
    /// Why these writes do not matter, for the audit.
    pub reason: String,
    /// The number of the last write that the operator has seen: refused if there are later ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_to: Option<i64>,
}

/// Which part of the list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Page {
    /// Only writes with a lower number.
    pub before: Option<i64>,
    /// So many; 100 by default.
    pub limit: Option<u16>,
}

/// What went past the proxy.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct BypassReport {
    /// In the last 24 hours, on both clusters; exact but for the hour that is a day ago.
    pub bypass_writes: u64,
    /// Ever.
    pub bypass_writes_total: u64,
    /// Writes seen since this process began of which nobody can tell whether they went past the proxy.
    pub bypass_writes_unjudged: u64,
    /// Why it stands in the way of moving writes to new; null where it does not.
    pub blocks: Option<String>,
    /// The last acknowledgement.
    pub acknowledged: Option<Acknowledged>,
    /// Newest first. Of the newest 1,000; a burst is listed in part only.
    pub writes: Vec<BypassWrite>,
    /// `before` of the next page; null at the end.
    pub next: Option<i64>,
}
