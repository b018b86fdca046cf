//! Rolling back while new is away: old serves everything at once, what only new has acknowledged is named, and comes
//! back when new is there again.

#[path = "../support/mod.rs"]
mod support;

mod overtaken;
mod parts;
mod setups;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc};
use mongodb::error::ErrorKind;
use mongodb::{Client, Collection};
use reshard::migration::control::{
    AcknowledgeUnreturned, Control as _, Keys, Ramp, UnreturnedList, UnreturnedPage, UnreturnedState,
    UnreturnedView, WithoutNew,
};
use reshard_testbed::{ReplicaSet, wait_for};
use serde_json::{Value, json};
use support::process::Server;
use support::{LONG, Operator, me, proxy, roll_over, two_sets, until_equal, uri};
use tokio_util::sync::CancellationToken;

type Orders = Collection<Document>;

async fn orders(uri: &str) -> Result<Orders> {
    Ok(Client::with_uri_str(uri).await?.database("shop").collection("c"))
}

async fn fill(orders: &Orders) -> Result<()> {
    orders.insert_many((0..400).map(|id| doc! { "_id": id, "n": 0 })).await?;
    Ok(())
}

/// New's stream is not followed until new is started again.
async fn hold_off_the_stream(new: &ReplicaSet) -> Result<()> {
    new.fail_point(doc! {
        "configureFailPoint": "failCommand", "mode": "alwaysOn",
        "data": { "failCommands": ["getMore", "aggregate"], "errorCode": 11601, "closeConnection": false },
    })
    .await
}

/// Writes whose last state is on new alone, where that is the authority: updates, removals and insertions. So many at
/// once are left to the streams.
async fn write_on_new_alone(through: &str) -> Result<()> {
    let shop = Client::with_uri_str(through).await?.database("shop");
    let updates: Vec<Document> =
        (0..100).map(|id| doc! { "q": { "_id": id }, "u": { "$set": { "n": 1 } } }).collect();
    let removals: Vec<Document> = (100..180).map(|id| doc! { "q": { "_id": id }, "limit": 1 }).collect();
    let insertions: Vec<Document> = (1000..1080).map(|id| doc! { "_id": id, "n": 1 }).collect();
    for (command, n) in [
        (doc! { "update": "c", "updates": updates }, 100),
        (doc! { "delete": "c", "deletes": removals }, 80),
        (doc! { "insert": "c", "documents": insertions }, 80),
    ] {
        let done = shop.run_command(command).await?;
        ensure!(done.get_i32("n")? == n && !done.contains_key("writeErrors"), "{done}");
    }
    Ok(())
}

/// What the application writes on old meanwhile: some of it to the same documents.
async fn write_on_old(orders: &Orders) -> Result<()> {
    for id in 0..20 {
        orders.update_one(doc! { "_id": id }, doc! { "$set": { "n": 10 } }).await?;
    }
    // Where old has this already, nothing changes, and no stream tells of it.
    orders.update_one(doc! { "_id": 20 }, doc! { "$set": { "n": 0 } }).await?;
    for id in 200..210 {
        orders.update_one(doc! { "_id": id }, doc! { "$set": { "n": 5 } }).await?;
    }
    orders.insert_one(doc! { "_id": 2000, "n": 5 }).await?;
    Ok(())
}

/// A process that came after another one does not know whether the first write of a session to what was taken back is a
/// retry, which new may have executed: it fails as long as new cannot be asked. One of the writes, and that once.
async fn all_go_but_one(through: &Orders, ids: impl IntoIterator<Item = i32>, n: i32) -> Result<()> {
    let mut session = through.client().start_session().await?;
    let mut failed = 0;
    for id in ids {
        let (by_id, set) = (doc! { "_id": id }, doc! { "$set": { "n": n } });
        let first = through.update_one(by_id.clone(), set.clone()).session(&mut session).await;
        if let Err(error) = first {
            ensure!(matches!(&*error.kind, ErrorKind::Command(why) if why.code == 6), "{error:?}");
            failed += 1;
            through.update_one(by_id, set).session(&mut session).await?;
        }
    }
    ensure!(failed == 1, "{failed} failed");
    Ok(())
}

/// Every acknowledged write is there, but for those of documents that both have written.
async fn must_be_back(old: &ReplicaSet, no_op_is_known: bool) -> Result<()> {
    let orders = orders(&old.uri()).await?;
    let n = async |id: i32| {
        let found = orders.find_one(doc! { "_id": id }).await?;
        anyhow::Ok(found.map(|found| found.get_i32("n")).transpose()?)
    };
    for id in 0..20 {
        ensure!(n(id).await? == Some(10), "{id}: what was written on old stands");
    }
    ensure!(!no_op_is_known || n(20).await? == Some(0), "a write that changed nothing on old stands, too");
    for id in 21..100 {
        ensure!(n(id).await? == Some(1), "{id} did not come back");
    }
    for id in 100..180 {
        ensure!(n(id).await?.is_none(), "the removal of {id} did not come back");
    }
    for id in 1000..1080 {
        ensure!(n(id).await? == Some(1), "{id} did not come back");
    }
    for id in (200..210).chain([2000]) {
        ensure!(n(id).await? == Some(5), "{id} is lost");
    }
    Ok(())
}

/// Keys as they are shown.
fn keys(ids: impl Iterator<Item = i32>) -> BTreeSet<String> {
    ids.map(|id| format!("{{\"$numberInt\":\"{id}\"}}")).collect()
}

fn waits_for_new<'a>(mut blocked_by: impl Iterator<Item = &'a str>) -> bool {
    blocked_by.any(|why| why.contains("following new waits"))
}

fn conflicts(list: &UnreturnedList) -> BTreeSet<String> {
    let kept = list.documents.iter().filter(|it| it.state == "conflict");
    kept.map(|it| it.key.clone()).collect()
}

impl Operator {
    async fn roll_back_without_new(&self) -> Result<Ramp> {
        self.take_back_without_new(None).await
    }

    async fn take_back_without_new(&self, only: Option<Keys>) -> Result<Ramp> {
        let asked = WithoutNew { reason: "new is away".into() };
        let moved = self.engine.rollback_without_new(&me(), &self.name, asked, only).await;
        moved.map_err(|error| anyhow::anyhow!("without new: {error} {:?}", error.reasons))
    }

    async fn unreturned(&self) -> Result<UnreturnedList> {
        let page = UnreturnedPage { after: None, limit: Some(1000) };
        Ok(self.engine.unreturned(&self.name, page).await?)
    }

    async fn view(&self) -> Result<UnreturnedView> {
        self.progress().await?.unreturned.context("a rollback without new")
    }

    async fn until_back(&self) -> Result<()> {
        let back = wait_for("everything to be back", LONG, || async {
            Ok(self.view().await?.state == UnreturnedState::Done)
        });
        back.await.with_context(|| format!("{:?}", futures::executor::block_on(self.progress())))
    }
}

/// Begins the migration and takes it to new, whose stream is held off then, and writes what only new gets.
async fn new_serves_all_and_has_more(operator: &Operator, new: &ReplicaSet, through: &str) -> Result<()> {
    operator.create(&["shop.c"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    operator.reads(100).await?;
    operator.writes(100).await?;
    operator.until_level().await?;
    hold_off_the_stream(new).await?;
    until_held_off(operator).await?;
    write_on_new_alone(through).await
}

async fn until_held_off(operator: &Operator) -> Result<()> {
    wait_for("new's stream to be held off", LONG, || async {
        Ok(waits_for_new(operator.progress().await?.blocked_by.iter().map(String::as_str)))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_new_has_is_named_and_comes_back() -> Result<()> {
    let (old, new) = two_sets("without-new").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let through = orders(&uri(&proxy)).await?;
    fill(&through).await?;
    let operator = Operator::of(&proxy, "m");
    new_serves_all_and_has_more(&operator, &new, &uri(&proxy)).await?;
    let refused = operator.roll_back_without_new().await.expect_err("new answers");
    ensure!(refused.to_string().contains("new answers"), "{refused}");

    new.kill9_all().await?;
    let back = operator.roll_back_without_new().await?;
    println!("rolled back without new after {} ms; writes were held {} ms", back.elapsed_ms, back.pause_ms);
    let list = operator.unreturned().await?;
    let named: BTreeSet<String> = list.documents.iter().map(|it| it.key.clone()).collect();
    ensure!(named == keys((0..180).chain(1000..1080)), "{named:?}");
    ensure!(back.unreturned == Some(260) && back.all_named, "{back:?}");
    let progress = operator.progress().await?;
    ensure!(f64::from(progress.writes_percent) == 0.0 && f64::from(progress.reads_percent) == 0.0);
    ensure!(progress.blocked_by.iter().any(|why| why.contains("brought back")), "{progress:?}");
    // It may be asked for again.
    ensure!(operator.roll_back_without_new().await?.unreturned == back.unreturned);

    write_on_old(&through).await?;
    ensure!(through.find_one(doc! { "_id": 50 }).await?.context("50")?.get_i32("n")? == 0, "old serves");
    new.start_all().await?;
    operator.until_back().await?;
    must_be_back(&old, true).await?;
    let list = operator.unreturned().await?;
    ensure!(conflicts(&list) == keys(0..=20), "{:?}", conflicts(&list));
    let kept = |it: &&reshard::migration::control::Unreturned| keys(7..8).contains(&it.key);
    let kept = list.documents.iter().find(kept).context("7")?;
    ensure!(kept.on_new.as_deref().is_some_and(|had| had.contains("\"n\":1")), "{kept:?}");
    let view = operator.view().await?;
    ensure!((view.conflicts, view.brought_back, view.on_both) == (21, 239, 0), "{view:?}");

    // An ordinary migration again, once somebody has looked at these.
    let progress = operator.progress().await?;
    ensure!(progress.blocked_by.iter().any(|why| why.contains("21 documents")), "{progress:?}");
    let merged = AcknowledgeUnreturned { reason: "merged by hand".into() };
    operator.engine.acknowledge_unreturned(&me(), "m", merged).await?;
    operator.until_synced().await?;
    until_equal(&old.uri(), &new.uri(), "shop.c").await?;
    operator.found_none_past_the_proxy().await?;
    operator.reads(100).await?;
    operator.writes(50).await?;
    through.update_many(doc! {}, doc! { "$inc": { "n": 100 } }).await?;
    operator.rollback().await?;
    operator.until_level().await?;
    until_equal(&old.uri(), &new.uri(), "shop.c").await?;
    proxy.shutdown().await;
    Ok(())
}

/// New hangs instead, half of the writes were its own, and the process is killed before and after new is there again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_goes_on_over_restarts() -> Result<()> {
    let (old, new) = two_sets("without-new-restarts").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let through = orders(&server.uri()).await?;
    fill(&through).await?;
    server.create_and_start("m", "shop.c").await?;
    server.until_free("m").await?;
    server.percent("m", "reads", 100).await?;
    server.percent("m", "writes", 50).await?;
    server.until_level("m").await?;
    hold_off_the_stream(&new).await?;
    let waits = |progress: &Value| {
        waits_for_new(progress["blocked_by"].as_array().into_iter().flatten().filter_map(Value::as_str))
    };
    server.until("m", "new's stream to be held off", waits).await?;
    write_on_new_alone(&server.uri()).await?;
    new.pause_all().await?;
    let asked = json!({ "without_new": { "reason": "new hangs" } });
    let (status, back) = server.http("POST", "/v1/migrations/m/rollback", Some(asked)).await?;
    ensure!(status == 200, "{back}");
    println!("rolled back while new hangs: {back}");
    ensure!(back["unreturned"].as_u64().is_some_and(|named| named > 20), "{back}");
    write_on_old(&through).await?;

    server.kill9()?;
    server.restart().await?;
    let after = orders(&server.uri()).await?;
    // Old serves all of it, also to sessions that this process has never met.
    all_go_but_one(&after, 300..400, 7).await?;
    let (status, progress) = server.get("/v1/migrations/m/progress").await?;
    ensure!(status == 200 && progress["unreturned"]["state"] == "waiting_for_new", "{progress}");

    new.resume_all().await?;
    new.kill9_all().await?;
    new.start_all().await?;
    server.kill9()?;
    server.restart().await?;
    let done = |progress: &Value| progress["unreturned"]["state"] == "done";
    server.until("m", "everything to be back", done).await?;
    must_be_back(&old, false).await?;
    let merged = json!({ "reason": "merged by hand" });
    server.insist("POST", "/v1/migrations/m/unreturned/acknowledge", Some(merged)).await?;
    ensure!(orders(&old.uri()).await?.count_documents(doc! { "n": 7 }).await? == 100);
    server.until_level("m").await?;
    until_equal(&old.uri(), &new.uri(), "shop.c").await
}

/// What one writer was told, and what it may have done besides.
#[derive(Default)]
struct Told {
    inserted: Vec<i64>,
    /// By document: the last number that was acknowledged, and the last that was sent.
    numbers: BTreeMap<i64, (i64, i64)>,
}

/// Inserts, and raises numbers of its own documents, until it is told to stop; some of it fails.
async fn write_on(through: Orders, writer: i64, stop: CancellationToken) -> Told {
    let mut told = Told::default();
    for number in 1.. {
        if stop.is_cancelled() {
            break;
        }
        let id = writer * 1_000_000 + number;
        if through.insert_one(doc! { "_id": id, "n": number }).await.is_ok() {
            told.inserted.push(id);
        }
        let id = writer * 1_000_000 - 1 - number % 50;
        told.numbers.entry(id).or_default().1 = number;
        let raised =
            through.update_one(doc! { "_id": id }, doc! { "$set": { "n": number } }).upsert(true).await;
        if raised.is_ok() {
            told.numbers.entry(id).or_default().0 = number;
        }
    }
    told
}

/// Writes go on all the time: while new dies, while it is away, and while what it has is brought back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_acknowledged_is_lost_under_load() -> Result<()> {
    under_load("without-new-load", false).await
}

/// The same while new hangs: what was sent to it is executed when it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_executed_late_is_not_taken_for_acknowledged() -> Result<()> {
    under_load("without-new-late", true).await
}

async fn under_load(name: &str, hangs: bool) -> Result<()> {
    let (old, new) = two_sets(name).await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let through = orders(&uri(&proxy)).await?;
    fill(&through).await?;
    let operator = Operator::of(&proxy, "m");
    operator.create(&["shop.c"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    operator.reads(100).await?;
    operator.writes(50).await?;
    let stop = CancellationToken::new();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 1..=4 {
        writers.spawn(write_on(through.clone(), writer, stop.clone()));
    }
    let written = async |more: u64| {
        let before = orders(&old.uri()).await?.estimated_document_count().await?;
        wait_for("writers to write", LONG, || async {
            Ok(orders(&old.uri()).await?.estimated_document_count().await? > before + more)
        })
        .await
    };
    written(300).await?;
    if hangs {
        new.pause_all().await?;
    } else {
        new.kill9_all().await?;
    }
    let back = operator.roll_back_without_new().await?;
    println!("under load: {back:?}");

    written(300).await?;
    if hangs {
        new.resume_all().await?;
    } else {
        new.start_all().await?;
    }
    operator.until_back().await?;
    written(100).await?;
    stop.cancel();
    let mut all = Vec::new();
    while let Some(told) = writers.join_next().await {
        all.push(told?);
    }
    println!("{:?}", operator.view().await?);
    let merged = AcknowledgeUnreturned { reason: "what was written last stands".into() };
    operator.engine.acknowledge_unreturned(&me(), "m", merged).await?;
    operator.until_level().await?;
    until_equal(&old.uri(), &new.uri(), "shop.c").await?;
    operator.found_none_past_the_proxy().await?;
    let orders = orders(&old.uri()).await?;
    for told in all {
        for id in told.inserted {
            ensure!(orders.count_documents(doc! { "_id": id }).await? == 1, "{id} is lost");
        }
        for (id, (acknowledged, sent)) in told.numbers {
            let found = orders.find_one(doc! { "_id": id }).await?;
            let n = found.map_or(Ok(0), |found| found.get_i64("n"))?;
            ensure!((acknowledged..=sent).contains(&n), "{id}: {n}, of {acknowledged} to {sent}");
        }
    }
    proxy.shutdown().await;
    Ok(())
}

/// New's oplog does not tell any more what only it has: what was named is brought back, the rest is said to be missing,
/// and an abort ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_told_is_said_and_an_abort_ends_it() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ReplicaSet::builder("without-new-rolled-old").start(),
        ReplicaSet::builder("without-new-rolled-new").oplog_mb(1).checkpoint_seconds(1).start(),
    )?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let through = orders(&uri(&proxy)).await?;
    fill(&through).await?;
    let operator = Operator::of(&proxy, "m");
    new_serves_all_and_has_more(&operator, &new, &uri(&proxy)).await?;
    roll_over(&new).await?;
    new.kill9_all().await?;
    operator.roll_back_without_new().await?;
    write_on_old(&through).await?;
    new.start_all().await?;
    wait_for("it to be said", LONG, || async {
        Ok(operator.view().await?.problem.is_some_and(|why| why.contains("cannot all be told")))
    })
    .await?;
    must_be_back(&old, true).await?;
    let resumed = operator.engine.resume(&me(), "m").await.expect_err("it would undo the rest");
    ensure!(resumed.code == "bringing-back", "{resumed:?}");
    operator.engine.abort(&me(), "m").await?;
    through.insert_one(doc! { "_id": 3000 }).await?;
    must_be_back(&old, true).await?;
    ensure!(!operator.unreturned().await?.documents.is_empty(), "the list stays");
    proxy.shutdown().await;
    Ok(())
}
