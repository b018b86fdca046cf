//! What depends on the shard key. The codes are those of MongoDB's own routing.

use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Document, Timestamp, doc};
use mongodb::options::ReturnDocument;
use mongodb::{Client, Collection};

use crate::support::{Shop, code};

/// The same collection through a client that does not number its writes.
async fn without_numbers(shop: &Shop) -> Collection<Document> {
    let uri = format!("{}?retryWrites=false", shop.cluster.uri());
    Client::with_uri_str(uri).await.unwrap().database("shop").collection("orders")
}

#[tokio::test]
async fn what_a_sharded_collection_refuses() {
    let shop = Shop::open().await;
    shop.fill(0, 200).await;
    let (orders, unnumbered) = (shop.orders(), without_numbers(&shop).await);
    let set = doc! {"$set": {"z": 1}};
    for orders in [&orders, &unnumbered] {
        assert_eq!(code(orders.update_one(doc! {"customer_id": 3}, set.clone()).await), 72);
        assert_eq!(code(orders.delete_one(doc! {"customer_id": 3}).await), 61);
        assert_eq!(orders.update_one(doc! {"_id": 10}, set.clone()).await.unwrap().matched_count, 1);
        assert_eq!(code(orders.update_one(doc! {"_id": "no"}, set.clone()).upsert(true).await), 61);
        let whole = doc! {"order_id": 5, "z": 1};
        assert_eq!(code(orders.replace_one(doc! {"_id": "no"}, whole).upsert(true).await), 61);
        assert_eq!(code(orders.update_many(doc! {"_id": "no"}, set.clone()).upsert(true).await), 61);
        assert_eq!(code(orders.find_one_and_delete(doc! {"_id": 13}).await), 61);
        orders.insert_one(doc! {"_id": "nokey"}).await.unwrap();
        assert_eq!(orders.delete_one(doc! {"_id": "nokey"}).await.unwrap().deleted_count, 1);
    }
    assert_eq!(orders.delete_one(doc! {"_id": 11}).await.unwrap().deleted_count, 1);
    let (a, b) = shop.one_on_each(20, 200).await;
    let change = |to: i32| doc! {"$set": {"order_id": to}};
    assert_eq!(code(unnumbered.update_one(doc! {"order_id": a}, change(b + 10_000_000)).await), 20);
    assert_eq!(code(orders.update_one(doc! {"_id": b}, change(10_000_000)).await), 31025);
    assert_eq!(code(orders.update_many(doc! {"order_id": b}, change(10_000_000)).await), 72);
    assert_eq!(code(unnumbered.replace_one(doc! {"order_id": a}, doc! {"order_id": b}).await), 20);
    // A replacement by _id goes to the shard of what it puts there: it may miss the document.
    for id in [a, b] {
        let away = orders.replace_one(doc! {"_id": id}, doc! {"z": 1}).await;
        assert!(matches!(&away, Ok(done) if done.matched_count == 0) || code(away) == 31025);
        let same = orders.replace_one(doc! {"_id": id}, doc! {"order_id": id, "z": 1}).await.unwrap();
        assert_eq!(same.matched_count, 1);
    }
}

#[tokio::test]
async fn a_change_of_the_key_moves_the_document() {
    let shop = Shop::open().await;
    shop.fill(0, 20).await;
    let (mut moved, mut stayed) = (0, 0);
    for id in 0..12 {
        let before = shop.owners("orders", id).await;
        let change = doc! {"$set": {"order_id": 3_000_000 + id}};
        let done = shop.orders().update_one(doc! {"order_id": id}, change).await.unwrap();
        assert_eq!(done.modified_count, 1);
        let after = shop.owners("orders", id).await;
        assert_eq!(after.len(), 1);
        let found = shop.orders().find_one(doc! {"order_id": 3_000_000 + id}).await.unwrap().unwrap();
        assert_eq!(found.get_i32("_id").unwrap(), id);
        if before == after { stayed += 1 } else { moved += 1 }
    }
    assert!(moved > 0 && stayed > 0, "{moved} {stayed}");
    for id in 12..20 {
        let change = doc! {"$set": {"order_id": 4_000_000 + id}};
        let orders = shop.orders();
        let find = orders.find_one_and_update(doc! {"order_id": id}, change);
        let after = find.return_document(ReturnDocument::After).await.unwrap().unwrap();
        assert_eq!(after.get_i32("order_id").unwrap(), 4_000_000 + id);
        assert_eq!(shop.owners("orders", id).await.len(), 1);
    }
}

#[tokio::test]
async fn two_shards_can_hold_one_id() {
    let shop = Shop::open().await;
    shop.fill(0, 50).await;
    let orders = shop.orders();
    let (a, b) = shop.one_on_each(0, 50).await;
    orders.insert_one(doc! {"_id": "dup", "order_id": a}).await.unwrap();
    orders.insert_one(doc! {"_id": "dup", "order_id": b}).await.unwrap();
    assert_eq!(orders.count_documents(doc! {"_id": "dup"}).await.unwrap(), 2);
    assert_eq!(code(orders.insert_one(doc! {"_id": "dup", "order_id": a}).await), 11000);
    let both = orders.update_one(doc! {"_id": "dup"}, doc! {"$set": {"u": 1}}).await.unwrap();
    assert_eq!(both.matched_count, 2);
    // Moving one copy to the shard of the other fails as a whole.
    let change = orders.update_one(doc! {"order_id": a, "_id": "dup"}, doc! {"$set": {"order_id": b}}).await;
    assert_eq!(code(change), 11000);
    assert_eq!(shop.owners("orders", "dup").await, [0, 1]);
    assert_eq!(orders.delete_one(doc! {"_id": "dup"}).await.unwrap().deleted_count, 2);
}

/// findAndModify and numbered writes go to the one shard that the router works out.
#[tokio::test]
async fn hashes_are_those_of_the_server() {
    let shop = Shop::open().await;
    let command = doc! {"shardCollection": "shop.h", "key": {"k": "hashed"}, "numInitialChunks": 64};
    shop.admin(command).await.unwrap();
    let binary = |subtype, bytes: &[u8]| Bson::Binary(Binary { subtype, bytes: bytes.to_vec() });
    let mut values = vec![
        Bson::Null,
        Bson::Boolean(true),
        Bson::Boolean(false),
        Bson::Int32(0),
        Bson::Int64(1),
        Bson::Double(2.9),
        Bson::Int64(1 << 40),
        Bson::Int64(-(1 << 40)),
        Bson::Double(1e300),
        Bson::Double(-7.5),
        Bson::from(""),
        Bson::from("é"),
        binary(BinarySubtype::Generic, b"bin"),
        binary(BinarySubtype::Uuid, &[7; 16]),
        Bson::ObjectId(ObjectId::new()),
        Bson::DateTime(DateTime::from_millis(1_700_000_000_123)),
        Bson::Timestamp(Timestamp { time: 5, increment: 6 }),
        Bson::Decimal128("12.7".parse().unwrap()),
    ];
    values.extend((100..130).map(Bson::Int32));
    values.extend((0..30).map(|number| Bson::from(format!("s{number}"))));
    let documents = (0..).zip(&values).map(|(id, value): (i32, _)| doc! {"_id": id, "k": value.clone()});
    let unnumbered = format!("{}?retryWrites=false", shop.cluster.uri());
    let unnumbered = Client::with_uri_str(unnumbered).await.unwrap();
    // These are routed by the server.
    unnumbered.database("shop").collection("h").insert_many(documents).await.unwrap();
    for (id, value) in (0..).zip(&values) {
        let id: i32 = id;
        let filter = doc! {"k": value.clone(), "_id": id};
        let set = doc! {"$set": {"f": 1}};
        let found = shop.collection("h").find_one_and_update(filter.clone(), set.clone()).await.unwrap();
        assert!(found.is_some(), "{id} {value}");
        let updated = shop.collection("h").update_one(filter, set).await.unwrap();
        assert_eq!(updated.matched_count, 1, "{id} {value}");
    }
}

#[tokio::test]
async fn a_collection_is_resharded() {
    let shop = Shop::open().await;
    shop.fill(0, 500).await;
    let key = doc! {"customer_id": 1, "order_id": 1};
    shop.cluster.reshard_collection("shop.orders", key.clone()).await.unwrap();
    let entry = shop.cluster.collection_entry("shop.orders").await.unwrap();
    assert_eq!(entry.get_document("key").unwrap(), &key);
    assert_eq!(shop.orders().count_documents(doc! {}).await.unwrap(), 500);
    let filter = doc! {"customer_id": 20, "order_id": 20};
    let found = shop.orders().find_one_and_update(filter.clone(), doc! {"$set": {"after": 1}}).await.unwrap();
    assert!(found.is_some());
    assert_eq!(shop.orders().update_one(filter, doc! {"$inc": {"after": 1}}).await.unwrap().matched_count, 1);
}
