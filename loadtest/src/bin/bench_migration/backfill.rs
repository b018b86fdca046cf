//! The proxy's copy of a collection, timed by what the admin API says.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mongodb::{Client, Database};
use serde_json::Value;

use crate::api::{Api, Progress};
use crate::raw_copy::Copied;

const LOOK: Duration = Duration::from_millis(20);
const LIMIT: Duration = Duration::from_secs(600);

/// Creates and starts a migration of `namespace`, and times its copy. New is sharded by `shard_key`, unless that
/// is null.
pub(crate) async fn run(api: &Api, migration: &str, namespace: &str, shard_key: Value) -> Result<Copied> {
    api.create(migration, namespace, shard_key).await?;
    let ((), copied) = tokio::try_join!(api.start(migration), copying(api, migration))?;
    Ok(copied)
}

/// From the moment when the migration copies to the one when it follows.
async fn copying(api: &Api, migration: &str) -> Result<Copied> {
    let begun = Instant::now();
    let mut since = None;
    loop {
        let now = api.progress(migration).await?;
        match &*now.phase {
            "created" | "preparing" => {}
            "copying" => _ = since.get_or_insert_with(Instant::now),
            "catching_up" | "synced" => return Ok(done(&now, since.context("the copy was not seen")?)),
            phase => anyhow::bail!("the migration is {phase}: {:?}", now.blocked_by),
        }
        ensure!(begun.elapsed() < LIMIT, "the copy takes too long: {now:?}");
        tokio::time::sleep(LOOK).await;
    }
}

fn done(now: &Progress, since: Instant) -> Copied {
    Copied { documents: now.copied_documents, bytes: now.copied_bytes, took: since.elapsed() }
}

/// Aborts a migration and waits until nothing of it is left on new.
pub(crate) async fn abort(api: &Api, migration: &str, new: &Client, namespace: &str) -> Result<()> {
    api.abort(migration).await?;
    let (database, collection) = namespace.split_once('.').context("no namespace")?;
    let (database, begun): (Database, _) = (new.database(database), Instant::now());
    while database.list_collection_names().await?.iter().any(|name| name == collection) {
        ensure!(begun.elapsed() < LIMIT, "{namespace} is still on new after the abort");
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
