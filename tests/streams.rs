//! Change streams of applications through a migration: served by one cluster, shown to their end, and never
//! resumed on the other by a token that means nothing there.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use bson::{Document, RawDocumentBuf, Timestamp, doc};
use futures::StreamExt as _;
use mongodb::change_stream::ChangeStream;
use mongodb::change_stream::event::{ChangeStreamEvent, ResumeToken};
use mongodb::{Client, Collection};
use parking_lot::Mutex;
use reshard::policy::streams::token_time;
use reshard_testbed::wait_for;
use support::{LONG, Operator, proxy, two_sets, uri};
use tokio::time::timeout;

const FATAL: i32 = 280;
const NOT_NOW: i32 = 115;

type Events = ChangeStream<ChangeStreamEvent<Document>>;

/// The server's code in an error of the driver.
fn code(error: &mongodb::error::Error) -> Option<i32> {
    match &*error.kind {
        mongodb::error::ErrorKind::Command(error) => Some(error.code),
        _ => None,
    }
}

/// Inserts documents one after the other, until told to stop.
struct Writer {
    acknowledged: Arc<Mutex<BTreeSet<i64>>>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Writer {
    fn start(orders: Collection<Document>) -> Self {
        let (acknowledged, stop) = (Arc::<Mutex<BTreeSet<i64>>>::default(), Arc::<AtomicBool>::default());
        let (done, told) = (acknowledged.clone(), stop.clone());
        let task = tokio::spawn(async move {
            for id in 1_000_i64.. {
                if told.load(Ordering::Relaxed) {
                    break;
                }
                orders.insert_one(doc! { "_id": id }).await?;
                done.lock().insert(id);
            }
            Ok(())
        });
        Self { acknowledged, stop, task }
    }

    async fn writes_more(&self) -> Result<()> {
        let before = self.acknowledged.lock().len();
        wait_for("more writes", LONG, || async {
            ensure!(!self.task.is_finished(), "the writer has ended");
            Ok(self.acknowledged.lock().len() > before + 20)
        })
        .await
    }

    async fn end(self) -> Result<BTreeSet<i64>> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        Ok(self.acknowledged.lock().clone())
    }
}

/// What an application knows that follows a collection.
#[derive(Default)]
struct Follower {
    seen: BTreeSet<i64>,
    token: Option<ResumeToken>,
}

impl Follower {
    /// Until the stream ends; returns the time that the error says to begin at.
    async fn follow_to_its_end(&mut self, events: &mut Events) -> Result<Timestamp> {
        loop {
            let next = timeout(LONG, events.next()).await.context("the stream does not end")?;
            match next.context("the stream ended without an error")? {
                Ok(event) => self.note(&event)?,
                Err(error) => {
                    ensure!(code(&error) == Some(FATAL), "{error}");
                    return time_in(&error.to_string());
                }
            }
        }
    }

    /// Until it has seen all of `ids`.
    async fn follow_until(&mut self, events: &mut Events, ids: &BTreeSet<i64>) -> Result<()> {
        while !ids.is_subset(&self.seen) {
            let lacks =
                || format!("{:?} were never shown", ids.difference(&self.seen).take(5).collect::<Vec<_>>());
            let next = timeout(LONG, events.next()).await.with_context(lacks)?;
            self.note(&next.context("the stream ended")??)?;
        }
        Ok(())
    }

    fn note(&mut self, event: &ChangeStreamEvent<Document>) -> Result<()> {
        let key = event.document_key.as_ref().context("a change of a document")?;
        self.seen.insert(key.get_i64("_id")?);
        self.token = Some(event.id.clone());
        Ok(())
    }
}

/// `Timestamp(time, increment)`
fn time_in(message: &str) -> Result<Timestamp> {
    let (_, rest) = message.split_once("Timestamp(").with_context(|| format!("no time in {message}"))?;
    let (numbers, _) = rest.split_once(')').context("no end")?;
    let (time, increment) = numbers.split_once(", ").context("no increment")?;
    Ok(Timestamp { time: time.parse()?, increment: increment.parse()? })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_to_the_other_cluster_when_its_application_says_so_and_misses_nothing() -> Result<()> {
    let (old, new) = two_sets("streams").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let orders = Client::with_uri_str(uri(&proxy)).await?.database("shop").collection("streamed");
    orders.insert_one(doc! { "_id": 1_i64 }).await?;
    let operator = Operator::of(&proxy, "streams");
    operator.create(&["shop.streamed"]).await?;
    let mut follower = Follower::default();
    let mut on_old = orders.watch().await?;
    operator.start().await?;
    let writer = Writer::start(orders.clone());
    operator.until_synced().await?;
    operator.reads(100).await?;
    operator.writes(50).await?;
    writer.writes_more().await?;
    operator.writes(100).await?;
    writer.writes_more().await?;
    let moved = follower.follow_to_its_end(&mut on_old).await?;

    let token = follower.token.clone().context("a token of old")?;
    let resumed = orders.watch().resume_after(token).await.err().context("old's token was taken by new")?;
    ensure!(code(&resumed) == Some(FATAL), "{resumed}");
    let too_early = Timestamp { time: moved.time - 1, ..moved };
    let early = orders.watch().start_at_operation_time(too_early).await.err().context("a time of old")?;
    ensure!(code(&early) == Some(FATAL), "{early}");

    let mut on_new = orders.watch().start_at_operation_time(moved).await?;
    writer.writes_more().await?;
    operator.rollback().await?;
    writer.writes_more().await?;
    let back = follower.follow_to_its_end(&mut on_new).await?;
    let mut on_old = orders.watch().start_at_operation_time(back).await?;
    let acknowledged = writer.end().await?;
    follower.follow_until(&mut on_old, &acknowledged).await?;

    // One that has always been there goes on over partial moves, and may be resumed.
    let token = follower.token.clone().context("a token")?;
    operator.reads(30).await?;
    operator.writes(30).await?;
    let mut resumed = orders.watch().resume_after(token).await?;
    orders.insert_one(doc! { "_id": 5_i64 }).await?;
    follower.follow_until(&mut resumed, &BTreeSet::from([5])).await?;
    proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_stream_ends_too_and_leaves_no_token_of_later_times() -> Result<()> {
    let (old, new) = two_sets("quiet").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let client = Client::with_uri_str(uri(&proxy)).await?;
    let shop = client.database("shop");
    shop.collection("quiet").insert_one(doc! { "_id": 1 }).await?;
    let operator = Operator::of(&proxy, "quiet");
    operator.create(&["shop.quiet"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    let open = |options: Document| doc! { "aggregate": "quiet", "pipeline": [{ "$changeStream": options }], "cursor": {} };
    let opened = shop.run_command(open(doc! {})).await?;
    let cursor = opened.get_document("cursor")?.get_i64("id")?;
    operator.reads(100).await?;
    operator.writes(100).await?;
    // One more event: new's write, as it comes to old. Then old's clock goes on, and the stream's position with it.
    shop.collection("quiet").insert_one(doc! { "_id": 2 }).await?;
    let on_old = old.client().await?.database("shop").collection::<Document>("quiet");
    wait_for("the write to come to old", LONG, || async {
        Ok(on_old.find_one(doc! { "_id": 2 }).await?.is_some())
    })
    .await?;
    client.database("elsewhere").collection("c").insert_one(doc! { "_id": 1 }).await?;
    let later = old.client().await?.database("admin").run_command(doc! { "ping": 1 }).await?;
    let later = later.get_timestamp("operationTime")?;
    let mut token = opened.get_document("cursor")?.get_document("postBatchResumeToken")?.clone();
    let more = || shop.run_command(doc! { "getMore": cursor, "collection": "quiet", "maxTimeMS": 100 });
    let end = timeout(LONG, async {
        loop {
            match more().await {
                Ok(reply) => {
                    token = reply.get_document("cursor")?.get_document("postBatchResumeToken")?.clone()
                }
                Err(error) => return Ok::<_, anyhow::Error>(error),
            }
            let time = token_time(&RawDocumentBuf::try_from(&token)?).context("a readable token")?;
            ensure!(time < later, "a token of old after the move: {token}");
        }
    });
    let end = end.await.context("it does not end")??;
    ensure!(code(&end) == Some(FATAL), "{end}");
    let resumed =
        shop.run_command(open(doc! { "resumeAfter": token })).await.err().context("a token of old")?;
    ensure!(code(&resumed) == Some(FATAL), "{resumed}");
    shop.run_command(open(doc! { "startAtOperationTime": time_in(&end.to_string())? })).await?;
    proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_database_are_refused_where_one_cluster_cannot_show_all_of_it() -> Result<()> {
    let (old, new) = two_sets("wide").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let client = Client::with_uri_str(uri(&proxy)).await?;
    for database in ["one", "all"] {
        client.database(database).collection("a").insert_one(doc! { "_id": 1 }).await?;
    }
    for (name, namespace) in [("one", "one.a"), ("all", "all.*")] {
        let operator = Operator::of(&proxy, name);
        operator.create(&[namespace]).await?;
        operator.start().await?;
        operator.until_synced().await?;
        let database = client.database(name);
        let mut stream = database.watch().await?;
        database.collection("a").insert_one(doc! { "_id": 2 }).await?;
        timeout(LONG, stream.next()).await?.context("an event")??;
        operator.reads(100).await?;
        operator.writes(100).await?;
        let ended = timeout(LONG, async {
            loop {
                match stream.next().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Ok(error),
                    None => bail!("it ended without an error"),
                }
            }
        });
        let ended = code(&ended.await.context("it does not end")??);
        if name == "one" {
            ensure!(ended == Some(NOT_NOW), "{ended:?}");
            let refused = database.watch().await.err().context("a stream of half a database")?;
            ensure!(
                code(&refused) == Some(NOT_NOW) && refused.to_string().contains("one by one"),
                "{refused}"
            );
        } else {
            ensure!(ended == Some(FATAL), "{ended:?}");
            let mut stream = database.watch().await?;
            database.collection("b").insert_one(doc! { "_id": 3 }).await?;
            let event: ChangeStreamEvent<Document> =
                timeout(LONG, stream.next()).await?.context("an event")??;
            ensure!(event.document_key == Some(doc! { "_id": 3 }));
        }
    }
    let refused = client.watch().await.err().context("a stream of everything")?;
    ensure!(code(&refused) == Some(NOT_NOW), "{refused}");
    proxy.shutdown().await;
    Ok(())
}
