//! Two clusters, a proxy and a migration, and commands as small as they can be written.

use std::time::Duration;

use super::{LONG, Operator, proxy_with, two_sets, uri};
use anyhow::{Context as _, Result, bail, ensure};
use bson::raw::RawBson;
use bson::{Document, RawArrayBuf, RawDocument, RawDocumentBuf, cstr, doc, rawdoc};
use mongodb::{Client, Collection, Database};
use reshard::app::Proxy;
use reshard::migration::control::{Control as _, Phase};
use reshard::migration::engine::Settings;
use reshard::wire::header::Header;
use reshard::wire::op_msg::OpMsg;
use reshard_loadtest::compare;
use reshard_testbed::{ReplicaSet, wait_for};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// Two clusters, a proxy, and a migration of `shop.c`.
pub(crate) struct Bed {
    pub(crate) old: ReplicaSet,
    pub(crate) new: ReplicaSet,
    pub(crate) proxy: Proxy,
    pub(crate) operator: Operator,
    pub(crate) client: Client,
}

impl Bed {
    pub(crate) async fn start(name: &str) -> Result<Self> {
        Self::start_with(name, unhurried()).await
    }

    /// On servers with room for several versions of documents of 16 MB: with the least cache there is, every
    /// thread of a mongod may end up evicting, and nothing is answered any more.
    pub(crate) async fn start_large(name: &str) -> Result<Self> {
        let set = |side| ReplicaSet::builder(&format!("{name}-{side}")).cache_gb(1.0).start();
        let (old, new) = tokio::try_join!(set("old"), set("new"))?;
        Self::between(old, new, unhurried()).await
    }

    pub(crate) async fn start_with(name: &str, settings: Settings) -> Result<Self> {
        let (old, new) = two_sets(name).await?;
        Self::between(old, new, settings).await
    }

    async fn between(old: ReplicaSet, new: ReplicaSet, settings: Settings) -> Result<Self> {
        let proxy = proxy_with(&old.uri(), Some(&new.uri()), settings).await?;
        let operator = Operator::of(&proxy, "m");
        let client = Client::with_uri_str(format!("{}?retryWrites=false", uri(&proxy))).await?;
        Ok(Self { old, new, proxy, operator, client })
    }

    pub(crate) fn shop(&self) -> Database {
        self.client.database("shop")
    }

    pub(crate) fn c(&self) -> Collection<Document> {
        self.shop().collection("c")
    }

    pub(crate) async fn on(set: &ReplicaSet) -> Result<Database> {
        Ok(set.client().await?.database("shop"))
    }

    /// A command through the proxy; `writeErrors` are left to the caller.
    pub(crate) async fn raw(&self, command: RawDocumentBuf) -> Result<Document> {
        raw(&self.shop(), command).await
    }

    /// A write command through the proxy that must succeed.
    pub(crate) async fn write(&self, command: RawDocumentBuf) -> Result<Document> {
        let reply = self.raw(command.clone()).await?;
        ensure!(!reply.contains_key("writeErrors"), "{command:?}: {reply}");
        Ok(reply)
    }

    pub(crate) async fn move_begins(&self) -> Result<()> {
        let _is_there = self.raw(rawdoc! { "create": "c" }).await;
        self.operator.create(&["shop.c"]).await?;
        self.operator.start().await?;
        self.operator.until_synced().await
    }

    /// Half of the reads and of the writes on new.
    pub(crate) async fn half(&self) -> Result<()> {
        self.operator.until_synced().await?;
        self.operator.reads(50).await?;
        self.operator.writes(50).await?;
        Ok(())
    }

    pub(crate) async fn equal(&self) -> Result<()> {
        self.operator.until_level().await?;
        let last = parking_lot::Mutex::new(String::new());
        let equal = wait_for("both sides to be equal", LONG, || async {
            let comparison = compare(&self.old.uri(), &self.new.uri(), "shop.c").await?;
            *last.lock() = comparison.to_string();
            Ok(comparison.is_equal())
        })
        .await;
        if let Err(why) = equal {
            let parked = self.operator.engine.conflicts("m").await?;
            let progress = self.operator.progress().await?;
            bail!("{why:#} {} {parked:?} {progress:?}", last.into_inner());
        }
        ensure!(self.operator.progress().await?.phase != Phase::Failed);
        Ok(())
    }
}

pub(crate) async fn raw(database: &Database, command: RawDocumentBuf) -> Result<Document> {
    let shown = format!("{command:?}").chars().take(300).collect::<String>();
    database.run_raw_command(command).await.with_context(|| shown)
}

pub(crate) fn with_id(id: RawBson, more: &RawDocumentBuf) -> RawDocumentBuf {
    let mut document = RawDocumentBuf::new();
    document.append(cstr!("_id"), id);
    for (name, value) in more.iter().flatten() {
        document.append(name, value);
    }
    document
}

pub(crate) fn by_id(id: &RawBson) -> RawDocumentBuf {
    let mut equal = RawDocumentBuf::new();
    equal.append(cstr!("$eq"), id.clone());
    rawdoc! { "_id": equal }
}

pub(crate) fn insert(documents: impl IntoIterator<Item = RawDocumentBuf>) -> RawDocumentBuf {
    let mut array = RawArrayBuf::new();
    documents.into_iter().for_each(|document| array.push(document));
    rawdoc! { "insert": "c", "documents": array }
}

pub(crate) fn update(q: RawDocumentBuf, u: impl Into<RawBson>) -> RawDocumentBuf {
    let mut statement = rawdoc! { "q": q };
    statement.append(cstr!("u"), u.into());
    rawdoc! { "update": "c", "updates": [statement] }
}

pub(crate) fn delete(q: RawDocumentBuf) -> RawDocumentBuf {
    rawdoc! { "delete": "c", "deletes": [{ "q": q, "limit": 1 }] }
}

pub(crate) async fn sum(c: &Collection<Document>, field: &str) -> Result<i32> {
    use futures::TryStreamExt as _;
    let all: Vec<Document> = c.find(doc! {}).await?.try_collect().await?;
    Ok(all.iter().filter_map(|document| document.get_i32(field).ok()).sum())
}

/// What the next message answers, and what it says.
pub(crate) async fn answer(stream: &mut TcpStream) -> Result<(i32, Document)> {
    let mut bytes = vec![0; 16];
    let read = async {
        stream.read_exact(&mut bytes).await?;
        let header = Header::parse(&bytes)?.context("header")?;
        bytes.resize(header.length, 0);
        stream.read_exact(&mut bytes[16..]).await?;
        anyhow::Ok(header.response_to)
    };
    let to = tokio::time::timeout(LONG, read).await??;
    let body = RawDocument::from_bytes(&bytes[OpMsg::parse(&bytes)?.body])?;
    Ok((to, Document::try_from(body)?))
}

/// No process follows another here, and documents of 16 MB keep a test build busy for long.
fn unhurried() -> Settings {
    Settings { lease: Duration::from_secs(30), ..super::settings() }
}
