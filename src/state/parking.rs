//! Keys that cannot be made equal now: a durable list.

use std::collections::BTreeMap;

use bson::raw::{RawArrayBuf, RawBson};
use bson::{RawDocument, doc, rawdoc};
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
const PAGE: i32 = 1000;

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
    keys: Mutex<BTreeMap<(Namespace, Key), Entry>>,
    /// How often a key was parked. Held while the stored list changes: what is stored is what is known.
    times: tokio::sync::Mutex<u64>,
}

/// A key in the list, and which time of all it was parked last.
struct Entry {
    parked: Parked,
    time: u64,
}

/// Keys that were parked before a look at them: who has parked one since knows better than that look.
#[derive(Debug, Default)]
pub struct Looked(BTreeMap<Key, u64>);

impl Parking {
    /// Nothing parked yet.
    #[must_use]
    pub fn new(migration: &str) -> Self {
        Self { migration: migration.to_owned(), keys: Mutex::default(), times: tokio::sync::Mutex::default() }
    }

    /// Reads what was parked before a restart: all of it, page by page, since what is left out would neither stand
    /// in the way of moves nor ever be taken from the list. What is stored never exceeds the limit by more than what
    /// was parked at the same moment; should it, the migration has failed, and compares everything before it goes on.
    ///
    /// # Errors
    /// [`RecordError`]; a part may have been read.
    pub async fn load(&self, records: &Records) -> Result<(), RecordError> {
        let mut after = String::new();
        while self.len() < 2 * MOST {
            let filter = rawdoc! { "migration": self.migration.as_str(), "_id": { "$gt": after.as_str() } };
            let page = records.find(DATABASE, PARKED, filter, PAGE).await?;
            // A page ends early where its keys are large; only an empty one is the last.
            let Some(last) = page.last() else { return Ok(()) };
            let id = last.get_str("_id").map_err(|error| RecordError::Malformed(error.to_string()))?;
            id.clone_into(&mut after);
            let known = page.iter().filter_map(|stored| read(stored));
            self.keys.lock().extend(known.map(|(it, parked)| (it, Entry { parked, time: 0 })));
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
        let mut times = self.times.lock().await;
        records.change(DATABASE, PARKED, doc! { "_id": id }, update, true).await?;
        *times += 1;
        let mut keys = self.keys.lock();
        let it = (parked.namespace.clone(), parked.key.clone());
        let entry = keys.entry(it).or_insert_with(|| Entry { parked: parked.clone(), time: 0 });
        entry.time = *times;
        entry.parked.tries += 1;
        entry.parked.why = parked.why;
        Ok(())
    }

    /// To be called before a look at `keys` that may show them to be equal.
    #[must_use]
    pub fn before_look(&self, namespace: &Namespace, keys: &[Key]) -> Looked {
        let known = self.keys.lock();
        if known.is_empty() {
            return Looked::default();
        }
        let time = |key: &Key| known.get(&(namespace.clone(), key.clone())).map(|entry| entry.time);
        Looked(keys.iter().filter_map(|key| Some((key.clone(), time(key)?))).collect())
    }

    /// A parked key was tried once more; this is what stands in its way now.
    pub fn note_try(&self, namespace: &Namespace, key: &Key, why: String) {
        if let Some(Entry { parked, .. }) = self.keys.lock().get_mut(&(namespace.clone(), key.clone())) {
            parked.tries += 1;
            parked.why = why;
        }
    }

    /// These keys of a collection were `equal` when they were looked at; those that are not parked cost nothing, and those
    /// that were parked since stay so.
    ///
    /// # Errors
    /// [`RecordError`]; the keys stay parked then.
    pub async fn unpark(
        &self,
        records: &Records,
        namespace: &Namespace,
        looked: &Looked,
        equal: impl Iterator<Item = &Key>,
    ) -> Result<(), RecordError> {
        if looked.0.is_empty() {
            return Ok(());
        }
        let _unchanged = self.times.lock().await;
        let known: Vec<(Namespace, Key)> = {
            let keys = self.keys.lock();
            let is_as_seen = |it: &(Namespace, Key)| {
                let seen = looked.0.get(&it.1);
                seen.is_some() && keys.get(it).map(|entry| &entry.time) == seen
            };
            equal.map(|key| (namespace.clone(), key.clone())).filter(is_as_seen).collect()
        };
        if known.is_empty() {
            return Ok(());
        }
        let mut ids = RawArrayBuf::new();
        known.iter().for_each(|(_, key)| ids.push(self.id(namespace, key)));
        records.remove(DATABASE, PARKED, rawdoc! { "_id": { "$in": ids } }).await?;
        let mut keys = self.keys.lock();
        for it in &known {
            keys.remove(it);
        }
        Ok(())
    }

    /// All of them.
    #[must_use]
    pub fn list(&self) -> Vec<Parked> {
        self.keys.lock().values().map(|entry| entry.parked.clone()).collect()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.lock().len()
    }

    /// Whether there are more than may be: nothing else is parked then.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len() > MOST
    }

    /// Whether a key is parked.
    #[must_use]
    pub fn contains(&self, namespace: &Namespace, key: &Key) -> bool {
        self.keys.lock().contains_key(&(namespace.clone(), key.clone()))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether any lies in `slots`, by `slots_of` each.
    #[must_use]
    pub fn any_in(&self, slots: &SlotSet, slots_of: impl Fn(&Namespace, &Key) -> SlotSet) -> bool {
        self.keys.lock().keys().any(|(namespace, key)| slots.meets(&slots_of(namespace, key)))
    }
}

fn read(stored: &RawDocument) -> Option<((Namespace, Key), Parked)> {
    let key = key_of(stored.get("key").ok().flatten()?)?;
    let namespace = Namespace::parse(stored.get_str("namespace").ok()?)?;
    let parked = Parked {
        namespace: namespace.clone(),
        key: key.clone(),
        why: stored.get_str("why").unwrap_or("").to_owned(),
        since: stored.get_i64("since").unwrap_or(0),
        tries: 0,
    };
    Some(((namespace, key), parked))
}
