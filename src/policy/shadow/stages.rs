//! What the stages of a pipeline say about its result.

use bson::RawDocument;
use bson::raw::RawBsonRef;

use super::answer::Terms;
use super::eligible::Reason;
use super::ends::Cut;
use super::sorting::Sort;

/// Stages that show a server's own state.
const SERVER_STATE: [&str; 13] = [
    "$collStats",
    "$indexStats",
    "$planCacheStats",
    "$currentOp",
    "$listSessions",
    "$listLocalSessions",
    "$changeStream",
    "$search",
    "$searchMeta",
    "$vectorSearch",
    "$documents",
    "$shardedDataDistribution",
    "$queryStats",
];

/// Accumulators and operators whose result depends on the order in which they meet documents.
const BY_ORDER: [&str; 14] = [
    "$first",
    "$last",
    "$firstN",
    "$lastN",
    "$push",
    "$addToSet",
    "$mergeObjects",
    "$top",
    "$bottom",
    "$topN",
    "$bottomN",
    "$concatArrays",
    "$setUnion",
    "$maxN",
];

/// Accumulators that add doubles up.
const ADDING: [&str; 4] = ["$sum", "$avg", "$stdDevPop", "$stdDevSamp"];

/// Stages after which documents are no longer in the order that they came in.
const REORDERING: [&str; 7] =
    ["$group", "$bucket", "$bucketAuto", "$sortByCount", "$facet", "$unionWith", "$graphLookup"];

/// What is known of the documents behind some stages.
#[derive(Default)]
struct Known {
    /// Strings are compared as a language has it.
    collated: bool,
    sort: Option<Sort>,
    cut: Option<Cut>,
    /// Stages have changed documents since they were sorted.
    reshaped: bool,
    /// Several documents may have one `_id`.
    repeats: bool,
    rounds: bool,
}

/// What a pipeline says about the order of its result; `collated`: it is under a collation.
///
/// # Errors
/// Why its result says nothing about the clusters' documents.
pub fn terms_of(pipeline: &bson::RawArray, collated: bool) -> Result<Terms, Reason> {
    let mut known = Known { collated, ..Known::default() };
    for stage in pipeline {
        let stage = stage.ok().and_then(|stage| stage.as_document()).ok_or(Reason::NotUnderstood)?;
        let (name, value) = stage.iter().next().and_then(Result::ok).ok_or(Reason::NotUnderstood)?;
        known.behind(name.as_str(), value)?;
    }
    let Known { sort, cut, reshaped, rounds, .. } = known;
    if cut.is_some() && reshaped && sort.as_ref().is_some_and(|sort| !sort.is_total()) {
        // Which documents at one place of the order it took cannot be seen any more.
        return Err(Reason::LimitWithTies);
    }
    Ok(Terms { sort: sort.filter(|_| !reshaped), cut, rounds, ..Terms::default() })
}

impl Known {
    fn behind(&mut self, name: &str, value: RawBsonRef<'_>) -> Result<(), Reason> {
        let total = self.sort.as_ref().is_some_and(Sort::is_total);
        let ties_at_cut = self.cut.is_some() && !total;
        match name {
            _ if SERVER_STATE.contains(&name) => return Err(Reason::ServerState),
            "$sample" => return Err(Reason::Sample),
            "$geoNear" => {}
            "$sort" => {
                // A part of one order, shown in another: its ends cannot be told any more.
                fail_if(ties_at_cut, Reason::LimitWithTies)?;
                let sort = value.as_document().and_then(Sort::of);
                self.sort =
                    sort.map(|sort| sort.under_collation(self.collated).of_repeated_ids(self.repeats));
                (self.cut, self.reshaped) = (None, false);
            }
            "$limit" | "$skip" => {
                fail_if(self.sort.is_none(), Reason::LimitWithoutSort)?;
                let cut = self.cut.unwrap_or_default();
                let number = whole(value);
                self.cut = Some(if name == "$limit" { cut.limited(number) } else { cut.skipping(number) });
            }
            // Where the part ended is not seen where something was taken out of it.
            "$match" => fail_if(ties_at_cut, Reason::LimitWithTies)?,
            "$setWindowFields" | "$fill" | "$densify" => return Err(Reason::ByOrder),
            _ if REORDERING.contains(&name) => {
                fail_if(ties_at_cut, Reason::LimitWithTies)?;
                // Of values that a collation has for one, the first that is met is shown.
                fail_if(self.collated || !total && mentions(value, &BY_ORDER), Reason::ByOrder)?;
                self.rounds |= mentions(value, &ADDING);
                (self.sort, self.cut, self.reshaped, self.repeats) = (None, None, false, false);
            }
            _ => {
                self.reshaped = true;
                self.repeats |= !keeps_ids(name, value);
            }
        }
        Ok(())
    }
}

fn fail_if(fails: bool, reason: Reason) -> Result<(), Reason> {
    if fails { Err(reason) } else { Ok(()) }
}

/// The number of documents that a stage names.
fn whole(value: RawBsonRef<'_>) -> Option<u64> {
    match value {
        RawBsonRef::Int32(number) => u64::try_from(number).ok(),
        RawBsonRef::Int64(number) => u64::try_from(number).ok(),
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        RawBsonRef::Double(number) => Some(number as u64),
        _ => None,
    }
}

/// Whether each document behind a stage has the `_id` of one before it, and no two the same.
fn keeps_ids(name: &str, value: RawBsonRef<'_>) -> bool {
    let names_id = |name: &str| name == "_id" || name.starts_with("_id.");
    let named = |value: RawBsonRef<'_>| value.as_str().is_some_and(names_id);
    match (name, value) {
        ("$redact", _) => true,
        ("$set" | "$addFields", RawBsonRef::Document(fields)) => {
            !fields.iter().flatten().any(|(name, _)| names_id(name.as_str()))
        }
        ("$project", RawBsonRef::Document(fields)) => fields.iter().flatten().all(|(name, value)| {
            !names_id(name.as_str()) || matches!(value, RawBsonRef::Int32(1) | RawBsonRef::Boolean(true))
        }),
        ("$unset", RawBsonRef::Array(fields)) => !fields.into_iter().flatten().any(named),
        ("$unset", field) => !named(field),
        _ => false,
    }
}

/// Whether a name among `names` stands anywhere in `value`.
#[must_use]
pub fn mentions(value: RawBsonRef<'_>, names: &[&str]) -> bool {
    fn within(document: &RawDocument, names: &[&str], depth: u32) -> bool {
        document.iter().flatten().any(|(name, value)| {
            names.contains(&name.as_str()) || depth > 0 && any_in(value, names, depth - 1)
        })
    }
    fn any_in(value: RawBsonRef<'_>, names: &[&str], depth: u32) -> bool {
        match value {
            RawBsonRef::Document(document) => within(document, names, depth),
            RawBsonRef::Array(array) => {
                depth > 0 && array.into_iter().flatten().any(|item| any_in(item, names, depth - 1))
            }
            // `$$NOW`, and `$$NOW.path`.
            RawBsonRef::String(text) => text
                .strip_prefix("$$")
                .is_some_and(|_| names.contains(&text.split('.').next().unwrap_or(text))),
            _ => false,
        }
    }
    any_in(value, names, crate::policy::nesting::DEEPEST)
}
