//! The process that rolls back without new stands still in the middle of it, and another one takes over.

use anyhow::{Result, ensure};
use bson::{Document, doc};
use reshard_testbed::{ReplicaSet, wait_for};
use rustix::process::Signal;
use serde_json::json;

use super::support::process::Server;
use super::support::{LONG, two_sets, until_equal};
use super::{fill, orders};

/// How many processes old's record names.
async fn holders(old: &ReplicaSet) -> Result<usize> {
    let records = old.client().await?.database("reshard").collection::<Document>("authority");
    let record = records.find_one(doc! { "_id": "m" }).await?;
    Ok(record.and_then(|record| Some(record.get_document("holders").ok()?.len())).unwrap_or(0))
}

/// Opening streams on old takes long, so that something can happen meanwhile.
async fn opens_streams_slowly(old: &ReplicaSet, slowly: bool) -> Result<()> {
    old.fail_point(doc! {
        "configureFailPoint": "failCommand", "mode": if slowly { "alwaysOn" } else { "off" },
        "data": { "failCommands": ["aggregate"], "blockConnection": true, "blockTimeMS": 2000 },
    })
    .await
}

/// The other one knows nothing of it, and has writes and converging under way: the first may not decide any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_overtaken_takes_nothing_back() -> Result<()> {
    let (old, new) = two_sets("without-new-overtaken").await?;
    let first = Server::start(&old.uri(), Some(&new.uri())).await?;
    let second = Server::prepare(&old.uri(), Some(&new.uri()))?;
    fill(&orders(&first.uri()).await?).await?;
    first.create_and_start("m", "shop.c").await?;
    first.until_free("m").await?;
    first.percent("m", "reads", 100).await?;
    first.percent("m", "writes", 50).await?;
    first.until_level("m").await?;
    new.pause_all().await?;

    opens_streams_slowly(&old, true).await?;
    let asked = json!({ "without_new": { "reason": "new hangs" } });
    let takes_back = first.http("POST", "/v1/migrations/m/rollback", Some(asked));
    let another_takes_over = async {
        let nothing_is_under_way = "open transactions do not count any more";
        wait_for("the first to be half way", LONG, || async {
            Ok(first.times_logged(nothing_is_under_way) > 0)
        })
        .await?;
        first.signal(Signal::STOP)?;
        opens_streams_slowly(&old, false).await?;
        second.restart().await?;
        wait_for("the second to be known", LONG, || async { Ok(holders(&old).await? > 1) }).await?;
        first.signal(Signal::CONT)?;
        anyhow::Ok(())
    };
    let (answer, overtaken) = tokio::join!(takes_back, another_takes_over);
    overtaken?;
    let (status, answer) = answer?;
    ensure!(status == 503, "{status} {answer}");
    let (_, progress) = second.get("/v1/migrations/m/progress").await?;
    ensure!(progress["unreturned"].is_null(), "{progress}");

    first.kill9()?;
    new.resume_all().await?;
    second.until_level("m").await?;
    until_equal(&old.uri(), &new.uri(), "shop.c").await
}
