//! How far each stream has been worked off, as stored.

use bson::raw::RawDocumentBuf;
use bson::{Document, RawDocument, doc, rawdoc};

use super::record::DATABASE;
use super::records::{RecordError, Records};
use crate::model::side::Side;

/// Collection of checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";

fn id(migration: &str, side: Side) -> String {
    format!("{migration}/{side}")
}

/// The token to resume `side`'s stream with; `None` when none was stored.
///
/// # Errors
/// [`RecordError`].
pub async fn load(
    records: &Records,
    migration: &str,
    side: Side,
) -> Result<Option<RawDocumentBuf>, RecordError> {
    let found = records.find(DATABASE, CHECKPOINTS, rawdoc! { "_id": id(migration, side) }, 1).await?;
    Ok(found.first().and_then(|stored| stored.get_document("token").ok().map(RawDocument::to_owned)))
}

/// Stores that everything up to `token` is done or durably parked.
///
/// # Errors
/// [`RecordError`].
pub async fn store(
    records: &Records,
    migration: &str,
    side: Side,
    token: &RawDocument,
    at: i64,
) -> Result<(), RecordError> {
    let token = Document::try_from(token).map_err(|error| RecordError::Malformed(error.to_string()))?;
    let update = doc! { "$set": { "token": token, "at": at, "migration": migration } };
    records.change(DATABASE, CHECKPOINTS, doc! { "_id": id(migration, side) }, update, true).await.map(|_| ())
}
