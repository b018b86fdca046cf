//! What a client has begun to send when the process is told to stop.

use anyhow::{Context as _, Result, ensure};
use bson::spec::BinarySubtype;
use bson::{Document, doc, rawdoc};
use reshard::wire::op_msg::build;
use reshard_testbed::{ReplicaSet, wait_for};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::raw::{ask_as, reply_within};
use crate::slow_read;
use crate::support::LONG;
use crate::support::process::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_a_request_is_answered_before_a_stop() -> Result<()> {
    let set = ReplicaSet::builder("stop-halfway").start().await?;
    let server = Server::start(&set.uri(), None).await?;
    let direct = set.client().await?;
    let c = direct.database("shop").collection::<Document>("c");
    c.insert_one(doc! { "_id": 1 }).await?;
    // One behind a request that runs until after the drain has begun, and one alone.
    let insert = |id: i32| {
        let insert = rawdoc! { "insert": "c", "documents": [{ "_id": id }], "$db": "shop" };
        build(2, 0, 0, insert.as_bytes(), None)
    };
    let mut alone = tokio::net::TcpStream::connect(("127.0.0.1", server.listen)).await?;
    alone.write_all(&insert(2)[..30]).await?;
    let mut behind = slow_read(&server, &direct, 6_000).await?;
    behind.write_all(&insert(3)[..30]).await?;
    server.signal(Signal::TERM)?;
    let (_, found) = reply_within(&mut behind, LONG).await?;
    ensure!(found.contains_key("cursor"), "{found}");
    for (client, id) in [(&mut behind, 3), (&mut alone, 2)] {
        client.write_all(&insert(id)[30..]).await?;
        let (_, inserted) =
            reply_within(client, LONG).await.with_context(|| format!("{id}: {}", server.tail()))?;
        ensure!(inserted.get_i32("n").ok() == Some(1), "{inserted}");
        ensure!(tokio::time::timeout(LONG, client.read(&mut [0])).await?? == 0, "it is not closed");
    }
    wait_for("its end", LONG, || async { Ok(server.has_ended()) }).await?;
    ensure!(server.exit_code() == Some(0), "{:?}: {}", server.exit_code(), server.tail());
    ensure!(c.count_documents(doc! {}).await? == 3);
    Ok(())
}

/// Who logs in cannot go on with the next program, and is not cut off in the middle all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_a_login_is_answered_before_a_restart() -> Result<()> {
    let set = ReplicaSet::builder("restart-login").auth("ann", "secret").start().await?;
    let server = Server::prepare(&set.uri(), None)?;
    server.reconfigure(|text| text.replacen("[old]", "login = true\n[old]", 1))?;
    server.restart().await?;
    let mut client = tokio::net::TcpStream::connect(("127.0.0.1", server.listen)).await?;
    let payload = |text: &str| bson::Binary { subtype: BinarySubtype::Generic, bytes: text.into() };
    let start = rawdoc! {
        "saslStart": 1, "mechanism": "SCRAM-SHA-256", "payload": payload("n,,n=ann,r=abc"), "$db": "admin",
    };
    let begun = ask_as(&mut client, 1, &start, LONG).await?;
    let next = rawdoc! {
        "saslContinue": 1, "conversationId": begun.get_i32("conversationId")?, "payload": payload("nonsense"),
        "$db": "admin",
    };
    let next = build(2, 0, 0, next.as_bytes(), None);
    client.write_all(&next[..30]).await?;
    server.signal(Signal::USR2)?;
    let restarting = || async { Ok(server.times_logged("restarting") == 1) };
    wait_for("the drain", LONG, restarting).await.with_context(|| server.tail())?;
    client.write_all(&next[30..]).await?;
    let (_, answer) = reply_within(&mut client, LONG).await.with_context(|| server.tail())?;
    ensure!(answer.get_str("codeName").ok() == Some("BadValue"), "{answer}");
    Ok(())
}
