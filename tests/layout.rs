//! How collections are laid out on a sharded new, and what may be done to them through the proxy meanwhile.

mod support;

use anyhow::{Context as _, Result, ensure};
use bson::{Bson, Document, doc};
use mongodb::Client;
use reshard::app::Proxy;
use reshard::migration::control::{Control as _, Finding, NamespaceSpec, Severity, Zone};
use reshard::policy::shard_key::ShardKey;
use reshard_testbed::{ReplicaSet, ShardedCluster, wait_for};
use support::{LONG, Operator, me, proxy, uri};

/// A replica set as old, so many shards as new, and a proxy between them.
struct Bed {
    _old: ReplicaSet,
    new: ShardedCluster,
    proxy: Proxy,
}

impl Bed {
    async fn start(name: &str, shards: usize) -> Result<Self> {
        let (old, new) = tokio::try_join!(
            ReplicaSet::builder(name).start(),
            ShardedCluster::builder().shards(shards).start()
        )?;
        // What is tested is where the copy laid things, not where the balancer would take them.
        new.balancer(false).await?;
        let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
        Ok(Self { _old: old, new, proxy })
    }

    async fn fill(&self, collection: &str, documents: impl Iterator<Item = Document>) -> Result<()> {
        let through = Client::with_uri_str(uri(&self.proxy)).await?.database("shop").collection(collection);
        through.insert_many(documents).await?;
        Ok(())
    }

    async fn begin(&self, name: &str, specs: Vec<NamespaceSpec>) -> Result<Operator> {
        let operator = Operator::of(&self.proxy, name);
        operator.create_as(specs).await?;
        operator.start().await?;
        operator.until_synced().await?;
        Ok(operator)
    }

    /// How many documents that match lie on each shard, asked past the router.
    async fn on_shards(&self, collection: &str, filter: Document) -> Result<Vec<u64>> {
        let mut counts = Vec::new();
        for shard in self.new.shards() {
            let found = shard.client().await?.database("shop").collection::<Document>(collection);
            counts.push(found.count_documents(filter.clone()).await?);
        }
        Ok(counts)
    }

    /// No shard has more than 1.3 times what it would have if all had the same.
    async fn is_balanced(&self, collection: &str) -> Result<()> {
        let counts = self.on_shards(collection, doc! {}).await?;
        let mean = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
        ensure!(mean > 0.0, "{collection} has no documents");
        ensure!(counts.iter().all(|count| *count as f64 <= 1.3 * mean), "{collection}: {counts:?}");
        Ok(())
    }
}

fn by(namespace: &str, key: Document) -> Result<NamespaceSpec> {
    let shard_key = Some(ShardKey::parse(&key).map_err(anyhow::Error::msg)?);
    Ok(NamespaceSpec { shard_key, ..NamespaceSpec::plain(namespace) })
}

fn zone(name: &str, min: Document, max: Document, shards: &[&str]) -> Zone {
    Zone { zone: name.into(), min, max, shards: shards.iter().map(|name| (*name).to_owned()).collect() }
}

/// All of a region, for a key of two fields.
fn region(name: &str, second: &str, shards: &[&str]) -> Zone {
    let bound = |end: Bson| doc! { "region": name, second: end };
    zone(name, bound(Bson::MinKey), bound(Bson::MaxKey), shards)
}

async fn refusals(operator: &Operator) -> Result<Vec<Finding>> {
    let findings = operator.engine.preflight(&operator.name).await?.findings;
    Ok(findings.into_iter().filter(|finding| finding.severity == Severity::Refused).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_land_in_their_zones_and_an_abort_takes_the_zones_back() -> Result<()> {
    let bed = Bed::start("layout-zones", 3).await?;
    let names: Vec<&str> = bed.new.shards().iter().map(ReplicaSet::name).collect();
    let region_of =
        |n: i32| ["asia", "eu", "us"].into_iter().cycle().nth(usize::try_from(n % 3).unwrap_or(0));
    let order = |n: i32| doc! { "_id": n, "region": region_of(n), "order_id": n };
    bed.fill("orders", (0..3000).map(order)).await?;
    bed.fill("hashed", (0..3000).map(order)).await?;
    let before = bed.new.run("config", doc! { "find": "tags" }).await?;
    let zones = |second| vec![region("eu", second, &names[..1]), region("us", second, &names[1..])];
    let ranged = NamespaceSpec {
        zones: zones("order_id"),
        initial_chunks: Some(9),
        ..by("shop.orders", doc! { "region": 1, "order_id": 1 })?
    };
    let hashed =
        NamespaceSpec { zones: zones("_id"), ..by("shop.hashed", doc! { "region": 1, "_id": "hashed" })? };
    let operator = bed.begin("m", vec![ranged, hashed]).await?;
    for name in ["orders", "hashed"] {
        let eu = bed.on_shards(name, doc! { "region": "eu" }).await?;
        ensure!(eu == [1000, 0, 0], "{name}: eu lies on {eu:?}");
        let us = bed.on_shards(name, doc! { "region": "us" }).await?;
        ensure!(us[0] == 0 && us[1] > 300 && us[2] > 300, "{name}: us lies on {us:?}");
        bed.is_balanced(name).await?;
    }
    operator.engine.abort(&me(), &operator.name).await?;
    wait_for("the zones to be taken back", LONG, || async {
        let shards = bed.new.admin(doc! { "listShards": 1 }).await?;
        let tagged = shards
            .get_array("shards")?
            .iter()
            .filter_map(Bson::as_document)
            .any(|shard| shard.get_array("tags").is_ok_and(|tags| !tags.is_empty()));
        let ranges = bed.new.run("config", doc! { "find": "tags" }).await?;
        let batch = |reply: &Document| {
            reply.get_document("cursor").and_then(|it| it.get_array("firstBatch").cloned())
        };
        Ok(!tagged && batch(&ranges)? == batch(&before)?)
    })
    .await?;
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_shard_ends_with_much_more_than_the_others() -> Result<()> {
    let bed = Bed::start("layout-balance", 3).await?;
    // One customer has a third of all, and a few have most of the rest.
    let customer = |n: i32| if n % 3 == 0 { 0 } else { (n % 1000).isqrt() };
    let order = |n: i32| doc! { "_id": n, "customer_id": customer(n), "order_id": n, "one": 1 };
    let cases = [
        ("ascending", doc! { "_id": 1 }),
        ("customers", doc! { "customer_id": 1, "order_id": 1 }),
        ("hashed", doc! { "_id": "hashed" }),
        ("one_value", doc! { "one": 1, "_id": "hashed" }),
    ];
    for (name, key) in cases {
        bed.fill(name, (0..6000).map(order)).await?;
        bed.begin(name, vec![by(&format!("shop.{name}"), key)?]).await?;
        bed.is_balanced(name).await?;
    }
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_sharded_goes_to_the_shard_with_the_least_data() -> Result<()> {
    let bed = Bed::start("layout-primary", 2).await?;
    let (full, free) = (0, bed.new.shard(1).name().to_owned());
    bed.new.enable_sharding("other", full).await?;
    for number in 0..20 {
        bed.new.run("other", doc! { "insert": format!("c{number}"), "documents": [{ "_id": 1 }] }).await?;
    }
    bed.fill("plain", (0..10).map(|n| doc! { "_id": n })).await?;
    let operator = Operator::of(&bed.proxy, "m");
    operator.create(&["shop.plain"]).await?;
    let report = operator.engine.preflight("m").await?;
    let finding = report.findings.iter().find(|finding| finding.code == "target-not-sharded");
    let finding = finding.context("nothing is said of the shard")?;
    ensure!(finding.message.contains(&free), "{finding:?}");
    operator.start().await?;
    operator.until_synced().await?;
    let view = operator.engine.get("m").await?;
    let shards: Vec<_> =
        view.placements.iter().map(|it| (&*it.namespace, it.primary_shard.as_deref())).collect();
    ensure!(shards == [("shop.plain", Some(&*free))], "{view:?}");
    ensure!(operator.progress().await?.placements == view.placements);
    ensure!(bed.on_shards("plain", doc! {}).await? == [0, 10]);
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_wrong_with_a_layout_is_told_at_once() -> Result<()> {
    let bed = Bed::start("layout-refused", 2).await?;
    bed.fill("orders", (0..10).map(|n| doc! { "_id": n, "region": "eu", "order_id": n })).await?;
    let key = doc! { "region": 1, "order_id": 1 };
    let zones = vec![
        region("eu", "order_id", &["nowhere"]),
        zone(
            "short",
            doc! { "region": "a" },
            doc! { "order_id": 1, "region": "b" },
            &[bed.new.shard(0).name()],
        ),
    ];
    let operator = Operator::of(&bed.proxy, "wrong");
    operator.create_as(vec![NamespaceSpec { zones, ..by("shop.orders", key.clone())? }]).await?;
    let found = refusals(&operator).await?;
    for part in ["no shard \"nowhere\"", "min lacks order_id", "in its order"] {
        ensure!(found.iter().any(|finding| finding.message.contains(part)), "{part}: {found:#?}");
    }
    ensure!(found.iter().all(|finding| finding.code == "zones" && !finding.remedy.is_empty()), "{found:#?}");
    // What makes no sense on any cluster is not even made known.
    let create = async |spec: NamespaceSpec| {
        let operator = Operator::of(&bed.proxy, "senseless");
        operator.create_as(vec![spec]).await.expect_err("it makes no sense").to_string()
    };
    let plain = || NamespaceSpec::plain("shop.other");
    let without = create(NamespaceSpec { initial_chunks: Some(4), ..plain() }).await;
    ensure!(without.contains("initial_chunks needs shard_key"), "{without}");
    let zones = vec![region("eu", "order_id", &["s"])];
    let without = create(NamespaceSpec { zones, ..plain() }).await;
    ensure!(without.contains("zones needs shard_key"), "{without}");
    let none = create(NamespaceSpec { initial_chunks: Some(0), ..by("shop.other", key)? }).await;
    ensure!(none.contains("use 1 to"), "{none}");
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lays_a_collection_out_anew_is_refused_and_chunks_may_move() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ShardedCluster::builder().shards(2).start(),
        ReplicaSet::builder("layout-ddl").start()
    )?;
    old.balancer(false).await?;
    old.enable_sharding("shop", 0).await?;
    old.enable_sharding("sharded", 0).await?;
    for namespace in ["shop.orders", "sharded.orders"] {
        old.shard_collection(namespace, doc! { "_id": 1 }).await?;
    }
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let client = Client::with_uri_str(uri(&proxy)).await?;
    for (database, collection) in
        [("shop", "orders"), ("shop", "plain"), ("sharded", "orders"), ("free", "c")]
    {
        let into = client.database(database).collection(collection);
        into.insert_many((0..20).map(|n| doc! { "_id": n })).await?;
    }
    let operator = Operator::of(&proxy, "m");
    operator.create(&["shop.orders", "shop.plain", "sharded.orders"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    let run = async |command: Document| client.database("admin").run_command(command).await;
    let shard = |index: usize| old.shard(index).name().to_owned();
    for refused in [
        doc! { "movePrimary": "shop", "to": shard(1) },
        doc! { "reshardCollection": "shop.orders", "key": { "a": 1 } },
        doc! { "refineCollectionShardKey": "shop.orders", "key": { "_id": 1, "a": 1 } },
        doc! { "shardCollection": "shop.plain", "key": { "_id": 1 } },
        doc! { "renameCollection": "free.c", "to": "shop.plain", "dropTarget": true },
    ] {
        let error = run(refused.clone()).await.expect_err("it lays the collection out anew").to_string();
        ensure!(error.contains("migration m"), "{refused}: {error}");
    }
    for passes in [
        doc! { "split": "shop.orders", "middle": { "_id": 10 } },
        doc! { "moveChunk": "shop.orders", "find": { "_id": 15 }, "to": shard(1), "_waitForDelete": true },
        doc! { "moveChunk": "shop.orders", "find": { "_id": 15 }, "to": shard(0), "_waitForDelete": true },
        doc! { "mergeChunks": "shop.orders", "bounds": [{ "_id": Bson::MinKey }, { "_id": Bson::MaxKey }] },
        doc! { "balancerStatus": 1 },
        // All that it has of this migration is sharded, and stays where it is.
        doc! { "movePrimary": "sharded", "to": shard(1) },
        doc! { "movePrimary": "free", "to": shard(1) },
    ] {
        run(passes.clone()).await.with_context(|| passes.to_string())?;
    }
    operator.until_level().await?;
    ensure!(operator.progress().await?.conflicts == 0);
    proxy.shutdown().await;
    Ok(())
}
