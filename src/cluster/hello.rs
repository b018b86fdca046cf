//! The `hello` command: what is sent, and what its reply says about a server.

use std::time::Duration;

use bson::oid::ObjectId;
use bson::raw::{RawArray, RawArrayBuf, cstr};
use bson::{RawDocument, RawDocumentBuf, rawdoc};

use super::command::{ServerError, number};
use super::topology::Role;
use crate::wire::compressed::Compressor;

/// Longest `application.name` that servers accept, in bytes.
const MAX_APP_NAME: usize = 128;

/// Limits of a server, as its `hello` reply states them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest document in bytes.
    pub max_bson_object_size: i32,
    /// Largest message in bytes.
    pub max_message_size: i32,
    /// Most writes in one command.
    pub max_write_batch_size: i32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bson_object_size: 16 * 1024 * 1024,
            max_message_size: 48_000_000,
            max_write_batch_size: 100_000,
        }
    }
}

/// The version of a server's own state; greater counters of the same process are newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopologyVersion {
    /// One per start of the server.
    pub process: ObjectId,
    /// Grows with each change.
    pub counter: i64,
}

/// What a `hello` reply says.
#[derive(Debug, Clone, Default)]
pub struct HelloReply {
    /// What the server is.
    pub role: Option<Role>,
    /// The replica set's name.
    pub set_name: Option<String>,
    /// The server's own idea of its address, lower case.
    pub me: Option<String>,
    /// All members: hosts, passives and arbiters, lower case.
    pub members: Vec<String>,
    /// Replica set tags.
    pub tags: Vec<(String, String)>,
    /// Version of the replica set's configuration.
    pub set_version: Option<i64>,
    /// Which election made this server primary.
    pub election_id: Option<ObjectId>,
    /// `lastWrite.lastWriteDate`, milliseconds since the epoch.
    pub last_write_millis: Option<i64>,
    /// Lowest wire version.
    pub min_wire_version: i32,
    /// Highest wire version.
    pub max_wire_version: i32,
    /// Limits.
    pub limits: Limits,
    /// `logicalSessionTimeoutMinutes`.
    pub session_timeout_minutes: Option<i32>,
    /// Present on servers that can hold the reply back until something changes.
    pub topology_version: Option<TopologyVersion>,
    /// The server knows the command by the name `hello`.
    pub hello_ok: bool,
    /// How the asked-for user may log in; `None` when the server did not say.
    pub mechanisms: Option<Vec<String>>,
    /// Names of the compressors that the server knows of those it was offered.
    pub compressors: Vec<String>,
}

/// The first command on a connection, which offers `compressors`. `user` is `<database>.<name>` when mechanisms are to be negotiated.
/// It goes by the old name because servers before 4.4 know no other.
#[must_use]
pub fn handshake(app_name: &str, user: Option<&str>, compressors: &[Compressor]) -> RawDocumentBuf {
    let mut end = app_name.len().min(MAX_APP_NAME);
    while !app_name.is_char_boundary(end) {
        end -= 1;
    }
    let mut command = rawdoc! {
        "isMaster": 1,
        "helloOk": true,
        "client": {
            "application": { "name": &app_name[..end] },
            "driver": { "name": "reshard", "version": env!("CARGO_PKG_VERSION") },
            "os": { "type": std::env::consts::OS, "architecture": std::env::consts::ARCH },
        },
        "$db": "admin",
    };
    if let Some(user) = user {
        command.append(cstr!("saslSupportedMechs"), user);
    }
    if !compressors.is_empty() {
        let mut names = RawArrayBuf::new();
        compressors.iter().for_each(|one| names.push(one.name()));
        command.append(cstr!("compression"), names);
    }
    command
}

/// A check on a connection that has shaken hands. With `wait`, the server answers when it is not as `wait`
/// says any more, at the latest after the duration.
#[must_use]
pub fn check(hello_ok: bool, wait: Option<(TopologyVersion, Duration)>) -> RawDocumentBuf {
    let mut command = RawDocumentBuf::new();
    if hello_ok {
        command.append(cstr!("hello"), 1_i32);
    } else {
        command.append(cstr!("isMaster"), 1_i32);
    }
    if let Some((version, limit)) = wait {
        command.append(
            cstr!("topologyVersion"),
            rawdoc! { "processId": version.process, "counter": version.counter },
        );
        command.append(cstr!("maxAwaitTimeMS"), i64::try_from(limit.as_millis()).unwrap_or(i64::MAX));
    }
    command.append(cstr!("$db"), "admin");
    command
}

impl HelloReply {
    /// Reads a reply.
    ///
    /// # Errors
    /// The server's error when it refused.
    pub fn parse(body: &RawDocument) -> Result<Self, ServerError> {
        if let Some(error) = ServerError::of(body) {
            return Err(error);
        }
        let members = ["hosts", "passives", "arbiters"].iter().filter_map(|list| body.get_array(list).ok());
        let last_write = body.get_document("lastWrite").ok();
        let standard = Limits::default();
        Ok(Self {
            role: Some(role(body)),
            set_name: body.get_str("setName").ok().map(str::to_owned),
            me: body.get_str("me").ok().map(str::to_lowercase),
            members: members.flat_map(|list| strings(list, str::to_lowercase)).collect(),
            tags: tags(body),
            set_version: whole(body, "setVersion"),
            election_id: body.get_object_id("electionId").ok(),
            last_write_millis: last_write
                .and_then(|last| last.get_datetime("lastWriteDate").ok())
                .map(bson::DateTime::timestamp_millis),
            min_wire_version: small(body, "minWireVersion").unwrap_or(0),
            max_wire_version: small(body, "maxWireVersion").unwrap_or(0),
            limits: Limits {
                max_bson_object_size: small(body, "maxBsonObjectSize")
                    .unwrap_or(standard.max_bson_object_size),
                max_message_size: small(body, "maxMessageSizeBytes").unwrap_or(standard.max_message_size),
                max_write_batch_size: small(body, "maxWriteBatchSize")
                    .unwrap_or(standard.max_write_batch_size),
            },
            session_timeout_minutes: small(body, "logicalSessionTimeoutMinutes"),
            topology_version: topology_version(body),
            hello_ok: flag(body, "helloOk"),
            mechanisms: body.get_array("saslSupportedMechs").ok().map(|list| strings(list, str::to_owned)),
            compressors: body
                .get_array("compression")
                .map(|list| strings(list, str::to_owned))
                .unwrap_or_default(),
        })
    }
}

fn role(body: &RawDocument) -> Role {
    let in_set = body.get_str("setName").is_ok();
    if body.get_str("msg").is_ok_and(|message| message == "isdbgrid") {
        Role::Router
    } else if flag(body, "isreplicaset") {
        Role::Other
    } else if !in_set {
        Role::Standalone
    } else if flag(body, "hidden") {
        Role::Other
    } else if flag(body, "isWritablePrimary") || flag(body, "ismaster") {
        Role::Primary
    } else if flag(body, "secondary") {
        Role::Secondary
    } else if flag(body, "arbiterOnly") {
        Role::Arbiter
    } else {
        Role::Other
    }
}

fn flag(body: &RawDocument, field: &str) -> bool {
    number(body, field).is_some_and(|value| value != 0.0)
}

#[expect(clippy::cast_possible_truncation, reason = "versions stay far below 2^53")]
fn whole(body: &RawDocument, field: &str) -> Option<i64> {
    number(body, field).map(|value| value as i64)
}

fn small(body: &RawDocument, field: &str) -> Option<i32> {
    whole(body, field).and_then(|value| i32::try_from(value).ok())
}

fn strings(list: &RawArray, map: impl Fn(&str) -> String) -> Vec<String> {
    list.into_iter().flatten().filter_map(|item| item.as_str().map(&map)).collect()
}

fn tags(body: &RawDocument) -> Vec<(String, String)> {
    let Ok(tags) = body.get_document("tags") else { return Vec::new() };
    let pairs = tags.into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.as_str().to_owned(), value.as_str()?.to_owned()))).collect()
}

fn topology_version(body: &RawDocument) -> Option<TopologyVersion> {
    let version = body.get_document("topologyVersion").ok()?;
    Some(TopologyVersion {
        process: version.get_object_id("processId").ok()?,
        counter: version.get_i64("counter").ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_is_read() {
        let reply = HelloReply::parse(&rawdoc! {
            "isWritablePrimary": true, "setName": "x", "hosts": ["A:1", "b:2"], "arbiters": ["c:3"],
            "me": "A:1", "tags": { "dc": "east" }, "setVersion": 3, "maxWireVersion": 17,
            "logicalSessionTimeoutMinutes": 30, "lastWrite": { "lastWriteDate": bson::DateTime::from_millis(9) },
            "topologyVersion": { "processId": ObjectId::new(), "counter": 6_i64 }, "helloOk": true, "ok": 1.0,
        })
        .unwrap();
        assert_eq!(reply.role, Some(Role::Primary));
        assert_eq!(reply.members, ["a:1", "b:2", "c:3"]);
        assert_eq!(reply.me.as_deref(), Some("a:1"));
        assert_eq!(reply.tags, [("dc".to_owned(), "east".to_owned())]);
        assert_eq!((reply.set_version, reply.last_write_millis), (Some(3), Some(9)));
        assert!(reply.hello_ok && reply.topology_version.is_some());
    }

    #[test]
    fn roles_are_told_apart() {
        let role_of = |body: RawDocumentBuf| role(&body);
        assert_eq!(role_of(rawdoc! { "ismaster": true }), Role::Standalone);
        assert_eq!(role_of(rawdoc! { "ismaster": true, "msg": "isdbgrid" }), Role::Router);
        assert_eq!(role_of(rawdoc! { "isreplicaset": true }), Role::Other);
        assert_eq!(role_of(rawdoc! { "setName": "x", "secondary": true, "hidden": true }), Role::Other);
        assert_eq!(role_of(rawdoc! { "setName": "x", "arbiterOnly": true }), Role::Arbiter);
        assert_eq!(role_of(rawdoc! { "setName": "x" }), Role::Other);
    }

    #[test]
    fn a_long_application_name_is_cut_at_a_character() {
        let command = handshake(&"ä".repeat(100), None, &[]);
        let name = command.get_document("client").unwrap().get_document("application").unwrap();
        assert_eq!(name.get_str("name").unwrap().len(), 128);
    }
}
