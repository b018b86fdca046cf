//! What the router says of itself.

use bson::{DateTime, RawDocumentBuf, rawdoc};

/// `hello`, `isMaster` or `ismaster`, as mongos 6.0 answers them.
pub(super) fn hello(name: &str, connection: i64) -> RawDocumentBuf {
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

/// The answer to a command in the old form, in which only `hello` may come.
pub(super) fn legacy(name: &str, connection: i64) -> RawDocumentBuf {
    if name.eq_ignore_ascii_case("ismaster") || name == "hello" {
        return hello(name, connection);
    }
    let message = format!(
        "Unsupported OP_QUERY command: {name}. The client driver may require an upgrade. For more details see \
         https://dochub.mongodb.org/core/legacy-opcode-removal"
    );
    rawdoc! {"ok": 0.0, "errmsg": message, "code": 352, "codeName": "UnsupportedOpQueryCommand"}
}
