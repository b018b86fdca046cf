//! Guarded writes to the mirror.
//!
//! A replacement is a pipeline update with the new document as a literal: it keeps `Timestamp(0, 0)`,
//! `$`-named and duplicate fields, which a plain replacement refuses or changes. The guard compares the whole
//! document, under simple collation. Validation is bypassed: documents may be older than their validator.

use std::borrow::Cow;
use std::sync::Arc;

use bson::raw::{RawDocumentBuf, cstr};
use bson::{RawDocument, rawdoc};

use super::read::ask;
use super::sessions::Sessions;
use crate::cluster::command::{Commands, Reply, Request};
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::policy::converge::{Action, Failure, failure, is_zero_timestamp};
use crate::policy::shard_key::ShardKey;
use crate::state::own_writes::{By, OwnWrites};
use crate::state::records::{first_batch, write_concern_problem};

/// A command's statements stay below this many bytes, unless it is one.
const COMMAND_BYTES: usize = 32 * 1024 * 1024;

/// `WriteConflict`, `NoSuchTransaction`.
const ENDED_BY_THE_SERVER: [i32; 2] = [112, 251];

/// What became of a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Written {
    /// The mirror has it now.
    Done,
    /// The same, but another shard may hold a document of that `_id`, which an insert does not meet.
    Inserted,
    /// Not known, or not yet: both sides must be read again.
    Again,
    /// The mirror did not take it.
    Failed(Failure),
}

/// How mirror writes are made.
pub struct Mirror<'a> {
    /// The mirror.
    pub cluster: &'a dyn Commands,
    /// This process's sessions there.
    pub sessions: &'a Sessions,
    /// Where its writes are registered.
    pub own: &'a Arc<OwnWrites>,
    /// Which of both it is.
    pub side: Side,
    /// The collection.
    pub namespace: &'a Namespace,
    /// The `writeConcern`.
    pub concern: &'a RawDocument,
    /// Compare before setting.
    pub guard: bool,
    /// By what the collection is sharded there.
    pub shard_key: Option<&'a ShardKey>,
}

#[derive(Default)]
struct Bulk {
    keys: Vec<Key>,
    statements: Vec<u8>,
}

impl Bulk {
    fn push(&mut self, key: &Key, statement: &RawDocument) {
        self.keys.push(key.clone());
        self.statements.extend_from_slice(statement.as_bytes());
    }
}

impl Mirror<'_> {
    /// Runs the actions; each answer belongs to the key at the same place in the returned list.
    ///
    /// # Errors
    /// In words, when an outcome is not known. The sessions remember that something may still arrive.
    pub async fn apply(&self, actions: &[(Key, Action<'_>)]) -> Result<Vec<(Key, Written)>, String> {
        let (mut inserts, mut updates, mut deletes) = (Bulk::default(), Bulk::default(), Bulk::default());
        let mut results = Vec::with_capacity(actions.len());
        for (key, action) in actions {
            let (bulk, statement) = match action {
                Action::Nothing => {
                    results.push((key.clone(), Written::Done));
                    continue;
                }
                Action::ReplaceLarge { seen, want } => {
                    results.push((key.clone(), self.replace_in_transaction(key, seen, want).await?));
                    continue;
                }
                Action::Replace { seen, want } if self.moves_away(seen, want) => {
                    // A router moves a document to another shard only by a command of its own.
                    let mut alone = Bulk::default();
                    alone.push(key, &self.replacement(key, seen, want));
                    results.extend(self.run("update", "updates", alone).await?);
                    continue;
                }
                Action::Insert(document) => (&mut inserts, Cow::Borrowed(*document)),
                Action::InsertStub(document) => (&mut inserts, Cow::Owned(stub(document))),
                Action::Replace { seen, want } => {
                    (&mut updates, Cow::Owned(self.replacement(key, seen, want)))
                }
                Action::Delete { seen, .. } => (&mut deletes, Cow::Owned(self.deletion(key, seen))),
            };
            if bulk.statements.len() + statement.as_bytes().len() > COMMAND_BYTES {
                let (command, identifier) = match action {
                    Action::Insert(_) | Action::InsertStub(_) => ("insert", "documents"),
                    Action::Delete { .. } => ("delete", "deletes"),
                    _ => ("update", "updates"),
                };
                results.extend(self.run(command, identifier, std::mem::take(bulk)).await?);
            }
            bulk.push(key, &statement);
        }
        let (inserted, updated, deleted) = futures::join!(
            self.run("insert", "documents", inserts),
            self.run("update", "updates", updates),
            self.run("delete", "deletes", deletes),
        );
        results.extend(inserted?);
        results.extend(updated?);
        results.extend(deleted?);
        for (key, written) in &mut results {
            let has = |what: fn(&Action<'_>) -> bool| actions.iter().any(|(of, it)| of == key && what(it));
            if *written != Written::Done {
                continue;
            }
            // The stub is only half of it, and so is a deletion that makes room for a document.
            let is_half = |it: &Action<'_>| {
                matches!(it, Action::InsertStub(_) | Action::Delete { in_the_way: true, .. })
            };
            if has(is_half) {
                *written = Written::Again;
            } else if self.shard_key.is_some_and(|key| !key.is_id())
                && has(|it| matches!(it, Action::Insert(_)))
            {
                *written = Written::Inserted;
            }
        }
        Ok(results)
    }

    fn filter(&self, key: &Key, seen: &RawDocument) -> RawDocumentBuf {
        let mut equal = RawDocumentBuf::new();
        equal.append(cstr!("$eq"), key.value());
        let mut filter = rawdoc! { "_id": equal };
        if let Some(shard_key) = self.shard_key {
            shard_key.aim(&mut filter, seen);
        }
        if self.guard {
            // By `$cmp`: 5.0 tries to turn an `$eq` with `$$ROOT` into a match on a field, and fails (measured).
            let compared = rawdoc! { "$cmp": ["$$ROOT", { "$literal": seen.to_owned() }] };
            filter.append(cstr!("$expr"), rawdoc! { "$eq": [compared, 0] });
        }
        filter
    }

    /// Whether the replacement may lie on another shard than what it replaces.
    fn moves_away(&self, seen: &RawDocument, want: &RawDocument) -> bool {
        self.shard_key.is_some_and(|key| !key.same_place(seen, want))
    }

    fn replacement(&self, key: &Key, seen: &RawDocument, want: &RawDocument) -> RawDocumentBuf {
        rawdoc! {
            "q": self.filter(key, seen),
            "u": [{ "$replaceWith": { "$literal": want.to_owned() } }],
            "collation": { "locale": "simple" },
        }
    }

    fn deletion(&self, key: &Key, seen: &RawDocument) -> RawDocumentBuf {
        rawdoc! { "q": self.filter(key, seen), "limit": 1, "collation": { "locale": "simple" } }
    }

    async fn run(
        &self,
        command: &str,
        identifier: &'static str,
        bulk: Bulk,
    ) -> Result<Vec<(Key, Written)>, String> {
        if bulk.keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut body = RawDocumentBuf::new();
        body.append(
            bson::raw::CString::try_from(command).map_err(|error| error.to_string())?,
            self.namespace.collection(),
        );
        body.append(cstr!("ordered"), false);
        if command != "delete" {
            body.append(cstr!("bypassDocumentValidation"), true);
        }
        body.append(cstr!("writeConcern"), self.concern.to_owned());
        let mut session = self.sessions.borrow().await?;
        // Dropped before the session: what is lost is known before that counts as tainted.
        let writing = self.own.begin(self.side, self.namespace, &bulk.keys, By::MirrorSession);
        session.stamp(&mut body);
        let request = Request::new(self.namespace.database(), body).sequence(identifier, bulk.statements);
        let reply = ask(self.cluster, request).await?;
        session.settled();
        writing.ended(reply.operation_time);
        if let Some(problem) = write_concern_problem(&reply.body) {
            return Err(problem);
        }
        Ok(outcomes(bulk.keys, &reply.body))
    }

    /// Compares and sets in a transaction: only one of the two documents travels in each command.
    async fn replace_in_transaction(
        &self,
        key: &Key,
        seen: &RawDocument,
        want: &RawDocument,
    ) -> Result<Written, String> {
        // A transaction that was given up midway keeps its locks, until its session is barred.
        if self.sessions.any_tainted() {
            self.sessions.settle().await?;
        }
        let mut session = self.sessions.borrow().await?;
        let writing = self.own.begin(self.side, self.namespace, [key], By::MirrorSession);
        let mut start = RawDocumentBuf::new();
        session.stamp(&mut start);
        session.begins_transaction();
        let mut equal = RawDocumentBuf::new();
        equal.append(cstr!("$eq"), key.value());
        let mut filter = rawdoc! { "_id": equal };
        if let Some(shard_key) = self.shard_key {
            shard_key.aim(&mut filter, seen);
        }
        let find = rawdoc! { "find": self.namespace.collection(), "filter": filter.clone(), "startTransaction": true };
        let now = self.in_transaction(self.namespace.database(), find, &start).await?;
        let now = now.map_or_else(|| Ok(Vec::new()), |now| first_batch(&now.body))?;
        let mut done = now.first().is_some_and(|now| now.as_bytes() == seen.as_bytes());
        if done {
            let update = rawdoc! {
                "update": self.namespace.collection(), "bypassDocumentValidation": true,
                "updates": [{ "q": filter, "u": [{ "$replaceWith": { "$literal": want.to_owned() } }] }],
            };
            done = self.in_transaction(self.namespace.database(), update, &start).await?.is_some();
        }
        let majority = rawdoc! { "w": "majority" };
        let mut ended = None;
        if done {
            let commit = rawdoc! { "commitTransaction": 1, "writeConcern": majority };
            ended = self.in_transaction("admin", commit, &start).await?.map(|reply| reply.operation_time);
            done = ended.is_some();
        } else {
            let abort = rawdoc! { "abortTransaction": 1, "writeConcern": majority };
            let _ended_by_the_server = self.in_transaction("admin", abort, &start).await?;
        }
        session.settled();
        match ended {
            Some(time) => writing.ended(time),
            None => writing.nothing(),
        }
        Ok(if done { Written::Done } else { Written::Again })
    }

    /// One command of a transaction; `None` when the server has ended the transaction without effect, as it
    /// does when somebody else writes the same document.
    async fn in_transaction(
        &self,
        database: &str,
        mut body: RawDocumentBuf,
        session: &RawDocument,
    ) -> Result<Option<Reply>, String> {
        append_all(&mut body, session)?;
        body.append(cstr!("autocommit"), false);
        let reply =
            self.cluster.run(Request::new(database, body)).await.map_err(|error| error.to_string())?;
        match reply.error() {
            None => Ok(Some(reply)),
            Some(error) if ENDED_BY_THE_SERVER.contains(&error.code) => Ok(None),
            Some(error) => Err(error.to_string()),
        }
    }

    /// Removes a document that holds a unique value in the way, if it is still what `seen` says.
    ///
    /// # Errors
    /// In words, when the outcome is not known.
    pub async fn remove(&self, key: &Key, seen: &RawDocument) -> Result<(), String> {
        let mut bulk = Bulk::default();
        bulk.push(key, &self.deletion(key, seen));
        self.run("delete", "deletes", bulk).await.map(|_| ())
    }

    /// The sessions, to wait on their clock.
    #[must_use]
    pub const fn sessions(&self) -> &Sessions {
        self.sessions
    }
}

fn append_all(body: &mut RawDocumentBuf, fields: &RawDocument) -> Result<(), String> {
    for field in fields {
        let (name, value) = field.map_err(|error| error.to_string())?;
        body.append(name, value);
    }
    Ok(())
}

/// The document without what an insert would change; with its shard key, so that it lies where it should.
fn stub(document: &RawDocument) -> RawDocumentBuf {
    let mut stub = RawDocumentBuf::new();
    for (name, value) in document.iter().flatten() {
        if name.as_str() == "_id" || !is_zero_timestamp(value) {
            stub.append(name, value);
        }
    }
    stub
}

/// Which statements did what, from one reply for all of them.
fn outcomes(keys: Vec<Key>, body: &RawDocument) -> Vec<(Key, Written)> {
    let mut failures = std::collections::HashMap::new();
    if let Ok(errors) = body.get_array("writeErrors") {
        for error in errors.into_iter().flatten().filter_map(|error| error.as_document()) {
            if let Ok(index) = error.get_i32("index") {
                failures.insert(usize::try_from(index).unwrap_or(usize::MAX), failure(error));
            }
        }
    }
    let matched = crate::cluster::command::number(body, "n").unwrap_or(0.0);
    #[expect(clippy::cast_precision_loss, reason = "at most 100,000 statements")]
    let all = matched == (keys.len() - failures.len()) as f64;
    let rest = if all { Written::Done } else { Written::Again };
    keys.into_iter()
        .enumerate()
        .map(|(index, key)| match failures.remove(&index) {
            Some(Failure::Guard) => (key, Written::Again),
            Some(failure) => (key, Written::Failed(failure)),
            None => (key, rest.clone()),
        })
        .collect()
}
