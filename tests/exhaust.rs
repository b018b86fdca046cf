//! Exhaust cursors at the face of a replica set: batches follow each other unasked, as from a server.

mod raw;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bson::{Document, RawDocument, rawdoc};
use reshard::app::Builder;
use reshard::cluster;
use reshard::listener::face::{Face, ReplicaSet as ShownSet};
use reshard::listener::{Entrance, Settings};
use reshard::wire::op_msg::{EXHAUST_ALLOWED, MORE_TO_COME, OpMsg, build};
use reshard_testbed::ReplicaSet;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(30);

/// What comes of a `getMore` that allows it: of each reply whether another follows, and how much it holds.
async fn exhausted(address: &str) -> Result<Vec<(u32, usize)>> {
    let mut stream = TcpStream::connect(address).await?;
    let find = rawdoc! { "find": "c", "batchSize": 2, "$db": "d" };
    let found = raw::ask_as(&mut stream, 1, &find, LIMIT).await?;
    let cursor = found.get_document("cursor")?.get_i64("id")?;
    let more = rawdoc! { "getMore": cursor, "collection": "c", "batchSize": 2, "$db": "d" };
    stream.write_all(&build(2, 0, EXHAUST_ALLOWED, more.as_bytes(), None)).await?;
    let (mut replies, mut before) = (Vec::new(), 2);
    loop {
        let (header, bytes) = tokio::time::timeout(LIMIT, raw::read(&mut stream)).await??;
        ensure!(header.response_to == before, "an answer to {} instead of {before}", header.response_to);
        before = header.request_id;
        let parts = OpMsg::parse(&bytes)?;
        let body = Document::try_from(RawDocument::from_bytes(&bytes[parts.body])?)?;
        let batch = body.get_document("cursor").context("a cursor")?.get_array("nextBatch")?;
        replies.push((parts.flags, batch.len()));
        if parts.flags & MORE_TO_COME == 0 {
            break;
        }
    }
    // The connection goes on as ever.
    let ping = rawdoc! { "ping": 1, "$db": "d" };
    ensure!(raw::ask_as(&mut stream, 9, &ping, LIMIT).await?.get_f64("ok")? == 1.0);
    Ok(replies)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_follow_each_other_as_from_a_server() -> Result<()> {
    let set = ReplicaSet::builder("exhaust").start().await?;
    let documents: Vec<_> = (0..9).map(|number| bson::doc! { "_id": number }).collect();
    set.client().await?.database("d").collection("c").insert_many(documents).await?;
    let free = || SocketAddr::from(([127, 0, 0, 1], 0));
    let mut settings = Settings::new(free());
    let shown = ShownSet { name: "app".into(), host: None, tags: Vec::new(), secondaries: Vec::new() };
    let face = Face::ReplicaSet(shown);
    settings.entrances.push(Entrance { name: "set".into(), address: free(), face, tls: None, login: false });
    let proxy = Builder::new(cluster::Settings::parse(&set.uri()).await?, settings).start().await?;

    let direct = exhausted(set.node(0).address()).await?;
    ensure!(direct.len() == 4 && direct[0] == (MORE_TO_COME, 2), "{direct:?}");
    let address = proxy.addresses_of("set").first().context("an address")?.to_string();
    ensure!(exhausted(&address).await? == direct);
    // A router of that version asks to be asked.
    let router = exhausted(&proxy.address().to_string()).await?;
    ensure!(router == [(0, 2)], "{router:?}");
    proxy.shutdown().await;
    Ok(())
}
