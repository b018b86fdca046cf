//! Retryable writes, probes and barriers.

use bson::raw::RawDocumentBuf;
use bson::{RawBsonRef, rawdoc};

use super::{Rig, ask, field};

fn retryable(mut command: RawDocumentBuf, number: i64) -> RawDocumentBuf {
    command.append(bson::raw::cstr!("lsid"), rawdoc! { "id": "s" });
    command.append(bson::raw::cstr!("txnNumber"), number);
    command
}

fn increment(number: i64) -> RawDocumentBuf {
    retryable(
        rawdoc! { "update": "c", "updates": [{ "q": { "_id": 1 }, "u": { "$inc": { "n": 1 } } }] },
        number,
    )
}

fn probe(number: i64) -> RawDocumentBuf {
    let delete = rawdoc! { "delete": "c", "deletes": [{ "q": { "_id": 1, "$expr": false }, "limit": 1 }] };
    retryable(delete, number)
}

#[test]
fn a_retry_gets_the_first_result() {
    Rig::new(1).run(|rig| async move {
        rig.cluster.load("app.c", [rawdoc! { "_id": 1, "n": 0 }]);
        ask(&rig.client, increment(5)).await;
        let reply = ask(&rig.client, increment(5)).await;
        assert_eq!(
            (field(&reply, "n"), field(&reply, "nModified")),
            (RawBsonRef::Int32(1), RawBsonRef::Int32(1))
        );
        assert!(reply.body.get_array("retriedStmtIds").is_ok());
        let stored = rig.cluster.document("app.c", RawBsonRef::Int32(1)).unwrap();
        assert_eq!(stored.get_i32("n").unwrap(), 1);
        assert_eq!(ask(&rig.client, increment(4)).await.error().unwrap().code, 225);
        ask(&rig.client, increment(6)).await;
        assert_eq!(ask(&rig.client, increment(5)).await.error().unwrap().code, 225);
    });
}

#[test]
fn a_probe_tells_whether_a_statement_ran() {
    Rig::new(1).run(|rig| async move {
        rig.cluster.load("app.c", [rawdoc! { "_id": 1, "n": 0 }]);
        assert_eq!(field(&ask(&rig.client, probe(1)).await, "n"), RawBsonRef::Int32(0));
        ask(&rig.client, increment(1)).await;
        assert_eq!(field(&ask(&rig.client, probe(1)).await, "n"), RawBsonRef::Int32(1));
        assert!(rig.cluster.document("app.c", RawBsonRef::Int32(1)).is_some());
    });
}

#[test]
fn only_a_write_that_changes_something_is_a_barrier() {
    Rig::new(1).run(|rig| async move {
        rig.cluster.load("app.c", [rawdoc! { "_id": 1, "n": 0 }]);
        let nothing =
            rawdoc! { "update": "c", "updates": [{ "q": { "_id": 9 }, "u": { "$inc": { "n": 1 } } }] };
        ask(&rig.client, retryable(nothing, 10)).await;
        assert_eq!(ask(&rig.client, increment(9)).await.error().unwrap().code, 225, "in memory it holds");
        rig.cluster.failover();
        assert_eq!(
            field(&ask(&rig.client, increment(9)).await, "n"),
            RawBsonRef::Int32(1),
            "but not durably"
        );
        let mut barrier = increment(20);
        barrier.append(bson::raw::cstr!("writeConcern"), rawdoc! { "w": "majority" });
        ask(&rig.client, barrier).await;
        rig.cluster.failover();
        assert_eq!(ask(&rig.client, increment(19)).await.error().unwrap().code, 225);
    });
}

#[test]
fn batches_remember_each_statement() {
    Rig::new(1).run(|rig| async move {
        let mut insert = retryable(rawdoc! { "insert": "c", "documents": [{ "_id": 1 }, { "_id": 2 }] }, 1);
        insert.append(bson::raw::cstr!("stmtIds"), bson::RawArrayBuf::from_iter([4, 9]));
        ask(&rig.client, insert.clone()).await;
        let again = ask(&rig.client, insert).await;
        assert_eq!(field(&again, "n"), RawBsonRef::Int32(2));
        let ids = again.body.get_array("retriedStmtIds").unwrap();
        assert_eq!(ids.into_iter().map(|id| id.unwrap().as_i32().unwrap()).collect::<Vec<_>>(), [4, 9]);
        let modify = rawdoc! { "findAndModify": "c", "query": { "_id": 1 }, "update": { "$inc": { "n": 1 } }, "new": true };
        let modify = retryable(modify, 2);
        let first = ask(&rig.client, modify.clone()).await;
        let second = ask(&rig.client, modify).await;
        assert_eq!(first.body.get_document("value").unwrap(), second.body.get_document("value").unwrap());
        assert!(second.body.get_i32("retriedStmtId").is_ok());
    });
}
