//! Fills the collection before a load.

use anyhow::{Context, Result};
use bson::{Document, RawDocumentBuf, doc};
use mongodb::options::{IndexOptions, WriteConcern};
use mongodb::{Collection, IndexModel};

use crate::config::{LoadConfig, Profile};
use crate::docs::Builder;
use crate::keys::{Key, KeySpace};
use crate::scan::connect;

const TASKS: u32 = 4;
const BATCH_BYTES: usize = 4 << 20;

pub(crate) fn builder(config: &LoadConfig) -> Builder {
    Builder::new(KeySpace::new(config.seed, config.bool_ids), config.document_size, config.key_fields)
}

/// Removes what an earlier load with this seed left, creates the indexes, and
/// inserts the preloaded and the hot documents.
pub(crate) async fn prepare(config: &LoadConfig) -> Result<()> {
    config.check()?;
    let builder = builder(config);
    let client = connect(&config.uri, 8).await?;
    let collection = client.database(&config.database).collection::<Document>(&config.collection);
    if config.drop_first {
        collection.drop().await?;
    }
    if collection.find_one(doc! {}).await?.is_some() {
        collection.delete_many(doc! { "lt": builder.space.tag() }).await?;
    }
    create_indexes(config, &collection).await?;
    let hot: Vec<_> = (0..hot_count(config)).map(|n| builder.hot(n)).collect();
    collection.insert_many(hot).await?;
    insert_history(config, builder, &collection).await
}

/// How many hot documents there are.
pub(crate) fn hot_count(config: &LoadConfig) -> u16 {
    u16::try_from(config.hot_keys).unwrap_or(u16::MAX)
}

/// How many preloaded documents there are.
pub(crate) fn history_count(config: &LoadConfig) -> u32 {
    u32::try_from(config.documents).unwrap_or(u32::MAX)
}

async fn create_indexes(config: &LoadConfig, collection: &Collection<Document>) -> Result<()> {
    let mut indexes = vec![IndexModel::builder().keys(doc! { "group": 1 }).build()];
    if config.profile == Profile::Unique {
        let unique = IndexOptions::builder().unique(true).build();
        indexes.push(IndexModel::builder().keys(doc! { "email": 1 }).options(unique).build());
    }
    collection.create_indexes(indexes).await.context("cannot create the indexes")?;
    Ok(())
}

async fn insert_history(
    config: &LoadConfig,
    builder: Builder,
    collection: &Collection<Document>,
) -> Result<()> {
    let documents = history_count(config);
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let collection = collection.clone_with_type::<RawDocumentBuf>();
        let per_batch = (BATCH_BYTES / config.document_size.max(200)).clamp(1, 5000);
        tasks.spawn(async move {
            let keys: Vec<_> = (0..documents).filter(|n| n / 1000 % TASKS == task).collect();
            for chunk in keys.chunks(per_batch) {
                let batch: Vec<_> = chunk.iter().map(|&n| builder.history_bytes(n)).collect();
                let insert = collection.insert_many(batch).ordered(false);
                insert.write_concern(WriteConcern::nodes(1)).await.context("cannot preload")?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    // The last write is acknowledged by the majority (of every shard), and so all before it.
    let hot = builder.space.group(Key::Hot(0));
    collection.update_many(doc! { "group": hot }, doc! { "$set": { "n": 0_i64 } }).await?;
    Ok(())
}
