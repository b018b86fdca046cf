//! Single writes of documents, with retry history.

use std::sync::Arc;

use bson::oid::ObjectId;
use bson::raw::{RawDocumentBuf, cstr};
use bson::{RawArrayBuf, RawBson, RawBsonRef, RawDocument, Timestamp, rawdoc};

use super::command::Command;
use super::error::{Failure, INVALID_OPTIONS, Outcome};
use super::filter::{matches, operators};
use super::key::{Key, document_key, key_of};
use super::log::{Kind, Op};
use super::sessions::{Executed, Retryable, Statement};
use super::state::{ClusterClock, Member, Place, State};
use super::store::{Doc, Ns, Store, duplicate_id};
use super::update::{Change, stamped};
use crate::rng::Rng;

/// A member at work on one command.
pub(crate) struct Writer<'a> {
    pub(crate) member: &'a mut Member,
    clock: &'a mut ClusterClock,
    rng: &'a mut Rng,
    pub(crate) ns: Ns,
    pub(crate) retryable: Option<Retryable>,
    retried: Vec<i32>,
}

/// What one statement did.
pub(crate) struct Written {
    pub(crate) n: i32,
    pub(crate) modified: i32,
    pub(crate) upserted: Option<RawBson>,
    /// The document before and after, for findAndModify.
    pub(crate) before: Option<Doc>,
    pub(crate) after: Option<Doc>,
}

impl Written {
    fn nothing() -> Self {
        Self { n: 0, modified: 0, upserted: None, before: None, after: None }
    }
}

/// An update or upsert, of `update` or findAndModify.
pub(crate) struct Updating<'a> {
    pub(crate) filter: &'a RawDocument,
    pub(crate) change: Change<'a>,
    pub(crate) multi: bool,
    pub(crate) upsert: bool,
}

impl<'a> Writer<'a> {
    /// A writer for `command` on the member at `place`; a retryable one begins its number.
    pub(crate) fn new(state: &'a mut State, place: Place, command: &Command<'_>) -> Outcome<Self> {
        let (member, clock, rng) = state.writer(place);
        let retryable = command.retryable()?;
        if let Some(retryable) = &retryable {
            member.sessions.begin(retryable)?;
        }
        Ok(Self { member, clock, rng, ns: command.ns()?, retryable, retried: Vec::new() })
    }

    /// The first result of a statement that was executed before.
    pub(crate) fn history(&mut self, id: i32) -> Option<Arc<Statement>> {
        let found = self.member.sessions.executed(self.retryable.as_ref()?, id)?;
        self.retried.push(id);
        Some(found)
    }

    fn statement(&self, id: i32, result: Executed) -> Option<Statement> {
        self.retryable.as_ref().map(|of| Statement { of: of.clone(), id, result })
    }

    fn append(&mut self, op: Op, statement: Option<Statement>) {
        let time = self.clock.tick();
        self.member.append(time, 0, op, statement);
    }

    fn server_time(&mut self) -> Timestamp {
        self.clock.tick()
    }

    fn ensure_collection(&mut self) {
        if self.member.store.get(&self.ns).is_none() {
            let (ns, uuid) = (self.ns.clone(), self.rng.next());
            self.append(Op::Create { ns, uuid }, None);
        }
    }

    /// A new ObjectId.
    fn object_id(&mut self) -> ObjectId {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.rng.next().to_be_bytes());
        ObjectId::from_bytes(bytes)
    }

    /// Inserts a document.
    pub(crate) fn insert(&mut self, document: &RawDocument, id: i32) -> Outcome<i32> {
        if self.history(id).is_some() {
            return Ok(1);
        }
        let now = self.server_time();
        let mut document = stamped(document, now);
        if document.get("_id")?.is_none() {
            document = with_new_id(&document, self.object_id());
        }
        let result = Executed { n: 1, modified: 0, upserted: None, value: None };
        let statement = self.statement(id, result);
        self.put_new(Arc::new(document), statement)?;
        Ok(1)
    }

    /// Stores a document whose `_id` must be free.
    fn put_new(&mut self, document: Doc, statement: Option<Statement>) -> Outcome<()> {
        self.ensure_collection();
        let key = document_key(&document);
        if let Some(collection) = self.member.store.get(&self.ns) {
            if collection.documents.contains_key(&key) {
                return Err(duplicate_id(document.get("_id")?.unwrap_or(RawBsonRef::Null)));
            }
            collection.check_unique(&key, &document)?;
        }
        let ns = self.ns.clone();
        self.append(Op::Put { ns, key, document, kind: Kind::Insert }, statement);
        Ok(())
    }

    /// Runs an update; `value_of` says what a findAndModify remembers of the documents before and after.
    pub(crate) fn update(
        &mut self,
        updating: &Updating<'_>,
        id: i32,
        value_of: fn(&Doc, &Doc) -> Option<Doc>,
    ) -> Outcome<Written> {
        if updating.multi && self.retryable.is_some() {
            return Err(Failure::new(INVALID_OPTIONS, "a multi update cannot be retryable"));
        }
        let found = candidates(&self.member.store, &self.ns, updating.filter, updating.multi)?;
        if found.is_empty() {
            return if updating.upsert { self.upsert(updating, id) } else { Ok(Written::nothing()) };
        }
        let mut written = Written::nothing();
        for (key, before) in found {
            let now = self.clock.time;
            let after = Arc::new(updating.change.apply(&before, false, now)?);
            written.n += 1;
            if after.as_bytes() != before.as_bytes() {
                if let Some(collection) = self.member.store.get(&self.ns) {
                    collection.check_unique(&key, &after)?;
                }
                written.modified += 1;
                let value = value_of(&before, &after);
                let statement = self.statement(id, Executed { n: 1, modified: 1, upserted: None, value });
                let kind = if updating.change.replaces() { Kind::Replace } else { Kind::Update };
                let ns = self.ns.clone();
                self.append(Op::Put { ns, key, document: after.clone(), kind }, statement);
            }
            written.before = Some(before);
            written.after = Some(after);
        }
        Ok(written)
    }

    fn upsert(&mut self, updating: &Updating<'_>, id: i32) -> Outcome<Written> {
        let now = self.server_time();
        let seed = equalities(updating.filter);
        let mut document = updating.change.apply(&seed, true, now)?;
        if document.get("_id")?.is_none() {
            document = with_new_id(&document, self.object_id());
        }
        let document = Arc::new(document);
        let upserted: Option<RawBson> = document.get("_id")?.map(Into::into);
        let result = Executed { n: 1, modified: 0, upserted: upserted.clone(), value: None };
        let statement = self.statement(id, result);
        self.put_new(document.clone(), statement)?;
        Ok(Written { n: 1, modified: 0, upserted, before: None, after: Some(document) })
    }

    /// Deletes what matches: one document or all.
    pub(crate) fn delete(
        &mut self,
        filter: &RawDocument,
        one: bool,
        id: i32,
        keep_value: bool,
    ) -> Outcome<Written> {
        if !one && self.retryable.is_some() {
            return Err(Failure::new(INVALID_OPTIONS, "a multi delete cannot be retryable"));
        }
        let mut written = Written::nothing();
        for (key, before) in candidates(&self.member.store, &self.ns, filter, !one)? {
            written.n += 1;
            let value = keep_value.then(|| before.clone());
            let statement = self.statement(id, Executed { n: 1, modified: 0, upserted: None, value });
            let removed = before.get("_id")?.unwrap_or(RawBsonRef::Null).into();
            let ns = self.ns.clone();
            self.append(Op::Delete { ns, key, id: removed }, statement);
            written.before = Some(before);
        }
        Ok(written)
    }

    /// Names the retried statements in a reply.
    pub(crate) fn note_retries(&self, reply: &mut RawDocumentBuf, names_retries: bool) {
        if names_retries && !self.retried.is_empty() {
            let ids: RawArrayBuf = self.retried.iter().copied().collect();
            reply.append(cstr!("retriedStmtIds"), ids);
        }
    }
}

/// Which documents a write meets, in order of `_id`.
fn candidates(store: &Store, ns: &str, filter: &RawDocument, many: bool) -> Outcome<Vec<(Key, Doc)>> {
    let Some(collection) = store.get(ns) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    let mut consider = |key: &Key, document: &Doc| -> Outcome<bool> {
        if matches(filter, document)? {
            found.push((key.clone(), document.clone()));
        }
        Ok(many || found.is_empty())
    };
    if let Some(keys) = point_keys(filter) {
        for key in keys {
            if let Some(document) = collection.documents.get(&key)
                && !consider(&key, document)?
            {
                break;
            }
        }
        return Ok(found);
    }
    for (key, document) in &collection.documents {
        if !consider(key, document)? {
            break;
        }
    }
    Ok(found)
}

/// The keys of a filter by `_id`, sorted; `None` if it names none.
pub(crate) fn point_keys(filter: &RawDocument) -> Option<Vec<Key>> {
    let condition = filter.get("_id").ok().flatten()?;
    let Some(operators) = operators(condition) else { return Some(vec![key_of(condition)]) };
    if let Some(value) = operators.get("$eq").ok().flatten() {
        return Some(vec![key_of(value)]);
    }
    let items = operators.get_array("$in").ok()?;
    let mut keys: Vec<Key> = items.into_iter().flatten().map(key_of).collect();
    keys.sort_unstable();
    keys.dedup();
    Some(keys)
}

/// The equalities of a filter: what an upsert begins with.
fn equalities(filter: &RawDocument) -> RawDocumentBuf {
    let mut seed = RawDocumentBuf::new();
    for (name, condition) in filter.iter().flatten() {
        if name.as_str().starts_with('$') {
            continue;
        }
        let value = match operators(condition) {
            None => Some(condition),
            Some(operators) => operators.get("$eq").ok().flatten(),
        };
        if let Some(value) = value {
            seed.append(name, value);
        }
    }
    seed
}

fn with_new_id(document: &RawDocument, id: ObjectId) -> RawDocumentBuf {
    let mut result = rawdoc! { "_id": id };
    for (name, value) in document.iter().flatten() {
        result.append(name, value);
    }
    result
}
