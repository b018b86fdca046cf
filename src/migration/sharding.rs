//! Sharding a collection on new before anything is copied, so that the copy lands where it will stay.

mod primary;
mod zones;

use std::time::Duration;

use bson::raw::RawDocumentBuf;
use bson::{Bson, Document, doc, rawdoc};

use super::catalog::{Unanswered, all, owned, question};
use super::sampling::sampled;
use crate::cluster::command::{Commands, Request};
use crate::converge::read::ask;
use crate::converge::shards;
use crate::model::namespace::Namespace;
use crate::policy::order::compare_all;
use crate::policy::shard_key::ShardKey;
use crate::policy::zones::{Chunk, Zone, cuts, is_bound, places, weights};
use crate::state::records::first_batch;

pub use self::primary::{chosen_primary, make_database, primary_of};
pub use self::zones::{Added, take_zones_back, zones_of};

const LIMIT: Duration = Duration::from_secs(60);
/// Chunks laid out for each shard, unless the operator names a number.
const CHUNKS_PER_SHARD: usize = 4;
/// Documents sampled for each chunk: so many that a chunk is seldom off by more than a quarter.
const SAMPLES_PER_CHUNK: usize = 200;
const MOST_SAMPLES: usize = 20_000;
/// `AlreadyInitialized`: it has been sharded before.
const SHARDED_BEFORE: i32 = 23;
/// A balancer may be at work meanwhile: so often chunks are looked at and handed out.
const ROUNDS: u32 = 3;

/// How a collection is to be sharded.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    /// By what.
    pub key: &'a ShardKey,
    /// Into how many chunks, where the operator says so.
    pub chunks: Option<u32>,
    /// What belongs on which shards.
    pub zones: &'a [Zone],
}

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

/// Shards an empty collection of `new`, cut into parts of about equal size by what `old` holds and at the
/// bounds of its zones, and hands the parts out. Harmless to repeat.
///
/// # Errors
/// In words, what a cluster refused or did not answer; what is done stays done.
pub async fn shard(
    old: &dyn Commands,
    new: &dyn Commands,
    namespace: &Namespace,
    layout: Layout<'_>,
) -> Result<(), String> {
    let Layout { key, chunks, zones: wished } = layout;
    let refused = |error: Unanswered| format!("sharding {namespace} on new: {error}");
    let shards = shards::names(new).await?;
    let wanted =
        chunks.map_or(CHUNKS_PER_SHARD * shards.len(), |chunks| usize::try_from(chunks).unwrap_or(1));
    admin(new, doc! { "enableSharding": namespace.database() }).await.or_else(before).map_err(refused)?;
    zones::make_zones(new, namespace, wished).await?;
    let mut command = doc! {
        "shardCollection": namespace.as_str(), "key": key.pattern(), "collation": { "locale": "simple" },
    };
    // Hashes are even: without zones the cluster cuts and hands out by itself.
    let by_itself = key.begins_hashed() && wished.is_empty();
    if by_itself {
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
    if by_itself || (shards.len() < 2 && chunks.is_none() && wished.is_empty()) {
        return Ok(());
    }
    let samples = if key.begins_hashed() { Vec::new() } else { sample(old, namespace, key, wanted).await? };
    let there = chunks_of(new, namespace, key).await?;
    for cut in cuts(key, &samples, wanted, wished).iter().filter(|cut| !is_bound(&there, cut)) {
        let split = doc! { "split": namespace.as_str(), "middle": key.bound(cut) };
        admin(new, split).await.or_else(cut_before).map_err(refused)?;
    }
    hand_out(new, namespace, layout, &samples, &shards).await
}

/// Moves every chunk to the shard where it is to lie: while the collection is empty that is quick.
async fn hand_out(
    new: &dyn Commands,
    namespace: &Namespace,
    layout: Layout<'_>,
    samples: &[Vec<Bson>],
    shards: &[String],
) -> Result<(), String> {
    let key = layout.key;
    let mut trouble = Ok(());
    for _ in 0..ROUNDS {
        let there = chunks_of(new, namespace, key).await?;
        let to = places(&there, &weights(key, samples, &there), shards, layout.zones);
        trouble = Ok(());
        for (chunk, to) in there.iter().zip(to).filter(|(chunk, to)| chunk.shard != *to) {
            let bounds = [key.bound(&chunk.min), key.bound(&chunk.max)].map(Bson::Document).to_vec();
            let hand_over = doc! {
                "moveChunk": namespace.as_str(), "bounds": bounds, "to": to, "_waitForDelete": true,
            };
            let moved = admin(new, hand_over).await;
            trouble = trouble.and(moved.map_err(|error| format!("handing out {namespace} on new: {error}")));
        }
        if trouble.is_ok() {
            break;
        }
    }
    trouble
}

/// The chunks of a sharded collection, in order.
async fn chunks_of(
    cluster: &dyn Commands,
    namespace: &Namespace,
    key: &ShardKey,
) -> Result<Vec<Chunk>, String> {
    let named = rawdoc! { "_id": namespace.as_str() };
    let uuid =
        in_config(cluster, "collections", named).await?.first().and_then(|entry| entry.get("uuid").cloned());
    // Before 5.0 a chunk names its collection, and its uuid since.
    let either = [Some(doc! { "ns": namespace.as_str() }), uuid.map(|uuid| doc! { "uuid": uuid })];
    let either: Vec<Document> = either.into_iter().flatten().collect();
    let filter = RawDocumentBuf::try_from(&doc! { "$or": either }).map_err(|error| error.to_string())?;
    let read = |chunk: Document| {
        let bound = |name: &str| {
            let bound =
                chunk.get_document(name).map_err(|error| format!("a chunk of {namespace}: {error}"))?;
            let values = key.fields().map(|(path, _)| bound.get(path).cloned());
            values.collect::<Option<Vec<Bson>>>().ok_or_else(|| format!("a chunk of {namespace} has {bound}"))
        };
        Ok(Chunk {
            min: bound("min")?,
            max: bound("max")?,
            shard: chunk.get_str("shard").unwrap_or_default().to_owned(),
        })
    };
    let chunks = in_config(cluster, "chunks", filter).await?;
    let mut chunks = chunks.into_iter().map(read).collect::<Result<Vec<Chunk>, String>>()?;
    chunks.sort_by(|one, other| compare_all(&one.min, &other.min));
    Ok(chunks)
}

/// What the cluster keeps of itself.
async fn in_config(
    cluster: &dyn Commands,
    collection: &str,
    filter: RawDocumentBuf,
) -> Result<Vec<Document>, String> {
    let body = rawdoc! {
        "find": collection, "filter": filter, "batchSize": 10_000, "readConcern": { "level": "majority" },
    };
    let found = all(cluster, Request::new("config", body).within(LIMIT), collection).await;
    found.map_err(|error| format!("config.{collection}: {error}"))
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

/// Values of the fields before a hashed one, in order, that a sample of old has.
async fn sample(
    old: &dyn Commands,
    namespace: &Namespace,
    key: &ShardKey,
    chunks: usize,
) -> Result<Vec<Vec<Bson>>, String> {
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
    let found = sampled(old, namespace, body).await?;
    let values = |sample: &RawDocumentBuf| {
        let sample = owned(sample).map_err(|error| error.to_string())?;
        Ok(sample.into_iter().map(|(_, value)| value).collect())
    };
    found.iter().map(values).collect()
}
