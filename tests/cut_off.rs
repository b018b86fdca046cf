//! Calls that are cut off between two stores, and calls that an abort cuts short.

mod support;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc};
use mongodb::{Client, ClientSession, Collection};
use reshard::app::Proxy;
use reshard::migration::control::{Complete, Control as _, Patience, Phase};
use reshard_testbed::{ReplicaSet, wait_for};
use support::{LONG, Operator, me, proxy, two_sets, until_equal, uri};

const DOCUMENTS: i32 = 50;
/// What waits for a write that does not end takes a minute.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Two clusters, a proxy, and a migration of `shop.c`.
struct Stage {
    old: ReplicaSet,
    new: ReplicaSet,
    proxy: Proxy,
    operator: Operator,
    c: Collection<Document>,
}

impl Stage {
    async fn set(name: &str) -> Result<Self> {
        let (old, new) = two_sets(name).await?;
        let stage = Self::between(old, new).await?;
        stage.c.insert_many((0..DOCUMENTS).map(|id| doc! { "_id": id, "n": 0 })).await?;
        stage.operator.create(&["shop.c"]).await?;
        Ok(stage)
    }

    async fn between(old: ReplicaSet, new: ReplicaSet) -> Result<Self> {
        let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
        let operator = Operator::of(&proxy, "m");
        let c = Client::with_uri_str(uri(&proxy)).await?.database("shop").collection("c");
        Ok(Self { old, new, proxy, operator, c })
    }

    async fn synced(name: &str) -> Result<Self> {
        let stage = Self::set(name).await?;
        stage.operator.start().await?;
        stage.operator.until_synced().await?;
        Ok(stage)
    }

    /// The process ends; what is stored then is made to be what a cut at another moment leaves.
    async fn again_after(
        self,
        leave: impl AsyncFnOnce(&ReplicaSet, &ReplicaSet) -> Result<()>,
    ) -> Result<Self> {
        self.proxy.shutdown().await;
        leave(&self.old, &self.new).await?;
        let stage = Self::between(self.old, self.new).await?;
        stage.operator.ready().await?;
        Ok(stage)
    }

    async fn phase(&self) -> Result<Phase> {
        Ok(self.operator.engine.get("m").await?.phase)
    }

    async fn is_mirrored(&self, id: &str) -> Result<()> {
        self.c.insert_one(doc! { "_id": id }).await?;
        until_equal(&self.old.uri(), &self.new.uri(), "shop.c").await
    }

    /// A write through the proxy that lasts until the transaction past it, which is returned, has ended.
    async fn long_write(
        &self,
    ) -> Result<(ClientSession, tokio::task::JoinHandle<mongodb::error::Result<()>>)> {
        let client = self.old.client().await?;
        let mut session = client.start_session().await?;
        session.start_transaction().await?;
        let past = client.database("shop").collection::<Document>("c");
        let one = doc! { "_id": 1 };
        past.update_one(one.clone(), doc! { "$inc": { "m": 1 } }).session(&mut session).await?;
        let c = self.c.clone();
        let write =
            tokio::spawn(async move { c.update_one(one, doc! { "$inc": { "n": 1 } }).await.map(|_| ()) });
        wait_for("the write to wait", LONG, || async {
            if write.is_finished() {
                return Ok(true);
            }
            let reply = client.database("admin").run_command(doc! { "currentOp": 1 }).await?;
            let waits = |op: &bson::Bson| {
                let Some(op) = op.as_document() else { return false };
                let (ns, active) = (op.get_str("ns").ok(), op.get_bool("active").ok());
                ns == Some("shop.c") && active == Some(true) && format!("{op}").contains("update")
            };
            Ok(reply.get_array("inprog")?.iter().any(waits))
        })
        .await?;
        ensure!(!write.is_finished(), "it waits for nothing: {:?}", write.await?);
        Ok((session, write))
    }

    async fn aborts_at_once(&self) -> Result<()> {
        let began = Instant::now();
        let aborted = self.operator.engine.abort(&me(), "m").await?;
        ensure!(aborted.phase == Phase::Aborted, "{aborted:?}");
        ensure!(began.elapsed() < AT_ONCE, "it took {:?}", began.elapsed());
        Ok(())
    }
}

async fn records(set: &ReplicaSet) -> Result<Collection<Document>> {
    Ok(set.client().await?.database("reshard").collection("authority"))
}

async fn record(set: &ReplicaSet) -> Result<Document> {
    records(set).await?.find_one(doc! { "_id": "m" }).await?.context("a record")
}

async fn change(set: &ReplicaSet, change: Document) -> Result<()> {
    records(set).await?.update_one(doc! { "_id": "m" }, change).await?;
    Ok(())
}

/// Leases go on, and nothing else changes on this record.
async fn hold_epoch(set: &ReplicaSet, held: bool) -> Result<()> {
    let epoch = record(set).await?.get_i64("epoch")?;
    let validator = if held {
        doc! { "epoch": { "$lte": epoch } }
    } else {
        doc! {}
    };
    let database = set.client().await?.database("reshard");
    database.run_command(doc! { "collMod": "authority", "validator": validator }).await?;
    Ok(())
}

fn preparing() -> Document {
    doc! { "$set": { "phase": "preparing" } }
}

async fn until_both_records_mirror(stage: &Stage) -> Result<()> {
    wait_for("both records to say that both clusters are written", LONG, || async {
        let (old, new) = (record(&stage.old).await?, record(&stage.new).await?);
        Ok(old.get_str("phase")? != "preparing" && new.get_str("phase")? != "preparing")
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_cut_off_between_its_stores_goes_on() -> Result<()> {
    let stage = Stage::synced("cut-start").await?;
    // Stored as copying, and neither record raised.
    let stage = stage
        .again_after(async |old, new| {
            change(old, preparing()).await?;
            change(new, preparing()).await
        })
        .await?;
    until_both_records_mirror(&stage).await?;
    stage.operator.until_synced().await?;
    stage.operator.reads(50).await?;
    stage.operator.reads(0).await?;
    // Old's record raised, and new's not.
    let stage = stage
        .again_after(async |old, new| {
            change(new, preparing()).await?;
            change(old, doc! { "$inc": { "epoch": 1_i64 } }).await
        })
        .await?;
    until_both_records_mirror(&stage).await?;
    // The same once more, and no restart: the call is repeated.
    change(&stage.old, preparing()).await?;
    change(&stage.new, preparing()).await?;
    wait_for("the repeated start to raise the records", LONG, || async {
        stage.operator.start().await?;
        Ok(record(&stage.old).await?.get_str("phase")? == "copying")
    })
    .await?;
    until_both_records_mirror(&stage).await?;
    stage.operator.until_synced().await?;
    stage.operator.reads(100).await?;
    stage.operator.writes(100).await?;
    stage.is_mirrored("at the end").await?;
    stage.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_in_force_by_the_first_record_and_the_other_follows() -> Result<()> {
    let stage = Stage::synced("cut-reads").await?;
    hold_epoch(&stage.new, true).await?;
    let moved = stage.operator.reads(50).await?;
    let view = stage.operator.engine.get("m").await?;
    ensure!(view.reads_percent == 50 && view.epoch == moved.epoch, "{view:?} after {moved:?}");
    ensure!(record(&stage.new).await?.get_i64("epoch")? < record(&stage.old).await?.get_i64("epoch")?);
    hold_epoch(&stage.new, false).await?;
    wait_for("new's record to follow", LONG, || async {
        let (old, new) = (record(&stage.old).await?, record(&stage.new).await?);
        Ok(old.get("epoch") == new.get("epoch") && old.get("reads_on_new") == new.get("reads_on_new"))
    })
    .await?;
    stage.is_mirrored("while half is read").await?;
    stage.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_complete_is_decided_by_new_alone() -> Result<()> {
    let stage = Stage::synced("cut-complete").await?;
    stage.operator.reads(100).await?;
    stage.operator.writes(100).await?;
    hold_epoch(&stage.new, true).await?;
    ensure!(stage.operator.complete().await.is_err(), "new's record cannot be changed");
    ensure!(stage.phase().await? == Phase::Synced);
    stage.is_mirrored("not completed").await?;
    hold_epoch(&stage.new, false).await?;
    // Nothing has changed: the way back is open.
    stage.operator.rollback().await?;
    stage.operator.until_synced().await?;
    stage.operator.reads(100).await?;
    stage.operator.writes(100).await?;
    hold_epoch(&stage.old, true).await?;
    stage.operator.complete().await?;
    ensure!(stage.phase().await? == Phase::Completed);
    hold_epoch(&stage.old, false).await?;
    stage.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_complete_cut_off_is_finished_by_the_next_and_by_a_restart() -> Result<()> {
    let decided = doc! { "$set": { "phase": "completed" }, "$inc": { "epoch": 1_i64 } };
    let stage = Stage::synced("cut-completed").await?;
    stage.operator.reads(100).await?;
    stage.operator.writes(100).await?;
    change(&stage.new, decided).await?;
    wait_for("the way back to be closed", LONG, || async {
        let refused = stage.operator.engine.set_reads(&me(), "m", 100.into()).await;
        Ok(refused.is_err_and(|why| why.detail.contains("call complete again")))
    })
    .await?;
    stage.operator.engine.complete(&me(), "m", Complete::default()).await?;
    ensure!(stage.phase().await? == Phase::Completed);
    let stage = stage
        .again_after(async |old, _| {
            let stored = old.client().await?.database("reshard").collection::<Document>("migrations");
            let synced = doc! { "$set": { "phase": "synced", "ended_at": null, "cleaned": false } };
            stored.update_one(doc! { "_id": "m" }, synced).await?;
            Ok(())
        })
        .await?;
    wait_for("what is stored to say so too", LONG, || async {
        let stored = stage.old.client().await?.database("reshard").collection::<Document>("migrations");
        let stored = stored.find_one(doc! { "_id": "m" }).await?.context("what is stored")?;
        Ok(stored.get_str("phase")? == "completed" && stored.get_bool("cleaned")?)
    })
    .await?;
    stage.c.insert_one(doc! { "_id": "after" }).await?;
    let past = stage.old.client().await?.database("shop").collection::<Document>("c");
    ensure!(past.find_one(doc! { "_id": "after" }).await?.is_none(), "it is still mirrored");
    stage.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_does_not_wait_for_a_start() -> Result<()> {
    let stage = Stage::set("abort-start").await?;
    let (mut session, write) = stage.long_write().await?;
    let meanwhile = async {
        // The last thing before it waits for earlier writes.
        wait_for("the start to wait", LONG, || async {
            Ok(records(&stage.new).await?.find_one(doc! { "_id": "m" }).await?.is_some())
        })
        .await?;
        stage.aborts_at_once().await
    };
    let me = me();
    let (started, aborted) = tokio::join!(stage.operator.engine.start(&me, "m"), meanwhile);
    aborted?;
    ensure!(started.as_ref().is_err_and(|why| why.code == "being-aborted"), "{started:?}");
    session.abort_transaction().await?;
    write.await??;
    stage.c.insert_one(doc! { "_id": "after" }).await?;
    stage.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_does_not_wait_for_a_move_of_writes() -> Result<()> {
    let stage = Stage::synced("abort-move").await?;
    stage.operator.reads(100).await?;
    let (mut session, write) = stage.long_write().await?;
    // In this order: the move is under way when the abort is asked for.
    let me = me();
    let moving = stage.operator.engine.set_writes(&me, "m", 100.into(), Patience::default());
    let (moved, aborted) = tokio::join!(moving, stage.aborts_at_once());
    aborted?;
    let told = moved.as_ref().is_err_and(|why| why.code == "given-up" && why.detail.contains("aborted"));
    ensure!(told, "{moved:?}");
    session.abort_transaction().await?;
    write.await??;
    let changed = stage.c.find_one(doc! { "_id": 1 }).await?;
    ensure!(changed == Some(doc! { "_id": 1, "n": 1 }), "{changed:?}");
    stage.proxy.shutdown().await;
    Ok(())
}

/// A migration that cannot go on, because its record is gone, keeps no other one waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_cannot_go_on_keeps_no_other_waiting() -> Result<()> {
    let stage = Stage::synced("cut-one").await?;
    // Earlier by name: it is taken up first.
    let first = Operator::of(&stage.proxy, "a");
    let d = Client::with_uri_str(uri(&stage.proxy)).await?.database("shop").collection::<Document>("d");
    d.insert_one(doc! { "_id": 1 }).await?;
    first.create(&["shop.d"]).await?;
    first.start().await?;
    first.until_synced().await?;
    let stage = stage
        .again_after(async |_, new| {
            let records = new.client().await?.database("reshard").collection::<Document>("authority");
            ensure!(records.delete_one(doc! { "_id": "a" }).await?.deleted_count == 1);
            Ok(())
        })
        .await?;
    stage.is_mirrored("after").await?;
    stage.operator.until_synced().await?;
    let waits = Operator::of(&stage.proxy, "a").progress().await?;
    ensure!(!waits.can_cut_over && waits.lag_seconds.is_none(), "it went on after all: {waits:?}");
    stage.proxy.shutdown().await;
    Ok(())
}
