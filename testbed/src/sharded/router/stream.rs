//! Change streams: one on each shard, merged in the order of their resume tokens, which are the shards' own.

use std::sync::Arc;
use std::time::Duration;

use bson::raw::RawArrayBuf;
use bson::{Document, RawDocument, RawDocumentBuf, Timestamp, doc, rawdoc};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::Router;
use super::failure::{Failure, whole};
use super::merge::{Merge, Queue};
use super::pull::{self, Opened};
use super::raw;
use super::token::{data_of, is_invalidate, time_of};

const BATCH: usize = 1000;
/// How long a `getMore` waits for an event if it does not say.
const AWAIT: Duration = Duration::from_secs(1);
/// After this time a stream that nobody asks is gone.
pub(super) const IDLE: Duration = Duration::from_secs(600);

/// A change stream over all shards.
#[derive(Debug)]
pub(super) struct ChangeStream {
    id: i64,
    namespace: String,
    merge: Mutex<Merge>,
    /// A queue has changed.
    pub(super) news: Notify,
    /// When the client asked last.
    pub(super) asked: watch::Sender<Instant>,
    pulls: Mutex<Vec<(AbortHandle, Opened)>>,
}

/// Where a stream begins.
struct Start {
    time: Timestamp,
    /// Events up to this token are left out.
    after: Option<String>,
}

impl Router {
    pub(super) async fn open_stream(
        self: &Arc<Self>,
        database: &str,
        body: &RawDocument,
    ) -> Result<RawDocumentBuf, Failure> {
        let stages = body.get_array("pipeline").map_err(|error| Failure::bad_value(error.to_string()))?;
        let mut stages = stages.into_iter();
        let first = stages.next().transpose()?.and_then(|stage| stage.as_document());
        let spec =
            raw::document(first.unwrap_or(RawDocument::from_bytes(b"\x05\0\0\0\0")?), "$changeStream")?;
        let start = self.start_of(&spec)?;
        let resume = ["resumeAfter", "startAfter", "startAtOperationTime"];
        let mut spec: Document =
            spec.into_iter().filter(|(key, _)| !resume.contains(&key.as_str())).collect();
        spec.insert("startAtOperationTime", start.time);
        let mut pipeline = RawArrayBuf::new();
        pipeline.push(RawDocumentBuf::try_from(&doc! {"$changeStream": spec})?);
        for stage in stages {
            pipeline.push(stage?);
        }
        let dropped = ["pipeline", "cursor", "readConcern", "lsid", "txnNumber", "maxTimeMS"];
        let mut command = raw::without(body, &dropped)?;
        command.append(bson::cstr!("pipeline"), pipeline);
        command.append(bson::cstr!("cursor"), rawdoc! {"batchSize": 0});
        command.append(bson::cstr!("readConcern"), rawdoc! {"level": "majority"});
        let collection = body.get_str("aggregate").unwrap_or("$cmd.aggregate");
        let shards = self.load_shards().await?;
        let opened = shards.into_values().map(|shard| Opened::open(shard, database, collection, &command));
        let opened = futures::future::try_join_all(opened).await?;
        let stream = self.start_stream(format!("{database}.{collection}"), start.after, opened);
        let position = stream.merge.lock().position.clone();
        let cursor = rawdoc! {
            "firstBatch": [],
            "postBatchResumeToken": {"_data": position},
            "id": stream.id,
            "ns": stream.namespace.as_str(),
        };
        Ok(rawdoc! {"cursor": cursor, "ok": 1.0})
    }

    /// A stream without a start begins behind all that this router knows of, as with mongos.
    fn start_of(&self, spec: &Document) -> Result<Start, Failure> {
        let token = |field: &str| spec.get_document(field).ok().map(data_of).transpose();
        let (resume, start) = (token("resumeAfter")?, token("startAfter")?);
        if resume.as_deref().is_some_and(is_invalidate) {
            let message = "Attempting to resume a change stream using 'resumeAfter' is not allowed from an \
                           invalidate notification.";
            return Err(Failure::new(260, "InvalidResumeToken", message));
        }
        if let Some(after) = resume.or(start) {
            let time = time_of(&after).unwrap_or(Timestamp { time: 0, increment: 0 });
            // The shards would see once more what made the stream end.
            let behind = u32::from(is_invalidate(&after));
            let time = Timestamp { increment: time.increment + behind, ..time };
            return Ok(Start { time, after: Some(after) });
        }
        let time = match spec.get_timestamp("startAtOperationTime") {
            Ok(time) => time,
            Err(_) => {
                let now = self.time.latest().and_then(|time| time.get_timestamp("clusterTime").ok());
                let now = now.ok_or_else(|| Failure::bad_value("the time of the cluster is not known"))?;
                Timestamp { increment: now.increment + 1, ..now }
            }
        };
        Ok(Start { time, after: None })
    }

    fn start_stream(
        self: &Arc<Self>,
        namespace: String,
        after: Option<String>,
        opened: Vec<(Opened, Queue)>,
    ) -> Arc<ChangeStream> {
        let (opened, mut queues): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
        let lowest = queues.iter().map(|queue| queue.promised.clone()).min().unwrap_or_default();
        let position = after.unwrap_or_default().max(lowest);
        for queue in &mut queues {
            queue.events.retain(|(token, _)| *token > position);
        }
        // Never 0, which is a cursor that has ended; never that of a cursor of the engine but by chance.
        let id = i64::from_le_bytes({
            let random = uuid::Uuid::new_v4();
            std::array::from_fn(|index| random.as_bytes()[index])
        });
        let stream = Arc::new(ChangeStream {
            id: (id & i64::MAX) | 1,
            namespace,
            merge: Mutex::new(Merge { queues, position, ended: false }),
            news: Notify::new(),
            asked: watch::Sender::new(Instant::now()),
            pulls: Mutex::default(),
        });
        let pulls = opened.into_iter().enumerate().map(|(index, opened)| {
            let task = tokio::spawn(pull::pull(Arc::downgrade(&stream), index, opened.clone()));
            (task.abort_handle(), opened)
        });
        *stream.pulls.lock() = pulls.collect();
        let mut streams = self.streams.lock();
        streams.retain(|_, stream| stream.asked.borrow().elapsed() < IDLE);
        streams.insert(stream.id, stream.clone());
        stream
    }

    pub(super) async fn more_of_stream(
        &self,
        stream: &Arc<ChangeStream>,
        body: &RawDocument,
    ) -> Result<RawDocumentBuf, Failure> {
        let command = Document::try_from(body)?;
        let number = |field: &str| whole(&command, field).and_then(|number| u64::try_from(number).ok());
        let limit = number("batchSize").and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
        let deadline = Instant::now() + number("maxTimeMS").map_or(AWAIT, Duration::from_millis);
        let (events, position, ended) = match stream.batch(limit.unwrap_or(BATCH), deadline).await {
            Ok(batch) => batch,
            Err(failure) => {
                self.end_stream(stream);
                return Err(failure);
            }
        };
        if ended {
            self.end_stream(stream);
        }
        let cursor = rawdoc! {
            "nextBatch": events,
            "postBatchResumeToken": {"_data": position},
            "id": if ended { 0 } else { stream.id },
            "ns": stream.namespace.as_str(),
        };
        Ok(rawdoc! {"cursor": cursor, "ok": 1.0})
    }

    fn end_stream(&self, stream: &Arc<ChangeStream>) {
        self.streams.lock().remove(&stream.id);
        let stream = stream.clone();
        tokio::spawn(async move { stream.close().await });
    }
}

impl ChangeStream {
    /// The next events; none if there are none until `deadline`. Also the new position, and whether the
    /// stream has ended.
    async fn batch(&self, limit: usize, deadline: Instant) -> Result<(RawArrayBuf, String, bool), Failure> {
        loop {
            self.asked.send_replace(Instant::now());
            {
                let mut merge = self.merge.lock();
                let events = merge.take(limit);
                if !events.is_empty() || merge.ended || Instant::now() >= deadline {
                    return Ok((events, merge.position.clone(), merge.ended));
                }
                if let Some(failure) = merge.queues.iter().find_map(|queue| queue.failure.clone()) {
                    return Err(failure);
                }
            }
            // Ends at the deadline: then there is nothing.
            let _ = timeout_at(deadline, self.news.notified()).await;
        }
    }

    /// Changes the queue of a shard.
    pub(super) fn change(&self, index: usize, change: impl FnOnce(&mut Queue)) {
        let mut merge = self.merge.lock();
        let position = merge.position.clone();
        if let Some(queue) = merge.queues.get_mut(index) {
            change(queue);
            queue.events.retain(|(token, _)| *token > position);
            queue.bytes = queue.events.iter().map(|(_, event)| event.as_bytes().len()).sum();
        }
        drop(merge);
        self.news.notify_one();
    }

    /// Whether events of other shards wait for this one to say that it has none before them.
    pub(super) fn holds_back(&self, index: usize) -> bool {
        let merge = self.merge.lock();
        let Some(own) = merge.queues.get(index) else { return false };
        let later = |queue: &Queue| queue.events.front().is_some_and(|(token, _)| *token > own.promised);
        own.events.is_empty() && merge.queues.iter().any(later)
    }

    /// Events and bytes that wait in the queue of a shard.
    pub(super) fn waiting(&self, index: usize) -> (usize, usize) {
        self.merge.lock().queues.get(index).map_or((0, 0), |queue| (queue.events.len(), queue.bytes))
    }

    /// Ends the streams on the shards.
    pub(super) async fn close(&self) {
        let pulls = std::mem::take(&mut *self.pulls.lock());
        for (task, opened) in pulls {
            task.abort();
            opened.kill().await;
        }
    }
}
