//! Migrations to sharded clusters: real shards, a real engine for routing.

mod lost;
#[path = "../support/mod.rs"]
mod support;
mod table;

use anyhow::{Context as _, Result, bail, ensure};
use bson::{Document, doc};
use mongodb::{Client, Collection};
use reshard::app::Proxy;
use reshard::migration::control::{Control as _, NamespaceSpec, Plan, Severity};
use reshard::policy::shard_key::ShardKey;
use reshard_loadtest::{KeyFields, Load, LoadConfig, Mix, OpKind, Profile, compare};
use reshard_testbed::{ReplicaSet, ShardedCluster, Version, wait_for};
use support::process::Server;
use support::proof::{load, no_errors, prove_between, work};
use support::{LONG, Operator, me, proxy, uri};

const NAMESPACE: &str = "shop.orders";

/// One of the two clusters.
enum Cluster {
    Set(ReplicaSet),
    Sharded(Box<ShardedCluster>),
}

impl Cluster {
    fn uri(&self) -> String {
        match self {
            Self::Set(set) => set.uri(),
            Self::Sharded(cluster) => cluster.uri(),
        }
    }

    /// How many documents lie on each shard, asked past the router.
    async fn on_shards(&self) -> Result<Vec<u64>> {
        let Self::Sharded(cluster) = self else { bail!("it has no shards") };
        let mut counts = Vec::new();
        for shard in cluster.shards() {
            let orders = shard.client().await?.database("shop").collection::<Document>("orders");
            counts.push(orders.count_documents(doc! {}).await?);
        }
        Ok(counts)
    }
}

async fn set(name: &str) -> Result<Cluster> {
    ReplicaSet::builder(name).start().await.map(Cluster::Set)
}

async fn shards() -> Result<Cluster> {
    ShardedCluster::builder().shards(2).start().await.map(|cluster| Cluster::Sharded(Box::new(cluster)))
}

/// Two clusters, and a proxy between them.
struct Pair {
    old: Cluster,
    new: Cluster,
    proxy: Proxy,
    operator: Operator,
}

impl Pair {
    async fn between(old: Cluster, new: Cluster) -> Result<Self> {
        let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
        let operator = Operator::of(&proxy, "m");
        Ok(Self { old, new, proxy, operator })
    }

    async fn orders(&self, uri: &str) -> Result<Collection<Document>> {
        Ok(Client::with_uri_str(uri).await?.database("shop").collection("orders"))
    }

    async fn begin(&self, key: impl Into<Option<Document>>) -> Result<()> {
        let shard_key =
            key.into().map(|key| ShardKey::parse(&key)).transpose().map_err(anyhow::Error::msg)?;
        self.operator.create_as(vec![NamespaceSpec { shard_key, ..NamespaceSpec::plain(NAMESPACE) }]).await?;
        self.operator.start().await?;
        self.operator.until_synced().await
    }

    /// Hands a chunk of each cluster to shard `to`.
    async fn stir(&self, to: usize) -> Result<()> {
        for cluster in [&self.old, &self.new] {
            let Cluster::Sharded(cluster) = cluster else { continue };
            cluster.move_chunk(NAMESPACE, doc! { "_id": bson::Bson::MinKey }, to, true).await?;
        }
        Ok(())
    }

    async fn equal(&self) -> Result<()> {
        self.operator.until_level().await?;
        let last = parking_lot::Mutex::new(String::new());
        let equal = wait_for("both sides to be equal", LONG, || async {
            let comparison = compare(&self.old.uri(), &self.new.uri(), NAMESPACE).await?;
            *last.lock() = comparison.to_string();
            Ok(comparison.is_equal())
        })
        .await;
        if let Err(why) = equal {
            bail!("{why:#} {} {:?}", last.into_inner(), self.operator.progress().await?);
        }
        Ok(())
    }
}

fn order(id: i32) -> Document {
    doc! { "_id": id, "customer_id": id % 37, "order_id": id, "n": 0 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_set_becomes_sharded_under_load() -> Result<()> {
    let (old, new) = tokio::try_join!(set("sharded-load"), shards())?;
    // Not hashed: the stand-in of a router cannot hash `_id`s that are documents.
    up_back_up_and_complete(Pair::between(old, new).await?, KeyFields::Id, doc! { "_id": 1 }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sharded_cluster_becomes_another_under_load() -> Result<()> {
    let (old, new) = tokio::try_join!(shards(), shards())?;
    shard_old(&old).await?;
    up_back_up_and_complete(Pair::between(old, new).await?, KeyFields::Id, doc! { "_id": 1 }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_set_of_an_older_version_becomes_sharded_by_customer_under_load() -> Result<()> {
    let old = ReplicaSet::builder("sharded-customer").version(Version::V4_4).start();
    let (old, new) = tokio::try_join!(old, shards())?;
    let pair = Pair::between(Cluster::Set(old), new).await?;
    up_back_up_and_complete(pair, KeyFields::CustomerOrder, doc! { "customer_id": 1, "order_id": 1 }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sharded_cluster_gets_another_key_under_load() -> Result<()> {
    let (old, new) = tokio::try_join!(shards(), shards())?;
    if let Cluster::Sharded(cluster) = &old {
        cluster.admin(doc! { "enableSharding": "shop" }).await?;
        cluster.shard_collection(NAMESPACE, doc! { "order_id": "hashed" }).await?;
    }
    let pair = Pair::between(old, new).await?;
    up_back_up_and_complete(pair, KeyFields::CustomerOrder, doc! { "customer_id": 1, "order_id": 1 }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sharded_cluster_becomes_a_replica_set_under_load() -> Result<()> {
    let (old, new) = tokio::try_join!(shards(), set("sharded-to-set"))?;
    shard_old(&old).await?;
    up_back_up_and_complete(Pair::between(old, new).await?, KeyFields::Id, None).await
}

/// Shards the empty collection on old by `_id`: the load's numbers lie on one shard, its texts and the like
/// on the other.
async fn shard_old(old: &Cluster) -> Result<()> {
    let Cluster::Sharded(cluster) = old else { bail!("it has no shards") };
    cluster.admin(doc! { "enableSharding": "shop" }).await?;
    cluster.shard_collection(NAMESPACE, doc! { "_id": 1 }).await?;
    cluster.split(NAMESPACE, doc! { "_id": "" }).await?;
    for (index, min) in [doc! { "_id": bson::Bson::MinKey }, doc! { "_id": "" }].into_iter().enumerate() {
        cluster.move_chunk(NAMESPACE, min, index, true).await?;
    }
    Ok(())
}

async fn up_back_up_and_complete(
    pair: Pair,
    key_fields: KeyFields,
    key: impl Into<Option<Document>>,
) -> Result<()> {
    let through = uri(&pair.proxy);
    let config = LoadConfig { key_fields, ..load(through.clone(), Profile::Keyed, 20_000) };
    Load::prepare(&config).await?;
    let load = Load::start(config).await?;
    pair.begin(key).await?;
    for cluster in [&pair.old, &pair.new] {
        if let Ok(counts) = cluster.on_shards().await {
            ensure!(counts.iter().all(|count| *count > 0), "a shard lies idle: {counts:?}");
        }
    }
    pair.operator.reads(50).await?;
    work(&load, 300).await?;
    pair.operator.reads(100).await?;
    for percent in [5, 50, 100] {
        pair.operator.writes(percent).await?;
        work(&load, 300).await?;
    }
    pair.operator.rollback().await?;
    work(&load, 300).await?;
    pair.operator.reads(100).await?;
    pair.operator.writes(100).await?;
    work(&load, 300).await?;
    let outcome = load.stop().await;
    no_errors(&outcome.stats.errors)?;
    pair.operator.until_level().await?;
    pair.operator.found_none_past_the_proxy().await?;
    prove_between(outcome, &pair.old.uri(), &pair.new.uri(), &through, NAMESPACE).await?;
    pair.operator.complete().await?;
    pair.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_every_phase_with_shards_on_both_sides() -> Result<()> {
    let (old, new) = tokio::try_join!(shards(), shards())?;
    shard_old(&old).await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let config = load(server.uri(), Profile::Keyed, 10_000);
    Load::prepare(&config).await?;
    let load = Load::start(config).await?;
    let kill_and_restart = async || {
        work(&load, 50).await?;
        server.kill9()?;
        server.restart().await?;
        work(&load, 50).await
    };
    let spec = serde_json::json!({ "namespace": NAMESPACE, "shard_key": { "_id": 1 } });
    server.create_and_start_as("m", spec).await?;
    kill_and_restart().await?;
    server.until_free("m").await?;
    server.percent("m", "reads", 100).await?;
    kill_and_restart().await?;
    server.until_free("m").await?;
    server.percent("m", "writes", 40).await?;
    kill_and_restart().await?;
    server.until_free("m").await?;
    server.percent("m", "writes", 100).await?;
    kill_and_restart().await?;
    server.until_free("m").await?;
    server.insist("POST", "/v1/migrations/m/rollback", None).await?;
    let outcome = load.stop().await;
    server.until_level("m").await?;
    prove_between(outcome, &old.uri(), &new.uri(), &server.uri(), NAMESPACE).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_move_on_both_sides_while_everything_goes_on() -> Result<()> {
    let (old, new) = tokio::try_join!(shards(), shards())?;
    shard_old(&old).await?;
    let pair = Pair::between(old, new).await?;
    let through = uri(&pair.proxy);
    // An update of many documents misses some while their chunk moves: MongoDB promises no more (measured).
    let many = [OpKind::UpdateMany, OpKind::DeleteMany, OpKind::HotUpdateMany, OpKind::Bulk];
    let mix = many.into_iter().fold(Mix::of(Profile::Keyed), |mix, kind| mix.with(kind, 0));
    let config = LoadConfig { mix: Some(mix), ..load(through.clone(), Profile::Keyed, 5_000) };
    Load::prepare(&config).await?;
    let load = Load::start(config).await?;
    let key = Some(ShardKey::parse(&doc! { "_id": 1 }).map_err(anyhow::Error::msg)?);
    let spec = NamespaceSpec { shard_key: key, ..NamespaceSpec::plain(NAMESPACE) };
    pair.operator.create_as(vec![spec]).await?;
    pair.operator.start().await?;
    pair.stir(1).await?;
    pair.operator.until_synced().await?;
    pair.operator.reads(100).await?;
    pair.stir(0).await?;
    work(&load, 200).await?;
    pair.operator.until_synced().await?;
    pair.operator.writes(50).await?;
    pair.stir(1).await?;
    work(&load, 200).await?;
    pair.operator.until_synced().await?;
    pair.operator.writes(100).await?;
    pair.stir(0).await?;
    work(&load, 200).await?;
    let outcome = load.stop().await;
    no_errors(&outcome.stats.errors)?;
    pair.operator.until_level().await?;
    pair.operator.found_none_past_the_proxy().await?;
    prove_between(outcome, &pair.old.uri(), &pair.new.uri(), &through, NAMESPACE).await?;
    pair.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_sharded_is_refused_before_anything_is_done() -> Result<()> {
    let (old, new) = tokio::try_join!(shards(), shards())?;
    shard_old(&old).await?;
    let pair = Pair::between(old, new).await?;
    let refusals = async |name: &str, spec: NamespaceSpec| {
        let operator = Operator { name: name.into(), engine: pair.operator.engine.clone() };
        operator.create_as(vec![spec]).await?;
        let report = operator.engine.preflight(name).await?;
        let refused = report.findings.into_iter().filter(|finding| finding.severity == Severity::Refused);
        anyhow::Ok(refused.map(|finding| finding.code).collect::<Vec<_>>())
    };
    let by = |namespace: &str, key: Document| NamespaceSpec {
        shard_key: ShardKey::parse(&key).ok(),
        ..NamespaceSpec::plain(namespace)
    };
    let Cluster::Sharded(old) = &pair.old else { bail!("old has shards") };
    let Cluster::Sharded(new) = &pair.new else { bail!("new has shards") };
    old.shard_collection("shop.twice", doc! { "a": 1 }).await?;
    old.split("shop.twice", doc! { "a": 5 }).await?;
    old.move_chunk("shop.twice", doc! { "a": 5 }, 1, true).await?;
    old.move_chunk("shop.twice", doc! { "a": bson::Bson::MinKey }, 0, true).await?;
    let shop = old.client().await?.database("shop");
    shop.collection("twice").insert_many([doc! { "_id": 1, "a": 1 }, doc! { "_id": 1, "a": 9 }]).await?;
    let unique = doc! { "key": { "email": 1 }, "name": "email", "unique": true };
    for name in ["unique", "fits"] {
        shop.collection(name).insert_one(doc! { "_id": 1, "email": "x" }).await?;
        shop.run_command(doc! { "createIndexes": name, "indexes": [unique.clone()] }).await?;
    }
    shop.collection("other").insert_one(doc! { "_id": 1 }).await?;
    new.admin(doc! { "enableSharding": "shop" }).await?;
    new.shard_collection("shop.other", doc! { "b": 1 }).await?;

    let cases = [
        ("twice", by("shop.twice", doc! { "_id": 1 }), "duplicate-ids"),
        ("unique", by("shop.unique", doc! { "customer_id": 1 }), "unique-index-and-shard-key"),
        ("other", by("shop.other", doc! { "c": 1 }), "shard-key-differs"),
    ];
    for (name, spec, expected) in cases {
        let refused = refusals(name, spec).await?;
        ensure!(refused == [expected], "{name}: {refused:?}, not {expected}");
    }
    ensure!(refusals("fits", by("shop.fits", doc! { "email": 1 })).await?.is_empty());
    // The oplogs of shards are out of reach: a plan that asks for them would hold for ever.
    let start = async |plan| pair.operator.engine.start_plan(&me(), "fits", plan).await;
    let refused = start(Plan::default()).await.expect_err("it cannot see the oplogs");
    ensure!(refused.code == "oplog-unreadable", "{refused:?}");
    let both = "min_oplog_window_seconds and max_secondary_lag_seconds to 0";
    ensure!(refused.detail.contains(both), "{refused:?}");
    let one = Plan { min_oplog_window_seconds: 0.0, ..Plan::default() };
    let refused = start(one.clone()).await.expect_err("it cannot see the secondaries");
    ensure!(refused.detail.contains("set max_secondary_lag_seconds to 0"), "{refused:?}");
    let without = Plan { max_secondary_lag_seconds: 0.0, ..one };
    ensure!(start(without).await.is_ok());
    pair.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_of_a_sharded_mirror_are_aimed_where_the_write_says_where() -> Result<()> {
    const WRITES: i32 = 20;
    let (old, new) = tokio::try_join!(set("sharded-aims"), shards())?;
    let pair = Pair::between(old, new).await?;
    let through = pair.orders(&uri(&pair.proxy)).await?;
    through.insert_many((0..1000).map(order)).await?;
    pair.begin(doc! { "customer_id": 1, "order_id": 1 }).await?;
    pair.operator.reads(100).await?;
    let add = doc! { "$inc": { "n": 1 } };
    let counts = || async {
        let now = pair.operator.progress().await?;
        anyhow::Ok((now.targeted_reads, now.broadcast_reads))
    };
    let (targeted, _) = counts().await?;
    for id in 0..WRITES {
        let whole = doc! { "_id": id, "customer_id": id % 37, "order_id": id };
        through.update_one(whole, add.clone()).await?;
    }
    let (aimed, broadcast) = counts().await?;
    ensure!(aimed >= targeted + u64::try_from(WRITES)?, "{targeted} targeted reads before, {aimed} after");
    for id in 0..WRITES {
        through.update_one(doc! { "_id": id }, add.clone()).await?;
    }
    let (unaimed, asked_all) = counts().await?;
    ensure!(unaimed == aimed, "{aimed} targeted reads before, {unaimed} after");
    ensure!(
        asked_all >= broadcast + u64::try_from(WRITES)?,
        "{broadcast} broadcast reads before, {asked_all} after"
    );
    // What moved between shards on the mirror since is found although it is looked for where it was.
    let Cluster::Sharded(new) = &pair.new else { bail!("it has no shards") };
    let moved = doc! { "_id": 5, "customer_id": 5, "order_id": 5 };
    for customer in [36, 5, 20] {
        through.update_one(doc! { "_id": 5 }, doc! { "$set": { "customer_id": customer } }).await?;
        through.update_one(doc! { "_id": 5 }, add.clone()).await?;
    }
    ensure!(through.update_one(moved, add).await?.matched_count == 0);
    let found = new.client().await?.database("shop").collection::<Document>("orders");
    ensure!(found.count_documents(doc! { "_id": 5 }).await? == 1);
    pair.equal().await?;
    ensure!(pair.operator.progress().await?.conflicts == 0);
    pair.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_move_between_shards_as_their_key_changes() -> Result<()> {
    let (old, new) = tokio::try_join!(set("sharded-keys"), shards())?;
    if let Cluster::Sharded(cluster) = &new {
        // Whichever shard has the database, the parts are handed out evenly.
        cluster.enable_sharding("shop", 1).await?;
    }
    let pair = Pair::between(old, new).await?;
    let through = pair.orders(&uri(&pair.proxy)).await?;
    through.insert_many((0..4000).map(order)).await?;
    pair.begin(doc! { "customer_id": 1, "order_id": 1 }).await?;
    let counts = pair.new.on_shards().await?;
    let mean = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    ensure!(counts.iter().all(|count| (*count as f64) < 1.15 * mean), "unbalanced: {counts:?}");
    pair.equal().await?;

    // Whatever an application may do while old decides, with filters that only name the _id.
    through
        .update_many(
            doc! { "_id": { "$lt": 500 } },
            vec![doc! { "$set": { "customer_id": { "$subtract": [36, "$customer_id"] } } }],
        )
        .await?;
    for id in 500..540 {
        through
            .replace_one(doc! { "_id": id }, doc! { "customer_id": 36 - id % 37, "order_id": -id, "n": 1 })
            .await?;
        through.delete_one(doc! { "_id": id + 100 }).await?;
        through.update_one(doc! { "_id": id + 200 }, doc! { "$unset": { "customer_id": "" } }).await?;
        through
            .update_one(doc! { "_id": id + 300 }, doc! { "$set": { "order_id": format!("o-{id}") } })
            .await?;
        through
            .update_one(doc! { "_id": format!("new-{id}") }, doc! { "$set": { "customer_id": id } })
            .upsert(true)
            .await?;
    }
    // Deleted and inserted again, elsewhere.
    for id in 900..940 {
        through.delete_one(doc! { "_id": id }).await?;
        through.insert_one(doc! { "_id": id, "customer_id": (id + 19) % 37, "order_id": id }).await?;
    }
    pair.equal().await?;
    pair.operator.until_synced().await?;
    pair.operator.reads(100).await?;
    for id in 1000..1020 {
        through.update_one(doc! { "_id": id }, doc! { "$inc": { "customer_id": 17 } }).await?;
        let read = through.find_one(doc! { "_id": id }).await?.context("a document")?;
        ensure!(read.get_i32("customer_id")? == id % 37 + 17, "a stale read: {read}");
    }
    pair.operator.writes(100).await?;
    for id in 2000..2020 {
        let whole = doc! { "_id": id, "customer_id": id % 37, "order_id": id };
        through.update_one(whole, doc! { "$set": { "customer_id": 36 - id % 37, "n": 5 } }).await?;
        through.delete_one(doc! { "_id": id + 100 }).await?;
    }
    pair.operator.rollback().await?;
    pair.equal().await?;
    ensure!(pair.operator.progress().await?.conflicts == 0);
    pair.proxy.shutdown().await;
    Ok(())
}
