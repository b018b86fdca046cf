//! The fail point `failCommand` of one address: it fails commands of clients here, before a cluster hears of them.
//!
//! Whether a client may set it, and whether it is as it should be, says a server: it is told the same without the
//! `data` that would make it fail anything.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::raw::{RawArrayBuf, RawBsonRef};
use bson::{RawDocument, RawDocumentBuf, rawdoc};
use bytes::BytesMut;
use parking_lot::Mutex;

use crate::policy::classify::Class;
use crate::policy::error_names::name_of;
use crate::policy::fail_command::{Addition, Asked, Effect, End, FailCommand};
use crate::policy::failover::Kind;
use crate::router::{Operation, Router};
use crate::wire::error::{BAD_VALUE, ErrorReply};
use crate::wire::header::FrameError;
use crate::wire::op_msg::{OpMsg, build};

use super::client::Client;
use super::hello::Greeting;
use super::session::SessionEnd;

/// The code of an operation that took longer than its `maxTimeMS`.
const MAX_TIME_EXPIRED: i32 = 50;

/// What is set at one address.
#[derive(Debug, Default)]
pub(super) struct FailPoints {
    /// Looked at for each command.
    on: AtomicBool,
    point: Mutex<FailCommand>,
}

impl FailPoints {
    fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    fn before(&self, asked: &Asked<'_>) -> Option<Effect> {
        let mut point = self.point.lock();
        let effect = point.before(asked);
        self.on.store(point.is_on(), Ordering::Relaxed);
        effect
    }

    fn after(&self, asked: &Asked<'_>) -> Option<Addition> {
        let mut point = self.point.lock();
        let addition = point.after(asked);
        self.on.store(point.is_on(), Ordering::Relaxed);
        addition
    }

    /// Sets it; returns how often it was met before.
    fn configure(&self, command: &RawDocument) -> Result<i64, String> {
        let mut point = self.point.lock();
        *point = point.configured(command)?;
        self.on.store(point.is_on(), Ordering::Relaxed);
        Ok(point.entered())
    }
}

/// Whether a command sets the fail point.
pub(super) fn is_set_by(operation: &Operation<'_>) -> bool {
    operation.command.name == "configureFailPoint" && operation.command.first.as_str() == Some("failCommand")
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

/// The same command, with nothing that it concerns.
fn harmless(command: &RawDocument) -> RawDocumentBuf {
    let mut harmless = RawDocumentBuf::new();
    for (name, value) in command.iter().flatten() {
        match value {
            RawBsonRef::Document(_) if name == "data" => harmless.append(name, RawDocumentBuf::new()),
            value => harmless.append(name, value),
        }
    }
    harmless
}

fn succeeded(answer: &RawDocument) -> bool {
    answer.get_f64("ok").is_ok_and(|ok| ok == 1.0)
}

/// Lets a command meet the fail point, before it is executed: the error that it gets instead, if any.
///
/// # Errors
/// When its connection is to be closed.
pub(super) async fn before(
    client: &mut Client,
    greeting: &Greeting,
    asked: Asked<'_>,
    limit: Option<i64>,
) -> Result<Option<RawDocumentBuf>, SessionEnd> {
    if !greeting.fail_points.is_on() {
        return Ok(None);
    }
    let asked = Asked { application: greeting.application.as_deref(), ..asked };
    let Some(Effect { block, end }) = greeting.fail_points.before(&asked) else { return Ok(None) };
    if let Some(block) = block {
        tokio::select! {
            () = tokio::time::sleep(block) => {}
            () = client.gone() => return Err(SessionEnd::Left),
        }
        let limit = limit.and_then(|millis| u64::try_from(millis).ok()).filter(|millis| *millis > 0);
        if limit.is_some_and(|limit| Duration::from_millis(limit) < block) {
            let text = "operation exceeded time limit";
            return Ok(Some(error(text, MAX_TIME_EXPIRED, RawArrayBuf::new())));
        }
    }
    match end {
        End::Executed => Ok(None),
        End::Closed => Err(SessionEnd::FailPoint),
        End::Failed(code, labels) => {
            Ok(Some(error("Failing command via 'failCommand' failpoint", code, labels)))
        }
    }
}

/// Adds to an answer what the fail point adds.
pub(super) fn after(greeting: &Greeting, operation: &Operation<'_>, reply: &mut BytesMut) {
    let waits = matches!(
        operation.class,
        Class::Write | Class::PipelineWrite | Class::Ddl | Class::Commit | Class::Abort
    );
    if !(waits && greeting.fail_points.is_on()) {
        return;
    }
    let asked = Asked { application: greeting.application.as_deref(), ..asked(operation) };
    let Ok(body) = OpMsg::parse(reply).map(|parts| parts.body) else { return };
    let Ok(body) = RawDocument::from_bytes(&reply[body]) else { return };
    if !succeeded(body) {
        return;
    }
    let Some(Addition { write_concern_error, labels }) = greeting.fail_points.after(&asked) else { return };
    let mut document = RawDocumentBuf::new();
    for (name, value) in body.iter().flatten() {
        if name == "ok" {
            document.append(bson::cstr!("writeConcernError"), write_concern_error.clone());
        }
        document.append(name, value);
    }
    append_labels(&mut document, labels);
    reply.clear();
    reply.extend_from_slice(&build(0, operation.request_id(), 0, document.as_bytes(), None));
}

/// What the fail point asks of a command, but for the name of its application.
pub(super) fn asked<'a>(operation: &Operation<'a>) -> Asked<'a> {
    let command = &operation.command;
    Asked {
        name: command.name,
        database: command.database.unwrap_or_default(),
        collection: command.collection(),
        application: None,
        kind: operation.kind(),
    }
}

/// The same for a `hello` in the old form.
pub(super) fn asked_of_hello(name: &str) -> Asked<'_> {
    Asked { name, database: "admin", collection: None, application: None, kind: Kind::Once }
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
