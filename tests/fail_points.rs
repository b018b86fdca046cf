//! Fail points that are set through the proxy: they fail what comes there as they fail what comes to a server.

mod raw;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use bson::{Document, RawDocumentBuf, doc};
use reshard::app::{Builder, Proxy};
use reshard::cluster;
use reshard::listener::face::{Face, ReplicaSet as ShownSet, Secondary};
use reshard::listener::{Entrance, Settings};
use reshard_testbed::ReplicaSet;
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(60);
/// What differs between two servers that do the same.
const OF_ONE_SERVER: [&str; 6] =
    ["$clusterTime", "operationTime", "opTime", "electionId", "topologyVersion", "localTime"];

fn free() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A proxy that shows a replica set with a secondary.
async fn proxy(old: &ReplicaSet) -> Result<Proxy> {
    let secondary = Secondary { address: free(), host: None, tags: Vec::new() };
    let set = ShownSet { name: "app".into(), host: None, tags: Vec::new(), secondaries: vec![secondary] };
    let mut settings = Settings::new(free());
    let face = Face::ReplicaSet(set);
    settings.entrances.push(Entrance { name: "set".into(), address: free(), face, tls: None, login: false });
    Ok(Builder::new(cluster::Settings::parse(&old.uri()).await?, settings).start().await?)
}

fn introduction() -> Document {
    let client = doc! {
        "application": { "name": "shop" }, "driver": { "name": "d", "version": "1" }, "os": { "type": "x" },
    };
    doc! { "hello": 1, "client": client, "$db": "admin" }
}

struct Line {
    address: String,
    stream: TcpStream,
    number: i32,
}

impl Line {
    /// A connection of the application `shop`.
    async fn to(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        let mut line = Self { address: address.to_owned(), stream, number: 0 };
        line.ask(introduction()).await?;
        Ok(line)
    }

    async fn ask(&mut self, command: Document) -> Result<Document> {
        self.number += 1;
        let body = RawDocumentBuf::try_from(&command)?;
        raw::ask_as(&mut self.stream, self.number, &body, LIMIT).await
    }

    /// The answer, or that there was none but a closed connection; then there is a new one.
    async fn answer(&mut self, command: Document) -> Result<Document> {
        match self.ask(command).await {
            Ok(mut answer) => {
                for field in OF_ONE_SERVER {
                    answer.remove(field);
                }
                Ok(answer)
            }
            Err(_) => {
                self.stream = TcpStream::connect(&self.address).await?;
                let introduced = self.ask(introduction()).await.is_ok();
                if !introduced {
                    self.stream = TcpStream::connect(&self.address).await?;
                }
                Ok(doc! { "closed": true, "introduced": introduced })
            }
        }
    }
}

fn set(mode: impl Into<bson::Bson>, data: Document) -> Document {
    doc! { "configureFailPoint": "failCommand", "mode": mode.into(), "data": data, "$db": "admin" }
}

/// Numbered writes lose their connection.
fn lose(mode: impl Into<bson::Bson>, data: Document) -> Document {
    doc! { "configureFailPoint": "onPrimaryTransactionalWrite", "mode": mode.into(), "data": data, "$db": "admin" }
}

fn ping() -> Document {
    doc! { "ping": 1, "$db": "admin" }
}

fn insert() -> Document {
    doc! { "insert": "c", "documents": [{ "x": 1 }], "$db": "d" }
}

fn numbered(number: i64) -> Document {
    let id = bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: vec![7; 16] };
    let mut insert = insert();
    insert.extend(doc! { "lsid": { "id": id }, "txnNumber": number });
    insert
}

/// What is said to a server and to the proxy, in this order.
fn conversation() -> Vec<Document> {
    let times = |times: i32| doc! { "times": times };
    let labels = || bson::Bson::Array(vec!["X".into()]);
    let not_primary = doc! { "code": 91, "errmsg": "x" };
    let hello = |name: &str| doc! { "failCommands": [name], "errorCode": 11600 };
    let named = |name: &str| doc! { "failCommands": ["ping"], "errorCode": 8, "appName": name };
    let within = |namespace: &str| doc! { "failCommands": ["find"], "errorCode": 5, "namespace": namespace };
    let find = || doc! { "find": "c", "filter": { "x": 2 }, "projection": { "_id": 1 }, "$db": "d" };
    let mut limited = ping();
    limited.insert("maxTimeMS", 20);
    let blocked = doc! { "failCommands": ["ping"], "blockConnection": true, "blockTimeMS": 100 };
    vec![
        set(times(1), doc! { "failCommands": ["ping"], "errorCode": 11600 }),
        ping(),
        ping(),
        set(times(1), doc! { "failCommands": ["ping"], "errorCode": 123_456 }),
        ping(),
        set(times(2), doc! { "failCommands": ["ping"], "closeConnection": true }),
        ping(),
        ping(),
        ping(),
        set(times(2), blocked),
        ping(),
        limited,
        set(times(2), doc! { "failCommands": ["insert"], "errorCode": 91 }),
        insert(),
        numbered(1),
        numbered(2),
        set(times(1), doc! { "failCommands": ["insert"], "errorCode": 91, "errorLabels": labels() }),
        numbered(3),
        set(times(2), doc! { "failCommands": ["insert"], "writeConcernError": not_primary.clone() }),
        insert(),
        numbered(4),
        numbered(5),
        set(
            times(1),
            doc! { "failCommands": ["insert"], "writeConcernError": not_primary, "errorLabels": labels() },
        ),
        numbered(6),
        set(times(1), hello("hello")),
        doc! { "isMaster": 1, "$db": "nowhere" },
        doc! { "hello": 1, "$db": "nowhere" },
        set(times(1), hello("isMaster")),
        doc! { "ismaster": 1, "$db": "nowhere" },
        set("alwaysOn", named("other")),
        ping(),
        set("alwaysOn", named("shop")),
        ping(),
        set(doc! { "skip": 1 }, doc! { "failAllCommands": true, "errorCode": 9 }),
        ping(),
        ping(),
        set("alwaysOn", within("d.other")),
        find(),
        set("alwaysOn", within("d.c")),
        find(),
        set("off", doc! {}),
        find(),
        // What is not as it should be.
        set("sometimes", doc! {}),
        set(doc! {}, doc! {}),
        set(times(-1), doc! {}),
        doc! { "configureFailPoint": "failCommand", "$db": "admin" },
        doc! { "configureFailPoint": "failCommand", "mode": "off", "data": 5, "$db": "admin" },
        doc! { "configureFailPoint": "failCommand", "mode": "off", "$db": "d" },
        // Others are the servers'.
        doc! { "configureFailPoint": "failNothing", "mode": "off", "$db": "admin" },
        ping(),
    ]
}

/// The same of numbered writes, and of what introduces itself.
fn more() -> Vec<Document> {
    let times = |times: i32| doc! { "times": times };
    vec![
        lose("alwaysOn", doc! {}),
        insert(),
        numbered(10),
        numbered(10),
        lose(times(1), doc! { "failBeforeCommitExceptionCode": 1 }),
        numbered(11),
        numbered(11),
        lose(doc! { "skip": 1 }, doc! {}),
        numbered(12),
        numbered(13),
        lose("alwaysOn", doc! { "closeConnection": false }),
        numbered(14),
        lose("off", doc! {}),
        numbered(15),
        // A connection that introduces itself is known by its name at once.
        set(
            "alwaysOn",
            doc! { "failCommands": ["hello", "ping"], "closeConnection": true, "appName": "shop" },
        ),
        ping(),
        set("off", doc! {}),
        ping(),
    ]
}

/// Of a `hello` only whether it failed: what it tells is another test's.
fn comparable(command: &Document, mut answer: Document) -> Document {
    let failed = answer.contains_key("code") || answer.contains_key("closed");
    let name = command.keys().next().map(|name| name.to_lowercase()).unwrap_or_default();
    if !failed && ["hello", "ismaster"].contains(&name.as_str()) {
        return doc! { "ok": 1.0 };
    }
    // Counted by whoever holds it.
    answer.remove("count");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_fail_at_the_proxy_as_they_do_at_a_server() -> Result<()> {
    let (direct, old) =
        tokio::try_join!(ReplicaSet::builder("direct").start(), ReplicaSet::builder("old").start())?;
    let proxy = proxy(&old).await?;
    let mut to_server = Line::to(direct.node(0).address()).await?;
    let mut through = Line::to(&proxy.address().to_string()).await?;
    for command in conversation().into_iter().chain(more()) {
        let wanted = comparable(&command, to_server.answer(command.clone()).await?);
        let got = comparable(&command, through.answer(command.clone()).await?);
        ensure!(
            bson::serialize_to_vec(&wanted)? == bson::serialize_to_vec(&got)?,
            "{command}\nwanted {wanted}\ngot    {got}"
        );
    }
    proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_address_has_its_own_and_servers_have_the_say() -> Result<()> {
    let old = ReplicaSet::builder("old").start().await?;
    let proxy_ = proxy(&old).await?;
    let addresses = proxy_.addresses_of("set").to_vec();
    let [primary, secondary] = addresses.as_slice() else { bail!("{addresses:?}") };
    let mut primary = Line::to(&primary.to_string()).await?;
    let mut secondary = Line::to(&secondary.to_string()).await?;
    let fail = set("alwaysOn", doc! { "failCommands": ["ping"], "errorCode": 8 });
    ensure!(secondary.ask(fail.clone()).await?.get_f64("ok")? == 1.0);
    ensure!(secondary.ask(ping()).await?.get_i32("code")? == 8);
    ensure!(primary.ask(ping()).await?.get_f64("ok")? == 1.0);
    // The server behind has heard of it and fails nothing.
    ensure!(Line::to(old.node(0).address()).await?.ask(ping()).await?.get_f64("ok")? == 1.0);
    proxy_.shutdown().await;

    let production = ReplicaSet::builder("production").param("enableTestCommands", "0").start().await?;
    let proxy = proxy(&production).await?;
    let mut client = Line::to(&proxy.address().to_string()).await?;
    let answer = client.ask(fail).await?;
    ensure!(answer.get_i32("code")? == 59, "{answer}");
    ensure!(client.ask(ping()).await?.get_f64("ok")? == 1.0);
    proxy.shutdown().await;
    Ok(())
}
