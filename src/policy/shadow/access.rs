//! How a cluster gets at the documents of a read, as its `explain` tells.

use std::collections::BTreeSet;

use bson::raw::{RawBsonRef, RawDocumentBuf, cstr};
use bson::{RawDocument, rawdoc};

use super::eligible::again;
use crate::model::number::number;

/// Deeper replies are not looked into.
const MOST_DEPTH: u32 = 64;

/// Where a cluster looks for documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scan {
    /// Nowhere: it knows without.
    Nothing,
    /// In an index.
    Index,
    /// At every document of the collection, at least for a part of the read.
    Collection,
}

impl Scan {
    /// As reports name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Index => "index",
            Self::Collection => "collection",
        }
    }
}

/// What an `explain` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Where it looks.
    pub scan: Scan,
    /// Documents that it looked at.
    pub documents_examined: i64,
    /// Shards that it asked; none where there are no shards.
    pub shards: usize,
}

/// How many of all its shards a cluster asked.
#[must_use]
pub const fn reach(asked: usize, all: usize) -> &'static str {
    match asked {
        0 => "unsharded",
        1 => "one",
        asked if asked >= all => "all",
        _ => "several",
    }
}

/// The command that asks a cluster how it runs the read `body`, given up by the server after `millis`.
#[must_use]
pub fn explain(body: &RawDocument, millis: i64) -> RawDocumentBuf {
    let mut explained = RawDocumentBuf::new();
    for (name, value) in again(body, &rawdoc! {}, millis, "reshard shadow").iter().flatten() {
        // The time limit is that of the whole; what is read matters to nobody.
        if !matches!(name.as_str(), "readConcern" | "maxTimeMS" | "comment") {
            explained.append(name, value);
        }
    }
    let mut command = RawDocumentBuf::new();
    command.append(cstr!("explain"), explained);
    command.append(cstr!("verbosity"), "executionStats");
    command.append(cstr!("maxTimeMS"), millis);
    command.append(cstr!("comment"), "reshard shadow");
    command
}

/// What the reply to an `explain` says; `None`: it is refused, or says nothing that is understood.
#[must_use]
pub fn understood(reply: &RawDocument) -> Option<Access> {
    if number(reply, "ok") != Some(1.0) {
        return None;
    }
    let mut walk = Walk::default();
    walk.document(reply, MOST_DEPTH, false);
    Some(Access { scan: walk.scan?, documents_examined: walk.documents_examined, shards: walk.shards.len() })
}

#[derive(Default)]
struct Walk {
    scan: Option<Scan>,
    documents_examined: i64,
    shards: BTreeSet<String>,
}

impl Walk {
    /// `counted`: what is around it has told the documents already.
    fn document(&mut self, document: &RawDocument, depth: u32, counted: bool) {
        if depth == 0 {
            return;
        }
        let examined = number(document, "totalDocsExamined").filter(|_| !counted);
        if let Some(examined) = examined {
            #[expect(clippy::cast_possible_truncation, reason = "a count of documents")]
            let examined = examined as i64;
            self.documents_examined += examined;
        }
        let counted = counted || examined.is_some();
        if let Ok(stage) = document.get_str("stage") {
            self.scan = self.scan.max(scan_of(stage));
        }
        if let Ok(shard) = document.get_str("shardName") {
            self.shards.insert(shard.to_owned());
        }
        for (name, value) in document.iter().flatten() {
            match (name.as_str(), value) {
                // What it did not choose, and what the client sent.
                ("rejectedPlans" | "command" | "allPlansExecution" | "parsedQuery", _) => {}
                ("shards", RawBsonRef::Document(shards)) => {
                    self.shards.extend(shards.iter().flatten().map(|(name, _)| name.as_str().to_owned()));
                    self.document(shards, depth - 1, counted);
                }
                (_, RawBsonRef::Document(inner)) => self.document(inner, depth - 1, counted),
                (_, RawBsonRef::Array(array)) => {
                    let inner = array.into_iter().flatten().filter_map(RawBsonRef::as_document);
                    inner.for_each(|inner| self.document(inner, depth - 1, counted));
                }
                _ => {}
            }
        }
    }
}

fn scan_of(stage: &str) -> Option<Scan> {
    match stage {
        "COLLSCAN" => Some(Scan::Collection),
        "EOF" | "RECORD_STORE_FAST_COUNT" => Some(Scan::Nothing),
        "IDHACK" | "EXPRESS_IDHACK" | "COUNT_SCAN" | "DISTINCT_SCAN" | "TEXT_MATCH" => Some(Scan::Index),
        stage if stage.contains("IXSCAN") || stage.starts_with("GEO_NEAR") => Some(Scan::Index),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_explained_without_what_its_session_said() {
        let find = rawdoc! { "find": "c", "filter": { "a": 1 }, "lsid": { "id": 1 }, "$db": "shop" };
        let expected = rawdoc! {
            "explain": { "find": "c", "filter": { "a": 1 } }, "verbosity": "executionStats",
            "maxTimeMS": 5_i64, "comment": "reshard shadow",
        };
        assert_eq!(explain(&find, 5), expected);
    }

    #[test]
    fn the_plan_that_is_chosen_counts() {
        let reply = rawdoc! {
            "queryPlanner": {
                "winningPlan": { "stage": "FETCH", "inputStage": { "stage": "IXSCAN" } },
                "rejectedPlans": [{ "stage": "COLLSCAN" }],
            },
            // Its stages tell documents of their own.
            "executionStats": {
                "totalDocsExamined": 3, "executionStages": { "stage": "FETCH", "totalDocsExamined": 3 },
            },
            "command": { "find": "c", "filter": { "stage": "COLLSCAN" } },
            "ok": 1.0,
        };
        let expected = Access { scan: Scan::Index, documents_examined: 3, shards: 0 };
        assert_eq!(understood(&reply), Some(expected));
        assert_eq!(understood(&rawdoc! { "ok": 0.0, "queryPlanner": { "stage": "COLLSCAN" } }), None);
        assert_eq!(understood(&rawdoc! { "ok": 1.0 }), None);
    }

    #[test]
    fn shards_are_counted_once_and_the_worst_of_them_is_told() {
        let part = |stage: &str| rawdoc! { "shardName": "a", "winningPlan": { "stage": stage } };
        let mut other = part("COLLSCAN");
        other = rawdoc! { "shardName": "b", "winningPlan": other.get_document("winningPlan").unwrap().to_owned() };
        let reply = rawdoc! {
            "queryPlanner": { "winningPlan": { "stage": "SHARD_MERGE", "shards": [part("IXSCAN"), other] } },
            "executionStats": { "totalDocsExamined": 9_i64, "executionStages": { "shards": [part("IXSCAN")] } },
            "ok": 1.0,
        };
        let expected = Access { scan: Scan::Collection, documents_examined: 9, shards: 2 };
        assert_eq!(understood(&reply), Some(expected));
        let stages = |examined: i32| rawdoc! { "stages": [{ "$cursor": { "queryPlanner": { "winningPlan": { "stage": "IXSCAN" } }, "executionStats": { "totalDocsExamined": examined } } }] };
        let pipeline = rawdoc! { "shards": { "a": stages(2), "b": stages(5) }, "ok": 1.0 };
        let expected = Access { scan: Scan::Index, documents_examined: 7, shards: 2 };
        assert_eq!(understood(&pipeline), Some(expected));
    }

    #[test]
    fn how_far_a_read_reaches() {
        assert_eq!([reach(0, 0), reach(1, 1), reach(1, 3)], ["unsharded", "one", "one"]);
        assert_eq!([reach(2, 3), reach(3, 3)], ["several", "all"]);
    }
}
