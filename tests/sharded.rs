//! Migrations to sharded clusters: real shards, a real engine for routing.

mod support;

use anyhow::{Context as _, Result, bail, ensure};
use bson::{Document, doc};
use mongodb::{Client, Collection};
use reshard::app::Proxy;
use reshard::migration::control::NamespaceSpec;
use reshard::policy::shard_key::ShardKey;
use reshard_loadtest::{KeyFields, Load, LoadConfig, Profile, compare};
use reshard_testbed::{ReplicaSet, ShardedCluster, wait_for};
use support::proof::{load, no_errors, prove_between, work};
use support::{LONG, Operator, proxy, uri};

const NAMESPACE: &str = "shop.orders";

/// A replica set, a sharded cluster, and a proxy between them.
struct Pair {
    old: ReplicaSet,
    new: ShardedCluster,
    proxy: Proxy,
    operator: Operator,
}

impl Pair {
    async fn start(name: &str) -> Result<Self> {
        let (old, new) =
            tokio::try_join!(ReplicaSet::builder(name).start(), ShardedCluster::builder().shards(2).start())?;
        let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
        let operator = Operator::of(&proxy, "m");
        Ok(Self { old, new, proxy, operator })
    }

    async fn orders(&self, uri: &str) -> Result<Collection<Document>> {
        Ok(Client::with_uri_str(uri).await?.database("shop").collection("orders"))
    }

    async fn begin(&self, key: Document) -> Result<()> {
        let shard_key = Some(ShardKey::parse(&key).map_err(anyhow::Error::msg)?);
        self.operator.create_as(vec![NamespaceSpec { shard_key, ..NamespaceSpec::plain(NAMESPACE) }]).await?;
        self.operator.start().await?;
        self.operator.until_synced().await
    }

    /// How many documents lie on each shard, asked past the router.
    async fn on_shards(&self) -> Result<Vec<u64>> {
        let mut counts = Vec::new();
        for shard in self.new.shards() {
            let orders = shard.client().await?.database("shop").collection::<Document>("orders");
            counts.push(orders.count_documents(doc! {}).await?);
        }
        Ok(counts)
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
    // Not hashed: the stand-in of a router cannot hash `_id`s that are documents.
    let pair = Pair::start("sharded-load").await?;
    becomes_sharded_under_load(pair, KeyFields::Id, doc! { "_id": 1 }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_set_becomes_sharded_by_customer_under_load() -> Result<()> {
    let pair = Pair::start("sharded-customer").await?;
    becomes_sharded_under_load(pair, KeyFields::CustomerOrder, doc! { "customer_id": 1, "order_id": 1 }).await
}

async fn becomes_sharded_under_load(pair: Pair, key_fields: KeyFields, key: Document) -> Result<()> {
    let through = uri(&pair.proxy);
    let config = LoadConfig { key_fields, ..load(through.clone(), Profile::Keyed, 20_000) };
    Load::prepare(&config).await?;
    let load = Load::start(config).await?;
    pair.begin(key).await?;
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
    no_errors(&outcome)?;
    pair.operator.until_level().await?;
    prove_between(outcome, &pair.old.uri(), &pair.new.uri(), &through, NAMESPACE).await?;
    pair.operator.complete().await?;
    pair.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_move_between_shards_as_their_key_changes() -> Result<()> {
    let pair = Pair::start("sharded-keys").await?;
    let through = pair.orders(&uri(&pair.proxy)).await?;
    through.insert_many((0..4000).map(order)).await?;
    pair.begin(doc! { "customer_id": 1, "order_id": 1 }).await?;
    let counts = pair.on_shards().await?;
    let mean = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    ensure!(counts.iter().all(|count| (*count as f64) < 1.3 * mean), "unbalanced: {counts:?}");
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
