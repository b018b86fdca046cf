//! A retry is answered with the first outcome, not applied twice: after its slots have moved, and when the
//! lease that it began under has ended.

mod support;

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bson::{Document, RawDocumentBuf, doc};
use futures::future::try_join_all;
use mongodb::Client;
use reshard::app::Proxy;
use reshard::cluster::command::{Commands as _, Request};
use reshard::cluster::{Cluster, Settings as ClusterSettings};
use reshard::migration::control::Control as _;
use reshard::shutdown::Tasks;
use reshard::state::records::lsid;
use reshard_loadtest::compare;
use reshard_testbed::{ReplicaSet, Version, wait_for_value};
use support::{LONG, Operator, proxy, roll_over, settings, two_sets, until_equal, uri};
use uuid::Uuid;

/// A write with its session and number, to be sent as often as wanted.
struct Write {
    what: &'static str,
    session: Uuid,
    command: Document,
}

impl Write {
    fn new(what: &'static str, command: Document) -> Self {
        Self { what, session: Uuid::new_v4(), command }
    }

    async fn send(&self, through: &str, number: i64) -> Result<Document> {
        let tasks = Tasks::default();
        let cluster = Cluster::connect(ClusterSettings::parse(through).await?, &tasks).await?;
        let mut body = RawDocumentBuf::try_from(&self.command)?;
        body.append(bson::cstr!("lsid"), lsid(self.session));
        body.append(bson::cstr!("txnNumber"), number);
        let reply = cluster.pools(1).run(Request::new("shop", body)).await?;
        cluster.close();
        if let Some(error) = reply.error() {
            bail!("{}: {error}", self.what);
        }
        Ok(Document::try_from(&*reply.body)?)
    }
}

fn writes() -> Vec<Write> {
    let inc = |id: i32| doc! { "q": { "_id": id }, "u": { "$inc": { "n": 1 } } };
    vec![
        Write::new("update", doc! { "update": "c", "updates": [inc(1)] }),
        Write::new(
            "findAndModify",
            doc! { "findAndModify": "c", "query": { "_id": 2 }, "update": { "$inc": { "n": 1 } }, "new": true },
        ),
        Write::new(
            "insert",
            doc! { "insert": "c", "documents": [{ "_id": 100, "n": 1 }, { "_id": 101, "n": 1 }] },
        ),
        Write::new("delete", doc! { "delete": "c", "deletes": [{ "q": { "_id": 3 }, "limit": 1 }] }),
        Write::new(
            "bulk",
            doc! { "update": "c", "updates": (10..30).map(inc).collect::<Vec<_>>(), "ordered": false },
        ),
    ]
}

/// What the two answers have in common: everything but times and what tells a retry.
fn outcome(mut reply: Document) -> Document {
    for field in ["operationTime", "$clusterTime", "retriedStmtIds", "retriedStmtId", "electionId", "opTime"]
    {
        reply.remove(field);
    }
    reply
}

async fn count(client: &Client, id: i32) -> Result<Option<i32>> {
    let found = client.database("shop").collection::<Document>("c").find_one(doc! { "_id": id }).await?;
    Ok(found.and_then(|found| found.get_i32("n").ok()))
}

async fn check_effects(client: &Client) -> Result<()> {
    for id in [1, 2].into_iter().chain(10..30) {
        ensure!(count(client, id).await? == Some(1), "{id}: {:?}", count(client, id).await?);
    }
    ensure!(count(client, 3).await?.is_none(), "deleted");
    ensure!(count(client, 100).await? == Some(1) && count(client, 101).await? == Some(1), "inserted");
    Ok(())
}

/// A synced migration of what the writes are about.
async fn synced(old: &ReplicaSet, new: &ReplicaSet) -> Result<(Proxy, Operator, Client)> {
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let operator = Operator::of(&proxy, "c");
    let client = Client::with_uri_str(uri(&proxy)).await?;
    let documents: Vec<Document> = (0..50).map(|id| doc! { "_id": id, "n": 0 }).collect();
    client.database("shop").collection("c").insert_many(documents).await?;
    operator.create(&["shop.c"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    Ok((proxy, operator, client))
}

async fn retried_after_a_move(percent: u8, restart: bool, name: &str) -> Result<()> {
    let (old, new) = two_sets(name).await?;
    let (mut proxy, mut operator, _) = synced(&old, &new).await?;
    let writes = writes();
    let mut first = Vec::new();
    for write in &writes {
        first.push(write.send(&uri(&proxy), 7).await?);
    }
    operator.reads(percent).await?;
    operator.writes(percent).await?;
    if restart {
        proxy.shutdown().await;
        proxy = support::proxy(&old.uri(), Some(&new.uri())).await?;
        operator = Operator::of(&proxy, "c");
        operator.ready().await?;
    }
    let client = Client::with_uri_str(uri(&proxy)).await?;
    for _ in 0..2 {
        for (write, first) in writes.iter().zip(&first) {
            let again = write.send(&uri(&proxy), 7).await.context(write.what)?;
            ensure!(
                outcome(again.clone()) == outcome(first.clone()),
                "{}: {again} after {first}",
                write.what
            );
        }
    }
    check_effects(&client).await?;
    // A later write of the same session is no retry.
    for write in writes.iter().filter(|write| write.what != "insert" && write.what != "delete") {
        write.send(&uri(&proxy), 8).await.context(write.what)?;
    }
    ensure!(
        count(&client, 1).await? == Some(2) && count(&client, 2).await? == Some(2),
        "the next number counts"
    );
    ensure!(count(&client, 11).await? == Some(2), "the next number counts in bulk");
    // And an older one is refused.
    ensure!(writes[0].send(&uri(&proxy), 6).await.is_err(), "an older number");
    operator.until_synced().await?;
    proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_all_has_moved() -> Result<()> {
    retried_after_a_move(100, false, "retry-all").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_half_has_moved() -> Result<()> {
    retried_after_a_move(50, false, "retry-half").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_half_has_moved_and_the_proxy_was_restarted() -> Result<()> {
    retried_after_a_move(50, true, "retry-restart").await
}

/// What happens between a write and its retry.
enum End {
    Complete,
    Rollback,
    Abort,
}

async fn retried_after_the_end(end: End, name: &str) -> Result<()> {
    // Servers of this version do not say in their answers that a statement had been executed before.
    let older = ReplicaSet::builder(&format!("{name}-old")).version(Version::V5_0).start();
    let (old, new) = tokio::try_join!(older, ReplicaSet::builder(&format!("{name}-new")).start())?;
    let (proxy, operator, client) = synced(&old, &new).await?;
    operator.reads(100).await?;
    if !matches!(end, End::Complete) {
        operator.writes(100).await?;
    }
    let writes = writes();
    let mut first = Vec::new();
    for write in &writes {
        first.push(write.send(&uri(&proxy), 7).await?);
    }
    match end {
        End::Complete => {
            operator.writes(100).await?;
            operator.complete().await?;
        }
        End::Rollback => drop(operator.rollback().await?),
        End::Abort => {
            operator.rollback().await?;
            operator.engine.abort(&support::me(), "c").await?;
        }
    }
    for (write, first) in writes.iter().zip(&first) {
        let again = write.send(&uri(&proxy), 7).await.context(write.what)?;
        ensure!(outcome(again.clone()) == outcome(first.clone()), "{}: {again} after {first}", write.what);
    }
    check_effects(&client).await?;
    proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_it_was_completed() -> Result<()> {
    retried_after_the_end(End::Complete, "retry-complete").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_rollback_and_an_abort() -> Result<()> {
    retried_after_the_end(End::Abort, "retry-abort").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_rollback() -> Result<()> {
    retried_after_the_end(End::Rollback, "retry-rollback").await
}

/// Servers that stand still for longer than a lease: what they are asked to do before is done when they go on,
/// and whether it may be shown then is asked again under the next lease, not left to the application.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_its_lease_has_ended() -> Result<()> {
    let (old, new) = two_sets("retry-lease").await?;
    let (proxy, operator, client) = synced(&old, &new).await?;
    let through = uri(&proxy);
    let writes = writes();
    old.pause_all().await?;
    let sent = try_join_all(writes.iter().map(|write| write.send(&through, 7)));
    let resumed = async {
        // The passage of time is what is tested.
        tokio::time::sleep(settings().lease + Duration::from_secs(1)).await;
        old.resume_all().await
    };
    let (sent, resumed) = tokio::join!(sent, resumed);
    resumed?;
    for (write, first) in writes.iter().zip(sent?) {
        let again = write.send(&through, 7).await.context(write.what)?;
        ensure!(outcome(again.clone()) == outcome(first.clone()), "{}: {again} after {first}", write.what);
    }
    check_effects(&client).await?;
    operator.until_level().await?;
    until_equal(&old.uri(), &new.uri(), "shop.c").await?;
    proxy.shutdown().await;
    Ok(())
}

/// A statement of transaction 1 of `session`; `more` says which part of it.
async fn transact(through: &str, session: Uuid, command: Document, more: Document) -> Result<ServerAnswer> {
    let tasks = Tasks::default();
    let cluster = Cluster::connect(ClusterSettings::parse(through).await?, &tasks).await?;
    let database = if command.contains_key("commitTransaction") { "admin" } else { "shop" };
    let mut body = RawDocumentBuf::try_from(&command)?;
    body.append(bson::cstr!("lsid"), lsid(session));
    body.append(bson::cstr!("txnNumber"), 1_i64);
    body.append(bson::cstr!("autocommit"), false);
    for (name, value) in RawDocumentBuf::try_from(&more)?.iter().flatten() {
        body.append(name, value);
    }
    let reply = cluster.pools(1).run(Request::new(database, body)).await?;
    cluster.close();
    Ok(reply.error().map_or(Ok(()), |error| Err(error.code)))
}

/// Success, or the code of the error.
type ServerAnswer = std::result::Result<(), i32>;

const NO_SUCH_TRANSACTION: i32 = 251;

/// The server dies over a commit, and is back after the lease has ended: what became of it can be learnt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_commit_when_its_lease_has_ended() -> Result<()> {
    let (old, new) = two_sets("retry-commit").await?;
    let (proxy, operator, client) = synced(&old, &new).await?;
    let through = uri(&proxy);
    let session = Uuid::new_v4();
    let insert = doc! { "insert": "c", "documents": [{ "_id": "in a transaction" }] };
    let begun = transact(&through, session, insert, doc! { "startTransaction": true }).await?;
    ensure!(begun == Ok(()), "{begun:?}");
    let commit = || transact(&through, session, doc! { "commitTransaction": 1 }, doc! {});
    old.pause_all().await?;
    let death = async {
        // The passage of time is what is tested.
        tokio::time::sleep(settings().lease + Duration::from_secs(1)).await;
        old.kill9_all().await
    };
    let (lost, died) = tokio::join!(commit(), death);
    died?;
    ensure!(lost? != Ok(()), "it is not known");
    old.start_all().await?;
    let last = wait_for_value("the commit's outcome", LONG, || async {
        let answer = commit().await?;
        Ok((answer == Ok(()) || answer == Err(NO_SUCH_TRANSACTION)).then_some(answer))
    })
    .await?;
    let filter = doc! { "_id": "in a transaction" };
    let found = client.database("shop").collection::<Document>("c").find_one(filter).await?;
    ensure!(found.is_some() == (last == Ok(())), "{last:?}, and {found:?}");
    operator.until_level().await?;
    ensure!(compare(&old.uri(), &new.uri(), "shop.c").await?.is_equal());
    proxy.shutdown().await;
    Ok(())
}

/// Commands of a kind that a cluster's server has run.
async fn commands(set: &ReplicaSet, name: &str) -> Result<i64> {
    let status = set.client().await?.database("admin").run_command(doc! { "serverStatus": 1 }).await?;
    let counted = status.get_document("metrics")?.get_document("commands")?.get_document(name)?;
    Ok(counted.get_i64("total")?)
}

/// A large batch that was cut short in the middle: what was executed is found with few questions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_part_of_a_large_batch() -> Result<()> {
    const ALL: i32 = 3000;
    const IN_THE_WAY: i32 = 2100;
    let (old, new) = two_sets("retry-large").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let operator = Operator::of(&proxy, "c");
    let c = Client::with_uri_str(uri(&proxy)).await?.database("shop").collection::<Document>("c");
    c.insert_one(doc! { "_id": IN_THE_WAY, "n": 0 }).await?;
    operator.create(&["shop.c"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    let documents: Vec<Document> = (0..ALL).map(|id| doc! { "_id": id, "n": 1 }).collect();
    let batch = Write::new("batch", doc! { "insert": "c", "documents": documents });
    let first = batch.send(&uri(&proxy), 7).await?;
    ensure!(first.get_i32("n")? == IN_THE_WAY, "{first}");
    operator.reads(100).await?;
    operator.writes(100).await?;
    let before = commands(&old, "delete").await?;
    let again = batch.send(&uri(&proxy), 7).await?;
    let questions = commands(&old, "delete").await? - before;
    let failed = |reply: &Document| -> Result<(i32, i32)> {
        let error = reply
            .get_array("writeErrors")?
            .first()
            .and_then(|error| error.as_document())
            .context("an error")?;
        Ok((error.get_i32("index")?, error.get_i32("code")?))
    };
    ensure!(again.get_i32("n")? == IN_THE_WAY && failed(&again)? == failed(&first)?, "{again} after {first}");
    ensure!(c.count_documents(doc! {}).await? == u64::try_from(IN_THE_WAY)? + 1);
    ensure!((1..=30).contains(&questions), "{questions} questions");
    operator.until_level().await?;
    proxy.shutdown().await;
    Ok(())
}

/// The former authority's oplog no longer tells whether a write was executed: then it is neither executed again nor
/// taken for done, and the answer says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_former_authority_has_forgotten() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ReplicaSet::builder("retry-forgotten-old").oplog_mb(1).checkpoint_seconds(1).start(),
        ReplicaSet::builder("retry-forgotten-new").start()
    )?;
    let (proxy, operator, client) = synced(&old, &new).await?;
    let writes = writes();
    for write in &writes {
        write.send(&uri(&proxy), 7).await?;
    }
    operator.reads(100).await?;
    operator.writes(100).await?;
    roll_over(&old).await?;
    // What a server has in memory it still knows, but for what it takes from its oplog to answer.
    for write in &writes {
        match write.send(&uri(&proxy), 7).await {
            Ok(_) => ensure!(write.what != "findAndModify", "it has no answer any more"),
            Err(told) => {
                let told = told.to_string();
                ensure!(
                    told.contains("code 217") && told.contains("was executed before"),
                    "{}: {told}",
                    write.what
                );
            }
        }
    }
    check_effects(&client).await?;
    old.stop_all().await?;
    old.start_all().await?;
    for _ in 0..2 {
        for write in &writes {
            let told = write.send(&uri(&proxy), 7).await;
            let told = told.err().with_context(|| format!("{} is answered", write.what))?.to_string();
            ensure!(told.contains("code 217") && told.contains("oplog"), "{}: {told}", write.what);
        }
    }
    check_effects(&client).await?;
    // A session that goes on is not held up.
    let later = writes.iter().find(|write| write.what == "update").context("an update")?;
    later.send(&uri(&proxy), 8).await?;
    ensure!(count(&client, 1).await? == Some(2));
    proxy.shutdown().await;
    Ok(())
}
