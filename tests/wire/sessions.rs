//! What is killed with a session is killed wherever the session has been.

use anyhow::{Context as _, Result, ensure};
use bson::{Bson, Document, RawDocumentBuf, doc, rawdoc};
use reshard::app::Proxy;
use reshard::model::side::Side;
use reshard_testbed::{Node, ReplicaSet, wait_for};
use tokio::net::TcpStream;

use crate::raw::ask_as;
use crate::support::{LONG, Operator, proxy, uri};

/// Cursors of a session that are open at one server.
async fn open_at(node: &Node, session: &Bson) -> Result<usize> {
    let all = doc! { "$currentOp": { "allUsers": true, "idleCursors": true } };
    let ours = doc! { "$match": { "type": "idleCursor", "lsid.id": session } };
    let found = node.admin(doc! {
        "aggregate": 1, "pipeline": [all, ours], "cursor": {}, "$readPreference": { "mode": "secondaryPreferred" },
    });
    let found = found.await?;
    Ok(found.get_document("cursor")?.get_array("firstBatch")?.len())
}

async fn open_at_all(sets: [&ReplicaSet; 2], session: &Bson) -> Result<Vec<usize>> {
    let mut open = Vec::new();
    for node in sets.into_iter().flat_map(ReplicaSet::nodes) {
        open.push(open_at(node, session).await?);
    }
    Ok(open)
}

/// Opens cursors in the session, for one document each, until there is one on either cluster.
async fn open_on_both(proxy: &Proxy, stream: &mut TcpStream, lsid: &RawDocumentBuf) -> Result<()> {
    let cursors = &proxy.shared().cursors;
    let before = Side::BOTH.map(|side| cursors.count(side));
    for id in 0..100 {
        let find = rawdoc! {
            "find": "orders", "filter": { "_id": id }, "batchSize": 0, "lsid": lsid.clone(), "$db": "shop",
        };
        let opened = ask_as(stream, id, &find, LONG).await?;
        ensure!(opened.get_document("cursor")?.get_i64("id")? != 0, "{opened}");
        if Side::BOTH.into_iter().zip(before).all(|(side, before)| cursors.count(side) > before) {
            return Ok(());
        }
    }
    anyhow::bail!("all of them are on one cluster")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_killed_at_every_server_that_has_a_cursor_of_it() -> Result<()> {
    let start = |name, nodes| ReplicaSet::builder(name).nodes(nodes).start();
    let (old, new) = tokio::try_join!(start("kill-old", 2), start("kill-new", 1))?;
    let direct = old.client().await?.database("shop").collection::<Document>("orders");
    direct.insert_many((0..100).map(|id| doc! { "_id": id })).await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let operator = Operator::of(&proxy, "orders");
    operator.create(&["shop.orders"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    operator.reads(50).await?;

    let mut stream = TcpStream::connect(proxy.address()).await.context(uri(&proxy))?;
    let (own, others) = (bson::Uuid::new(), bson::Uuid::new());
    let [own, others] = [own, others].map(bson::Binary::from);
    let lsid = rawdoc! { "id": own.clone() };
    open_on_both(&proxy, &mut stream, &lsid).await?;
    let on_secondary = rawdoc! {
        "find": "other", "batchSize": 0, "lsid": lsid.clone(), "$readPreference": { "mode": "secondary" }, "$db": "shop",
    };
    direct.client().database("shop").collection("other").insert_one(doc! { "_id": 1 }).await?;
    let (own, others_of) = (Bson::from(own), Bson::from(others.clone()));
    let sets = [&old, &new];
    wait_for("a cursor at each server", LONG, || async {
        let mut stream = TcpStream::connect(proxy.address()).await?;
        ask_as(&mut stream, 1, &on_secondary, LONG).await?;
        Ok(open_at_all(sets, &own).await?.iter().all(|open| *open > 0))
    })
    .await?;
    let kept = rawdoc! { "find": "other", "batchSize": 0, "lsid": { "id": others }, "$db": "shop" };
    ask_as(&mut stream, 2, &kept, LONG).await?;

    let kill = rawdoc! { "killSessions": [lsid], "$db": "admin" };
    let killed = ask_as(&mut stream, 3, &kill, LONG).await?;
    ensure!(killed.get_f64("ok")? == 1.0, "{killed}");
    let open = open_at_all(sets, &own).await?;
    ensure!(open.iter().all(|open| *open == 0), "{open:?} are left at the servers");
    let open = open_at_all(sets, &others_of).await?;
    ensure!(open.iter().sum::<usize>() == 1, "{open:?} of another session");
    // The end of a session that nobody has is no error either.
    let end = rawdoc! { "endSessions": [{ "id": bson::Binary::from(bson::Uuid::new()) }], "$db": "admin" };
    ensure!(ask_as(&mut stream, 4, &end, LONG).await?.get_f64("ok")? == 1.0);
    Ok(())
}
