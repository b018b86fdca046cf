//! Keys that cannot be made equal now: a durable list.

use std::collections::BTreeMap;

use bson::raw::RawBson;
use bson::{doc, rawdoc};
use parking_lot::Mutex;

use super::record::DATABASE;
use super::records::{RecordError, Records};
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::slots::SlotSet;
use crate::policy::canonical::key_of;

/// Collection of parked keys.
pub const PARKED: &str = "parked";
/// Keys that may be parked at once; beyond it the migration fails loudly.
pub const MOST: usize = 10_000;

/// A parked key.
#[derive(Debug, Clone)]
pub struct Parked {
    /// Where.
    pub namespace: Namespace,
    /// Which.
    pub key: Key,
    /// What stands in the way.
    pub why: String,
    /// Unix milliseconds.
    pub since: i64,
    /// How often it was tried.
    pub tries: u64,
}

/// The parked keys of one migration; stored before a checkpoint passes them.
pub struct Parking {
    migration: String,
    keys: Mutex<BTreeMap<(Namespace, Key), Parked>>,
}

impl Parking {
    /// Nothing parked yet.
    #[must_use]
    pub fn new(migration: &str) -> Self {
        Self { migration: migration.to_owned(), keys: Mutex::default() }
    }

    /// Reads what was parked before a restart.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn load(&self, records: &Records) -> Result<(), RecordError> {
        let filter = rawdoc! { "migration": self.migration.as_str() };
        let stored = records.find(DATABASE, PARKED, filter, i32::try_from(MOST).unwrap_or(i32::MAX)).await?;
        let mut keys = self.keys.lock();
        for parked in stored {
            let key = parked.get("key").ok().flatten().and_then(key_of);
            let namespace = parked.get_str("namespace").ok().and_then(Namespace::parse);
            let (Some(key), Some(namespace)) = (key, namespace) else { continue };
            let entry = Parked {
                namespace: namespace.clone(),
                key: key.clone(),
                why: parked.get_str("why").unwrap_or("").to_owned(),
                since: parked.get_i64("since").unwrap_or(0),
                tries: 0,
            };
            keys.insert((namespace, key), entry);
        }
        Ok(())
    }

    fn id(&self, namespace: &Namespace, key: &Key) -> String {
        format!("{}/{namespace}/{:032x}", self.migration, key.fingerprint())
    }

    /// Parks a key, durably.
    ///
    /// # Errors
    /// [`RecordError`]; the key is not parked then.
    pub async fn park(&self, records: &Records, parked: Parked) -> Result<(), RecordError> {
        let id = self.id(&parked.namespace, &parked.key);
        let key = bson::Bson::try_from(RawBson::from(parked.key.value()))
            .map_err(|error| RecordError::Malformed(error.to_string()))?;
        let update = doc! {
            "$set": {
                "migration": &self.migration, "namespace": parked.namespace.as_str(), "key": key,
                "why": &parked.why,
            },
            "$setOnInsert": { "since": parked.since },
        };
        records.change(DATABASE, PARKED, doc! { "_id": id }, update, true).await?;
        let mut keys = self.keys.lock();
        let entry =
            keys.entry((parked.namespace.clone(), parked.key.clone())).or_insert_with(|| parked.clone());
        entry.tries += 1;
        entry.why = parked.why;
        Ok(())
    }

    /// The key is equal now.
    ///
    /// # Errors
    /// [`RecordError`]; the key stays parked then.
    pub async fn unpark(
        &self,
        records: &Records,
        namespace: &Namespace,
        key: &Key,
    ) -> Result<(), RecordError> {
        let known = self.keys.lock().contains_key(&(namespace.clone(), key.clone()));
        if known {
            records.remove(DATABASE, PARKED, rawdoc! { "_id": self.id(namespace, key) }).await?;
            self.keys.lock().remove(&(namespace.clone(), key.clone()));
        }
        Ok(())
    }

    /// All of them.
    #[must_use]
    pub fn list(&self) -> Vec<Parked> {
        self.keys.lock().values().cloned().collect()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.lock().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether any lies in `slots`.
    #[must_use]
    pub fn any_in(&self, slots: &SlotSet) -> bool {
        self.keys.lock().keys().any(|(_, key)| slots.contains(key.slot()))
    }
}
