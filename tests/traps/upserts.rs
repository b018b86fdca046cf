//! Upserts, batches that fail in part, and writes that nobody wants an answer to.

use crate::support::bed::{Bed, answer, delete, insert, update};
use anyhow::{Context as _, Result, ensure};
use bson::{RawArrayBuf, RawDocumentBuf, cstr, doc, rawdoc};
use reshard::wire::op_msg::{MORE_TO_COME, build};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

async fn upserts(bed: &Bed, round: &str, mixed: bool) -> Result<()> {
    // An insert whose `_id` no driver made.
    bed.write(insert([rawdoc! { "no-id": round, "i": 1 }, rawdoc! { "no-id": round, "i": 2 }])).await?;
    ensure!(bed.c().count_documents(doc! { "no-id": round }).await? == 2);

    // The `_id` of an upsert by another field is made by a server, or by the proxy.
    let many = rawdoc! {
        "update": "c", "updates": [
            { "q": { "many": round }, "u": { "$inc": { "n": 1 } }, "multi": true, "upsert": true },
        ],
    };
    let reply = bed.write(many.clone()).await?;
    let made = reply.get_array("upserted")?[0].as_document().context("upserted")?.get("_id").cloned();
    ensure!(reply.get_i32("n")? == 1 && made.is_some(), "{reply}");
    let again = bed.write(many).await?;
    ensure!(again.get_i32("n")? == 1 && !again.contains_key("upserted"), "{again}");
    let found = bed.c().find_one(doc! { "many": round }).await?.context("upserted")?;
    ensure!(found.get("_id") == made.as_ref() && found.get_i32("n")? == 2, "{found} {made:?}");

    let one = format!("one-{round}");
    let by_key = rawdoc! {
        "update": "c", "updates": [
            { "q": { "_id": one.as_str() }, "u": { "$inc": { "n": 1 } }, "upsert": true },
            { "q": { "_id": one.as_str() }, "u": { "$inc": { "n": 1 } }, "upsert": true },
            { "q": { "_id": "never" }, "u": { "$inc": { "n": 1 } } },
            { "q": { "many": round }, "u": { "$inc": { "n": 1 } }, "multi": true },
            { "q": { "_id": format!("{one}-b") }, "u": { "$inc": { "n": 1 } }, "upsert": true },
        ],
    };
    let reply = bed.write(by_key).await?;
    ensure!(reply.get_i32("n")? == 4, "{reply}");
    let at: Vec<_> = reply
        .get_array("upserted")?
        .iter()
        .map(|item| item.as_document().and_then(|item| item.get_i32("index").ok()))
        .collect();
    ensure!(at == [Some(0), Some(4)], "{reply}");
    ensure!(
        bed.c().find_one(doc! { "_id": &one }).await?.is_some_and(|found| found.get_i32("n").ok() == Some(2)),
        "{one}"
    );

    let fam = |query: RawDocumentBuf, new: bool| {
        rawdoc! {
            "findAndModify": "c", "query": query, "update": { "$inc": { "n": 1 } }, "upsert": true, "new": new,
            "fields": { "_id": 0, "n": 1 }, "sort": { "n": 1 },
        }
    };
    let reply = bed.write(fam(rawdoc! { "_id": format!("fam-{round}") }, true)).await?;
    ensure!(reply.get_document("value")? == &doc! { "n": 1 }, "{reply}");
    let reply = bed.write(fam(rawdoc! { "_id": format!("fam-{round}") }, false)).await?;
    ensure!(reply.get_document("value")? == &doc! { "n": 1 }, "{reply}");
    let unkeyed = bed.raw(fam(rawdoc! { "fam": round }, true)).await;
    let unkeyed_again = bed.raw(fam(rawdoc! { "fam": round }, true)).await;
    if mixed {
        ensure!(unkeyed.is_err() && unkeyed_again.is_err(), "it could meet two documents");
    } else {
        ensure!(unkeyed_again?.get_document("value")? == &doc! { "n": 2 });
        // One that shows a computed `_id`, and takes its document away.
        let away = rawdoc! {
            "findAndModify": "c", "query": { "fam": round }, "remove": true, "fields": { "_id": "$fam" },
        };
        let reply = bed.write(away).await?;
        ensure!(reply.get_document("value")?.get_str("_id")? == round, "{reply}");
        ensure!(bed.c().find_one(doc! { "fam": round }).await?.is_none(), "{round}");
    }
    Ok(())
}

/// Batches with a duplicate in the middle.
async fn partial_failures(bed: &Bed, round: &str) -> Result<()> {
    for ordered in [true, false] {
        let id = |at: i32| format!("part-{round}-{ordered}-{at}");
        bed.write(insert([rawdoc! { "_id": id(5), "first": true }])).await?;
        let mut command = insert((0..12).map(|at| rawdoc! { "_id": id(at), "at": at }));
        command.append(cstr!("ordered"), ordered);
        let reply = bed.raw(command).await?;
        let errors = reply.get_array("writeErrors")?;
        let error = errors[0].as_document().context("an error")?;
        ensure!(errors.len() == 1 && error.get_i32("code")? == 11000, "{reply}");
        ensure!(error.get_i32("index")? == 5, "{reply}");
        ensure!(reply.get_i32("n")? == if ordered { 5 } else { 11 }, "{reply}");
        let like = doc! { "_id": { "$regex": format!("^part-{round}-{ordered}-") } };
        ensure!(bed.c().count_documents(like).await? == if ordered { 6 } else { 12 }, "{round} {ordered}");

        let mut updates = RawArrayBuf::new();
        for at in 0..6 {
            let change = if at == 3 {
                rawdoc! { "$inc": { "_id": 1 } }
            } else {
                rawdoc! { "$inc": { "u": 1 } }
            };
            updates.push(rawdoc! { "q": { "_id": id(at) }, "u": change });
        }
        let reply = bed.raw(rawdoc! { "update": "c", "updates": updates, "ordered": ordered }).await?;
        let done = if ordered { 3 } else { 5 };
        let index = reply.get_array("writeErrors")?[0].as_document().context("an error")?.get_i32("index")?;
        ensure!(index == 3 && reply.get_i32("n")? == done, "{reply}");
        ensure!(reply.get_i32("nModified")? == done, "{reply}");
    }
    Ok(())
}

/// Writes whose client wants no answer, and gets none.
async fn unacknowledged(bed: &Bed, round: &str) -> Result<()> {
    let id = format!("w0-{round}");
    let mut stream = TcpStream::connect(bed.proxy.address()).await?;
    let mut say = Vec::new();
    for mut command in [
        insert([
            rawdoc! { "_id": id.as_str(), "n": 0 },
            rawdoc! { "_id": "w0-gone" },
            rawdoc! { "w0": round },
        ]),
        insert([rawdoc! { "_id": id.as_str(), "n": 100 }]),
        update(rawdoc! { "_id": id.as_str() }, rawdoc! { "$inc": { "n": 1 } }),
        delete(rawdoc! { "_id": "w0-gone" }),
    ] {
        command.append(cstr!("$db"), "shop");
        command.append(cstr!("writeConcern"), rawdoc! { "w": 0 });
        say.extend(build(1, 0, MORE_TO_COME, command.as_bytes(), None));
    }
    say.extend(build(2, 0, 0, rawdoc! { "ping": 1, "$db": "shop" }.as_bytes(), None));
    stream.write_all(&say).await?;
    let pong = answer(&mut stream).await?;
    ensure!(pong.0 == 2, "an answer that nobody asked for: {pong:?}");
    let found = bed.c().find_one(doc! { "_id": &id }).await?.context("inserted")?;
    ensure!(found.get_i32("n")? == 1, "{found}");
    ensure!(bed.c().count_documents(doc! { "w0": round }).await? == 1, "one without an _id");
    ensure!(bed.c().find_one(doc! { "_id": "w0-gone" }).await?.is_none(), "deleted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upserts_partial_failures_and_unacknowledged_writes() -> Result<()> {
    let bed = Bed::start("trap-upserts").await?;
    upserts(&bed, "before", false).await?;
    bed.move_begins().await?;
    for (round, mixed) in [("dual", false), ("half", true), ("all", false)] {
        upserts(&bed, round, mixed).await.context(round)?;
        partial_failures(&bed, round).await.context(round)?;
        unacknowledged(&bed, round).await.context(round)?;
        bed.equal().await?;
        match round {
            "dual" => bed.half().await?,
            "half" => {
                bed.operator.reads(100).await?;
                bed.operator.writes(100).await?;
            }
            _ => {}
        }
    }
    bed.proxy.shutdown().await;
    Ok(())
}
