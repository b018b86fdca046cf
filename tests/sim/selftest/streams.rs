//! Change streams: resume, high-water marks, projections, lost history.

use std::time::Duration;

use bson::raw::RawDocumentBuf;
use bson::rawdoc;
use reshard::cluster::command::{Reply, Request, SharedCluster};

use super::{Rig, ask, batch};

async fn open(client: &SharedCluster, mut options: RawDocumentBuf) -> Reply {
    options.append(bson::raw::cstr!("allChangesForCluster"), true);
    let body = rawdoc! { "aggregate": 1, "cursor": {}, "pipeline": [
        { "$changeStream": options },
        { "$match": { "$or": [{ "ns.db": "app", "ns.coll": "c" }] } },
        { "$project": { "documentKey": 1, "operationType": 1, "ns": 1, "clusterTime": 1 } },
    ] };
    client.run(Request::new("admin", body)).await.unwrap()
}

async fn more(client: &SharedCluster, stream: &Reply, millis: i64) -> Reply {
    let id = stream.body.get_document("cursor").unwrap().get_i64("id").unwrap();
    let body = rawdoc! { "getMore": id, "collection": "$cmd.aggregate", "maxTimeMS": millis };
    client.run(Request::new("admin", body)).await.unwrap()
}

fn token(reply: &Reply) -> RawDocumentBuf {
    let cursor = reply.body.get_document("cursor").unwrap();
    cursor.get_document("postBatchResumeToken").unwrap().to_owned()
}

#[test]
fn events_come_once_the_majority_has_them_and_resume_skips_none() {
    Rig::new(1).run(|rig| async move {
        let stream = open(&rig.client, rawdoc! {}).await;
        rig.cluster.hold_commits(true);
        let write = rawdoc! { "insert": "c", "documents": [{ "_id": 1, "big": "x" }, { "_id": 2 }] };
        ask(&rig.client, write).await;
        ask(&rig.client, rawdoc! { "insert": "other", "documents": [{ "_id": 1 }] }).await;
        assert!(batch(&more(&rig.client, &stream, 100).await).is_empty());
        rig.cluster.hold_commits(false);
        let mut events = Vec::new();
        while events.len() < 2 {
            let reply = more(&rig.client, &stream, 1000).await;
            events.extend(batch(&reply).into_iter().map(ToOwned::to_owned));
        }
        assert_eq!(events[0].get_str("operationType").unwrap(), "insert");
        assert_eq!(events[1].get_document("documentKey").unwrap(), &*rawdoc! { "_id": 2 });
        assert!(events[0].get("fullDocument").unwrap().is_none());
        ask(&rig.client, rawdoc! { "delete": "c", "deletes": [{ "q": { "_id": 1 }, "limit": 1 }] }).await;
        rig.world.sleep(Duration::from_secs(1)).await;
        let first = events[0].get_document("_id").unwrap().to_owned();
        let resumed = open(&rig.client, rawdoc! { "resumeAfter": first }).await;
        let kinds: Vec<_> =
            batch(&resumed).iter().map(|event| event.get_str("operationType").unwrap()).collect();
        assert_eq!(kinds, ["insert", "delete"]);
        let again = open(&rig.client, rawdoc! { "startAfter": token(&resumed) }).await;
        assert!(batch(&again).is_empty());
    });
}

#[test]
fn the_high_water_mark_passes_quiet_times() {
    Rig::new(1).run(|rig| async move {
        let stream = open(&rig.client, rawdoc! {}).await;
        let start = token(&stream);
        ask(&rig.client, rawdoc! { "insert": "other", "documents": [{ "_id": 1 }] }).await;
        let note = Request::new(
            "admin",
            rawdoc! { "appendOplogNote": 1, "data": {}, "writeConcern": { "w": "majority" } },
        );
        let time = rig.client.run(note).await.unwrap().operation_time.unwrap();
        let reply = more(&rig.client, &stream, 10).await;
        assert!(batch(&reply).is_empty());
        let mark = token(&reply);
        assert!(mark.get_str("_data").unwrap() > start.get_str("_data").unwrap());
        let expected = format!("82{:08x}{:08x}", time.time, time.increment);
        assert_eq!(&mark.get_str("_data").unwrap()[..18], expected);
    });
}

#[test]
fn a_transaction_is_many_events_at_one_time() {
    Rig::new(1).run(|rig| async move {
        let stream = open(&rig.client, rawdoc! {}).await;
        rig.cluster.transaction((0..5).map(|id| ("app.c".into(), rawdoc! { "_id": id })).collect());
        let reply = more(&rig.client, &stream, 1000).await;
        let events = batch(&reply);
        assert_eq!(events.len(), 5);
        let times: Vec<_> = events.iter().map(|event| event.get_timestamp("clusterTime").unwrap()).collect();
        assert!(times.windows(2).all(|pair| pair[0] == pair[1]));
        let third = events[2].get_document("_id").unwrap().to_owned();
        let resumed = open(&rig.client, rawdoc! { "resumeAfter": third }).await;
        assert_eq!(batch(&resumed).len(), 2);
    });
}

#[test]
fn a_position_that_the_log_has_lost_is_error_286() {
    Rig::new(1).run(|rig| async move {
        let stream = open(&rig.client, rawdoc! {}).await;
        let reply = ask(&rig.client, rawdoc! { "insert": "c", "documents": [{ "_id": 1 }] }).await;
        rig.world.sleep(Duration::from_secs(5)).await;
        ask(
            &rig.client,
            rawdoc! { "insert": "c", "documents": [{ "_id": 2 }], "writeConcern": { "w": "majority" } },
        )
        .await;
        let time = reply.operation_time.unwrap();
        rig.cluster.truncate_log(bson::Timestamp { time: time.time + 1, increment: 1 });
        let resumed = open(&rig.client, rawdoc! { "resumeAfter": token(&stream) }).await;
        assert_eq!(resumed.error().unwrap().code, 286);
        assert_eq!(more(&rig.client, &stream, 10).await.error().unwrap().code, 286);
    });
}
