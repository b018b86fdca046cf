//! What the stages of a pipeline say about its result.

use bson::RawDocument;
use bson::raw::RawBsonRef;

use super::answer::Terms;
use super::eligible::Reason;
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

/// Stages that leave documents as they are: what they were sorted by can be seen in the result.
const CHOOSING: [&str; 3] = ["$limit", "$skip", "$match"];

/// What is known of the documents behind some stages.
struct Known {
    sort: Option<Sort>,
    cut: bool,
    /// Stages have changed documents since they were sorted.
    reshaped: bool,
    rounds: bool,
}

/// What a pipeline says about the order of its result.
///
/// # Errors
/// Why its result says nothing about the clusters' documents.
pub fn terms_of(pipeline: &bson::RawArray) -> Result<Terms, Reason> {
    let mut known = Known { sort: None, cut: false, reshaped: false, rounds: false };
    for stage in pipeline {
        let stage = stage.ok().and_then(|stage| stage.as_document()).ok_or(Reason::NotUnderstood)?;
        let (name, value) = stage.iter().next().and_then(Result::ok).ok_or(Reason::NotUnderstood)?;
        known.behind(name.as_str(), value)?;
    }
    let Known { sort, cut, reshaped, rounds } = known;
    if cut && reshaped && sort.as_ref().is_some_and(|sort| !sort.is_total()) {
        // Which documents at one place of the order it took cannot be seen any more.
        return Err(Reason::LimitWithTies);
    }
    Ok(Terms { sort: sort.filter(|_| !reshaped), cut, rounds })
}

impl Known {
    fn behind(&mut self, name: &str, value: RawBsonRef<'_>) -> Result<(), Reason> {
        let total = self.sort.as_ref().is_some_and(Sort::is_total);
        match name {
            _ if SERVER_STATE.contains(&name) => return Err(Reason::ServerState),
            "$sample" => return Err(Reason::Sample),
            "$geoNear" => {}
            "$sort" => {
                let sort = value.as_document().and_then(Sort::of);
                if self.cut {
                    // A part of one order, shown in another: its ends cannot be told any more.
                    if !total {
                        return Err(Reason::LimitWithTies);
                    }
                    self.cut = false;
                }
                (self.sort, self.reshaped) = (sort, false);
            }
            "$limit" | "$skip" => {
                if self.sort.is_none() {
                    return Err(Reason::LimitWithoutSort);
                }
                self.cut = true;
            }
            "$setWindowFields" | "$fill" | "$densify" => return Err(Reason::ByOrder),
            _ if REORDERING.contains(&name) => {
                if self.cut && !total {
                    return Err(Reason::LimitWithTies);
                }
                if !total && mentions(value, &BY_ORDER) {
                    return Err(Reason::ByOrder);
                }
                self.rounds |= mentions(value, &ADDING);
                (self.sort, self.cut, self.reshaped) = (None, false, false);
            }
            _ if CHOOSING.contains(&name) => {}
            _ => self.reshaped = true,
        }
        Ok(())
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
