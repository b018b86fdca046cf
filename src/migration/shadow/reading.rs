//! Running one read to its end, within limits.

use std::time::Duration;

use bson::raw::RawDocumentBuf;
use bson::{RawDocument, Timestamp, rawdoc};

use super::{Shadower, namespace};
use crate::clock::SharedClock;
use crate::cluster::command::{Commands, Request, SendError, Target};
use crate::converge::read::cursor_id;
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::policy::shadow::answer::Answer;
use crate::policy::shadow::eligible::{again, batch, is_passing, whole_answer};
use crate::state::handed_over::Job;

/// Bytes of documents that are read of one cursor.
const MOST_BYTES: usize = 16 << 20;
/// Documents that are read of one cursor.
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
        if matches!(whole_answer(&reply.body), Some(Answer::Error(code)) if is_passing(code)) {
            return Err(Trouble::Failed);
        }
        let (mut bytes, id) = (reply.body.as_bytes().len(), cursor_id(&reply.body));
        let mut cursor = Cursor { cluster, namespace: &self.namespace, id, at: reply.server };
        while cursor.id != 0 {
            if bytes > MOST_BYTES || left().is_zero() {
                cursor.close().await;
                return Err(Trouble::TooLarge);
            }
            bytes += size(&cursor.more(left()).await?);
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
            return match answer {
                Answer::Error(code) if is_passing(code) => Err(Trouble::Failed),
                answer => Ok(answer),
            };
        }
        let first = documents(&reply.body, "firstBatch")?;
        let rest =
            Cursor { cluster, namespace: &read.namespace, id: cursor_id(&reply.body), at: reply.server };
        rest.read_on(first, || deadline.saturating_sub(self.context.clock.now())).await
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
    async fn read_on(
        mut self,
        mut all: Vec<RawDocumentBuf>,
        left: impl Fn() -> Duration,
    ) -> Result<Answer, Trouble> {
        let mut bytes = size(&all);
        while self.id != 0 {
            let too_large = bytes > MOST_BYTES || all.len() > MOST_DOCUMENTS;
            if too_large || left().is_zero() {
                self.close().await;
                return Err(if too_large { Trouble::TooLarge } else { Trouble::Failed });
            }
            let batch = self.more(left()).await?;
            bytes += size(&batch);
            all.extend(batch);
        }
        Ok(Answer::Documents(all))
    }

    /// The next batch.
    async fn more(&mut self, left: Duration) -> Result<Vec<RawDocumentBuf>, Trouble> {
        let more = rawdoc! { "getMore": self.id, "collection": self.namespace.collection() };
        let request = Request::new(self.namespace.database(), more).within(left);
        let reply = self.cluster.run(request.to(Target::Server(self.at.clone()))).await.map_err(failed)?;
        let batch = documents(&reply.body, "nextBatch")?;
        self.id = cursor_id(&reply.body);
        Ok(batch)
    }

    async fn close(&self) {
        let body = rawdoc! { "killCursors": self.namespace.collection(), "cursors": [self.id] };
        let request = Request::new(self.namespace.database(), body).within(LIMIT);
        // Servers close it by themselves, only later.
        _ = self.cluster.run(request.to(Target::Server(self.at.clone()))).await;
    }
}
