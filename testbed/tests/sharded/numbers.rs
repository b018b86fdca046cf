//! Writes that come again with their number take effect once.

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};

use crate::support::Shop;

/// `command` as write `number` of a session.
fn numbered(mut command: Document, session: u8, number: i64) -> Document {
    let id = Binary { subtype: BinarySubtype::Uuid, bytes: vec![session; 16] };
    command.extend(doc! {"lsid": {"id": id}, "txnNumber": number});
    command
}

fn count(reply: &Document) -> i32 {
    reply.get_i32("n").unwrap()
}

#[tokio::test]
async fn a_write_that_comes_again_is_not_done_again() {
    let shop = Shop::open().await;
    shop.fill(0, 50).await;
    let (a, b) = shop.one_on_each(0, 50).await;
    let inc = |filter: Document| {
        let updates = vec![doc! {"q": filter, "u": {"$inc": {"n": 1}}}];
        doc! {"update": "orders", "updates": updates}
    };
    let plain = doc! {"update": "plain", "updates": [{"q": {"_id": 1}, "u": {"$inc": {"n": 1}}}]};
    shop.collection("plain").insert_one(doc! {"_id": 1}).await.unwrap();
    let modify = doc! {"findAndModify": "orders", "query": {"order_id": b}, "update": {"$inc": {"n": 1}}};
    let inserts: Vec<Document> = (100..120).map(|id| doc! {"_id": id, "order_id": id}).collect();
    let inserts = doc! {"insert": "orders", "documents": inserts};
    let unordered = doc! {"delete": "orders", "ordered": false, "deletes": [
        {"q": {"order_id": 48}, "limit": 1}, {"q": {"order_id": 49}, "limit": 1},
        {"q": {"order_id": 47}, "limit": 1}, {"q": {"_id": 46}, "limit": 1},
    ]};
    // Sent to one shard, to all shards, to the shard of what is not sharded, to several in turn.
    let commands = [inc(doc! {"order_id": a}), inc(doc! {"_id": a}), plain, modify, inserts, unordered];
    for (number, command) in (1..).zip(commands) {
        let command = numbered(command, 1, number);
        let first = shop.cluster.run("shop", command.clone()).await.unwrap();
        let again = shop.cluster.run("shop", command.clone()).await.unwrap();
        // The number is known to the shards, so a router that knows nothing of it makes no difference.
        shop.cluster.router().restart().await.unwrap();
        let restarted = shop.cluster.run("shop", command).await.unwrap();
        for field in ["n", "nModified", "value", "writeErrors"] {
            assert_eq!(first.get(field), again.get(field), "{first} {again}");
            assert_eq!(first.get(field), restarted.get(field), "{first} {restarted}");
        }
    }
    let n =
        async |filter: Document| shop.orders().find_one(filter).await.unwrap().unwrap().get_i32("n").unwrap();
    assert_eq!((n(doc! {"_id": a}).await, n(doc! {"_id": b}).await), (2, 1));
    let plain = shop.collection("plain").find_one(doc! {}).await.unwrap().unwrap();
    assert_eq!(plain.get_i32("n").unwrap(), 1);
    assert_eq!(shop.orders().count_documents(doc! {}).await.unwrap(), 50 + 20 - 4);
}

#[tokio::test]
async fn what_the_engine_routes_is_answered_from_memory() {
    let shop = Shop::open().await;
    shop.fill(0, 10).await;
    // A replacement by _id is routed by what it puts there.
    let replace = doc! {"update": "orders", "updates": [{"q": {"_id": 3}, "u": {"order_id": 3, "r": 1}}]};
    let replace = numbered(replace, 2, 1);
    assert_eq!(count(&shop.cluster.run("shop", replace.clone()).await.unwrap()), 1);
    shop.orders().update_one(doc! {"order_id": 3}, doc! {"$set": {"r": 2}}).await.unwrap();
    assert_eq!(count(&shop.cluster.run("shop", replace).await.unwrap()), 1);
    let found = shop.orders().find_one(doc! {"order_id": 3}).await.unwrap().unwrap();
    assert_eq!(found.get_i32("r").unwrap(), 2);
    // So is a change of the key.
    let change =
        doc! {"update": "orders", "updates": [{"q": {"order_id": 4}, "u": {"$inc": {"order_id": 1000}}}]};
    let change = numbered(change, 2, 2);
    for _ in 0..2 {
        assert_eq!(count(&shop.cluster.run("shop", change.clone()).await.unwrap()), 1);
    }
    assert_eq!(shop.orders().count_documents(doc! {"order_id": 1004}).await.unwrap(), 1);
}

#[tokio::test]
async fn a_number_is_known_where_the_document_was_moved_to() {
    let shop = Shop::open().await;
    shop.cluster.shard_collection("shop.ranged", doc! {"k": 1}).await.unwrap();
    let ranged = shop.collection("ranged");
    ranged.insert_many([doc! {"_id": 1, "k": 1}, doc! {"_id": 9, "k": 9}]).await.unwrap();
    shop.cluster.split("shop.ranged", doc! {"k": 5}).await.unwrap();
    let update = doc! {"update": "ranged", "updates": [{"q": {"k": 9}, "u": {"$inc": {"n": 1}}}]};
    let update = numbered(update, 3, 1);
    shop.cluster.run("shop", update.clone()).await.unwrap();
    let other = 1 - shop.owners("ranged", 9).await[0];
    shop.cluster.move_chunk("shop.ranged", doc! {"k": 5}, other, true).await.unwrap();
    assert_eq!(shop.owners("ranged", 9).await, [other]);
    let again = shop.cluster.run("shop", update).await.unwrap();
    assert_eq!(count(&again), 1);
    let found = ranged.find_one(doc! {"k": 9}).await.unwrap().unwrap();
    assert_eq!(found.get("n"), Some(&Bson::Int32(1)));
}
