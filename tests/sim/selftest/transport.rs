//! The network: late commands, orphans, cuts, and what servers know of connections.

use std::time::Duration;

use bson::raw::RawDocumentBuf;
use bson::rawdoc;
use reshard::cluster::command::{Request, SendError, SharedCluster};

use super::{Rig, ask, batch, try_ask};
use crate::network::Weather;

fn insert(id: i32) -> RawDocumentBuf {
    rawdoc! { "insert": "c", "documents": [{ "_id": id }] }
}

async fn apps(client: &SharedCluster) -> Vec<String> {
    let body = rawdoc! { "aggregate": 1, "cursor": {}, "pipeline": [{ "$currentOp": { "allUsers": true, "idleConnections": true } }] };
    let reply = client.run(Request::new("admin", body)).await.unwrap();
    batch(&reply).iter().map(|operation| operation.get_str("appName").unwrap().to_owned()).collect()
}

#[test]
fn a_command_arrives_after_its_sender_has_died() {
    Rig::new(1).run(|rig| async move {
        let sender = rig.world.process("sender");
        let connection = rig.world.connect(&sender, &rig.cluster);
        rig.world.network().hold(sender.id, rig.cluster.index(), "insert", 1);
        sender.spawn("write", async move {
            let _ = try_ask(&connection, insert(1)).await;
        });
        rig.world.sleep(Duration::from_secs(1)).await;
        rig.world.crash(&sender);
        rig.world.sleep(Duration::from_secs(3600)).await;
        assert!(rig.cluster.documents("app.c").is_empty());
        assert!(apps(&rig.client).await.contains(&"sender".to_owned()), "its bytes are still under way");
        let (id, message) = rig.world.network().under_way().remove(0);
        assert_eq!((message.command.as_str(), message.process), ("insert", sender.id));
        rig.world.network().release(id);
        rig.world.sleep(Duration::from_secs(1)).await;
        assert_eq!(rig.cluster.documents("app.c").len(), 1);
        assert!(!apps(&rig.client).await.contains(&"sender".to_owned()));
    });
}

#[test]
fn a_late_command_lands_after_its_outcome_was_unknown() {
    Rig::new(1).run(|rig| async move {
        rig.world.network().set_weather(Weather {
            late: 1000,
            late_by: Duration::from_secs(600),
            ..Weather::calm()
        });
        let mut unknown = 0;
        for id in 0..10 {
            let outcome =
                rig.client.run(Request::new("app", insert(id)).within(Duration::from_secs(1))).await;
            unknown += i32::from(matches!(outcome, Err(SendError::Unknown(_))));
        }
        assert!(unknown >= 9 && rig.cluster.documents("app.c").len() < 10);
        rig.world.settle().await;
        assert_eq!(rig.cluster.documents("app.c").len(), 10);
    });
}

#[test]
fn a_hold_that_is_forgotten_holds_nothing_more() {
    Rig::new(1).run(|rig| async move {
        let network = rig.world.network();
        let (process, cluster) = (rig.process.id, rig.cluster.index());
        let forgotten = network.hold(process, cluster, "insert", 2);
        network.hold(process, cluster, "delete", 1);
        let within = |body| Request::new("app", body).within(Duration::from_secs(1));
        assert!(rig.client.run(within(insert(1))).await.is_err(), "it is held");
        network.forget_hold(forgotten);
        ask(&rig.client, insert(2)).await;
        assert_eq!(network.under_way().len(), 1, "the first is still held");
        let delete = rawdoc! { "delete": "c", "deletes": [{ "q": { "_id": 2 }, "limit": 1 }] };
        assert!(rig.client.run(within(delete)).await.is_err(), "another hold holds");
    });
}

#[test]
fn a_cut_is_told_and_heals() {
    Rig::new(1).run(|rig| async move {
        let network = rig.world.network();
        network.cut(rig.process.id, rig.cluster.index());
        assert!(matches!(try_ask(&rig.client, insert(1)).await, Err(SendError::NotSent(_))));
        network.heal(rig.process.id, rig.cluster.index());
        ask(&rig.client, insert(1)).await;
        network.take_down(rig.cluster.index());
        assert!(matches!(try_ask(&rig.client, insert(2)).await, Err(SendError::NotSent(_))));
        network.bring_up(rig.cluster.index());
        ask(&rig.client, insert(2)).await;
    });
}

#[test]
fn what_is_under_way_goes_down_with_its_connection() {
    Rig::new(1).run(|rig| async move {
        let sender = rig.world.process("sender");
        let connection = rig.world.connect(&sender, &rig.cluster);
        let network = rig.world.network();
        network.hold(sender.id, rig.cluster.index(), "insert", 1);
        sender.spawn("write", async move {
            let _ = try_ask(&connection, insert(1)).await;
        });
        rig.world.sleep(Duration::from_secs(1)).await;
        network.sever(sender.id, rig.cluster.index());
        rig.cluster.state().connections.close("sender", sender.id);
        rig.world.sleep(Duration::from_secs(1)).await;
        assert!(network.under_way().is_empty() && rig.cluster.documents("app.c").is_empty());
        assert!(!apps(&rig.client).await.contains(&"sender".to_owned()));
        network.heal_all();
        rig.world.sleep(Duration::from_secs(1)).await;
        assert!(rig.cluster.documents("app.c").is_empty());
    });
}

#[test]
fn a_running_operation_can_be_killed() {
    Rig::new(1).run(|rig| async move {
        rig.cluster.hold_commits(true);
        let writer = rig.world.process("writer");
        let connection = rig.world.connect(&writer, &rig.cluster);
        writer.spawn("write", async move {
            let body =
                rawdoc! { "insert": "c", "documents": [{ "_id": 1 }], "writeConcern": { "w": "majority" } };
            let reply = ask(&connection, body).await;
            let error = reply.body.get_document("writeConcernError").unwrap();
            assert_eq!(error.get_i32("code").unwrap(), 11601);
        });
        rig.world.sleep(Duration::from_secs(1)).await;
        let body = rawdoc! { "aggregate": 1, "cursor": {}, "pipeline": [{ "$currentOp": {} }] };
        let reply = rig.client.run(Request::new("admin", body)).await.unwrap();
        let operation =
            batch(&reply).into_iter().find(|operation| operation.get_str("appName").unwrap() == "writer");
        let id = operation.unwrap().get_i32("opid").unwrap();
        ask(&rig.client, rawdoc! { "killOp": 1, "op": id }).await;
        rig.world.sleep(Duration::from_secs(1)).await;
    });
}
