//! The plain path byte by byte: what drivers do rarely, and what no driver does.

mod raw;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use bson::{Document, RawDocument, RawDocumentBuf, doc, rawdoc};
use bytes::BytesMut;
use reshard::app::{Builder, Proxy};
use reshard::model::side::Side;
use reshard::router::{Operation, Route};
use reshard::wire::compressed::{Compressor, Compressors, compress, decompress};
use reshard::wire::header::{HEADER_LEN, Header, MAX_MESSAGE_LEN, OP_COMPRESSED, OP_MSG, OP_QUERY, OP_REPLY};
use reshard::wire::op_msg::{EXHAUST_ALLOWED, MORE_TO_COME, OpMsg, build};
use reshard::{cluster, listener};
use reshard_testbed::ReplicaSet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use raw::{ask_as, read, reply_within};

const LIMIT: Duration = Duration::from_secs(10);

async fn start(nodes: usize) -> Result<(ReplicaSet, Proxy, TcpStream)> {
    let set = ReplicaSet::builder("rs0").nodes(nodes).start().await?;
    let old = cluster::Settings::parse(&set.uri()).await?;
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let proxy = Builder::new(old, listener::Settings::new(listen)).start().await?;
    let mut stream = TcpStream::connect(proxy.address()).await?;
    // The first answer comes once the cluster is known.
    ask(&mut stream, &rawdoc! { "ping": 1, "$db": "admin" }).await?;
    Ok((set, proxy, stream))
}

async fn reply(stream: &mut TcpStream) -> Result<(Header, Document)> {
    reply_within(stream, LIMIT).await
}

async fn ask(stream: &mut TcpStream, body: &RawDocumentBuf) -> Result<Document> {
    ask_as(stream, 7, body, LIMIT).await
}

fn with_checksum(mut message: Vec<u8>) -> Vec<u8> {
    message[16] |= 1;
    let length = u32::try_from(message.len()).unwrap_or(0) + 4;
    message[0..4].copy_from_slice(&length.to_le_bytes());
    let sum = crc32c::crc32c(&message);
    message.extend_from_slice(&sum.to_le_bytes());
    message
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0; 64])).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_without_reply_and_in_one_go_keep_their_order() -> Result<()> {
    let (_set, _proxy, mut stream) = start(1).await?;
    let quiet = rawdoc! { "insert": "c", "$db": "raw", "writeConcern": { "w": 0 } };
    let one = rawdoc! { "_id": 1 };
    let find = rawdoc! { "find": "c", "$db": "raw" };
    let ping = rawdoc! { "ping": 1, "$db": "raw" };
    let messages = [
        build(1, 0, MORE_TO_COME, quiet.as_bytes(), Some(("documents", one.as_bytes()))),
        build(2, 0, EXHAUST_ALLOWED, find.as_bytes(), None),
        with_checksum(build(3, 0, 0, ping.as_bytes(), None)),
    ];
    // All at once, and byte by byte at the end.
    let bytes = messages.concat();
    stream.write_all(&bytes[..bytes.len() - 5]).await?;
    for byte in &bytes[bytes.len() - 5..] {
        // Apart in time, so that each byte arrives by itself.
        tokio::time::sleep(Duration::from_millis(5)).await;
        stream.write_all(&[*byte]).await?;
    }
    let (header, found) = reply(&mut stream).await?;
    ensure!(header.response_to == 2);
    ensure!(found.get_document("cursor")?.get_array("firstBatch")?.len() == 1);
    let (header, pong) = reply(&mut stream).await?;
    ensure!(header.response_to == 3 && pong.get_f64("ok")? == 1.0);
    ensure!(pong.contains_key("operationTime") && !pong.contains_key("$clusterTime"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compressed_request_gets_a_compressed_reply() -> Result<()> {
    let (_set, proxy, mut stream) = start(1).await?;
    let text = "again and again ".repeat(1000);
    let insert = rawdoc! { "insert": "c", "documents": [{ "_id": 1, "text": text.clone() }], "$db": "raw" };
    let find = rawdoc! { "find": "c", "comment": text.clone(), "$db": "raw" };
    let mut small = BytesMut::new();
    ensure!(compress(&build(7, 0, 0, insert.as_bytes(), None), Compressor::Zlib, &mut small));
    stream.write_all(&small).await?;
    ensure!(is_closed(&mut stream).await, "nothing was agreed on");
    stream = TcpStream::connect(proxy.address()).await?;
    let hello =
        ask(&mut stream, &rawdoc! { "hello": 1, "compression": ["zlib", "zstd", "snappy"], "$db": "admin" })
            .await?;
    ensure!(hello.get_array("compression")?.len() == 3, "{hello}");
    ask(&mut stream, &insert).await?;
    for compressor in Compressor::ALL {
        ensure!(compress(&build(8, 0, 0, find.as_bytes(), None), compressor, &mut small));
        stream.write_all(&small).await?;
        let (header, bytes) = tokio::time::timeout(Duration::from_secs(10), read(&mut stream)).await??;
        ensure!((header.opcode, header.response_to) == (OP_COMPRESSED, 8), "{header:?}");
        ensure!(bytes.len() < text.len() / 2, "{} bytes", bytes.len());
        let mut plain = BytesMut::new();
        ensure!(decompress(&bytes, Compressors::ALL, &mut plain)? == Some(compressor));
        let found = RawDocument::from_bytes(&plain[OpMsg::parse(&plain)?.body])?;
        let first = found.get_document("cursor")?.get_array("firstBatch")?.get_document(0)?;
        ensure!(first.get_str("text")? == text);
        // What gets no shorter by it too, as by servers.
        let ping = rawdoc! { "ping": 1, "$db": "raw" };
        ensure!(compress(&build(9, 0, 0, ping.as_bytes(), None), compressor, &mut small));
        stream.write_all(&small).await?;
        let (header, _) = tokio::time::timeout(LIMIT, read(&mut stream)).await??;
        ensure!((header.opcode, header.response_to) == (OP_COMPRESSED, 9), "{header:?}");
    }
    // What is not compressed is answered as it came, also now.
    ask(&mut stream, &rawdoc! { "find": "c", "$db": "raw" }).await?;
    Ok(())
}

/// An insert of three documents in a message of exactly 48,000,000 bytes that no compressor makes shorter.
fn longest(first: i32) -> Vec<u8> {
    let insert = rawdoc! { "insert": "c", "$db": "raw" };
    let frame = |documents: &[u8]| build(7, 0, 0, insert.as_bytes(), Some(("documents", documents)));
    let of = |id: i32, bytes: Vec<u8>| {
        rawdoc! { "_id": id, "noise": bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes } }
    };
    let empty: usize = 3 * of(0, Vec::new()).as_bytes().len();
    let room = MAX_MESSAGE_LEN - frame(&[]).len() - empty;
    let documents = (0..3_usize).flat_map(|number| {
        let mut noise = vec![0; room / 3 + usize::from(number < room % 3)];
        rand::fill(&mut noise[..]);
        of(first + i32::try_from(number).unwrap_or(0), noise).into_bytes()
    });
    frame(&documents.collect::<Vec<u8>>())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_message_passes_compressed_and_plain() -> Result<()> {
    let set = ReplicaSet::builder("rs0").start().await?;
    let old = cluster::Settings::parse(&format!("{}&compressors=snappy", set.uri())).await?;
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let proxy = Builder::new(old, listener::Settings::new(listen)).start().await?;
    let mut stream = TcpStream::connect(proxy.address()).await?;
    ask(&mut stream, &rawdoc! { "hello": 1, "compression": ["snappy"], "$db": "admin" }).await?;
    let plain = longest(0);
    ensure!(plain.len() == MAX_MESSAGE_LEN);
    stream.write_all(&plain).await?;
    let inserted = reply_within(&mut stream, 6 * LIMIT).await?.1;
    ensure!(inserted.get_i32("n")? == 3, "{inserted}");
    // As drivers do it: cut first, then compressed.
    let plain = longest(3);
    let inside = snap::raw::Encoder::new().compress_vec(&plain[HEADER_LEN..])?;
    let length = HEADER_LEN + 9 + inside.len();
    ensure!(length > MAX_MESSAGE_LEN);
    let header = Header { length, request_id: 8, response_to: 0, opcode: OP_COMPRESSED };
    let said = u32::try_from(plain.len() - HEADER_LEN)?;
    let head = [&header.encode()[..], &OP_MSG.to_le_bytes(), &said.to_le_bytes(), &[1]].concat();
    stream.write_all(&head).await?;
    stream.write_all(&inside).await?;
    let (header, bytes) = tokio::time::timeout(6 * LIMIT, read(&mut stream)).await??;
    ensure!((header.opcode, header.response_to) == (OP_COMPRESSED, 8), "{header:?}");
    let mut plain = BytesMut::new();
    decompress(&bytes, Compressors::ALL, &mut plain)?;
    let inserted = RawDocument::from_bytes(&plain[OpMsg::parse(&plain)?.body])?;
    ensure!(inserted.get_i32("n")? == 3, "{inserted:?}");
    let written = set.client().await?.database("raw").collection::<Document>("c");
    ensure!(written.count_documents(doc! {}).await? == 6);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_cluster_times_do_not_pass() -> Result<()> {
    let (_set, _proxy, mut stream) = start(1).await?;
    // Far ahead of the cluster: a server that saw it would refuse it, or take it over.
    let ahead = bson::Timestamp { time: u32::MAX, increment: 1 };
    let key = bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: vec![1; 20] };
    let time = rawdoc! { "clusterTime": ahead, "signature": { "hash": key, "keyId": 77_i64 } };
    let first =
        ask(&mut stream, &rawdoc! { "find": "c", "$db": "raw", "$clusterTime": time.clone() }).await?;
    ensure!(first.get_f64("ok")? == 1.0, "{first}");
    let now = first.get_timestamp("operationTime")?;
    let concern = rawdoc! { "level": "majority", "afterClusterTime": now };
    let causal = rawdoc! { "find": "c", "$clusterTime": time, "readConcern": concern, "$db": "raw" };
    let answer = ask(&mut stream, &causal).await?;
    ensure!(answer.get_f64("ok")? == 1.0, "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_legacy_hello_is_answered_in_kind_and_other_queries_are_not() -> Result<()> {
    let (_set, _proxy, mut stream) = start(1).await?;
    for (name, code) in [("isMaster", None), ("ismaster", None), ("find", Some(352))] {
        let mut body = RawDocumentBuf::new();
        body.append(bson::raw::CString::try_from(name)?, 1);
        let mut query = vec![4, 0, 0, 0];
        query.extend_from_slice(b"admin.$cmd\0\0\0\0\0\xff\xff\xff\xff");
        query.extend_from_slice(body.as_bytes());
        let header = Header { length: 16 + query.len(), request_id: 5, response_to: 0, opcode: OP_QUERY };
        stream.write_all(&[header.encode().to_vec(), query].concat()).await?;
        let (header, bytes) = read(&mut stream).await?;
        ensure!(header.opcode == OP_REPLY && header.response_to == 5);
        let answer = Document::try_from(RawDocument::from_bytes(&bytes[36..])?)?;
        ensure!(answer.get_i32("code").ok() == code, "{name}: {answer}");
        ensure!(code.is_some() || answer.get_str("msg")? == "isdbgrid");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_message_closes_the_connection() -> Result<()> {
    let (_set, proxy, _) = start(1).await?;
    let ping = rawdoc! { "ping": 1, "$db": "admin" };
    let good = build(1, 0, 0, ping.as_bytes(), None);
    let mut wrong_sum = with_checksum(good.clone());
    let last = wrong_sum.len() - 1;
    wrong_sum[last] ^= 1;
    let mut unknown_flag = good.clone();
    unknown_flag[16] = 4;
    let mut negative = good.clone();
    negative[3] = 0xff;
    let compressed = Header { length: 16, request_id: 1, response_to: 0, opcode: 2012 }.encode().to_vec();
    let cases = [vec![0xff; 64], wrong_sum, unknown_flag, negative, compressed, vec![0; 16]];
    for (number, case) in cases.into_iter().enumerate() {
        let mut stream = TcpStream::connect(proxy.address()).await?;
        stream.write_all(&case).await?;
        ensure!(is_closed(&mut stream).await, "case {number} was not closed");
    }
    let mut stream = TcpStream::connect(proxy.address()).await?;
    ensure!(ask(&mut stream, &ping).await?.get_f64("ok")? == 1.0);
    Ok(())
}

/// What the client is told when the server's connection breaks under a command.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_is_told_by_what_the_driver_may_do() -> Result<()> {
    let (set, _proxy, mut stream) = start(1).await?;
    let lsid = rawdoc! { "id": bson::Binary::from(bson::Uuid::new()) };
    let insert = |id: i32| rawdoc! { "insert": "c", "documents": [{ "_id": id }], "$db": "raw" };
    ensure!(ask(&mut stream, &insert(0)).await?.get_f64("ok")? == 1.0);

    let fail = |command: &str, times: i32| {
        let data = doc! { "failCommands": [command], "closeConnection": true };
        doc! { "configureFailPoint": "failCommand", "mode": { "times": times }, "data": data }
    };
    set.fail_point(fail("insert", 1)).await?;
    let lost = ask(&mut stream, &insert(1)).await?;
    ensure!(lost.get_i32("code")? == 6 && !lost.contains_key("errorLabels"), "{lost}");
    ensure!(lost.get_str("errmsg")?.starts_with("reshard: "));

    set.fail_point(fail("insert", 1)).await?;
    let mut numbered = insert(2);
    numbered.append(bson::cstr!("lsid"), lsid.clone());
    numbered.append(bson::cstr!("txnNumber"), 1_i64);
    let retried = ask(&mut stream, &numbered).await?;
    ensure!(retried.get_f64("ok")? == 1.0, "{retried}");

    set.fail_point(fail("find", 1)).await?;
    ensure!(ask(&mut stream, &rawdoc! { "find": "c", "$db": "raw" }).await?.get_f64("ok")? == 1.0);

    set.fail_point(fail("insert", 1)).await?;
    let mut statement = insert(3);
    statement.append(bson::cstr!("lsid"), lsid.clone());
    statement.append(bson::cstr!("txnNumber"), 2_i64);
    statement.append(bson::cstr!("startTransaction"), true);
    statement.append(bson::cstr!("autocommit"), false);
    let labels = |reply: &Document| reply.get_array("errorLabels").cloned().unwrap_or_default();
    let lost = ask(&mut stream, &statement).await?;
    ensure!(lost.get_i32("code")? == 6, "{lost}");
    ensure!(labels(&lost) == ["TransientTransactionError".into()], "{lost}");

    set.fail_point(fail("commitTransaction", 1)).await?;
    let commit = rawdoc! {
        "commitTransaction": 1, "lsid": lsid, "txnNumber": 2_i64, "autocommit": false, "$db": "admin",
    };
    let lost = ask(&mut stream, &commit).await?;
    let expected = ["RetryableWriteError".into(), "UnknownTransactionCommitResult".into()];
    ensure!(labels(&lost) == expected, "{lost}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_changes_of_servers_never_reach_a_client() -> Result<()> {
    let (set, _proxy, mut stream) = start(1).await?;
    let insert = |id: i32| rawdoc! { "insert": "c", "documents": [{ "_id": id }], "$db": "raw" };
    for (number, code) in [10107, 13435, 11602, 189, 91, 11600].into_iter().enumerate() {
        let data = doc! { "failCommands": ["insert"], "errorCode": code };
        set.fail_point(doc! { "configureFailPoint": "failCommand", "mode": { "times": 1 }, "data": data })
            .await?;
        let id = i32::try_from(number)?;
        let answer = ask(&mut stream, &insert(id)).await?;
        ensure!(answer.get_i32("code")? == 6, "{code}: {answer}");
        let concern = doc! { "code": code, "errmsg": "x" };
        let data = doc! { "failCommands": ["insert"], "writeConcernError": concern };
        set.fail_point(doc! { "configureFailPoint": "failCommand", "mode": { "times": 1 }, "data": data })
            .await?;
        let answer = ask(&mut stream, &insert(100 + id)).await?;
        ensure!(answer.get_i32("n")? == 1 && answer.get_f64("ok")? == 1.0, "{code}: {answer}");
        ensure!(answer.get_document("writeConcernError")?.get_i32("code")? == 6, "{code}: {answer}");
    }
    Ok(())
}

/// Sends the database `new` to the new cluster.
struct ByDatabase;

impl Route for ByDatabase {
    fn side(&self, operation: &Operation<'_>) -> Side {
        if operation.command.database == Some("new") { Side::New } else { Side::Old }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursors_and_sessions_find_their_way_between_two_clusters() -> Result<()> {
    let old = ReplicaSet::builder("old").start().await?;
    let new = ReplicaSet::builder("new").start().await?;
    let settings = cluster::Settings::parse(&old.uri()).await?;
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let proxy = Builder::new(settings, listener::Settings::new(listen))
        .with_new(cluster::Settings::parse(&new.uri()).await?)
        .with_route(Arc::new(ByDatabase))
        .start()
        .await?;
    let mut stream = TcpStream::connect(proxy.address()).await?;
    let mut ids = Vec::new();
    for database in ["old", "new"] {
        let documents = rawdoc! { "insert": "c", "documents": [{}, {}, {}], "$db": database };
        ensure!(ask(&mut stream, &documents).await?.get_i32("n")? == 3);
        let find = rawdoc! { "find": "c", "batchSize": 1, "$db": database };
        ids.push(ask(&mut stream, &find).await?.get_document("cursor")?.get_i64("id")?);
    }
    for (id, database) in ids.iter().zip(["old", "new"]) {
        let more = rawdoc! { "getMore": *id, "collection": "c", "batchSize": 1, "$db": database };
        let batch = ask(&mut stream, &more).await?;
        let cursor = batch.get_document("cursor")?;
        ensure!(cursor.get_i64("id")? == *id && cursor.get_str("ns")? == format!("{database}.c"), "{batch}");
    }
    // One command, cursors of two clusters and one of none. The names must fit for servers to kill them,
    // so only that of the database that is named is killed; the other is told as not killed.
    let kill = rawdoc! { "killCursors": "c", "cursors": [ids[0], ids[1], 4711_i64], "$db": "old" };
    let killed = ask(&mut stream, &kill).await?;
    ensure!(killed.get_array("cursorsKilled")?.contains(&ids[0].into()), "{killed}");
    ensure!(killed.get_array("cursorsNotFound")?.contains(&4711_i64.into()), "{killed}");
    let session = rawdoc! { "id": bson::Binary::from(bson::Uuid::new()) };
    let end = rawdoc! { "endSessions": [session], "$db": "admin" };
    ensure!(ask(&mut stream, &end).await?.get_f64("ok")? == 1.0);
    Ok(())
}
