//! Patterns of names, and collections that come into being while they move.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use bson::{Bson, Document, doc};
use mongodb::{Client, Database};
use reshard::app::Proxy;
use reshard::migration::control::{Control as _, NamespaceSpec, Severity};
use reshard::policy::shard_key::ShardKey;
use reshard_loadtest::compare;
use reshard_testbed::{ReplicaSet, ShardedCluster, Version, wait_for};
use support::process::Server;
use support::{LONG, Operator, me, proxy, two_sets, uri};

/// Two replica sets and a proxy, with `shop.a`, `shop.b` and a collection elsewhere.
struct Bed {
    old: ReplicaSet,
    new: ReplicaSet,
    proxy: Proxy,
    shop: Database,
    operator: Operator,
}

impl Bed {
    async fn start(name: &str) -> Result<Self> {
        let (old, new) = two_sets(name).await?;
        Self::between(old, new).await
    }

    async fn between(old: ReplicaSet, new: ReplicaSet) -> Result<Self> {
        let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
        let client = Client::with_uri_str(uri(&proxy)).await?;
        for (database, collection) in [("shop", "a"), ("shop", "b"), ("elsewhere", "c")] {
            let into = client.database(database).collection(collection);
            into.insert_many((0..50).map(|n| doc! { "_id": n })).await?;
        }
        let operator = Operator::of(&proxy, "m");
        Ok(Self { old, new, shop: client.database("shop"), proxy, operator })
    }

    async fn begin(&self) -> Result<()> {
        self.operator.create(&["shop.*"]).await?;
        self.operator.start().await?;
        self.operator.until_synced().await
    }

    async fn insert(&self, collection: &str, ids: impl Iterator<Item = i32>) -> Result<()> {
        self.shop.collection(collection).insert_many(ids.map(|n| doc! { "_id": n })).await?;
        Ok(())
    }

    /// What is part of the migration.
    async fn parts(&self) -> Result<Vec<String>> {
        let placements = self.operator.engine.get("m").await?.placements;
        let mut names: Vec<String> = placements.into_iter().map(|it| it.namespace).collect();
        names.sort();
        Ok(names)
    }

    /// Waits until so many writes in all are known to have gone past the proxy, and lets moves go on.
    async fn acknowledge_past_the_proxy(&self, writes: u64) -> Result<()> {
        let found = wait_for("the writes past the proxy to be found", LONG, || async {
            Ok(self.operator.progress().await?.bypass_writes_total == writes)
        });
        found
            .await
            .with_context(|| format!("{:?}", futures::executor::block_on(self.operator.progress())))?;
        self.operator.acknowledge().await.map(|_| ())
    }

    async fn equal(&self, collections: &[&str]) -> Result<()> {
        self.operator.until_level().await?;
        for collection in collections {
            equal(&self.old.uri(), &self.new.uri(), &format!("shop.{collection}")).await?;
        }
        Ok(())
    }
}

async fn equal(old: &str, new: &str, namespace: &str) -> Result<()> {
    let last = parking_lot::Mutex::new(String::new());
    let equal = wait_for("both sides to be equal", LONG, || async {
        let comparison = compare(old, new, namespace).await?;
        *last.lock() = comparison.to_string();
        Ok(comparison.is_equal() && comparison.documents_a > 0)
    })
    .await;
    equal.with_context(|| last.into_inner())
}

async fn count(set: &ReplicaSet, collection: &str) -> Result<u64> {
    let found = set.client().await?.database("shop").collection::<Document>(collection);
    Ok(found.count_documents(doc! {}).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pattern_names_moves_with_what_comes_into_being_at_any_percentage() -> Result<()> {
    let bed = Bed::start("newcomers").await?;
    bed.begin().await?;
    ensure!(bed.parts().await? == ["shop.a", "shop.b"], "{:?}", bed.parts().await?);

    bed.insert("implicit", 0..100).await?;
    let validated = doc! { "create": "validated", "validator": { "n": { "$ne": 7 } } };
    bed.shop.run_command(validated).await?;
    let index = doc! { "key": { "n": 1 }, "name": "by_n" };
    bed.shop.run_command(doc! { "createIndexes": "indexed", "indexes": [index] }).await?;
    for collection in ["validated", "indexed"] {
        bed.insert(collection, 0..20).await?;
    }
    let upsert = doc! { "$inc": { "n": 1 } };
    let upserted = bed.shop.collection::<Document>("upserted");
    upserted.update_one(doc! { "_id": "x" }, upsert.clone()).upsert(true).await?;
    upserted.find_one_and_update(doc! { "_id": "x" }, upsert).upsert(true).await?;
    bed.equal(&["implicit", "validated", "indexed", "upserted"]).await?;
    let on_new = bed.new.client().await?.database("shop");
    let wrong = on_new.collection("validated").insert_one(doc! { "_id": "wrong", "n": 7 }).await;
    ensure!(wrong.is_err(), "new has no validator");
    let indexes = on_new.collection::<Document>("indexed").list_index_names().await?;
    ensure!(indexes.contains(&"by_n".to_owned()), "{indexes:?}");

    bed.operator.until_synced().await?;
    bed.operator.reads(100).await?;
    bed.operator.writes(50).await?;
    bed.insert("half", 0..200).await?;
    ensure!(bed.shop.collection::<Document>("half").count_documents(doc! {}).await? == 200);
    bed.equal(&["half", "a"]).await?;
    bed.operator.until_synced().await?;
    bed.operator.writes(100).await?;
    bed.insert("full", 0..200).await?;
    bed.equal(&["full"]).await?;
    bed.operator.rollback().await?;
    bed.equal(&["half", "full"]).await?;
    bed.operator.until_synced().await?;
    bed.operator.reads(100).await?;
    bed.operator.writes(100).await?;
    bed.operator.complete().await?;

    // From now on, what the pattern names is where everything else of it is.
    bed.insert("afterwards", 0..10).await?;
    ensure!((count(&bed.old, "afterwards").await?, count(&bed.new, "afterwards").await?) == (0, 10));
    ensure!(bed.shop.collection::<Document>("afterwards").count_documents(doc! {}).await? == 10);
    bed.shop.collection::<Document>("afterwards").drop().await?;
    ensure!(count(&bed.new, "afterwards").await? == 0);
    bed.operator.engine.drop_old(&me(), "m").await?;
    ensure!(count(&bed.old, "half").await? == 0 && count(&bed.new, "half").await? == 200);
    bed.proxy.shutdown().await;
    Ok(())
}

/// Makes collections through `shop` and fills them, all at once, until told to stop; what was acknowledged.
async fn make_many(shop: Database, stop: Arc<AtomicBool>) -> Result<Vec<(String, i32)>> {
    let mut made = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let name = format!("born_{}", made.len());
        let mut tasks = tokio::task::JoinSet::new();
        for id in 0..4 {
            let into = shop.collection::<Document>(&name);
            tasks.spawn(async move { into.insert_one(doc! { "_id": id }).await });
        }
        let mut acknowledged = 0;
        while let Some(done) = tasks.join_next().await {
            match done? {
                Ok(_) => acknowledged += 1,
                // The proxy is away, or a start or a move takes its time: said so, and worth another try.
                Err(error) if error.to_string().contains("cannot become part") => return Err(error.into()),
                Err(_) => {}
            }
        }
        made.push((name, acknowledged));
        // So many for each second that there is something else to do, too.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    Ok(made)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_born_during_a_start_and_moves_is_not_lost() -> Result<()> {
    let bed = Bed::start("newcomers-race").await?;
    let stop = Arc::new(AtomicBool::new(false));
    let making = tokio::spawn(make_many(bed.shop.clone(), Arc::clone(&stop)));
    bed.begin().await?;
    bed.operator.reads(100).await?;
    bed.operator.writes(40).await?;
    bed.operator.until_synced().await?;
    bed.operator.writes(100).await?;
    bed.operator.rollback().await?;
    stop.store(true, Ordering::Relaxed);
    let made = making.await??;
    ensure!(made.len() > 3, "{made:?}");
    let parts = bed.parts().await?;
    for (name, acknowledged) in &made {
        ensure!(*acknowledged == 4, "{name}: {acknowledged} of 4 inserts were acknowledged");
        ensure!(parts.contains(&format!("shop.{name}")), "{name} is not part of it: {parts:?}");
        bed.equal(&[name]).await?;
        ensure!(count(&bed.old, name).await? == 4, "{name}");
    }
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn born_while_the_proxy_is_killed() -> Result<()> {
    let (old, new) = two_sets("newcomers-killed").await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    let shop = Client::with_uri_str(server.uri()).await?.database("shop");
    shop.collection("a").insert_many((0..50).map(|n| doc! { "_id": n })).await?;
    server.create_and_start_as("m", serde_json::json!({ "namespace": "shop.*" })).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let making = tokio::spawn(make_many(shop.clone(), Arc::clone(&stop)));
    for percent in [0, 50, 100] {
        server.until_free("m").await?;
        if percent > 0 {
            server.percent("m", "reads", 100).await?;
            server.percent("m", "writes", percent).await?;
        }
        server.kill9()?;
        server.restart().await?;
    }
    server.until_free("m").await?;
    stop.store(true, Ordering::Relaxed);
    let made = making.await??;
    ensure!(made.iter().filter(|(_, acknowledged)| *acknowledged == 4).count() > 3, "{made:?}");
    server.until_level("m").await?;
    for (name, acknowledged) in made.iter().filter(|(_, acknowledged)| *acknowledged > 0) {
        let found = shop.collection::<Document>(name).count_documents(doc! {}).await?;
        ensure!(found >= u64::try_from(*acknowledged)?, "{name}: {found} of {acknowledged}");
        equal(&old.uri(), &new.uri(), &format!("shop.{name}")).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_sharded_new_what_is_born_is_sharded_as_the_pattern_says() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ReplicaSet::builder("newcomers-sharded").start(),
        ShardedCluster::builder().shards(2).start()
    )?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let shop = Client::with_uri_str(uri(&proxy)).await?.database("shop");
    shop.collection("orders_1").insert_many((0..50).map(|n| doc! { "_id": n, "customer": n })).await?;
    shop.collection("others").insert_one(doc! { "_id": 1 }).await?;
    let operator = Operator::of(&proxy, "m");
    let shard_key = ShardKey::parse(&doc! { "customer": 1 }).ok();
    let spec = NamespaceSpec { shard_key, ..NamespaceSpec::plain("shop.orders_*") };
    operator.create_as(vec![spec, NamespaceSpec::plain("shop.others")]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    shop.collection("orders_2").insert_many((0..50).map(|n| doc! { "_id": n, "customer": n })).await?;
    let orders = shop.collection::<Document>("orders_2");
    orders.update_one(doc! { "_id": 7 }, doc! { "$set": { "customer": 70 } }).await?;
    operator.until_synced().await?;
    operator.reads(100).await?;
    operator.writes(100).await?;
    orders.update_one(doc! { "_id": 8, "customer": 8 }, doc! { "$set": { "n": 1 } }).await?;
    operator.until_level().await?;
    for name in ["orders_1", "orders_2"] {
        let entry = new.collection_entry(&format!("shop.{name}")).await?;
        ensure!(entry.get_document("key")? == &doc! { "customer": 1 }, "{entry}");
        equal(&old.uri(), &new.uri(), &format!("shop.{name}")).await?;
    }
    // What the pattern does not name is nobody's business.
    shop.collection("free").insert_one(doc! { "_id": 1 }).await?;
    ensure!(
        new.client().await?.database("shop").collection::<Document>("free").count_documents(doc! {}).await?
            == 0
    );
    proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn born_past_the_proxy() -> Result<()> {
    let bed = Bed::start("newcomers-past").await?;
    bed.begin().await?;
    let past = bed.old.client().await?.database("shop");
    past.collection("past").insert_many((0..20).map(|n| doc! { "_id": n })).await?;
    wait_for("it to become part", LONG, || async { Ok(bed.parts().await?.contains(&"shop.past".into())) })
        .await?;
    bed.acknowledge_past_the_proxy(20).await?;
    bed.equal(&["past"]).await?;
    let events = bed.operator.engine.events("m").await?;
    let told = |part: &str| events.iter().any(|event| event.what.contains(part));
    ensure!(told("shop.past has come into being past the proxy"), "{events:?}");
    // Gone before anybody looked at it: nothing is missing.
    past.collection("brief").insert_one(doc! { "_id": 1 }).await?;
    past.collection::<Document>("brief").drop().await?;
    bed.acknowledge_past_the_proxy(21).await?;
    bed.insert("a", 100..110).await?;
    bed.equal(&["a"]).await?;

    past.run_command(doc! { "create": "capped", "capped": true, "size": 10_000 }).await?;
    past.collection("capped").insert_one(doc! { "_id": 1 }).await?;
    wait_for("everybody to see that it stands in the way", LONG, || async {
        let progress = bed.operator.progress().await?;
        let seen = |events: &[reshard::migration::control::AuditEvent]| {
            events.iter().any(|event| event.what.contains("shop.capped") && event.result.contains("capped"))
        };
        let blocked =
            progress.blocked_by.iter().any(|why| why.contains("shop.capped was made past the proxy"));
        Ok(blocked && !progress.can_cut_over && seen(&bed.operator.engine.events("m").await?))
    })
    .await?;
    let refused = bed.insert("capped", 5..6).await.expect_err("it cannot move").to_string();
    ensure!(refused.contains("cannot become part of migration m") && refused.contains("capped"), "{refused}");
    bed.shop.collection::<Document>("capped").drop().await?;
    bed.acknowledge_past_the_proxy(22).await?;
    bed.operator.until_synced().await?;
    bed.insert("a", 200..210).await?;
    bed.equal(&["a"]).await?;
    // What shows in no stream is looked for before the end.
    bed.operator.reads(100).await?;
    bed.operator.writes(100).await?;
    past.run_command(doc! { "create": "empty" }).await?;
    let left = bed.operator.complete().await.expect_err("something is left behind").to_string();
    ensure!(left.contains("shop.empty"), "{left}");
    past.collection::<Document>("empty").drop().await?;
    bed.operator.complete().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_become_part_is_refused() -> Result<()> {
    let bed = Bed::start("newcomers-refused").await?;
    bed.begin().await?;
    let admin = bed.shop.client().database("admin");
    let merge = vec![doc! { "$merge": { "into": { "db": "shop", "coll": "merged" } } }];
    for (database, command) in [
        (&bed.shop, doc! { "create": "v", "viewOn": "a", "pipeline": [] }),
        (&bed.shop, doc! { "create": "v", "capped": true, "size": 4096 }),
        (&bed.shop, doc! { "create": "v", "collation": { "locale": "de" } }),
        (&bed.shop, doc! { "aggregate": "a", "pipeline": [{ "$out": "v" }], "cursor": {} }),
        (&bed.shop, doc! { "dropDatabase": 1 }),
        (&admin, doc! { "renameCollection": "elsewhere.c", "to": "shop.v" }),
        (
            &bed.shop.client().database("elsewhere"),
            doc! { "aggregate": "c", "pipeline": merge, "cursor": {} },
        ),
    ] {
        let error = database.run_command(command.clone()).await.expect_err("refused").to_string();
        ensure!(error.contains("migration m"), "{command}: {error}");
    }
    // A driver runs a transaction again that has met a collection in the making.
    let mut session = bed.shop.client().start_session().await?;
    session.start_transaction().await?;
    let within = bed.shop.create_collection("within").session(&mut session).await;
    let within = within.expect_err("nobody outside would see it").to_string();
    ensure!(within.contains("outside of a transaction"), "{within}");
    session.abort_transaction().await?;
    for attempt in 0.. {
        session.start_transaction().await?;
        let into = bed.shop.collection("transacted");
        let inserted = into.insert_one(doc! { "_id": 1 }).session(&mut session).await;
        match inserted {
            Ok(_) => break,
            Err(error) if error.contains_label("TransientTransactionError") && attempt < 10 => {
                session.abort_transaction().await?;
            }
            Err(error) => bail!("{error}"),
        }
    }
    session.commit_transaction().await?;
    bed.equal(&["transacted"]).await?;
    let names = bed.old.client().await?.database("shop").list_collection_names().await?;
    ensure!(!names.contains(&"v".into()) && !names.contains(&"merged".into()), "{names:?}");
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patterns_are_checked_and_what_they_name_is_told() -> Result<()> {
    let bed = Bed::start("newcomers-checked").await?;
    for bad in ["*.*", "config.*", "sh*p.c", "reshard.*"] {
        let refused = Operator::of(&bed.proxy, "bad").create(&[bad]).await.expect_err("bad").to_string();
        ensure!(refused.contains(bad), "{bad}: {refused}");
    }
    bed.operator.create(&["shop.*"]).await?;
    for taken in ["shop.a", "shop.x*"] {
        let refused =
            Operator::of(&bed.proxy, "twice").create(&[taken]).await.expect_err("taken").to_string();
        ensure!(refused.contains("shop.* is already part of migration m"), "{refused}");
    }
    bed.shop.run_command(doc! { "create": "view", "viewOn": "a", "pipeline": [] }).await?;
    let report = bed.operator.engine.preflight("m").await?;
    let of = |severity: Severity| report.findings.iter().filter(move |finding| finding.severity == severity);
    let refused: Vec<_> = of(Severity::Refused).map(|it| (&*it.code, &*it.namespace)).collect();
    ensure!(refused == [("shown-by-view", "shop.a"), ("view", "shop.view")], "{report:#?}");
    ensure!(
        of(Severity::Info).any(|it| it.code == "pattern" && it.message.contains("shop.a, shop.b")),
        "{report:#?}"
    );
    let empty = Operator::of(&bed.proxy, "empty");
    empty.create(&["nothing.*"]).await?;
    let report = empty.engine.preflight("empty").await?;
    ensure!(!report.ok && report.findings.iter().any(|it| it.code == "no-namespaces"), "{report:#?}");
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_old_knows_patterns_too() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ReplicaSet::builder("newcomers-older").version(Version::V4_4).start(),
        ReplicaSet::builder("newcomers-newer").start()
    )?;
    let bed = Bed::between(old, new).await?;
    bed.begin().await?;
    bed.insert("through", 0..20).await?;
    bed.old.client().await?.database("shop").collection("past").insert_one(doc! { "_id": 1 }).await?;
    wait_for("it to become part", LONG, || async { Ok(bed.parts().await?.contains(&"shop.past".into())) })
        .await?;
    bed.equal(&["through", "past"]).await?;
    bed.proxy.shutdown().await;
    Ok(())
}

/// A start that fails half-way must not keep applications from making collections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn born_while_a_start_is_cut_short() -> Result<()> {
    let bed = Bed::start("newcomers-short").await?;
    bed.operator.create(&["shop.*"]).await?;
    let fail = doc! { "failCommands": ["collStats"], "errorCode": 8 };
    let point = doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": fail };
    bed.old.fail_point(point).await?;
    ensure!(bed.operator.start().await.is_err(), "the copy could be cut into ranges");
    bed.insert("early", 0..20).await?;
    ensure!(count(&bed.old, "early").await? == 20 && count(&bed.new, "early").await? == 0);
    bed.old.fail_point(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await?;
    bed.insert("early", 20..30).await?;
    bed.operator.start().await?;
    bed.operator.until_synced().await?;
    bed.insert("early", 30..40).await?;
    bed.equal(&["a", "early"]).await?;
    ensure!(count(&bed.new, "early").await? == 40);
    bed.proxy.shutdown().await;
    Ok(())
}

/// Both records must name it before anybody may write to it, or a successor would not know where it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_before_both_records_name_it() -> Result<()> {
    let bed = Bed::start("newcomers-records").await?;
    bed.begin().await?;
    bed.new.node(0).pause().await?;
    let wait = doc! { "insert": "late", "documents": [{ "_id": 1 }], "maxTimeMS": 2000 };
    let refused = bed.shop.run_command(wait).await.expect_err("new does not answer").to_string();
    ensure!(refused.contains("shop.late is not part of migration m yet"), "{refused}");
    let named = async |set: &ReplicaSet| -> Result<Vec<Bson>> {
        let records = set.client().await?.database("reshard").collection::<Document>("authority");
        let record = records.find_one(doc! { "_id": "m" }).await?.context("a record")?;
        Ok(record.get_array("namespaces")?.clone())
    };
    bed.new.node(0).resume().await?;
    bed.insert("late", 2..10).await?;
    for set in [&bed.old, &bed.new] {
        ensure!(named(set).await?.contains(&"shop.late".into()), "{:?}", named(set).await?);
    }
    bed.equal(&["late"]).await?;
    bed.proxy.shutdown().await;
    Ok(())
}
