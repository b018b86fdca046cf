//! One request of a client, understood as far as routing needs it.

use std::time::Duration;

use super::recovery;
use crate::cluster::TimesFor;
use crate::policy::classify::{Class, classify};
use crate::policy::failover::Kind;
use crate::wire::header::{FrameError, MAX_MESSAGE_LEN};
use crate::wire::op_msg::{MORE_TO_COME, OpMsg};
use crate::wire::patch::{Patch, Patched, document_element};
use crate::wire::scan::Command;
use bson::RawDocument;

/// How long an operation may wait for a server, unless its `maxTimeMS` is shorter.
pub const HOLD: Duration = Duration::from_secs(30);
/// How long what is left behind may take to be tidied up at the one server where it lives.
pub const HOLD_FOLLOWER: Duration = Duration::from_secs(2);

/// A request in OP_MSG form. Borrows the message; nothing is copied.
#[derive(Debug)]
pub struct Operation<'a> {
    /// The whole message, header included.
    pub message: &'a [u8],
    /// Where its parts lie.
    pub parts: OpMsg,
    /// The fields of its body.
    pub command: Command<'a>,
    /// What kind of command it is.
    pub class: Class,
    /// The connection that it came on: stands for the session of clients that send none.
    pub client: u64,
}

impl<'a> Operation<'a> {
    /// Understands the complete OP_MSG `message`, which came on connection `client`.
    ///
    /// # Errors
    /// [`FrameError`] when it breaks the protocol; the client's connection is of no use then.
    pub fn parse(message: &'a [u8], client: u64) -> Result<Self, FrameError> {
        let parts = OpMsg::parse(message)?;
        let command =
            Command::scan(message, parts.body.clone()).map_err(|error| FrameError::Malformed(error.0))?;
        let class = match classify(command.name) {
            Class::Read if command.pipeline.is_some() && command.pipeline_writes() => Class::PipelineWrite,
            Class::PipelineWrite if command.is_inline() => Class::Read,
            class => class,
        };
        Ok(Self { message, parts, command, class, client })
    }

    /// What a reply answers to.
    #[must_use]
    pub fn request_id(&self) -> i32 {
        self.parts.header.request_id
    }

    /// Whether the client wants no reply.
    #[must_use]
    pub fn silent(&self) -> bool {
        self.parts.flags & MORE_TO_COME != 0
    }

    /// Whether it may be given up while it runs, when its client has gone.
    #[must_use]
    pub fn may_be_dropped(&self) -> bool {
        self.class.harmless() || self.class == Class::GetMore
    }

    /// How it may be repeated.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.class {
            Class::GetMore if !self.command.in_transaction() => Kind::Follower,
            Class::Commit => Kind::Commit,
            Class::Abort => Kind::Abort,
            _ if self.command.in_transaction() => Kind::Statement,
            Class::Read | Class::Diagnostic | Class::Explain | Class::KillCursors => Kind::Read,
            Class::Write if self.command.retryable_write() => Kind::RetryableWrite,
            _ => Kind::Once,
        }
    }

    /// How long it may wait for a server. `maxTimeMS` of a `getMore` says how long to wait for news, not for the server.
    #[must_use]
    pub fn hold(&self) -> Duration {
        let asked = self.command.max_time_ms.filter(|_| self.class != Class::GetMore);
        let asked = asked.and_then(|millis| u64::try_from(millis).ok()).filter(|millis| *millis > 0);
        asked.map_or(HOLD, |millis| HOLD.min(Duration::from_millis(millis)))
    }

    /// Whether the cursor that it opens waits for what is yet to come. Looks at all of it: to be asked of those that open one.
    #[must_use]
    pub fn opens_a_waiting_cursor(&self) -> bool {
        let body = &self.message[self.parts.body.clone()];
        let flag =
            |name| RawDocument::from_bytes(body).is_ok_and(|body| body.get_bool(name).unwrap_or(false));
        match self.command.pipeline {
            Some(pipeline) => pipeline
                .children()
                .and_then(|mut stages| stages.next()?.ok()?.children()?.next()?.ok())
                .is_some_and(|name| name.key == b"$changeStream"),
            None => flag("awaitData"),
        }
    }

    /// The changes that every forwarded message needs: no foreign `$clusterTime` (the cluster's own where a
    /// causal read needs it), acknowledged, one reply.
    #[must_use]
    pub fn patch(&self, times: &TimesFor) -> Patch {
        let mut patch = Patch::new(&self.parts);
        if let Some(cluster_time) = &self.command.cluster_time {
            patch.remove(cluster_time.range());
        }
        if let Some(token) = self.command.recovery_token {
            recovery::give_back(token, &mut patch);
        }
        let causal = self.command.read_concern.and_then(|_| self.command.after_cluster_time());
        if let Some(asked) = causal {
            if let Some(instead) = times.instead_of_a_clients() {
                // A timestamp is stored as one little-endian number: the increment below, the seconds above.
                patch.replace(asked.value_range(), instead.to_le_bytes().to_vec());
            }
            let time = times.latest().map(|latest| document_element("$clusterTime", latest.as_bytes()));
            // A message as long as can be goes without: the time that it asks for is the cluster's own, which knows it.
            if let Some(time) = time.filter(|time| self.message.len() + time.len() <= MAX_MESSAGE_LEN) {
                patch.append(time);
            }
        }
        if let Some(w) = self.command.unacknowledged() {
            patch.set_number(&w, 1);
        }
        patch
    }

    /// [`Self::patch`], finished.
    #[must_use]
    pub fn patched(&self, times: &TimesFor) -> Patched {
        self.patch(times).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::op_msg::build;
    use bson::{RawDocument, Timestamp, rawdoc};

    fn kind(body: &RawDocument) -> (Class, Kind) {
        let message = build(1, 0, 0, body.as_bytes(), None);
        let operation = Operation::parse(&message, 0).unwrap();
        (operation.class, operation.kind())
    }

    #[test]
    fn what_may_be_repeated_depends_on_number_and_transaction() {
        let cases = [
            (rawdoc! { "insert": "c" }, Class::Write, Kind::Once),
            (rawdoc! { "insert": "c", "txnNumber": 1_i64 }, Class::Write, Kind::RetryableWrite),
            (
                rawdoc! { "insert": "c", "txnNumber": 1_i64, "autocommit": false },
                Class::Write,
                Kind::Statement,
            ),
            (rawdoc! { "find": "c" }, Class::Read, Kind::Read),
            (rawdoc! { "find": "c", "txnNumber": 1_i64, "autocommit": false }, Class::Read, Kind::Statement),
            (rawdoc! { "aggregate": "c", "pipeline": [{ "$out": "x" }] }, Class::PipelineWrite, Kind::Once),
            (rawdoc! { "aggregate": "c", "pipeline": [{ "$match": {} }] }, Class::Read, Kind::Read),
            (rawdoc! { "mapReduce": "c", "out": { "inline": 1 } }, Class::Read, Kind::Read),
            (rawdoc! { "mapReduce": "c", "out": { "replace": "x" } }, Class::PipelineWrite, Kind::Once),
            (rawdoc! { "mapReduce": "c", "out": "x" }, Class::PipelineWrite, Kind::Once),
            (
                rawdoc! { "commitTransaction": 1, "txnNumber": 1_i64, "autocommit": false },
                Class::Commit,
                Kind::Commit,
            ),
            (rawdoc! { "getMore": 5_i64, "collection": "c" }, Class::GetMore, Kind::Follower),
            (rawdoc! { "dropDatabase": 1 }, Class::Ddl, Kind::Once),
            (rawdoc! { "whatever": 1, "txnNumber": 1_i64 }, Class::Unknown, Kind::Once),
        ];
        for (body, class, expected) in cases {
            assert_eq!(kind(&body), (class, expected), "{body:?}");
        }
    }

    #[test]
    fn what_is_as_long_as_can_be_does_not_get_longer() {
        let times = TimesFor::default();
        times.observe(&rawdoc! { "clusterTime": Timestamp { time: 7, increment: 1 } });
        let body = rawdoc! {
            "insert": "c", "txnNumber": 1_i64, "autocommit": false, "startTransaction": true,
            "readConcern": { "afterClusterTime": Timestamp { time: 5, increment: 1 } }, "$db": "d",
        };
        let of = |bytes: usize| build(1, 0, 0, body.as_bytes(), Some(("documents", &vec![0; bytes])));
        let rest = of(0).len();
        let longest = [MAX_MESSAGE_LEN, MAX_MESSAGE_LEN - 1000].map(|length| {
            let message = of(length - rest);
            let length = Operation::parse(&message, 0).unwrap().patched(&times).to_vec(&message).len();
            (message.len(), length)
        });
        assert_eq!(longest[0], (MAX_MESSAGE_LEN, MAX_MESSAGE_LEN));
        assert!(longest[1].0 < longest[1].1 && longest[1].1 <= MAX_MESSAGE_LEN, "{longest:?}");
    }
}
