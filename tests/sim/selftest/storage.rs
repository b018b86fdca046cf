//! Documents, updates, guards, indexes and reads.

use bson::{RawBsonRef, Timestamp, rawdoc};

use super::{Rig, ask, batch, field, write_error};

#[test]
fn bytes_are_kept_and_the_guard_ignores_numeric_types() {
    Rig::new(1).run(|rig| async move {
        let document = rawdoc! { "_id": 1, "zero": -0.0, "long": 5_i64 };
        ask(&rig.client, rawdoc! { "insert": "c", "documents": [document.clone()] }).await;
        let id = RawBsonRef::Double(1.0);
        let stored = rig.cluster.document("app.c", id).unwrap();
        assert_eq!(stored.as_bytes(), document.as_bytes());

        let seen = rawdoc! { "_id": 1, "zero": 0, "long": 5.0 };
        let next =
            rawdoc! { "_id": 1, "zero": -0.0, "long": 6_i64, "stamp": Timestamp { time: 0, increment: 0 } };
        let guarded = |seen: &bson::raw::RawDocumentBuf| {
            rawdoc! { "update": "c", "updates": [{
                "q": { "_id": 1, "$expr": { "$eq": ["$$ROOT", { "$literal": seen.clone() }] } },
                "u": [{ "$replaceWith": { "$literal": next.clone() } }],
                "collation": { "locale": "simple" },
            }] }
        };
        let reply = ask(&rig.client, guarded(&seen)).await;
        assert_eq!(
            (field(&reply, "n"), field(&reply, "nModified")),
            (RawBsonRef::Int32(1), RawBsonRef::Int32(1))
        );
        assert_eq!(rig.cluster.document("app.c", id).unwrap().as_bytes(), next.as_bytes());
        let reply = ask(&rig.client, guarded(&seen)).await;
        assert_eq!(field(&reply, "n"), RawBsonRef::Int32(0), "the guard fails");
        let reply = ask(&rig.client, guarded(&next)).await;
        assert_eq!(field(&reply, "nModified"), RawBsonRef::Int32(0), "nothing to change");
    });
}

#[test]
fn a_plain_replacement_stamps_empty_timestamps() {
    Rig::new(1).run(|rig| async move {
        let empty = Timestamp { time: 0, increment: 0 };
        ask(&rig.client, rawdoc! { "insert": "c", "documents": [{ "_id": 1, "t": empty }] }).await;
        let stored = rig.cluster.document("app.c", RawBsonRef::Int32(1)).unwrap();
        assert_ne!(stored.get_timestamp("t").unwrap(), empty);
    });
}

#[test]
fn updates_upserts_and_find_and_modify() {
    Rig::new(1).run(|rig| async move {
        let upsert = rawdoc! { "update": "c", "updates": [
            { "q": { "name": "x" }, "u": { "$inc": { "n": 1 }, "$setOnInsert": { "a.b": 2 } }, "upsert": true },
            { "q": { "name": "x" }, "u": { "$inc": { "n": 2_i64 }, "$push": { "list": 1 } } },
        ] };
        let reply = ask(&rig.client, upsert).await;
        assert_eq!(field(&reply, "n"), RawBsonRef::Int32(2));
        let upserted = reply.body.get_array("upserted").unwrap().into_iter().next().unwrap().unwrap();
        let id = upserted.as_document().unwrap().get_object_id("_id").unwrap();
        let stored = rig.cluster.document("app.c", RawBsonRef::ObjectId(id)).unwrap();
        let expected = rawdoc! { "_id": id, "name": "x", "n": 3_i64, "a": { "b": 2 }, "list": [1] };
        assert_eq!(*stored, expected);
        let modify = rawdoc! { "findAndModify": "c", "query": { "name": "x" }, "update": { "$unset": { "list": 1 } }, "new": true };
        let reply = ask(&rig.client, modify).await;
        assert!(reply.body.get_document("value").unwrap().get("list").unwrap().is_none());
        let remove = rawdoc! { "findAndModify": "c", "query": { "_id": id }, "remove": true };
        let reply = ask(&rig.client, remove).await;
        assert_eq!(reply.body.get_document("value").unwrap().get_object_id("_id").unwrap(), id);
        assert!(rig.cluster.documents("app.c").is_empty());
    });
}

#[test]
fn unique_indexes_name_the_key() {
    Rig::new(1).run(|rig| async move {
        let index = rawdoc! { "createIndexes": "c", "indexes": [{ "key": { "email": 1 }, "name": "e", "unique": true }] };
        ask(&rig.client, index).await;
        let insert = |ordered: bool| {
            rawdoc! { "insert": "c", "ordered": ordered, "documents": [
                { "_id": 1, "email": "a" }, { "_id": 2, "email": "a" }, { "_id": 1 }, { "_id": 3, "email": "b" },
            ] }
        };
        let reply = ask(&rig.client, insert(true)).await;
        let error = write_error(&reply).unwrap();
        assert_eq!((field(&reply, "n"), error.get_i32("index").unwrap()), (RawBsonRef::Int32(1), 1));
        assert_eq!(error.get_document("keyPattern").unwrap(), &*rawdoc! { "email": 1 });
        assert_eq!(error.get_document("keyValue").unwrap(), &*rawdoc! { "email": "a" });
        let reply = ask(&rig.client, insert(false)).await;
        assert_eq!(reply.body.get_array("writeErrors").unwrap().into_iter().count(), 3);
        let error = write_error(&reply).unwrap();
        assert_eq!(error.get_document("keyPattern").unwrap(), &*rawdoc! { "_id": 1 });
        assert_eq!(rig.cluster.documents("app.c").len(), 2);
    });
}

#[test]
fn finds_by_bounds_and_batches() {
    Rig::new(1).run(|rig| async move {
        rig.cluster.load("app.c", (0..10).map(|id| rawdoc! { "_id": id, "v": id % 2 }));
        let find = rawdoc! { "find": "c", "min": { "_id": 2 }, "max": { "_id": 8.0 }, "hint": { "_id": 1 },
        "sort": { "_id": 1 }, "batchSize": 4, "projection": { "_id": 1 } };
        let reply = ask(&rig.client, find).await;
        let ids = |reply: &_| {
            batch(reply).iter().map(|document| document.get_i32("_id").unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(ids(&reply), [2, 3, 4, 5]);
        assert!(batch(&reply)[0].get("v").unwrap().is_none());
        let id = reply.body.get_document("cursor").unwrap().get_i64("id").unwrap();
        let reply = ask(&rig.client, rawdoc! { "getMore": id, "collection": "c" }).await;
        assert_eq!(ids(&reply), [6, 7]);
        let find = rawdoc! { "find": "c", "filter": { "_id": { "$in": [9, 1.0, 77] } } };
        assert_eq!(ids(&ask(&rig.client, find).await), [1, 9]);
        let group = rawdoc! { "aggregate": "c", "cursor": {}, "pipeline": [
        { "$match": { "v": 1 } }, { "$group": { "_id": null, "n": { "$sum": 1 } } } ] };
        assert_eq!(batch(&ask(&rig.client, group).await)[0].get_i32("n").unwrap(), 5);
        let sample = rawdoc! { "aggregate": "c", "cursor": {}, "pipeline": [
        { "$sample": { "size": 3 } }, { "$project": { "_id": 1 } }, { "$sort": { "_id": 1 } } ] };
        assert!(ids(&ask(&rig.client, sample).await).is_sorted());
    });
}
