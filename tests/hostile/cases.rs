//! Messages that are wrong in one way each, and what must come of them.

use bson::{RawDocumentBuf, rawdoc};
use bytes::BytesMut;
use reshard::wire::compressed::{Compressor, compress};
use reshard::wire::header::{Header, OP_COMPRESSED, OP_MSG, OP_QUERY};
use reshard::wire::op_msg::{CHECKSUM_PRESENT, build};

/// What a client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its connection is closed, without a reply.
    Closed,
    /// A reply that says what is wrong, here or at the server.
    AnError,
    /// A reply.
    Answered,
}

use Fate::{AnError, Answered, Closed};

fn ping() -> Vec<u8> {
    build(1, 0, 0, rawdoc! { "ping": 1, "$db": "admin" }.as_bytes(), None)
}

fn changed(mut message: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    message[at..at + bytes.len()].copy_from_slice(bytes);
    message
}

fn with(mut message: Vec<u8>, more: &[u8]) -> Vec<u8> {
    message.extend_from_slice(more);
    let length = u32::try_from(message.len()).unwrap();
    changed(message, 0, &length.to_le_bytes())
}

fn sequence(name: &str) -> Vec<u8> {
    let length = u32::try_from(5 + name.len()).unwrap();
    [&[1], length.to_le_bytes().as_slice(), name.as_bytes(), &[0]].concat()
}

fn headed(opcode: i32, inside: &[u8]) -> Vec<u8> {
    let header = Header { length: 16 + inside.len(), request_id: 1, response_to: 0, opcode };
    [header.encode().as_slice(), inside].concat()
}

fn compressed(opcode: i32, said: i32, id: u8, inside: &[u8]) -> Vec<u8> {
    headed(OP_COMPRESSED, &[&opcode.to_le_bytes()[..], &said.to_le_bytes(), &[id], inside].concat())
}

/// So many documents in each other.
pub(crate) fn nested(depth: u32) -> RawDocumentBuf {
    let mut bytes = Vec::new();
    for inside in (1..depth).rev() {
        bytes.extend_from_slice(&(5 + 8 * inside).to_le_bytes());
        bytes.extend_from_slice(b"\x03a\0");
    }
    bytes.extend_from_slice(b"\x05\0\0\0\0");
    bytes.resize(bytes.len() + depth as usize - 1, 0);
    RawDocumentBuf::from_bytes(bytes).unwrap()
}

fn command(body: &RawDocumentBuf) -> Vec<u8> {
    build(1, 0, 0, body.as_bytes(), None)
}

/// A message of zeros, and how long it is behind its header.
fn zeros(length: usize) -> (Vec<u8>, usize) {
    let body = rawdoc! { "ping": 1, "comment": "0".repeat(length), "$db": "admin" };
    let message = build(1, 0, 0, body.as_bytes(), None);
    let inside = message.len() - 16;
    (message, inside)
}

/// A message that is much smaller than what it holds.
pub(crate) fn bomb(compressor: Compressor, length: usize) -> Vec<u8> {
    let mut small = BytesMut::new();
    assert!(compress(&zeros(length).0, compressor, &mut small));
    small.to_vec()
}

pub(crate) fn all() -> Vec<(&'static str, Vec<u8>, Fate)> {
    [lengths(), sections(), compression(), depths(), bodies()].concat()
}

fn lengths() -> Vec<(&'static str, Vec<u8>, Fate)> {
    let length = |length: i32| changed(ping(), 0, &length.to_le_bytes());
    vec![
        ("no length", length(0), Closed),
        ("a length below the header's", length(15), Closed),
        ("a negative length", length(-1), Closed),
        ("the least length", length(i32::MIN), Closed),
        ("the greatest length", length(i32::MAX), Closed),
        ("a length just above the limit", length(48_000_001), Closed),
        ("a header alone", headed(OP_MSG, &[]), Closed),
        ("flags alone", headed(OP_MSG, &[0; 4]), Closed),
        ("an opcode that there is not", headed(77, &[0; 20]), Closed),
        ("a legacy insert", headed(2002, &[0; 40]), Closed),
        ("a reply", headed(1, &[0; 40]), Closed),
        ("an empty query", headed(OP_QUERY, &[]), Closed),
        ("a query without an end", headed(OP_QUERY, &[b'x'; 60]), Closed),
        ("text", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), Closed),
    ]
}

fn sections() -> Vec<(&'static str, Vec<u8>, Fate)> {
    let flags = |flags: u32| changed(ping(), 16, &flags.to_le_bytes());
    let body = ping()[20..].to_vec();
    let many = (0..1_000_000).flat_map(|_| sequence("")).collect::<Vec<_>>();
    let insert = build(1, 0, 0, rawdoc! { "insert": "items", "$db": "shop" }.as_bytes(), None);
    let document = rawdoc! { "_id": "sequence" };
    let foreign = rawdoc! { "insert": "items", "$db": "shop" };
    let both = rawdoc! { "insert": "items", "documents": [{ "_id": "both" }], "$db": "shop" };
    vec![
        ("an unknown flag that must be known", flags(1 << 5), Closed),
        ("all flags", flags(u32::MAX), Closed),
        ("unknown flags that need not be known", flags(0xfffe_0000), Answered),
        ("a checksum that is not there", flags(CHECKSUM_PRESENT), Closed),
        ("a wrong checksum", with(flags(CHECKSUM_PRESENT), &[1, 2, 3, 4]), Closed),
        ("a kind of section that there is not", with(ping(), &[2, 5, 0, 0, 0, 0]), Closed),
        ("two bodies", with(ping(), &body), Closed),
        ("no body", with(ping()[..20].to_vec(), &sequence("documents")), Closed),
        ("bytes behind the sections", with(ping(), &[0]), Closed),
        ("a sequence that is too long", with(ping(), &changed(sequence("a"), 1, &[0xff; 3])), Closed),
        ("three sequences", with(ping(), &[sequence("a"), sequence("b"), sequence("c")].concat()), Closed),
        ("a million sequences", with(ping(), &many), Closed),
        (
            "one sequence twice",
            with(insert, &[sequence("documents"), sequence("documents")].concat()),
            Closed,
        ),
        (
            "a sequence of another command",
            build(1, 0, 0, foreign.as_bytes(), Some(("updates", document.as_bytes()))),
            AnError,
        ),
        (
            "documents in two places",
            build(1, 0, 0, both.as_bytes(), Some(("documents", document.as_bytes()))),
            AnError,
        ),
        (
            "a sequence that ends in the middle",
            build(1, 0, 0, foreign.as_bytes(), Some(("documents", &document.as_bytes()[..9]))),
            AnError,
        ),
    ]
}

fn compression() -> Vec<(&'static str, Vec<u8>, Fate)> {
    let inside = 9_000_000;
    let said = |length: i32, compressor| changed(bomb(compressor, inside), 20, &length.to_le_bytes());
    let mut cases = vec![
        ("a compressed header alone", headed(OP_COMPRESSED, &[]), Closed),
        ("a compressor that there is not", compressed(OP_MSG, 10, 9, &[0; 10]), Closed),
        ("nothing that is compressed", compressed(OP_MSG, 10, 2, &[]), Closed),
        ("one within another", compressed(OP_COMPRESSED, 10, 0, &[0; 10]), Closed),
        ("a query that is compressed", compressed(OP_QUERY, 10, 0, &[0; 10]), Closed),
        ("not compressed, as it may be", compressed(OP_MSG, 35, 0, &ping()[16..]), Answered),
    ];
    for compressor in Compressor::ALL {
        cases.push(("more than it says", said(1000, compressor), Closed));
        cases.push(("less than it says", said(47_000_000, compressor), Closed));
        cases.push(("a negative length of what is inside", said(-1, compressor), Closed));
        cases.push(("more than a message may have", said(i32::MAX, compressor), Closed));
        let mut torn = bomb(compressor, inside);
        torn.truncate(torn.len() / 2);
        cases.push(("the first half of what is compressed", with(torn, &[]), Closed));
    }
    cases
}

fn depths() -> Vec<(&'static str, Vec<u8>, Fate)> {
    let deep = nested(300_000);
    let at = |mut body: RawDocumentBuf, name: &str| {
        body.append(bson::raw::CString::try_from(name).unwrap(), deep.clone());
        body
    };
    let one = at(rawdoc! {}, "_id");
    let update = at(rawdoc! { "u": { "$set": { "a": 1 } } }, "q");
    let partial = at(rawdoc! { "key": { "a": 1 }, "name": "a_1" }, "partialFilterExpression");
    let expires = at(rawdoc! { "key": { "b": 1 }, "name": "b_1", "expireAfterSeconds": 5 }, "x");
    let by_id = rawdoc! { "_id": deep.clone() };
    let code = bson::raw::RawJavaScriptCodeWithScope { code: String::new(), scope: deep.clone() };
    let bodies = [
        ("a deep _id", rawdoc! { "insert": "items", "documents": [one], "$db": "shop" }),
        ("a deep filter", rawdoc! { "update": "items", "updates": [update], "$db": "shop" }),
        ("a find by a deep _id", rawdoc! { "find": "items", "filter": by_id.clone(), "$db": "shop" }),
        (
            "a delete by a deep _id",
            rawdoc! { "delete": "items", "deletes": [{ "q": by_id, "limit": 1 }], "$db": "shop" },
        ),
        (
            "an _id of code with a deep scope",
            rawdoc! { "insert": "items", "documents": [{ "_id": code }], "$db": "shop" },
        ),
        (
            "an index with a deep filter",
            rawdoc! { "createIndexes": "items", "indexes": [partial], "$db": "shop" },
        ),
        (
            "a deep index that expires",
            rawdoc! { "createIndexes": "items", "indexes": [expires], "$db": "shop" },
        ),
        (
            "a deep pipeline",
            rawdoc! { "aggregate": "items", "pipeline": [{ "$lookup": deep.clone() }], "cursor": {}, "$db": "shop" },
        ),
        ("a deep session", rawdoc! { "find": "items", "lsid": deep.clone(), "$db": "shop" }),
        ("a deep concern", rawdoc! { "find": "items", "readConcern": deep.clone(), "$db": "shop" }),
    ];
    bodies.into_iter().map(|(name, body)| (name, command(&body), AnError)).collect()
}

fn bodies() -> Vec<(&'static str, Vec<u8>, Fate)> {
    let good =
        build(1, 0, 0, rawdoc! { "find": "items", "filter": { "_id": 1 }, "$db": "shop" }.as_bytes(), None);
    let time = rawdoc! { "clusterTime": bson::Timestamp { time: u32::MAX, increment: 1 } };
    let mut twice = rawdoc! { "ping": 1, "$db": "admin", "$clusterTime": time.clone() };
    twice.append(bson::cstr!("$clusterTime"), time);
    let mut long = rawdoc! {};
    long.append(bson::raw::CString::try_from("x".repeat(1_000_000)).unwrap(), 1);
    long.append(bson::cstr!("$db"), "shop");
    let causal = rawdoc! { "find": "items", "readConcern": { "afterClusterTime": "x" }, "$db": "shop" };
    vec![
        ("a type that there is not", changed(good.clone(), 25, &[0x55]), Closed),
        ("a string that is too long", changed(good.clone(), 31, &[0xff, 0xff, 0, 0]), Closed),
        ("a string of a negative length", changed(good, 31, &[0xff; 4]), Closed),
        ("an empty body", command(&rawdoc! {}), Closed),
        ("no command", command(&rawdoc! { "": 1, "$db": "shop" }), AnError),
        ("a name of a million letters", command(&long), AnError),
        ("no database", command(&rawdoc! { "find": "items" }), AnError),
        ("a database that is a number", command(&rawdoc! { "find": "items", "$db": 5 }), AnError),
        ("two cluster times", command(&twice), Closed),
        ("a time to read after that is none", command(&causal), AnError),
        (
            "cursors that are none",
            command(&rawdoc! { "killCursors": "items", "cursors": 5, "$db": "shop" }),
            AnError,
        ),
        (
            "a cursor that is none",
            command(&rawdoc! { "getMore": "x", "collection": "items", "$db": "shop" }),
            AnError,
        ),
        ("a collection with a NUL", command(&rawdoc! { "find": "it\0ems", "$db": "shop" }), AnError),
    ]
}
