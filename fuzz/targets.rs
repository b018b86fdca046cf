//! What is fuzzed: every decoder of bytes that clients send. Each target takes any bytes, must not panic, and
//! checks what it made of them.

mod decisions;

use std::sync::Arc;

use bson::oid::ObjectId;
use bson::{RawDocument, RawDocumentBuf, Timestamp, rawdoc};
use bytes::BytesMut;
use reshard::cluster::Gossip;
use reshard::cluster::command::{Reply, ServerError};
use reshard::cluster::hello::HelloReply;
use reshard::cluster::scram::{self, Hash};
use reshard::listener::scram::{Exchange, First, Stored};
use reshard::listener::{introduction, waiting};
use reshard::migration::stream::{Event, read_batch};
use reshard::model::namespace::Namespace;
use reshard::policy::bulk::BulkWrite;
use reshard::policy::canonical::key_of;
use reshard::policy::catalog::Collection;
use reshard::policy::key_ranges::{KeyRange, KeyRanges};
use reshard::policy::others::Others;
use reshard::policy::route_key::{By, RouteKey};
use reshard::policy::shard_key::ShardKey;
use reshard::policy::streams::{Beginning, Watched};
use reshard::policy::writes::{Verb, WriteCommand};
use reshard::policy::{ddl, expiry, reads};
use reshard::router::Operation;
use reshard::wire::compressed::{Compressor, Compressors, compress, decompress};
use reshard::wire::element::Elements;
use reshard::wire::header::{
    HEADER_LEN, Header, MAX_COMPRESSED_LEN, MAX_MESSAGE_LEN, OP_COMPRESSED, OP_MSG, OP_QUERY,
};
use reshard::wire::op_msg::{OpMsg, build};
use reshard::wire::query::Query;
use reshard::wire::reply::ReplyFields;
use reshard::wire::scan::Command;

pub(crate) use decisions::{answer, fail_point, login, read, read_preference};

/// A target.
pub(crate) type Target = fn(&[u8]);

/// All of them by name.
pub(crate) const ALL: [(&str, Target); 14] = [
    ("framer", framer),
    ("op_msg", op_msg),
    ("op_compressed", op_compressed),
    ("op_query", op_query),
    ("command", command),
    ("key", key),
    ("hello", hello),
    ("scram", scram),
    ("stream", stream),
    ("fail_point", fail_point),
    ("read_preference", read_preference),
    ("read", read),
    ("answer", answer),
    ("login", login),
];

/// A stream of messages, cut where their headers say.
pub(crate) fn framer(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some(header)) = Header::parse(rest) {
        let most = if header.opcode == OP_COMPRESSED { MAX_COMPRESSED_LEN } else { MAX_MESSAGE_LEN };
        assert!((HEADER_LEN..=most).contains(&header.length));
        assert_eq!(Header::parse(&header.encode()), Ok(Some(header)));
        let Some((message, after)) = rest.split_at_checked(header.length) else { return };
        match header.opcode {
            OP_MSG => op_msg(message),
            OP_QUERY => op_query(message),
            OP_COMPRESSED => op_compressed(message),
            _ => {}
        }
        rest = after;
    }
}

/// An OP_MSG: its parts, what is changed in it on its way to a server, and the same bytes as a reply.
pub(crate) fn op_msg(bytes: &[u8]) {
    let Ok(parts) = OpMsg::parse(bytes) else { return };
    assert!(parts.sequences.len() <= 2 && parts.body.end <= bytes.len());
    for sequence in &parts.sequences {
        assert!(sequence.identifier.end < sequence.documents.start && sequence.documents.end <= bytes.len());
    }
    as_reply(bytes);
    let Ok(operation) = Operation::parse(bytes, 1) else { return };
    _ = (operation.kind(), operation.hold(), operation.silent(), operation.may_be_dropped());
    let gossip = Arc::new(Gossip::default());
    gossip.expect_foreign_times();
    let times = gossip.times_for(None, false);
    times.observe(&rawdoc! { "clusterTime": Timestamp { time: 7, increment: 1 } });
    let patched = operation.patched(&times).to_vec(bytes);
    let again = OpMsg::parse(&patched).expect("a message that was changed is one");
    assert_eq!(again.sequences.len(), parts.sequences.len());
    let command = Command::scan(&patched, again.body).expect("its body is a command still");
    assert_eq!(command.name, operation.command.name);
    if let Some(time) = command.cluster_time {
        assert!(operation.command.after_cluster_time().is_some());
        assert_ne!(operation.command.cluster_time.map(|client| client.value()), Some(time.value()));
    }
    command_body(&bytes[parts.body.clone()]);
    let beside = |name: &[u8]| {
        let mut all = parts.sequences.iter();
        let one = all.find(|sequence| &bytes[sequence.identifier.clone()] == name)?;
        Some(&bytes[one.documents.clone()])
    };
    bulk(&bytes[parts.body.clone()], beside(b"ops"), beside(b"nsInfo"));
    let sequence = parts.sequences.first().map(|sequence| &bytes[sequence.documents.clone()]);
    write(&bytes[parts.body], sequence);
}

fn as_reply(bytes: &[u8]) {
    let Ok(fields) = ReplyFields::scan(bytes) else { return };
    let mut reply = BytesMut::from(bytes);
    let twice = fields.clone();
    fields.strip(&mut reply);
    let stripped = ReplyFields::scan(&reply).expect("what is left of a reply is one");
    assert_eq!((stripped.ok, stripped.code), (twice.ok, twice.code));
}

/// An OP_COMPRESSED; what comes out goes in again.
pub(crate) fn op_compressed(bytes: &[u8]) {
    let mut plain = BytesMut::new();
    let whole = Header::parse(bytes).is_ok_and(|header| header.is_some_and(|it| it.length == bytes.len()));
    if !whole || decompress(bytes, Compressors::ALL, &mut plain).is_err() {
        return;
    }
    assert!(plain.len() <= MAX_MESSAGE_LEN);
    for compressor in Compressor::ALL {
        let (mut small, mut back) = (BytesMut::new(), BytesMut::new());
        if compress(&plain, compressor, &mut small) {
            assert_eq!(decompress(&small, Compressors::ALL, &mut back), Ok(Some(compressor)));
            assert_eq!(back, plain);
        }
    }
    op_msg(&plain);
}

/// An OP_QUERY.
pub(crate) fn op_query(bytes: &[u8]) {
    let Ok(query) = Query::parse(bytes) else { return };
    assert!(RawDocument::from_bytes(query.body).is_ok());
    command_body(query.body);
}

/// The head of a command, and everything that decisions read from its body.
pub(crate) fn command(bytes: &[u8]) {
    match OpMsg::parse(bytes) {
        Ok(parts) => command_body(&bytes[parts.body]),
        Err(_) => command_body(bytes),
    }
}

fn tenant() -> RouteKey {
    RouteKey::parse("tenant").expect("a field")
}

/// Some of each kind.
fn ranges() -> KeyRanges {
    let range = |name: &str, from: bson::Bson| KeyRange { name: name.to_owned(), from: Some(from), to: None };
    let all = [
        range("numbers", 0.into()),
        range("texts", "a".into()),
        range("ids", ObjectId::from_bytes([7; 12]).into()),
    ];
    KeyRanges::new(all.into()).expect("ranges")
}

fn command_body(bytes: &[u8]) {
    let Ok(command) = Command::scan(bytes, 0..bytes.len()) else { return };
    let seen = (command.session(), command.collection(), command.unacknowledged().is_some());
    _ = (seen, command.in_transaction(), command.retryable_write(), command.pipeline_writes());
    assert!(command.cursor_ids().all(|(_, place)| place.end <= bytes.len()));
    let Ok(body) = RawDocument::from_bytes(bytes) else { panic!("it was a document") };
    _ = Others::of("d", body);
    let (tenant, ranges) = (tenant(), ranges());
    for name in ["find", "count", "distinct", "aggregate", command.name] {
        for by in [By::ID, By::new(None, &ranges), By::new(Some(&tenant), &ranges)] {
            _ = reads::slot_of_read(name, body, by);
        }
    }
    _ = (reads::joins(body), reads::is_change_stream(body));
    _ = ddl::is_done(body, &Collection::default());
    for name in ["createIndexes", "collMod"] {
        _ = expiry::changes(name, body);
    }
    write(bytes, None);
    bulk(bytes, None, None);
}

/// A `bulkWrite`: each operation is in one part, and each part is a command.
fn bulk(body: &[u8], ops: Option<&[u8]>, spaces: Option<&[u8]>) {
    let Ok(body) = RawDocument::from_bytes(body) else { return };
    _ = BulkWrite::namespaces(body, spaces).count();
    let Ok(bulk) = BulkWrite::parse(body, ops, spaces) else { return };
    let mut all = Vec::new();
    for part in bulk.parts() {
        let statements = part.verb.array().map(|array| (array, &*part.documents));
        let message = build(1, 0, 0, part.body.as_bytes(), statements);
        let operation = Operation::parse(&message, 1).expect("a part is a command");
        assert_eq!(operation.command.name, part.verb.name());
        all.extend(part.indexes);
    }
    all.sort_unstable();
    assert!(!all.is_empty() && all.iter().copied().eq(0..all.len()));
}

fn write(body: &[u8], sequence: Option<&[u8]>) {
    let Ok(body) = RawDocument::from_bytes(body) else { return };
    let shard_key = ShardKey::parse(&bson::doc! { "a": 1, "_id": 1 }).expect("a shard key");
    for verb in [Verb::Insert, Verb::Update, Verb::Delete, Verb::FindAndModify] {
        let write = WriteCommand::parse(Namespace::new("d", "c"), verb, body, sequence, ObjectId::new);
        let Ok(write) = write else { continue };
        assert!(!write.statements.is_empty());
        assert_eq!(write.keys().is_some(), write.is_keyed());
        for statement in &write.statements {
            _ = write.place(statement, &shard_key);
        }
        let (tenant, ranges) = (tenant(), ranges());
        let by_tenant = By::new(Some(&tenant), &ranges);
        _ = (
            write.slots(By::ID),
            write.slots(By::new(None, &ranges)),
            write.keeps_route_keys(by_tenant, true),
        );
        assert!(!write.slots(by_tenant).is_empty());
        _ = (write.session(), write.sequence());
    }
}

/// The canonical form of keys: each value of a document, as an `_id`.
pub(crate) fn key(bytes: &[u8]) {
    let bytes = OpMsg::parse(bytes).map_or(bytes, |parts| &bytes[parts.body]);
    let Ok(document) = RawDocument::from_bytes(bytes) else { return };
    let walked = Elements::of(bytes).into_iter().flatten().flatten();
    for (element, walked) in document.iter().zip(walked) {
        let Ok((name, value)) = element else { return };
        assert_eq!(name.as_str().as_bytes(), walked.key);
        let Some(key) = key_of(value) else { continue };
        let mut alone = RawDocumentBuf::new();
        alone.append(bson::cstr!("_id"), value);
        let again = alone.get("_id").ok().flatten().and_then(key_of).expect("the same value is a key");
        assert_eq!(again.canonical(), key.canonical());
        assert!(key.id_slot().number() < 1024);
    }
}

/// What clients and servers say of themselves, and where change streams are to begin.
pub(crate) fn hello(bytes: &[u8]) {
    let bytes = OpMsg::parse(bytes).map_or(bytes, |parts| &bytes[parts.body]);
    let Ok(body) = RawDocument::from_bytes(bytes) else { return };
    for (_, value) in body.iter().flatten() {
        if let Ok(Some(name)) = introduction::check(value, 512) {
            assert!(name.len() <= 128);
        }
    }
    let process = ObjectId::from_bytes([7; 12]);
    _ = waiting::patience(body, process);
    if let Ok(Some(known)) = body.get("topologyVersion") {
        let mut asked = rawdoc! { "maxAwaitTimeMS": 1 };
        asked.append(bson::cstr!("topologyVersion"), known);
        _ = waiting::patience(&asked, process);
    }
    if let Ok(reply) = HelloReply::parse(body) {
        assert!(reply.role.is_some());
    }
    _ = (Beginning::of(body), Watched::by("d", Some("c"), body));
}

/// The messages of a login by RFC 7677, with some bytes of each replaced: by what follows the first two, which say where
/// and how many.
pub(crate) fn scram(bytes: &[u8]) {
    const NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    let [place, count, instead @ ..] = bytes else { return };
    let damaged = |message: &str| {
        let mut message = message.as_bytes().to_vec();
        let from = usize::from(*place) % (message.len() + 1);
        let to = (from + usize::from(*count)).min(message.len());
        message.splice(from..to, instead.iter().copied());
        message
    };
    let (salt, iterations) = (vec![7; 16], 4096);
    let (client, server) = (vec![1; 32], vec![2; 32]);
    let stored_key = Hash::Sha256.digest(&client);
    let stored = Stored { hash: Hash::Sha256, salt, iterations, stored_key, server_key: server.clone() };
    let keys = scram::Keys { client, server };

    let mine = scram::Exchange::new(Hash::Sha256, "us=er,", "rOprNGfwEbeRWgbNEkqO".to_owned());
    let first = mine.first();
    _ = First::parse(instead);
    if let Ok(other) = First::parse(&damaged(&first)) {
        assert!(!other.user.is_empty());
        _ = Exchange::begin(other, NONCE, &stored);
    }
    let theirs = Exchange::begin(First::parse(first.as_bytes()).expect("a first message"), NONCE, &stored);
    for strange in [instead.to_vec(), damaged(&theirs.message)] {
        _ = mine.challenge(&strange).map(|challenge| mine.proof(&challenge, &keys));
    }
    let challenge = mine.challenge(theirs.message.as_bytes()).expect("a challenge");
    let proof = mine.proof(&challenge, &keys);
    for strange in [instead.to_vec(), damaged(&proof.message)] {
        // Base64 may be written in more than one way; whatever is let in has shown the key.
        if let Ok(proven) = theirs.prove(&strange, &stored) {
            assert_eq!(Hash::Sha256.digest(&proven.keys.client), stored.stored_key);
        }
    }
    let Ok(proven) = theirs.prove(proof.message.as_bytes(), &stored) else {
        panic!("whoever knows the key is let in")
    };
    assert!(proof.verify(proven.message.as_bytes()).is_ok());
    _ = (proof.verify(instead), proof.verify(&damaged(&proven.message)));
}

/// What servers tell: a reply as the batch of a change stream, and any document as an event in one.
pub(crate) fn stream(bytes: &[u8]) {
    const TOKEN: &str = "8263F4A1C2000000052B0229296E04";
    let bytes = OpMsg::parse(bytes).map_or(bytes, |parts| &bytes[parts.body]);
    let Ok(body) = RawDocument::from_bytes(bytes) else { return };
    _ = ServerError::of(body);
    let known = [Namespace::new("d", "c")];
    let read = |body: RawDocumentBuf| {
        let reply = Reply { body, operation_time: None, server: "s:1".into() };
        read_batch(&reply, "firstBatch", &known)
    };
    if let Ok(batch) = read(body.to_owned()) {
        assert!(batch.position <= batch.heard);
    }
    let mut batch = bson::RawArrayBuf::new();
    batch.push(body.to_owned());
    let cursor = rawdoc! { "id": 5_i64, "firstBatch": batch, "postBatchResumeToken": { "_data": TOKEN } };
    // A document whose parts do not read may make a batch that does not.
    let Ok(batch) = read(rawdoc! { "cursor": cursor, "ok": 1.0 }) else { return };
    assert_eq!(batch.events.len(), 1);
    for event in &batch.events {
        if let Event::Change { key, .. } = event {
            assert!(!key.canonical().is_empty());
        }
    }
}
