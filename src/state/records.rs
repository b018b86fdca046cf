//! Reading and changing records on a cluster, with majority, exactly once.

use std::time::Duration;

use bson::raw::{RawArrayBuf, RawBsonRef, RawDocumentBuf};
use bson::{Document, RawDocument, rawdoc};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::clock::SharedClock;
use crate::cluster::command::{Reply, Request, SendError, ServerError, SharedCluster};

/// Why a record could not be read or changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RecordError {
    /// No answer within the limit; a change may have been made.
    #[error("no answer: {0}")]
    Unavailable(String),
    /// The server refused.
    #[error(transparent)]
    Refused(#[from] ServerError),
    /// A stored document is not what it should be.
    #[error("a stored record does not read: {0}")]
    Malformed(String),
}

/// Records on one cluster. Writes carry a session of their own, so that one that is sent twice counts once.
pub struct Records {
    cluster: SharedCluster,
    clock: SharedClock,
    limit: Duration,
    session: Mutex<(Uuid, i64)>,
}

const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Codes after which the same command may be sent again (the retryable writes specification).
const RETRYABLE: [i32; 12] = [11600, 11602, 10107, 13435, 13436, 189, 91, 7, 6, 89, 9001, 262];

impl Records {
    /// Records on `cluster`; a call gives up after `limit`.
    #[must_use]
    pub fn new(cluster: SharedCluster, clock: SharedClock, session: Uuid, limit: Duration) -> Self {
        Self { cluster, clock, limit, session: Mutex::new((session, 0)) }
    }

    /// Runs a command that changes nothing, again and again until there is an answer.
    ///
    /// # Errors
    /// [`RecordError`] when the limit passed or the server refused.
    pub async fn read(&self, database: &str, body: RawDocumentBuf) -> Result<Reply, RecordError> {
        self.until_answered(Request::new(database, body)).await
    }

    async fn until_answered(&self, request: Request) -> Result<Reply, RecordError> {
        let give_up = self.clock.now() + self.limit;
        loop {
            let left = give_up.saturating_sub(self.clock.now());
            let problem = match self.cluster.run(request.clone().within(left)).await {
                Ok(reply) => match reply.error() {
                    None => match write_concern_problem(&reply.body) {
                        None => return Ok(reply),
                        Some(problem) => problem,
                    },
                    Some(error) if RETRYABLE.contains(&error.code) => error.to_string(),
                    Some(error) => return Err(error.into()),
                },
                Err(
                    SendError::NotSent(problem)
                    | SendError::Busy(problem)
                    | SendError::LoginRefused(problem)
                    | SendError::Unknown(problem),
                ) => problem,
            };
            if self.clock.now() + RETRY_PAUSE >= give_up {
                return Err(RecordError::Unavailable(problem));
            }
            self.clock.sleep(RETRY_PAUSE).await;
        }
    }

    /// Runs a write with majority; sent again under the same number until there is an answer.
    ///
    /// # Errors
    /// [`RecordError`] when the limit passed (the write may have been made) or the server refused.
    pub async fn write(
        &self,
        database: &str,
        mut body: RawDocumentBuf,
        sequence: Option<(&'static str, Vec<u8>)>,
    ) -> Result<Reply, RecordError> {
        let mut session = self.session.lock().await;
        session.1 += 1;
        body.append(bson::raw::cstr!("lsid"), lsid(session.0));
        body.append(bson::raw::cstr!("txnNumber"), session.1);
        body.append(bson::raw::cstr!("writeConcern"), rawdoc! { "w": "majority" });
        let mut request = Request::new(database, body);
        if let Some((identifier, documents)) = sequence {
            request = request.sequence(identifier, documents);
        }
        self.until_answered(request).await
    }

    /// The documents of a collection that match `filter`, as they are now: a deposed primary, which would
    /// tell what was, cannot answer.
    ///
    /// # Errors
    /// [`RecordError`]; also when there are more than one reply holds.
    pub async fn find(
        &self,
        database: &str,
        collection: &str,
        filter: RawDocumentBuf,
        limit: i32,
    ) -> Result<Vec<RawDocumentBuf>, RecordError> {
        let body = rawdoc! {
            "find": collection, "filter": filter, "limit": limit, "batchSize": limit.saturating_add(1),
            "singleBatch": true, "sort": { "_id": 1 }, "readConcern": { "level": "linearizable" },
        };
        let reply = self.read(database, body).await?;
        first_batch(&reply.body).map_err(RecordError::Malformed)
    }

    /// Changes the document that `query` matches and returns what it is after; `None` when nothing matched.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn change(
        &self,
        database: &str,
        collection: &str,
        query: Document,
        update: Document,
        upsert: bool,
    ) -> Result<Option<RawDocumentBuf>, RecordError> {
        let raw = |document: &Document| {
            RawDocumentBuf::try_from(document).map_err(|error| RecordError::Malformed(error.to_string()))
        };
        let body = rawdoc! {
            "findAndModify": collection, "query": raw(&query)?, "update": raw(&update)?,
            "new": true, "upsert": upsert,
        };
        let reply = self.write(database, body, None).await?;
        match reply.body.get("value") {
            Ok(Some(RawBsonRef::Document(value))) => Ok(Some(value.to_owned())),
            _ => Ok(None),
        }
    }

    /// Removes the documents that match.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn remove(
        &self,
        database: &str,
        collection: &str,
        filter: RawDocumentBuf,
    ) -> Result<(), RecordError> {
        // Without a number: a delete of many cannot carry one, and repeating it is harmless.
        let body = rawdoc! {
            "delete": collection, "deletes": [{ "q": filter, "limit": 0 }],
            "writeConcern": { "w": "majority" },
        };
        self.until_answered(Request::new(database, body)).await.map(|_| ())
    }
}

/// A session id as commands carry it.
#[must_use]
pub fn lsid(id: Uuid) -> RawDocumentBuf {
    rawdoc! { "id": bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: id.as_bytes().to_vec() } }
}

/// Why the majority does not have a write (yet), from its reply.
#[must_use]
pub fn write_concern_problem(body: &RawDocument) -> Option<String> {
    let error = body.get_document("writeConcernError").ok()?;
    Some(error.get_str("errmsg").unwrap_or("write concern error").to_owned())
}

/// The documents of the first batch of a cursor.
///
/// # Errors
/// What is missing or does not parse.
pub fn first_batch(body: &RawDocument) -> Result<Vec<RawDocumentBuf>, String> {
    batch(body, "firstBatch")
}

/// The documents of a cursor's batch, `firstBatch` or `nextBatch`.
///
/// # Errors
/// What is missing or does not parse.
pub fn batch(body: &RawDocument, field: &str) -> Result<Vec<RawDocumentBuf>, String> {
    let cursor = body.get_document("cursor").map_err(|error| error.to_string())?;
    let batch = cursor.get_array(field).map_err(|error| error.to_string())?;
    batch
        .into_iter()
        .map(|item| match item {
            Ok(RawBsonRef::Document(document)) => Ok(document.to_owned()),
            Ok(_) => Err("an item of a batch is not a document".to_owned()),
            Err(error) => Err(error.to_string()),
        })
        .collect()
}

/// An array of documents.
#[must_use]
pub fn array_of<'a>(documents: impl IntoIterator<Item = &'a RawDocument>) -> RawArrayBuf {
    let mut array = RawArrayBuf::new();
    for document in documents {
        array.push(document.to_owned());
    }
    array
}
