//! Change streams over all shards.

use std::time::{Duration, Instant};

use bson::{Document, doc};
use mongodb::Collection;
use mongodb::change_stream::ChangeStream;
use mongodb::change_stream::event::{ChangeStreamEvent, OperationType, ResumeToken};
use mongodb::options::FullDocumentType;

use crate::support::{Shop, code};

const COUNT: i32 = 100;

type Event = ChangeStreamEvent<Document>;

/// The next `count` events.
async fn events(stream: &mut ChangeStream<Event>, count: usize) -> Vec<Event> {
    let mut found = Vec::new();
    let begin = Instant::now();
    while found.len() < count {
        assert!(begin.elapsed() < Duration::from_secs(60), "{} of {count} events", found.len());
        found.extend(stream.next_if_any().await.unwrap());
    }
    found
}

fn id(event: &Event) -> i32 {
    event.document_key.as_ref().unwrap().get_i32("_id").unwrap()
}

fn token(token: &ResumeToken) -> String {
    bson::serialize_to_document(token).unwrap().get_str("_data").unwrap().to_owned()
}

async fn write(orders: &Collection<Document>) {
    for id in 0..COUNT {
        orders.insert_one(doc! {"_id": id, "order_id": id}).await.unwrap();
    }
    orders.update_one(doc! {"order_id": 5}, doc! {"$set": {"v": 1}}).await.unwrap();
    orders.delete_one(doc! {"order_id": 6}).await.unwrap();
}

#[tokio::test]
async fn events_of_all_shards_come_in_order() {
    let shop = Shop::open_quick().await;
    let orders = shop.orders();
    let mut stream = orders.watch().max_await_time(Duration::from_millis(300)).await.unwrap();
    let first = stream.resume_token().unwrap();
    write(&orders).await;
    let total = usize::try_from(COUNT).unwrap() + 2;
    let all = events(&mut stream, total).await;
    let expected: Vec<i32> = (0..COUNT).chain([5, 6]).collect();
    assert_eq!(all.iter().map(id).collect::<Vec<_>>(), expected);
    assert!(all.is_sorted_by_key(|event| event.cluster_time));
    assert!(all.is_sorted_by_key(|event| token(&event.id)));
    assert_eq!(all[0].document_key.as_ref().unwrap(), &doc! {"order_id": 0, "_id": 0});
    for at in [0, 1, 7, 50, total - 2] {
        let resumed = orders.watch().resume_after(all[at].id.clone());
        let mut resumed = resumed.max_await_time(Duration::from_millis(300)).await.unwrap();
        let rest = events(&mut resumed, total - at - 1).await;
        assert_eq!(
            rest.iter().map(|event| &event.id).collect::<Vec<_>>(),
            all[at + 1..].iter().map(|event| &event.id).collect::<Vec<_>>()
        );
    }
    let mut resumed = orders.watch().start_after(first).await.unwrap();
    assert_eq!(events(&mut resumed, total).await.len(), total);
    let time = all[40].cluster_time.unwrap();
    let mut resumed = orders.watch().start_at_operation_time(time).await.unwrap();
    assert_eq!(id(&events(&mut resumed, 1).await[0]), 40);
    let resumed = orders.watch().resume_after(all[total - 3].id.clone());
    let mut resumed = resumed.full_document(FullDocumentType::UpdateLookup).await.unwrap();
    let updated = events(&mut resumed, 1).await;
    assert_eq!(updated[0].full_document.as_ref().unwrap(), &doc! {"_id": 5, "order_id": 5, "v": 1});
    let wrong = vec![doc! {"$changeStream": {"resumeAfter": {"_data": "8263"}}}];
    let wrong = doc! {"aggregate": "orders", "pipeline": wrong, "cursor": {}};
    assert_eq!(code(shop.run(wrong).await), 260);
}

#[tokio::test]
async fn the_position_moves_on_without_events() {
    let shop = Shop::open_quick().await;
    let mut stream = shop.orders().watch().max_await_time(Duration::from_millis(100)).await.unwrap();
    let first = token(&stream.resume_token().unwrap());
    let begin = Instant::now();
    while token(&stream.resume_token().unwrap()) == first {
        assert!(begin.elapsed() < Duration::from_secs(30));
        assert!(stream.next_if_any().await.unwrap().is_none());
    }
    assert!(token(&stream.resume_token().unwrap()) > first);
}

/// A shard that writes nothing holds back the others until its clock moves on, which a note does at once.
#[tokio::test]
async fn a_note_in_the_oplogs_lets_the_merge_go_on() {
    let shop = Shop::open().await;
    let mut stream = shop.orders().watch().max_await_time(Duration::from_millis(500)).await.unwrap();
    for id in 0..10 {
        shop.orders().insert_one(doc! {"_id": id, "order_id": id}).await.unwrap();
        shop.admin(doc! {"appendOplogNote": 1, "data": {"note": id}}).await.unwrap();
        let begin = Instant::now();
        assert_eq!(events(&mut stream, 1).await.iter().map(self::id).collect::<Vec<_>>(), [id]);
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    }
}

#[tokio::test]
async fn streams_of_a_cluster_and_the_end_of_one() {
    let shop = Shop::open_quick().await;
    shop.cluster.shard_collection("shop.ended", doc! {"k": "hashed"}).await.unwrap();
    let inserts = [doc! {"$match": {"operationType": "insert"}}];
    let mut all = shop.client.watch().pipeline(inserts).await.unwrap();
    shop.client.database("another").collection("plain").insert_one(doc! {"_id": 1}).await.unwrap();
    shop.collection("ended").insert_one(doc! {"_id": 2, "k": 2}).await.unwrap();
    let mut found = Vec::new();
    while found.len() < 2 {
        found.extend(all.next_if_any().await.unwrap());
    }
    assert_eq!(found.iter().map(id).collect::<Vec<_>>(), [1, 2]);
    let ended = shop.collection("ended");
    let mut stream = ended.watch().await.unwrap();
    ended.drop().await.unwrap();
    let last = loop {
        let event = events(&mut stream, 1).await.remove(0);
        if event.operation_type == OperationType::Invalidate {
            break event;
        }
    };
    assert!(!stream.is_alive());
    // It goes on behind the end with a collection of the same name.
    assert!(ended.watch().resume_after(last.id.clone()).await.is_err());
    ended.insert_one(doc! {"_id": 3, "k": 3}).await.unwrap();
    // Each shard that had some of it has its own end, so this may take several steps.
    let mut after = last.id;
    'reopened: loop {
        let mut stream = ended.watch().start_after(after.clone()).await.unwrap();
        loop {
            let event = events(&mut stream, 1).await.remove(0);
            match event.operation_type {
                OperationType::Insert => {
                    assert_eq!(id(&event), 3);
                    return;
                }
                OperationType::Invalidate => {
                    after = event.id;
                    continue 'reopened;
                }
                _ => {}
            }
        }
    }
}

/// Moving a chunk makes no events, although documents come and go on the shards.
#[tokio::test]
async fn moved_chunks_make_no_events() {
    let shop = Shop::open_quick().await;
    shop.cluster.shard_collection("shop.ranged", doc! {"k": 1}).await.unwrap();
    let ranged = shop.collection("ranged");
    let mut stream = ranged.watch().await.unwrap();
    ranged.insert_many((0..20).map(|k| doc! {"_id": k, "k": k})).await.unwrap();
    shop.cluster.split("shop.ranged", doc! {"k": 10}).await.unwrap();
    let other = 1 - shop.owners("ranged", 10).await[0];
    shop.cluster.move_chunk("shop.ranged", doc! {"k": 10}, other, true).await.unwrap();
    ranged.update_one(doc! {"k": 15}, doc! {"$set": {"x": 1}}).await.unwrap();
    let all = events(&mut stream, 21).await;
    let kinds: Vec<_> = all.iter().filter(|event| event.operation_type != OperationType::Insert).collect();
    assert_eq!(kinds.len(), 1);
    assert_eq!(id(kinds[0]), 15);
}

/// Whoever is shown an event may wait for its time: the reply says a time of the cluster that is not before it.
#[tokio::test]
async fn no_event_is_ahead_of_the_clusters_time() {
    let shop = Shop::open_quick().await;
    shop.fill(0, 40).await;
    let watch = vec![doc! {"$changeStream": {}}];
    let opened =
        shop.cluster.run("shop", doc! {"aggregate": "orders", "pipeline": watch, "cursor": {}}).await;
    let cursor = opened.unwrap().get_document("cursor").unwrap().get_i64("id").unwrap();
    // All shards are past the time at which the stream begins.
    shop.admin(doc! {"appendOplogNote": 1, "data": {"note": 1}}).await.unwrap();
    // The router hears of what is written past it only by the stream.
    let shard = shop.on_shard(0, "orders").await;
    let own = shard.find_one(doc! {}).await.unwrap().unwrap();
    for round in 0..4 {
        let changed = shard.update_one(doc! {"_id": own.get("_id")}, doc! {"$inc": {"n": 1}}).await;
        assert_eq!(changed.unwrap().modified_count, 1);
        let begin = Instant::now();
        loop {
            assert!(begin.elapsed() < Duration::from_secs(60), "no event of {round}");
            let more = doc! {"getMore": cursor, "collection": "orders", "maxTimeMS": 500};
            let reply = shop.cluster.run("shop", more).await.unwrap();
            let known = reply.get_document("$clusterTime").unwrap().get_timestamp("clusterTime").unwrap();
            let batch = reply.get_document("cursor").unwrap().get_array("nextBatch").unwrap();
            let times = batch.iter().map(|event| event.as_document().unwrap().get_timestamp("clusterTime"));
            let Some(last) = times.map(Result::unwrap).max() else { continue };
            assert!(last <= known, "an event at {last}, the cluster at {known}");
            break;
        }
    }
}
