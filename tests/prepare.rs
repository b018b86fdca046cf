//! Making new like old, and taking it back, on real servers.

mod common;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};
use bson::{Bson, Document, doc};
use common::{Dying, Looking, Pair, run};
use reshard::cluster::command::{Commands, SharedCluster};
use reshard::migration::catalog::describe;
use reshard::migration::preflight::preflight;
use reshard::migration::prepare::{Created, Wanted, drop_created, plan, prepare, restore_ttl};
use reshard::model::namespace::Namespace;
use reshard::model::side::PerSide;
use reshard::policy::catalog::{Collection, SUSPENDED};
use reshard_testbed::Version;

async fn seen(cluster: &dyn Commands, name: &str) -> Result<Option<Collection>> {
    Ok(describe(cluster, &Namespace::new("shop", name), Duration::from_secs(10)).await?)
}

async fn is_there(cluster: &dyn Commands, name: &str) -> Result<Collection> {
    seen(cluster, name).await?.context("a collection")
}

/// Indexes by name, without what differs by nature.
fn plain(collection: &Collection) -> Vec<Document> {
    let mut specs: Vec<Document> = collection.indexes.iter().map(|index| index.spec.clone()).collect();
    for spec in &mut specs {
        // An integer that is set comes back as a long.
        if let Some(Bson::Int32(seconds)) = spec.get("expireAfterSeconds").cloned() {
            spec.insert("expireAfterSeconds", i64::from(seconds));
        }
    }
    specs.sort_by_key(|spec| spec.get_str("name").unwrap_or_default().to_owned());
    specs
}

fn seconds(collection: &Collection, name: &str) -> Option<i64> {
    collection.indexes.iter().find(|index| index.name() == name)?.ttl()
}

async fn prepared(clusters: &PerSide<SharedCluster>, names: &[&str]) -> Result<Vec<Created>> {
    let namespaces: Vec<_> = names.iter().map(|name| Wanted::from(Namespace::new("shop", name))).collect();
    let made = plan(clusters, &namespaces).await.map_err(Error::msg)?;
    prepare(clusters, &made).await.map_err(Error::msg)?;
    Ok(made)
}

fn indexes() -> Vec<Document> {
    vec![
        doc! { "key": { "a": 1, "b": -1 }, "name": "a_1_b_-1" },
        doc! { "key": { "email": 1 }, "name": "email_1", "unique": true, "sparse": true },
        doc! { "key": { "p": 1 }, "name": "p_1", "partialFilterExpression": { "p": { "$gt": 5 } } },
        doc! { "key": { "c": 1 }, "name": "c_1", "collation": { "locale": "de", "strength": 2 } },
        doc! { "key": { "h": 1 }, "name": "h_1", "hidden": true },
        doc! { "key": { "$**": 1 }, "name": "wild", "wildcardProjection": { "x": 1, "y.z": 1 } },
        doc! { "key": { "title": "text", "body": "text" }, "name": "text",
        "weights": { "title": 10, "body": 2 }, "default_language": "german", "language_override": "lang" },
        doc! { "key": { "place": "2dsphere" }, "name": "place", "2dsphereIndexVersion": 2 },
        doc! { "key": { "flat": "2d" }, "name": "flat", "min": -10.0, "max": 10.0, "bits": 20 },
        doc! { "key": { "k": "hashed" }, "name": "k_hashed" },
        doc! { "key": { "old": 1 }, "name": "old_1", "v": 1 },
        doc! { "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": 3600 },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn new_is_made_like_old_and_taken_back() -> Result<()> {
    let pair = Pair::start().await?;
    let PerSide { old, new } = &pair.clusters;
    let validator = doc! { "$jsonSchema": { "required": ["a"] } };
    pair.on_old(doc! {
        "create": "full", "validator": validator, "validationLevel": "moderate", "validationAction": "warn",
        "storageEngine": { "wiredTiger": { "configString": "block_compressor=zlib" } },
        "changeStreamPreAndPostImages": { "enabled": true },
    })
    .await?;
    pair.on_old(doc! { "createIndexes": "full", "indexes": indexes() }).await?;
    let order = doc! { "key": { "_id": 1 }, "unique": true, "name": "own order" };
    pair.on_old(doc! { "create": "clustered", "clusteredIndex": order }).await?;
    pair.on_old(doc! { "createIndexes": "clustered", "indexes": [{ "key": { "x": 1 }, "name": "x_1" }] })
        .await?;
    pair.on_old(doc! { "create": "kept" }).await?;
    pair.on_old(doc! { "createIndexes": "kept", "indexes": [{ "key": { "x": 1 }, "name": "x_1" }] }).await?;
    pair.on_new(doc! { "create": "kept" }).await?;
    pair.on_new(doc! { "createIndexes": "kept", "indexes": [{ "key": { "s": 1 }, "name": "s_1" }] }).await?;
    let before = is_there(&**old, "full").await?;
    let made = prepared(&pair.clusters, &["full", "clustered", "kept"]).await?;
    ensure!(made[0].collection_created && made[0].ttl == [("t_1".to_owned(), 3600)], "{made:#?}");
    ensure!(!made[2].collection_created && made[2].indexes_created == ["x_1"], "{made:#?}");
    let stored: Vec<Created> = serde_json::from_str(&serde_json::to_string(&made)?)?;
    ensure!(stored == made);
    // Again, as after a crash.
    prepare(&pair.clusters, &stored).await.map_err(Error::msg)?;
    for name in ["full", "clustered"] {
        let (of_old, of_new) = (is_there(&**old, name).await?, is_there(&**new, name).await?);
        ensure!(of_old.options == of_new.options, "{} {}", of_old.options, of_new.options);
        let mut expected = plain(&of_old);
        for spec in expected.iter_mut().filter(|spec| spec.get_str("name").is_ok_and(|name| name == "old_1"))
        {
            // The version of an index is the server's own affair.
            spec.insert("v", 2);
        }
        ensure!(expected == plain(&of_new), "{expected:#?} {:#?}", plain(&of_new));
    }
    for cluster in [old, new] {
        ensure!(seconds(&is_there(&**cluster, "full").await?, "t_1") == Some(SUSPENDED));
        restore_ttl(cluster, &made).await.map_err(Error::msg)?;
        restore_ttl(cluster, &made).await.map_err(Error::msg)?;
        ensure!(seconds(&is_there(&**cluster, "full").await?, "t_1") == Some(3600));
    }
    ensure!(plain(&is_there(&**old, "full").await?) == plain(&before));
    pair.on_new(doc! { "insert": "full", "documents": [{ "_id": 1, "a": 1 }] }).await?;
    for _ in 0..2 {
        drop_created(new, &made).await.map_err(Error::msg)?;
        ensure!(seen(&**new, "full").await?.is_none() && seen(&**new, "clustered").await?.is_none());
        let names: Vec<_> =
            is_there(&**new, "kept").await?.indexes.iter().map(|it| it.name().to_owned()).collect();
        ensure!(names == ["_id_", "s_1"], "{names:?}");
    }
    restore_ttl(new, &made).await.map_err(Error::msg)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_any_two_steps_is_made_up_for() -> Result<()> {
    let pair = Pair::start().await?;
    pair.on_old(doc! { "create": "c", "validator": { "a": 1 } }).await?;
    pair.on_old(doc! { "createIndexes": "c", "indexes": indexes() }).await?;
    let namespaces = [Wanted::from(Namespace::new("shop", "c"))];
    let dying = |cluster: &SharedCluster, left: &Arc<AtomicUsize>| -> SharedCluster {
        Arc::new(Dying { cluster: cluster.clone(), left: left.clone() })
    };
    let mut crashes = 0;
    loop {
        let made = plan(&pair.clusters, &namespaces).await.map_err(Error::msg)?;
        ensure!(
            made[0].collection_created && made[0].ttl == [("t_1".to_owned(), 3600)],
            "{crashes}: {made:#?}"
        );
        let left = Arc::new(AtomicUsize::new(crashes));
        let weak = PerSide { old: dying(&pair.clusters.old, &left), new: dying(&pair.clusters.new, &left) };
        let finished = prepare(&weak, &made).await.is_ok();
        prepare(&pair.clusters, &made).await.map_err(Error::msg)?;
        for cluster in [&pair.clusters.old, &pair.clusters.new] {
            let now = is_there(&**cluster, "c").await?;
            ensure!(now.indexes.len() == indexes().len() + 1 && seconds(&now, "t_1") == Some(SUSPENDED));
        }
        drop_created(&pair.clusters.new, &made).await.map_err(Error::msg)?;
        restore_ttl(&pair.clusters.old, &made).await.map_err(Error::msg)?;
        if finished {
            break;
        }
        crashes += 1;
    }
    ensure!(crashes == 4, "create, createIndexes and two collMods: {crashes}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_meanwhile_is_not_overwritten() -> Result<()> {
    let pair = Pair::start().await?;
    for name in ["options", "index"] {
        pair.on_old(doc! { "create": name }).await?;
        pair.on_old(doc! { "createIndexes": name, "indexes": [{ "key": { "x": 1 }, "name": "x_1" }] })
            .await?;
    }
    let namespace = |name: &str| [Wanted::from(Namespace::new("shop", name))];
    let made = plan(&pair.clusters, &namespace("options")).await.map_err(Error::msg)?;
    pair.on_new(doc! { "create": "options", "capped": true, "size": 1000 }).await?;
    let error = prepare(&pair.clusters, &made).await.unwrap_err();
    ensure!(error.contains("other options"), "{error}");
    let made = plan(&pair.clusters, &namespace("index")).await.map_err(Error::msg)?;
    pair.on_new(doc! { "createIndexes": "index", "indexes": [{ "key": { "y": 1 }, "name": "x_1" }] }).await?;
    let error = prepare(&pair.clusters, &made).await.unwrap_err();
    ensure!(error.contains("x_1"), "{error}");
    let missing = plan(&pair.clusters, &namespace("nothing")).await.unwrap_err();
    ensure!(missing.contains("does not exist on old"), "{missing}");
    run(&*pair.clusters.old, "shop", &doc! { "ping": 1 }).await?;
    Ok(())
}

/// From the oldest server to the newest there is, and back.
#[tokio::test(flavor = "multi_thread")]
async fn other_versions() -> Result<()> {
    for (of_old, of_new) in
        [(Version::V4_2, Version::V6_0), (Version::V4_4, Version::V5_0), (Version::V5_0, Version::V4_4)]
    {
        let pair = Pair::of_versions(of_old, of_new).await?;
        pair.on_old(doc! { "create": "c", "validator": { "a": { "$gt": 0 } } }).await?;
        let known = |spec: &Document| of_old != Version::V4_2 || !spec.contains_key("hidden");
        let indexes: Vec<_> = indexes().into_iter().filter(known).collect();
        pair.on_old(doc! { "createIndexes": "c", "indexes": indexes.clone() }).await?;
        let looking = PerSide { old: Looking::at(&pair.clusters.old), new: Looking::at(&pair.clusters.new) };
        let report = preflight(&looking, &[Namespace::new("shop", "c").into()]).await;
        ensure!(report.ok, "{of_old:?} {of_new:?}: {report:#?}");
        println!(
            "{of_old:?} {of_new:?}: {:?}",
            report.findings.iter().map(|it| &it.message).collect::<Vec<_>>()
        );
        let made = prepared(&pair.clusters, &["c"]).await?;
        prepare(&pair.clusters, &made).await.map_err(Error::msg)?;
        let (old, new) =
            (is_there(&*pair.clusters.old, "c").await?, is_there(&*pair.clusters.new, "c").await?);
        for index in &old.indexes {
            let twin = new.indexes.iter().find(|twin| twin.name() == index.name());
            ensure!(
                twin.is_some_and(|twin| twin.same_as(index)),
                "{of_old:?} {of_new:?}: {index:?} {twin:?}"
            );
        }
        ensure!(seconds(&old, "t_1") == Some(SUSPENDED) && seconds(&new, "t_1") == Some(SUSPENDED));
        let report = preflight(&looking, &[Namespace::new("shop", "c").into()]).await;
        ensure!(report.ok, "kept: {report:#?}");
    }
    Ok(())
}
