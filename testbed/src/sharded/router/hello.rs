//! What the router says of itself.

use std::time::Duration;

use bson::{DateTime, RawDocument, RawDocumentBuf, rawdoc};

use super::Router;
use super::raw;

impl Router {
    /// Answers `hello`. With `topologyVersion` the client waits for a change, of which there is none before the
    /// router ends: then it sees its connection break, at once.
    pub(super) async fn say_hello(&self, name: &str, body: &RawDocument, connection: i64) -> RawDocumentBuf {
        let waits = body.get("topologyVersion").is_ok_and(|version| version.is_some());
        let limit = raw::whole(body, "maxAwaitTimeMS").and_then(|limit| u64::try_from(limit).ok());
        if let Some(limit) = limit.filter(|_| waits) {
            tokio::time::sleep(Duration::from_millis(limit)).await;
        }
        self.hello(name, connection)
    }

    /// `hello`, `isMaster` or `ismaster`, as mongos 6.0 answers them.
    fn hello(&self, name: &str, connection: i64) -> RawDocumentBuf {
        let mut reply = hello(name, connection);
        reply.append(bson::cstr!("topologyVersion"), rawdoc! {"processId": self.process, "counter": 0_i64});
        reply
    }

    /// The answer to a command in the old form, in which only `hello` may come.
    pub(super) fn legacy(&self, name: &str, connection: i64) -> RawDocumentBuf {
        if name.eq_ignore_ascii_case("ismaster") || name == "hello" {
            return self.hello(name, connection);
        }
        let message = format!(
            "Unsupported OP_QUERY command: {name}. The client driver may require an upgrade. For more details see \
             https://dochub.mongodb.org/core/legacy-opcode-removal"
        );
        rawdoc! {"ok": 0.0, "errmsg": message, "code": 352, "codeName": "UnsupportedOpQueryCommand"}
    }
}

fn hello(name: &str, connection: i64) -> RawDocumentBuf {
    let mut reply = if name == "hello" {
        rawdoc! {"isWritablePrimary": true}
    } else {
        rawdoc! {"helloOk": true, "ismaster": true}
    };
    let limits = rawdoc! {
        "msg": "isdbgrid",
        "maxBsonObjectSize": 16 * 1024 * 1024,
        "maxMessageSizeBytes": 48_000_000,
        "maxWriteBatchSize": 100_000,
        "localTime": DateTime::now(),
        "logicalSessionTimeoutMinutes": 30,
        "connectionId": connection,
        "maxWireVersion": 17,
        "minWireVersion": 0,
        "ok": 1.0,
    };
    for element in limits.iter_elements().flatten() {
        if let Ok(value) = element.value() {
            reply.append(element.key(), value);
        }
    }
    reply
}
