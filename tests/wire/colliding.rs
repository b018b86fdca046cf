//! Two servers that give out the same cursor id.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bson::{Bson, Document, RawDocument, RawDocumentBuf, doc, rawdoc};
use bytes::BytesMut;
use parking_lot::Mutex;
use reshard::clock::SystemClock;
use reshard::cluster::{Cluster, Pools, Selection, Settings};
use reshard::model::side::Side;
use reshard::router::{Operation, Route, Router, Shared};
use reshard::shutdown::Tasks;
use reshard::wire::op_msg::{OpMsg, build};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use crate::raw::read;
use crate::support::LONG;

/// The id of every cursor.
const ID: i64 = 7;

/// A primary with one cursor.
struct Fake {
    name: &'static str,
    address: String,
    /// The ids that it was asked for, in this order.
    asked: Mutex<Vec<i64>>,
}

impl Fake {
    async fn start(name: &'static str) -> Result<Arc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let fake = Arc::new(Self { name, address, asked: Mutex::default() });
        let server = Arc::clone(&fake);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = Arc::clone(&server);
                tokio::spawn(async move { server.serve(stream).await });
            }
        });
        Ok(fake)
    }

    async fn serve(&self, mut stream: TcpStream) -> Result<()> {
        loop {
            let (header, message) = read(&mut stream).await?;
            let body = OpMsg::parse(&message)?.body;
            let body = Document::try_from(RawDocument::from_bytes(&message[body])?)?;
            let reply = RawDocumentBuf::try_from(&self.answer(&body)?)?;
            stream.write_all(&build(1, header.request_id, 0, reply.as_bytes(), None)).await?;
        }
    }

    fn answer(&self, asked: &Document) -> Result<Document> {
        let batch = vec![Bson::from(doc! { "from": self.name })];
        let (command, first) = asked.iter().next().context("an empty command")?;
        Ok(match command.as_str() {
            "find" => doc! { "cursor": { "firstBatch": batch, "id": ID, "ns": "d.c" }, "ok": 1.0 },
            "getMore" => {
                let id = first.as_i64().context("an id")?;
                self.asked.lock().push(id);
                match id {
                    ID => doc! { "cursor": { "nextBatch": batch, "id": ID, "ns": "d.c" }, "ok": 1.0 },
                    _ => doc! { "ok": 0.0, "code": 43, "errmsg": format!("cursor id {id} not found") },
                }
            }
            "killCursors" => {
                let ids = asked.get_array("cursors")?.clone();
                self.asked.lock().extend(ids.iter().filter_map(Bson::as_i64));
                let (killed, none): (_, [i64; 0]) = (ids, []);
                doc! {
                    "cursorsKilled": killed, "cursorsNotFound": none.to_vec(), "cursorsAlive": none.to_vec(),
                    "cursorsUnknown": none.to_vec(), "ok": 1.0,
                }
            }
            _ => doc! {
                "ismaster": true, "setName": self.name, "hosts": [&self.address], "me": &self.address,
                "minWireVersion": 0, "maxWireVersion": 17, "ok": 1.0,
            },
        })
    }

    fn was_asked(&self) -> Vec<i64> {
        std::mem::take(&mut self.asked.lock())
    }
}

/// Sends the database `new` to the new cluster.
struct ByDatabase;

impl Route for ByDatabase {
    fn side(&self, operation: &Operation<'_>) -> Side {
        if operation.command.database == Some("new") { Side::New } else { Side::Old }
    }
}

async fn pools(fake: &Fake, tasks: &Tasks) -> Result<Arc<Pools>> {
    let settings = Settings::parse(&format!("mongodb://{}/", fake.address)).await?;
    let cluster = Cluster::connect(settings, tasks).await?;
    cluster.wait_for(&Selection::Primary, LONG).await?;
    Ok(cluster.pools(2))
}

async fn ask(router: &Router, body: &RawDocumentBuf) -> Result<Document> {
    let message = build(1, 0, 0, body.as_bytes(), None);
    let mut reply = BytesMut::new();
    router.handle(&Operation::parse(&message, 1)?, &mut reply).await;
    let body = OpMsg::parse(&reply)?.body;
    Ok(Document::try_from(RawDocument::from_bytes(&reply[body])?)?)
}

async fn open(router: &Router, database: &str) -> Result<i64> {
    let found = ask(router, &rawdoc! { "find": "c", "$db": database }).await?;
    Ok(found.get_document("cursor")?.get_i64("id")?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursors_of_one_id_are_two_to_the_client_and_reach_their_servers() -> Result<()> {
    let (old, new) = (Fake::start("old").await?, Fake::start("new").await?);
    let tasks = Tasks::default();
    let both = [Some(pools(&old, &tasks).await?), Some(pools(&new, &tasks).await?)];
    let router = Router::new(Shared::new(Arc::new(SystemClock)), both, Arc::new(ByDatabase));
    let ids = [open(&router, "old").await?, open(&router, "new").await?];
    ensure!(ids[0] == ID && ids[1] != ID, "{ids:?}");
    for (id, fake, other) in [(ids[1], &new, &old), (ids[0], &old, &new), (ids[1], &new, &old)] {
        let more = rawdoc! { "getMore": id, "collection": "c", "batchSize": 5, "$db": "d" };
        let fetched = ask(&router, &more).await?;
        let cursor = fetched.get_document("cursor")?;
        ensure!(cursor.get_i64("id")? == id, "{fetched}");
        ensure!(*cursor.get_array("nextBatch")? == vec![doc! { "from": fake.name }.into()], "{fetched}");
        ensure!(fake.was_asked() == [ID] && other.was_asked().is_empty());
    }
    let killed = ask(&router, &rawdoc! { "killCursors": "c", "cursors": [ids[1]], "$db": "d" }).await?;
    ensure!(*killed.get_array("cursorsKilled")? == vec![ids[1].into()], "{killed}");
    ensure!(new.was_asked() == [ID] && old.was_asked().is_empty(), "the other one was killed");
    // It is gone, and the one with the same id at the other server is not.
    let more = |id: i64| rawdoc! { "getMore": id, "collection": "c", "$db": "d" };
    let gone = ask(&router, &more(ids[1])).await?;
    ensure!(gone.get_i32("code")? == 43, "{gone}");
    // A process before this one might have left one open that goes by the name which the client gives.
    ensure!(new.was_asked() == [ids[1]] && old.was_asked() == [ids[1]], "it was looked for by another name");
    ensure!(ask(&router, &more(ids[0])).await?.get_document("cursor")?.get_i64("id")? == ID);
    ensure!(old.was_asked() == [ID]);
    // Both in one command: each server gets its own, and the client its names.
    let again = open(&router, "new").await?;
    let both = rawdoc! { "killCursors": "c", "cursors": [again, ids[0]], "$db": "d" };
    let killed = ask(&router, &both).await?;
    ensure!(*killed.get_array("cursorsKilled")? == vec![again.into(), ids[0].into()], "{killed}");
    ensure!(old.was_asked() == [ID] && new.was_asked() == [ID]);
    Ok(())
}
