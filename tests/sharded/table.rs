//! What a sharded cluster does that a replica set does not, row by row: while it is the mirror, applications see
//! none of it; once it decides, they see just what it would answer them directly. Either way both sides are equal.

use anyhow::{Context as _, Result, bail, ensure};
use bson::{Bson, Document, RawDocumentBuf, doc};
use futures::TryStreamExt as _;
use reshard::migration::control::Control as _;
use reshard::wire::op_msg::build;
use reshard_testbed::wait_for;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::support::bed::answer;
use crate::support::{LONG, uri};
use crate::{Pair, set, shards};

/// What comes of a write command.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    /// So many documents matched, or were inserted.
    Count(i32),
    /// This error, of the command or of a statement.
    Code(i32),
    /// `findAndModify` has found one.
    Found,
}
use Outcome::{Code, Count, Found};

#[derive(Clone, Copy)]
struct Row {
    what: &'static str,
    /// On the document `{_id: n, order_id: n, tag: "t<n>"}`.
    command: fn(i32) -> Document,
    /// While the replica set decides.
    on_set: Outcome,
    /// While the sharded cluster decides; any of these.
    on_shards: &'static [Outcome],
}

const fn row(
    what: &'static str,
    command: fn(i32) -> Document,
    on_set: Outcome,
    on_shards: &'static [Outcome],
) -> Row {
    Row { what, command, on_set, on_shards }
}

/// How often each row is tried, since it matters on which shard a key lies.
const TIMES: i32 = 6;

fn update(statement: Document) -> Document {
    doc! { "update": "orders", "updates": [statement] }
}

fn delete(q: Document) -> Document {
    doc! { "delete": "orders", "deletes": [{ "q": q, "limit": 1 }] }
}

fn retryable(mut command: Document) -> Document {
    let id =
        bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: Uuid::new_v4().as_bytes().to_vec() };
    command.extend(doc! { "lsid": { "id": id }, "txnNumber": 1_i64 });
    command
}

/// What names no shard key, or only in what a document becomes.
const UNAIMED: [Row; 10] = [
    row(
        "update one that names neither shard key nor _id",
        |n| update(doc! { "q": { "tag": format!("t{n}") }, "u": { "$set": { "a": 1 } } }),
        Count(1),
        &[Code(72)],
    ),
    row(
        "delete one that names neither shard key nor _id",
        |n| delete(doc! { "tag": format!("t{n}") }),
        Count(1),
        &[Code(61)],
    ),
    row(
        "update one by _id",
        |n| update(doc! { "q": { "_id": n }, "u": { "$set": { "a": 1 } } }),
        Count(1),
        &[Count(1)],
    ),
    row("delete one by _id", |n| delete(doc! { "_id": n }), Count(1), &[Count(1)]),
    row(
        "upsert by _id",
        |n| {
            let q = doc! { "_id": format!("new-{n}") };
            update(doc! { "q": q, "u": { "$set": { "order_id": n } }, "upsert": true })
        },
        Count(1),
        &[Code(61)],
    ),
    row(
        "replacing upsert by _id, with the shard key in the replacement",
        |n| {
            let q = doc! { "_id": format!("whole-{n}") };
            update(doc! { "q": q, "u": { "order_id": n, "a": 1 }, "upsert": true })
        },
        Count(1),
        &[Code(61)],
    ),
    row(
        "findAndModify by _id",
        |n| doc! { "findAndModify": "orders", "query": { "_id": n }, "update": { "$set": { "a": 1 } } },
        Found,
        &[Code(61)],
    ),
    // Where it is on the shard of the replacement's key, the shard refuses; elsewhere nothing matches there.
    row(
        "replace by _id, with another shard key",
        |n| update(doc! { "q": { "_id": n }, "u": { "order_id": n + ELSEWHERE } }),
        Count(1),
        &[Code(31025), Count(0)],
    ),
    row(
        "replace by _id, without a shard key",
        |n| update(doc! { "q": { "_id": n }, "u": { "a": "no key" } }),
        Count(1),
        &[Code(31025), Count(0)],
    ),
    row(
        "insert without a shard key",
        |n| doc! { "insert": "orders", "documents": [{ "_id": format!("bare-{n}"), "a": 1 }] },
        Count(1),
        &[Count(1)],
    ),
];

/// Changes of the shard key, and batches.
const OF_THE_KEY: [Row; 6] = [
    row(
        "shard key changed, all of it in the filter, retryable",
        |n| retryable(update(doc! { "q": whole(n), "u": { "$set": { "order_id": n + ELSEWHERE } } })),
        Count(1),
        &[Count(1)],
    ),
    row(
        "the same, not retryable",
        |n| update(doc! { "q": whole(n), "u": { "$set": { "order_id": n + ELSEWHERE } } }),
        Count(1),
        &[Code(20)],
    ),
    row(
        "shard key changed, by _id",
        |n| update(doc! { "q": { "_id": n }, "u": { "$set": { "order_id": n + ELSEWHERE } } }),
        Count(1),
        &[Code(31025)],
    ),
    row(
        "shard key changed, for many, all of it in the filter",
        |n| update(doc! { "q": whole(n), "u": { "$set": { "order_id": n + ELSEWHERE } }, "multi": true }),
        Count(1),
        &[Code(72)],
    ),
    row(
        "shard key taken away, all of it in the filter, retryable",
        |n| retryable(update(doc! { "q": whole(n), "u": { "$unset": { "order_id": 1 } } })),
        Count(1),
        &[Count(1)],
    ),
    row(
        "unordered insert of many, two of which are there",
        |n| {
            let other = doc! { "_id": format!("many-{n}"), "order_id": n };
            doc! { "insert": "orders", "documents": [whole(n), other, whole(n)], "ordered": false }
        },
        Code(11000),
        &[Code(11000)],
    ),
];

const ELSEWHERE: i32 = 1_000_000;

fn whole(n: i32) -> Document {
    doc! { "_id": n, "order_id": n }
}

/// Each row several times, with the number of a document of its own.
fn rows(from: i32) -> impl Iterator<Item = (i32, Row)> {
    let rows = UNAIMED.into_iter().chain(OF_THE_KEY);
    (from..).zip(rows.flat_map(|row| (0..TIMES).map(move |_| row)))
}

async fn ask(pair: &Pair, mut command: Document) -> Result<Document> {
    command.insert("$db", "shop");
    let body = RawDocumentBuf::try_from(&command)?;
    let mut stream = TcpStream::connect(pair.proxy.address()).await?;
    stream.write_all(&build(9, 0, 0, body.as_bytes(), None)).await?;
    tokio::time::timeout(LONG, answer(&mut stream)).await?.map(|(_, reply)| reply)
}

fn outcome(reply: &Document) -> Result<Outcome> {
    let of_statement = reply.get_array("writeErrors").ok().and_then(|errors| errors.first()?.as_document());
    if let Ok(code) = of_statement.unwrap_or(reply).get_i32("code") {
        return Ok(Code(code));
    }
    match reply.get("value") {
        Some(Bson::Document(_)) => Ok(Found),
        _ => Ok(Count(reply.get_i32("n").with_context(|| format!("a reply without a count: {reply}"))?)),
    }
}

async fn everything(pair: &Pair, uri: &str) -> Result<Vec<Document>> {
    let mut all: Vec<Document> = pair.orders(uri).await?.find(doc! {}).await?.try_collect().await?;
    all.sort_by_key(|document| document.get("_id").map(ToString::to_string));
    Ok(all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_of_what_only_shards_do() -> Result<()> {
    let (old, new) = tokio::try_join!(set("sharded-table"), shards())?;
    let pair = Pair::between(old, new).await?;
    let through = pair.orders(&uri(&pair.proxy)).await?;
    let row = |n: i32| doc! { "_id": n, "order_id": n, "tag": format!("t{n}") };
    through.insert_many((0..2000).map(row)).await?;
    pair.begin(doc! { "order_id": "hashed" }).await?;
    pair.operator.reads(100).await?;

    for (n, Row { what, command, on_set, .. }) in rows(0) {
        let reply = ask(&pair, command(n)).await?;
        ensure!(outcome(&reply)? == on_set, "{what}, as the mirror: {reply}");
    }
    pair.equal().await?;
    pair.operator.until_synced().await?;
    pair.operator.writes(100).await?;
    for (n, Row { what, command, on_shards, .. }) in rows(1000) {
        let before = everything(&pair, &pair.new.uri()).await?;
        let reply = ask(&pair, command(n)).await?;
        let came = outcome(&reply)?;
        ensure!(on_shards.contains(&came), "{what}, as the authority: {reply}");
        let changed = everything(&pair, &pair.new.uri()).await? != before;
        ensure!(changed == (matches!(came, Count(1..) | Code(11000))), "{what}: changed {changed}: {reply}");
    }
    pair.equal().await?;
    ensure!(pair.operator.engine.conflicts("m").await?.is_empty());
    pair.operator.rollback().await?;
    pair.equal().await?;
    pair.proxy.shutdown().await;
    Ok(())
}

/// On a sharded cluster a unique index must begin with the shard key: what new cannot have, old does not get.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_shards_cannot_have_is_made_nowhere() -> Result<()> {
    let (old, new) = tokio::try_join!(set("sharded-index"), shards())?;
    let pair = Pair::between(old, new).await?;
    pair.orders(&uri(&pair.proxy)).await?.insert_one(doc! { "_id": 1, "order_id": 1 }).await?;
    pair.begin(doc! { "order_id": "hashed" }).await?;
    let index = doc! { "key": { "tag": 1 }, "name": "tag_1", "unique": true };
    let reply = ask(&pair, doc! { "createIndexes": "orders", "indexes": [index] }).await?;
    ensure!(outcome(&reply)? == Code(67), "{reply}");
    for uri in [pair.old.uri(), pair.new.uri()] {
        let names = pair.orders(&uri).await?.list_index_names().await?;
        ensure!(!names.contains(&"tag_1".to_owned()), "{uri}: {names:?}");
    }
    pair.proxy.shutdown().await;
    Ok(())
}

/// Two shards may take a document of one `_id` each. Old has room for one only: the key is parked until one of them
/// is gone, and meanwhile everybody can see it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_on_two_shards_is_parked_until_one_is_gone() -> Result<()> {
    let (old, new) = tokio::try_join!(set("sharded-twice"), shards())?;
    let pair = Pair::between(old, new).await?;
    let through = pair.orders(&uri(&pair.proxy)).await?;
    through.insert_many((0..200).map(|n| doc! { "_id": n, "order_id": n })).await?;
    pair.begin(doc! { "order_id": "hashed" }).await?;
    pair.operator.reads(100).await?;
    let again = |order: i32| doc! { "insert": "orders", "documents": [{ "_id": 5, "order_id": order }] };
    let reply = ask(&pair, again(1000)).await?;
    ensure!(outcome(&reply)? == Code(11000), "as the mirror: {reply}");
    pair.operator.writes(100).await?;
    let mut second = None;
    for order in 1000..1050 {
        let reply = ask(&pair, again(order)).await?;
        match outcome(&reply)? {
            Count(1) => second = Some(order),
            Code(11000) => continue,
            _ => bail!("as the authority: {reply}"),
        }
        break;
    }
    let second = second.context("no value of the shard key lies on the other shard")?;
    let parked = || async { anyhow::Ok(pair.operator.engine.conflicts("m").await?.len() == 1) };
    wait_for("the key to be parked", LONG, parked).await?;
    ensure!(!pair.operator.progress().await?.can_cut_over);
    let both = ask(&pair, update(doc! { "q": { "_id": 5 }, "u": { "$set": { "a": 1 } } })).await?;
    ensure!(outcome(&both)? == Count(2), "as the authority: {both}");

    let gone = ask(&pair, delete(doc! { "_id": 5, "order_id": second })).await?;
    ensure!(outcome(&gone)? == Count(1), "{gone}");
    let free = || async { anyhow::Ok(pair.operator.engine.conflicts("m").await?.is_empty()) };
    wait_for("the key to be free again", LONG, free).await?;
    pair.equal().await?;
    pair.proxy.shutdown().await;
    Ok(())
}
