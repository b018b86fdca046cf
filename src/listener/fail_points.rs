//! The fail points of one address: they fail commands of clients here, and not on a cluster.
//!
//! Whether a client may set one, and whether it is as it should be, says a server: it is told the same with `data`
//! that makes it fail nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::raw::{RawArrayBuf, RawBsonRef};
use bson::{RawDocument, RawDocumentBuf, rawdoc};
use bytes::BytesMut;
use parking_lot::Mutex;

use crate::policy::classify::Class;
use crate::policy::error_names::name_of;
use crate::policy::fail_command::{Asked, Effect, End, FailCommand, labels_of};
use crate::policy::fail_write::{Before, FailWrite};
use crate::policy::failover::Kind;
use crate::router::{Operation, Router};
use crate::wire::error::{BAD_VALUE, ErrorReply};
use crate::wire::header::FrameError;
use crate::wire::op_msg::{OpMsg, build};

use super::client::Client;
use super::hello::Greeting;
use super::introduction;
use super::session::SessionEnd;

const COMMAND: &str = "failCommand";
const WRITE: &str = "onPrimaryTransactionalWrite";
/// The code of an operation that took longer than its `maxTimeMS`.
const MAX_TIME_EXPIRED: i32 = 50;

/// What is set at one address.
#[derive(Debug, Default)]
pub(super) struct FailPoints {
    /// Looked at for each command.
    on: AtomicBool,
    points: Mutex<Points>,
}

#[derive(Debug, Default)]
struct Points {
    command: FailCommand,
    write: FailWrite,
}

impl FailPoints {
    fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    fn with<T>(&self, act: impl FnOnce(&mut Points) -> T) -> T {
        let mut points = self.points.lock();
        let result = act(&mut points);
        self.on.store(points.command.is_on() || points.write.is_on(), Ordering::Relaxed);
        result
    }

    /// Sets one; returns how often it was met before.
    fn configure(&self, command: &RawDocument) -> Result<i64, String> {
        self.with(|points| {
            if command.get_str("configureFailPoint").is_ok_and(|name| name == COMMAND) {
                points.command = points.command.configured(command)?;
                return Ok(points.command.entered());
            }
            points.write = points.write.configured(command)?;
            Ok(points.write.entered())
        })
    }
}

/// A command that may meet them.
pub(super) struct Meeting<'a> {
    asked: Asked<'a>,
    max_time_ms: Option<i64>,
    /// Of a numbered write; else 0.
    statements: i64,
}

impl<'a> Meeting<'a> {
    /// An operation of a client.
    pub(super) fn of(operation: &Operation<'a>, greeting: &'a Greeting) -> Self {
        let command = &operation.command;
        let body = &operation.message[operation.parts.body.clone()];
        // Its first word may be the one that tells the name.
        let hello = Some(body).filter(|_| operation.class == Class::Hello);
        let asked = Asked {
            name: command.name,
            database: command.database.unwrap_or_default(),
            collection: command.collection(),
            application: application(greeting, hello),
            kind: operation.kind(),
        };
        let numbered = operation.kind() == Kind::RetryableWrite;
        let statements = if numbered && greeting.fail_points.is_on() { statements(operation) } else { 0 };
        Self { asked, max_time_ms: command.max_time_ms, statements }
    }

    /// A `hello` in the old form.
    pub(super) fn of_hello(name: &'a str, body: &'a [u8], greeting: &'a Greeting) -> Self {
        let application = application(greeting, Some(body));
        let asked = Asked { name, database: "admin", collection: None, application, kind: Kind::Once };
        Self { asked, max_time_ms: None, statements: 0 }
    }
}

fn application<'a>(greeting: &'a Greeting, hello: Option<&'a [u8]>) -> Option<&'a str> {
    let told = hello.and_then(|body| RawDocument::from_bytes(body).ok()).and_then(introduction::application);
    told.or(greeting.application.as_deref())
}

/// How many statements a write has: the documents of its sequence or its array, or itself.
fn statements(operation: &Operation<'_>) -> i64 {
    let mut count = 0_i64;
    for sequence in &operation.parts.sequences {
        let mut rest = &operation.message[sequence.documents.clone()];
        while let Some(length) = rest.first_chunk().map(|bytes| i32::from_le_bytes(*bytes)) {
            let Some(next) = usize::try_from(length).ok().and_then(|length| rest.get(length..)) else {
                break;
            };
            (rest, count) = (next, count + 1);
        }
    }
    let body = RawDocument::from_bytes(&operation.message[operation.parts.body.clone()]);
    for name in ["documents", "updates", "deletes"] {
        let array = body.as_ref().ok().and_then(|body| body.get_array(name).ok());
        count += array.map_or(0, |array| array.into_iter().fold(0, |count, _| count + 1));
    }
    count.max(1)
}

/// Whether a command sets one that is met here.
pub(super) fn is_set_by(operation: &Operation<'_>) -> bool {
    let name = operation.command.first.as_str();
    operation.command.name == "configureFailPoint"
        && name.is_some_and(|name| [COMMAND, WRITE].contains(&name))
}

/// Sets it, if a server lets the client; the answer is in `reply`.
pub(super) async fn configure(
    router: &Router,
    points: &FailPoints,
    operation: &Operation<'_>,
    reply: &mut BytesMut,
) -> Result<(), SessionEnd> {
    let body = &operation.message[operation.parts.body.clone()];
    let Ok(body) = RawDocument::from_bytes(body) else {
        return Err(FrameError::Malformed("a command that is no document").into());
    };
    let question = build(operation.request_id(), 0, 0, harmless(body).as_bytes(), None);
    router.handle(&Operation::parse(&question, operation.client)?, reply).await;
    let answer = RawDocument::from_bytes(&reply[OpMsg::parse(reply)?.body]);
    if !answer.is_ok_and(succeeded) {
        return Ok(());
    }
    let count = points.configure(body);
    let document = match count {
        Ok(count) => rawdoc! { "count": count, "ok": 1.0 },
        Err(why) => ErrorReply::new(BAD_VALUE, why).document(),
    };
    reply.clear();
    reply.extend_from_slice(&build(0, operation.request_id(), 0, document.as_bytes(), None));
    Ok(())
}

/// The same command, failing nothing.
fn harmless(command: &RawDocument) -> RawDocumentBuf {
    let nothing = rawdoc! { "closeConnection": false };
    let mut harmless = RawDocumentBuf::new();
    for (name, value) in command.iter().flatten() {
        match value {
            RawBsonRef::Document(_) if name == "data" => {}
            value => harmless.append(name, value),
        }
    }
    if harmless.get("data").ok().flatten().is_none() {
        harmless.append(bson::cstr!("data"), nothing);
    }
    harmless
}

fn succeeded(answer: &RawDocument) -> bool {
    answer.get_f64("ok").is_ok_and(|ok| ok == 1.0)
}

/// Lets a command meet the fail points, before it is executed: the error that it gets instead, if any.
///
/// # Errors
/// When its connection is to be closed.
pub(super) async fn before(
    client: &mut Client,
    points: &FailPoints,
    meeting: &Meeting<'_>,
) -> Result<Option<RawDocumentBuf>, SessionEnd> {
    if !points.is_on() {
        return Ok(None);
    }
    let effect = points.with(|points| points.command.before(&meeting.asked));
    let end = match effect {
        Some(Effect { block: Some(block), end }) => {
            tokio::select! {
                () = tokio::time::sleep(block) => {}
                () = client.gone() => return Err(SessionEnd::Left),
            }
            let limit = meeting.max_time_ms.and_then(|millis| u64::try_from(millis).ok());
            if limit.is_some_and(|limit| limit > 0 && Duration::from_millis(limit) < block) {
                let text = "operation exceeded time limit";
                return Ok(Some(error(text, MAX_TIME_EXPIRED, RawArrayBuf::new())));
            }
            end
        }
        Some(Effect { block: None, end }) => end,
        None => End::Executed,
    };
    match end {
        End::Executed if meeting.statements > 0 => before_write(points, meeting),
        End::Executed => Ok(None),
        End::Closed => Err(SessionEnd::FailPoint),
        End::Failed(code, labels) => {
            Ok(Some(error("Failing command via 'failCommand' failpoint", code, labels)))
        }
    }
}

fn before_write(points: &FailPoints, meeting: &Meeting<'_>) -> Result<Option<RawDocumentBuf>, SessionEnd> {
    match points.with(|points| points.write.before(meeting.statements)) {
        None => Ok(None),
        Some(Before::Closed) => Err(SessionEnd::FailPoint),
        Some(Before::Failed(code)) => {
            let labels = labels_of(code, meeting.asked.kind, false);
            Ok(Some(error("Failing write for onPrimaryTransactionalWrite", code, labels)))
        }
    }
}

/// Lets a command meet the fail points once it has been executed.
///
/// # Errors
/// When its connection is to be closed.
pub(super) fn after(
    greeting: &Greeting,
    operation: &Operation<'_>,
    reply: &mut BytesMut,
) -> Result<(), SessionEnd> {
    let waits = matches!(
        operation.class,
        Class::Write | Class::PipelineWrite | Class::Ddl | Class::Commit | Class::Abort
    );
    let points = &greeting.fail_points;
    if !(waits && points.is_on()) {
        return Ok(());
    }
    let Ok(body) = OpMsg::parse(reply).map(|parts| parts.body) else { return Ok(()) };
    let Ok(body) = RawDocument::from_bytes(&reply[body]) else { return Ok(()) };
    if !succeeded(body) {
        return Ok(());
    }
    let meeting = Meeting::of(operation, greeting);
    // What had been done before is not done now.
    let done = meeting.statements > 0 && body.get("retriedStmtIds").ok().flatten().is_none();
    if done && points.with(|points| points.write.closes(meeting.statements)) {
        return Err(SessionEnd::FailPoint);
    }
    let Some(addition) = points.with(|points| points.command.after(&meeting.asked)) else { return Ok(()) };
    let mut document = RawDocumentBuf::new();
    for (name, value) in body.iter().flatten() {
        if name == "ok" {
            document.append(bson::cstr!("writeConcernError"), addition.write_concern_error.clone());
        }
        document.append(name, value);
    }
    append_labels(&mut document, addition.labels);
    reply.clear();
    reply.extend_from_slice(&build(0, operation.request_id(), 0, document.as_bytes(), None));
    Ok(())
}

fn error(text: &str, code: i32, labels: RawArrayBuf) -> RawDocumentBuf {
    let mut document = RawDocumentBuf::new();
    append_labels(&mut document, labels);
    document.append(bson::cstr!("ok"), 0.0);
    document.append(bson::cstr!("errmsg"), text);
    document.append(bson::cstr!("code"), code);
    document.append(bson::cstr!("codeName"), name_of(code));
    document
}

fn append_labels(document: &mut RawDocumentBuf, labels: RawArrayBuf) {
    if labels.into_iter().next().is_some() {
        document.append(bson::cstr!("errorLabels"), labels);
    }
}
