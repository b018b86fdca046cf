//! Which reads may also run on the other cluster, and how.

use bson::RawDocument;
use bson::raw::{RawBsonRef, RawDocumentBuf, cstr};
use bson::rawdoc;

use super::answer::{Answer, Terms};
use super::ends::Cut;
use super::showing::shows;
use super::sorting::Sort;
use super::stages::{mentions, terms_of};
use crate::policy::reads::{is_change_stream, joins};

/// What may be done with a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Eligible {
    /// Run and compare it on these terms.
    Run(Terms),
    /// It may differ from itself: counted apart, not run.
    Nondeterministic(Reason),
    /// Not run.
    Skip(Reason),
}

/// Why a read is not compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It is none of `find`, `aggregate`, `count` and `distinct`.
    Command,
    /// It waits for what is to come.
    Tailable,
    /// It is an `explain`.
    Explain,
    /// It reads other collections too, which the other cluster need not have.
    Joins,
    /// It shows a server's state, or a search index.
    ServerState,
    /// Its stages or fields are not understood.
    NotUnderstood,
    /// It writes.
    Writes,
    /// The history of its collection has not been copied yet.
    NotCopied,
    /// It or its reply is larger than what is kept.
    TooLarge,
    /// Documents at random.
    Sample,
    /// It asks for the time, or for random numbers.
    TimeOrChance,
    /// It runs code, which may do anything.
    Code,
    /// It takes a part of a list that is in no order.
    LimitWithoutSort,
    /// It takes a part of a list in which several documents stand at one place, and does not show which.
    LimitWithTies,
    /// Its result depends on an order that it does not ask for.
    ByOrder,
    /// It asks how many documents there are at a glance, which servers estimate.
    Estimate,
    /// It shows where a server keeps documents.
    RecordIds,
}

impl Reason {
    /// Every reason, in order.
    pub const ALL: [Self; 17] = [
        Self::Command,
        Self::Tailable,
        Self::Explain,
        Self::Joins,
        Self::ServerState,
        Self::NotUnderstood,
        Self::Writes,
        Self::NotCopied,
        Self::TooLarge,
        Self::Sample,
        Self::TimeOrChance,
        Self::Code,
        Self::LimitWithoutSort,
        Self::LimitWithTies,
        Self::ByOrder,
        Self::Estimate,
        Self::RecordIds,
    ];

    /// As reports name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Command => "other_command",
            Self::Tailable => "tailable",
            Self::Explain => "explain",
            Self::Joins => "joins",
            Self::ServerState => "server_state",
            Self::NotUnderstood => "not_understood",
            Self::Writes => "writes",
            Self::NotCopied => "not_copied",
            Self::TooLarge => "too_large",
            Self::Sample => "sample",
            Self::TimeOrChance => "time_or_chance",
            Self::Code => "code",
            Self::LimitWithoutSort => "limit_without_sort",
            Self::LimitWithTies => "limit_with_ties",
            Self::ByOrder => "by_order",
            Self::Estimate => "estimate",
            Self::RecordIds => "record_ids",
        }
    }

    /// Whether two runs on one cluster may differ.
    #[must_use]
    pub const fn is_nondeterministic(self) -> bool {
        !matches!(
            self,
            Self::Command
                | Self::Tailable
                | Self::Explain
                | Self::Joins
                | Self::ServerState
                | Self::NotUnderstood
                | Self::Writes
                | Self::NotCopied
                | Self::TooLarge
        )
    }
}

const TIME_OR_CHANCE: [&str; 7] =
    ["$$NOW", "$$CLUSTER_TIME", "$rand", "$sampleRate", "$$USER_ROLES", "$createObjectId", "$currentDate"];
/// Documents of a first batch whose size is not said.
const FIRST_BATCH: u64 = 101;
const CODE: [&str; 3] = ["$where", "$function", "$accumulator"];

/// Decides about the read `body`, whose command is `name`.
#[must_use]
pub fn decide(name: &str, body: &RawDocument) -> Eligible {
    match decided(name, body) {
        Ok(terms) => Eligible::Run(terms),
        Err(reason) if reason.is_nondeterministic() => Eligible::Nondeterministic(reason),
        Err(reason) => Eligible::Skip(reason),
    }
}

fn decided(name: &str, body: &RawDocument) -> Result<Terms, Reason> {
    if !matches!(name, "find" | "aggregate" | "count" | "distinct") {
        return Err(Reason::Command);
    }
    let flag = |name: &str| matches!(body.get(name), Ok(Some(RawBsonRef::Boolean(true))));
    if flag("tailable") || flag("awaitData") || is_change_stream(body) {
        return Err(Reason::Tailable);
    }
    if flag("explain") {
        return Err(Reason::Explain);
    }
    let whole = RawBsonRef::Document(body);
    if mentions(whole, &["$out", "$merge"]) {
        return Err(Reason::Writes);
    }
    if joins(body) {
        return Err(Reason::Joins);
    }
    if mentions(whole, &TIME_OR_CHANCE) {
        return Err(Reason::TimeOrChance);
    }
    if mentions(whole, &CODE) {
        return Err(Reason::Code);
    }
    match name {
        "find" => of_find(body),
        "aggregate" => {
            let pipeline = body.get_array("pipeline").map_err(|_| Reason::NotUnderstood)?;
            terms_of(pipeline, is_collated(body))
        }
        "count" => of_count(body),
        // Of values that a collation has for one, the first that is met is shown.
        _ if is_collated(body) => Err(Reason::ByOrder),
        _ => Ok(Terms::default()),
    }
}

fn of_find(body: &RawDocument) -> Result<Terms, Reason> {
    if matches!(body.get("showRecordId"), Ok(Some(RawBsonRef::Boolean(true)))) {
        return Err(Reason::RecordIds);
    }
    let sort = body.get_document("sort").ok().and_then(Sort::of);
    let sort = sort.map(|sort| sort.under_collation(is_collated(body)));
    let cut = cut_of_find(body);
    if cut.is_some() && sort.is_none() && !names_one(body) {
        return Err(Reason::LimitWithoutSort);
    }
    let hidden = sort.as_ref().is_some_and(|sort| !shows(body, sort));
    Ok(Terms { sort, cut, hidden, rounds: false })
}

/// Which part of all that it asks for a `find` shows; `None`: all.
fn cut_of_find(body: &RawDocument) -> Option<Cut> {
    let mut cut = is_set(body, "skip").then(|| Cut::default().skipping(None));
    if is_set(body, "limit") {
        cut = Some(cut.unwrap_or_default().limited(count(body, "limit")));
    }
    if matches!(body.get("singleBatch"), Ok(Some(RawBsonRef::Boolean(true)))) {
        // There is nothing behind the first batch.
        let batch = if is_set(body, "batchSize") { count(body, "batchSize") } else { Some(FIRST_BATCH) };
        cut = Some(cut.unwrap_or_default().limited(batch));
    }
    cut
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
fn count(body: &RawDocument, name: &str) -> Option<u64> {
    crate::model::number::number(body, name).map(|number| number.abs() as u64)
}

/// Whether strings are compared as a language has it.
fn is_collated(body: &RawDocument) -> bool {
    let collation = body.get_document("collation").ok().filter(|collation| !collation.is_empty());
    collation.is_some_and(|collation| collation.get_str("locale").ok() != Some("simple"))
}

/// Whether its filter asks for one `_id`: there is no more than one document then, as with `findOne` by `_id`.
fn names_one(body: &RawDocument) -> bool {
    if is_collated(body) {
        return false;
    }
    let filter = body.get_document("filter").ok();
    filter.is_some_and(|filter| match filter.get("_id") {
        Ok(Some(RawBsonRef::Document(asked))) => {
            let first = asked.iter().next().and_then(Result::ok);
            first.is_none_or(|(name, _)| !name.as_str().starts_with('$') || name.as_str() == "$eq")
        }
        Ok(Some(RawBsonRef::RegularExpression(_)) | None) | Err(_) => false,
        Ok(Some(_)) => !is_set(body, "skip"),
    })
}

fn of_count(body: &RawDocument) -> Result<Terms, Reason> {
    let asks = body.get_document("query").is_ok_and(|query| !query.is_empty());
    if !asks && !matches!(body.get("hint"), Ok(Some(_))) {
        return Err(Reason::Estimate);
    }
    Ok(Terms::default())
}

fn is_set(body: &RawDocument, name: &str) -> bool {
    crate::model::number::number(body, name).is_some_and(|number| number != 0.0)
}

/// What belongs to one client, one cluster or one moment.
const LEFT_OUT: [&str; 14] = [
    "$db",
    "$clusterTime",
    "$readPreference",
    "lsid",
    "txnNumber",
    "autocommit",
    "startTransaction",
    "readConcern",
    "maxTimeMS",
    "noCursorTimeout",
    "writeConcern",
    "comment",
    "mayBypassWriteBlocking",
    "$configServerState",
];

/// The read `body` as it is sent again: whole batches, at this read concern, given up by the server after `millis`, under
/// `comment`.
#[must_use]
pub fn again(body: &RawDocument, concern: &RawDocument, millis: i64, comment: &str) -> RawDocumentBuf {
    let single = matches!(body.get("singleBatch"), Ok(Some(RawBsonRef::Boolean(true))));
    let mut again = RawDocumentBuf::new();
    for (name, value) in body.iter().flatten() {
        match name.as_str() {
            "cursor" => again.append(name, rawdoc! {}),
            "batchSize" if !single => {}
            left_out if LEFT_OUT.contains(&left_out) => {}
            _ => again.append(name, value),
        }
    }
    again.append(cstr!("readConcern"), concern);
    again.append(cstr!("maxTimeMS"), millis);
    // So that whoever watches the servers sees what it is.
    again.append(cstr!("comment"), comment);
    again
}

/// What the reply `body` says; `None`: it is a part of a cursor with more to come, or nothing that is understood.
#[must_use]
pub fn whole_answer(body: &RawDocument) -> Option<Answer> {
    if crate::model::number::number(body, "ok") != Some(1.0) {
        return body.get_i32("code").ok().map(Answer::Error);
    }
    if let Ok(cursor) = body.get_document("cursor") {
        let ends = crate::model::number::number(cursor, "id") == Some(0.0);
        return ends.then(|| batch(cursor, "firstBatch").map(Answer::Documents)).flatten();
    }
    if let Ok(values) = body.get_array("values") {
        return Some(Answer::Values(values.into_iter().flatten().map(Into::into).collect()));
    }
    let count = body.get("n").ok().flatten()?;
    Some(Answer::Count(count.into()))
}

/// The documents of a batch.
#[must_use]
pub fn batch(cursor: &RawDocument, field: &str) -> Option<Vec<RawDocumentBuf>> {
    let batch = cursor.get_array(field).ok()?;
    batch.into_iter().map(|item| Some(item.ok()?.as_document()?.to_owned())).collect()
}

/// Whether an error says nothing about the documents: the server was busy, changing or told to stop.
#[must_use]
pub fn is_passing(code: i32) -> bool {
    // MaxTimeMSExpired, ExceededTimeLimit, Interrupted and its kin, LockTimeout, CursorNotFound, CursorKilled,
    // snapshot too old or unavailable, StaleConfig, query plan killed, memory limits, stream of a step-down.
    const PASSING: [i32; 22] =
        [6, 7, 24, 43, 46, 50, 63, 89, 91, 133, 134, 150, 175, 189, 202, 237, 239, 246, 262, 13388, 9001, 96];
    PASSING.contains(&code) || crate::policy::failover::is_state_change(code)
}

#[cfg(test)]
#[path = "eligible_tests.rs"]
mod tests;
