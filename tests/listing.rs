//! What there is, told as if by one cluster while two have a part of it.

mod support;

use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc};
use futures::TryStreamExt as _;
use mongodb::{Client, Database};
use reshard::migration::control::Control as _;
use support::{Operator, me, proxy, two_sets, uri};

async fn names(database: &Database) -> Result<Vec<String>> {
    let mut names = database.list_collection_names().await?;
    names.sort();
    Ok(names)
}

/// The UUID of a collection, by what `database` says.
async fn uuid_of(database: &Database, name: &str) -> Result<bson::Uuid> {
    let mut listed = database.list_collections().filter(doc! { "name": name }).batch_size(1).await?;
    let listed = listed.try_next().await?.with_context(|| format!("{name} is not listed"))?;
    Ok(listed.info.uuid.context("a UUID")?.to_uuid()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_moved_is_listed_by_the_cluster_that_serves_it() -> Result<()> {
    let (old, new) = two_sets("listing").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let client = Client::with_uri_str(uri(&proxy)).await?;
    let (shop, gone) = (client.database("shop"), client.database("gone"));
    for database in [&shop, &gone] {
        for name in ["moved", "other"] {
            if database.name() == "shop" || name == "moved" {
                database.collection(name).insert_one(doc! { "_id": 1 }).await?;
            }
        }
    }
    let operator = Operator::of(&proxy, "listing");
    operator.create(&["shop.moved", "gone.moved"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    let (on_old, on_new) = (old.client().await?.database("shop"), new.client().await?.database("shop"));
    ensure!(uuid_of(&shop, "moved").await? == uuid_of(&on_old, "moved").await?, "old serves it");
    operator.reads(100).await?;
    operator.writes(100).await?;
    ensure!(uuid_of(&shop, "moved").await? == uuid_of(&on_new, "moved").await?, "new serves it");
    ensure!(uuid_of(&shop, "other").await? == uuid_of(&on_old, "other").await?, "old serves it");
    ensure!(names(&shop).await? == ["moved", "other"]);

    operator.complete().await?;
    operator.engine.drop_old(&me(), "listing").await?;
    ensure!(names(&on_old).await? == ["other"], "old has dropped what has moved");
    ensure!(names(&shop).await? == ["moved", "other"]);
    ensure!(names(&gone).await? == ["moved"], "old has nothing of it");
    let databases = client.list_database_names().await?;
    ensure!(databases.iter().filter(|name| *name == "shop").count() == 1, "{databases:?}");
    ensure!(databases.contains(&"gone".to_owned()), "{databases:?}");
    let sizes = client.list_databases().await?;
    ensure!(sizes.iter().any(|it| it.name == "gone" && it.size_on_disk > 0 && !it.empty), "{sizes:?}");

    // A server's refusal is shown as it is.
    let bad: Result<Document, _> =
        shop.run_command(doc! { "listCollections": 1, "filter": { "name": { "$bad": 1 } } }).await;
    let direct = on_old.run_command(doc! { "listCollections": 1, "filter": { "name": { "$bad": 1 } } }).await;
    let told = |refused: mongodb::error::Error| match *refused.kind {
        mongodb::error::ErrorKind::Command(error) => Some((error.code, error.message)),
        _ => None,
    };
    let (bad, direct) = (told(bad.err().context("taken")?), told(direct.err().context("taken")?));
    ensure!(bad.is_some() && bad == direct, "{bad:?} {direct:?}");

    // That a primary steps down is no client's business, whatever it asks for.
    let plain = Client::with_uri_str(format!("{}?retryReads=false", uri(&proxy))).await?;
    for (set, code) in [(&old, 91), (&new, 11602), (&new, 10107)] {
        for command in ["listCollections", "listDatabases"] {
            let data = doc! { "failCommands": [command], "errorCode": code };
            let mode = doc! { "times": 1 };
            set.fail_point(doc! { "configureFailPoint": "failCommand", "mode": mode, "data": data }).await?;
        }
        ensure!(names(&plain.database("shop")).await? == ["moved", "other"]);
        ensure!(plain.list_database_names().await?.contains(&"gone".to_owned()));
    }
    proxy.shutdown().await;
    Ok(())
}
