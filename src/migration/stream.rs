//! A change stream on one cluster, reduced to what converging needs.

use std::time::Duration;

use bson::raw::{RawBsonRef, RawDocumentBuf, cstr};
use bson::{RawDocument, Timestamp, rawdoc};

use super::scope::Scope;
use crate::cluster::command::{Reply, Request, SendError, ServerId, SharedCluster, Target};
use crate::converge::read::cursor_id;
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::policy::canonical::key_of;
use crate::policy::streams::token_time;
use crate::state::process_writes::Transaction;
use crate::state::record::{DATABASE, MARKERS};

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A document changed.
    Change {
        /// Where.
        namespace: Namespace,
        /// Which.
        key: Key,
        /// It was not there before.
        insert: bool,
        /// `insert`, `update`, `replace` or `delete`.
        kind: &'static str,
        /// In which transaction, if in any.
        transaction: Option<Transaction>,
        /// When, on the cluster's time line.
        time: Timestamp,
    },
    /// Somebody pushed the stream.
    Marker,
    /// A collection was dropped, renamed or the like.
    Structural {
        /// The `operationType`.
        kind: String,
        /// Where.
        namespace: String,
    },
    /// A change whose key cannot be told.
    Unreadable(String),
}

/// Events up to a position.
#[derive(Debug, Clone)]
pub struct Batch {
    /// In order.
    pub events: Vec<Event>,
    /// Resuming here repeats none of `events` and skips nothing.
    pub token: RawDocumentBuf,
    /// The time of `token`: every event at or below it has been shown.
    pub position: Timestamp,
    /// The cluster's time when it answered.
    pub heard: Timestamp,
}

impl Batch {
    /// How many changes of documents it tells.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.events.iter().filter(|event| matches!(event, Event::Change { .. })).count() as u64
    }
}

/// Why a stream ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StreamError {
    /// The oplog no longer reaches back to the token: changes were missed, and only a comparison finds them.
    #[error("the oplog does not reach back to where the stream stopped: {0}")]
    CutOff(String),
    /// Something has happened that cannot be followed.
    #[error("{0}")]
    Lost(String),
    /// Worth another try.
    #[error("{0}")]
    Broken(String),
}

/// An open change stream.
pub struct ChangeStream {
    cluster: SharedCluster,
    /// Those known at the opening.
    namespaces: Vec<Namespace>,
    server: ServerId,
    cursor: i64,
    token: RawDocumentBuf,
}

/// Kinds of changes of documents.
const KINDS: [&str; 4] = ["insert", "update", "replace", "delete"];
const CODES_CUT_OFF: [i32; 3] = [286, 280, 260];
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

impl ChangeStream {
    /// Opens a stream over all that `scope` names and the markers, after `token` or from now on.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn open(
        cluster: &SharedCluster,
        scope: &Scope,
        token: Option<&RawDocument>,
    ) -> Result<(Self, Batch), StreamError> {
        let mut options = rawdoc! { "allChangesForCluster": true };
        if let Some(token) = token {
            options.append(cstr!("resumeAfter"), token.to_owned());
        }
        let body = rawdoc! {
            "aggregate": 1,
            "pipeline": [
                { "$changeStream": options },
                { "$match": { "$or": interesting(scope) } },
                { "$project": {
                    "operationType": 1, "ns": 1, "to": 1, "documentKey": 1, "clusterTime": 1,
                    "lsid": 1, "txnNumber": 1,
                } },
            ],
            "cursor": {},
            "readConcern": { "level": "majority" },
        };
        let reply = ask(cluster, Request::new("admin", body).within(ANSWER_LIMIT)).await?;
        let namespaces = scope.known();
        let batch = read_batch(&reply, "firstBatch", &namespaces)?;
        let stream = Self {
            cluster: cluster.clone(),
            namespaces,
            server: reply.server.clone(),
            cursor: cursor_id(&reply.body),
            token: batch.token.clone(),
        };
        Ok((stream, batch))
    }

    /// The next events; waits up to `patience` for one.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn next(&mut self, patience: Duration) -> Result<Batch, StreamError> {
        if self.cursor == 0 {
            return Err(StreamError::Broken("the server closed the stream".into()));
        }
        let body = rawdoc! {
            "getMore": self.cursor, "collection": "$cmd.aggregate", "batchSize": 2000,
            "maxTimeMS": i64::try_from(patience.as_millis()).unwrap_or(1000),
        };
        let request = Request::new("admin", body)
            .to(Target::Server(self.server.clone()))
            .within(patience + ANSWER_LIMIT);
        let reply = ask(&self.cluster, request).await?;
        self.cursor = cursor_id(&reply.body);
        let batch = read_batch(&reply, "nextBatch", &self.namespaces)?;
        self.token.clone_from(&batch.token);
        Ok(batch)
    }

    /// Ends it on the server; failing to is harmless.
    pub async fn close(self) {
        if self.cursor != 0 {
            let body = rawdoc! { "killCursors": "$cmd.aggregate", "cursors": [self.cursor] };
            let request = Request::new("admin", body).to(Target::Server(self.server.clone()));
            let _closed = self.cluster.run(request.within(Duration::from_secs(2))).await;
        }
    }
}

fn interesting(scope: &Scope) -> bson::raw::RawArrayBuf {
    let mut either = bson::raw::RawArrayBuf::new();
    let namespaces = &scope.known();
    let markers = Namespace::new(DATABASE, MARKERS);
    for namespace in namespaces.iter().chain([&markers]) {
        either.push(rawdoc! { "ns.db": namespace.database(), "ns.coll": namespace.collection() });
    }
    for namespace in namespaces {
        either.push(rawdoc! { "to.db": namespace.database(), "to.coll": namespace.collection() });
        either.push(rawdoc! { "ns.db": namespace.database(), "operationType": "dropDatabase" });
    }
    // From the start, so that all the life of a collection is seen that comes into being later.
    for pattern in scope.patterns() {
        let named = rawdoc! { "$regex": pattern.regex(), "$options": "s" };
        either.push(rawdoc! { "ns.db": pattern.database(), "ns.coll": named.clone() });
        either.push(rawdoc! { "to.db": pattern.database(), "to.coll": named });
        either.push(rawdoc! { "ns.db": pattern.database(), "operationType": "dropDatabase" });
    }
    either
}

async fn ask(cluster: &SharedCluster, request: Request) -> Result<Reply, StreamError> {
    let reply = cluster.run(request).await.map_err(|error| match error {
        SendError::NotSent(why)
        | SendError::Busy(why)
        | SendError::LoginRefused(why)
        | SendError::Unknown(why) => StreamError::Broken(why),
    })?;
    match reply.error() {
        None => Ok(reply),
        Some(error) if CODES_CUT_OFF.contains(&error.code) => Err(StreamError::CutOff(error.to_string())),
        Some(error) => Err(StreamError::Broken(error.to_string())),
    }
}

/// Reads the events of a cursor's batch, `firstBatch` or `nextBatch`.
///
/// # Errors
/// [`StreamError::Broken`]: it is no batch of a change stream.
pub fn read_batch(reply: &Reply, field: &str, namespaces: &[Namespace]) -> Result<Batch, StreamError> {
    let malformed = |what: &str| StreamError::Broken(format!("a change stream without {what}"));
    let cursor = reply.body.get_document("cursor").map_err(|_| malformed("cursor"))?;
    let token = cursor.get_document("postBatchResumeToken").map_err(|_| malformed("postBatchResumeToken"))?;
    let position = token_time(token).ok_or_else(|| malformed("a readable token"))?;
    let shown = cursor.get_array(field).map_err(|_| malformed(field))?;
    let mut events = Vec::new();
    for event in shown {
        let Ok(RawBsonRef::Document(event)) = event else { return Err(malformed("readable events")) };
        events.push(read_event(event, namespaces));
    }
    let heard = reply.operation_time.unwrap_or(position);
    let position = shown_until(position, events.last());
    Ok(Batch { events, token: token.to_owned(), position, heard })
}

fn read_event(event: &RawDocument, namespaces: &[Namespace]) -> Event {
    let part = |name: &str| event.get_document("ns").ok().and_then(|ns| ns.get_str(name).ok()).unwrap_or("");
    let (database, collection) = (part("db"), part("coll"));
    let kind = event.get_str("operationType").unwrap_or("unknown");
    if database == DATABASE && collection == MARKERS {
        return Event::Marker;
    }
    if !KINDS.contains(&kind) {
        return Event::Structural { kind: kind.to_owned(), namespace: format!("{database}.{collection}") };
    }
    let key = event.get_document("documentKey").ok().and_then(|key| key_of(key.get("_id").ok().flatten()?));
    match (key, event.get_timestamp("clusterTime")) {
        (Some(key), Ok(time)) => Event::Change {
            namespace: known_or_new(namespaces, database, collection),
            key,
            insert: kind == "insert",
            kind: KINDS.into_iter().find(|known| *known == kind).unwrap_or("update"),
            transaction: transaction_of(event),
            time,
        },
        _ => Event::Unreadable(format!("{kind} in {database}.{collection}")),
    }
}

/// Events come by the thousand, and of few collections.
fn known_or_new(namespaces: &[Namespace], database: &str, collection: &str) -> Namespace {
    let is_it = |known: &&Namespace| known.collection() == collection && known.database() == database;
    namespaces.iter().find(is_it).cloned().unwrap_or_else(|| Namespace::new(database, collection))
}

/// Only changes in transactions name a session.
fn transaction_of(event: &RawDocument) -> Option<Transaction> {
    let number = event.get_i64("txnNumber").ok()?;
    match event.get_document("lsid").ok()?.get("id").ok()?? {
        RawBsonRef::Binary(id) => Some((id.bytes.try_into().ok()?, number)),
        _ => None,
    }
}

/// Up to where every event has been shown. Those of a transaction have one time, and a batch may end among them:
/// then this is the time before, until a batch without events says that there are no more.
fn shown_until(position: Timestamp, last: Option<&Event>) -> Timestamp {
    match last {
        Some(Event::Change { transaction: Some(_), time, .. }) if *time == position => match time.increment {
            0 => Timestamp { time: time.time.saturating_sub(1), increment: u32::MAX },
            increment => Timestamp { increment: increment - 1, ..position },
        },
        _ => position,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_may_end_in_the_middle_of_a_transaction() {
        let at = |increment| Timestamp { time: 9, increment };
        let change = |transaction| Event::Change {
            namespace: Namespace::new("shop", "orders"),
            key: key_of(RawBsonRef::Int32(1)).unwrap(),
            insert: true,
            kind: "insert",
            transaction,
            time: at(5),
        };
        let inside = change(Some(([1; 16], 7)));
        assert_eq!(shown_until(at(5), Some(&inside)), at(4));
        assert_eq!(shown_until(at(6), Some(&inside)), at(6));
        assert_eq!(shown_until(at(5), Some(&change(None))), at(5));
        assert_eq!(shown_until(at(5), None), at(5), "there are no more");
    }
}
