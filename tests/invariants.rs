//! Records that somebody changed by hand break invariants: the proxy says so, everywhere, and moves nothing more to
//! new until both sides were compared.

mod support;

use anyhow::{Context as _, Result, ensure};
use bson::spec::BinarySubtype;
use bson::{Binary, Document, doc};
use mongodb::Client;
use reshard::model::slots::{Slot, SlotSet};
use reshard_testbed::{ReplicaSet, wait_for};
use serde_json::{Value, json};
use support::process::Server;
use support::{LONG, two_sets};

fn slots(numbers: std::ops::Range<u16>) -> SlotSet {
    numbers.filter_map(Slot::from_number).collect()
}

/// Writes into a cluster's record which slots it owns.
async fn own(set: &ReplicaSet, owned: &SlotSet, epoch: i64) -> Result<()> {
    let owned = Binary { subtype: BinarySubtype::Generic, bytes: owned.to_bytes() };
    let records = set.client().await?.database("reshard").collection::<Document>("authority");
    let changed =
        records.update_one(doc! { "_id": "m" }, doc! { "$set": { "owned": owned, "epoch": epoch } });
    ensure!(changed.await?.matched_count == 1, "no record");
    Ok(())
}

async fn counted(server: &Server, invariant: &str) -> Result<Option<u64>> {
    let (_, text) = server.text("GET", "/metrics", None).await?;
    let is_it = |line: &&str| {
        line.starts_with("reshard_invariant_violations_total{") && line.contains(&format!("\"{invariant}\""))
    };
    let line = text.lines().find(is_it);
    Ok(line.and_then(|line| line.rsplit(' ').next()).map(str::parse).transpose()?)
}

/// Counted as `number` and `name`, shown, and in the way.
async fn is_told(server: &Server, number: u8, name: &str) -> Result<()> {
    let words = format!("invariant {number} ({name})");
    let told = |progress: &Value| {
        progress["invariant_violations"].as_u64() > Some(0)
            && progress["blocked_by"].to_string().contains(&words)
    };
    server.until("m", &words, told).await?;
    wait_for("the metric", LONG, || async { Ok(counted(server, name).await? > Some(0)) }).await
}

async fn move_writes(server: &Server, percent: u8) -> Result<(u16, Value)> {
    server.http("PUT", "/v1/migrations/m/writes", Some(json!({ "percent": percent }))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_were_changed_by_hand_are_told_and_stop_moves() -> Result<()> {
    let (old, new) = two_sets("invariants").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let c = Client::with_uri_str(server.uri()).await?.database("shop").collection::<Document>("c");
    c.insert_many((0..200).map(|id| doc! { "_id": id })).await?;
    server.create_and_start("m", "shop.c").await?;
    server.until_free("m").await?;
    server.percent("m", "reads", 100).await?;
    server.percent("m", "writes", 50).await?;
    // It is there before anything is counted.
    wait_for("the metric", LONG, || async {
        Ok(counted(&server, "percent_only_adds").await?.is_some_and(|count| count == 0))
    })
    .await?;
    let (_, progress) = server.get("/v1/migrations/m/progress").await?;
    ensure!(progress["invariant_violations"] == 0, "{progress}");
    let epoch = progress["epoch"].as_i64().context("an epoch")?;

    // Slots that no percentage has. None has two owners meanwhile.
    own(&old, &slots(768..1024), epoch + 1).await?;
    own(&new, &slots(256..768), epoch + 1).await?;
    own(&old, &slots(0..256).or(&slots(768..1024)), epoch + 2).await?;
    own(&new, &slots(256..768), epoch + 2).await?;
    let newer = |progress: &Value| progress["epoch"].as_i64() >= Some(epoch + 2);
    server.until("m", "the records to be seen", newer).await?;
    wait_for("a move to be refused for them", LONG, || async {
        let (status, problem) = move_writes(&server, 60).await?;
        Ok(status == 409 && problem["code"] == "slots-not-nested")
    })
    .await?;
    is_told(&server, 5, "percent_only_adds").await?;

    // Put right, and remembered all the same, also by the next process.
    own(&new, &slots(0..512).and(&slots(256..768)), epoch + 3).await?;
    own(&old, &slots(512..1024), epoch + 3).await?;
    own(&new, &slots(0..512), epoch + 4).await?;
    own(&old, &slots(512..1024), epoch + 4).await?;
    server.kill9()?;
    server.restart().await?;
    is_told(&server, 5, "percent_only_adds").await?;
    let (status, problem) = move_writes(&server, 60).await?;
    ensure!(status == 409 && problem["code"] == "blocked", "{problem}");
    // A comparison, which this asks for, is the way out.
    server.until_free("m").await?;
    server.percent("m", "writes", 60).await?;

    let (_, progress) = server.get("/v1/migrations/m/progress").await?;
    let epoch = progress["epoch"].as_i64().context("an epoch")?;
    own(&old, &SlotSet::ALL, epoch).await?;
    is_told(&server, 6, "one_authority").await?;
    own(&old, &SlotSet::ALL.minus(&SlotSet::percent(60)), epoch).await?;
    server.until_free("m").await?;

    // Nor does it complete without force, once everything is on new.
    server.percent("m", "writes", 100).await?;
    let (_, progress) = server.get("/v1/migrations/m/progress").await?;
    let epoch = progress["epoch"].as_i64().context("an epoch")?;
    own(&old, &slots(0..1), epoch).await?;
    server
        .until("m", "one more", |now| {
            now["invariant_violations"].as_u64() > progress["invariant_violations"].as_u64()
        })
        .await?;
    own(&old, &SlotSet::EMPTY, epoch).await?;
    let lacking = wait_for("the records to be whole", LONG, || async {
        let (_, problem) = server.http("POST", "/v1/migrations/m/complete", Some(json!({}))).await?;
        let reasons = problem["reasons"].to_string();
        Ok(reasons.contains("hold period") && reasons.contains("invariant 6 (one_authority)"))
    });
    lacking.await?;
    server.until_free("m").await?;
    // The way back needs no comparison; nor has it lost anything.
    server.insist("POST", "/v1/migrations/m/rollback", None).await?;
    ensure!(c.count_documents(doc! {}).await? == 200, "documents are lost");
    Ok(())
}
