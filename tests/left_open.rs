//! Cursors that a process left open: an application which has read the half of one reads the other half from the
//! process that follows.

mod raw;
mod support;

use anyhow::{Context as _, Result, ensure};
use bson::raw::RawArrayBuf;
use bson::{Document, RawDocumentBuf, doc, rawdoc};
use mongodb::Client;
use raw::ask_as;
use reshard::app::Proxy;
use reshard::state::records::lsid;
use reshard_testbed::ReplicaSet;
use support::{LONG, Operator, proxy, two_sets, uri};
use tokio::net::TcpStream;
use uuid::Uuid;

const NOT_FOUND: i32 = 43;
const FATAL: i32 = 280;
const DOCUMENTS: i32 = 50;

/// A client that sends what it likes, in one session, to whatever process there is.
struct Application {
    session: Uuid,
    stream: TcpStream,
}

impl Application {
    async fn of(proxy: &Proxy) -> Result<Self> {
        Ok(Self { session: Uuid::new_v4(), stream: TcpStream::connect(proxy.address()).await? })
    }

    async fn reconnect(&mut self, proxy: &Proxy) -> Result<()> {
        self.stream = TcpStream::connect(proxy.address()).await?;
        Ok(())
    }

    async fn ask(&mut self, mut body: RawDocumentBuf) -> Result<Document> {
        body.append(bson::cstr!("lsid"), lsid(self.session));
        body.append(bson::cstr!("$db"), "shop");
        ask_as(&mut self.stream, 1, &body, LONG).await
    }

    /// The first five of all documents; returns the cursor.
    async fn find(&mut self, mode: &str) -> Result<i64> {
        let mut find = rawdoc! { "find": "c", "sort": { "_id": 1 }, "batchSize": 5 };
        find.append(bson::cstr!("$readPreference"), rawdoc! { "mode": mode });
        let reply = self.ask(find).await?;
        let cursor = reply.get_document("cursor").with_context(|| reply.to_string())?;
        ensure!(ids(cursor, "firstBatch")? == [0, 1, 2, 3, 4], "{cursor}");
        Ok(cursor.get_i64("id")?)
    }

    async fn get_more(&mut self, cursor: i64) -> Result<Document> {
        self.ask(rawdoc! { "getMore": cursor, "collection": "c", "batchSize": 5 }).await
    }

    /// The documents behind the first `from`.
    async fn rest(&mut self, cursor: i64, from: i32) -> Result<()> {
        let mut found = Vec::new();
        loop {
            let reply = self.get_more(cursor).await?;
            let batch = reply.get_document("cursor").with_context(|| reply.to_string())?;
            found.extend(ids(batch, "nextBatch")?);
            let id = batch.get_i64("id")?;
            if id == 0 {
                break;
            }
            ensure!(id == cursor, "{cursor} goes by {id}");
        }
        ensure!(found == (from..DOCUMENTS).collect::<Vec<_>>(), "{found:?}");
        Ok(())
    }

    async fn kill(&mut self, cursors: &[i64]) -> Result<Document> {
        let mut ids = RawArrayBuf::new();
        cursors.iter().for_each(|id| ids.push(*id));
        self.ask(rawdoc! { "killCursors": "c", "cursors": ids }).await
    }

    /// A change stream, and where it stands.
    async fn watch(&mut self) -> Result<i64> {
        let reply = self
            .ask(rawdoc! { "aggregate": "c", "pipeline": [{ "$changeStream": {} }], "cursor": {} })
            .await?;
        Ok(reply.get_document("cursor").with_context(|| reply.to_string())?.get_i64("id")?)
    }

    /// The keys of the events until there is one of `last`, or until the stream ends by an error, which is returned.
    async fn events(
        &mut self,
        stream: i64,
        last: Option<i32>,
        seen: &mut Vec<i32>,
    ) -> Result<Option<Document>> {
        loop {
            let more = rawdoc! { "getMore": stream, "collection": "c", "maxTimeMS": 200_i64 };
            let reply = self.ask(more).await?;
            let Ok(cursor) = reply.get_document("cursor") else { return Ok(Some(reply)) };
            ensure!(cursor.get_i64("id")? == stream, "{reply}");
            for event in cursor.get_array("nextBatch")? {
                let event = event.as_document().context("an event")?;
                seen.push(event.get_document("documentKey")?.get_i32("_id")?);
            }
            if last.is_some_and(|last| seen.contains(&last)) {
                return Ok(None);
            }
        }
    }
}

fn ids(cursor: &Document, batch: &str) -> Result<Vec<i32>> {
    let documents = cursor.get_array(batch)?.iter();
    documents.map(|document| Ok(document.as_document().context("a document")?.get_i32("_id")?)).collect()
}

fn list(reply: &Document, name: &str) -> Result<Vec<i64>> {
    let ids = reply.get_array(name).with_context(|| reply.to_string())?;
    ids.iter().map(|id| id.as_i64().context("an id")).collect()
}

struct Bed {
    old: ReplicaSet,
    new: ReplicaSet,
    proxy: Proxy,
    operator: Operator,
}

impl Bed {
    async fn start(old: ReplicaSet, new: ReplicaSet) -> Result<Self> {
        let bed = Self::with(old, new).await?;
        let c = bed.collection().await?;
        c.insert_many((0..DOCUMENTS).map(|id| doc! { "_id": id })).await?;
        Ok(bed)
    }

    async fn with(old: ReplicaSet, new: ReplicaSet) -> Result<Self> {
        let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
        let operator = Operator::of(&proxy, "m");
        operator.ready().await?;
        Ok(Self { old, new, proxy, operator })
    }

    async fn migrating(&self) -> Result<()> {
        self.operator.create(&["shop.c"]).await?;
        self.operator.start().await?;
        self.operator.until_synced().await
    }

    async fn collection(&self) -> Result<mongodb::Collection<Document>> {
        Ok(Client::with_uri_str(uri(&self.proxy)).await?.database("shop").collection("c"))
    }

    /// Another process takes over, and `application` finds it.
    async fn succeeded(self, application: &mut Application) -> Result<Self> {
        self.proxy.shutdown().await;
        let bed = Self::with(self.old, self.new).await?;
        application.reconnect(&bed.proxy).await?;
        Ok(bed)
    }
}

/// On the primary and a secondary of old, and on new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursors_are_read_to_their_end_from_the_next_process() -> Result<()> {
    let old = ReplicaSet::builder("left-open-old").nodes(2).start();
    let (old, new) = tokio::try_join!(old, ReplicaSet::builder("left-open-new").start())?;
    let mut bed = Bed::start(old, new).await?;
    let mut application = Application::of(&bed.proxy).await?;
    let (primary, secondary) = (application.find("primary").await?, application.find("secondary").await?);
    bed.migrating().await?;
    bed.operator.reads(100).await?;
    let on_new = application.find("primary").await?;
    let (killed, kept) = (application.find("secondary").await?, application.find("primary").await?);
    bed = bed.succeeded(&mut application).await?;
    for cursor in [primary, secondary, on_new] {
        application.rest(cursor, 5).await?;
        ensure!(application.get_more(cursor).await?.get_i32("code")? == NOT_FOUND, "it was read to its end");
    }
    let reply = application.kill(&[killed, 77, primary]).await?;
    ensure!(list(&reply, "cursorsKilled")? == [killed], "{reply}");
    ensure!(list(&reply, "cursorsNotFound")? == [77, primary], "{reply}");
    let reply = application.get_more(killed).await?;
    ensure!(
        reply.get_i32("code")? == NOT_FOUND && reply.get_str("errmsg")?.contains(&killed.to_string()),
        "{reply}"
    );
    // Found by one that fetches more, and then by one that kills.
    let reply = application.get_more(kept).await?;
    ensure!(ids(reply.get_document("cursor")?, "nextBatch")? == [5, 6, 7, 8, 9], "{reply}");
    let reply = application.kill(&[kept]).await?;
    ensure!(list(&reply, "cursorsKilled")? == [kept], "{reply}");
    bed.proxy.shutdown().await;
    Ok(())
}

/// A stream that old serves goes on, and ends when everything has moved, as if it had been opened here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_stream_goes_on_and_ends_with_the_move() -> Result<()> {
    let (old, new) = two_sets("left-open-stream").await?;
    let mut bed = Bed::start(old, new).await?;
    bed.migrating().await?;
    let mut application = Application::of(&bed.proxy).await?;
    let (stream, late) = (application.watch().await?, application.watch().await?);
    bed.collection().await?.insert_one(doc! { "_id": 100 }).await?;
    bed = bed.succeeded(&mut application).await?;
    let mut seen = Vec::new();
    bed.collection().await?.insert_one(doc! { "_id": 101 }).await?;
    ensure!(application.events(stream, Some(101), &mut seen).await?.is_none(), "it has ended");
    ensure!(seen == [100, 101], "{seen:?}");

    bed.operator.until_synced().await?;
    bed.operator.reads(100).await?;
    bed.operator.writes(100).await?;
    bed.collection().await?.insert_one(doc! { "_id": 102 }).await?;
    // Neither the one that was found before the move, nor one that is found after it, goes on for good.
    for (stream, mut seen) in [(stream, seen), (late, Vec::new())] {
        let end = tokio::time::timeout(LONG, application.events(stream, None, &mut seen)).await;
        let end = end.context("it goes on")??.context("an error")?;
        ensure!(end.get_i32("code")? == FATAL, "{end}");
        ensure!(seen.starts_with(&[100, 101]), "{seen:?}");
    }
    bed.proxy.shutdown().await;
    Ok(())
}
