//! Connections, and reading whole collections fast.

use anyhow::{Context, Result};
use bson::{Document, RawDocument, doc};
use futures::StreamExt;
use mongodb::options::{ClientOptions, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern};
use mongodb::{Client, Collection};

/// A client for an address; majority writes unless the address says otherwise.
pub(crate) async fn connect(uri: &str, pool: usize) -> Result<Client> {
    let mut options =
        ClientOptions::parse(uri).await.with_context(|| format!("cannot use address {uri:?}"))?;
    let pool = u32::try_from(pool).unwrap_or(u32::MAX).max(4);
    options.max_pool_size.get_or_insert(pool);
    options.write_concern.get_or_insert_with(WriteConcern::majority);
    options.app_name.get_or_insert_with(|| "reshard-loadtest".into());
    Ok(Client::with_options(options)?)
}

/// Calls `each` with every document, as the majority has it, until it says stop.
pub(crate) async fn scan(
    collection: &Collection<Document>,
    mut each: impl FnMut(&RawDocument) -> Result<bool>,
) -> Result<()> {
    let find = collection
        .find(doc! {})
        .read_concern(ReadConcern::majority())
        .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary));
    let mut batches = find.batch().await?;
    while let Some(batch) = batches.next().await {
        let batch = batch?;
        for value in batch.doc_slices()? {
            let document = value?.as_document().context("a batch holds something that is no document")?;
            if !each(document)? {
                return Ok(());
            }
        }
    }
    Ok(())
}
