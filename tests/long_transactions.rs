//! Transactions of more changes than a change stream shows at once.

mod support;

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bson::{Document, RawDocumentBuf, Timestamp, doc};
use mongodb::{Client, Collection};
use reshard::cluster::command::SharedCluster;
use reshard::cluster::{Cluster, Settings as ClusterSettings};
use reshard::migration::scope::Scope;
use reshard::migration::stream::{Batch, ChangeStream, Event};
use reshard::model::key::Key;
use reshard::model::namespace::Namespace;
use reshard::policy::streams::token_time;
use reshard::shutdown::Tasks;
use reshard_loadtest::compare;
use reshard_testbed::{ReplicaSet, wait_for};
use support::process::Server;
use support::{LONG, two_sets};

/// Several batches of a stream.
const DOCUMENTS: i32 = 5000;
const PATIENCE: Duration = Duration::from_secs(1);

/// Makes `ids`, of so many bytes each, and adds one to all that are there, in one transaction.
async fn transaction(client: &Client, ids: std::ops::Range<i32>, bytes: usize) -> Result<()> {
    let c = client.database("shop").collection::<Document>("c");
    let mut session = client.start_session().await?;
    let fill = "x".repeat(bytes);
    loop {
        session.start_transaction().await?;
        let executed = async {
            let documents = ids.clone().map(|id| doc! { "_id": id, "n": 0, "fill": &fill });
            c.insert_many(documents).session(&mut session).await?;
            c.update_many(doc! {}, doc! { "$inc": { "n": 1 } }).session(&mut session).await?;
            session.commit_transaction().await
        };
        match executed.await {
            // A server with little memory may ask for another try.
            Err(error) if error.contains_label("TransientTransactionError") => {
                let _ended = session.abort_transaction().await;
            }
            executed => return Ok(executed?),
        }
    }
}

/// When the last transaction was executed.
async fn committed_at(set: &ReplicaSet) -> Result<Timestamp> {
    let oplog = set.client().await?.database("local").collection::<Document>("oplog.rs");
    let whole = doc! { "op": "c", "lsid": { "$exists": true }, "o.applyOps": { "$exists": true }, "o.partialTxn": { "$ne": true } };
    let entry = oplog.find_one(whole).sort(doc! { "$natural": -1 }).await?.context("a transaction")?;
    Ok(entry.get_timestamp("ts")?)
}

/// The changes that a batch tells: which document, inserted or not.
fn changes(batch: &Batch) -> impl Iterator<Item = (Key, bool)> + '_ {
    batch.events.iter().filter_map(|event| match event {
        Event::Change { key, insert, .. } => Some((key.clone(), *insert)),
        _ => None,
    })
}

/// Follows until all of the transaction at `time` has been shown; the tokens of the batches that ended inside it,
/// each with how many changes came up to it.
async fn follow(
    stream: &mut ChangeStream,
    first: Batch,
    time: Timestamp,
    seen: &mut HashSet<(Key, bool)>,
) -> Result<Vec<(RawDocumentBuf, usize)>> {
    let all = 2 * usize::try_from(DOCUMENTS)?;
    let mut inside = Vec::new();
    let mut batch = first;
    loop {
        for change in changes(&batch) {
            ensure!(seen.insert(change.clone()), "{change:?} is told twice");
        }
        if seen.len() < all {
            // Who has passed a time has seen all that happened then.
            ensure!(
                batch.position < time,
                "at {}, with {} of {all} changes shown",
                batch.position,
                seen.len()
            );
            if !seen.is_empty() {
                inside.push((batch.token.clone(), seen.len()));
            }
        } else if batch.position >= time {
            return Ok(inside);
        }
        batch = stream.next(PATIENCE).await?;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_may_begin_again_inside_a_transaction() -> Result<()> {
    let set = ReplicaSet::builder("txn-stream").cache_gb(1.0).start().await?;
    let client = set.client().await?;
    client.database("shop").create_collection("c").await?;
    let tasks = Tasks::default();
    let cluster = Cluster::connect(ClusterSettings::parse(&set.uri()).await?, &tasks).await?;
    let cluster: SharedCluster = cluster.pools(2);
    let scope = Scope::of(vec![Namespace::new("shop", "c")]);
    let (mut stream, first) = ChangeStream::open(&cluster, &scope, None).await?;
    // Together too large for one entry of an oplog.
    transaction(&client, 0..DOCUMENTS, 4 << 10).await?;
    let time = committed_at(&set).await?;
    let mut all = HashSet::new();
    let inside = follow(&mut stream, first, time, &mut all).await?;
    ensure!(inside.len() > 2, "no batch ended inside the transaction");
    ensure!(inside.iter().any(|(token, _)| token_time(token) == Some(time)), "none has its time");
    for (token, shown) in inside {
        let (mut stream, first) = ChangeStream::open(&cluster, &scope, Some(&token)).await?;
        let mut rest = HashSet::new();
        let mut batch = first;
        loop {
            for change in changes(&batch) {
                ensure!(rest.insert(change.clone()), "{change:?} is told twice after {shown}");
            }
            if batch.position >= time {
                break;
            }
            batch = stream.next(PATIENCE).await?;
        }
        ensure!(rest.len() + shown == all.len(), "{} after {shown}", rest.len());
        stream.close().await;
    }
    stream.close().await;
    Ok(())
}

/// New takes its time for everything that it is told.
async fn slow(new: &ReplicaSet, slow: bool) -> Result<()> {
    let mode = if slow { "alwaysOn" } else { "off" };
    let writes = doc! {
        "failCommands": ["insert", "update"], "namespace": "shop.c", "blockConnection": true, "blockTimeMS": 500,
    };
    new.fail_point(doc! { "configureFailPoint": "failCommand", "mode": mode, "data": writes }).await
}

async fn counts(c: &Collection<Document>) -> Result<()> {
    let (changed, all) = (c.count_documents(doc! { "n": 1 }).await?, c.count_documents(doc! {}).await?);
    let documents = u64::try_from(2 * DOCUMENTS)?;
    ensure!((changed, all) == (documents, documents), "{changed} of {all} are changed once, not {documents}");
    Ok(())
}

/// The process is killed between a checkpoint inside a transaction and the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_of_a_transaction() -> Result<()> {
    let (old, new) = two_sets("txn-killed").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let client = Client::with_uri_str(server.uri()).await?;
    let c = client.database("shop").collection::<Document>("c");
    c.insert_many((DOCUMENTS..2 * DOCUMENTS).map(|id| doc! { "_id": id, "n": 0 })).await?;
    server.create_and_start("m", "shop.c").await?;
    server.until_free("m").await?;
    server.percent("m", "reads", 100).await?;
    slow(&new, true).await?;
    transaction(&client, 0..DOCUMENTS, 100).await?;
    counts(&c).await.context("read right after the commit")?;
    let time = committed_at(&old).await?;
    let checkpoints = old.client().await?.database("reshard").collection::<RawDocumentBuf>("checkpoints");
    let on_new = new.client().await?.database("shop").collection::<Document>("c");
    let changed = async || anyhow::Ok(on_new.count_documents(doc! { "n": 1 }).await?);
    wait_for("a checkpoint inside the transaction", LONG, || async {
        let stored = checkpoints.find_one(doc! { "_id": "m/old" }).await?.context("a checkpoint")?;
        Ok(token_time(stored.get_document("token")?) == Some(time))
    })
    .await?;
    server.kill9()?;
    let done = changed().await?;
    ensure!(done > 0 && done < u64::try_from(2 * DOCUMENTS)?, "{done} are on new");
    slow(&new, false).await?;
    server.restart().await?;
    counts(&c).await.context("read after the restart")?;
    server.until_free("m").await?;
    server.until_level("m").await?;
    let compared = compare(&old.uri(), &new.uri(), "shop.c").await?;
    ensure!(compared.is_equal(), "{compared}");
    counts(&on_new).await.context("on new")?;
    server.percent("m", "writes", 100).await?;
    counts(&c).await.context("when all is on new")
}
