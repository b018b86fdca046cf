//! The ranges of `_id` that the backfill copies, and how far each is, as stored.

use bson::raw::{RawBson, RawBsonRef, RawDocumentBuf};
use bson::{Bson, Document, RawDocument, doc, rawdoc};

use super::sampling::sampled;
use crate::cluster::command::{Commands, Request, number};
use crate::model::namespace::Namespace;
use crate::state::record::DATABASE;
use crate::state::records::{RecordError, Records};

/// Collection of ranges.
pub const RANGES: &str = "ranges";
/// Bytes that a range should hold.
const RANGE_BYTES: f64 = 16.0 * 1024.0 * 1024.0;
/// Ranges of one collection at most.
const MOST_RANGES: f64 = 4000.0;
/// Ranges are of about equal size: with 30 samples a range the largest is seldom twice the mean.
const SAMPLES_PER_RANGE: i64 = 30;
/// Samples of one collection at most: what they are must fit one reply.
const MOST_SAMPLES: i64 = 40_000;
/// Ranges that one command stores.
const STORED_AT_ONCE: usize = 500;
/// A small collection is still cut so often for each copier, so that none of them works alone at the end;
const TURNS: f64 = 4.0;
/// but into nothing smaller than this.
const LEAST_BYTES: f64 = 2.0 * 1024.0 * 1024.0;

/// One range of `_id`, from `low` (inclusive) to `high` (exclusive); `None` is open.
///
/// Bounds go with `min` and `max` on the index, not with a filter: a filter only meets its own BSON type.
#[derive(Debug, Clone)]
pub struct Range {
    /// Which of the namespace's ranges.
    pub number: i64,
    /// The collection.
    pub namespace: Namespace,
    /// First `_id`.
    pub low: Option<RawBson>,
    /// First `_id` beyond.
    pub high: Option<RawBson>,
    /// Everything below this is copied.
    pub next: Option<RawBson>,
    /// All of it is copied.
    pub done: bool,
    /// What has been copied of it.
    pub copied: Size,
}

/// How much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Documents.
    pub documents: u64,
    /// Bytes, uncompressed.
    pub bytes: u64,
}

/// Asks for the size of a collection; an absent one has none.
///
/// # Errors
/// In words, why there is no answer.
pub async fn size_of(cluster: &dyn Commands, namespace: &Namespace) -> Result<Size, String> {
    let request = Request::new(namespace.database(), rawdoc! { "collStats": namespace.collection() });
    let reply = cluster.run(request).await.map_err(|error| error.to_string())?;
    if reply.error().is_some_and(|error| error.code == 26) {
        return Ok(Size::default());
    }
    if let Some(error) = reply.error() {
        return Err(error.to_string());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts")]
    let count = |field| number(&reply.body, field).unwrap_or(0.0).max(0.0) as u64;
    Ok(Size { documents: count("count"), bytes: count("size") })
}

/// Cuts a collection into ranges of about equal size, at keys sampled from it.
///
/// # Errors
/// In words, why there is no answer.
pub async fn split(
    cluster: &dyn Commands,
    namespace: &Namespace,
    size: Size,
    parallel: usize,
) -> Result<Vec<Range>, String> {
    let wanted = ranges_of(size.bytes, parallel);
    let samples_per_range = SAMPLES_PER_RANGE.min(MOST_SAMPLES / wanted);
    let mut cuts: Vec<RawBson> = Vec::new();
    if size.documents > 1000 {
        let body = rawdoc! {
            "aggregate": namespace.collection(),
            "pipeline": [
                { "$sample": { "size": wanted * samples_per_range } },
                { "$project": { "_id": 1 } },
                { "$sort": { "_id": 1 } },
            ],
            "cursor": { "batchSize": 1_000_000 },
            "allowDiskUse": true,
        };
        let samples = sampled(cluster, namespace, body).await?;
        let step = usize::try_from(samples_per_range).unwrap_or(1);
        cuts.extend(samples.iter().skip(step).step_by(step).filter_map(|sample| id(sample)));
        // No scan can begin there.
        cuts.retain(|cut| !matches!(cut, RawBson::MaxKey));
    }
    cuts.dedup_by(|a, b| a == b);
    let lows = std::iter::once(None).chain(cuts.iter().cloned().map(Some));
    let highs = cuts.iter().cloned().map(Some).chain(std::iter::once(None));
    Ok((0..)
        .zip(lows.zip(highs))
        .map(|(number, (low, high))| Range {
            number,
            namespace: namespace.clone(),
            low,
            high,
            next: None,
            done: false,
            copied: Size::default(),
        })
        .collect())
}

/// How many ranges `bytes` are cut into for `parallel` copiers.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "at most MOST_RANGES")]
fn ranges_of(bytes: u64, parallel: usize) -> i64 {
    let (bytes, parallel) = (bytes as f64, parallel as f64);
    let by_size = (bytes / RANGE_BYTES).ceil();
    let by_turns = (parallel * TURNS).min((bytes / LEAST_BYTES).floor());
    by_size.max(by_turns).max(parallel).min(MOST_RANGES) as i64
}

fn id(document: &RawDocument) -> Option<RawBson> {
    document.get("_id").ok().flatten().map(RawBson::from)
}

pub(super) fn stored_id(migration: &str, range: &Range) -> String {
    format!("{migration}/{}/{:06}", range.namespace, range.number)
}

/// Stores where a range stands.
///
/// # Errors
/// [`RecordError`].
pub async fn store(records: &Records, migration: &str, range: &Range) -> Result<(), RecordError> {
    let (query, update) = (doc! { "_id": stored_id(migration, range) }, stored(migration, range)?);
    records.change(DATABASE, RANGES, query, update, true).await.map(|_| ())
}

/// Stores all ranges of a collection in `table`, the first one last: where the first one is, all are (see
/// [`is_cut`]).
///
/// # Errors
/// [`RecordError`].
pub async fn store_all(
    records: &Records,
    table: &str,
    migration: &str,
    ranges: &[Range],
) -> Result<(), RecordError> {
    for some in ranges.rchunks(STORED_AT_ONCE) {
        let mut statements = Vec::new();
        for range in some.iter().rev() {
            let query = doc! { "_id": stored_id(migration, range) };
            let statement = doc! { "q": query, "u": stored(migration, range)?, "upsert": true };
            let statement = RawDocumentBuf::try_from(&statement);
            statements
                .extend(statement.map_err(|error| RecordError::Malformed(error.to_string()))?.into_bytes());
        }
        let body = rawdoc! { "update": table, "ordered": true };
        let reply = records.write(DATABASE, body, Some(("updates", statements))).await?;
        if let Ok(errors) = reply.body.get_array("writeErrors") {
            return Err(RecordError::Malformed(format!("ranges could not be stored: {errors:?}")));
        }
    }
    Ok(())
}

/// Whether all ranges of a collection are among those that are stored.
#[must_use]
pub fn is_cut(stored: &[Range], namespace: &Namespace) -> bool {
    stored.iter().any(|range| range.number == 0 && range.namespace == *namespace)
}

fn stored(migration: &str, range: &Range) -> Result<Document, RecordError> {
    let bound = |bound: &Option<RawBson>| match bound {
        // Wrapped, so that an open bound and an `_id` of null differ.
        Some(id) => Bson::try_from(id.clone())
            .map(|id| Bson::Array(vec![id]))
            .map_err(|error| RecordError::Malformed(error.to_string())),
        None => Ok(Bson::Array(vec![])),
    };
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    Ok(doc! { "$set": {
        "migration": migration, "namespace": range.namespace.as_str(), "number": range.number,
        "low": bound(&range.low)?, "high": bound(&range.high)?, "next": bound(&range.next)?, "done": range.done,
        "copied_documents": count(range.copied.documents), "copied_bytes": count(range.copied.bytes),
    } })
}

/// The ranges stored for a migration.
///
/// # Errors
/// [`RecordError`].
pub async fn load(records: &Records, migration: &str) -> Result<Vec<Range>, RecordError> {
    let stored = records.find(DATABASE, RANGES, rawdoc! { "migration": migration }, 100_000).await?;
    stored.iter().map(|document| read(document)).collect()
}

/// A range as it was stored.
///
/// # Errors
/// [`RecordError::Malformed`].
pub(super) fn read(document: &RawDocument) -> Result<Range, RecordError> {
    let malformed = || RecordError::Malformed(format!("a range does not read: {document:?}"));
    let bound = |field: &str| -> Result<Option<RawBson>, RecordError> {
        let array = document.get_array(field).map_err(|_| malformed())?;
        Ok(array.get(0).ok().flatten().map(RawBson::from))
    };
    // Ranges that were stored before these were counted have none.
    let count =
        |field: &str| document.get_i64(field).ok().and_then(|count| u64::try_from(count).ok()).unwrap_or(0);
    let number = match document.get("number") {
        Ok(Some(RawBsonRef::Int64(number))) => number,
        Ok(Some(RawBsonRef::Int32(number))) => i64::from(number),
        _ => return Err(malformed()),
    };
    Ok(Range {
        number,
        namespace: document.get_str("namespace").ok().and_then(Namespace::parse).ok_or_else(malformed)?,
        low: bound("low")?,
        high: bound("high")?,
        next: bound("next")?,
        done: document.get_bool("done").map_err(|_| malformed())?,
        copied: Size { documents: count("copied_documents"), bytes: count("copied_bytes") },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_is_cut_only_when_its_first_range_is_stored() {
        let namespace = Namespace::new("shop", "orders");
        let range = |number| Range {
            number,
            namespace: namespace.clone(),
            low: None,
            high: None,
            next: None,
            done: false,
            copied: Size::default(),
        };
        assert!(!is_cut(&[range(2), range(1)], &namespace));
        assert!(is_cut(&[range(2), range(1), range(0)], &namespace));
        assert!(!is_cut(&[range(0)], &Namespace::new("shop", "customers")));
    }

    #[test]
    fn every_copier_has_several_ranges_of_a_sensible_size() {
        assert_eq!(ranges_of(0, 4), 4);
        assert_eq!(ranges_of(12 << 20, 4), 6);
        assert_eq!(ranges_of(200 << 20, 4), 16);
        assert_eq!(ranges_of(10 << 30, 4), 640);
        assert_eq!(ranges_of(1 << 50, 4), 4000);
    }
}
