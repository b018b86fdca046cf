//! Which ranges a comparison has and which are done, as stored: the next process goes on with the others.

use bson::{RawDocument, doc, rawdoc};

use super::tally::Tally;
use crate::migration::ranges::{self, Range};
use crate::model::namespace::Namespace;
use crate::state::record::DATABASE;
use crate::state::records::{RecordError, Records};

/// Collection of a comparison's ranges.
pub const VERIFIED: &str = "verified";
const MOST: i32 = 100_000;

/// One range of a comparison.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) range: Range,
    /// Documents in it, about.
    pub(super) documents: u64,
    /// What was counted; `None` until it is done.
    pub(super) done: Option<Tally>,
}

/// Forgets the ranges of the last comparison.
///
/// # Errors
/// [`RecordError`].
pub async fn forget(records: &Records, migration: &str) -> Result<(), RecordError> {
    records.remove(DATABASE, VERIFIED, rawdoc! { "migration": migration }).await.map(|_| ())
}

/// Stores the ranges of one collection.
///
/// # Errors
/// [`RecordError`].
pub(super) async fn store_all(records: &Records, migration: &str, parts: &[Part]) -> Result<(), RecordError> {
    let with_size = |part: &Part| {
        let mut range = part.range.clone();
        range.copied.documents = part.documents;
        range
    };
    let ranges: Vec<Range> = parts.iter().map(with_size).collect();
    ranges::store_all(records, VERIFIED, migration, &ranges).await
}

/// Stores that a range is compared.
///
/// # Errors
/// [`RecordError`].
pub(super) async fn done(
    records: &Records,
    migration: &str,
    part: &Part,
    tally: &Tally,
) -> Result<(), RecordError> {
    let id = doc! { "_id": ranges::stored_id(migration, &part.range) };
    let update = doc! { "$set": { "done": true, "tally": tally.stored() } };
    records.change(DATABASE, VERIFIED, id, update, false).await.map(|_| ())
}

/// The ranges that are stored.
///
/// # Errors
/// [`RecordError`].
pub(super) async fn load(records: &Records, migration: &str) -> Result<Vec<Part>, RecordError> {
    let stored = records.find(DATABASE, VERIFIED, rawdoc! { "migration": migration }, MOST).await?;
    stored.iter().map(|document| read(document)).collect()
}

fn read(document: &RawDocument) -> Result<Part, RecordError> {
    let range = ranges::read(document)?;
    let done = range.done.then(|| document.get_document("tally").map(Tally::read).unwrap_or_default());
    Ok(Part { documents: range.copied.documents, range, done })
}

/// Whether all ranges of a collection are among those that are stored.
pub(super) fn is_cut(parts: &[Part], namespace: &Namespace) -> bool {
    parts.iter().any(|part| part.range.number == 0 && part.range.namespace == *namespace)
}
