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
    keys: Mutex<BTreeMap<(Namespace, Key), Parked>>,
}

impl Parking {
    /// Nothing parked yet.
    #[must_use]
    pub fn new(migration: &str) -> Self {
        Self { migration: migration.to_owned(), keys: Mutex::default() }
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
            self.keys.lock().extend(page.iter().filter_map(|stored| read(stored)));
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

    /// A parked key was tried once more; this is what stands in its way now.
    pub fn note_try(&self, namespace: &Namespace, key: &Key, why: String) {
        if let Some(parked) = self.keys.lock().get_mut(&(namespace.clone(), key.clone())) {
            parked.tries += 1;
            parked.why = why;
        }
    }

    /// These keys of a collection are equal now; those that are not parked cost nothing.
    ///
    /// # Errors
    /// [`RecordError`]; the keys stay parked then.
    pub async fn unpark(
        &self,
        records: &Records,
        namespace: &Namespace,
        equal: impl Iterator<Item = &Key>,
    ) -> Result<(), RecordError> {
        let known: Vec<(Namespace, Key)> = {
            let keys = self.keys.lock();
            equal.map(|key| (namespace.clone(), key.clone())).filter(|it| keys.contains_key(it)).collect()
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
        self.keys.lock().values().cloned().collect()
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
