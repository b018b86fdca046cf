//! Indexes and options that change around a start, while a cluster is away, and where one of the two refuses.

mod support;

use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc, rawdoc};
use reshard::migration::control::{Control as _, Phase};
use reshard_testbed::{ReplicaSet, wait_for};
use support::bed::{Bed, insert};
use support::{LONG, me};

/// The indexes of `shop.c` by name, also those that are being built.
async fn indexes(set: &ReplicaSet) -> Result<Vec<String>> {
    let listed = doc! { "listIndexes": "c", "includeBuildUUIDs": true };
    let listed = Bed::on(set).await?.run_command(listed).await?;
    let name = |index: &bson::Bson| {
        let index = index.as_document()?;
        Some(index.get_document("spec").unwrap_or(index).get_str("name").ok()?.to_owned())
    };
    Ok(listed.get_document("cursor")?.get_array("firstBatch")?.iter().filter_map(name).collect())
}

async fn has(set: &ReplicaSet, index: &str) -> Result<bool> {
    Ok(indexes(set).await?.iter().any(|name| name == index))
}

fn index(name: &str) -> Document {
    doc! { "createIndexes": "c", "indexes": [{ "key": { name: 1 }, "name": name }] }
}

async fn filled(name: &str) -> Result<Bed> {
    let bed = Bed::start(name).await?;
    bed.write(insert((0..50).map(|id| rawdoc! { "_id": id, "n": id }))).await?;
    Ok(bed)
}

impl Refused for mongodb::error::Error {}

/// What an error says.
trait Refused: std::fmt::Display {
    fn says(&self, words: &str) -> Result<()> {
        ensure!(self.to_string().contains(words), "{self}");
        Ok(())
    }
}

/// The same as a change through the proxy; it must be refused.
async fn refused(bed: &Bed, command: Document, words: &str) -> Result<()> {
    let shown = command.to_string();
    bed.shop().run_command(command).await.err().with_context(|| format!("{shown} is done"))?.says(words)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_waits_for_an_index_that_is_being_built() -> Result<()> {
    let bed = filled("ddl-before").await?;
    bed.operator.create(&["shop.c"]).await?;
    let hang = |mode: &str| doc! { "configureFailPoint": "hangAfterSettingUpIndexBuild", "mode": mode };
    bed.old.fail_point(hang("alwaysOn")).await?;
    let shop = bed.shop();
    let building = async { shop.run_command(index("n")).await.context("the build") };
    let meanwhile = async {
        wait_for("the build to have begun", LONG, || has(&bed.old, "n")).await?;
        let release = async {
            // Once the start keeps others waiting it has seen the build.
            wait_for("others to be kept waiting", LONG, || async {
                let other = doc! { "collMod": "c", "validationLevel": "off", "maxTimeMS": 100 };
                let other = bed.shop().run_command(other).await;
                Ok(other.is_err_and(|error| error.to_string().contains("is being started")))
            })
            .await?;
            ensure!(bed.operator.engine.get("m").await?.phase == Phase::Created, "it has not waited");
            bed.old.fail_point(hang("off")).await
        };
        let (started, released) = futures::join!(bed.operator.start(), release);
        released?;
        started
    };
    let (built, started) = futures::join!(building, meanwhile);
    started?;
    built?;
    ensure!(has(&bed.new, "n").await?, "the index that was made before is not on new");
    bed.operator.until_synced().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_wait_while_a_migration_is_being_prepared() -> Result<()> {
    let bed = filled("ddl-meanwhile").await?;
    bed.operator.create(&["shop.c"]).await?;
    // A start waits for transactions that began before it, with everything made on new by then.
    let mut session = bed.client.start_session().await?;
    session.start_transaction().await?;
    let elsewhere = bed.client.database("other").collection::<Document>("d");
    elsewhere.insert_one(doc! { "_id": 1 }).session(&mut session).await?;
    let meanwhile = async {
        wait_for("the collection to be made on new", LONG, || async {
            let names = Bed::on(&bed.new).await?.list_collection_names().await?;
            let phase = bed.operator.engine.get("m").await?.phase;
            Ok(phase == Phase::Preparing && names.iter().any(|name| name == "c"))
        })
        .await?;
        let mut hasty = index("hasty");
        hasty.insert("maxTimeMS", 300);
        refused(&bed, hasty, "is being started").await?;
        refused(&bed, doc! { "dropIndexes": "c", "index": "*", "maxTimeMS": 300 }, "is being started")
            .await?;
        ensure!(!has(&bed.old, "hasty").await?, "it was done on old");
        // Other collections are nobody's business.
        bed.client.database("other").run_command(doc! { "create": "e" }).await?;
        bed.client.database("other").run_command(doc! { "drop": "e" }).await?;
        let shop = bed.shop();
        let (made, committed) = futures::join!(async { shop.run_command(index("patient")).await }, async {
            session.commit_transaction().await
        });
        committed?;
        made.context("it waits for the start and is done then")
    };
    let (started, made) = futures::join!(bed.operator.start(), meanwhile);
    made?;
    started?;
    ensure!(has(&bed.old, "patient").await? && has(&bed.new, "patient").await?, "not on both");
    bed.operator.until_synced().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_started_nor_aborted_keeps_changes_waiting_over_a_restart() -> Result<()> {
    let bed = filled("ddl-restart").await?;
    bed.operator.create(&["shop.c"]).await?;
    // As a process leaves it that dies in the middle of a start.
    let stored = bed.old.client().await?.database("reshard").collection::<Document>("migrations");
    let preparing = doc! { "$set": { "phase": "preparing" } };
    ensure!(stored.update_one(doc! { "_id": "m" }, preparing).await?.matched_count == 1);
    let (old, new) = (bed.old.uri(), bed.new.uri());
    bed.proxy.shutdown().await;
    let proxy = support::proxy(&old, Some(&new)).await?;
    let operator = support::Operator::of(&proxy, "m");
    operator.ready().await?;
    let shop = mongodb::Client::with_uri_str(support::uri(&proxy)).await?.database("shop");
    let mut hasty = index("n");
    hasty.insert("maxTimeMS", 300);
    let error = shop.run_command(hasty).await.err().context("it would be on old alone")?;
    ensure!(!has(&bed.old, "n").await?, "{error}");
    operator.engine.abort(&me(), "m").await?;
    shop.run_command(index("n")).await.context("nothing moves any more")?;
    proxy.shutdown().await;
    Ok(())
}

/// New takes each change and old refuses it; nothing is left on new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_cluster_refuses_is_taken_back_on_the_other() -> Result<()> {
    let bed = filled("ddl-undone").await?;
    bed.move_begins().await?;
    let (old, new) = (Bed::on(&bed.old).await?, Bed::on(&bed.new).await?);
    old.run_command(doc! { "createIndexes": "c", "indexes": [{ "key": { "other": 1 }, "name": "clash" }] })
        .await?;
    let mut both = index("clash");
    both.get_array_mut("indexes")?.push(doc! { "key": { "b": 1 }, "name": "b" }.into());
    refused(&bed, both, "same name").await?;
    ensure!(!has(&bed.new, "clash").await? && !has(&bed.new, "b").await?, "left on new");
    let ttl = doc! { "createIndexes": "c", "indexes": [{ "key": { "t": 1 }, "name": "t", "expireAfterSeconds": 9 }] };
    bed.shop().run_command(ttl).await?;
    for name in ["gone", "hidden"] {
        bed.shop().run_command(index(name)).await?;
    }
    bed.shop().run_command(index("by-its-old-name")).await?;
    bed.shop().run_command(doc! { "deleteIndexes": "c", "index": "by-its-old-name" }).await?;
    ensure!(!has(&bed.old, "by-its-old-name").await? && !has(&bed.new, "by-its-old-name").await?);
    for name in ["gone", "t"] {
        old.run_command(doc! { "dropIndexes": "c", "index": name }).await?;
        refused(&bed, doc! { "dropIndexes": "c", "index": name }, "not found").await?;
        ensure!(has(&bed.new, name).await?, "{name} is not made again");
    }
    let listed = new.run_command(doc! { "listIndexes": "c" }).await?.to_string();
    ensure!(listed.contains("2147483647"), "its expiry is not suspended: {listed}");
    // A failure of old alone.
    let fails = doc! {
        "configureFailPoint": "failCommand", "mode": { "times": 1 },
        "data": { "failCommands": ["collMod"], "errorCode": 96 },
    };
    for change in [
        doc! { "collMod": "c", "validator": { "n": { "$gte": 0 } }, "validationAction": "warn" },
        doc! { "collMod": "c", "index": { "name": "hidden", "hidden": true } },
    ] {
        bed.old.fail_point(fails.clone()).await?;
        let error = bed.shop().run_command(change).await.err().context("old refuses it")?;
        error.says("Failing command")?;
    }
    let options = new.run_command(doc! { "listCollections": 1 }).await?.to_string();
    ensure!(!options.contains("$gte") && !options.contains("warn"), "{options}");
    let listed = new.run_command(doc! { "listIndexes": "c" }).await?.to_string();
    ensure!(!listed.contains("\"hidden\": true"), "{listed}");
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_needs_both_clusters_and_what_is_there_needs_none() -> Result<()> {
    let bed = filled("ddl-away").await?;
    bed.shop().run_command(index("n")).await?;
    let ttl = doc! { "createIndexes": "c", "indexes": [{ "key": { "t": 1 }, "name": "t", "expireAfterSeconds": 9 }] };
    bed.shop().run_command(ttl.clone()).await?;
    bed.move_begins().await?;
    // What new lacks of it is made there.
    Bed::on(&bed.new).await?.run_command(doc! { "dropIndexes": "c", "index": "n" }).await?;
    bed.shop().run_command(index("n")).await?;
    ensure!(has(&bed.new, "n").await?, "not made on new");
    bed.new.kill9_all().await?;
    // As applications do at each start.
    bed.shop().run_command(index("n")).await.context("an index that is there")?;
    bed.shop().run_command(ttl).await.context("a TTL index that is there")?;
    refused(&bed, index("more"), "nothing has changed").await?;
    refused(&bed, doc! { "dropIndexes": "c", "index": "n" }, "nothing has changed").await?;
    refused(&bed, doc! { "collMod": "c", "validator": { "n": 1 } }, "nothing has changed").await?;
    let mut longer = doc! { "collMod": "c" };
    longer.insert("index", doc! { "name": "t", "expireAfterSeconds": 99 });
    ensure!(bed.shop().run_command(longer).await.is_err(), "done on old alone");
    ensure!(!has(&bed.old, "more").await? && has(&bed.old, "n").await?, "done on old alone");
    bed.new.start_all().await?;
    wait_for("new to take it", LONG, || async { Ok(bed.shop().run_command(index("more")).await.is_ok()) })
        .await?;
    ensure!(has(&bed.old, "more").await? && has(&bed.new, "more").await?, "not on both");
    bed.operator.until_synced().await?;
    bed.operator.engine.abort(&me(), "m").await?;
    let put_back = wait_for("the time to live to be put back as it was", LONG, || async {
        let listed = Bed::on(&bed.old).await?.run_command(doc! { "listIndexes": "c" }).await?;
        Ok(listed.to_string().contains("\"expireAfterSeconds\": 9 "))
    });
    put_back.await?;
    bed.proxy.shutdown().await;
    Ok(())
}
