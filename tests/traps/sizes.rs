//! Documents and batches as large as can be.

use crate::support::bed::{Bed, answer, update};
use crate::support::me;
use anyhow::{Context as _, Result, ensure};
use bson::{Document, RawDocumentBuf, doc, rawdoc};
use reshard::migration::control::Control as _;
use reshard::wire::op_msg::build;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

const MOST: usize = 16 * 1024 * 1024;

/// A document of exactly so many bytes.
fn large(id: &str, bytes: usize) -> RawDocumentBuf {
    let of = |fill: usize| rawdoc! { "_id": id, "n": 0, "fill": "x".repeat(fill) };
    of(bytes - of(0).as_bytes().len())
}

async fn one_by_one(bed: &Bed, documents: &[(&str, usize)]) -> Result<()> {
    for (id, bytes) in documents {
        // Beside the command, as drivers send it: an array of it would be too large.
        bed.shop().collection::<RawDocumentBuf>("c").insert_one(large(id, *bytes)).await?;
    }
    Ok(())
}

async fn touch(bed: &Bed, ids: &[&str]) -> Result<()> {
    for id in ids {
        let reply = bed.write(update(rawdoc! { "_id": *id }, rawdoc! { "$inc": { "n": 1 } })).await?;
        ensure!(reply.get_i32("nModified")? == 1, "{id}: {reply}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_as_large_as_can_be() -> Result<()> {
    let bed = Bed::start_large("trap-large").await?;
    one_by_one(&bed, &[("12", 12 << 20), ("16", MOST)]).await?;
    bed.move_begins().await?;
    touch(&bed, &["12", "16"]).await?;
    one_by_one(&bed, &[("9-dual", 9 << 20), ("16-dual", MOST)]).await?;
    touch(&bed, &["9-dual", "16-dual"]).await?;
    let smaller = large("12", 7_700_000);
    let c = bed.shop().collection::<RawDocumentBuf>("c");
    c.replace_one(doc! { "_id": "12" }, smaller).await?;
    c.replace_one(doc! { "_id": "12" }, large("12", 14_000_000)).await?;
    bed.equal().await?;
    bed.half().await?;
    one_by_one(&bed, &[("16-half", MOST - 100)]).await?;
    touch(&bed, &["9-dual", "12", "16", "16-half"]).await?;
    bed.equal().await?;
    let stuck = bed.operator.engine.conflicts("m").await?;
    ensure!(stuck.is_empty(), "{stuck:?}");
    bed.proxy.shutdown().await;
    Ok(())
}

/// What stands three times in one batch of the stream does not fit one message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_documents_that_are_missed_together() -> Result<()> {
    let bed = Bed::start_large("trap-together").await?;
    bed.move_begins().await?;
    bed.operator.engine.pause(&me(), "m").await?;
    let past = Bed::on(&bed.old).await?.collection::<RawDocumentBuf>("c");
    for id in ["a", "b", "c", "d"] {
        past.insert_one(large(id, MOST - 100)).await?;
    }
    bed.operator.engine.resume(&me(), "m").await?;
    bed.operator.until_bypass(4).await?;
    bed.operator.acknowledge().await?;
    bed.operator.until_synced().await?;
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_as_large_as_can_be() -> Result<()> {
    /// Of these fit 48,000,000 bytes, the most that a message may have, and no more.
    const MOST: i32 = 480;
    let bed = Bed::start_large("trap-batches").await?;
    bed.move_begins().await?;
    let fat = |round: &str, count: i32| {
        let mut statements = Vec::new();
        for id in 0..count {
            let fill = "y".repeat(99_960);
            statements.extend_from_slice(rawdoc! { "id": format!("{round}-{id}"), "f": fill }.as_bytes());
        }
        statements
    };
    let send = async |statements: Vec<u8>, ordered: bool| -> Result<Document> {
        let mut stream = TcpStream::connect(bed.proxy.address()).await?;
        let body = rawdoc! { "insert": "c", "$db": "shop", "ordered": ordered };
        stream.write_all(&build(9, 0, 0, body.as_bytes(), Some(("documents", &statements)))).await?;
        Ok(answer(&mut stream).await?.1)
    };
    let reply = send(fat("dual", MOST), true).await?;
    ensure!(reply.get_i32("n").ok() == Some(MOST), "{reply}");
    bed.half().await?;
    let reply = send(fat("half", MOST), false).await?;
    ensure!(reply.get_i32("n").ok() == Some(MOST), "{reply}");
    let mut many = Vec::new();
    for id in 0..100_000 {
        // Every ten thousandth is there twice.
        let id = if id % 10_000 == 9_999 { id - 1 } else { id };
        many.extend_from_slice(rawdoc! { "_id": id }.as_bytes());
    }
    let reply = send(many, false).await?;
    let errors = reply.get_array("writeErrors").with_context(|| reply.to_string())?;
    let places: Vec<_> =
        errors.iter().filter_map(|error| error.as_document()?.get_i32("index").ok()).collect();
    ensure!(places == (0..10).map(|n| n * 10_000 + 9_999).collect::<Vec<_>>(), "{places:?}");
    ensure!(reply.get_i32("n")? == 99_990, "{}", reply.get_i32("n")?);
    let some: Vec<u8> = (200_000..205_000).flat_map(|id| rawdoc! { "_id": id }.into_bytes()).collect();
    let reply = send(some, true).await?;
    ensure!(reply.get_i32("n")? == 5_000, "{reply}");
    ensure!(bed.c().count_documents(doc! {}).await? == 2 * MOST.unsigned_abs() as u64 + 99_990 + 5_000);
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}
