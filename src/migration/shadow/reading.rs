//! Running one read to its end, within limits.

use std::time::Duration;

use bson::raw::RawDocumentBuf;
use bson::{RawDocument, Timestamp, rawdoc};

use super::{Shadower, is_failure, namespace};
use crate::clock::SharedClock;
use crate::cluster::command::{Commands, Request, SendError, Target};
use crate::converge::read::cursor_id;
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::policy::shadow::answer::Answer;
use crate::policy::shadow::eligible::{again, batch, is_passing, whole_answer};
use crate::state::handed_over::Job;

/// Bytes of documents of one reply that are kept, all its batches together; of the last one more is read.
const MOST_BYTES: usize = 16 << 20;
/// Documents of one reply that are kept.
const MOST_DOCUMENTS: usize = 10_000;
/// How long a read may take, to its end.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// A read that was served.
#[derive(Debug, Clone)]
pub(in crate::migration) struct Read {
    pub(in crate::migration) name: String,
    pub(in crate::migration) namespace: Namespace,
    pub(in crate::migration) body: RawDocumentBuf,
    pub(in crate::migration) served: Side,
}

/// Why there is no answer to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::migration) enum Trouble {
    /// It is larger than what is compared.
    TooLarge,
    /// The cluster did not answer in time, or was busy with itself.
    Failed,
}

/// How durable what is read must be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Level {
    /// As an application reads.
    Local,
    /// What the majority has, at or after this time.
    Majority(Option<Timestamp>),
}

impl Level {
    fn concern(self) -> RawDocumentBuf {
        match self {
            Self::Local => rawdoc! { "level": "local" },
            Self::Majority(None) => rawdoc! { "level": "majority" },
            Self::Majority(Some(time)) => rawdoc! { "level": "majority", "afterClusterTime": time },
        }
    }
}

impl Read {
    /// Understands what the data plane handed over.
    pub(in crate::migration) fn of(job: &Job) -> Option<Self> {
        let body = RawDocument::from_bytes(&job.body).ok()?;
        let name = body.iter().next()?.ok()?.0.as_str().to_owned();
        let namespace = namespace(&job.database, body)?;
        Some(Self { name, namespace, body: body.to_owned(), served: job.served })
    }

    /// Runs it on `cluster` to its end, within limits, and keeps nothing; how long the first reply took.
    pub(in crate::migration) async fn drain(
        &self,
        cluster: &dyn Commands,
        clock: &SharedClock,
    ) -> Result<Duration, Trouble> {
        let begun = clock.now();
        let left = || (begun + LIMIT).saturating_sub(clock.now());
        let reply = cluster.run(self.request(Level::Local, "reshard rehearsal")).await.map_err(failed)?;
        let took = clock.now().saturating_sub(begun);
        let failed =
            |answer: Answer| is_failure(&answer) || matches!(answer, Answer::Error(code) if is_passing(code));
        if whole_answer(&reply.body).is_some_and(failed) {
            return Err(Trouble::Failed);
        }
        let (mut bytes, id) = (reply.body.as_bytes().len(), cursor_id(&reply.body));
        let mut cursor = Cursor { cluster, namespace: &self.namespace, id, at: reply.server };
        while cursor.id != 0 {
            if bytes > MOST_BYTES || left().is_zero() {
                cursor.close().await;
                return Err(Trouble::TooLarge);
            }
            bytes += size(&documents(&cursor.more(left()).await?, "nextBatch")?);
        }
        Ok(took)
    }

    fn request(&self, level: Level, comment: &str) -> Request {
        let millis = i64::try_from(LIMIT.as_millis()).unwrap_or(i64::MAX);
        let body = again(&self.body, &level.concern(), millis, comment);
        Request::new(self.namespace.database(), body).within(LIMIT)
    }
}

impl Shadower {
    /// What `side` says.
    pub(super) async fn read(&self, read: &Read, side: Side, level: Level) -> Result<Answer, Trouble> {
        let cluster = &**self.clusters.get(side);
        let deadline = self.context.clock.now() + LIMIT;
        let reply = cluster.run(read.request(level, "reshard shadow")).await.map_err(failed)?;
        if let Some(answer) = whole_answer(&reply.body) {
            return kept(answer);
        }
        let mut collected = Collected::default();
        let first = collected.add(documents(&reply.body, "firstBatch")?);
        let rest =
            Cursor { cluster, namespace: &read.namespace, id: cursor_id(&reply.body), at: reply.server };
        if let Err(trouble) = first {
            rest.close().await;
            return Err(trouble);
        }
        rest.read_on(collected, || deadline.saturating_sub(self.context.clock.now())).await
    }
}

/// An answer that is compared, unless it says nothing about the documents or is too large.
fn kept(answer: Answer) -> Result<Answer, Trouble> {
    match answer {
        Answer::Error(code) if is_passing(code) => Err(Trouble::Failed),
        Answer::Documents(all) => {
            let mut collected = Collected::default();
            collected.add(all)?;
            Ok(Answer::Documents(collected.documents))
        }
        answer => Ok(answer),
    }
}

/// What the reply `body` to a request for more says, where it is an error.
fn error_of(body: &RawDocument) -> Option<Result<Answer, Trouble>> {
    let answer = whole_answer(body)?;
    matches!(answer, Answer::Error(_)).then(|| kept(answer))
}

/// Documents of several batches, within limits.
#[derive(Debug, Default)]
struct Collected {
    documents: Vec<RawDocumentBuf>,
    bytes: usize,
}

impl Collected {
    fn add(&mut self, batch: Vec<RawDocumentBuf>) -> Result<(), Trouble> {
        self.bytes += size(&batch);
        if self.bytes > MOST_BYTES || self.documents.len() + batch.len() > MOST_DOCUMENTS {
            return Err(Trouble::TooLarge);
        }
        self.documents.extend(batch);
        Ok(())
    }
}

fn failed(error: SendError) -> Trouble {
    tracing::debug!(%error, "a shadow read was not answered");
    Trouble::Failed
}

fn documents(body: &RawDocument, field: &str) -> Result<Vec<RawDocumentBuf>, Trouble> {
    let cursor = body.get_document("cursor").map_err(|_| Trouble::Failed)?;
    batch(cursor, field).ok_or(Trouble::Failed)
}

fn size(batch: &[RawDocumentBuf]) -> usize {
    batch.iter().map(|one| one.as_bytes().len()).sum()
}

struct Cursor<'a> {
    cluster: &'a dyn Commands,
    namespace: &'a Namespace,
    id: i64,
    at: crate::cluster::command::ServerId,
}

impl Cursor<'_> {
    async fn read_on(mut self, mut all: Collected, left: impl Fn() -> Duration) -> Result<Answer, Trouble> {
        while self.id != 0 {
            if left().is_zero() {
                self.close().await;
                return Err(Trouble::Failed);
            }
            let reply = self.more(left()).await?;
            if let Some(error) = error_of(&reply) {
                return error;
            }
            if let Err(trouble) = all.add(documents(&reply, "nextBatch")?) {
                self.close().await;
                return Err(trouble);
            }
        }
        Ok(Answer::Documents(all.documents))
    }

    /// The reply with the next batch, or an error.
    async fn more(&mut self, left: Duration) -> Result<RawDocumentBuf, Trouble> {
        let more = rawdoc! { "getMore": self.id, "collection": self.namespace.collection() };
        let request = Request::new(self.namespace.database(), more).within(left);
        let reply = self.cluster.run(request.to(Target::Server(self.at.clone()))).await.map_err(failed)?;
        self.id = cursor_id(&reply.body);
        Ok(reply.body)
    }

    async fn close(&self) {
        if self.id == 0 {
            return;
        }
        let body = rawdoc! { "killCursors": self.namespace.collection(), "cursors": [self.id] };
        let request = Request::new(self.namespace.database(), body).within(LIMIT);
        // Servers close it by themselves, only later.
        _ = self.cluster.run(request.to(Target::Server(self.at.clone()))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_in_all_its_batches_is_no_answer() {
        let text = "x".repeat(4 << 20);
        let batch = || vec![rawdoc! { "_id": 1, "text": &*text }];
        let mut collected = Collected::default();
        let added: Vec<_> = (0..4).map(|_| collected.add(batch())).collect();
        assert_eq!(added, [Ok(()), Ok(()), Ok(()), Err(Trouble::TooLarge)]);
        assert_eq!(collected.documents.len(), 3, "no more is kept");
        let many = vec![RawDocumentBuf::new(); MOST_DOCUMENTS];
        assert_eq!(kept(Answer::Documents(many.clone())), Ok(Answer::Documents(many.clone())));
        let more = [many, vec![RawDocumentBuf::new()]].concat();
        assert_eq!(kept(Answer::Documents(more)), Err(Trouble::TooLarge));
    }

    #[test]
    fn a_later_batch_can_be_an_error_too() {
        let error = |code: i32| error_of(&rawdoc! { "ok": 0.0, "code": code, "errmsg": "" });
        assert_eq!(error(16410), Some(Ok(Answer::Error(16410))));
        assert_eq!(error(50), Some(Err(Trouble::Failed)), "out of time tells nothing");
        let batch = rawdoc! { "cursor": { "nextBatch": [], "id": 0_i64 }, "ok": 1.0 };
        assert_eq!(error_of(&batch), None);
    }
}
