//! What a server does with numbers of sessions: barriers, and questions about retries.

use crate::support::bed::{Bed, delete, insert, update};
use anyhow::{Result, ensure};
use bson::{Document, RawDocumentBuf, cstr, doc, rawdoc};
use reshard::cluster::command::SharedCluster;
use reshard::cluster::{Cluster, Settings as ClusterSettings};
use reshard::converge::barriers::{Layout, bar};
use reshard::converge::sessions::session_id;
use reshard::model::side::Side;
use reshard::shutdown::Tasks;
use reshard::state::records::lsid;
use reshard_testbed::{ReplicaSet, Version};
use uuid::Uuid;

/// One server, and writes with sessions and numbers of the test's own.
struct Numbered {
    cluster: SharedCluster,
    _tasks: Tasks,
}

impl Numbered {
    async fn at(set: &ReplicaSet) -> Result<Self> {
        let tasks = Tasks::default();
        let cluster = Cluster::connect(ClusterSettings::parse(&set.uri()).await?, &tasks).await?;
        Ok(Self { cluster: cluster.pools(4), _tasks: tasks })
    }

    async fn send(&self, command: &RawDocumentBuf, session: Uuid, number: i64) -> Result<(i32, Document)> {
        let mut body = command.clone();
        body.append(cstr!("lsid"), lsid(session));
        body.append(cstr!("txnNumber"), number);
        let reply = self.cluster.run(reshard::cluster::command::Request::new("shop", body)).await?;
        Ok((reply.error().map_or(0, |error| error.code), Document::try_from(&*reply.body)?))
    }
}

async fn barriers_and_questions(version: Version, name: &str) -> Result<()> {
    let set = ReplicaSet::builder(name).version(version).start().await?;
    let server = Numbered::at(&set).await?;
    let mark = |id: i32| update(rawdoc! { "_id": id }, rawdoc! { "$inc": { "n": 1 } });
    let upsert = rawdoc! { "update": "c", "updates": [{ "q": { "_id": 1 }, "u": { "$inc": { "n": 1 } }, "upsert": true }] };

    // A real write with a higher number refuses what arrives later, also after the server was killed.
    let (barred, open) = (session_id("dead", Side::New, 0), session_id("dead", Side::New, 1));
    ensure!(server.send(&upsert, barred, 1).await?.0 == 0);
    bar(&*server.cluster, Layout::ReplicaSet, barred, 10).await.map_err(anyhow::Error::msg)?;
    ensure!(server.send(&mark(1), barred, 2).await?.0 == 225);
    // One that matches nothing is forgotten with the server's memory, and bars nothing then.
    let nothing = server.send(&mark(404), open, 10).await?;
    ensure!(nothing.0 == 0 && nothing.1.get_i32("n")? == 0, "{nothing:?}");
    set.kill9_all().await?;
    set.start_all().await?;
    let late = server.send(&mark(1), barred, 9).await?;
    ensure!(late.0 == 225, "{late:?}");
    let late = server.send(&mark(1), open, 9).await?;
    ensure!(late.0 == 0 && late.1.get_i32("n")? == 1, "{late:?}");

    // A delete that cannot match asks whether a numbered statement was executed, whatever it was.
    let writes = [
        insert([rawdoc! { "_id": 50 }, rawdoc! { "_id": 51 }]),
        mark(1),
        rawdoc! { "findAndModify": "c", "query": { "_id": 1 }, "update": { "$inc": { "n": 1 } } },
        delete(rawdoc! { "_id": 51 }),
    ];
    let ask = |statement: i32| {
        rawdoc! {
            "delete": "c", "stmtIds": [statement],
            "deletes": [{ "q": { "_id": 1, "$expr": false }, "limit": 1 }],
        }
    };
    for write in &writes {
        let (done, not_done) = (Uuid::new_v4(), Uuid::new_v4());
        ensure!(server.send(write, done, 3).await?.0 == 0);
        let yes = server.send(&ask(0), done, 3).await?;
        ensure!(yes.0 == 0 && yes.1.get_i32("n")? == 1, "{write:?}: {yes:?}");
        let beyond = server.send(&ask(2), done, 3).await?;
        ensure!(beyond.0 == 0 && beyond.1.get_i32("n")? == 0, "{write:?}: {beyond:?}");
        let no = server.send(&ask(0), not_done, 3).await?;
        ensure!(no.0 == 0 && no.1.get_i32("n")? == 0, "{write:?}: {no:?}");
    }
    let shop = Bed::on(&set).await?;
    let left = shop.collection::<Document>("c").find_one(doc! { "_id": 1 }).await?;
    ensure!(left == Some(doc! { "_id": 1, "n": 4 }), "a question changes nothing: {left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn barriers_and_questions_about_retries() -> Result<()> {
    tokio::try_join!(
        barriers_and_questions(Version::V6_0, "trap-bar-6"),
        barriers_and_questions(Version::V5_0, "trap-bar-5")
    )?;
    Ok(())
}
