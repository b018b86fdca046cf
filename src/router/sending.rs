//! A command of the migrating path to one cluster: again where that is safe, with the errors that drivers
//! expect.

use std::time::Duration;

use bson::raw::{RawArrayBuf, cstr};

use crate::clock::SharedClock;
use crate::cluster::command::{Commands, Reply, Request, SendError, ServerError};
use crate::policy::failover::{Decision, Failure, Kind, Progress, decide, is_state_change};
use crate::policy::split::Part;
use crate::policy::writes::WriteCommand;
use crate::wire::error::{ErrorReply, HOST_UNREACHABLE};

use super::dispatch::{login_refused, unreachable};

/// An answer, and how often it was asked for.
#[derive(Debug)]
pub struct Answer {
    /// The server's answer.
    pub reply: Reply,
    /// Attempts that reached, or may have reached, a server.
    pub sent: u32,
}

/// Sends `request` until there is an answer that a client may see.
///
/// # Errors
/// The error to answer with.
pub async fn send(
    cluster: &dyn Commands,
    request: Request,
    kind: Kind,
    hold: Duration,
    clock: &SharedClock,
) -> Result<Answer, ErrorReply> {
    let deadline = clock.now() + hold;
    let mut progress = Progress::default();
    loop {
        let left = deadline.saturating_sub(clock.now());
        let (failure, why, late) = match cluster.run(request.clone().within(left)).await {
            Ok(reply) => match state_change(&reply) {
                None => return Ok(Answer { reply, sent: progress.sent + 1 }),
                Some(code) => {
                    let done = reply.error().is_none();
                    let why = format!("{} answered with code {code}", reply.server);
                    (Failure::NotPrimary, why, done.then_some(reply))
                }
            },
            Err(SendError::LoginRefused(why)) if progress.sent == 0 => return Err(login_refused(why)),
            Err(SendError::NotSent(why) | SendError::LoginRefused(why)) => (Failure::NotSent, why, None),
            Err(SendError::Busy(why)) => (Failure::Busy, why, None),
            Err(SendError::Unknown(why)) => (Failure::Lost, why, None),
        };
        match failure {
            Failure::NotSent | Failure::Busy => progress.unsent += 1,
            Failure::Lost | Failure::NotPrimary => progress.sent += 1,
        }
        let left = deadline.saturating_sub(clock.now());
        progress.late = left.is_zero() || request.must_be_due().is_err();
        match decide(kind, failure, progress) {
            Decision::Again(pause) if pause.is_zero() => {}
            Decision::Again(pause) => clock.sleep(pause.min(left)).await,
            Decision::Unreachable(labels) => {
                return match late {
                    // It was done; only its replication is in doubt.
                    Some(reply) => Ok(Answer { reply: hide(reply), sent: progress.sent }),
                    None => Err(unreachable(&why, labels)),
                };
            }
            Decision::CursorNotFound => return Err(ErrorReply::new(HOST_UNREACHABLE, why)),
        }
    }
}

fn state_change(reply: &Reply) -> Option<i32> {
    let code = match ServerError::of(&reply.body) {
        Some(error) => error.code,
        None => reply.body.get_document("writeConcernError").ok()?.get_i32("code").ok()?,
    };
    is_state_change(code).then_some(code)
}

/// A driver must not take a `writeConcernError` for a change of the proxy's state.
fn hide(mut reply: Reply) -> Reply {
    let mut body = bson::RawDocumentBuf::new();
    for (name, value) in reply.body.iter().flatten() {
        match value {
            bson::raw::RawBsonRef::Document(error) if name.as_str() == "writeConcernError" => {
                let message = error.get_str("errmsg").unwrap_or("the primary changed");
                body.append(name, bson::rawdoc! { "code": HOST_UNREACHABLE.0, "errmsg": message });
            }
            value => body.append(name, value),
        }
    }
    reply.body = body;
    reply
}

/// The client's command as it is, but for the `_id`s that inserts were given.
pub(super) fn whole(command: &WriteCommand) -> Request {
    let mut body = command.body.clone();
    if let Some(numbers) = &command.numbers {
        body.append(cstr!("stmtIds"), numbers.iter().copied().collect::<RawArrayBuf>());
    }
    let request = Request::new(command.namespace.database(), body);
    match command.sequence() {
        Some((identifier, documents)) => request.sequence(identifier, documents),
        None => request,
    }
}

/// Some statements of a command, numbered as in the client's, so that retries find them.
pub(super) fn part_of(command: &WriteCommand, part: &Part) -> Request {
    let mut body = command.body.clone();
    let mut documents = Vec::new();
    let mut ids = RawArrayBuf::new();
    for index in &part.indexes {
        documents.extend_from_slice(command.statements[*index].raw.as_bytes());
        ids.push(command.number(*index));
    }
    if command.txn_number.is_some() || command.numbers.is_some() {
        body.append(cstr!("stmtIds"), ids);
    }
    let request = Request::new(command.namespace.database(), body);
    request.sequence(command.verb.array().unwrap_or("documents"), documents)
}
