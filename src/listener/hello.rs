//! The answer to `hello`: the face of a router (mongos), whatever stands behind.
//!
//! It is the same for the life of the process, because drivers do not expect a topology to change its kind,
//! its limits or its versions. No `topologyVersion`: drivers then ask at intervals instead of waiting for a
//! reply. No `$clusterTime`: one foreign time would poison a driver's whole client.

use std::time::Duration;

use bson::raw::RawArrayBuf;
use bson::{DateTime, RawDocument, RawDocumentBuf};
use tokio::sync::SetOnce;
use tokio::time::timeout;

use crate::wire::compressed::{Compressor, Compressors};
use crate::wire::error::{
    AUTHENTICATION_FAILED, CLIENT_METADATA_CANNOT_BE_MUTATED, ErrorReply, HOST_UNREACHABLE,
};
use crate::wire::scan::Command;

/// What clients are told about the clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Face {
    /// Lowest wire version that all clusters speak.
    pub min_wire_version: i32,
    /// Highest wire version that all clusters speak.
    pub max_wire_version: i32,
    /// Largest document, bytes.
    pub max_bson_object_size: i32,
    /// Largest message, bytes.
    pub max_message_size: i32,
    /// Most writes in one command.
    pub max_write_batch_size: i32,
    /// How long sessions live, minutes.
    pub session_timeout_minutes: Option<i32>,
}

impl Face {
    /// What two clusters have in common.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            min_wire_version: self.min_wire_version.max(other.min_wire_version),
            max_wire_version: self.max_wire_version.min(other.max_wire_version),
            max_bson_object_size: self.max_bson_object_size.min(other.max_bson_object_size),
            max_message_size: self.max_message_size.min(other.max_message_size),
            max_write_batch_size: self.max_write_batch_size.min(other.max_write_batch_size),
            session_timeout_minutes: self
                .session_timeout_minutes
                .zip(other.session_timeout_minutes)
                .map(|(ours, theirs)| ours.min(theirs)),
        }
    }
}

/// The face, once the clusters are known.
pub type SharedFace = SetOnce<Face>;

/// How long a client waits for the clusters to be known; less than drivers wait for a connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// What `hello` needs to know about its client.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    /// Unique in the process.
    pub(super) connection_id: i32,
    /// The client has said who it is.
    pub(super) introduced: bool,
    /// How the proxy may compress.
    pub(super) offered: Compressors,
    /// How both may.
    pub(super) agreed: Compressors,
}

/// The answer to `hello`, `isMaster` or `ismaster`. Right after the start it waits for the clusters.
pub(super) async fn answer(
    face: &SharedFace,
    greeting: &mut Greeting,
    command: &Command<'_>,
    body: &[u8],
) -> Result<RawDocumentBuf, ErrorReply> {
    let Ok(face) = timeout(PATIENCE, face.wait()).await else {
        return Err(ErrorReply::new(HOST_UNREACHABLE, "no server of the clusters has answered yet"));
    };
    let asked = bson::RawDocument::from_bytes(body).ok();
    let has = |key: &str| asked.is_some_and(|asked| matches!(asked.get(key), Ok(Some(_))));
    if has("client") {
        if greeting.introduced {
            let text = "the client metadata document may only be sent in the first hello";
            return Err(ErrorReply::new(CLIENT_METADATA_CANNOT_BE_MUTATED, text));
        }
        greeting.introduced = true;
    }
    let common = asked.map(|asked| in_common(asked, greeting.offered)).unwrap_or_default();
    greeting.agreed = common.iter().fold(greeting.agreed, |agreed, one| agreed.with(*one));
    let mut document = document(face, greeting, command.name, has("helloOk"));
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

fn document(face: &Face, greeting: &Greeting, name: &str, hello_ok: bool) -> RawDocumentBuf {
    let primary = if name == "hello" { bson::cstr!("isWritablePrimary") } else { bson::cstr!("ismaster") };
    let mut document = RawDocumentBuf::new();
    if hello_ok {
        document.append(bson::cstr!("helloOk"), true);
    }
    document.append(primary, true);
    document.append(bson::cstr!("msg"), "isdbgrid");
    document.append(bson::cstr!("maxBsonObjectSize"), face.max_bson_object_size);
    document.append(bson::cstr!("maxMessageSizeBytes"), face.max_message_size);
    document.append(bson::cstr!("maxWriteBatchSize"), face.max_write_batch_size);
    document.append(bson::cstr!("localTime"), DateTime::now());
    if let Some(minutes) = face.session_timeout_minutes {
        document.append(bson::cstr!("logicalSessionTimeoutMinutes"), minutes);
    }
    document.append(bson::cstr!("connectionId"), greeting.connection_id);
    document.append(bson::cstr!("maxWireVersion"), face.max_wire_version);
    document.append(bson::cstr!("minWireVersion"), face.min_wire_version);
    document.append(bson::cstr!("readOnly"), false);
    document.append(bson::cstr!("ok"), 1.0);
    document
}

/// The answer to commands that log a client in or out.
pub(super) fn no_login() -> ErrorReply {
    let text = "client authentication is not supported by this version; remove the credentials (and authSource) \
                from the connection string, the proxy logs in to the clusters itself";
    ErrorReply::new(AUTHENTICATION_FAILED, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    const FACE: Face = Face {
        min_wire_version: 0,
        max_wire_version: 17,
        max_bson_object_size: 16_777_216,
        max_message_size: 48_000_000,
        max_write_batch_size: 100_000,
        session_timeout_minutes: Some(30),
    };

    async fn ask(greeting: &mut Greeting, body: &RawDocumentBuf) -> Result<RawDocumentBuf, ErrorReply> {
        let bytes = body.as_bytes();
        let command = Command::scan(bytes, 0..bytes.len()).unwrap();
        answer(&SharedFace::new_with(Some(FACE)), greeting, &command, bytes).await
    }

    #[tokio::test]
    async fn both_forms_show_a_router_in_their_own_words() {
        let mut greeting = Greeting::default();
        let modern = ask(&mut greeting, &rawdoc! { "hello": 1 }).await.unwrap();
        assert!(modern.get_bool("isWritablePrimary").unwrap());
        assert!(modern.get("ismaster").unwrap().is_none() && modern.get("helloOk").unwrap().is_none());
        let legacy = ask(&mut greeting, &rawdoc! { "isMaster": 1, "helloOk": true }).await.unwrap();
        assert!(legacy.get_bool("ismaster").unwrap());
        assert!(legacy.get_bool("helloOk").unwrap());
        for reply in [modern, legacy] {
            assert_eq!(reply.get_str("msg").unwrap(), "isdbgrid");
            assert_eq!(reply.get_i32("maxWireVersion").unwrap(), 17);
            for absent in ["topologyVersion", "$clusterTime", "compression", "setName", "saslSupportedMechs"]
            {
                assert!(reply.get(absent).unwrap().is_none());
            }
        }
    }

    #[tokio::test]
    async fn a_client_introduces_itself_once() {
        let mut greeting = Greeting::default();
        let body = rawdoc! { "hello": 1, "client": { "driver": { "name": "x" } } };
        assert!(ask(&mut greeting, &body).await.is_ok());
        assert_eq!(ask(&mut greeting, &body).await.unwrap_err().code, CLIENT_METADATA_CANNOT_BE_MUTATED);
        assert!(ask(&mut greeting, &rawdoc! { "hello": 1 }).await.is_ok());
    }

    #[tokio::test]
    async fn clients_and_proxy_agree_on_compressors() {
        let offered = Compressors::NONE.with(Compressor::Zlib).with(Compressor::Zstd);
        let mut greeting = Greeting { offered, ..Greeting::default() };
        assert!(
            ask(&mut greeting, &rawdoc! { "hello": 1 }).await.unwrap().get("compression").unwrap().is_none()
        );
        let body = rawdoc! { "hello": 1, "compression": ["zstd", "snappy", "lz4", "zlib", "zstd"] };
        let reply = ask(&mut greeting, &body).await.unwrap();
        let names: Vec<_> = reply.get_array("compression").unwrap().into_iter().flatten().collect();
        assert_eq!(names.iter().filter_map(|name| name.as_str()).collect::<Vec<_>>(), ["zstd", "zlib"]);
        assert_eq!(greeting.agreed, offered);
    }

    #[test]
    fn two_clusters_show_what_they_have_in_common() {
        let newer = Face { min_wire_version: 6, max_wire_version: 21, session_timeout_minutes: None, ..FACE };
        let both = FACE.and(newer);
        assert_eq!((both.min_wire_version, both.max_wire_version), (6, 17));
        assert_eq!(both.session_timeout_minutes, None);
    }
}
