//! What a process had sent when it died, and what reaches new long after.

use anyhow::{Result, ensure};
use bson::{Document, doc};
use mongodb::Client;
use reshard_loadtest::compare;
use reshard_testbed::{ReplicaSet, ShardedCluster, wait_for};

use crate::support::LONG;
use crate::support::process::Server;
use crate::support::relay::{Mode, Relay};

/// Writes of each kind are on their way to new when the process dies. Its successor goes on, the application changes
/// the same documents, or writes move; then what was on its way arrives. The barrier and the stream of new cover for each
/// other: without both of them this fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_dead_have_sent_changes_nothing_when_it_arrives() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ReplicaSet::builder("trap-late-old").start(),
        ShardedCluster::builder().shards(1).start()
    )?;
    let network = Relay::to(new.router().address()).await?;
    let server = Server::start(&old.uri(), Some(&network.uri())).await?;
    let client = Client::with_uri_str(server.uri()).await?;
    let c = client.database("shop").collection::<Document>("c");
    c.insert_many((0..40).map(|id| doc! { "_id": id, "n": 0 })).await?;
    server.create_and_start("m", "shop.c").await?;
    server.until_free("m").await?;
    server.percent("m", "reads", 100).await?;
    // Old decides all of it still when that arrives, then each a half. No write has moved before: one that may be a
    // retry would have to be asked about where nobody answers.
    for (round, on_new) in [(1, 0), (2, 50)] {
        network.set(Mode::StallWrites("c"));
        // The mirror takes nothing, and nobody waits for it for long. What comes later is not even sent.
        let (increment, set) = (doc! { "$inc": { "n": 1 } }, doc! { "$set": { "n": round * 10 } });
        let increments = async { c.update_one(doc! { "_id": 0 }, increment).await };
        let sets = async { c.update_one(doc! { "_id": 1 }, set).await };
        let deletes = async { c.delete_one(doc! { "_id": 1 + round }).await };
        let inserts = async { c.insert_one(doc! { "_id": 100 + round, "n": "late" }).await };
        tokio::try_join!(increments, sets, deletes, inserts)?;
        ensure!(network.held() > 0, "no write is on its way");
        server.kill9()?;
        network.strand();
        server.restart().await?;
        server.until_free("m").await?;
        // Back to what they were before, or to something else.
        c.update_one(doc! { "_id": 0 }, doc! { "$inc": { "n": -1 } }).await?;
        c.update_one(doc! { "_id": 1 }, doc! { "$set": { "n": 0 } }).await?;
        c.insert_one(doc! { "_id": 1 + round, "n": 0 }).await?;
        c.delete_one(doc! { "_id": 100 + round }).await?;
        server.percent("m", "writes", on_new).await?;
        let late = network.release().await?;
        ensure!(late > 0, "no write came late");
        server.until_level("m").await?;
        let is = async |id: i32| anyhow::Ok(c.find_one(doc! { "_id": id }).await?);
        ensure!(is(0).await? == Some(doc! { "_id": 0, "n": 0 }), "{:?}", is(0).await?);
        ensure!(is(1).await? == Some(doc! { "_id": 1, "n": 0 }), "{:?}", is(1).await?);
        ensure!(is(1 + round).await? == Some(doc! { "_id": 1 + round, "n": 0 }), "a deletion came late");
        ensure!(is(100 + round).await?.is_none(), "a deleted document came back");
        wait_for("both sides to be equal", LONG, || async {
            Ok(compare(&old.uri(), &new.uri(), "shop.c").await?.is_equal())
        })
        .await?;
    }
    Ok(())
}
