//! Reads and writes through the router.

use std::collections::HashSet;
use std::sync::Arc;

use bson::{Binary, Document, doc, rawdoc};
use futures::TryStreamExt;
use mongodb::options::{ReadConcern, ReturnDocument};
use reshard::wire::header::Header;
use reshard::wire::op_msg;
use reshard_testbed::wait_for;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{PATIENCE, Shop, code, error};

#[tokio::test]
async fn drivers_take_the_router_for_a_mongos() {
    let shop = Shop::open().await;
    let hello = shop.admin(doc! {"hello": 1}).await.unwrap();
    assert_eq!(hello.get_str("msg").unwrap(), "isdbgrid");
    assert!(hello.get("setName").is_none());
    let shards = shop.admin(doc! {"listShards": 1}).await.unwrap();
    let names = shards
        .get_array("shards")
        .unwrap()
        .iter()
        .map(|shard| shard.as_document().unwrap().get_str("_id").unwrap().to_owned());
    assert_eq!(names.collect::<Vec<_>>(), ["s0", "s1"]);
    let build = shop.admin(doc! {"buildInfo": 1}).await.unwrap();
    assert!(build.get_str("version").unwrap().starts_with("6.0."));
    assert_eq!(code(shop.admin(doc! {"noSuchCommand": 1}).await), 59);
    let (_, text) = error(shop.admin(doc! {"replSetGetStatus": 1}).await);
    assert!(text.contains("replSetGetStatus"), "{text}");
    for command in
        ["connectionStatus", "ping", "serverStatus", "isMaster", "getCmdLineOpts", "getDefaultRWConcern"]
    {
        shop.admin(doc! {command: 1}).await.unwrap();
    }
    let parameter = doc! {"getParameter": 1, "featureCompatibilityVersion": 1};
    assert!(shop.admin(parameter).await.unwrap().contains_key("featureCompatibilityVersion"));
    let operations = shop.admin(doc! {"currentOp": 1}).await.unwrap();
    assert!(operations.get_array("inprog").is_ok());
    let mut session = shop.client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let (code, text) = error(shop.orders().insert_one(doc! {"order_id": 1}).session(&mut session).await);
    assert_eq!(code, 20);
    assert!(text.contains("Transactions are not supported"), "{text}");
}

#[tokio::test]
async fn documents_are_written_and_read() {
    let shop = Shop::open().await;
    let orders = shop.orders();
    shop.fill(0, 5000).await;
    let mut direct = Vec::new();
    for index in 0..2 {
        direct.push(shop.on_shard(index, "orders").await.count_documents(doc! {}).await.unwrap());
    }
    assert!(direct.iter().sum::<u64>() == 5000 && direct.iter().all(|count| *count > 1000), "{direct:?}");
    assert_eq!(orders.count_documents(doc! {}).await.unwrap(), 5000);
    assert_eq!(orders.estimated_document_count().await.unwrap(), 5000);
    let counted = doc! {"count": "orders", "query": {"customer_id": 5}, "limit": 7, "skip": 1};
    assert_eq!(shop.run(counted).await.unwrap().get_i32("n").unwrap(), 7);
    let found = orders.find_one(doc! {"order_id": 77}).await.unwrap().unwrap();
    assert_eq!(found.get_i32("_id").unwrap(), 77);
    let set = doc! {"$set": {"x": 1}};
    assert_eq!(orders.update_one(doc! {"order_id": 77}, set.clone()).await.unwrap().modified_count, 1);
    let many = orders.update_many(doc! {"customer_id": 3}, set.clone()).await.unwrap();
    assert_eq!(many.modified_count, 52);
    let replaced = orders.replace_one(doc! {"order_id": 78}, doc! {"order_id": 78, "r": 1}).await.unwrap();
    assert_eq!(replaced.modified_count, 1);
    assert_eq!(orders.delete_one(doc! {"order_id": 78}).await.unwrap().deleted_count, 1);
    assert_eq!(orders.delete_many(doc! {"customer_id": 96}).await.unwrap().deleted_count, 51);
    let upserted = orders.update_one(doc! {"order_id": 500_000}, set).upsert(true).await.unwrap();
    assert!(upserted.upserted_id.is_some());
    let distinct = orders.distinct("customer_id", doc! {"order_id": {"$lt": 3}}).await.unwrap();
    assert_eq!(distinct, [0, 1, 2].map(bson::Bson::Int32));
    let blob =
        |fill: u8| Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: vec![fill; 15_000_000] };
    let large = [1, 2]
        .map(|id: u8| doc! {"_id": format!("large{id}"), "order_id": 600_000 + i32::from(id), "b": blob(id)});
    orders.insert_many(large).await.unwrap();
    let found = orders.find_one(doc! {"order_id": 600_002}).await.unwrap().unwrap();
    assert_eq!(found.get_binary_generic("b").unwrap().len(), 15_000_000);
}

#[tokio::test]
async fn bytes_of_documents_pass_unchanged() {
    let shop = Shop::open().await;
    let zero = bson::Timestamp { time: 0, increment: 0 };
    // Below the first level a server leaves such a time as it is.
    shop.orders().insert_one(doc! {"_id": 1, "order_id": 1, "in": {"t": zero, "d": -0.0}}).await.unwrap();
    let found = shop.orders().find_one(doc! {"order_id": 1}).await.unwrap().unwrap();
    let inside = found.get_document("in").unwrap();
    assert_eq!(inside.get_timestamp("t").unwrap(), zero);
    assert!(inside.get_f64("d").unwrap().is_sign_negative());
    // With the same key twice.
    let twice = b"\x1b\0\0\0\x10_id\0\x02\0\0\0\x10a\0\x01\0\0\0\x10a\0\x02\0\0\0\0";
    let twice = bson::RawDocumentBuf::from_bytes(twice.to_vec());
    if let Ok(twice) = twice {
        let raw = shop.client.database("shop").collection::<bson::RawDocumentBuf>("orders");
        raw.insert_one(&twice).await.unwrap();
        let found = raw.find_one(doc! {"_id": 2}).await.unwrap().unwrap();
        assert_eq!(found.as_bytes(), twice.as_bytes());
    }
}

#[tokio::test]
async fn many_writes_at_once() {
    let shop = Shop::open().await;
    let order = |id: &str, order: i32| doc! {"_id": id, "order_id": order};
    let insert = doc! {
        "insert": "orders",
        "documents": [order("d1", 1), order("d1", 1), order("d2", 2)],
        "ordered": false,
    };
    let reply = shop.run(insert).await.unwrap();
    assert_eq!(reply.get_i32("n").unwrap(), 2);
    let errors = reply.get_array("writeErrors").unwrap();
    assert_eq!(errors.len(), 1);
    let error = errors[0].as_document().unwrap();
    assert_eq!((error.get_i32("index").unwrap(), error.get_i32("code").unwrap()), (1, 11000));
    let ordered = doc! {"insert": "orders", "documents": [order("d1", 1), order("d3", 3)]};
    assert_eq!(shop.run(ordered).await.unwrap().get_i32("n").unwrap(), 0);
    let updates = vec![
        doc! {"q": {"order_id": 1}, "u": {"$set": {"a": 1}}},
        doc! {"q": {"order_id": 99}, "u": {"$set": {"a": 1}}, "upsert": true},
        doc! {"q": {}, "u": {"$set": {"b": 1}}, "multi": true},
    ];
    let reply = shop.run(doc! {"update": "orders", "updates": updates}).await.unwrap();
    assert_eq!((reply.get_i32("n").unwrap(), reply.get_i32("nModified").unwrap()), (5, 4));
    let upserted = reply.get_array("upserted").unwrap()[0].as_document().unwrap();
    assert_eq!(upserted.get_i32("index").unwrap(), 1);
    // A write that wants no answer, and a command behind it on the same connection.
    let silent = rawdoc! {
        "insert": "orders", "documents": [{"_id": "w0", "order_id": 7}], "writeConcern": {"w": 0}, "$db": "shop",
    };
    let silent = op_msg::build(1, 0, op_msg::MORE_TO_COME, silent.as_bytes(), None);
    let ping = op_msg::build(2, 0, 0, rawdoc! {"ping": 1, "$db": "admin"}.as_bytes(), None);
    let mut stream = TcpStream::connect(shop.cluster.router().address()).await.unwrap();
    stream.write_all(&[silent, ping].concat()).await.unwrap();
    let mut header = [0; 16];
    stream.read_exact(&mut header).await.unwrap();
    assert_eq!(Header::parse(&header).unwrap().unwrap().response_to, 2);
    wait_for("the write without an answer", PATIENCE, || async {
        Ok(shop.orders().find_one(doc! {"order_id": 7}).await?.is_some())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn cursors_go_over_all_shards() {
    let shop = Shop::open().await;
    shop.fill(0, 3000).await;
    let orders = shop.orders();
    let all: Vec<Document> = orders.find(doc! {}).batch_size(100).await.unwrap().try_collect().await.unwrap();
    let ids: HashSet<i32> = all.iter().map(|order| order.get_i32("_id").unwrap()).collect();
    assert_eq!((all.len(), ids.len()), (3000, 3000));
    let sorted = orders.find(doc! {}).sort(doc! {"order_id": -1}).batch_size(777).await.unwrap();
    let sorted: Vec<Document> = sorted.try_collect().await.unwrap();
    let sorted: Vec<i32> = sorted.iter().map(|order| order.get_i32("order_id").unwrap()).collect();
    assert!(sorted.is_sorted_by(|left, right| left > right) && sorted.len() == 3000);
    let find = shop.run(doc! {"find": "orders", "batchSize": 10}).await.unwrap();
    let id = find.get_document("cursor").unwrap().get_i64("id").unwrap();
    shop.run(doc! {"killCursors": "orders", "cursors": [id]}).await.unwrap();
    assert_eq!(code(shop.run(doc! {"getMore": id, "collection": "orders"}).await), 43);
    let group = doc! {"$group": {"_id": "$customer_id", "n": {"$sum": 1}}};
    let groups = orders.aggregate([group, doc! {"$sort": {"_id": 1}}]).batch_size(10).await.unwrap();
    let groups: Vec<Document> = groups.try_collect().await.unwrap();
    assert_eq!(groups.len(), 97);
    orders.aggregate([doc! {"$match": {"customer_id": 1}}, doc! {"$out": "out"}]).await.unwrap();
    assert_eq!(shop.collection("out").count_documents(doc! {}).await.unwrap(), 31);
    let find = doc! {"find": "orders", "filter": {"order_id": 1}};
    let explained = shop.run(doc! {"explain": find, "verbosity": "queryPlanner"}).await.unwrap();
    assert!(explained.to_string().contains("SINGLE_SHARD"), "{explained}");
    let count = doc! {"count": "orders", "query": {"order_id": 1}};
    let explained = shop.run(doc! {"explain": count, "verbosity": "queryPlanner"}).await.unwrap();
    assert!(explained.to_string().contains("SHARD_MERGE"), "{explained}");
}

#[tokio::test]
async fn views_are_read_over_all_shards() {
    let shop = Shop::open().await;
    shop.fill(0, 200).await;
    let pipeline = vec![doc! {"$match": {"order_id": {"$lt": 50}}}];
    shop.run(doc! {"create": "few", "viewOn": "orders", "pipeline": pipeline}).await.unwrap();
    let few = shop.collection("few");
    let found: Vec<Document> = few.find(doc! {}).await.unwrap().try_collect().await.unwrap();
    assert_eq!(found.len(), 50);
    assert_eq!(few.count_documents(doc! {}).await.unwrap(), 50);
    assert_eq!(few.estimated_document_count().await.unwrap(), 50);
    assert_eq!(few.distinct("order_id", doc! {"order_id": {"$lt": 3}}).await.unwrap().len(), 3);
}

#[tokio::test]
async fn reads_wait_for_what_the_session_has_seen() {
    let shop = Shop::open().await;
    shop.fill(0, 100).await;
    let mut session = shop.client.start_session().causal_consistency(true).await.unwrap();
    for id in 0..20 {
        let (orders, set) = (shop.orders(), doc! {"$set": {"seen": id}});
        orders.update_one(doc! {"order_id": id}, set).session(&mut session).await.unwrap();
        let find = orders.find_one(doc! {"order_id": id}).read_concern(ReadConcern::majority());
        let found = find.session(&mut session).await.unwrap().unwrap();
        assert_eq!(found.get_i32("seen").unwrap(), id);
        assert!(session.operation_time().is_some() && session.cluster_time().is_some());
    }
}

#[tokio::test]
async fn one_document_is_found_and_changed() {
    let shop = Arc::new(Shop::open().await);
    shop.fill(0, 100).await;
    let orders = shop.orders();
    let add = doc! {"$inc": {"n": 1}};
    let find = orders.find_one_and_update(doc! {"order_id": 40}, add.clone());
    let after = find.return_document(ReturnDocument::After).await.unwrap().unwrap();
    assert_eq!(after.get_i32("n").unwrap(), 1);
    let find = orders.find_one_and_update(doc! {"order_id": 8000}, add.clone()).upsert(true);
    assert!(find.return_document(ReturnDocument::After).await.unwrap().is_some());
    assert!(orders.find_one_and_delete(doc! {"order_id": 8000}).await.unwrap().is_some());
    assert!(orders.find_one_and_update(doc! {"order_id": 8000}, add.clone()).await.unwrap().is_none());
    let refused = error(orders.find_one_and_update(doc! {"customer_id": 4}, add.clone()).await);
    assert_eq!(refused, (61, String::from("Query for sharded findAndModify must contain the shard key")));
    shop.collection("counters").insert_one(doc! {"_id": "seq", "n": 0}).await.unwrap();
    let work = (0..4).map(|_| {
        let (shop, add) = (shop.clone(), add.clone());
        tokio::spawn(async move {
            for _ in 0..50 {
                let counters = shop.collection("counters");
                counters.find_one_and_update(doc! {"_id": "seq"}, add.clone()).await.unwrap();
                shop.orders().find_one_and_update(doc! {"order_id": 41}, add.clone()).await.unwrap();
            }
        })
    });
    futures::future::try_join_all(work).await.unwrap();
    let counter = shop.collection("counters").find_one(doc! {}).await.unwrap().unwrap();
    let order = orders.find_one(doc! {"order_id": 41}).await.unwrap().unwrap();
    assert_eq!((counter.get_i32("n").unwrap(), order.get_i32("n").unwrap()), (200, 200));
}
