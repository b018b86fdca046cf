//! A `hello` that waits for something to change, and one that is answered again and again.
//!
//! Drivers since MongoDB 4.4 name the version of what they were shown, and wait until it is another. What a process
//! shows never changes, so the wait ends with its time; what drivers gain is that they see the end of a process at once.
//! While one waits there is a copy of its message, no buffer and no task.

use std::pin::Pin;
use std::time::Duration;

use bson::oid::ObjectId;
use bson::raw::RawBsonRef;
use bson::{RawDocument, RawDocumentBuf, rawdoc};
use tokio::time::{Sleep, sleep};

use crate::wire::error::{
    ErrorReply, FIELD_MISSING, INCOMPLETE_WAIT, NEGATIVE_WAIT, TYPE_MISMATCH, VERSION_FROM_THE_FUTURE,
};
use crate::wire::header::Header;
use crate::wire::op_msg::{EXHAUST_ALLOWED, OpMsg};

/// The first wire version whose servers know of it (4.4).
pub(super) const SINCE: i32 = 9;
/// As long as a wait can be, in milliseconds: more than three weeks.
const LONGEST: i64 = i32::MAX as i64;

/// One that waits.
pub(super) struct Waiting {
    /// The whole message.
    pub(super) message: Box<[u8]>,
    /// What its answer answers to: the message, and from the second answer on the one before.
    pub(super) answers_to: i32,
    /// It is answered until the client leaves.
    pub(super) streams: bool,
    limit: Duration,
    end: Pin<Box<Sleep>>,
}

impl Waiting {
    /// Of an OP_MSG that asks for it; `None`: it is answered at once, if only with an error.
    pub(super) fn of(message: &[u8], body: &[u8], process: ObjectId) -> Option<Self> {
        let asked = RawDocument::from_bytes(body).ok()?;
        let Patience { limit, is_current } = patience(asked, process).ok().flatten()?;
        let streams = OpMsg::parse(message).ok()?.flags & EXHAUST_ALLOWED != 0;
        if !is_current && !streams {
            return None;
        }
        let answers_to = Header::parse(message).ok().flatten()?.request_id;
        let first = if is_current { limit } else { Duration::ZERO };
        Some(Self { message: message.into(), answers_to, streams, limit, end: Box::pin(sleep(first)) })
    }

    /// One of which a process before this one knew: what it waits for has come with the process.
    pub(super) fn left_by_another(message: Box<[u8]>, answers_to: i32, streams: bool) -> Self {
        Self { message, answers_to, streams, limit: Duration::ZERO, end: Box::pin(sleep(Duration::ZERO)) }
    }

    /// The number of its answer.
    pub(super) fn number(&self) -> i32 {
        self.answers_to.wrapping_add(1)
    }

    /// The same, after its answer has told the client what is current.
    pub(super) fn again(&mut self, before: &Self) {
        self.answers_to = before.number();
        self.end = Box::pin(sleep(self.limit));
    }

    /// Completes when the time is over.
    pub(super) async fn over(&mut self) {
        self.end.as_mut().await;
    }
}

/// Completes when one that waits has waited long enough; never, where there is none.
pub(super) async fn over(waiting: &mut Option<Box<Waiting>>) {
    match waiting {
        Some(waiting) => waiting.over().await,
        None => std::future::pending().await,
    }
}

/// The version of what `process` shows: the first, and the last.
pub(super) fn version(process: ObjectId) -> RawDocumentBuf {
    rawdoc! { "processId": process, "counter": 0_i64 }
}

/// How a `hello` wants to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For how long at most.
    limit: Duration,
    /// What it knows is what this process shows; else there is nothing to wait for.
    is_current: bool,
}

/// How a `hello` wants to wait; `None`: it does not.
///
/// # Errors
/// What servers refuse.
pub fn patience(hello: &RawDocument, process: ObjectId) -> Result<Option<Patience>, ErrorReply> {
    let field = |name: &str| hello.get(name).ok().flatten();
    let refused = |code, text: &str| Err(ErrorReply::new(code, text));
    let (known, limit) = match (field("topologyVersion"), field("maxAwaitTimeMS")) {
        (None, None) => return Ok(None),
        (Some(_), None) => {
            return refused(
                INCOMPLETE_WAIT,
                "A request with a 'topologyVersion' must include 'maxAwaitTimeMS'",
            );
        }
        (None, Some(_)) => {
            return refused(
                INCOMPLETE_WAIT,
                "A request with 'maxAwaitTimeMS' must include a 'topologyVersion'",
            );
        }
        (Some(RawBsonRef::Document(known)), Some(limit)) => (known, limit),
        (Some(_), Some(_)) => return refused(TYPE_MISMATCH, "topologyVersion must be a document"),
    };
    let is_current = is_current(known, process)?;
    let millis = match limit {
        RawBsonRef::Int32(millis) => i64::from(millis),
        RawBsonRef::Int64(millis) => millis,
        #[expect(clippy::cast_possible_truncation, reason = "servers cut it off, too")]
        RawBsonRef::Double(millis) => millis as i64,
        _ => return refused(TYPE_MISMATCH, "Expected field \"maxAwaitTimeMS\" to have numeric type"),
    };
    match u64::try_from(millis.min(LONGEST)) {
        Err(_) => refused(NEGATIVE_WAIT, "BSON field 'maxAwaitTimeMS' value must be >= 0"),
        Ok(millis) => Ok(Some(Patience { limit: Duration::from_millis(millis), is_current })),
    }
}

/// Whether a version is what this process shows.
fn is_current(known: &RawDocument, process: ObjectId) -> Result<bool, ErrorReply> {
    let field = |name: &str| {
        known.get(name).ok().flatten().ok_or_else(|| {
            let text = format!("BSON field 'TopologyVersion.{name}' is missing but a required field");
            ErrorReply::new(FIELD_MISSING, text)
        })
    };
    let mismatch = |name: &str| {
        let text = format!("BSON field 'TopologyVersion.{name}' is the wrong type");
        ErrorReply::new(TYPE_MISMATCH, text)
    };
    let of = field("processId")?.as_object_id().ok_or_else(|| mismatch("processId"))?;
    let counter = field("counter")?.as_i64().ok_or_else(|| mismatch("counter"))?;
    if of == process && counter > 0 {
        let text = format!(
            "Received a topology version with counter: {counter} which is greater than the server topology version \
             counter: 0"
        );
        return Err(ErrorReply::new(VERSION_FROM_THE_FUTURE, text));
    }
    Ok(of == process && counter == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::error::Code;

    const SELF: ObjectId = ObjectId::from_bytes([7; 12]);

    fn asked(version: RawDocumentBuf, limit: impl Into<bson::raw::RawBson>) -> RawDocumentBuf {
        let mut hello = rawdoc! { "hello": 1, "topologyVersion": version };
        hello.append(bson::cstr!("maxAwaitTimeMS"), limit.into());
        hello
    }

    fn code(hello: &RawDocumentBuf) -> Option<Code> {
        patience(hello, SELF).err().map(|error| error.code)
    }

    #[test]
    fn only_what_is_known_already_is_waited_for() {
        let long = |is_current| Some(Patience { limit: Duration::from_secs(10), is_current });
        for limit in [bson::raw::RawBson::Int32(10_000), 10_000_i64.into(), 10_000.9.into()] {
            assert_eq!(patience(&asked(version(SELF), limit), SELF).unwrap(), long(true));
        }
        let older = rawdoc! { "processId": SELF, "counter": -1_i64 };
        for known in [version(ObjectId::from_bytes([8; 12])), older] {
            assert_eq!(patience(&asked(known, 10_000), SELF).unwrap(), long(false));
        }
        assert_eq!(patience(&rawdoc! { "hello": 1 }, SELF).unwrap(), None);
        assert!(patience(&asked(version(SELF), i64::MAX), SELF).unwrap().is_some());
    }

    #[test]
    fn what_servers_refuse_is_refused() {
        let cases = [
            (rawdoc! { "hello": 1, "topologyVersion": version(SELF) }, INCOMPLETE_WAIT),
            (rawdoc! { "hello": 1, "maxAwaitTimeMS": 10 }, INCOMPLETE_WAIT),
            (asked(version(SELF), -1_i64), NEGATIVE_WAIT),
            (asked(version(SELF), "x"), TYPE_MISMATCH),
            (rawdoc! { "hello": 1, "topologyVersion": 1, "maxAwaitTimeMS": 10 }, TYPE_MISMATCH),
            (asked(rawdoc! { "processId": SELF, "counter": 0 }, 10), TYPE_MISMATCH),
            (asked(rawdoc! { "processId": SELF }, 10), FIELD_MISSING),
            (asked(rawdoc! { "processId": SELF, "counter": 1_i64 }, 10), VERSION_FROM_THE_FUTURE),
        ];
        for (hello, expected) in cases {
            assert_eq!(code(&hello), Some(expected), "{hello:?}");
        }
    }
}
