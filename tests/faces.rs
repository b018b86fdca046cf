//! The faces of listeners on the raw wire: what drivers are told, and that it holds.

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bson::oid::ObjectId;
use bson::{Document, RawDocument, RawDocumentBuf, doc, rawdoc};
use reshard::app::{Builder, Proxy};
use reshard::cluster;
use reshard::listener::face::{Face, ReplicaSet as ShownSet, Secondary};
use reshard::listener::{Entrance, Settings};
use reshard::wire::header::Header;
use reshard::wire::op_msg::{EXHAUST_ALLOWED, MORE_TO_COME, OpMsg, build};
use reshard_testbed::{ReplicaSet, Version, wait_for};
use support::Operator;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(60);

fn free() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A proxy with a listener of each face: `listen`, `set`, `service`.
async fn proxy(old: &ReplicaSet) -> Result<Proxy> {
    let secondary = Secondary { address: free(), host: None, tags: vec![("dc".into(), "east".into())] };
    let set = ShownSet { name: "rs-app".into(), host: None, tags: Vec::new(), secondaries: vec![secondary] };
    let mut settings = Settings::new(free());
    for (name, face) in [("set", Face::ReplicaSet(set)), ("service", Face::LoadBalanced)] {
        settings.entrances.push(Entrance {
            name: name.into(),
            address: free(),
            face,
            tls: None,
            login: false,
        });
    }
    Ok(Builder::new(cluster::Settings::parse(&old.uri()).await?, settings).start().await?)
}

/// A client that says what it wants, byte by byte.
struct Raw(TcpStream);

impl Raw {
    async fn connect(address: SocketAddr) -> Result<Self> {
        Ok(Self(TcpStream::connect(address).await?))
    }

    async fn ask(&mut self, body: &RawDocument) -> Result<Document> {
        self.send(7, 0, body).await?;
        Ok(self.receive().await?.2)
    }

    async fn send(&mut self, number: i32, flags: u32, body: &RawDocument) -> Result<()> {
        Ok(self.0.write_all(&build(number, 0, flags, body.as_bytes(), None)).await?)
    }

    /// The next reply, behind its header and its flags.
    async fn receive(&mut self) -> Result<(Header, u32, Document)> {
        let mut bytes = vec![0; 16];
        tokio::time::timeout(LIMIT, self.0.read_exact(&mut bytes)).await??;
        let header = Header::parse(&bytes)?.context("header")?;
        bytes.resize(header.length, 0);
        self.0.read_exact(&mut bytes[16..]).await?;
        let OpMsg { flags, body, .. } = OpMsg::parse(&bytes)?;
        Ok((header, flags, Document::try_from(RawDocument::from_bytes(&bytes[body])?)?))
    }

    async fn ok(&mut self, body: &RawDocument) -> Result<Document> {
        let answer = self.ask(body).await?;
        ensure!(answer.get_f64("ok")? == 1.0, "{body:?}: {answer}");
        Ok(answer)
    }

    async fn code(&mut self, body: &RawDocument) -> Result<i32> {
        let answer = self.ask(body).await?;
        Ok(answer.get_i32("code").unwrap_or(0))
    }
}

fn hello() -> RawDocumentBuf {
    rawdoc! { "hello": 1, "$db": "admin" }
}

fn with(mut body: RawDocumentBuf, extra: &Document) -> Result<RawDocumentBuf> {
    for (name, value) in extra {
        body.append(
            bson::raw::CString::try_from(name.as_str())?,
            bson::raw::RawBson::try_from(value.clone())?,
        );
    }
    Ok(body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_listener_shows_its_own_face() -> Result<()> {
    let old = ReplicaSet::builder("old").start().await?;
    let proxy = proxy(&old).await?;
    let mut router = Raw::connect(proxy.address()).await?;
    let shown = router.ok(&hello()).await?;
    ensure!(shown.get_str("msg")? == "isdbgrid" && !shown.contains_key("setName"), "{shown}");
    ensure!(!router.ok(&with(hello(), &doc! { "loadBalanced": true })?).await?.contains_key("serviceId"));

    let addresses = proxy.addresses_of("set");
    let hosts: Vec<bson::Bson> = addresses.iter().map(|address| address.to_string().into()).collect();
    let mut first = Raw::connect(addresses[0]).await?.ok(&hello()).await?;
    let mut second = Raw::connect(addresses[1]).await?.ok(&hello()).await?;
    for (shown, is_primary) in [(&first, true), (&second, false)] {
        ensure!(*shown.get_array("hosts")? == hosts && shown.get_str("setName")? == "rs-app", "{shown}");
        ensure!(shown.get_bool("isWritablePrimary")? == is_primary, "{shown}");
        ensure!(shown.get_bool("secondary")? != is_primary, "{shown}");
        ensure!(!shown.contains_key("msg"), "{shown}");
    }
    // As a real member of one says it, but for what is only one member's or this set's own.
    let real = direct_answer(old.node(0).address().parse()?, &hello()).await?;
    let kinds = |hello: &Document| -> BTreeMap<String, bson::spec::ElementType> {
        hello.iter().map(|(name, value)| (name.clone(), value.element_type())).collect()
    };
    let mut expected = kinds(&real);
    expected.retain(|name, _| !["$clusterTime", "operationTime"].contains(&name.as_str()));
    first.remove("helloOk");
    ensure!(kinds(&first) == expected, "{first}\n{real}");
    ensure!(second.remove("tags") == Some(doc! { "dc": "east" }.into()), "{second}");

    let mut service = Raw::connect(proxy.addresses_of("service")[0]).await?;
    let refused = service.ask(&hello()).await?;
    ensure!(refused.get_i32("code")? == 354 && refused.get_str("errmsg")?.contains("loadBalanced=true"));
    let balanced = with(hello(), &doc! { "loadBalanced": true })?;
    let id = service.ok(&balanced).await?.get_object_id("serviceId")?;
    let mut another = Raw::connect(proxy.addresses_of("service")[0]).await?;
    ensure!(another.ok(&balanced).await?.get_object_id("serviceId")? == id, "one for the process");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hello_refuses_what_servers_refuse() -> Result<()> {
    let old = ReplicaSet::builder("old").start().await?;
    let proxy = proxy(&old).await?;
    let good = doc! { "driver": { "name": "d", "version": "1" }, "os": { "type": "Linux" } };
    let and = |name: &str, value: bson::Bson| {
        let mut client = good.clone();
        client.insert(name, value);
        doc! { "client": client }
    };
    let version = doc! { "processId": ObjectId::new(), "counter": 6_i64 };
    let cases = [
        doc! { "client": &good },
        doc! { "client": "x" },
        doc! { "client": {} },
        and("driver", "x".into()),
        and("os", doc! {}.into()),
        and("application", doc! { "name": "x".repeat(128) }.into()),
        and("application", doc! { "name": "x".repeat(129) }.into()),
        and("application", doc! { "name": 1 }.into()),
        and("platform", "x".repeat(900).into()),
        and("platform", "x".repeat(1000).into()),
        doc! { "topologyVersion": &version, "maxAwaitTimeMS": 20_000 },
        doc! { "topologyVersion": &version },
        doc! { "maxAwaitTimeMS": 20_000 },
        doc! { "topologyVersion": &version, "maxAwaitTimeMS": -1 },
        doc! { "topologyVersion": &version, "maxAwaitTimeMS": "x" },
        doc! { "topologyVersion": 1, "maxAwaitTimeMS": 20_000 },
        doc! { "topologyVersion": { "counter": 6_i64 }, "maxAwaitTimeMS": 20_000 },
        doc! { "topologyVersion": { "processId": ObjectId::new() }, "maxAwaitTimeMS": 20_000 },
        doc! { "topologyVersion": { "processId": 1, "counter": 6_i64 }, "maxAwaitTimeMS": 20_000 },
        doc! { "topologyVersion": { "processId": ObjectId::new(), "counter": 6 }, "maxAwaitTimeMS": 20_000 },
        doc! { "helloOk": true },
        doc! { "loadBalanced": true },
        doc! { "something": { "new": 1 } },
    ];
    let server: SocketAddr = old.node(0).address().parse()?;
    // Before 5.0 less than no time had another code.
    let code =
        |answer: &Document| answer.get_i32("code").ok().map(|code| if code == 31373 { 51024 } else { code });
    for name in ["hello", "isMaster", "ismaster"] {
        for case in &cases {
            let mut body = RawDocumentBuf::new();
            body.append(bson::raw::CString::try_from(name)?, 1);
            body.append(bson::cstr!("$db"), "admin");
            let body = with(body, case)?;
            for address in proxy.addresses_of("set") {
                let mut raw = Raw::connect(address).await?;
                let (theirs, ours) = (direct_answer(server, &body).await?, raw.ask(&body).await?);
                ensure!(
                    code(&theirs) == code(&ours) && theirs.get("helloOk") == ours.get("helloOk"),
                    "{body:?}: {theirs}, but {ours}"
                );
                // Whoever has introduced himself, rightly or not, may not do it again.
                let again = with(hello(), &doc! { "client": &good })?;
                let introduced = case.contains_key("client");
                ensure!(raw.code(&again).await? == if introduced { 186 } else { 0 }, "{case}");
            }
        }
    }
    // Routers take no more than 512 bytes: they add to it on the way.
    let long = with(hello(), &and("platform", "x".repeat(500).into()))?;
    ensure!(Raw::connect(proxy.address()).await?.code(&long).await? == 185);
    Ok(())
}

/// A `hello` that knows what is shown, and waits for something else.
async fn waits(raw: &mut Raw, millis: i32) -> Result<RawDocumentBuf> {
    let version = raw.ok(&hello()).await?.get_document("topologyVersion")?.clone();
    with(hello(), &doc! { "topologyVersion": version, "maxAwaitTimeMS": millis })
}

/// By members of sets, by routers, and by servers: a server stands beside the faces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_waits_for_what_never_comes() -> Result<()> {
    let old = ReplicaSet::builder("old").start().await?;
    let proxy = proxy(&old).await?;
    let server: SocketAddr = old.node(0).address().parse()?;
    for address in [server, proxy.address()].into_iter().chain(proxy.addresses_of("set")) {
        let mut raw = Raw::connect(address).await?;
        let body = waits(&mut raw, 400).await?;
        let asked = Instant::now();
        let shown = raw.ok(&body).await?;
        ensure!(asked.elapsed() >= Duration::from_millis(400), "{address} did not wait");
        let known = Document::try_from(&*body)?;
        ensure!(shown.get("topologyVersion") == known.get("topologyVersion"), "{shown}");
        let foreign = doc! { "processId": ObjectId::new(), "counter": 0_i64 };
        let body = with(hello(), &doc! { "topologyVersion": foreign, "maxAwaitTimeMS": i32::MAX })?;
        ensure!(raw.ok(&body).await?.get("topologyVersion") == known.get("topologyVersion"));
        let mut later = known.get_document("topologyVersion")?.clone();
        later.insert("counter", later.get_i64("counter")? + 1);
        let body = with(hello(), &doc! { "topologyVersion": later, "maxAwaitTimeMS": 1 })?;
        ensure!(raw.code(&body).await? == 31_382);
    }
    // What stands behind one that waits is answered, and in its order.
    for address in proxy.addresses_of("set") {
        let mut raw = Raw::connect(address).await?;
        let body = waits(&mut raw, i32::MAX).await?;
        raw.send(11, 0, &body).await?;
        raw.send(12, 0, &rawdoc! { "ping": 1, "$db": "admin" }).await?;
        ensure!(raw.receive().await?.0.response_to == 11);
        ensure!(raw.receive().await?.0.response_to == 12);
    }
    Ok(())
}

/// A process that ends lets drivers know first: they ask on, and leave when they have nothing more to ask.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_that_waits_is_ended_before_the_others_are() -> Result<()> {
    let old = ReplicaSet::builder("old").start().await?;
    let mut settings = Settings::new(free());
    settings.farewell = Duration::from_secs(600);
    let proxy = Builder::new(cluster::Settings::parse(&old.uri()).await?, settings).start().await?;
    let (mut monitor, mut other) =
        (Raw::connect(proxy.address()).await?, Raw::connect(proxy.address()).await?);
    let body = waits(&mut monitor, i32::MAX).await?;
    monitor.send(7, 0, &body).await?;
    other.ok(&rawdoc! { "ping": 1, "$db": "admin" }).await?;
    let ends = tokio::spawn(proxy.shutdown());
    let end = tokio::time::timeout(Duration::from_secs(300), monitor.0.read(&mut [0])).await?;
    ensure!(end? == 0, "it was answered");
    for _ in 0..10 {
        other.ok(&rawdoc! { "ping": 1, "$db": "admin" }).await?;
    }
    ensure!(!ends.is_finished(), "it did not wait");
    drop(other);
    ensure!(ends.await?, "it did not end in time");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_is_answered_again_and_again_until_the_process_ends() -> Result<()> {
    let old = ReplicaSet::builder("old").start().await?;
    let proxy = proxy(&old).await?;
    let server: SocketAddr = old.node(0).address().parse()?;
    for address in [server, proxy.address()].into_iter().chain(proxy.addresses_of("set")) {
        let mut raw = Raw::connect(address).await?;
        let known = waits(&mut raw, 50).await?;
        let foreign = doc! { "processId": ObjectId::new(), "counter": 0_i64 };
        let unknown = with(hello(), &doc! { "topologyVersion": foreign, "maxAwaitTimeMS": 50 })?;
        for body in [known, unknown] {
            let mut raw = Raw::connect(address).await?;
            raw.send(7, EXHAUST_ALLOWED, &body).await?;
            let mut before = 7;
            for _ in 0..5 {
                let (header, flags, shown) = raw.receive().await?;
                ensure!(header.response_to == before && flags == MORE_TO_COME, "{header:?}, {flags}");
                ensure!(shown.get_f64("ok")? == 1.0, "{shown}");
                before = header.request_id;
            }
        }
    }
    let mut waiting = Vec::new();
    for (address, flags) in [(proxy.address(), 0), (proxy.addresses_of("set")[0], EXHAUST_ALLOWED)] {
        let mut raw = Raw::connect(address).await?;
        let body = waits(&mut raw, i32::MAX).await?;
        raw.send(7, flags, &body).await?;
        waiting.push(raw);
    }
    proxy.shutdown().await;
    for mut raw in waiting {
        let read = tokio::time::timeout(LIMIT, raw.0.read(&mut [0; 16])).await?;
        ensure!(matches!(read, Ok(0) | Err(_)), "the process ends, and the wait does not");
    }
    Ok(())
}

async fn direct_answer(server: SocketAddr, body: &RawDocument) -> Result<Document> {
    Raw::connect(server).await?.ask(body).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_address_of_a_secondary_takes_what_a_secondary_takes() -> Result<()> {
    let old = ReplicaSet::builder("old").start().await?;
    let proxy = proxy(&old).await?;
    let addresses = proxy.addresses_of("set");
    let (mut primary, mut secondary) = (Raw::connect(addresses[0]).await?, Raw::connect(addresses[1]).await?);
    let insert = rawdoc! { "insert": "c", "documents": [{ "_id": 1 }], "$db": "shop" };
    ensure!(secondary.code(&insert).await? == 10107);
    primary.ok(&insert).await?;
    let find = rawdoc! { "find": "c", "$db": "shop" };
    ensure!(secondary.code(&find).await? == 13435);
    let mode = |mode: &str| doc! { "$readPreference": { "mode": mode } };
    ensure!(secondary.code(&with(find.clone(), &mode("primary"))?).await? == 13435);
    let found = secondary.ok(&with(find, &mode("secondaryPreferred"))?).await?;
    ensure!(found.get_document("cursor")?.get_array("firstBatch")?.len() == 1, "{found}");
    ensure!(secondary.code(&rawdoc! { "drop": "c", "$db": "shop" }).await? == 10107);
    secondary.ok(&rawdoc! { "ping": 1, "$db": "admin" }).await?;
    Ok(())
}

/// How many cursors and transactions are open on the server.
async fn open(set: &ReplicaSet) -> Result<(i64, i64)> {
    let status = set.node(0).admin(doc! { "serverStatus": 1 }).await?;
    let cursors = status.get_document("metrics")?.get_document("cursor")?.get_document("open")?;
    Ok((cursors.get_i64("total")?, status.get_document("transactions")?.get_i64("currentOpen")?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_balancer_what_a_connection_has_opened_ends_with_it() -> Result<()> {
    let old = ReplicaSet::builder("old").start().await?;
    let proxy = proxy(&old).await?;
    let documents: bson::RawArrayBuf = (0..10).map(|id| rawdoc! { "_id": id }).collect();
    let mut router = Raw::connect(proxy.address()).await?;
    router.ok(&rawdoc! { "insert": "c", "documents": documents, "$db": "shop" }).await?;
    let find = rawdoc! { "find": "c", "batchSize": 2, "$db": "shop" };
    let lsid = || doc! { "id": bson::Binary::from(bson::Uuid::new()) };
    let begin = |lsid: Document, id: i32| {
        let body = rawdoc! { "insert": "c", "documents": [{ "_id": id }], "$db": "shop" };
        let transaction =
            doc! { "lsid": lsid, "txnNumber": 1_i64, "startTransaction": true, "autocommit": false };
        with(body, &transaction)
    };
    let kept = router.ok(&find).await?.get_document("cursor")?.get_i64("id")?;
    let mut settled = open(&old).await?;
    wait_for("the server to count what is open", LIMIT, || async { Ok(open(&old).await?.1 == 0) }).await?;

    let mut service = Raw::connect(proxy.addresses_of("service")[0]).await?;
    service.ok(&with(hello(), &doc! { "loadBalanced": true })?).await?;
    service.ok(&find).await?;
    service.ok(&find).await?;
    service.ok(&begin(lsid(), 100)?).await?;
    let committed = lsid();
    service.ok(&begin(committed.clone(), 101)?).await?;
    let commit = rawdoc! { "commitTransaction": 1, "$db": "admin" };
    service.ok(&with(commit, &doc! { "lsid": committed, "txnNumber": 1_i64, "autocommit": false })?).await?;
    settled.0 += 2;
    settled.1 = 1;
    wait_for("cursors and a transaction", LIMIT, || async { Ok(open(&old).await? == settled) }).await?;
    drop(service);
    settled.0 -= 2;
    settled.1 = 0;
    wait_for("what belonged to the connection to end", LIMIT, || async { Ok(open(&old).await? == settled) })
        .await?;
    let mut other = Raw::connect(proxy.address()).await?;
    let more = rawdoc! { "getMore": kept, "collection": "c", "batchSize": 2, "$db": "shop" };
    ensure!(other.ok(&more).await?.get_document("cursor")?.get_array("nextBatch")?.len() == 2);
    let count =
        other.ok(&rawdoc! { "count": "c", "query": { "_id": { "$gte": 100 } }, "$db": "shop" }).await?;
    ensure!(count.get_i32("n")? == 1, "{count}");
    Ok(())
}

/// What is the same at any time. The version names the process.
fn lasting(mut hello: Document) -> Document {
    for changing in ["localTime", "connectionId", "lastWrite", "topologyVersion"] {
        hello.remove(changing);
    }
    hello
}

async fn shown_at(addresses: &[SocketAddr]) -> Result<Vec<Document>> {
    let mut all = Vec::new();
    for address in addresses {
        let mut raw = Raw::connect(*address).await?;
        // Right after a start the clusters may not be known yet; drivers ask again, too.
        let answer = wait_for_hello(&mut raw).await?;
        all.push(lasting(answer));
    }
    Ok(all)
}

async fn wait_for_hello(raw: &mut Raw) -> Result<Document> {
    let begun = tokio::time::Instant::now();
    loop {
        let answer = raw.ask(&hello()).await?;
        if answer.get_f64("ok")? == 1.0 || begun.elapsed() > LIMIT {
            return Ok(answer);
        }
    }
}

/// Addresses that stay the same over restarts.
fn free_addresses() -> Result<[SocketAddr; 3]> {
    let listeners = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0"));
    let [first, second, third] = listeners;
    Ok([first?.local_addr()?, second?.local_addr()?, third?.local_addr()?])
}

/// A proxy between two clusters with a router and a replica set at these addresses.
async fn between(old: &ReplicaSet, new: &ReplicaSet, addresses: &[SocketAddr; 3]) -> Result<Proxy> {
    let secondary = Secondary { address: addresses[2], host: None, tags: Vec::new() };
    let set = ShownSet { name: "rs-app".into(), host: None, tags: Vec::new(), secondaries: vec![secondary] };
    let mut settings = Settings::new(addresses[0]);
    settings.entrances.push(Entrance {
        name: "set".into(),
        address: addresses[1],
        face: Face::ReplicaSet(set),
        tls: None,
        login: false,
    });
    let builder = Builder::new(cluster::Settings::parse(&old.uri()).await?, settings)
        .with_new(cluster::Settings::parse(&new.uri()).await?)
        .with_migrations(support::settings());
    Ok(builder.start().await?)
}

/// While a migration runs, drivers are told the same, whoever runs it and whichever cluster is away at the start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hello_stays_as_it_is_over_a_migration_and_over_restarts() -> Result<()> {
    let older = ReplicaSet::builder("shown-new").version(Version::V4_4).start();
    let (old, new) =
        tokio::try_join!(ReplicaSet::builder("shown-old").version(Version::V6_0).start(), older)?;
    let ports =
        [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()));
    let [Ok(first), Ok(second), Ok(third)] = ports else { anyhow::bail!("no free ports") };
    let addresses = [first, second, third];
    let proxy = between(&old, &new, &addresses).await?;
    let before = shown_at(&addresses).await?;
    ensure!(before[0].get_i32("maxWireVersion")? == 9, "what both have in common: {}", before[0]);

    let [_, second, third] = addresses;
    let options = format!("mongodb://{second},{third}/?replicaSet=rs-app&readPreference=secondaryPreferred");
    let client = mongodb::Client::with_uri_str(options).await?;
    let items = client.database("shop").collection::<Document>("items");
    items.insert_one(doc! { "_id": 1 }).await?;
    let operator = Operator::of(&proxy, "m");
    operator.create(&["shop.items"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    ensure!(shown_at(&addresses).await? == before, "both clusters are written");
    operator.reads(100).await?;
    ensure!(shown_at(&addresses).await? == before, "reads are on new");
    proxy.shutdown().await;

    // What is left could do more than what was promised.
    new.stop_all().await?;
    let proxy = between(&old, &new, &addresses).await?;
    ensure!(shown_at(&addresses).await? == before, "after a restart without new");
    proxy.shutdown().await;
    new.start_all().await?;
    let proxy = between(&old, &new, &addresses).await?;
    ensure!(shown_at(&addresses).await? == before, "after a restart with both");
    // The client was there all the time.
    items.insert_one(doc! { "_id": 2 }).await.context("after two restarts")?;
    ensure!(items.count_documents(doc! {}).await.context("a read after two restarts")? == 2);

    let operator = Operator::of(&proxy, "m");
    operator.ready().await?;
    operator.until_synced().await?;
    operator.writes(100).await?;
    ensure!(shown_at(&addresses).await? == before, "writes are on new");
    items.insert_one(doc! { "_id": 3 }).await?;
    proxy.shutdown().await;
    old.stop_all().await?;
    let proxy = between(&old, &new, &addresses).await?;
    ensure!(shown_at(&addresses).await? == before, "after a restart without old");
    // A driver repeats a read once, and both addresses have lost their connections.
    wait_for("the client to be back", LIMIT, || async {
        Ok(items.count_documents(doc! {}).await.is_ok_and(|count| count == 3))
    })
    .await?;
    proxy.shutdown().await;
    Ok(())
}

/// A new cluster that is away when a process starts may turn out to be the older one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_migration_starts_when_clients_were_told_too_much() -> Result<()> {
    let older = ReplicaSet::builder("told-new").version(Version::V4_4).start();
    let (old, new) = tokio::try_join!(ReplicaSet::builder("told-old").version(Version::V6_0).start(), older)?;
    old.client().await?.database("shop").create_collection("items").await?;
    new.stop_all().await?;
    let proxy = support::proxy(&old.uri(), Some(&new.uri())).await?;
    let told = shown_at(&[proxy.address()]).await?;
    ensure!(told[0].get_i32("maxWireVersion")? == 17, "old alone: {}", told[0]);
    new.start_all().await?;
    let operator = Operator::of(&proxy, "m");
    operator.create(&["shop.items"]).await?;
    let refused = operator.start().await.err().context("it started")?.to_string();
    ensure!(
        refused.contains("new has maxWireVersion 9, and clients of this process were told 17"),
        "{refused}"
    );
    proxy.shutdown().await;
    let proxy = support::proxy(&old.uri(), Some(&new.uri())).await?;
    let operator = Operator::of(&proxy, "m");
    operator.ready().await?;
    // What is stored of it is read a moment later.
    wait_for("the migration to start", LIMIT, || async { Ok(operator.start().await.is_ok()) }).await?;
    ensure!(shown_at(&[proxy.address()]).await?[0].get_i32("maxWireVersion")? == 9);
    proxy.shutdown().await;
    Ok(())
}

/// A transaction that a client behind a balancer has left open would hold up a move until the server ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_has_gone_holds_up_no_move() -> Result<()> {
    let (old, new) = support::two_sets("gone").await?;
    let mut settings = Settings::new(free());
    settings.entrances[0].face = Face::LoadBalanced;
    let proxy = Builder::new(cluster::Settings::parse(&old.uri()).await?, settings)
        .with_new(cluster::Settings::parse(&new.uri()).await?)
        .with_migrations(support::settings())
        .start()
        .await?;
    old.client().await?.database("shop").create_collection("items").await?;
    let operator = Operator::of(&proxy, "m");
    operator.create(&["shop.items"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    operator.reads(100).await?;
    operator.until_synced().await?;
    let mut client = Raw::connect(proxy.address()).await?;
    client.ok(&with(hello(), &doc! { "loadBalanced": true })?).await?;
    let lsid = doc! { "id": bson::Binary::from(bson::Uuid::new()) };
    let transaction =
        doc! { "lsid": lsid, "txnNumber": 1_i64, "startTransaction": true, "autocommit": false };
    let insert = rawdoc! { "insert": "items", "documents": [{ "_id": 1 }], "$db": "shop" };
    client.ok(&with(insert, &transaction)?).await?;
    drop(client);
    operator.writes(100).await?;
    let left = new.client().await?.database("shop").collection::<Document>("items");
    ensure!(left.count_documents(doc! {}).await? == 0, "the transaction was not committed");
    Ok(())
}

/// Finds that members which are no primary have answered.
async fn reads_of_secondaries(sets: [&ReplicaSet; 2]) -> Result<[i64; 2]> {
    let mut counts = [0; 2];
    for (count, set) in counts.iter_mut().zip(sets) {
        let primary = set.primary().await?;
        for (_, node) in set.nodes().iter().enumerate().filter(|(number, _)| *number != primary) {
            let status = node.admin(doc! { "serverStatus": 1 }).await?;
            *count += status.get_document("opcounters")?.get_i64("query")?;
        }
    }
    Ok(counts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secondaries_answer_in_every_phase() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ReplicaSet::builder("phases-old").nodes(2).start(),
        ReplicaSet::builder("phases-new").nodes(2).start()
    )?;
    let addresses = free_addresses()?;
    let proxy = between(&old, &new, &addresses).await?;
    let uri = format!(
        "mongodb://{}/?replicaSet=rs-app&readPreference=secondary&w=2&maxStalenessSeconds=90",
        addresses[1]
    );
    let client = mongodb::Client::with_uri_str(uri).await?;
    let items = client.database("shop").collection::<Document>("items");
    items.insert_many((0..20).map(|id| doc! { "_id": id })).await?;
    let operator = Operator::of(&proxy, "m");
    let read = async |phase: &str| -> Result<[i64; 2]> {
        let before = reads_of_secondaries([&old, &new]).await?;
        for id in 0..20 {
            let found = items.find_one(doc! { "_id": id }).await.with_context(|| phase.to_owned())?;
            ensure!(found.is_some(), "{phase}: {id} is missing");
        }
        let after = reads_of_secondaries([&old, &new]).await?;
        let counts = [after[0] - before[0], after[1] - before[1]];
        ensure!(counts[0] + counts[1] >= 20, "{phase}: secondaries answered {counts:?}");
        Ok(counts)
    };
    read("no migration").await?;
    operator.create(&["shop.items"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    read("both clusters are written").await?;
    operator.reads(50).await?;
    read("half of the reads").await?;
    operator.reads(100).await?;
    let counts = read("all reads").await?;
    ensure!(counts[1] >= 20, "new's secondary answered {counts:?}");
    operator.until_synced().await?;
    operator.writes(50).await?;
    read("half of the writes").await?;
    operator.until_synced().await?;
    operator.writes(100).await?;
    let counts = read("all writes").await?;
    ensure!(counts[1] >= 20, "new's secondary answered {counts:?}");
    Ok(())
}

/// Servers add their `topologyVersion` to replies that tell of a change of their state. To a driver it would be that
/// of the proxy, and a newer one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_of_servers_reach_no_client() -> Result<()> {
    let (old, new) = support::two_sets("versions").await?;
    let proxy = support::proxy(&old.uri(), Some(&new.uri())).await?;
    let operator = Operator::of(&proxy, "m");
    let server: SocketAddr = old.node(0).address().parse()?;
    let mut id = 0;
    for migrates in [false, true] {
        if migrates {
            old.client().await?.database("shop").create_collection("items").await?;
            operator.create(&["shop.items"]).await?;
            operator.start().await?;
        }
        let failures = [doc! { "errorCode": 10107 }, doc! { "errorCode": 189 }];
        for failure in failures {
            for address in [server, proxy.address()] {
                let mut data =
                    doc! { "failCommands": ["insert", "findAndModify"], "namespace": "shop.items" };
                data.extend(failure.clone());
                let times = doc! { "times": 1 };
                let mut raw = Raw::connect(address).await?;
                for command in ["insert", "findAndModify"] {
                    id += 1;
                    let body = match command {
                        "insert" => {
                            rawdoc! { "insert": "items", "documents": [{ "_id": id }], "$db": "shop" }
                        }
                        _ => rawdoc! {
                            "findAndModify": "items", "query": { "_id": id }, "update": { "$set": { "n": 1 } },
                            "upsert": true, "$db": "shop",
                        },
                    };
                    let point = doc! { "configureFailPoint": "failCommand", "mode": &times, "data": &data };
                    old.fail_point(point).await?;
                    let answer = raw.ask(&body).await?;
                    ensure!(answer.contains_key("code"), "{failure}: {answer}");
                    let told = answer.contains_key("topologyVersion");
                    ensure!(told == (address == server), "{failure}, migrating: {migrates}: {answer}");
                }
            }
        }
    }
    Ok(())
}
