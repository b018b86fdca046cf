//! The change stream of one shard, read ahead of the client.

use std::io::IoSlice;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bson::raw::RawArrayBuf;
use bson::{RawDocument, RawDocumentBuf, rawdoc};
use bytes::BytesMut;
use reshard::cluster::Pooled;
use reshard::cluster::command::number;
use reshard::wire::op_msg::{self, OpMsg};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::backend::{Backend, Repeat};
use super::failure::Failure;
use super::merge::Queue;
use super::stream::{ChangeStream, IDLE};

/// How long a shard waits for an event before it says how far it is. It does not say by itself when its
/// clock moves on without an event, so it is asked often, all the more when the others wait for it.
const AWAIT_MS: i64 = 50;
const AWAIT_MS_WHEN_OTHERS_WAIT: i64 = 5;
/// A client that has not asked for this long does not care for more just now.
const ATTENTION: Duration = Duration::from_secs(5);
const MOST_EVENTS: usize = 5000;
const MOST_BYTES: usize = 32 << 20;

const RESUMABLE: &str = "ResumableChangeStreamError";
/// Errors of servers after which a stream can be opened again.
const RESUMABLE_CODES: [i32; 12] = [6, 7, 43, 63, 89, 91, 150, 189, 10107, 11600, 11602, 13435];

/// A cursor on a shard, with a connection of its own.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    shard: Arc<Backend>,
    database: String,
    collection: String,
    cursor: i64,
    connection: Arc<Mutex<Pooled>>,
}

impl Opened {
    /// Opens a stream; `command` is the whole aggregate.
    pub(super) async fn open(
        shard: Arc<Backend>,
        database: &str,
        collection: &str,
        command: &RawDocument,
    ) -> Result<(Self, Queue), Failure> {
        let reply = shard.run(database, command.to_owned(), Repeat::Yes).await?;
        let connection = Arc::new(Mutex::new(shard.checkout().await?));
        let cursor = cursor_of(&reply)?.get("id")?.and_then(|id| id.as_i64()).unwrap_or(0);
        let mut queue = Queue::default();
        read_batch(&reply, "firstBatch", &mut queue)?;
        let (database, collection) = (database.to_owned(), collection.to_owned());
        Ok((Self { shard, database, collection, cursor, connection }, queue))
    }

    async fn more(&self, wait_ms: i64) -> Result<RawDocumentBuf, Failure> {
        let body = rawdoc! {
            "getMore": self.cursor,
            "collection": self.collection.as_str(),
            "maxTimeMS": wait_ms,
            "$db": self.database.as_str(),
        };
        let message = op_msg::build(1, 0, 0, body.as_bytes(), None);
        let mut reply = BytesMut::new();
        let sent = self.connection.lock().await.exchange(&mut [IoSlice::new(&message)], &mut reply).await;
        sent.map_err(|error| Failure::of_send(&error).label(RESUMABLE))?;
        let parts = OpMsg::parse(&reply).map_err(|error| Failure::bad_value(error.to_string()))?;
        let reply = RawDocument::from_bytes(&reply[parts.body])?.to_owned();
        // Whoever is shown an event may wait for its time: every shard must have heard of it by then.
        self.shard.observe_time(&reply);
        Ok(reply)
    }

    /// Ends the cursor, as well as it goes.
    pub(super) async fn kill(&self) {
        let kill = rawdoc! {"killCursors": self.collection.as_str(), "cursors": [self.cursor]};
        let kill = self.shard.run(&self.database, kill, Repeat::No);
        let _ = timeout(Duration::from_secs(1), kill).await;
    }
}

/// Reads ahead as long as there is room and the client asks, until the stream ends.
pub(super) async fn pull(stream: Weak<ChangeStream>, index: usize, opened: Opened) {
    let Some(mut asked) = stream.upgrade().map(|stream| stream.asked.subscribe()) else { return };
    loop {
        let wanted = asked.wait_for(|asked| {
            let room = stream.upgrade().map(|stream| stream.waiting(index));
            let room = room.is_some_and(|(events, bytes)| events < MOST_EVENTS && bytes < MOST_BYTES);
            room && asked.elapsed() < ATTENTION
        });
        // The stream is gone, or nobody cares for it any more.
        let Ok(Ok(_)) = timeout(IDLE, wanted).await.map(|wanted| wanted.map(|asked| *asked)) else { return };
        let holds_back = stream.upgrade().is_some_and(|stream| stream.holds_back(index));
        let reply = opened.more(if holds_back { AWAIT_MS_WHEN_OTHERS_WAIT } else { AWAIT_MS }).await;
        let Some(stream) = stream.upgrade() else { return };
        let mut ended = false;
        stream.change(index, |queue| {
            let taken = reply.and_then(|reply| read_batch(&reply, "nextBatch", queue));
            match taken {
                Ok(open) => ended = !open,
                Err(failure) => (queue.failure, ended) = (Some(failure), true),
            }
        });
        if ended {
            return;
        }
    }
}

fn cursor_of(reply: &RawDocument) -> Result<&RawDocument, Failure> {
    if number(reply, "ok") != Some(1.0) {
        let failure = Failure(bson::Document::try_from(reply)?);
        let resumable = RESUMABLE_CODES.contains(&failure.code());
        let failure = Failure(super::raw::cleaned(failure.0));
        return Err(if resumable { failure.label(RESUMABLE) } else { failure });
    }
    reply.get_document("cursor").map_err(|error| Failure::bad_value(error.to_string()))
}

/// Puts a batch into the queue; says whether the cursor is still open.
fn read_batch(reply: &RawDocument, field: &str, queue: &mut Queue) -> Result<bool, Failure> {
    let cursor = cursor_of(reply)?;
    let none = RawArrayBuf::new();
    for event in cursor.get_array(field).unwrap_or(&none) {
        let event = event?;
        let event = event.as_document().ok_or_else(|| Failure::bad_value("an event that is no document"))?;
        let token = event.get_document("_id").ok().and_then(|id| id.get_str("_data").ok());
        let token = token.ok_or_else(modified_id)?;
        queue.events.push_back((token.to_owned(), event.to_owned()));
        queue.promised = token.to_owned();
    }
    if let Ok(token) = cursor.get_document("postBatchResumeToken")
        && let Ok(data) = token.get_str("_data")
    {
        queue.promised = data.to_owned();
    }
    Ok(cursor.get("id")?.and_then(|id| id.as_i64()).unwrap_or(0) != 0)
}

fn modified_id() -> Failure {
    let message = "Encountered an event whose _id field, which contains the resume token, was modified by the \
                   pipeline. Modifying the _id field of an event makes it impossible to resume the stream from \
                   that point. Only transformations that retain the unmodified _id field are allowed.";
    Failure::new(280, "ChangeStreamFatalError", message)
}
