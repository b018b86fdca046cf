//! Databases, collections, indexes, chunks.

use std::time::{Duration, Instant};

use bson::{Bson, Document, doc};
use futures::TryStreamExt;

use crate::support::{Shop, code};

#[tokio::test]
async fn collections_and_indexes() {
    let shop = Shop::open().await;
    shop.fill(0, 300).await;
    let database = shop.client.database("shop");
    let index = doc! {"key": {"customer_id": 1, "order_id": 1}, "name": "co"};
    shop.run(doc! {"createIndexes": "orders", "indexes": [index]}).await.unwrap();
    let names = shop.orders().list_index_names().await.unwrap();
    assert!(["_id_", "order_id_hashed", "co"].iter().all(|name| names.contains(&(*name).to_owned())));
    for shard in 0..2 {
        let names = shop.on_shard(shard, "orders").await.list_index_names().await.unwrap();
        assert!(names.contains(&String::from("co")));
    }
    shop.orders().drop_index("co").await.unwrap();
    assert!(!shop.orders().list_index_names().await.unwrap().contains(&String::from("co")));
    let unique = doc! {"key": {"customer_id": 1}, "name": "u", "unique": true};
    assert_eq!(code(shop.run(doc! {"createIndexes": "orders", "indexes": [unique]}).await), 67);

    shop.run(doc! {"create": "plain", "validator": {"a": {"$type": "int"}}}).await.unwrap();
    assert_eq!(code(shop.collection("plain").insert_one(doc! {"a": "s"}).await), 121);
    shop.run(doc! {"collMod": "plain", "validationLevel": "off"}).await.unwrap();
    shop.collection("plain").insert_one(doc! {"a": "s"}).await.unwrap();
    let names = database.list_collection_names().await.unwrap();
    assert!(names.contains(&String::from("orders")) && names.contains(&String::from("plain")));
    let rename = doc! {"renameCollection": "shop.plain", "to": "shop.plain2"};
    shop.admin(rename).await.unwrap();
    assert!(database.list_collection_names().await.unwrap().contains(&String::from("plain2")));
    shop.collection("plain2").drop().await.unwrap();
    assert!(!database.list_collection_names().await.unwrap().contains(&String::from("plain2")));

    shop.client.database("other").collection("x").insert_one(doc! {"a": 1}).await.unwrap();
    let names = shop.client.list_database_names().await.unwrap();
    assert!(["shop", "admin", "config", "other"].iter().all(|name| names.contains(&(*name).to_owned())));
    assert!(!names.contains(&String::from("local")));
    shop.client.database("other").drop().await.unwrap();
    assert!(!shop.client.list_database_names().await.unwrap().contains(&String::from("other")));

    let stats = shop.run(doc! {"collStats": "orders"}).await.unwrap();
    assert!(stats.get_bool("sharded").unwrap());
    assert_eq!((stats.get_i32("count").unwrap(), stats.get_document("shards").unwrap().len()), (300, 2));
    assert!(shop.run(doc! {"dbStats": 1}).await.unwrap().get_i32("collections").unwrap() >= 2);
    let chunks = shop.client.database("config").collection::<Document>("chunks");
    assert_eq!(chunks.count_documents(doc! {}).await.unwrap(), 4);
    assert!(shop.run(doc! {"validate": "orders"}).await.unwrap().get_bool("valid").unwrap());
}

#[tokio::test]
async fn chunks_are_split_and_moved() {
    let shop = Shop::open().await;
    let cluster = &shop.cluster;
    let ranged = shop.collection("ranged");
    cluster.shard_collection("shop.ranged", doc! {"k": 1}).await.unwrap();
    ranged.insert_many((0..100).map(|k| doc! {"_id": k, "k": k})).await.unwrap();
    let first = shop.owners("ranged", 0).await[0];
    let other = 1 - first;
    cluster.split("shop.ranged", doc! {"k": 50}).await.unwrap();
    cluster.move_chunk("shop.ranged", doc! {"k": 50}, other, true).await.unwrap();
    assert_eq!(
        (shop.owners("ranged", 49).await, shop.owners("ranged", 50).await),
        (vec![first], vec![other])
    );
    assert_eq!(ranged.count_documents(doc! {}).await.unwrap(), 100);
    ranged.update_one(doc! {"k": 60}, doc! {"$set": {"x": 1}}).await.unwrap();
    ranged.find_one_and_update(doc! {"k": 61}, doc! {"$set": {"x": 1}}).await.unwrap().unwrap();
    // Without waiting, the documents stay behind as orphans, and only direct readers see them.
    cluster.move_chunk("shop.ranged", doc! {"k": 50}, first, false).await.unwrap();
    assert_eq!(ranged.count_documents(doc! {}).await.unwrap(), 100);
    assert_eq!(ranged.find(doc! {}).await.unwrap().try_collect::<Vec<_>>().await.unwrap().len(), 100);
    assert_eq!(shop.owners("ranged", 60).await.len(), 2);
    shop.admin(doc! {"split": "shop.ranged", "find": {"k": 10}}).await.unwrap();
    cluster.balancer(true).await.unwrap();
    cluster.balancer(false).await.unwrap();
    let status = shop.admin(doc! {"balancerStatus": 1}).await.unwrap();
    assert_eq!(status.get_str("mode").unwrap(), "off");
}

/// Every write takes effect once, by the shard key and by _id, and the stream tells of each once.
#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_while_chunks_move() {
    const KEYS: i32 = 40;
    let shop = Shop::open_quick().await;
    shop.cluster.shard_collection("shop.busy", doc! {"k": 1}).await.unwrap();
    shop.cluster.split("shop.busy", doc! {"k": KEYS / 2}).await.unwrap();
    let busy = shop.collection("busy");
    busy.insert_many((0..KEYS).map(|k| doc! {"_id": k, "k": k, "n": 0})).await.unwrap();
    let mut stream = busy.watch().await.unwrap();
    let end = Instant::now() + Duration::from_secs(6);
    let writers = (0..3).map(|writer| {
        let busy = busy.clone();
        tokio::spawn(async move {
            let mut written = 0;
            while Instant::now() < end {
                let k = (written * 7 + writer) % KEYS;
                let add = doc! {"$inc": {"n": 1}};
                let changed = match writer {
                    0 => busy.update_one(doc! {"k": k}, add).await.unwrap().modified_count,
                    1 => busy.update_one(doc! {"_id": k}, add).await.unwrap().modified_count,
                    _ => u64::from(busy.find_one_and_update(doc! {"k": k}, add).await.unwrap().is_some()),
                };
                // Sent to all shards, one of them out of date, it is sent again: then the shard that has
                // done it says so, and so does the one that got the document from it.
                let most = if writer == 1 { 2 } else { 1 };
                assert!((1..=most).contains(&changed), "writer {writer}, key {k}: {changed}");
                written += 1;
            }
            written
        })
    });
    let writers = futures::future::try_join_all(writers);
    let mut moves = 0;
    let mut owner = shop.owners("busy", KEYS - 1).await[0];
    while Instant::now() < end {
        match shop.cluster.move_chunk("shop.busy", doc! {"k": KEYS / 2}, 1 - owner, true).await {
            Ok(()) => {
                owner = 1 - owner;
                moves += 1;
            }
            // On a busy machine the last writes of a chunk may come faster than they are copied: it stays where it is.
            Err(error) => assert!(format!("{error:#}").contains("critical section"), "{error:#}"),
        }
    }
    assert!(moves > 0, "no chunk could be moved");
    let written: i32 = writers.await.unwrap().iter().sum();
    let documents: Vec<Document> = busy.find(doc! {}).await.unwrap().try_collect().await.unwrap();
    let counted: i32 = documents.iter().map(|document| document.get_i32("n").unwrap()).sum();
    assert_eq!((documents.len(), counted), (40, written), "{moves} moves");
    let mut told = 0;
    while told < written {
        let event = stream.next_if_any().await.unwrap();
        told += i32::from(event.is_some());
    }
    eprintln!("{written} writes, {moves} moves");
    shop.admin(doc! {"appendOplogNote": 1, "data": {}}).await.unwrap();
    assert!(stream.next_if_any().await.unwrap().is_none());
}

#[tokio::test]
async fn zones_keep_ranges_on_their_shards() {
    let shop = Shop::open().await;
    for (shard, zone) in [("s0", "west"), ("s1", "east")] {
        shop.admin(doc! {"addShardToZone": shard, "zone": zone}).await.unwrap();
    }
    let ranges = [(Bson::MinKey, Bson::Int32(50), "west"), (Bson::Int32(50), Bson::MaxKey, "east")];
    for (min, max, zone) in ranges {
        let range =
            doc! {"updateZoneKeyRange": "shop.zoned", "min": {"k": min}, "max": {"k": max}, "zone": zone};
        shop.admin(range).await.unwrap();
    }
    shop.cluster.shard_collection("shop.zoned", doc! {"k": 1}).await.unwrap();
    let zoned = shop.collection("zoned");
    zoned.insert_many((0..100).map(|k| doc! {"_id": k, "k": k})).await.unwrap();
    assert_eq!((shop.owners("zoned", 49).await, shop.owners("zoned", 50).await), (vec![0], vec![1]));
}

#[tokio::test]
async fn a_database_moves_to_another_primary_shard() {
    let shop = Shop::open().await;
    shop.cluster.enable_sharding("files", 0).await.unwrap();
    let files = shop.client.database("files").collection::<Document>("parts");
    files.insert_one(doc! {"_id": 1}).await.unwrap();
    shop.cluster.move_primary("files", 1).await.unwrap();
    files.insert_one(doc! {"_id": 2}).await.unwrap();
    let moved =
        shop.cluster.shard(1).client().await.unwrap().database("files").collection::<Document>("parts");
    assert_eq!(moved.count_documents(doc! {}).await.unwrap(), 2);
    assert_eq!(files.count_documents(doc! {}).await.unwrap(), 2);
}
