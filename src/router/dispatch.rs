//! One message to one cluster: chooses a server, repeats where that is safe, and never shows a client that a
//! server changed its state.

use std::time::Duration;

use bson::RawDocument;
use bytes::BytesMut;

use crate::clock::Clock;
use crate::cluster::command::{OnlyIf, SendError, ServerId};
use crate::cluster::{Pools, Selection};
use crate::model::side::Side;
use crate::policy::failover::{Decision, Failure, Kind, Labels, Progress, decide, is_state_change};
use crate::wire::error::{
    AUTHENTICATION_FAILED, CURSOR_NOT_FOUND, ErrorReply, HOST_UNREACHABLE, NO_WRITES_PERFORMED,
    RETRYABLE_WRITE, TRANSIENT_TRANSACTION, UNKNOWN_COMMIT,
};
use crate::wire::patch::Patched;
use crate::wire::reply::{Number, ReplyFields, overwrite};

use super::meters::Meters;

/// A message on its way to a cluster.
#[derive(Debug)]
pub struct Dispatch<'a> {
    /// The cluster.
    pub side: Side,
    /// Which of its servers.
    pub selection: &'a Selection,
    /// How it may be repeated.
    pub kind: Kind,
    /// How long to wait for a server, all attempts together.
    pub hold: Duration,
    /// Looked at before each attempt, when there is a connection.
    pub only_if: Option<OnlyIf>,
    /// The client's message.
    pub message: &'a [u8],
    /// The changes to it.
    pub patched: &'a Patched,
}

/// A server's answer. The reply's bytes are as the server sent them, but for a state-change code in
/// `writeConcernError`.
#[derive(Debug, Clone)]
pub struct Replied {
    /// The fields of the reply.
    pub fields: ReplyFields,
    /// Who answered.
    pub server: ServerId,
}

/// What came of one attempt.
enum Attempt {
    Replied(Replied),
    Failed {
        failure: Failure,
        why: String,
        reply: Option<Replied>,
    },
    /// There was no connection to send it on.
    NoConnection(SendError),
}

impl Dispatch<'_> {
    /// Sends the message and puts the answer into `reply`, which is cleared first.
    ///
    /// # Errors
    /// The error to answer with when no server gave an answer that a client may see.
    pub async fn send(
        &self,
        pools: &Pools,
        clock: &dyn Clock,
        meters: &Meters,
        reply: &mut BytesMut,
    ) -> Result<Replied, ErrorReply> {
        let deadline = clock.now() + self.hold;
        let mut progress = Progress::default();
        let mut left = self.hold;
        let mut is_gone = false;
        loop {
            let (failure, why, late_reply) = match self.attempt(pools, left, reply).await {
                Attempt::Replied(replied) => return Ok(replied),
                Attempt::Failed { failure, why, reply } => (failure, why, reply),
                Attempt::NoConnection(SendError::LoginRefused(why)) if progress.sent == 0 => {
                    return Err(login_refused(why));
                }
                Attempt::NoConnection(error) => {
                    // No other server can stand in for one that is named.
                    is_gone = matches!(self.selection, Selection::Server(_));
                    let (failure, why) = failure(&error);
                    (failure, why, None)
                }
            };
            match failure {
                Failure::NotSent | Failure::Busy => progress.unsent += 1,
                Failure::Lost | Failure::NotPrimary => progress.sent += 1,
            }
            left = deadline.saturating_sub(clock.now());
            progress.late = left.is_zero() || is_gone || self.may_not_be_sent();
            match decide(self.kind, failure, progress) {
                Decision::Again(pause) => {
                    meters.retry(self.side);
                    if !pause.is_zero() {
                        clock.sleep(pause.min(left)).await;
                    }
                }
                Decision::Unreachable(labels) => {
                    // The write was done, only its replication is in doubt: that is what the client must hear.
                    if let Some(replied) = late_reply {
                        return Ok(hide_state_change(replied, reply));
                    }
                    return Err(unreachable(&why, labels));
                }
                Decision::CursorNotFound => return Err(cursor_lost(&why)),
            }
        }
    }

    fn may_not_be_sent(&self) -> bool {
        self.only_if.as_ref().is_some_and(|OnlyIf(holds)| !holds())
    }

    async fn attempt(&self, pools: &Pools, left: Duration, reply: &mut BytesMut) -> Attempt {
        let mut connection = match pools.checkout(self.selection, left).await {
            Ok(connection) => connection,
            Err(error) => return Attempt::NoConnection(error),
        };
        if self.may_not_be_sent() {
            return failed(&SendError::NotSent("it may not be sent any more".into()));
        }
        if let Err(error) = connection.exchange(&mut self.patched.parts(self.message), reply).await {
            return failed(&error);
        }
        let server = connection.server().clone();
        // The connection is free for others while the reply is looked at.
        drop(connection);
        let fields = match ReplyFields::scan(reply) {
            Ok(fields) => fields,
            Err(error) => return failed(&SendError::Unknown(format!("{server} sent {error}"))),
        };
        if let Some(time) = &fields.cluster_time_value
            && let Ok(time) = RawDocument::from_bytes(&reply[time.clone()])
        {
            pools.times().observe(time);
        }
        let state_change = state_change(&fields);
        let replied = Replied { fields, server };
        let Some(code) = state_change else { return Attempt::Replied(replied) };
        pools.cluster().note_reply_error(&replied.server, code);
        let why = format!("{} answered with code {code}", replied.server);
        let reply = replied.fields.ok.then_some(replied);
        Attempt::Failed { failure: Failure::NotPrimary, why, reply }
    }
}

fn failed(error: &SendError) -> Attempt {
    let (failure, why) = failure(error);
    Attempt::Failed { failure, why, reply: None }
}

fn failure(error: &SendError) -> (Failure, String) {
    match error {
        SendError::NotSent(why) | SendError::LoginRefused(why) => (Failure::NotSent, why.clone()),
        SendError::Busy(why) => (Failure::Busy, why.clone()),
        SendError::Unknown(why) => (Failure::Lost, why.clone()),
    }
}

/// The state-change code that a driver would find in the reply.
fn state_change(fields: &ReplyFields) -> Option<i32> {
    let code = if fields.ok {
        fields.write_concern_error.as_ref().and_then(|code| i32::try_from(code.value).ok()).unwrap_or(0)
    } else {
        fields.code
    };
    is_state_change(code).then_some(code)
}

fn hide_state_change(mut replied: Replied, reply: &mut BytesMut) -> Replied {
    let code = i64::from(HOST_UNREACHABLE.0);
    if let Some(Number { value, place }) = &mut replied.fields.write_concern_error {
        overwrite(reply, place, code);
        *value = code;
    }
    replied
}

pub(super) fn unreachable(why: &str, labels: Labels) -> ErrorReply {
    let names = [
        (labels.retryable_write, RETRYABLE_WRITE),
        (labels.no_writes_performed, NO_WRITES_PERFORMED),
        (labels.transient_transaction, TRANSIENT_TRANSACTION),
        (labels.unknown_commit, UNKNOWN_COMMIT),
    ];
    let labels = names.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect();
    ErrorReply::new(HOST_UNREACHABLE, why).labelled(labels)
}

/// Nothing was sent, and another try would end the same way.
pub(super) fn login_refused(why: String) -> ErrorReply {
    ErrorReply::new(AUTHENTICATION_FAILED, why)
}

fn cursor_lost(why: &str) -> ErrorReply {
    ErrorReply::new(CURSOR_NOT_FOUND, format!("the cursor's server failed: {why}"))
}
