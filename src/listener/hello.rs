//! The answer to `hello`: the face of the listener, whatever stands behind.
//!
//! It is the same for the life of the process, because drivers do not expect a topology to change its kind,
//! its limits or its versions. No `$clusterTime`: one foreign time would poison a driver's whole client.

use std::sync::Arc;
use std::time::Duration;

use bson::oid::ObjectId;
use bson::raw::RawArrayBuf;
use bson::{DateTime, RawDocument, RawDocumentBuf};
use tokio::sync::SetOnce;
use tokio::time::timeout;

use crate::model::capabilities::Capabilities;
use crate::wire::compressed::{Compressor, Compressors};
use crate::wire::error::{
    AUTHENTICATION_FAILED, BAD_VALUE, CLIENT_METADATA_CANNOT_BE_MUTATED, ErrorReply, HOST_UNREACHABLE,
    LOAD_BALANCER_SUPPORT_MISMATCH,
};
use crate::wire::scan::Command;

use super::acceptor::Door;
use super::accounts::Account;
use super::belongings::Belongings;
use super::face::Appearance;
use super::fail_points::FailPoints;
use super::introduction;
use super::login::Pending;
use super::waiting::{self, Waiting};

/// What clients are told about the clusters, once they are known.
pub type SharedCapabilities = SetOnce<Capabilities>;

/// How long a client waits for the clusters to be known; less than drivers wait for a connection.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What `hello` needs to know about its client.
pub(super) struct Greeting {
    /// Unique in the process.
    pub(super) connection_id: i32,
    /// What the client is shown.
    pub(super) appearance: Arc<Appearance>,
    /// The name of this process.
    pub(super) process: ObjectId,
    /// Its `hello` that waits.
    pub(super) waiting: Option<Box<Waiting>>,
    /// What its commands may meet.
    pub(super) fail_points: Arc<FailPoints>,
    /// What it came in by.
    pub(super) sign: Arc<str>,
    /// What it has sent, and nobody has read.
    pub(super) unread: Box<[u8]>,
    /// What it was told of the clusters last, by whichever process.
    pub(super) told: Option<Capabilities>,
    /// The client has said who it is.
    pub(super) introduced: bool,
    /// The name of its application.
    pub(super) application: Option<Box<str>>,
    /// It has said that it expects a balancer.
    pub(super) balanced: bool,
    /// How the proxy may compress.
    offered: Compressors,
    /// How both may.
    pub(super) agreed: Compressors,
    /// What it has open, where that belongs to its connection.
    pub(super) belongings: Option<Box<Belongings>>,
    /// It must log in before it is served.
    pub(super) must_log_in: bool,
    /// Who has logged in.
    pub(super) account: Option<Arc<Account>>,
    /// Who is about to.
    pub(super) pending: Option<Box<Pending>>,
}

impl Greeting {
    /// Before the first `hello`.
    pub(super) fn new(connection_id: i32, door: &Door, offered: Compressors) -> Self {
        let belongings = matches!(*door.appearance, Appearance::Service(_)).then(Box::default);
        Self {
            connection_id,
            appearance: door.appearance.clone(),
            process: door.process,
            waiting: None,
            fail_points: door.fail_points.clone(),
            sign: door.sign.clone(),
            unread: Box::default(),
            told: None,
            introduced: false,
            application: None,
            balanced: false,
            offered,
            agreed: Compressors::NONE,
            belongings,
            must_log_in: door.login,
            account: None,
            pending: None,
        }
    }
}

/// The answer to `hello`, `isMaster` or `ismaster`. Right after the start it waits for the clusters.
pub(super) async fn answer(
    capabilities: &SharedCapabilities,
    greeting: &mut Greeting,
    command: &Command<'_>,
    body: &[u8],
) -> Result<RawDocumentBuf, ErrorReply> {
    let Ok(capabilities) = timeout(PATIENCE, capabilities.wait()).await else {
        return Err(ErrorReply::new(HOST_UNREACHABLE, "no server of the clusters has answered yet"));
    };
    let asked = RawDocument::from_bytes(body)
        .map_err(|error| ErrorReply::new(BAD_VALUE, format!("hello cannot be read: {error}")))?;
    let field = |name: &str| asked.get(name).ok().flatten();
    if let Some(client) = field("client") {
        if greeting.introduced {
            let text = "the client metadata document may only be sent in the first hello";
            return Err(ErrorReply::new(CLIENT_METADATA_CANNOT_BE_MUTATED, text));
        }
        greeting.introduced = true;
        let application = introduction::check(client, greeting.appearance.longest_introduction())?;
        greeting.application = application.map(Into::into);
    }
    let balanced = field("loadBalanced").and_then(|value| value.as_bool()) == Some(true);
    // Once is enough: what applications ask later is asked by a driver that knows.
    greeting.balanced |= balanced;
    if matches!(*greeting.appearance, Appearance::Service(_)) && !greeting.balanced {
        let text = "this address is for drivers behind a load balancer: add loadBalanced=true to the connection \
                    string, or connect to a listener with another face";
        return Err(ErrorReply::new(LOAD_BALANCER_SUPPORT_MISMATCH, text));
    }
    waiting::patience(asked, greeting.process)?;
    let common = in_common(asked, greeting.offered);
    greeting.agreed = common.iter().fold(greeting.agreed, |agreed, one| agreed.with(*one));
    let hello_ok = field("helloOk").and_then(|value| value.as_bool()) == Some(true);
    greeting.told = Some(*capabilities);
    let mut document = document(capabilities, greeting, command.name, hello_ok, balanced);
    if !common.is_empty() {
        let names: RawArrayBuf = common.iter().map(|one| one.name()).collect();
        document.append(bson::cstr!("compression"), names);
    }
    Ok(document)
}

/// What the client asks for and may have, in its order.
fn in_common(asked: &RawDocument, offered: Compressors) -> Vec<Compressor> {
    let asked = asked.get_array("compression").into_iter().flatten().flatten();
    let mut common = Vec::new();
    for one in asked.filter_map(|name| offered.named(name.as_str()?)) {
        if !common.contains(&one) {
            common.push(one);
        }
    }
    common
}

fn document(
    capabilities: &Capabilities,
    greeting: &Greeting,
    name: &str,
    hello_ok: bool,
    balanced: bool,
) -> RawDocumentBuf {
    let writable = if name == "hello" { bson::cstr!("isWritablePrimary") } else { bson::cstr!("ismaster") };
    let now = DateTime::now();
    let mut document = RawDocumentBuf::new();
    if hello_ok {
        document.append(bson::cstr!("helloOk"), true);
    }
    let version =
        (capabilities.max_wire_version >= waiting::SINCE).then(|| waiting::version(greeting.process));
    greeting.appearance.show(&mut document, writable, version.as_deref(), balanced, now);
    document.append(bson::cstr!("maxBsonObjectSize"), capabilities.max_bson_object_size);
    document.append(bson::cstr!("maxMessageSizeBytes"), capabilities.max_message_size);
    document.append(bson::cstr!("maxWriteBatchSize"), capabilities.max_write_batch_size);
    document.append(bson::cstr!("localTime"), now);
    if let Some(minutes) = capabilities.session_timeout_minutes {
        document.append(bson::cstr!("logicalSessionTimeoutMinutes"), minutes);
    }
    document.append(bson::cstr!("connectionId"), greeting.connection_id);
    document.append(bson::cstr!("minWireVersion"), capabilities.min_wire_version);
    document.append(bson::cstr!("maxWireVersion"), capabilities.max_wire_version);
    document.append(bson::cstr!("readOnly"), false);
    document.append(bson::cstr!("ok"), 1.0);
    document
}

/// The answer to commands that log a client in or out.
pub(super) fn no_login() -> ErrorReply {
    let text = "authentication failed: nobody logs in at this address: remove the credentials (and authSource) from the connection string, the \
                proxy logs in to the clusters itself; or set login = true for the listener";
    ErrorReply::new(AUTHENTICATION_FAILED, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    fn stranger(offered: Compressors) -> Greeting {
        Greeting::new(1, &Door::showing(Appearance::Router, ObjectId::new()), offered)
    }

    async fn ask(greeting: &mut Greeting, body: &RawDocumentBuf) -> Result<RawDocumentBuf, ErrorReply> {
        let bytes = body.as_bytes();
        let command = Command::scan(bytes, 0..bytes.len()).unwrap();
        answer(&SharedCapabilities::new_with(Some(Capabilities::OF_6_0)), greeting, &command, bytes).await
    }

    #[tokio::test]
    async fn both_forms_show_a_router_in_their_own_words() {
        let mut greeting = stranger(Compressors::NONE);
        let modern = ask(&mut greeting, &rawdoc! { "hello": 1 }).await.unwrap();
        assert!(modern.get_bool("isWritablePrimary").unwrap());
        assert!(modern.get("ismaster").unwrap().is_none() && modern.get("helloOk").unwrap().is_none());
        let legacy = ask(&mut greeting, &rawdoc! { "isMaster": 1, "helloOk": true }).await.unwrap();
        assert!(legacy.get_bool("ismaster").unwrap());
        assert!(legacy.get_bool("helloOk").unwrap());
        for reply in [modern, legacy] {
            assert_eq!(reply.get_str("msg").unwrap(), "isdbgrid");
            assert_eq!(reply.get_i32("maxWireVersion").unwrap(), 17);
            let version = reply.get_document("topologyVersion").unwrap();
            assert_eq!(version.get_object_id("processId").unwrap(), greeting.process);
            for absent in ["$clusterTime", "compression", "setName", "saslSupportedMechs"] {
                assert!(reply.get(absent).unwrap().is_none());
            }
        }
    }

    #[tokio::test]
    async fn a_client_introduces_itself_once() {
        let mut greeting = stranger(Compressors::NONE);
        let body = rawdoc! {
            "hello": 1, "client": { "driver": { "name": "x", "version": "1" }, "os": { "type": "x" } },
        };
        assert!(ask(&mut greeting, &body).await.is_ok());
        assert_eq!(ask(&mut greeting, &body).await.unwrap_err().code, CLIENT_METADATA_CANNOT_BE_MUTATED);
        assert!(ask(&mut greeting, &rawdoc! { "hello": 1 }).await.is_ok());
    }

    #[tokio::test]
    async fn clients_and_proxy_agree_on_compressors() {
        let offered = Compressors::NONE.with(Compressor::Zlib).with(Compressor::Zstd);
        let mut greeting = stranger(offered);
        assert!(
            ask(&mut greeting, &rawdoc! { "hello": 1 }).await.unwrap().get("compression").unwrap().is_none()
        );
        let body = rawdoc! { "hello": 1, "compression": ["zstd", "snappy", "lz4", "zlib", "zstd"] };
        let reply = ask(&mut greeting, &body).await.unwrap();
        let names: Vec<_> = reply.get_array("compression").unwrap().into_iter().flatten().collect();
        assert_eq!(names.iter().filter_map(|name| name.as_str()).collect::<Vec<_>>(), ["zstd", "zlib"]);
        assert_eq!(greeting.agreed, offered);
    }

    #[tokio::test]
    async fn behind_a_balancer_a_driver_must_know_of_it() {
        let service = Door::showing(Appearance::Service(ObjectId::new()), ObjectId::new());
        let mut greeting = Greeting::new(1, &service, Compressors::NONE);
        let error = ask(&mut greeting, &rawdoc! { "hello": 1 }).await.unwrap_err();
        assert_eq!(error.code, LOAD_BALANCER_SUPPORT_MISMATCH);
        let hello = ask(&mut greeting, &rawdoc! { "hello": 1, "loadBalanced": true }).await.unwrap();
        assert!(hello.get_object_id("serviceId").is_ok());
        assert!(ask(&mut greeting, &rawdoc! { "hello": 1 }).await.is_ok());
        let mut greeting = stranger(Compressors::NONE);
        let hello = ask(&mut greeting, &rawdoc! { "hello": 1, "loadBalanced": true }).await.unwrap();
        assert!(hello.get_object_id("serviceId").is_err());
    }
}
