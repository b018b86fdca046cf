//! What is done to the clusters past the proxy.

use crate::support::bed::{Bed, delete, insert, raw, sum, update};
use crate::support::{LONG, Operator, me};
use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc, rawdoc};
use reshard::migration::control::{Control as _, Phase};
use reshard_testbed::wait_for;

/// Waits until the migration has failed, and returns why.
async fn failed(operator: &Operator) -> Result<String> {
    wait_for("the migration to fail", LONG, || async {
        Ok(operator.progress().await?.phase == Phase::Failed)
    })
    .await?;
    operator.engine.get(&operator.name).await?.failure.context("a reason")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collections_taken_away_past_the_proxy() -> Result<()> {
    let bed = Bed::start("trap-taken").await?;
    let old = Bed::on(&bed.old).await?;
    for (name, what) in [("dropped", "drop"), ("renamed", "rename"), ("replaced", "rename")] {
        bed.c().insert_one(doc! { "_id": name }).await?;
        let operator = Operator::of(&bed.proxy, name);
        operator.create(&["shop.c"]).await?;
        operator.start().await?;
        operator.until_synced().await?;
        let admin = bed.old.client().await?.database("admin");
        match name {
            "dropped" => old.collection::<Document>("c").drop().await?,
            "renamed" => {
                admin.run_command(doc! { "renameCollection": "shop.c", "to": "shop.elsewhere" }).await?;
            }
            _ => {
                old.collection("other").insert_one(doc! { "_id": "another" }).await?;
                let onto = doc! { "renameCollection": "shop.other", "to": "shop.c", "dropTarget": true };
                admin.run_command(onto).await?;
            }
        }
        let why = failed(&operator).await?;
        ensure!(why.contains(what), "{name}: {why}");
        bed.c().insert_one(doc! { "_id": format!("after-{name}") }).await?;
        ensure!(bed.c().find_one(doc! { "_id": format!("after-{name}") }).await?.is_some());
        operator.engine.abort(&me(), name).await?;
        wait_for("new to be cleaned up", LONG, || async {
            Ok(Bed::on(&bed.new).await?.list_collection_names().await?.is_empty())
        })
        .await?;
        ensure!(bed.c().find_one(doc! { "_id": format!("after-{name}") }).await?.is_some());
    }
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_go_past_the_proxy() -> Result<()> {
    let bed = Bed::start("trap-past").await?;
    bed.write(insert((0..50).map(|id| rawdoc! { "_id": id, "n": 0 }))).await?;
    bed.move_begins().await?;
    let (old, new) = (Bed::on(&bed.old).await?, Bed::on(&bed.new).await?);
    for round in 0..10 {
        for id in 0..20 {
            let inc = update(rawdoc! { "_id": id }, rawdoc! { "$inc": { "n": 1 } });
            let (through, past) = tokio::join!(bed.write(inc.clone()), raw(&old, inc));
            through?;
            past?;
        }
        raw(&old, insert([rawdoc! { "_id": format!("past-{round}"), "n": 0 }])).await?;
        raw(&old, delete(rawdoc! { "_id": 40 + round })).await?;
        // On the mirror nobody may write: whatever it is, it is undone.
        raw(&new, update(rawdoc! { "_id": 20 + round }, rawdoc! { "$inc": { "n": 7 } })).await?;
        raw(&new, insert([rawdoc! { "_id": format!("phantom-{round}"), "n": 1000 }])).await?;
        raw(&new, delete(rawdoc! { "_id": 30 + round })).await?;
    }
    bed.equal().await?;
    ensure!(sum(&old.collection("c"), "n").await? == 10 * 20 * 2);
    ensure!(new.collection::<Document>("c").count_documents(doc! {}).await? == 50);
    bed.proxy.shutdown().await;
    Ok(())
}
