//! Open transactions that keep writes from moving: waited for by default, ended where the operator allows it.

mod support;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc};
use mongodb::error::TRANSIENT_TRANSACTION_ERROR;
use mongodb::{Client, ClientSession, Collection};
use reshard::app::Proxy;
use reshard::migration::control::{Control as _, ControlError, Patience, Ramp};
use reshard_testbed::{ReplicaSet, wait_for};
use support::{LONG, Operator, me, proxy, two_sets, uri};

const NO_SUCH_TRANSACTION: i32 = 251;

struct Stage {
    old: ReplicaSet,
    new: ReplicaSet,
    proxy: Proxy,
    operator: Operator,
    client: Client,
    c: Collection<Document>,
}

impl Stage {
    /// Reads are on new already, and writes may move.
    async fn start(name: &str) -> Result<Self> {
        let (old, new) = two_sets(name).await?;
        let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
        let operator = Operator::of(&proxy, "m");
        let client = Client::with_uri_str(uri(&proxy)).await?;
        let c = client.database("shop").collection::<Document>("c");
        c.insert_one(doc! { "_id": 0 }).await?;
        operator.create(&["shop.c"]).await?;
        operator.start().await?;
        operator.until_synced().await?;
        operator.reads(100).await?;
        Ok(Self { old, new, proxy, operator, client, c })
    }

    async fn begin(&self, id: &str) -> Result<ClientSession> {
        let mut session = self.client.start_session().await?;
        session.start_transaction().await?;
        self.c.insert_one(doc! { "_id": id }).session(&mut session).await?;
        Ok(session)
    }

    async fn move_writes(&self, after: Option<u32>) -> Result<Ramp, ControlError> {
        let patience = Patience { max_pause_ms: None, end_transactions_after: after };
        self.operator.engine.set_writes(&me(), "m", 100.into(), patience).await
    }

    /// What new has, by itself.
    async fn on_new(&self, id: &str) -> Result<u64> {
        let c = self.new.client().await?.database("shop").collection::<Document>("c");
        Ok(c.count_documents(doc! { "_id": id }).await?)
    }
}

/// The transaction does not count and is to be run again.
fn is_ended<T: std::fmt::Debug>(result: mongodb::error::Result<T>) -> Result<()> {
    let error = result.err().context("the transaction should be ended")?;
    let code = match &*error.kind {
        mongodb::error::ErrorKind::Command(command) => command.code,
        _ => 0,
    };
    ensure!(code == NO_SUCH_TRANSACTION && error.contains_label(TRANSIENT_TRANSACTION_ERROR), "{error:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_in_the_way_are_ended_where_that_is_allowed() -> Result<()> {
    let stage = Stage::start("end-transactions").await?;
    let mut raw = stage.begin("raw").await?;
    let runs = AtomicU32::new(0);
    let application = async {
        let mut session = stage.client.start_session().await?;
        let work = async |session: &mut ClientSession| {
            let run = runs.fetch_add(1, Ordering::SeqCst);
            stage.c.insert_one(doc! { "_id": "driver", "run": run }).session(&mut *session).await?;
            if run > 0 {
                return Ok(());
            }
            // The first time it is at work for as long as it may be.
            loop {
                let again = doc! { "$inc": { "n": 1 } };
                stage.c.update_one(doc! { "_id": "driver" }, again).session(&mut *session).await?;
                // An application's pace.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        session.start_transaction().and_run2(work).await.context("the application sees no error")
    };
    let moving = async {
        wait_for("the application to be at work", LONG, || async { Ok(runs.load(Ordering::SeqCst) > 0) })
            .await?;
        stage.move_writes(Some(1)).await.context("the move")
    };
    let (ran, moved) = futures::join!(application, moving);
    let moved = moved?;
    ran?;
    ensure!(moved.ended_transactions == 2 && moved.attempts >= 2, "{moved:?}");
    ensure!(runs.load(Ordering::SeqCst) == 2, "{runs:?}");
    ensure!(stage.on_new("driver").await? == 1, "what ran again is on its authority");
    let stored = stage.c.find_one(doc! { "_id": "driver" }).await?.context("the document")?;
    ensure!(stored.get_i32("run")? == 1 && !stored.contains_key("n"), "{stored}");

    is_ended(stage.c.insert_one(doc! { "_id": "more" }).session(&mut raw).await)?;
    let command = doc! { "serverStatus": 1 };
    let status = stage.old.client().await?.database("admin").run_command(command).await?;
    ensure!(status.get_document("transactions")?.get_i64("currentOpen")? == 0, "old holds its locks still");
    let mut next = stage.begin("raw").await?;
    next.commit_transaction().await?;
    ensure!(stage.on_new("raw").await? == 1, "run again");
    stage.operator.until_level().await?;
    stage.operator.found_none_past_the_proxy().await?;
    stage.proxy.shutdown().await;
    Ok(())
}

/// A commit that comes after the end is refused like any statement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_transaction_does_not_commit() -> Result<()> {
    let stage = Stage::start("end-commit").await?;
    let mut session = stage.begin("a").await?;
    let moved = stage.move_writes(Some(1)).await?;
    ensure!(moved.ended_transactions == 1, "{moved:?}");
    is_ended(session.commit_transaction().await)?;
    ensure!(stage.c.count_documents(doc! { "_id": "a" }).await? == 0, "nothing of it happened");
    stage.proxy.shutdown().await;
    Ok(())
}

/// Longer than one try of a move waits.
const OVER_A_TRY: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_are_waited_for_by_default() -> Result<()> {
    let stage = Stage::start("wait-transactions").await?;
    let mut session = stage.begin("a").await?;
    let application = async {
        // That it goes on over tries is the point.
        let begun = Instant::now();
        while begun.elapsed() < OVER_A_TRY {
            let again = doc! { "$inc": { "n": 1 } };
            stage.c.update_one(doc! { "_id": "a" }, again).session(&mut session).await?;
            // An application's pace.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        session.commit_transaction().await
    };
    let (committed, moved) = futures::join!(application, stage.move_writes(None));
    committed.context("it is left alone")?;
    let moved = moved?;
    ensure!(moved.ended_transactions == 0 && moved.attempts >= 2, "{moved:?}");
    ensure!(stage.on_new("a").await? == 1, "it came along");
    stage.proxy.shutdown().await;
    Ok(())
}
