//! Ramps by plan: what is stored of one, and what an operator sees.

use bson::raw::cstr;
use bson::{doc, rawdoc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::control::Page;
use crate::model::percent::Percent;
pub use crate::policy::calendar::{Freeze, Window};
pub use crate::policy::ramp::{Act, Back, Gate, Place, Plan, Shadow, State, Verdict};
pub use crate::policy::ramp_moves::Stay;
use crate::state::record::DATABASE;
use crate::state::records::{RecordError, Records, first_batch};
use crate::state::shapes::StoredBaseline;

/// Collection of [`RampDecision`]s.
const DECISIONS: &str = "decisions";
/// Decisions that are kept of one migration; a later one takes the place of the oldest.
const MOST_DECISIONS: i64 = 5000;
/// Decisions on a page, unless asked otherwise.
const ON_A_PAGE: u16 = 100;

/// The result of a decision that is being followed: it is stored before anything moves, so that a process that dies in
/// the middle leaves a trace of what it tried.
pub const UNDER_WAY: &str = "under way";

/// A plan, as stored with its migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredPlan {
    /// What is to be reached, and on what conditions.
    pub plan: Plan,
    /// What is remembered from look to look.
    pub state: State,
    /// All steps have been reached and held.
    #[serde(default)]
    pub done: bool,
    /// Decisions so far.
    #[serde(default)]
    pub decisions: i64,
    /// Who asked for it.
    pub by: String,
    /// Unix milliseconds.
    pub since: i64,
    /// When an operator let it go on last; Unix milliseconds, 0 for never.
    #[serde(default)]
    pub resumed: i64,
    /// Where it has been, oldest first; the last is where it is.
    #[serde(default)]
    pub stays: Vec<Stay>,
}

/// Where a ramp is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RampStatus {
    /// It looks at its gates and goes up as they hold.
    Running,
    /// An operator has halted it.
    Paused,
    /// It came down too often to go up by itself.
    Stopped,
    /// All steps are reached and held.
    Done,
}

/// A ramp by plan, as it is now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RampView {
    /// Where it is.
    pub status: RampStatus,
    /// What is to be reached, and on what conditions.
    pub plan: Plan,
    /// Who asked for it.
    pub by: String,
    /// When; Unix milliseconds.
    pub since: i64,
    /// Share of reads on new, of a plan of a range: of that range, 0 or 100; in a dry run, where it would be.
    #[schema(value_type = f64, minimum = 0, maximum = 100)]
    pub reads_percent: Percent,
    /// Share of writes on new, likewise.
    #[schema(value_type = f64, minimum = 0, maximum = 100)]
    pub writes_percent: Percent,
    /// Seconds that all gates have held at this step.
    pub dwelt_seconds: u64,
    /// How often it came down.
    pub setbacks: u32,
    /// What the last look said; empty before the first.
    pub gates: Vec<Gate>,
    /// What it waits for, in words.
    pub why: String,
    /// Where it has been since it began, oldest first, and when it got there and left; the last 100. In a dry run, where
    /// it would have been.
    #[serde(default)]
    pub steps: Vec<Stay>,
}

/// One decision of a ramp, with its numbers. A hold is recorded when its gates say something else than before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RampDecision {
    /// Counted from 1 for each migration.
    pub number: i64,
    /// Unix milliseconds.
    pub at: i64,
    /// The number of the look at the gates that it came from, counted from 1 for each plan, holds that are not
    /// recorded among them.
    #[serde(default)]
    pub look: i64,
    /// The first look at broken gates since all of them held; null while none is broken.
    #[serde(default)]
    pub first_broken_look: Option<i64>,
    /// `hold`, `up`, `down` or `done`.
    pub act: String,
    /// It was only decided, and nothing moved.
    pub dry_run: bool,
    /// Where it was.
    pub from: Place,
    /// Where it went; null for a hold.
    #[serde(default)]
    pub to: Option<Place>,
    /// When `from` was reached, or the plan found it there; Unix milliseconds.
    #[serde(default)]
    pub reached_at: Option<i64>,
    /// When `from` was left; null while it is not.
    #[serde(default)]
    pub left_at: Option<i64>,
    /// Why.
    pub why: String,
    /// How it ended: `ok`, or why nothing moved, or all of it did not. `under way` until that is known; `cut off` if the
    /// process ended before.
    pub result: String,
    /// The gates, with their numbers.
    pub gates: Vec<Gate>,
}

/// A part of the decisions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DecisionList {
    /// Newest first.
    pub decisions: Vec<RampDecision>,
    /// Where the next page begins: its `before`; null on the last one.
    pub next: Option<i64>,
}

/// What to do with a plan that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steer {
    /// It moves nothing until it is resumed.
    Pause,
    /// It goes on, also after too many setbacks.
    Resume,
}

/// The words of an act, and where it leads.
#[must_use]
pub fn words(act: Act) -> (&'static str, Option<Place>) {
    match act {
        Act::Hold => ("hold", None),
        Act::Up(to) => ("up", Some(to)),
        Act::Down(to) => ("down", Some(to)),
        Act::Done => ("done", None),
    }
}

impl StoredPlan {
    /// Where it is.
    #[must_use]
    pub fn status(&self) -> RampStatus {
        if self.done {
            RampStatus::Done
        } else if self.state.paused {
            RampStatus::Paused
        } else if self.state.setbacks > self.plan.max_setbacks {
            RampStatus::Stopped
        } else {
            RampStatus::Running
        }
    }
}

/// Stores a decision.
///
/// # Errors
/// [`RecordError`].
pub async fn record(records: &Records, migration: &str, decision: &RampDecision) -> Result<(), RecordError> {
    let mut fields =
        bson::serialize_to_document(decision).map_err(|error| RecordError::Malformed(error.to_string()))?;
    fields.insert("migration", migration);
    let id = id_of(migration, decision.number);
    records.change(DATABASE, DECISIONS, doc! { "_id": id }, doc! { "$set": fields }, true).await.map(|_| ())
}

/// Stores how a decision ended that another process was following when it ended.
///
/// # Errors
/// [`RecordError`].
pub async fn conclude(
    records: &Records,
    migration: &str,
    number: i64,
    result: &str,
) -> Result<(), RecordError> {
    let under_way = doc! { "_id": id_of(migration, number), "number": number, "result": UNDER_WAY };
    let ended = doc! { "$set": { "result": result } };
    records.change(DATABASE, DECISIONS, under_way, ended, false).await.map(|_| ())
}

fn id_of(migration: &str, number: i64) -> String {
    format!("{migration}/{}", number % MOST_DECISIONS)
}

/// A part of the decisions, newest first.
///
/// # Errors
/// [`RecordError`].
pub async fn decisions(records: &Records, migration: &str, page: Page) -> Result<DecisionList, RecordError> {
    let limit = i32::from(page.limit.unwrap_or(ON_A_PAGE));
    let mut filter = rawdoc! { "migration": migration };
    if let Some(before) = page.before {
        filter.append(cstr!("number"), rawdoc! { "$lt": before });
    }
    let body = rawdoc! {
        "find": DECISIONS, "filter": filter, "sort": { "number": -1 }, "limit": limit + 1, "batchSize": limit + 2,
        "readConcern": { "level": "majority" },
    };
    let reply = records.read(DATABASE, body).await?;
    let found = first_batch(&reply.body).map_err(RecordError::Malformed)?;
    let read = |raw: &bson::RawDocumentBuf| {
        bson::deserialize_from_slice(raw.as_bytes())
            .map_err(|error| RecordError::Malformed(error.to_string()))
    };
    let mut decisions = found.iter().map(read).collect::<Result<Vec<RampDecision>, _>>()?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = decisions.len() > limit;
    decisions.truncate(limit);
    let next = decisions.last().map(|last| last.number).filter(|_| more);
    Ok(DecisionList { decisions, next })
}

/// What old did before anything was on new, as stored.
pub type Baselines = Vec<StoredBaseline>;
