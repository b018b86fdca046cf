//! Reading documents by key on one cluster.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use bson::raw::{RawArrayBuf, RawBsonRef, RawDocumentBuf, cstr};
use bson::{RawDocument, Timestamp, rawdoc};

use crate::cluster::command::{Commands, Reply, Request, Target};
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::policy::canonical::key_of;
use crate::state::records::batch;

/// How fresh and how durable a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// What the primary has now.
    Local,
    /// What the majority has, at or after this time of the cluster (where one is given).
    Majority(Option<Timestamp>),
}

impl Level {
    fn read_concern(self) -> RawDocumentBuf {
        match self {
            Self::Local => rawdoc! { "level": "local" },
            Self::Majority(None) => rawdoc! { "level": "majority" },
            Self::Majority(Some(time)) => rawdoc! { "level": "majority", "afterClusterTime": time },
        }
    }
}

/// Documents by their key. On a sharded cluster one `_id` may stand for several, one on each shard.
#[derive(Debug, Default)]
pub struct Documents {
    first: HashMap<Key, RawDocumentBuf>,
    others: HashMap<Key, Vec<RawDocumentBuf>>,
}

impl Documents {
    /// The document of a key; one of them, if there are several.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&RawDocument> {
        self.first.get(key).map(|document| &**document)
    }

    /// All documents of a key.
    pub fn copies(&self, key: &Key) -> impl Iterator<Item = &RawDocument> {
        let others = self.others.get(key).into_iter().flatten();
        self.first.get(key).into_iter().chain(others).map(|document| &**document)
    }

    /// Whether a key has more than one.
    #[must_use]
    pub fn has_several(&self, key: &Key) -> bool {
        self.others.contains_key(key)
    }

    /// Forgets what it has of a key, and takes what `newer` has.
    pub fn replace(&mut self, key: &Key, newer: &mut Self) {
        self.first.remove(key);
        self.others.remove(key);
        if let Some((key, document)) = newer.first.remove_entry(key) {
            self.first.insert(key, document);
        }
        if let Some((key, documents)) = newer.others.remove_entry(key) {
            self.others.insert(key, documents);
        }
    }

    /// Takes all that `others` has, of other keys.
    pub fn merge(&mut self, others: Self) {
        self.first.extend(others.first);
        self.others.extend(others.others);
    }

    /// These, each by its key.
    #[cfg(test)]
    pub(super) fn of(documents: impl IntoIterator<Item = RawDocumentBuf>) -> Self {
        let mut all = Self::default();
        for document in documents {
            all.add(id_of(&document).expect("a document with an _id"), document);
        }
        all
    }

    fn add(&mut self, key: Key, document: RawDocumentBuf) {
        match self.first.entry(key) {
            Entry::Vacant(first) => {
                first.insert(document);
            }
            Entry::Occupied(first) => {
                self.others.entry(first.key().clone()).or_default().push(document);
            }
        }
    }
}

/// How long one question to a cluster may take.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// Reads the documents of `keys`.
///
/// # Errors
/// In words, why there is no answer.
pub async fn read(
    cluster: &dyn Commands,
    namespace: &Namespace,
    keys: &[Key],
    level: Level,
) -> Result<Documents, String> {
    let mut ids = RawArrayBuf::new();
    for key in keys {
        ids.push(bson::raw::RawBson::from(key.value()));
    }
    let filter = match keys {
        [key] => {
            let mut equal = RawDocumentBuf::new();
            equal.append(cstr!("$eq"), key.value());
            rawdoc! { "_id": equal }
        }
        _ => rawdoc! { "_id": { "$in": ids } },
    };
    read_where(cluster, namespace, filter, level).await
}

/// Reads the documents that match `filter`.
///
/// # Errors
/// In words, why there is no answer.
pub async fn read_where(
    cluster: &dyn Commands,
    namespace: &Namespace,
    filter: RawDocumentBuf,
    level: Level,
) -> Result<Documents, String> {
    let body = rawdoc! {
        "find": namespace.collection(), "filter": filter, "batchSize": 10_000,
        "readConcern": level.read_concern(),
    };
    let mut documents = Documents::default();
    let mut reply = ask(cluster, Request::new(namespace.database(), body).within(LIMIT)).await?;
    let mut field = "firstBatch";
    loop {
        for document in batch(&reply.body, field)? {
            let key = id_of(&document).ok_or("a document without an _id")?;
            documents.add(key, document);
        }
        let cursor = cursor_id(&reply.body);
        if cursor == 0 {
            return Ok(documents);
        }
        let more = rawdoc! { "getMore": cursor, "collection": namespace.collection() };
        let request = Request::new(namespace.database(), more).to(Target::Server(reply.server)).within(LIMIT);
        reply = ask(cluster, request).await?;
        field = "nextBatch";
    }
}

/// The key of a document.
#[must_use]
pub fn id_of(document: &RawDocument) -> Option<Key> {
    key_of(document.get("_id").ok().flatten()?)
}

/// The id of the cursor in a reply; 0 when there is no more.
#[must_use]
pub fn cursor_id(body: &RawDocument) -> i64 {
    match body.get_document("cursor").ok().and_then(|cursor| cursor.get("id").ok().flatten()) {
        Some(RawBsonRef::Int64(id)) => id,
        Some(RawBsonRef::Int32(id)) => i64::from(id),
        _ => 0,
    }
}

/// The time that the cluster's primary has reached.
///
/// # Errors
/// In words, why there is no answer.
pub async fn time_now(cluster: &dyn Commands) -> Result<Timestamp, String> {
    let reply = ask(cluster, Request::new("admin", rawdoc! { "ping": 1 }).within(LIMIT)).await?;
    reply.operation_time.ok_or_else(|| "a server without operationTime".to_owned())
}

/// Runs a command that must succeed.
///
/// # Errors
/// In words, why it did not.
pub async fn ask(cluster: &dyn Commands, request: Request) -> Result<Reply, String> {
    let reply = cluster.run(request).await.map_err(|error| error.to_string())?;
    match reply.error() {
        None => Ok(reply),
        Some(error) => Err(error.to_string()),
    }
}
