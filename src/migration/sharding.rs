//! Sharding a collection on new before anything is copied, so that the copy lands where it will stay.

use std::time::Duration;

use bson::raw::RawDocumentBuf;
use bson::{Bson, Document, doc, rawdoc};

use super::catalog::{Unanswered, owned, question};
use crate::cluster::command::{Commands, Request};
use crate::converge::read::ask;
use crate::converge::shards;
use crate::model::namespace::Namespace;
use crate::policy::shard_key::ShardKey;
use crate::state::records::first_batch;

const LIMIT: Duration = Duration::from_secs(60);
/// Chunks laid out for each shard, unless the operator names a number.
const CHUNKS_PER_SHARD: usize = 4;
/// Documents sampled for each chunk: so many that a chunk is seldom off by more than a quarter.
const SAMPLES_PER_CHUNK: usize = 200;
const MOST_SAMPLES: usize = 20_000;
/// `AlreadyInitialized`: it has been sharded before.
const SHARDED_BEFORE: i32 = 23;

/// By what `namespace` is sharded on `cluster`; `None` when it is not, or the cluster is a replica set.
///
/// # Errors
/// In words, why that is not known.
pub async fn key_of(cluster: &dyn Commands, namespace: &Namespace) -> Result<Option<ShardKey>, String> {
    if !shards::is_sharded(cluster).await? {
        return Ok(None);
    }
    let body = rawdoc! {
        "find": "collections", "filter": { "_id": namespace.as_str() }, "limit": 1, "singleBatch": true,
        "readConcern": { "level": "majority" },
    };
    let found = first_batch(&ask(cluster, Request::new("config", body).within(LIMIT)).await?.body)?;
    let Some(found) = found.first() else { return Ok(None) };
    if found.get_bool("dropped").unwrap_or(false) {
        return Ok(None);
    }
    // Collections that are not sharded have an entry too in some versions, without a key or marked so.
    let Ok(pattern) = found.get_document("key") else { return Ok(None) };
    if found.get_bool("unsplittable").unwrap_or(false) {
        return Ok(None);
    }
    let pattern = Document::try_from(pattern).map_err(|error| error.to_string())?;
    ShardKey::parse(&pattern).map(Some).map_err(|why| format!("the shard key of {namespace}: {why}"))
}

/// Shards an empty collection of `new`, cut into about `chunks` parts of equal size by what `old` holds, and
/// hands the parts out. Harmless to repeat.
///
/// # Errors
/// In words, what a cluster refused or did not answer; what is done stays done.
pub async fn shard(
    old: &dyn Commands,
    new: &dyn Commands,
    namespace: &Namespace,
    key: &ShardKey,
    chunks: Option<u32>,
) -> Result<(), String> {
    let shards = shards::names(new).await?;
    let wanted =
        chunks.map_or(CHUNKS_PER_SHARD * shards.len(), |chunks| usize::try_from(chunks).unwrap_or(1));
    let refused = |error: Unanswered| format!("sharding {namespace} on new: {error}");
    admin(new, doc! { "enableSharding": namespace.database() }).await.or_else(before).map_err(refused)?;
    let mut command = doc! { "shardCollection": namespace.as_str(), "key": key.pattern() };
    if key.begins_hashed() {
        // Hashes are even: the cluster cuts and hands out by itself.
        command.insert("numInitialChunks", i64::try_from(wanted.max(shards.len())).unwrap_or(1));
    }
    admin(new, command).await.or_else(before).map_err(refused)?;
    match key_of(new, namespace).await? {
        Some(found) if found == *key => {}
        Some(found) => {
            return Err(format!("{namespace} is sharded by {} on new already", found.pattern()));
        }
        None => return Err(format!("{namespace} was not sharded on new")),
    }
    if key.begins_hashed() || shards.len() < 2 {
        return Ok(());
    }
    let of = namespace.as_str();
    let cuts = cuts(old, namespace, key, wanted).await?;
    for cut in &cuts {
        admin(new, doc! { "split": of, "middle": cut.clone() }).await.or_else(cut_before).map_err(refused)?;
    }
    // All of them, the first too: until now they lie on the primary shard, whichever that is.
    let first = key.bound(&[]);
    for (begin, shard) in std::iter::once(&first).chain(&cuts).zip(shards.iter().cycle()) {
        let hand_over = doc! { "moveChunk": of, "find": begin.clone(), "to": shard, "_waitForDelete": true };
        admin(new, hand_over).await.map_err(refused)?;
    }
    Ok(())
}

async fn admin(cluster: &dyn Commands, command: Document) -> Result<(), Unanswered> {
    let body =
        RawDocumentBuf::try_from(&command).map_err(|error| Unanswered::malformed(error.to_string()))?;
    question(cluster, Request::new("admin", body).within(LIMIT)).await.map(|_| ())
}

fn before(error: Unanswered) -> Result<(), Unanswered> {
    if error.code == Some(SHARDED_BEFORE) { Ok(()) } else { Err(error) }
}

/// A cut that is a bound of a chunk already.
fn cut_before(error: Unanswered) -> Result<(), Unanswered> {
    if error.message.contains("is a boundary key") || error.message.contains("boundary") {
        Ok(())
    } else {
        Err(error)
    }
}

/// Where to cut, in order: at quantiles of the keys that a sample of old has.
async fn cuts(
    old: &dyn Commands,
    namespace: &Namespace,
    key: &ShardKey,
    chunks: usize,
) -> Result<Vec<Document>, String> {
    let samples = (chunks * SAMPLES_PER_CHUNK).min(MOST_SAMPLES);
    let plain: Vec<&str> = key.plain_prefix().collect();
    let fields = plain.iter().enumerate().map(|(index, path)| (format!("k{index}"), format!("${path}")));
    let mut project = doc! { "_id": 0 };
    let mut sort = Document::new();
    for (name, path) in fields {
        // A field that is missing counts as null in a shard key.
        project.insert(&name, doc! { "$ifNull": [path, Bson::Null] });
        sort.insert(name, 1);
    }
    let pipeline = vec![
        doc! { "$sample": { "size": i64::try_from(samples).unwrap_or(1) } },
        doc! { "$project": project },
        doc! { "$sort": sort },
    ];
    let command = doc! {
        "aggregate": namespace.collection(), "pipeline": pipeline, "cursor": { "batchSize": 1_000_000 },
        "allowDiskUse": true, "readConcern": { "level": "majority" },
    };
    let body = RawDocumentBuf::try_from(&command).map_err(|error| error.to_string())?;
    let reply = ask(old, Request::new(namespace.database(), body).within(LIMIT)).await?;
    let found = first_batch(&reply.body)?;
    let mut cuts: Vec<Document> = Vec::new();
    for number in 1..chunks {
        let Some(sample) = found.get(number * found.len() / chunks) else { break };
        let sample = owned(sample).map_err(|error| error.to_string())?;
        let values: Vec<Bson> = sample.into_iter().map(|(_, value)| value).collect();
        let cut = key.bound(&values);
        if cuts.last() != Some(&cut) {
            cuts.push(cut);
        }
    }
    Ok(cuts)
}
