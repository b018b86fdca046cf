//! Which shard owns which part of a collection, and the versions that prove to a shard that the router knows.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use bson::oid::ObjectId;
use bson::{Bson, Document, Timestamp, doc};

use super::failure::Failure;
use super::hashed::hash;
use reshard::policy::order::{compare, compare_all};

/// A range of shard key values on one shard.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    pub(super) min: Document,
    pub(super) max: Document,
    pub(super) shard: String,
    lower: Vec<Bson>,
}

/// What is particular to a sharded collection.
#[derive(Debug, Clone)]
pub(super) struct Sharding {
    pub(super) key: Document,
    pub(super) epoch: ObjectId,
    pub(super) timestamp: Timestamp,
    pub(super) chunks: Vec<Chunk>,
    versions: BTreeMap<String, Timestamp>,
}

/// The routing table of one collection.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) namespace: String,
    /// The shard of what is not sharded.
    pub(super) primary: String,
    database_version: Option<Document>,
    pub(super) sharding: Option<Sharding>,
}

/// A version without meaning: of no collection, or of no chunk.
const NO_TIME: Timestamp = Timestamp { time: 0, increment: 0 };

impl Sharding {
    /// Reads `config.collections` and `config.chunks`.
    pub(super) fn read(collection: &Document, chunks: Vec<Document>) -> Result<Self, Failure> {
        let missing = |_| Failure::bad_value("config.collections lacks a field");
        let mut sharding = Self {
            key: collection.get_document("key").map_err(missing)?.clone(),
            epoch: collection.get_object_id("lastmodEpoch").map_err(missing)?,
            timestamp: collection.get_timestamp("timestamp").map_err(missing)?,
            chunks: Vec::with_capacity(chunks.len()),
            versions: BTreeMap::new(),
        };
        for chunk in chunks {
            let missing = |_| Failure::bad_value("config.chunks lacks a field");
            let min = chunk.get_document("min").map_err(missing)?.clone();
            let shard = chunk.get_str("shard").map_err(missing)?.to_owned();
            let version = chunk.get_timestamp("lastmod").map_err(missing)?;
            let newest = sharding.versions.entry(shard.clone()).or_insert(version);
            *newest = version.max(*newest);
            let lower = min.values().cloned().collect();
            let max = chunk.get_document("max").map_err(missing)?.clone();
            sharding.chunks.push(Chunk { min, max, shard, lower });
        }
        sharding.chunks.sort_by(|left, right| compare_all(&left.lower, &right.lower));
        Ok(sharding)
    }

    /// The chunk that begins at or below a key, whose hashed fields are hashed already.
    pub(super) fn chunk_at(&self, key: &[Bson]) -> Result<&Chunk, Failure> {
        let after = self.chunks.partition_point(|chunk| compare_all(&chunk.lower, key) != Ordering::Greater);
        let chunk = after.checked_sub(1).and_then(|index| self.chunks.get(index));
        chunk.ok_or_else(|| Failure::bad_value("no chunk has this key"))
    }

    /// The chunk of a document with these values of the shard key.
    pub(super) fn chunk_of(&self, values: &Document) -> Result<&Chunk, Failure> {
        let mut key = Vec::with_capacity(self.key.len());
        for (field, kind) in &self.key {
            let value = values.get(field).cloned().unwrap_or(Bson::Null);
            key.push(if kind.as_str() == Some("hashed") { Bson::Int64(hash(&value)?) } else { value });
        }
        self.chunk_at(&key)
    }

    /// The values of the shard key that a filter demands; nothing if it leaves one open.
    pub(super) fn key_of_filter(&self, filter: &Document) -> Option<Document> {
        let mut demanded = Document::new();
        equalities(filter, &mut demanded);
        let value = |field: &String| demanded.get(field).cloned().or_else(|| below(&demanded, field));
        self.key.keys().map(|field| Some((field.clone(), value(field)?))).collect()
    }

    /// The values of the shard key in a document; what is missing is null.
    pub(super) fn key_of_document(&self, document: &Document) -> Document {
        let value = |field: &String| below(document, field).unwrap_or(Bson::Null);
        self.key.keys().map(|field| (field.clone(), value(field))).collect()
    }
}

impl Table {
    pub(super) fn new(namespace: String, database: &Document, sharding: Option<Sharding>) -> Self {
        Self {
            namespace,
            primary: database.get_str("primary").unwrap_or_default().to_owned(),
            database_version: database.get_document("version").ok().cloned(),
            sharding,
        }
    }

    /// The sharding, or an error that there is none.
    pub(super) fn sharded(&self) -> Result<&Sharding, Failure> {
        self.sharding.as_ref().ok_or_else(|| {
            Failure::new(118, "NamespaceNotSharded", format!("Collection {} is not sharded", self.namespace))
        })
    }

    /// All shards that own some of it.
    pub(super) fn shards(&self) -> Vec<String> {
        match &self.sharding {
            Some(sharding) => sharding.versions.keys().cloned().collect(),
            None => vec![self.primary.clone()],
        }
    }

    /// The fields by which `shard` sees whether this table is up to date.
    pub(super) fn version(&self, shard: &str) -> Document {
        if let Some(sharding) = &self.sharding {
            let version = sharding.versions.get(shard).copied().unwrap_or(NO_TIME);
            return doc! {"shardVersion": {"e": sharding.epoch, "t": sharding.timestamp, "v": version}};
        }
        let none = ObjectId::from_bytes([0; 12]);
        let mut fields = doc! {"shardVersion": {"e": none, "t": NO_TIME, "v": NO_TIME}};
        if let Some(version) = self.database_version.as_ref().filter(|_| shard == self.primary) {
            fields.insert("databaseVersion", version.clone());
        }
        fields
    }
}

/// What a filter demands a field to be equal to, if it does.
pub(super) fn demands(filter: &Document, field: &str) -> Option<Bson> {
    let mut demanded = Document::new();
    equalities(filter, &mut demanded);
    demanded.remove(field)
}

/// Collects what a filter demands to be equal to something.
fn equalities(filter: &Document, out: &mut Document) {
    for (key, condition) in filter {
        match condition {
            Bson::Array(parts) if key == "$and" => {
                parts.iter().filter_map(Bson::as_document).for_each(|part| equalities(part, out));
            }
            _ if key.starts_with('$') => {}
            Bson::RegularExpression(_) => {}
            Bson::Document(operators) if operators.keys().next().is_some_and(|key| key.starts_with('$')) => {
                if let Some(value) = operators.get("$eq") {
                    out.insert(key.clone(), value.clone());
                }
            }
            value => {
                out.insert(key.clone(), value.clone());
            }
        }
    }
}

/// The value at a dotted path.
fn below(document: &Document, path: &str) -> Option<Bson> {
    match path.split_once('.') {
        None => document.get(path).cloned(),
        Some((first, rest)) => below(document.get_document(first).ok()?, rest),
    }
}

/// Removes what is equal to something before it; sorts.
pub(super) fn distinct(mut values: Vec<Bson>) -> Vec<Bson> {
    values.sort_by(compare);
    values.dedup_by(|left, right| compare(left, right) == Ordering::Equal);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sharding(key: Document) -> Sharding {
        let collection = doc! {"key": key, "lastmodEpoch": ObjectId::new(), "timestamp": Timestamp { time: 1, increment: 1 }};
        let chunk = |min: Bson, max: Bson, shard: &str, version: u32| {
            let lastmod = Timestamp { time: version, increment: 0 };
            doc! {"min": {"a": min}, "max": {"a": max}, "shard": shard, "lastmod": lastmod}
        };
        let chunks =
            vec![chunk(Bson::Int32(5), Bson::MaxKey, "s1", 2), chunk(Bson::MinKey, Bson::Int32(5), "s0", 3)];
        Sharding::read(&collection, chunks).unwrap()
    }

    #[test]
    fn chunks_are_found_by_key() {
        let sharding = sharding(doc! {"a": 1});
        let shard = |values: Document| sharding.chunk_of(&values).unwrap().shard.clone();
        assert_eq!(shard(doc! {"a": 4}), "s0");
        assert_eq!(shard(doc! {"a": 5.0}), "s1");
        assert_eq!(shard(doc! {"a": "x"}), "s1");
        assert_eq!(shard(doc! {}), "s0");
        assert_eq!(sharding.versions["s0"].time, 3);
    }

    #[test]
    fn keys_of_filters() {
        let sharding = sharding(doc! {"a.b": 1});
        let key = |filter: Document| sharding.key_of_filter(&filter);
        assert_eq!(key(doc! {"a.b": 1}), Some(doc! {"a.b": 1}));
        assert_eq!(key(doc! {"a": {"b": 2}}), Some(doc! {"a.b": 2}));
        assert_eq!(key(doc! {"$and": [{"x": 1}, {"a.b": {"$eq": 3}}]}), Some(doc! {"a.b": 3}));
        assert_eq!(key(doc! {"a.b": {"$gt": 1}}), None);
        assert_eq!(key(doc! {"x": 1}), None);
    }
}
