//! Logging clients in, as the users that old knows. Source: specifications/source/auth/auth.md.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bson::raw::RawArrayBuf;
use bson::spec::BinarySubtype;
use bson::{Binary, RawDocument, RawDocumentBuf, rawdoc};
use futures::FutureExt as _;
use futures::future::{BoxFuture, select_ok};

use super::accounts::{Account, Credentials};
use super::hello::Greeting;
use super::sasl::{self, Start};
use super::scram::{Exchange, First, Proven, Refused, Stored};
use super::session::Context;
use crate::cluster::command::Request;
use crate::cluster::scram::Hash;
use crate::model::side::Side;
use crate::policy::failover::Kind;
use crate::router::{Operation, send};
use crate::wire::error::{
    AUTHENTICATION_FAILED, BAD_VALUE, ErrorReply, HOST_UNREACHABLE, MECHANISM_UNAVAILABLE, PROTOCOL_ERROR,
    UNAUTHORIZED,
};

/// How long a cluster may take to tell of a user.
const LOOK: Duration = Duration::from_secs(15);
/// How long old alone is asked.
const HEAD_START: Duration = Duration::from_secs(3);
/// What servers answer before a login. What logs in or out is answered elsewhere, `hello` and `connectionStatus` here.
const BEFORE: [&str; 6] = ["ping", "buildInfo", "buildinfo", "listCommands", "whatsmyuri", "getnonce"];

/// A login under way.
pub(super) struct Pending {
    source: String,
    user: String,
    exchange: Exchange,
    stored: Stored,
    skips_empty: bool,
    /// The client knows the password; the last, empty messages are missing.
    account: Option<std::sync::Arc<Account>>,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Pending").field("user", &self.user).finish_non_exhaustive()
    }
}

/// The answer to the command of a client that has yet to log in; `None`: a server answers it, or the client need not.
pub(super) fn before(
    greeting: &Greeting,
    operation: &Operation<'_>,
) -> Option<Result<RawDocumentBuf, ErrorReply>> {
    if !greeting.must_log_in || greeting.account.is_some() {
        return None;
    }
    match operation.command.name {
        // A server would tell of the user that the proxy is.
        "connectionStatus" => {
            let body = RawDocument::from_bytes(&operation.message[operation.parts.body.clone()]).ok();
            let shows = body.and_then(|body| body.get_bool("showPrivileges").ok()).unwrap_or(false);
            Some(Ok(nobody_is_here(shows)))
        }
        name if BEFORE.contains(&name) => None,
        name => Some(Err(ErrorReply::new(UNAUTHORIZED, format!("Command {name} requires authentication")))),
    }
}

/// The answer to `connectionStatus` where nobody has logged in.
fn nobody_is_here(shows_privileges: bool) -> RawDocumentBuf {
    let mut about = rawdoc! { "authenticatedUsers": [], "authenticatedUserRoles": [] };
    if shows_privileges {
        about.append(bson::cstr!("authenticatedUserPrivileges"), RawArrayBuf::new());
    }
    rawdoc! { "authInfo": about, "ok": 1.0 }
}

/// The answer to a command that logs a client in or out.
pub(super) async fn answer(
    context: &Context,
    greeting: &mut Greeting,
    operation: &Operation<'_>,
) -> Result<RawDocumentBuf, ErrorReply> {
    let body = RawDocument::from_bytes(&operation.message[operation.parts.body.clone()]);
    let body = body.map_err(|error| ErrorReply::new(BAD_VALUE, error.to_string()))?;
    let database = operation.command.database.unwrap_or("admin");
    match operation.command.name {
        "saslStart" => start(context, greeting, database, body).await,
        "saslContinue" => proceed(context, greeting, body),
        "logout" => {
            (greeting.account, greeting.pending) = (None, None);
            Ok(rawdoc! { "ok": 1.0 })
        }
        name => {
            let text = format!("{name} is not a way to log in here; SCRAM-SHA-256 and SCRAM-SHA-1 are");
            Err(ErrorReply::new(MECHANISM_UNAVAILABLE, text))
        }
    }
}

async fn start(
    context: &Context,
    greeting: &mut Greeting,
    source: &str,
    body: &RawDocument,
) -> Result<RawDocumentBuf, ErrorReply> {
    greeting.pending = None;
    if let Some(account) = &greeting.account {
        let text = format!("{} is logged in already; use a connection for each user", account.name);
        return Err(ErrorReply::new(PROTOCOL_ERROR, text));
    }
    let Start { hash, payload, skips_empty } = Start::parse(body)?;
    let first = First::parse(payload).map_err(|why| refused(source, "", why))?;
    let user = first.user.clone();
    let stored = credentials(context, source, &user).await?.into_iter().find(|stored| stored.hash == hash);
    // Who is not there cannot be told from who has another password.
    let stored = stored.unwrap_or_else(|| nobody(context, hash, source, &user));
    let nonce = BASE64.encode(rand::random::<[u8; 24]>());
    let exchange = Exchange::begin(first, &nonce, &stored);
    let reply = message(&exchange.message, false);
    let source = source.to_owned();
    greeting.pending = Some(Box::new(Pending { source, user, exchange, stored, skips_empty, account: None }));
    Ok(reply)
}

fn proceed(
    context: &Context,
    greeting: &mut Greeting,
    body: &RawDocument,
) -> Result<RawDocumentBuf, ErrorReply> {
    let Some(mut pending) = greeting.pending.take().filter(|_| sasl::continues(body)) else {
        return Err(ErrorReply::new(PROTOCOL_ERROR, "No SASL session state found"));
    };
    if let Some(account) = pending.account {
        greeting.account = Some(account);
        return Ok(message("", true));
    }
    let proven: Proven = pending
        .exchange
        .prove(sasl::payload(body)?, &pending.stored)
        .map_err(|why| refused(&pending.source, &pending.user, why))?;
    let (source, user) = (pending.source.clone(), pending.user.clone());
    let credentials = Credentials { source, user, stored: pending.stored.clone(), keys: proven.keys };
    let account = context.accounts.of(credentials, &context.router);
    let done = pending.skips_empty;
    if done {
        greeting.account = Some(account);
    } else {
        pending.account = Some(account);
        greeting.pending = Some(pending);
    }
    Ok(message(&proven.message, done))
}

/// `saslSupportedMechs` of a hello that asks for it, as `database.user`.
pub(super) async fn mechanisms(context: &Context, greeting: &Greeting, hello: &[u8]) -> Option<RawArrayBuf> {
    if !greeting.must_log_in {
        return None;
    }
    let (source, user) =
        RawDocument::from_bytes(hello).ok()?.get_str("saslSupportedMechs").ok()?.split_once('.')?;
    let found = credentials(context, source, user).await.unwrap_or_default();
    let names: Vec<&str> = found.iter().map(|stored| stored.hash.mechanism_name()).collect();
    let names = if names.is_empty() { Hash::ALL.map(Hash::mechanism_name).to_vec() } else { names };
    Some(names.into_iter().collect())
}

/// What old stores of a user, or new when old cannot be reached.
async fn credentials(context: &Context, source: &str, user: &str) -> Result<Vec<Stored>, ErrorReply> {
    let of_old = stored(context, Side::Old, source, user);
    let of_new = async {
        // An election is over within seconds, mostly; a cluster that is away keeps nobody waiting for long.
        context.router.clock().sleep(HEAD_START).await;
        stored(context, Side::New, source, user).await
    };
    let both: [BoxFuture<'_, Result<Vec<Stored>, String>>; 2] = [of_old.boxed(), of_new.boxed()];
    let (found, _) = select_ok(both).await.map_err(|why| {
        ErrorReply::new(HOST_UNREACHABLE, format!("whether {user} may log in cannot be told: {why}"))
    })?;
    Ok(found)
}

async fn stored(context: &Context, side: Side, source: &str, user: &str) -> Result<Vec<Stored>, String> {
    let pools = context.router.pools(side).map_err(|error| error.message)?;
    let body = rawdoc! { "usersInfo": { "user": user, "db": source }, "showCredentials": true };
    let request = Request::new("admin", body);
    let asked = send(&**pools, request, Kind::Read, LOOK, context.router.clock()).await;
    let reply = asked.map_err(|error| error.message)?.reply;
    match reply.error() {
        None => Ok(read(&reply.body)),
        Some(error) => {
            tracing::error!(cluster = %side, %error, "the users who log in cannot be read");
            Err(format!("reshard's own user may not read users on {side}: {error}"))
        }
    }
}

fn read(reply: &RawDocument) -> Vec<Stored> {
    let user = reply.get_array("users").ok().and_then(|users| users.into_iter().next()?.ok()?.as_document());
    let Some(credentials) = user.and_then(|user| user.get_document("credentials").ok()) else {
        return Vec::new();
    };
    let stored = |hash: Hash| {
        let stored = credentials.get_document(hash.mechanism_name()).ok()?;
        let bytes = |field: &str| BASE64.decode(stored.get_str(field).ok()?).ok();
        Some(Stored {
            hash,
            salt: bytes("salt")?,
            iterations: u32::try_from(stored.get_i32("iterationCount").ok()?).ok()?,
            stored_key: bytes("storedKey")?,
            server_key: bytes("serverKey")?,
        })
    };
    Hash::ALL.into_iter().filter_map(stored).collect()
}

/// What would be stored of somebody who is not there: the same each time, and no password fits.
fn nobody(context: &Context, hash: Hash, source: &str, user: &str) -> Stored {
    let secret = |what: &str| hash.mac(&context.secret, format!("{what} {source}.{user}").as_bytes());
    let (salt, iterations) = match hash {
        Hash::Sha1 => (16, 10_000),
        Hash::Sha256 => (28, 15_000),
    };
    let salt = secret("salt").into_iter().take(salt).collect();
    Stored { hash, salt, iterations, stored_key: secret("stored"), server_key: secret("server") }
}

fn message(text: &str, done: bool) -> RawDocumentBuf {
    let payload = Binary { subtype: BinarySubtype::Generic, bytes: text.as_bytes().to_vec() };
    rawdoc! { "conversationId": sasl::CONVERSATION, "done": done, "payload": payload, "ok": 1.0 }
}

fn refused(source: &str, user: &str, why: Refused) -> ErrorReply {
    tracing::info!(user, source, ?why, "a login was refused");
    match why {
        Refused::WrongProof => ErrorReply::new(AUTHENTICATION_FAILED, "Authentication failed."),
        Refused::Malformed(what) => ErrorReply::new(BAD_VALUE, format!("a SCRAM message lacks {what}")),
    }
}

#[cfg(test)]
mod tests {
    use bson::oid::ObjectId;

    use super::*;
    use crate::listener::acceptor::Door;
    use crate::listener::face::Appearance;
    use crate::wire::compressed::Compressors;
    use crate::wire::op_msg::build;

    fn asked(greeting: &Greeting, body: &RawDocument) -> Option<Result<RawDocumentBuf, ErrorReply>> {
        let message = build(1, 0, 0, body.as_bytes(), None);
        before(greeting, &Operation::parse(&message, 1).unwrap())
    }

    #[test]
    fn before_a_login_is_answered_what_servers_answer() {
        let door = Door::showing(Appearance::Router, ObjectId::new());
        let mut greeting = Greeting::new(1, &door, Compressors::NONE);
        greeting.must_log_in = true;
        let status = asked(&greeting, &rawdoc! { "connectionStatus": 1, "$db": "admin" }).unwrap().unwrap();
        let nobody = rawdoc! { "authenticatedUsers": [], "authenticatedUserRoles": [] };
        assert_eq!(status, rawdoc! { "authInfo": nobody, "ok": 1.0 });
        let shown = rawdoc! { "connectionStatus": 1, "showPrivileges": true, "$db": "admin" };
        let shown = asked(&greeting, &shown).unwrap().unwrap();
        assert!(shown.get_document("authInfo").unwrap().get_array("authenticatedUserPrivileges").is_ok());
        for body in [rawdoc! { "ping": 1 }, rawdoc! { "buildInfo": 1 }, rawdoc! { "whatsmyuri": 1 }] {
            assert_eq!(asked(&greeting, &body), None, "for a server");
        }
        for body in [rawdoc! { "find": "c" }, rawdoc! { "endSessions": [] }, rawdoc! { "serverStatus": 1 }] {
            assert_eq!(asked(&greeting, &body).unwrap().unwrap_err().code, UNAUTHORIZED);
        }
        greeting.must_log_in = false;
        assert_eq!(asked(&greeting, &rawdoc! { "connectionStatus": 1 }), None);
    }
}
