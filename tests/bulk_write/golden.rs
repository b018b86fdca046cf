//! Replies to `bulkWrite` as a MongoDB 8.0 server gives them: their fields, the order and the types of these
//! (`tests/data/bulk_write`, written down from what is published of the server and of the specification of drivers).
//! What reshard makes of the answers to its parts is the same, byte for byte; what it passes on stays what it was.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bson::{Bson, Document, RawDocument, RawDocumentBuf, doc};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::Bed;
use super::door::Script;
use super::raw::read;
use super::support::LONG;
use reshard::wire::op_msg::{OpMsg, build};

/// The files of a folder of `tests/data/bulk_write`, by name.
fn goldens(folder: &str) -> Result<Vec<(String, Document)>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bulk_write").join(folder);
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).context("a name")?.to_owned();
        let golden = serde_json::from_str(&std::fs::read_to_string(&path)?);
        all.push((name.clone(), golden.context(name)?));
    }
    all.sort_by(|one, other| one.0.cmp(&other.0));
    ensure!(!all.is_empty(), "no files");
    Ok(all)
}

/// Whether a golden's reply is that of this stage: `dual`, `half`, `moved` or `indexed`; all, where it does not say.
fn applies(golden: &Document, stage: &str) -> bool {
    golden.get_array("stages").map_or(true, |stages| stages.contains(&stage.into()))
}

/// A reply without its time, which must be the last of it.
fn timeless(reply: &RawDocument) -> Result<RawDocumentBuf> {
    let mut left = RawDocumentBuf::new();
    let mut told = false;
    for element in reply {
        let (name, value) = element?;
        ensure!(!told, "{name} behind the time");
        told = name == "operationTime" && value.as_timestamp().is_some();
        if !told {
            left.append(name, value);
        }
    }
    ensure!(told, "no time: {reply:?}");
    Ok(left)
}

impl Bed {
    /// The collections as a golden begins with them.
    async fn lay_out(&self, golden: &Document) -> Result<()> {
        for name in ["c", "d", "e"] {
            let collection = self.client.database("shop").collection::<Document>(name);
            collection.delete_many(doc! {}).await?;
            let all = golden.get_document("documents").ok().and_then(|all| all.get_array(name).ok());
            let all: Vec<_> = all.into_iter().flatten().filter_map(Bson::as_document).collect();
            if !all.is_empty() {
                collection.insert_many(all).await?;
            }
        }
        Ok(())
    }

    /// The reply to a golden's request, sent as often as it says.
    async fn reply_to(&self, golden: &Document) -> Result<RawDocumentBuf> {
        let mut request = golden.get_document("request")?.clone();
        let times = golden.get_i32("times").unwrap_or(1);
        if times > 1 {
            request.insert("lsid", doc! { "id": bson::Uuid::new() });
            request.insert("txnNumber", 1_i64);
        }
        for _ in 1..times {
            self.bytes(&request).await?;
        }
        self.bytes(&request).await
    }

    async fn are_golden(&self, stage: &str) -> Result<()> {
        for (name, golden) in goldens("divided")?.iter().filter(|(_, golden)| applies(golden, stage)) {
            self.lay_out(golden).await?;
            let reply = self.reply_to(golden).await?;
            let expected = RawDocumentBuf::try_from(golden.get_document("reply")?)?;
            let told = match expected.get_f64("ok")? == 1.0 {
                true => timeless(&reply).with_context(|| format!("{name}, {stage}"))?,
                false => reply,
            };
            ensure!(
                told == expected,
                "{name}, {stage}:\n{}\ninstead of\n{}",
                Document::try_from(&*told)?,
                Document::try_from(&*expected)?
            );
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_divided_is_answered_as_by_a_server_that_knows_it() -> Result<()> {
    let bed = Bed::start("bulk-golden").await?;
    let picky = doc! { "collMod": "d", "validator": { "n": { "$ne": 13 } } };
    bed.client.database("shop").run_command(picky).await?;
    bed.begin().await?;
    bed.are_golden("dual").await?;
    bed.operator.reads(50).await?;
    bed.operator.writes(50).await?;
    bed.are_golden("half").await?;
    bed.operator.reads(100).await?;
    bed.operator.writes(100).await?;
    bed.are_golden("moved").await?;
    // While both clusters take writes there may be none.
    let index = doc! { "key": { "u": 1 }, "name": "u_1", "unique": true, "sparse": true, "collation": { "locale": "en", "strength": 2 } };
    bed.client.database("shop").run_command(doc! { "createIndexes": "c", "indexes": [index] }).await?;
    bed.are_golden("indexed").await?;
    bed.both_are_equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

/// Sends the requests of a golden, and compares what the server got of them and what the client gets of its answers.
async fn is_passed_on(bed: &Bed, script: &Script, golden: &Document) -> Result<()> {
    let mut stream = TcpStream::connect(bed.proxy.address()).await?;
    let mut cursor = 0_i64;
    for (number, exchange) in (1..).zip(golden.get_array("exchanges")?) {
        let exchange = exchange.as_document().context("an exchange")?;
        let asked = exchange.get_document("request")?;
        let mut request = asked.clone();
        if request.contains_key("getMore") {
            request.insert("getMore", cursor);
        }
        let expected = RawDocumentBuf::try_from(exchange.get_document("reply")?)?;
        let mut answer = expected.clone();
        // Not the client's business: it is told no times of clusters.
        let signature =
            doc! { "hash": bson::Binary { subtype: 0.into(), bytes: vec![0; 20] }, "keyId": 0_i64 };
        let time = doc! { "clusterTime": bson::Timestamp { time: 1, increment: 1 }, "signature": signature };
        answer.append(bson::cstr!("$clusterTime"), RawDocumentBuf::try_from(&time)?);
        script.answers.lock().push_back(answer);
        stream.write_all(&build(number, 0, 0, RawDocumentBuf::try_from(&request)?.as_bytes(), None)).await?;
        let (header, bytes) = tokio::time::timeout(LONG, read(&mut stream)).await??;
        ensure!(header.response_to == number);
        let told = RawDocument::from_bytes(&bytes[OpMsg::parse(&bytes)?.body])?;
        ensure!(told == &*expected, "{}\ninstead of\n{expected:?}", Document::try_from(told)?);
        if let Ok(told) = told.get_document("cursor") {
            cursor = told.get_i64("id")?;
        }
        let mut got = script.asked.lock().pop().context("the server was not asked")?;
        got.remove("$clusterTime");
        ensure!(RawDocumentBuf::try_from(&got)? == RawDocumentBuf::try_from(asked)?, "{got}\n{asked}");
    }
    ensure!(script.answers.lock().is_empty(), "an answer that nobody asked for");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_concerns_no_migration_is_passed_on_and_so_is_its_cursor() -> Result<()> {
    let script = Arc::new(Script::default());
    let bed = Bed::with("bulk-passed", script.clone()).await?;
    let all = goldens("passed")?;
    for (name, golden) in &all {
        is_passed_on(&bed, &script, golden).await.with_context(|| format!("{name}, before"))?;
    }
    bed.begin().await?;
    for (name, golden) in &all {
        is_passed_on(&bed, &script, golden).await.with_context(|| format!("{name}, beside a migration"))?;
    }
    bed.proxy.shutdown().await;
    Ok(())
}
