//! [`Commands`] on real servers.

use std::io::IoSlice;
use std::ops::Range;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bson::raw::cstr;
use bson::{RawDocument, RawDocumentBuf};
use bytes::BytesMut;
use tokio::time::{Instant, timeout, timeout_at};

use crate::model::span::spoken;
use crate::wire::element::Elements;
use crate::wire::op_msg::{self, OpMsg};

use super::command::{Commands, Reply, Request, SendError, ServerId, number};
use super::pooled::Pooled;
use super::pools::Pools;
use super::selection::Selection;

/// Where requests of this process get their numbers; servers only repeat them.
static LAST_REQUEST_ID: AtomicI32 = AtomicI32::new(0);
/// How often it is looked whether a late answer would still count.
const LOOK: Duration = Duration::from_millis(250);

#[async_trait]
impl Commands for Pools {
    async fn run(&self, request: Request) -> Result<Reply, SendError> {
        let began = Instant::now();
        let deadline = began + request.limit;
        let selection = Selection::from(&request.target);
        let head = self.head(&request);
        let documents = request.sequence.as_ref().map_or(&[][..], |sequence| &sequence.documents);
        let mut reply = BytesMut::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut pooled = while_due(&request, self.checkout(&selection, left)).await?;
            request.must_be_due()?;
            let mut parts = [IoSlice::new(&head), IoSlice::new(documents)];
            match while_it_counts(&request, deadline, pooled.exchange(&mut parts, &mut reply)).await {
                Some(Ok(())) => return self.reply(&pooled, reply),
                // The idle connection was dead before it was used: nothing was sent, so send it on another.
                Some(Err(SendError::NotSent(_))) if Instant::now() < deadline => {}
                Some(Err(error)) => return Err(error),
                None => return Err(no_answer(pooled.server(), began.elapsed())),
            }
        }
    }
}

/// A connection, waited for as long as the request may be sent.
async fn while_due<T>(
    request: &Request,
    connection: impl Future<Output = Result<T, SendError>>,
) -> Result<T, SendError> {
    if request.only_if.is_none() {
        return connection.await;
    }
    futures::pin_mut!(connection);
    loop {
        match timeout(LOOK, &mut connection).await {
            Ok(connected) => return connected,
            Err(_) => request.must_be_due()?,
        }
    }
}

/// The answer, waited for until `deadline`; where the request has a condition of its own, for as long as that holds
/// instead: a server can be busy with one write for much longer than anybody should wait for a server.
async fn while_it_counts<T>(
    request: &Request,
    deadline: Instant,
    answer: impl Future<Output = T>,
) -> Option<T> {
    if request.only_if.is_none() {
        return timeout_at(deadline, answer).await.ok();
    }
    futures::pin_mut!(answer);
    loop {
        match timeout(LOOK, &mut answer).await {
            Ok(answer) => return Some(answer),
            Err(_) if request.must_be_due().is_err() => return None,
            Err(_) => {}
        }
    }
}

fn no_answer(server: &ServerId, waited: Duration) -> SendError {
    SendError::Unknown(format!("{server}: no answer within {}", spoken(waited)))
}

impl Pools {
    /// The message up to its documents, which are sent from where they are.
    fn head(&self, request: &Request) -> Vec<u8> {
        let mut body = request.body.clone();
        body.append(cstr!("$db"), request.database.as_str());
        if let Some(cluster_time) = self.times().latest() {
            body.append(cstr!("$clusterTime"), &*cluster_time);
        }
        let id = LAST_REQUEST_ID.fetch_add(1, Ordering::Relaxed);
        let sequence = request.sequence.as_ref();
        let sequence = sequence.map(|sequence| (sequence.identifier, sequence.documents.len()));
        op_msg::build_head(id, 0, 0, body.as_bytes(), sequence)
    }

    /// Reads a reply and takes note of what it says about the cluster.
    fn reply(&self, pooled: &Pooled, message: BytesMut) -> Result<Reply, SendError> {
        let server = pooled.server().clone();
        let unusable = |error: String| SendError::Unknown(format!("{server}: unusable reply: {error}"));
        let place = OpMsg::parse(&message).map_err(|error| unusable(error.to_string()))?.body;
        let body =
            RawDocument::from_bytes(&message[place.clone()]).map_err(|error| unusable(error.to_string()))?;
        if let Ok(cluster_time) = body.get_document("$clusterTime") {
            self.times().observe(cluster_time);
        }
        for code in error_codes(body) {
            self.cluster().note_reply_error(&server, code);
        }
        let operation_time = body.get_timestamp("operationTime").ok();
        let body = without_times(message, place).map_err(unusable)?;
        Ok(Reply { body, operation_time, server })
    }
}

/// The codes by which a server says that it cannot serve any more: of the command, of its write concern.
fn error_codes(body: &RawDocument) -> impl Iterator<Item = i32> {
    let failed = number(body, "ok").is_none_or(|ok| ok != 1.0);
    let code = failed.then(|| number(body, "code")).flatten();
    let concern = body.get_document("writeConcernError").ok().and_then(|error| number(error, "code"));
    #[expect(clippy::cast_possible_truncation, reason = "error codes are small whole numbers")]
    code.into_iter().chain(concern).map(|code| code as i32)
}

/// The body without what belongs to the cluster's own time line. Batches are large: their bytes stay where
/// they are but for a move to the front.
fn without_times(message: BytesMut, place: Range<usize>) -> Result<RawDocumentBuf, String> {
    let mut times = Vec::new();
    for element in Elements::within(&message, place.clone()).map_err(|error| error.to_string())? {
        let element = element.map_err(|error| error.to_string())?;
        if matches!(element.key, b"$clusterTime" | b"operationTime") {
            times.push(element.range());
        }
    }
    let mut bytes = Vec::from(message);
    bytes.truncate(place.end);
    for time in times.into_iter().rev() {
        bytes.drain(time);
    }
    bytes.drain(..place.start);
    let length = i32::try_from(bytes.len()).map_err(|error| error.to_string())?;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    RawDocumentBuf::from_bytes(bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use bson::{Timestamp, rawdoc};

    use super::*;

    #[test]
    fn the_clusters_times_are_taken_out_wherever_they_stand() {
        let time = Timestamp { time: 7, increment: 1 };
        let body = rawdoc! {
            "operationTime": time, "cursor": { "id": 5_i64, "operationTime": 1 }, "$clusterTime": { "a": time }, "ok": 1.0,
        };
        let message = op_msg::build(1, 2, 0, body.as_bytes(), Some(("documents", rawdoc! {}.as_bytes())));
        let place = OpMsg::parse(&message).unwrap().body;
        let kept = without_times(BytesMut::from(&message[..]), place).unwrap();
        assert_eq!(kept, rawdoc! { "cursor": { "id": 5_i64, "operationTime": 1 }, "ok": 1.0 });
    }
}
