//! Collections, documents and unique indexes: the state that a log of entries makes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bson::raw::RawDocumentBuf;
use bson::{RawBsonRef, RawDocument, rawdoc};

use super::error::{Failure, Outcome};
use super::filter::lookup;
use super::key::{Key, key_of};
use super::log::Op;

/// A stored document.
pub(crate) type Doc = Arc<RawDocumentBuf>;

/// `database.collection`.
pub(crate) type Ns = Arc<str>;

/// An index other than `_id_`.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    /// The specification as it was given.
    pub(crate) spec: Arc<RawDocumentBuf>,
    fields: Vec<String>,
    unique: bool,
    sparse: bool,
    /// Value to document, for unique ones.
    entries: BTreeMap<Key, Key>,
}

impl Index {
    fn new(spec: Arc<RawDocumentBuf>) -> Self {
        let fields = spec
            .get_document("key")
            .map(|key| key.iter().flatten().map(|(name, _)| name.as_str().to_owned()).collect::<Vec<_>>());
        let flag = |name| spec.get_bool(name).unwrap_or(false);
        let (unique, sparse) = (flag("unique"), flag("sparse"));
        Self { fields: fields.unwrap_or_default(), unique, sparse, entries: BTreeMap::new(), spec }
    }

    /// The value of `document` in this index; `None` if it has no entry.
    fn value(&self, document: &RawDocument) -> Option<Key> {
        if !self.unique {
            return None;
        }
        let found = |field: &String| lookup(field, document);
        if self.sparse && self.fields.iter().all(|field| found(field).is_none()) {
            return None;
        }
        let mut key = Key::new();
        for field in &self.fields {
            key.extend(key_of(found(field).unwrap_or(RawBsonRef::Null)));
        }
        Some(key)
    }

    fn violation(&self, document: &RawDocument) -> Failure {
        let mut value = RawDocumentBuf::new();
        for field in &self.fields {
            let Ok(name) = bson::raw::CString::try_from(field.as_str()) else { continue };
            value.append(name, lookup(field, document).unwrap_or(RawBsonRef::Null));
        }
        let pattern = self.spec.get_document("key").map(RawDocument::to_owned).unwrap_or_default();
        Failure::duplicate(pattern, value)
    }
}

/// One collection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Collection {
    /// Its identity; another one after a drop.
    pub(crate) uuid: u64,
    /// By canonical `_id`.
    pub(crate) documents: BTreeMap<Key, Doc>,
    /// Those beside `_id_`.
    pub(crate) indexes: Vec<Index>,
}

impl Collection {
    /// Fails when `document` may not stand under `key`.
    pub(crate) fn check_unique(&self, key: &Key, document: &RawDocument) -> Outcome<()> {
        for index in &self.indexes {
            let Some(value) = index.value(document) else { continue };
            if index.entries.get(&value).is_some_and(|holder| holder != key) {
                return Err(index.violation(document));
            }
        }
        Ok(())
    }

    fn put(&mut self, key: &Key, document: Doc) {
        if !self.indexes.is_empty() {
            self.unindex(key);
            for index in &mut self.indexes {
                if let Some(value) = index.value(&document) {
                    index.entries.insert(value, key.clone());
                }
            }
        }
        match self.documents.get_mut(key) {
            Some(slot) => *slot = document,
            None => {
                self.documents.insert(key.clone(), document);
            }
        }
    }

    fn remove(&mut self, key: &Key) {
        self.unindex(key);
        self.documents.remove(key);
    }

    fn unindex(&mut self, key: &Key) {
        let Some(document) = self.documents.get(key) else { return };
        for index in &mut self.indexes {
            if let Some(value) = index.value(document)
                && index.entries.get(&value) == Some(key)
            {
                index.entries.remove(&value);
            }
        }
    }

    /// Builds an index over what is there.
    ///
    /// # Errors
    /// Two documents have its value, and it is unique.
    pub(crate) fn build(&self, spec: Arc<RawDocumentBuf>) -> Outcome<Index> {
        let mut index = Index::new(spec);
        for (key, document) in &self.documents {
            let Some(value) = index.value(document) else { continue };
            if index.entries.insert(value, key.clone()).is_some() {
                return Err(index.violation(document));
            }
        }
        Ok(index)
    }
}

/// All collections of a member.
#[derive(Debug, Clone, Default)]
pub(crate) struct Store(BTreeMap<Ns, Collection>);

impl Store {
    /// A collection.
    pub(crate) fn get(&self, ns: &str) -> Option<&Collection> {
        self.0.get(ns)
    }

    /// Every collection with its name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Ns, &Collection)> {
        self.0.iter()
    }

    /// A document.
    pub(crate) fn document(&self, ns: &str, key: &Key) -> Option<&Doc> {
        self.0.get(ns)?.documents.get(key)
    }

    /// Makes the change of one entry.
    pub(crate) fn apply(&mut self, op: &Op) {
        match op {
            Op::Put { ns, key, document, .. } => self.entry(ns).put(key, document.clone()),
            Op::Delete { ns, key, .. } => self.entry(ns).remove(key),
            Op::Create { ns, uuid } => self.entry(ns).uuid = *uuid,
            Op::Drop { ns } => {
                self.0.remove(ns);
            }
            Op::Index { ns, spec } => {
                let collection = self.entry(ns);
                if let Ok(index) = collection.build(spec.clone()) {
                    collection.indexes.push(index);
                }
            }
            Op::Noop => {}
        }
    }

    fn entry(&mut self, ns: &Ns) -> &mut Collection {
        if !self.0.contains_key(ns) {
            self.0.insert(ns.clone(), Collection::default());
        }
        self.0.get_mut(ns).unwrap()
    }
}

/// The failure of a second document with one `_id`.
pub(crate) fn duplicate_id(id: RawBsonRef<'_>) -> Failure {
    let mut value = RawDocumentBuf::new();
    value.append(bson::raw::cstr!("_id"), id);
    Failure::duplicate(rawdoc! { "_id": 1 }, value)
}
