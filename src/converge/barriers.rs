//! Barriers: writes after which nothing that was sent earlier in a session can take effect any more.
//!
//! A server refuses numbers below the highest that a session has used, and remembers it with the write. On a
//! sharded cluster every shard remembers for itself, so the write goes to documents that lie on all of them.

use std::collections::HashSet;
use std::time::Duration;

use bson::raw::{RawArrayBuf, cstr};
use bson::{RawDocument, Timestamp, rawdoc};
use uuid::Uuid;

use super::read::ask;
use super::shards;
use crate::cluster::command::{Commands, Request, number};
use crate::model::namespace::DATABASE;
use crate::state::records::{first_batch, lsid, write_concern_problem};

/// Collection that barriers of replica sets write to.
pub const BARRIERS: &str = "barriers";
/// Collection with documents on every shard.
pub const SPREAD: &str = "barriers_by_shard";

const LIMIT: Duration = Duration::from_secs(10);
const TRANSACTION_TOO_OLD: i32 = 225;
/// Documents that are laid out for each shard; where they lie is left to a hash.
const FOR_EACH_SHARD: i32 = 8;
const MOST_DOCUMENTS: i32 = 1024;
/// `AlreadyInitialized`, `NamespaceExists`: it has been sharded before.
const SHARDED_BEFORE: [i32; 2] = [23, 48];

/// How a cluster is barred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One document for each session.
    ReplicaSet,
    /// So many documents, spread over all shards.
    Spread(i32),
}

impl Layout {
    /// Finds out how `cluster` is barred.
    ///
    /// # Errors
    /// In words, why it is not known; also when some shard has no document to bar with.
    pub async fn of(cluster: &dyn Commands) -> Result<Self, String> {
        if !shards::is_sharded(cluster).await? {
            return Ok(Self::ReplicaSet);
        }
        let (documents, bare) = spread(cluster).await?;
        match bare.first() {
            None => Ok(Self::Spread(documents)),
            Some(shard) => Err(format!("shard {shard} has no document in {DATABASE}.{SPREAD} to bar with")),
        }
    }

    fn statements(self, session: Uuid) -> RawArrayBuf {
        // The document must change, or the write is not durable and bars nothing.
        let change = rawdoc! { "$inc": { "n": 1_i64 } };
        let mut statements = RawArrayBuf::new();
        match self {
            Self::ReplicaSet => {
                let query = rawdoc! { "_id": session.to_string() };
                statements.push(rawdoc! { "q": query, "u": change, "upsert": true });
            }
            Self::Spread(documents) => {
                for id in 0..documents {
                    statements.push(rawdoc! { "q": { "_id": id }, "u": change.clone() });
                }
            }
        }
        statements
    }
}

/// Lays out what barriers of a sharded cluster need; nothing on a replica set. Harmless to repeat.
///
/// # Errors
/// In words, why it is not there.
pub async fn lay_out(cluster: &dyn Commands) -> Result<(), String> {
    if !shards::is_sharded(cluster).await? {
        return Ok(());
    }
    for command in [
        rawdoc! { "enableSharding": DATABASE },
        rawdoc! { "shardCollection": format!("{DATABASE}.{SPREAD}"), "key": { "_id": "hashed" } },
    ] {
        let reply = cluster.run(Request::new("admin", command)).await.map_err(|error| error.to_string())?;
        if let Some(error) = reply.error().filter(|error| !SHARDED_BEFORE.contains(&error.code)) {
            return Err(format!("laying out {DATABASE}.{SPREAD}: {error}"));
        }
    }
    let (mut documents, mut bare) = spread(cluster).await?;
    let shards = i32::try_from(shards::names(cluster).await?.len()).unwrap_or(1);
    while documents == 0 || !bare.is_empty() {
        let more = (documents + FOR_EACH_SHARD * shards).min(MOST_DOCUMENTS);
        if more == documents {
            return Err(format!("{documents} documents of {DATABASE}.{SPREAD} lie on no shard of {bare:?}"));
        }
        let statements = (0..more).map(|id| {
            rawdoc! { "q": { "_id": id }, "u": { "$setOnInsert": { "n": 0_i64 } }, "upsert": true }
        });
        let mut updates = RawArrayBuf::new();
        statements.for_each(|statement| updates.push(statement));
        let body = rawdoc! { "update": SPREAD, "updates": updates, "ordered": false, "writeConcern": { "w": "majority" } };
        acknowledged(&ask(cluster, Request::new(DATABASE, body)).await?.body)?;
        (documents, bare) = spread(cluster).await?;
    }
    Ok(())
}

/// How many documents are laid out, and the shards that have none.
async fn spread(cluster: &dyn Commands) -> Result<(i32, Vec<String>), String> {
    let body = rawdoc! {
        "aggregate": SPREAD, "pipeline": [{ "$collStats": { "count": {} } }], "cursor": {},
    };
    let counts = first_batch(&ask(cluster, Request::new(DATABASE, body)).await?.body)?;
    let mut documents = 0;
    let mut furnished = HashSet::new();
    for count in &counts {
        let (Ok(shard), Some(here)) = (count.get_str("shard"), number(count, "count")) else {
            return Err(format!("$collStats of {DATABASE}.{SPREAD} tells no count of a shard"));
        };
        if here > 0.0 {
            furnished.insert(shard.to_owned());
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most MOST_DOCUMENTS were made")]
        {
            documents += here as i32;
        }
    }
    let mut bare = shards::names(cluster).await?;
    bare.retain(|shard| !furnished.contains(shard));
    Ok((documents, bare))
}

/// Bars everything with a lower number on session `id`; returns when, on the cluster's time line.
///
/// # Errors
/// Why it is not known to be in force.
pub async fn bar(
    cluster: &dyn Commands,
    layout: Layout,
    id: Uuid,
    txn_number: i64,
) -> Result<Option<Timestamp>, String> {
    let collection = if layout == Layout::ReplicaSet { BARRIERS } else { SPREAD };
    let mut body = rawdoc! { "update": collection, "updates": layout.statements(id), "ordered": false };
    body.append(cstr!("lsid"), lsid(id));
    body.append(cstr!("txnNumber"), txn_number);
    body.append(cstr!("writeConcern"), rawdoc! { "w": "majority" });
    let request = Request::new(DATABASE, body).within(LIMIT);
    let reply = cluster.run(request).await.map_err(|error| error.to_string())?;
    if let Some(error) = reply.error() {
        // A higher number is there already: all the better.
        return if error.code == TRANSACTION_TOO_OLD {
            Ok(reply.operation_time)
        } else {
            Err(error.to_string())
        };
    }
    acknowledged(&reply.body)?;
    let matched = number(&reply.body, "n").unwrap_or(0.0) + f64::from(refused_for_a_higher(&reply.body));
    match layout {
        Layout::Spread(documents) if matched < f64::from(documents) => {
            Err(format!("the barrier met {matched} of {documents} documents of {DATABASE}.{SPREAD}"))
        }
        _ => Ok(reply.operation_time),
    }
}

/// Every statement was executed, or refused for a higher number, and the majority has it.
fn acknowledged(body: &RawDocument) -> Result<(), String> {
    if let Some(problem) = write_concern_problem(body) {
        return Err(problem);
    }
    let Ok(errors) = body.get_array("writeErrors") else { return Ok(()) };
    let mut errors = errors.into_iter().flatten().filter_map(|error| error.as_document());
    let other = |error: &&RawDocument| error.get_i32("code").ok() != Some(TRANSACTION_TOO_OLD);
    match errors.find(other) {
        Some(error) => Err(format!("it was refused: {error:?}")),
        None => Ok(()),
    }
}

fn refused_for_a_higher(body: &RawDocument) -> u32 {
    let errors = body.get_array("writeErrors").map(|errors| errors.into_iter().flatten().count());
    u32::try_from(errors.unwrap_or(0)).unwrap_or(0)
}
