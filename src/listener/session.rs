//! One client: requests in order, one at a time.
//!
//! Between requests a session holds a socket and nothing else; buffers and the state of a request exist
//! only while one is there.

use std::pin::pin;
use std::sync::Arc;

use bson::RawDocumentBuf;
use bytes::{Buf, BytesMut};
use tokio_util::sync::CancellationToken;

use crate::policy::classify::{Class, classify};
use crate::router::{Handled, Operation, Router};
use crate::wire::compressed::{Compressors, compress, decompress};
use crate::wire::error::{ErrorReply, UNSUPPORTED_OP_QUERY};
use crate::wire::header::{FrameError, OP_COMPRESSED, OP_MSG, OP_QUERY};
use crate::wire::op_msg::{MORE_TO_COME, build};
use crate::wire::query::{self, Query};
use crate::wire::scan::Command;

use super::accounts::Accounts;
use super::answering::{protect, send};
use super::buffers::Buffer;
use super::client::Client;
use super::exhaust;
use super::fail_points::{self, Meeting};
use super::hello::{self, Greeting, SharedCapabilities};
use super::incoming::{Begun, read_message};
use super::kept::Known;
use super::login;
use super::misplaced::not_here;
use super::waiting::{self, Waiting};
use super::worker::Ending;

/// What the sessions of one worker share.
pub(super) struct Context {
    /// The way to the clusters as this process's own user.
    pub(super) router: Router,
    /// Those who have logged in.
    pub(super) accounts: Accounts,
    /// What nobody outside knows, the same for all workers.
    pub(super) secret: Arc<[u8]>,
    pub(super) capabilities: Arc<SharedCapabilities>,
    /// How the messages of clients may be compressed.
    pub(super) compressors: Compressors,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionEnd {
    /// The client closed its connection.
    #[error("the client left")]
    Left,
    /// The client broke the protocol.
    #[error("{0}")]
    Protocol(#[from] FrameError),
    /// The message is of a kind that no supported driver sends.
    #[error("opcode {0} is not supported; OP_MSG and OP_COMPRESSED are")]
    Opcode(i32),
    /// A test wanted it.
    #[error("a fail point closes the connection")]
    FailPoint,
    /// The connection broke.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Serves a client until it leaves, errs, or `ending` tells to stop between two requests. What is returned is for the
/// next process, which goes on with the client.
pub(super) async fn serve(
    context: &Context,
    client: &mut Client,
    mut greeting: Greeting,
    ending: &Ending,
) -> Result<Option<Known>, SessionEnd> {
    let end = until_end(context, client, &mut greeting, ending).await;
    if end.is_ok()
        && ending.keeps(client.is_encrypted())
        && let Some(known) = Known::of(&mut greeting)
    {
        return Ok(Some(known));
    }
    release(context, greeting).await;
    end.map(|()| None)
}

/// Ends what a client that is gone has left open.
pub(super) async fn release(context: &Context, greeting: Greeting) {
    if let Some(belongings) = greeting.belongings {
        let router = greeting.account.as_ref().map_or(&context.router, |account| &account.router);
        Box::pin(belongings.release(router, greeting.connection_id)).await;
    }
}

async fn until_end(
    context: &Context,
    client: &mut Client,
    greeting: &mut Greeting,
    ending: &Ending,
) -> Result<(), SessionEnd> {
    let Ending { farewell, drain, .. } = ending;
    let mut drained = pin!(drain.cancelled());
    let mut begun = Begun::default();
    loop {
        let drains = drain.is_cancelled();
        if drains && is_over(client, greeting, ending, &mut begun) {
            return Ok(());
        }
        tokio::select! {
            biased;
            // First: a request that is there already is answered, whatever else is the matter.
            () = std::future::ready(()), if !greeting.unread.is_empty() => {}
            ready = client.readable() => ready?,
            () = &mut drained, if !drains => continue,
            () = farewell.cancelled(), if greeting.waiting.is_some() && !keeps(client, greeting, ending) => return Ok(()),
            () = waiting::over(&mut greeting.waiting) => {}
        }
        // Boxed, so that an idle session does not keep room for it.
        Box::pin(turn(context, client, greeting, ending, &mut begun)).await?;
    }
}

/// Whether the next process goes on with the client: not, while it logs in.
fn keeps(client: &Client, greeting: &Greeting, ending: &Ending) -> bool {
    ending.keeps(client.is_encrypted()) && greeting.pending.is_none()
}

/// Whether the session of a process that drains ends here, between two messages: what is left is for the next process,
/// or begins only now.
fn is_over(client: &mut Client, greeting: &Greeting, ending: &Ending, begun: &mut Begun) -> bool {
    keeps(client, greeting, ending) || !begun.is_left(client, greeting.unread.len())
}

/// Answers what waited, and handles requests until none is there. A client that does not wait for its answer gets it early.
async fn turn(
    context: &Context,
    client: &mut Client,
    greeting: &mut Greeting,
    ending: &Ending,
    begun: &mut Begun,
) -> Result<(), SessionEnd> {
    if let Some(waiting) = greeting.waiting.take() {
        after_waiting(context, client, greeting, *waiting).await?;
    }
    requests(context, client, greeting, ending, begun).await
}

/// Answers a `hello` that has waited long enough. One that streams waits again.
async fn after_waiting(
    context: &Context,
    client: &mut Client,
    greeting: &mut Greeting,
    waiting: Waiting,
) -> Result<(), SessionEnd> {
    let message = &waiting.message;
    let operation = Operation::parse(message, u64::from(greeting.connection_id.unsigned_abs()))?;
    let body = &message[operation.parts.body.clone()];
    let (document, follows) = match greet(context, greeting, &operation.command, body).await {
        Ok(document) => (document, waiting.streams),
        Err(error) => (error.document(), false),
    };
    let flags = if follows { MORE_TO_COME } else { 0 };
    let reply = build(waiting.number(), waiting.answers_to, flags, document.as_bytes(), None);
    send(client, message, &mut BytesMut::from(&*reply)).await?;
    if !follows {
        return Ok(());
    }
    // As if it had been sent once more.
    let mut failed = BytesMut::new();
    let handled = command(context, client, greeting, message, &mut failed).await?;
    if let Some(again) = &mut greeting.waiting {
        again.again(&waiting);
    } else if handled == Handled::Reply {
        exhaust::follow(&mut failed, waiting.number().to_le_bytes());
        send(client, message, &mut failed).await?;
    }
    Ok(())
}

/// Handles requests until none is there.
async fn requests(
    context: &Context,
    client: &mut Client,
    greeting: &mut Greeting,
    ending: &Ending,
    begun: &mut Begun,
) -> Result<(), SessionEnd> {
    let drain = &ending.drain;
    let mut input = Buffer::take();
    let mut output = Buffer::take();
    let (input, reply) = (&mut input.0, &mut output.0);
    input.extend_from_slice(&std::mem::take(&mut greeting.unread));
    loop {
        let logs_in = greeting.pending.is_some();
        let to_be_kept = ending.time_to_keep(client.is_encrypted());
        let header = tokio::select! {
            biased;
            header = read_message(client, input) => header?,
            // The next process gets the rest of it.
            () = to_be_kept, if !logs_in => None,
        };
        let Some(header) = header else {
            greeting.unread = input[..].into();
            return Ok(());
        };
        let message = &input[..header.length];
        let handled = match header.opcode {
            OP_MSG => command(context, client, greeting, message, reply).await?,
            OP_COMPRESSED => compressed(context, client, greeting, message, reply).await?,
            OP_QUERY => legacy(context, client, greeting, message, reply).await?,
            other => return Err(SessionEnd::Opcode(other)),
        };
        let stream = header.opcode == OP_MSG && exhaust::is_allowed(&greeting.appearance, message);
        if stream && handled == Handled::Reply {
            Box::pin(until_exhausted(context, client, greeting, message, reply, drain)).await?;
        } else if handled == Handled::Reply {
            send(client, message, reply).await?;
        }
        input.advance(header.length);
        begun.handled(header.length);
        if let Some(waiting) = greeting.waiting.take_if(|_| !input.is_empty()) {
            after_waiting(context, client, greeting, *waiting).await?;
        }
        // Whether there are more of those that have begun is looked for outside.
        if input.is_empty() || drain.is_cancelled() {
            greeting.unread = input[..].into();
            return Ok(());
        }
    }
}

/// Sends a reply, and the ones that follow it unasked.
async fn until_exhausted(
    context: &Context,
    client: &mut Client,
    greeting: &mut Greeting,
    message: &[u8],
    reply: &mut BytesMut,
    drain: &CancellationToken,
) -> Result<(), SessionEnd> {
    while !drain.is_cancelled() && exhaust::mark(reply) {
        send(client, message, reply).await?;
        let before = exhaust::number(reply);
        command(context, client, greeting, message, reply).await?;
        exhaust::follow(reply, before);
    }
    Ok(send(client, message, reply).await?)
}

async fn command(
    context: &Context,
    client: &mut Client,
    greeting: &mut Greeting,
    message: &[u8],
    reply: &mut BytesMut,
) -> Result<Handled, SessionEnd> {
    let operation = Operation::parse(message, u64::from(greeting.connection_id.unsigned_abs()))?;
    let meeting = Meeting::of(&operation, greeting);
    let failed = fail_points::before(client, &greeting.fail_points, &meeting).await?;
    let local = match (operation.class, not_here(&greeting.appearance, &operation)) {
        _ if let Some(failed) = failed => Ok(failed),
        (Class::Hello, _) if let Some(waiting) = waits(greeting, &operation, message) => {
            greeting.waiting = Some(Box::new(waiting));
            return Ok(Handled::Silent);
        }
        (Class::Hello, _) => {
            greet(context, greeting, &operation.command, &message[operation.parts.body.clone()]).await
        }
        // Who is not logged in may always log out.
        (Class::Authentication, _) if !greeting.must_log_in && operation.command.name != "logout" => {
            Err(hello::no_login())
        }
        (Class::Authentication, _) => Box::pin(login::answer(context, greeting, &operation)).await,
        (_, Some(error)) if !fail_points::is_set_by(&operation) => Err(error),
        _ if let Some(answer) = login::before(greeting, &operation) => answer,
        _ if fail_points::is_set_by(&operation) => {
            let router = greeting.account.as_ref().map_or(&context.router, |account| &account.router);
            fail_points::configure(router, &greeting.fail_points, &operation, reply).await?;
            return Ok(if operation.silent() { Handled::Silent } else { Handled::Reply });
        }
        _ => {
            let handled = remembered(context, client, greeting, &operation, reply).await?;
            fail_points::after(greeting, &operation, reply)?;
            return Ok(handled);
        }
    };
    let document = local.unwrap_or_else(|error| error.document());
    reply.clear();
    reply.extend_from_slice(&build(0, operation.request_id(), 0, document.as_bytes(), None));
    Ok(if operation.silent() { Handled::Silent } else { Handled::Reply })
}

/// A `hello` that is not to be answered at once. Its answers are never compressed, as on servers.
fn waits(greeting: &Greeting, operation: &Operation<'_>, message: &[u8]) -> Option<Waiting> {
    Waiting::of(message, &message[operation.parts.body.clone()], greeting.process)
}

/// The answer to `hello`, with the ways to log in if it asks for them.
async fn greet(
    context: &Context,
    greeting: &mut Greeting,
    command: &Command<'_>,
    body: &[u8],
) -> Result<RawDocumentBuf, ErrorReply> {
    let mut document = hello::answer(&context.capabilities, greeting, command, body).await?;
    if let Some(mechanisms) = Box::pin(login::mechanisms(context, greeting, body)).await {
        document.append(bson::cstr!("saslSupportedMechs"), mechanisms);
    }
    Ok(document)
}

/// A command within another message; its reply is compressed the same way, as by servers even if that is longer, but for one
/// that would be too long for a message.
async fn compressed(
    context: &Context,
    client: &mut Client,
    greeting: &mut Greeting,
    message: &[u8],
    reply: &mut BytesMut,
) -> Result<Handled, SessionEnd> {
    let mut plain = Buffer::take();
    let compressor = decompress(message, greeting.agreed, &mut plain.0)?;
    let handled = command(context, client, greeting, &plain.0, reply).await?;
    protect(client, &plain.0, reply);
    if let Some(compressor) = compressor.filter(|_| handled == Handled::Reply)
        && compress(reply, compressor, &mut plain.0)
    {
        std::mem::swap(reply, &mut plain.0);
    }
    Ok(handled)
}

/// Runs an operation, and remembers what it opens where that belongs to the connection.
async fn remembered(
    context: &Context,
    client: &mut Client,
    greeting: &mut Greeting,
    operation: &Operation<'_>,
    reply: &mut BytesMut,
) -> Result<Handled, SessionEnd> {
    if let Some(belongings) = &mut greeting.belongings {
        belongings.before(operation);
    }
    let account = greeting.account.clone();
    let router = account.as_ref().map_or(&context.router, |account| &account.router);
    let handled = forward(router, client, operation, reply).await?;
    if let Some(belongings) = &mut greeting.belongings {
        belongings.after(operation, reply);
    }
    Ok(handled)
}

/// Runs an operation. One that changes nothing is given up when its client leaves: the future is dropped,
/// and the server stops when its connection closes.
async fn forward(
    router: &Router,
    client: &mut Client,
    operation: &Operation<'_>,
    reply: &mut BytesMut,
) -> Result<Handled, SessionEnd> {
    let handling = router.handle(operation, reply);
    if !operation.may_be_dropped() {
        return Ok(handling.await);
    }
    tokio::select! {
        biased;
        handled = handling => Ok(handled),
        () = client.gone() => Err(SessionEnd::Left),
    }
}

async fn legacy(
    context: &Context,
    client: &mut Client,
    greeting: &mut Greeting,
    message: &[u8],
    reply: &mut BytesMut,
) -> Result<Handled, SessionEnd> {
    let query = Query::parse(message)?;
    let meeting = Meeting::of_hello(query.command.name, query.body, greeting);
    let answer = if let Some(failed) = fail_points::before(client, &greeting.fail_points, &meeting).await? {
        Ok(failed)
    } else if classify(query.command.name) == Class::Hello {
        greet(context, greeting, &query.command, query.body).await
    } else {
        let text = format!("{} must be sent as OP_MSG", query.command.name);
        Err(ErrorReply::new(UNSUPPORTED_OP_QUERY, text))
    };
    let document = answer.unwrap_or_else(|error| error.document());
    reply.clear();
    reply.extend_from_slice(&query::reply(query.header.request_id, document.as_bytes()));
    Ok(Handled::Reply)
}
