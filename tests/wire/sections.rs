//! Sections in another order than drivers write them, and checksums.

use anyhow::{Context as _, Result, ensure};
use bson::{Document, RawDocument, RawDocumentBuf, doc, rawdoc};
use bytes::BytesMut;
use reshard::wire::compressed::{Compressor, Compressors, compress, decompress};
use reshard::wire::op_msg::{CHECKSUM_PRESENT, MORE_TO_COME, OpMsg, append_checksum, build, has_checksum};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::raw::{ask_as, read};
use crate::support::{LONG, Operator, proxy, two_sets, until_equal};

fn with_checksum(message: &[u8]) -> BytesMut {
    let mut message = BytesMut::from(message);
    append_checksum(&mut message);
    message
}

/// The documents first, then the body, and a checksum.
fn turned(flags: u32, body: &RawDocumentBuf, name: &str, document: &RawDocumentBuf) -> Result<BytesMut> {
    let message = build(7, 0, flags, body.as_bytes(), Some((name, document.as_bytes())));
    let end = OpMsg::parse(&message)?.body.end;
    let message = with_checksum(&[&message[..20], &message[end..], &message[20..end]].concat());
    let parts = OpMsg::parse(&message)?;
    ensure!(parts.body.start > parts.sequences[0].documents.start && parts.flags == flags | CHECKSUM_PRESENT);
    Ok(message)
}

/// The reply, which must have a checksum that holds.
async fn reply(stream: &mut TcpStream) -> Result<Document> {
    let (header, bytes) = tokio::time::timeout(LONG, read(stream)).await??;
    // Verifies it.
    let parts = OpMsg::parse(&bytes)?;
    ensure!(parts.flags == CHECKSUM_PRESENT && header.response_to == 7, "{header:?} {:x}", parts.flags);
    Ok(Document::try_from(RawDocument::from_bytes(&bytes[parts.body])?)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_behind_its_documents_is_written_to_both_clusters() -> Result<()> {
    let (old, new) = two_sets("sections").await?;
    let collection = old.client().await?.database("shop").collection::<Document>("orders");
    collection.insert_one(doc! { "_id": 0 }).await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let operator = Operator::of(&proxy, "orders");
    operator.create(&["shop.orders"]).await?;
    operator.start().await?;
    let mut stream = TcpStream::connect(proxy.address()).await?;
    // Of a migrating collection, which is understood, and of another, which is forwarded.
    for collection in ["orders", "other"] {
        let time = rawdoc! { "clusterTime": bson::Timestamp { time: u32::MAX, increment: 1 } };
        let insert = rawdoc! { "insert": collection, "$clusterTime": time, "$db": "shop" };
        stream.write_all(&turned(0, &insert, "documents", &rawdoc! { "_id": 1, "n": 1 })?).await?;
        let inserted = reply(&mut stream).await?;
        ensure!(inserted.get_i32("n")? == 1 && !inserted.contains_key("writeErrors"), "{inserted}");
        let update = rawdoc! { "update": collection, "$db": "shop" };
        let statement = rawdoc! { "q": { "_id": 1 }, "u": { "$inc": { "n": 1 } } };
        stream.write_all(&turned(0, &update, "updates", &statement)?).await?;
        ensure!(reply(&mut stream).await?.get_i32("nModified")? == 1);
        let delete = rawdoc! { "delete": collection, "writeConcern": { "w": 0 }, "$db": "shop" };
        let statement = rawdoc! { "q": { "_id": 0 }, "limit": 1 };
        // Without a reply.
        stream.write_all(&turned(MORE_TO_COME, &delete, "deletes", &statement)?).await?;
        let find = rawdoc! { "find": collection, "$db": "shop" };
        stream.write_all(&with_checksum(&build(7, 0, 0, find.as_bytes(), None))).await?;
        let found = reply(&mut stream).await?;
        let batch = found.get_document("cursor")?.get_array("firstBatch")?;
        ensure!(*batch == vec![doc! { "_id": 1, "n": 2 }.into()], "{found}");
    }
    until_equal(&old.uri(), &new.uri(), "shop.orders").await
}

/// Whether the answer to a compressed message with a checksum has one inside.
async fn has_one_inside(stream: &mut TcpStream) -> Result<bool> {
    let hello = rawdoc! { "hello": 1, "compression": ["zlib"], "$db": "admin" };
    ask_as(stream, 1, &hello, LONG).await?;
    let ping = rawdoc! { "ping": 1, "$db": "admin" };
    let mut small = BytesMut::new();
    let message = with_checksum(&build(7, 0, 0, ping.as_bytes(), None));
    ensure!(compress(&message, Compressor::Zlib, &mut small), "not compressed");
    stream.write_all(&small).await?;
    let (_, bytes) = tokio::time::timeout(LONG, read(stream)).await??;
    let mut plain = BytesMut::new();
    decompress(&bytes, Compressors::ALL, &mut plain)?.context("not compressed")?;
    OpMsg::parse(&plain)?;
    Ok(has_checksum(&plain))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_has_a_checksum_where_a_servers_reply_has_one() -> Result<()> {
    let set = reshard_testbed::ReplicaSet::builder("checksum").start().await?;
    let proxy = proxy(&set.uri(), None).await?;
    let direct = set.direct_uri(0);
    let direct = direct.trim_start_matches("mongodb://").split('/').next().unwrap_or_default();
    let mut server = TcpStream::connect(direct).await.with_context(|| direct.to_owned())?;
    let mut through = TcpStream::connect(proxy.address()).await?;
    for body in [
        rawdoc! { "hello": 1, "$db": "admin" },
        rawdoc! { "find": "c", "$db": "shop" },
        rawdoc! { "noSuchCommand": 1, "$db": "shop" },
    ] {
        for stream in [&mut server, &mut through] {
            stream.write_all(&with_checksum(&build(7, 0, 0, body.as_bytes(), None))).await?;
            reply(stream).await?;
            // And none without.
            ask_as(stream, 8, &body, LONG).await?;
        }
    }
    let (expected, found) = (has_one_inside(&mut server).await?, has_one_inside(&mut through).await?);
    ensure!(expected == found, "inside a compressed reply: {found} instead of {expected}");
    Ok(())
}
