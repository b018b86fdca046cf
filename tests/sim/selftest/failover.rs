//! Majority, rollback, read concerns, and the deposed primary.

use std::time::Duration;

use bson::{RawBsonRef, Timestamp, rawdoc};

use super::{Rig, ask, batch, field};

#[test]
fn a_failover_undoes_what_no_majority_has() {
    Rig::new(1).run(|rig| async move {
        let majority =
            rawdoc! { "insert": "c", "documents": [{ "_id": 1 }], "writeConcern": { "w": "majority" } };
        ask(&rig.client, majority).await;
        rig.cluster.hold_commits(true);
        let retryable =
            rawdoc! { "insert": "c", "documents": [{ "_id": 2 }], "lsid": { "id": 1 }, "txnNumber": 1_i64 };
        ask(&rig.client, retryable.clone()).await;
        let find = |level: &str| rawdoc! { "find": "c", "readConcern": { "level": level } };
        assert_eq!(batch(&ask(&rig.client, find("local")).await).len(), 2);
        assert_eq!(batch(&ask(&rig.client, find("majority")).await).len(), 1);
        rig.cluster.failover();
        assert_eq!(batch(&ask(&rig.client, find("local")).await).len(), 1);
        assert_eq!(rig.cluster.rolled_back().len(), 1);
        rig.cluster.hold_commits(false);
        let reply = ask(&rig.client, retryable).await;
        assert_eq!(field(&reply, "retriedStmtIds"), RawBsonRef::Null, "its history is gone as well");
        assert_eq!(batch(&ask(&rig.client, find("local")).await).len(), 2);
    });
}

#[test]
fn a_write_that_waits_for_the_majority_hears_of_the_failover() {
    Rig::new(1).run(|rig| async move {
        rig.cluster.hold_commits(true);
        let (world, cluster) = (rig.world.clone(), rig.cluster.clone());
        rig.process.spawn("failover", async move {
            world.sleep(Duration::from_secs(1)).await;
            cluster.failover();
        });
        let insert =
            rawdoc! { "insert": "c", "documents": [{ "_id": 1 }], "writeConcern": { "w": "majority" } };
        let reply = ask(&rig.client, insert).await;
        let error = reply.body.get_document("writeConcernError").unwrap();
        assert_eq!(error.get_i32("code").unwrap(), 11602);
        assert!(rig.cluster.documents("app.c").is_empty());
    });
}

#[test]
fn reads_wait_for_the_time_they_name() {
    Rig::new(1).run(|rig| async move {
        let reply = ask(&rig.client, rawdoc! { "insert": "c", "documents": [{ "_id": 1 }] }).await;
        let time = reply.operation_time.unwrap();
        let find = |after: Timestamp| {
            rawdoc! { "find": "c", "maxTimeMS": 5000, "readConcern": { "level": "majority", "afterClusterTime": after } }
        };
        let reply = ask(&rig.client, find(time)).await;
        assert_eq!(batch(&reply).len(), 1);
        assert!(reply.operation_time.unwrap() >= time);
        let ahead = Timestamp { time: time.time + 50, increment: 1 };
        assert_eq!(ask(&rig.client, find(ahead)).await.error().unwrap().code, 72);
        rig.cluster.hold_commits(true);
        let reply = ask(&rig.client, rawdoc! { "insert": "c", "documents": [{ "_id": 2 }] }).await;
        let reply = ask(&rig.client, find(reply.operation_time.unwrap())).await;
        assert_eq!(reply.error().unwrap().code, 50);
    });
}

#[test]
fn a_deposed_primary_answers_from_the_past() {
    Rig::new(1).run(|rig| async move {
        rig.cluster.load("app.c", [rawdoc! { "_id": 1, "v": 0 }]);
        let former = ask(&rig.client, rawdoc! { "hello": 1 }).await.server;
        rig.cluster.failover_with(0, Some(Duration::from_secs(5)));
        let other = rig.world.process("other");
        let other = rig.world.connect(&other, &rig.cluster);
        let set = rawdoc! { "update": "c", "updates": [{ "q": { "_id": 1 }, "u": { "$set": { "v": 1 } } }] };
        while ask(&other, set.clone()).await.server == former {}
        let mut stale = 0;
        for _ in 0..20 {
            let reply = ask(&rig.client, rawdoc! { "find": "c" }).await;
            let value = batch(&reply)[0].get_i32("v").unwrap();
            assert!(reply.server != former || stale == 0 || value == 0 || value == 1);
            stale += i32::from(reply.server == former);
        }
        rig.world.sleep(Duration::from_secs(10)).await;
        let reply = ask(&rig.client, rawdoc! { "find": "c" }).await;
        assert!(reply.server != former);
        assert_eq!(batch(&reply)[0].get_i32("v").unwrap(), 1);
    });
}
