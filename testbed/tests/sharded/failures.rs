//! What dies and comes back.

use std::path::Path;
use std::time::{Duration, Instant};

use bson::{Document, doc};
use reshard_testbed::{ShardedCluster, Version, wait_for};

use crate::support::{PATIENCE, Shop};

#[tokio::test]
async fn a_shard_is_killed_and_comes_back() {
    let shop = Shop::open_quick().await;
    shop.fill(0, 100).await;
    let orders = shop.orders();
    let mut stream = orders.watch().max_await_time(Duration::from_millis(300)).await.unwrap();
    orders.insert_one(doc! {"_id": "f1", "order_id": 1001}).await.unwrap();
    let seen = async |stream: &mut mongodb::change_stream::ChangeStream<_>, id: &str| {
        let begin = Instant::now();
        loop {
            assert!(begin.elapsed() < PATIENCE, "{id} not seen");
            let event: Option<mongodb::change_stream::event::ChangeStreamEvent<Document>> =
                stream.next_if_any().await.unwrap();
            if event.is_some_and(|event| event.document_key.unwrap().get("_id") == Some(&id.into())) {
                return;
            }
        }
    };
    seen(&mut stream, "f1").await;
    shop.cluster.shard(1).kill9_all().await.unwrap();
    shop.cluster.shard(1).start_all().await.unwrap();
    wait_for("all documents", PATIENCE, || async { Ok(orders.count_documents(doc! {}).await? == 101) })
        .await
        .unwrap();
    orders.insert_one(doc! {"_id": "f2", "order_id": 1002}).await.unwrap();
    seen(&mut stream, "f2").await;
}

/// A write that a failover interrupts takes effect once, and the client sees no error.
#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_over_a_change_of_primary() {
    let shop = Shop::open_with(|builder| builder.shards(1).nodes(3)).await;
    let orders = shop.orders();
    orders.insert_one(doc! {"_id": 0, "order_id": 0, "n": 0}).await.unwrap();
    let writer = {
        let orders = orders.clone();
        tokio::spawn(async move {
            let begin = Instant::now();
            let mut written = 0;
            while begin.elapsed() < Duration::from_secs(6) {
                orders.update_one(doc! {"order_id": 0}, doc! {"$inc": {"n": 1}}).await.unwrap();
                written += 1;
            }
            written
        })
    };
    let shard = shop.cluster.shard(0);
    shard.stepdown().await.unwrap();
    let primary = shard.primary().await.unwrap();
    shard.node(primary).kill9().await.unwrap();
    shard.primary().await.unwrap();
    shard.node(primary).start().await.unwrap();
    let written: i32 = writer.await.unwrap();
    let found = orders.find_one(doc! {"order_id": 0}).await.unwrap().unwrap();
    // What a killed primary acknowledged alone may be lost, so writes wait for a majority: the default.
    assert_eq!(found.get_i32("n").unwrap(), written);
}

/// Shards would acknowledge on their own what names no write concern.
#[tokio::test]
async fn writes_wait_for_a_majority() {
    let shop = Shop::open_with(|builder| builder.shards(1).nodes(3).election_timeout_ms(60_000)).await;
    let (orders, shard) = (shop.orders(), shop.cluster.shard(0));
    orders.insert_one(doc! {"_id": 0, "order_id": 0}).await.unwrap();
    let primary = shard.primary().await.unwrap();
    let secondaries: Vec<_> = (0..3).filter(|node| *node != primary).map(|node| shard.node(node)).collect();
    for node in &secondaries {
        node.pause().await.unwrap();
    }
    let (add, database) = (doc! {"$inc": {"n": 1}}, shop.client.database("shop"));
    let insert = doc! {"insert": "orders", "documents": [{"_id": 1, "order_id": 1}]};
    let unnumbered = tokio::spawn(async move { database.run_command(insert).await.map(drop) });
    let (by_key, by_engine, modified) = (orders.clone(), orders.clone(), orders.clone());
    let (filter, update) = (doc! {"order_id": 0}, add.clone());
    let by_key = tokio::spawn(async move { by_key.update_one(filter, update).await.map(drop) });
    let (filter, update) = (doc! {"_id": 0}, add.clone());
    let by_engine = tokio::spawn(async move { by_engine.update_many(filter, update).await.map(drop) });
    let modified =
        tokio::spawn(async move { modified.find_one_and_update(doc! {"order_id": 0}, add).await.map(drop) });
    let writes = [unnumbered, by_key, by_engine, modified];
    let direct =
        shard.node(primary).client().await.unwrap().database("shop").collection::<Document>("orders");
    wait_for("all writes to be done on the primary", PATIENCE, || async {
        let done = direct
            .find_one(doc! {"_id": 0})
            .await?
            .is_some_and(|order| order.get("n") == Some(&bson::Bson::Int32(3)));
        Ok(done && direct.find_one(doc! {"_id": 1}).await?.is_some())
    })
    .await
    .unwrap();
    // For what must not happen there is no other sign than time.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(writes.iter().all(|write| !write.is_finished()));
    for node in &secondaries {
        node.resume().await.unwrap();
    }
    for write in writes {
        write.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_router_is_killed_and_comes_back() {
    let shop = Shop::open().await;
    shop.fill(0, 10).await;
    let (uri, router) = (shop.cluster.uri(), shop.cluster.router());
    router.kill().await.unwrap();
    assert!(!router.is_running());
    shop.cluster.admin(doc! {"ping": 1}).await.unwrap_err();
    router.start().await.unwrap();
    assert_eq!(shop.cluster.uri(), uri);
    assert_eq!(shop.orders().count_documents(doc! {}).await.unwrap(), 10);
    // The engine's death costs no shard, and what one shard does alone goes on.
    let Some(engine) = router.engine() else { return };
    engine.kill9_all().await.unwrap();
    let write = shop.orders().update_one(doc! {"order_id": 1}, doc! {"$set": {"x": 1}}).await;
    assert_eq!(write.unwrap().modified_count, 1);
    engine.start_all().await.unwrap();
    wait_for("the router to work again", PATIENCE, || async {
        Ok(shop.orders().count_documents(doc! {}).await? == 10
            && shop.orders().find_one(doc! {}).await?.is_some())
    })
    .await
    .unwrap();
}

/// The router has a runtime of its own, so a test that blocks does not block it.
#[tokio::test]
async fn the_router_answers_while_the_test_blocks() {
    let cluster = ShardedCluster::builder().start().await.unwrap();
    let uri = cluster.uri();
    let asked = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = mongodb::Client::with_uri_str(uri).await.unwrap();
            client.database("shop").collection("orders").insert_one(doc! {"_id": 1}).await.unwrap();
        });
    });
    asked.join().unwrap();
}

#[tokio::test]
async fn servers_are_gone_after_drop() {
    let begin = Instant::now();
    let cluster = ShardedCluster::builder().start().await.unwrap();
    eprintln!("two shards up in {:?}", begin.elapsed());
    assert!(cluster.cpu_seconds() > 0.0);
    let mut pids = Vec::new();
    for set in cluster.shards().iter().chain([cluster.config()]).chain(cluster.router().engine()) {
        pids.extend(set.nodes().iter().filter_map(|node| node.pid()));
    }
    assert!(pids.len() >= 3);
    let folder = cluster.shard(0).node(0).log_path().parent().unwrap().to_path_buf();
    let address = cluster.router().address().to_owned();
    drop(cluster);
    assert!(!pids.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists()));
    assert!(!folder.exists());
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    if std::env::var_os("RESHARD_MONGOS").is_some() {
        return;
    }
    let error = ShardedCluster::builder().version(Version::V5_0).start().await.unwrap_err();
    assert!(format!("{error:#}").contains("$RESHARD_MONGOS"), "{error:#}");
    let error = ShardedCluster::builder().param("noSuchParameter", "1").start().await.unwrap_err();
    assert!(format!("{error:#}").contains("noSuchParameter"), "{error:#}");
}
