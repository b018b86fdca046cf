//! The traps that have hurt others, each sprung on real servers through a running migration.

mod support;

use std::str::FromStr as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bson::raw::{RawBson, RawDocumentBuf};
use bson::spec::BinarySubtype;
use bson::{Decimal128, Document, RawArrayBuf, RawDocument, Timestamp, cstr, doc, oid::ObjectId, rawdoc};
use mongodb::options::SessionOptions;
use mongodb::{Client, ClientSession, Collection, Database};
use reshard::app::Proxy;
use reshard::cluster::command::SharedCluster;
use reshard::cluster::{Cluster, Settings as ClusterSettings};
use reshard::converge::barriers::{Layout, bar};
use reshard::converge::sessions::session_id;
use reshard::migration::control::{Control as _, Phase};
use reshard::migration::engine::Settings;
use reshard::model::side::Side;
use reshard::shutdown::Tasks;
use reshard::state::records::lsid;
use reshard::wire::header::Header;
use reshard::wire::op_msg::{MORE_TO_COME, OpMsg, build};
use reshard_loadtest::compare;
use reshard_testbed::{ReplicaSet, Version, wait_for};
use support::{LONG, Operator, me, proxy_with, two_sets, uri};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uuid::Uuid;

/// Two clusters, a proxy, and a migration of `shop.c`.
struct Bed {
    old: ReplicaSet,
    new: ReplicaSet,
    proxy: Proxy,
    operator: Operator,
    client: Client,
}

impl Bed {
    async fn start(name: &str) -> Result<Self> {
        let (old, new) = two_sets(name).await?;
        // No process follows another here, and documents of 16 MB keep a test build busy for long.
        let settings = Settings { lease: Duration::from_secs(30), ..support::settings() };
        let proxy = proxy_with(&old.uri(), Some(&new.uri()), settings).await?;
        let operator = Operator::of(&proxy, "m");
        let client = Client::with_uri_str(format!("{}?retryWrites=false", uri(&proxy))).await?;
        Ok(Self { old, new, proxy, operator, client })
    }

    fn shop(&self) -> Database {
        self.client.database("shop")
    }

    fn c(&self) -> Collection<Document> {
        self.shop().collection("c")
    }

    async fn on(set: &ReplicaSet) -> Result<Database> {
        Ok(set.client().await?.database("shop"))
    }

    /// A command through the proxy; `writeErrors` are left to the caller.
    async fn raw(&self, command: RawDocumentBuf) -> Result<Document> {
        raw(&self.shop(), command).await
    }

    /// A write command through the proxy that must succeed.
    async fn write(&self, command: RawDocumentBuf) -> Result<Document> {
        let reply = self.raw(command.clone()).await?;
        ensure!(!reply.contains_key("writeErrors"), "{command:?}: {reply}");
        Ok(reply)
    }

    async fn move_begins(&self) -> Result<()> {
        let _is_there = self.raw(rawdoc! { "create": "c" }).await;
        self.operator.create(&["shop.c"]).await?;
        self.operator.start().await?;
        self.operator.until_synced().await
    }

    /// Half of the reads and of the writes on new.
    async fn half(&self) -> Result<()> {
        self.operator.until_synced().await?;
        self.operator.reads(50).await?;
        self.operator.writes(50).await?;
        Ok(())
    }

    async fn equal(&self) -> Result<()> {
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

async fn raw(database: &Database, command: RawDocumentBuf) -> Result<Document> {
    let shown = format!("{command:?}").chars().take(300).collect::<String>();
    database.run_raw_command(command).await.with_context(|| shown)
}

fn decimal(text: &str) -> Decimal128 {
    Decimal128::from_str(text).expect("a decimal")
}

/// `_id`s of every type; each is one key, and no two are equal.
fn ids() -> Vec<RawBson> {
    let nested = rawdoc! { "b": -0.0, "a": [1, 2.5, { "c": null }], "$d": "x" };
    let mut ids: Vec<RawBson> = vec![
        RawBson::Int32(1),
        RawBson::Double(2.0),
        RawBson::Int64(3),
        RawBson::Decimal128(decimal("4.00")),
        RawBson::Double(-0.0),
        RawBson::Double(f64::NAN),
        RawBson::Double(f64::INFINITY),
        RawBson::Decimal128(decimal("-Infinity")),
        RawBson::Double(0.1),
        RawBson::Decimal128(decimal("0.1")),
        RawBson::Int64(9_007_199_254_740_993),
        RawBson::Double(9_007_199_254_740_992.0),
        RawBson::Int64(i64::MAX),
        RawBson::Double(9_223_372_036_854_775_808.0),
        RawBson::Decimal128(decimal("1E+6000")),
        RawBson::Null,
        RawBson::MinKey,
        RawBson::MaxKey,
        RawBson::Boolean(true),
        RawBson::String(String::new()),
        RawBson::String("1".into()),
        RawBson::String("é\u{0}z".into()),
        RawBson::String("x".repeat(1500)),
        RawBson::ObjectId(ObjectId::from_bytes([7; 12])),
        RawBson::DateTime(bson::DateTime::from_millis(-1)),
        RawBson::Timestamp(Timestamp { time: 0, increment: 0 }),
        RawBson::Timestamp(Timestamp { time: 7, increment: 1 }),
        RawBson::JavaScriptCode("f()".into()),
        RawBson::Document(rawdoc! {}),
        RawBson::Document(rawdoc! { "a": 1, "b": 2 }),
        RawBson::Document(rawdoc! { "b": 2, "a": 1 }),
        RawBson::Document(rawdoc! { "a": { "_id": NumberForms::Long.of(1) } }),
    ];
    let mut plain = RawDocumentBuf::new();
    for (name, value) in nested.iter().flatten().filter(|(name, _)| !name.as_str().starts_with('$')) {
        plain.append(name, value);
    }
    ids.push(RawBson::Document(plain));
    for subtype in [BinarySubtype::Generic, BinarySubtype::Uuid, BinarySubtype::UserDefined(0x80)] {
        ids.push(RawBson::Binary(bson::Binary { subtype, bytes: vec![9; 16] }));
    }
    ids
}

/// One number in the types that are one `_id`.
#[derive(Clone, Copy)]
enum NumberForms {
    Int,
    Long,
    Double,
    Decimal,
}

impl NumberForms {
    const ALL: [Self; 4] = [Self::Int, Self::Long, Self::Double, Self::Decimal];

    fn of(self, value: i32) -> RawBson {
        match self {
            Self::Int => RawBson::Int32(value),
            Self::Long => RawBson::Int64(value.into()),
            Self::Double => RawBson::Double(value.into()),
            Self::Decimal => RawBson::Decimal128(decimal(&format!("{value}.00"))),
        }
    }
}

fn with_id(id: RawBson, more: &RawDocumentBuf) -> RawDocumentBuf {
    let mut document = RawDocumentBuf::new();
    document.append(cstr!("_id"), id);
    for (name, value) in more.iter().flatten() {
        document.append(name, value);
    }
    document
}

fn by_id(id: &RawBson) -> RawDocumentBuf {
    let mut equal = RawDocumentBuf::new();
    equal.append(cstr!("$eq"), id.clone());
    rawdoc! { "_id": equal }
}

fn insert(documents: impl IntoIterator<Item = RawDocumentBuf>) -> RawDocumentBuf {
    let mut array = RawArrayBuf::new();
    documents.into_iter().for_each(|document| array.push(document));
    rawdoc! { "insert": "c", "documents": array }
}

fn update(q: RawDocumentBuf, u: impl Into<RawBson>) -> RawDocumentBuf {
    let mut statement = rawdoc! { "q": q };
    statement.append(cstr!("u"), u.into());
    rawdoc! { "update": "c", "updates": [statement] }
}

fn delete(q: RawDocumentBuf) -> RawDocumentBuf {
    rawdoc! { "delete": "c", "deletes": [{ "q": q, "limit": 1 }] }
}

/// Each key by its value: changed, and deleted and made again as another type.
async fn work_on_ids(bed: &Bed, round: i32) -> Result<()> {
    for id in ids() {
        let reply = bed.write(update(by_id(&id), rawdoc! { "$inc": { "n": 1 } })).await?;
        ensure!(reply.get_i32("n")? == 1, "{id:?}: {reply}");
        let find = rawdoc! { "find": "c", "filter": by_id(&id) };
        let found = bed.raw(find).await?;
        let batch = found.get_document("cursor")?.get_array("firstBatch")?;
        ensure!(batch.len() == 1, "{id:?}: {batch:?}");
        let n = batch[0].as_document().context("a document")?.get_i32("n")?;
        ensure!(n == round, "{id:?}: n is {n}, not {round}");
    }
    for (number, from) in (100..).zip(NumberForms::ALL) {
        for (number, to) in (number * 10..).zip(NumberForms::ALL) {
            let _gone = bed.write(delete(by_id(&NumberForms::Int.of(number)))).await?;
            bed.write(insert([with_id(from.of(number), &rawdoc! { "form": "from" })])).await?;
            let gone = bed.write(delete(by_id(&to.of(number)))).await?;
            ensure!(gone.get_i32("n")? == 1, "{number}");
            bed.write(insert([with_id(to.of(number), &rawdoc! { "form": "to" })])).await?;
            let form = NumberForms::ALL[usize::try_from(round).unwrap_or(0) % 4];
            bed.write(update(by_id(&form.of(number)), rawdoc! { "form": round })).await?;
        }
    }
    // A batch that names one key in four forms.
    let incs: Vec<_> = NumberForms::ALL
        .iter()
        .map(|form| rawdoc! { "q": by_id(&form.of(1000)), "u": { "$inc": { "all": 1 } } })
        .collect();
    let mut updates = RawArrayBuf::new();
    incs.into_iter().for_each(|inc| updates.push(inc));
    let reply = bed.write(rawdoc! { "update": "c", "updates": updates }).await?;
    ensure!(reply.get_i32("n")? == 4, "{reply}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_of_every_type_and_one_number_in_many_forms() -> Result<()> {
    let bed = Bed::start("trap-ids").await?;
    bed.write(insert(ids().into_iter().map(|id| with_id(id, &rawdoc! { "n": 0 })))).await?;
    bed.move_begins().await?;
    bed.equal().await?;
    work_on_ids(&bed, 1).await?;
    bed.equal().await?;
    // A change of form that the streams see only when it is over.
    bed.operator.engine.pause(&me(), "m").await?;
    let past = Bed::on(&bed.old).await?;
    for (number, form) in (1000..).zip(NumberForms::ALL) {
        raw(&past, delete(by_id(&form.of(number)))).await?;
        raw(&past, insert([with_id(NumberForms::Double.of(number), &rawdoc! { "form": "past" })])).await?;
    }
    bed.operator.engine.resume(&me(), "m").await?;
    bed.operator.until_synced().await?;
    bed.equal().await?;
    bed.half().await?;
    work_on_ids(&bed, 2).await?;
    bed.equal().await?;
    for id in ids() {
        bed.write(delete(by_id(&id))).await?;
    }
    bed.equal().await?;
    bed.write(insert(ids().into_iter().map(|id| with_id(id, &rawdoc! { "n": 2 })))).await?;
    work_on_ids(&bed, 3).await?;
    bed.operator.rollback().await?;
    work_on_ids(&bed, 4).await?;
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

const ZERO: Timestamp = Timestamp { time: 0, increment: 0 };

/// Documents nested as deep as servers store them.
fn deep() -> RawDocumentBuf {
    let mut document = rawdoc! { "end": 1 };
    for _ in 0..170 {
        document = rawdoc! { "d": document };
    }
    document
}

async fn strange_values(bed: &Bed, round: &str) -> Result<()> {
    let id = |name: &str| RawBson::String(format!("{name}-{round}"));
    let of = |name: &str| by_id(&id(name));
    let zeros = rawdoc! { "t": ZERO, "in": { "t": ZERO, "l": [ZERO] } };
    bed.write(insert([with_id(id("ts"), &zeros), with_id(id("ts-in"), &rawdoc! { "in": { "t": ZERO } })]))
        .await?;
    bed.write(insert([with_id(id("ts-replace"), &rawdoc! { "a": 1 })])).await?;
    bed.write(update(of("ts-replace"), zeros.clone())).await?;
    bed.write(insert([with_id(id("ts-set"), &rawdoc! { "a": 1 })])).await?;
    bed.write(update(of("ts-set"), rawdoc! { "$set": { "t": ZERO, "x": { "t": ZERO } } })).await?;
    // Only so does a zero stay at the top.
    let literal = rawdoc! { "$replaceWith": { "$literal": with_id(id("ts-stays"), &zeros) } };
    bed.write(insert([with_id(id("ts-stays"), &rawdoc! { "a": 1 })])).await?;
    let mut pipeline = RawArrayBuf::new();
    pipeline.push(literal);
    bed.write(update(of("ts-stays"), pipeline)).await?;

    bed.write(insert(["now", "sys", "rand"].map(|name| with_id(id(name), &rawdoc! { "in": {}, "a": [1] }))))
        .await?;
    let dates = rawdoc! { "$currentDate": { "d": true, "in.t": { "$type": "timestamp" } } };
    bed.write(update(of("now"), dates)).await?;
    let stage = |stage: RawDocumentBuf| {
        let mut pipeline = RawArrayBuf::new();
        pipeline.push(stage);
        pipeline
    };
    bed.write(update(of("sys"), stage(rawdoc! { "$set": { "n": "$$NOW", "c": "$$CLUSTER_TIME" } }))).await?;
    bed.write(update(of("rand"), stage(rawdoc! { "$set": { "r": { "$rand": {} } } }))).await?;

    let mut twice = with_id(id("twice"), &rawdoc! { "a": 1 });
    twice.append(cstr!("b"), "between");
    twice.append(cstr!("a"), 2);
    let mut late_id = rawdoc! { "x": 1, "a": 2 };
    late_id.append(cstr!("_id"), id("late-id"));
    bed.write(insert([
        with_id(id("dollar"), &rawdoc! { "$a": 1, "a.b": { "$c": 2, "d.e": [{ ".": 1 }] }, "": 3 }),
        twice,
        late_id,
        with_id(id("order"), &rawdoc! { "a": 1, "b": 2, "c": 3 }),
        with_id(id("deep"), &deep()),
    ]))
    .await?;
    bed.write(update(of("order"), rawdoc! { "c": 3, "b": 2, "a": 1 })).await?;
    bed.write(update(of("twice"), rawdoc! { "$set": { "z": 1 } })).await?;
    bed.write(update(of("dollar"), rawdoc! { "$set": { "z": 1 } })).await?;
    bed.write(update(of("deep"), rawdoc! { "$set": { "z": 1 } })).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_a_server_would_make_or_change() -> Result<()> {
    let bed = Bed::start("trap-values").await?;
    strange_values(&bed, "before").await?;
    bed.move_begins().await?;
    bed.equal().await?;
    strange_values(&bed, "dual").await?;
    bed.equal().await?;
    bed.half().await?;
    strange_values(&bed, "half").await?;
    for round in ["before", "dual"] {
        let both =
            update(by_id(&RawBson::String(format!("ts-stays-{round}"))), rawdoc! { "$inc": { "a": 1 } });
        bed.write(both).await?;
    }
    bed.equal().await?;
    for round in ["before", "dual", "half"] {
        let kept = bed.c().find_one(doc! { "_id": format!("ts-stays-{round}") }).await?.context("there")?;
        ensure!(kept.get_timestamp("t")? == ZERO, "{kept}");
        let plain = bed.c().find_one(doc! { "_id": format!("ts-{round}") }).await?.context("there")?;
        ensure!(plain.get_timestamp("t")? != ZERO, "{plain}");
        ensure!(plain.get_document("in")?.get_timestamp("t")? == ZERO, "{plain}");
    }
    bed.proxy.shutdown().await;
    Ok(())
}

async fn upserts(bed: &Bed, round: &str, mixed: bool) -> Result<()> {
    // An insert whose `_id` no driver made.
    bed.write(insert([rawdoc! { "no-id": round, "i": 1 }, rawdoc! { "no-id": round, "i": 2 }])).await?;
    ensure!(bed.c().count_documents(doc! { "no-id": round }).await? == 2);

    // The `_id` of an upsert by another field is made by a server, or by the proxy.
    let many = rawdoc! {
        "update": "c", "updates": [
            { "q": { "many": round }, "u": { "$inc": { "n": 1 } }, "multi": true, "upsert": true },
        ],
    };
    let reply = bed.write(many.clone()).await?;
    let made = reply.get_array("upserted")?[0].as_document().context("upserted")?.get("_id").cloned();
    ensure!(reply.get_i32("n")? == 1 && made.is_some(), "{reply}");
    let again = bed.write(many).await?;
    ensure!(again.get_i32("n")? == 1 && !again.contains_key("upserted"), "{again}");
    let found = bed.c().find_one(doc! { "many": round }).await?.context("upserted")?;
    ensure!(found.get("_id") == made.as_ref() && found.get_i32("n")? == 2, "{found} {made:?}");

    let one = format!("one-{round}");
    let by_key = rawdoc! {
        "update": "c", "updates": [
            { "q": { "_id": one.as_str() }, "u": { "$inc": { "n": 1 } }, "upsert": true },
            { "q": { "_id": one.as_str() }, "u": { "$inc": { "n": 1 } }, "upsert": true },
            { "q": { "_id": "never" }, "u": { "$inc": { "n": 1 } } },
            { "q": { "many": round }, "u": { "$inc": { "n": 1 } }, "multi": true },
            { "q": { "_id": format!("{one}-b") }, "u": { "$inc": { "n": 1 } }, "upsert": true },
        ],
    };
    let reply = bed.write(by_key).await?;
    ensure!(reply.get_i32("n")? == 4, "{reply}");
    let at: Vec<_> = reply
        .get_array("upserted")?
        .iter()
        .map(|item| item.as_document().and_then(|item| item.get_i32("index").ok()))
        .collect();
    ensure!(at == [Some(0), Some(4)], "{reply}");
    ensure!(
        bed.c().find_one(doc! { "_id": &one }).await?.is_some_and(|found| found.get_i32("n").ok() == Some(2)),
        "{one}"
    );

    let fam = |query: RawDocumentBuf, new: bool| {
        rawdoc! {
            "findAndModify": "c", "query": query, "update": { "$inc": { "n": 1 } }, "upsert": true, "new": new,
            "fields": { "_id": 0, "n": 1 }, "sort": { "n": 1 },
        }
    };
    let reply = bed.write(fam(rawdoc! { "_id": format!("fam-{round}") }, true)).await?;
    ensure!(reply.get_document("value")? == &doc! { "n": 1 }, "{reply}");
    let reply = bed.write(fam(rawdoc! { "_id": format!("fam-{round}") }, false)).await?;
    ensure!(reply.get_document("value")? == &doc! { "n": 1 }, "{reply}");
    let unkeyed = bed.raw(fam(rawdoc! { "fam": round }, true)).await;
    let unkeyed_again = bed.raw(fam(rawdoc! { "fam": round }, true)).await;
    if mixed {
        ensure!(unkeyed.is_err() && unkeyed_again.is_err(), "it could meet two documents");
    } else {
        ensure!(unkeyed_again?.get_document("value")? == &doc! { "n": 2 });
        // One that shows a computed `_id`, and takes its document away.
        let away = rawdoc! {
            "findAndModify": "c", "query": { "fam": round }, "remove": true, "fields": { "_id": "$fam" },
        };
        let reply = bed.write(away).await?;
        ensure!(reply.get_document("value")?.get_str("_id")? == round, "{reply}");
        ensure!(bed.c().find_one(doc! { "fam": round }).await?.is_none(), "{round}");
    }
    Ok(())
}

/// Batches with a duplicate in the middle.
async fn partial_failures(bed: &Bed, round: &str) -> Result<()> {
    for ordered in [true, false] {
        let id = |at: i32| format!("part-{round}-{ordered}-{at}");
        bed.write(insert([rawdoc! { "_id": id(5), "first": true }])).await?;
        let mut command = insert((0..12).map(|at| rawdoc! { "_id": id(at), "at": at }));
        command.append(cstr!("ordered"), ordered);
        let reply = bed.raw(command).await?;
        let errors = reply.get_array("writeErrors")?;
        let error = errors[0].as_document().context("an error")?;
        ensure!(errors.len() == 1 && error.get_i32("code")? == 11000, "{reply}");
        ensure!(error.get_i32("index")? == 5, "{reply}");
        ensure!(reply.get_i32("n")? == if ordered { 5 } else { 11 }, "{reply}");
        let like = doc! { "_id": { "$regex": format!("^part-{round}-{ordered}-") } };
        ensure!(bed.c().count_documents(like).await? == if ordered { 6 } else { 12 }, "{round} {ordered}");

        let mut updates = RawArrayBuf::new();
        for at in 0..6 {
            let change = if at == 3 {
                rawdoc! { "$inc": { "_id": 1 } }
            } else {
                rawdoc! { "$inc": { "u": 1 } }
            };
            updates.push(rawdoc! { "q": { "_id": id(at) }, "u": change });
        }
        let reply = bed.raw(rawdoc! { "update": "c", "updates": updates, "ordered": ordered }).await?;
        let done = if ordered { 3 } else { 5 };
        let index = reply.get_array("writeErrors")?[0].as_document().context("an error")?.get_i32("index")?;
        ensure!(index == 3 && reply.get_i32("n")? == done, "{reply}");
        ensure!(reply.get_i32("nModified")? == done, "{reply}");
    }
    Ok(())
}

/// Writes whose client wants no answer, and gets none.
async fn unacknowledged(bed: &Bed, round: &str) -> Result<()> {
    let id = format!("w0-{round}");
    let mut stream = TcpStream::connect(bed.proxy.address()).await?;
    let mut say = Vec::new();
    for mut command in [
        insert([
            rawdoc! { "_id": id.as_str(), "n": 0 },
            rawdoc! { "_id": "w0-gone" },
            rawdoc! { "w0": round },
        ]),
        insert([rawdoc! { "_id": id.as_str(), "n": 100 }]),
        update(rawdoc! { "_id": id.as_str() }, rawdoc! { "$inc": { "n": 1 } }),
        delete(rawdoc! { "_id": "w0-gone" }),
    ] {
        command.append(cstr!("$db"), "shop");
        command.append(cstr!("writeConcern"), rawdoc! { "w": 0 });
        say.extend(build(1, 0, MORE_TO_COME, command.as_bytes(), None));
    }
    say.extend(build(2, 0, 0, rawdoc! { "ping": 1, "$db": "shop" }.as_bytes(), None));
    stream.write_all(&say).await?;
    let pong = answer(&mut stream).await?;
    ensure!(pong.0 == 2, "an answer that nobody asked for: {pong:?}");
    let found = bed.c().find_one(doc! { "_id": &id }).await?.context("inserted")?;
    ensure!(found.get_i32("n")? == 1, "{found}");
    ensure!(bed.c().count_documents(doc! { "w0": round }).await? == 1, "one without an _id");
    ensure!(bed.c().find_one(doc! { "_id": "w0-gone" }).await?.is_none(), "deleted");
    Ok(())
}

/// What the next message answers, and what it says.
async fn answer(stream: &mut TcpStream) -> Result<(i32, Document)> {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upserts_partial_failures_and_unacknowledged_writes() -> Result<()> {
    let bed = Bed::start("trap-upserts").await?;
    upserts(&bed, "before", false).await?;
    bed.move_begins().await?;
    for (round, mixed) in [("dual", false), ("half", true), ("all", false)] {
        upserts(&bed, round, mixed).await.context(round)?;
        partial_failures(&bed, round).await.context(round)?;
        unacknowledged(&bed, round).await.context(round)?;
        bed.equal().await?;
        match round {
            "dual" => bed.half().await?,
            "half" => {
                bed.operator.reads(100).await?;
                bed.operator.writes(100).await?;
            }
            _ => {}
        }
    }
    bed.proxy.shutdown().await;
    Ok(())
}

/// Gives each of `ids` the value of the next one, by way of a value that nobody has.
async fn rotate(bed: &Bed, ids: &[i32]) -> Result<()> {
    let mut session = bed.client.start_session().await?;
    loop {
        session.start_transaction().await?;
        let swapped = async {
            let mut values = Vec::new();
            for id in ids {
                let found = bed.c().find_one(doc! { "_id": id }).session(&mut session).await?;
                values.push(found.and_then(|found| found.get("u").cloned()));
                let away = doc! { "$set": { "u": format!("away-{id}") } };
                bed.c().update_one(doc! { "_id": id }, away).session(&mut session).await?;
            }
            values.rotate_left(1);
            for (id, value) in ids.iter().zip(values) {
                let next = doc! { "$set": { "u": value }, "$inc": { "swaps": 1 } };
                bed.c().update_one(doc! { "_id": id }, next).session(&mut session).await?;
            }
            session.commit_transaction().await
        };
        match swapped.await {
            Ok(()) => return Ok(()),
            Err(error) if error.contains_label("TransientTransactionError") => {
                let _ended = session.abort_transaction().await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unique_values_that_swap_between_documents() -> Result<()> {
    let bed = Bed::start("trap-swap").await?;
    let unique =
        rawdoc! { "createIndexes": "c", "indexes": [{ "key": { "u": 1 }, "name": "u", "unique": true }] };
    bed.raw(unique).await?;
    bed.write(insert((0..9).map(|id| rawdoc! { "_id": id, "u": id, "swaps": 0 }))).await?;
    bed.move_begins().await?;
    for ids in [&[0, 1][..], &[2, 3, 4], &[5, 6], &[1, 0], &[8, 7, 6, 5, 4, 3]] {
        rotate(&bed, ids).await?;
    }
    // Without a transaction: the value is taken by one that comes after its former holder has gone.
    bed.write(delete(rawdoc! { "_id": 8 })).await?;
    bed.write(insert([rawdoc! { "_id": 20, "u": 100 }])).await?;
    bed.equal().await?;
    bed.operator.reads(100).await?;
    ensure!(bed.operator.writes(50).await.is_err(), "two authorities would take one value twice");
    bed.operator.writes(100).await?;
    for ids in [&[0, 1][..], &[1, 0], &[2, 3, 4, 5]] {
        rotate(&bed, ids).await?;
    }
    bed.equal().await?;
    let swaps: i32 = sum(&bed.c(), "swaps").await?;
    ensure!(swaps >= 12 + 8, "{swaps} values were given");
    ensure!(bed.operator.progress().await?.blocked_by.is_empty());
    bed.proxy.shutdown().await;
    Ok(())
}

async fn sum(c: &Collection<Document>, field: &str) -> Result<i32> {
    use futures::TryStreamExt as _;
    let all: Vec<Document> = c.find(doc! {}).await?.try_collect().await?;
    Ok(all.iter().filter_map(|document| document.get_i32(field).ok()).sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validators_that_are_younger_than_their_documents() -> Result<()> {
    let bed = Bed::start("trap-validator").await?;
    bed.write(insert((0..20).map(|id| rawdoc! { "_id": id, "age": -1 }))).await?;
    let younger = rawdoc! {
        "collMod": "c", "validator": { "age": { "$gte": 0 } }, "validationLevel": "strict",
    };
    bed.raw(younger).await?;
    bed.move_begins().await?;
    bed.equal().await?;
    let options = bed.new.client().await?.database("shop").run_command(doc! { "listCollections": 1 }).await?;
    ensure!(options.to_string().contains("validator"), "{options}");
    for (round, base) in [("dual", 100), ("half", 200)] {
        for id in 0..20 {
            let change = update(rawdoc! { "_id": id }, rawdoc! { "$inc": { "n": 1 } });
            let refused = bed.raw(change.clone()).await?;
            ensure!(refused.to_string().contains("121"), "{round}: {refused}");
            let mut bypass = change;
            bypass.append(cstr!("bypassDocumentValidation"), true);
            bed.write(bypass).await?;
        }
        let mut bypass = insert((base..base + 20).map(|id| rawdoc! { "_id": id, "age": -id }));
        bypass.append(cstr!("bypassDocumentValidation"), true);
        bed.write(bypass).await?;
        let refused = bed.raw(insert([rawdoc! { "_id": -base, "age": -1 }])).await?;
        ensure!(refused.to_string().contains("121"), "{round}: {refused}");
        bed.equal().await?;
        if round == "dual" {
            bed.half().await?;
        }
    }
    ensure!(sum(&bed.c(), "n").await? == 40);
    bed.proxy.shutdown().await;
    Ok(())
}

const MOST: usize = 16 * 1024 * 1024;

/// A document of exactly so many bytes.
fn large(id: &str, bytes: usize) -> RawDocumentBuf {
    let of = |fill: usize| rawdoc! { "_id": id, "n": 0, "fill": "x".repeat(fill) };
    of(bytes - of(0).as_bytes().len())
}

async fn one_by_one(bed: &Bed, documents: &[(&str, usize)]) -> Result<()> {
    for (id, bytes) in documents {
        // Beside the command, as drivers send it: an array of it would be too large.
        bed.shop().collection::<RawDocumentBuf>("c").insert_one(large(id, *bytes)).await?;
    }
    Ok(())
}

async fn touch(bed: &Bed, ids: &[&str]) -> Result<()> {
    for id in ids {
        let reply = bed.write(update(rawdoc! { "_id": *id }, rawdoc! { "$inc": { "n": 1 } })).await?;
        ensure!(reply.get_i32("nModified")? == 1, "{id}: {reply}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_as_large_as_can_be() -> Result<()> {
    let bed = Bed::start("trap-large").await?;
    one_by_one(&bed, &[("12", 12 << 20), ("16", MOST)]).await?;
    bed.move_begins().await?;
    touch(&bed, &["12", "16"]).await?;
    one_by_one(&bed, &[("9-dual", 9 << 20), ("16-dual", MOST)]).await?;
    touch(&bed, &["9-dual", "16-dual"]).await?;
    let smaller = large("12", 7_700_000);
    let c = bed.shop().collection::<RawDocumentBuf>("c");
    c.replace_one(doc! { "_id": "12" }, smaller).await?;
    c.replace_one(doc! { "_id": "12" }, large("12", 14_000_000)).await?;
    bed.equal().await?;
    bed.half().await?;
    one_by_one(&bed, &[("16-half", MOST - 100)]).await?;
    touch(&bed, &["9-dual", "12", "16", "16-half"]).await?;
    bed.equal().await?;
    let stuck = bed.operator.engine.conflicts("m").await?;
    ensure!(stuck.is_empty(), "{stuck:?}");
    bed.proxy.shutdown().await;
    Ok(())
}

/// What stands three times in one batch of the stream does not fit one message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_documents_that_are_missed_together() -> Result<()> {
    let bed = Bed::start("trap-together").await?;
    bed.move_begins().await?;
    bed.operator.engine.pause(&me(), "m").await?;
    let past = Bed::on(&bed.old).await?.collection::<RawDocumentBuf>("c");
    for id in ["a", "b", "c", "d"] {
        past.insert_one(large(id, MOST - 100)).await?;
    }
    bed.operator.engine.resume(&me(), "m").await?;
    bed.operator.until_synced().await?;
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_as_large_as_can_be() -> Result<()> {
    let bed = Bed::start("trap-batches").await?;
    bed.move_begins().await?;
    let fat = |round: &str, count: i32| {
        let mut statements = Vec::new();
        for id in 0..count {
            let fill = "y".repeat(99_960);
            statements.extend_from_slice(rawdoc! { "id": format!("{round}-{id}"), "f": fill }.as_bytes());
        }
        statements
    };
    let send = async |statements: Vec<u8>, ordered: bool| -> Result<Document> {
        let mut stream = TcpStream::connect(bed.proxy.address()).await?;
        let body = rawdoc! { "insert": "c", "$db": "shop", "ordered": ordered };
        stream.write_all(&build(9, 0, 0, body.as_bytes(), Some(("documents", &statements)))).await?;
        Ok(answer(&mut stream).await?.1)
    };
    let reply = send(fat("dual", 400), true).await?;
    ensure!(reply.get_i32("n")? == 400, "{reply}");
    bed.half().await?;
    let reply = send(fat("half", 400), false).await?;
    ensure!(reply.get_i32("n")? == 400, "{reply}");
    let mut many = Vec::new();
    for id in 0..100_000 {
        // Every ten thousandth is there twice.
        let id = if id % 10_000 == 9_999 { id - 1 } else { id };
        many.extend_from_slice(rawdoc! { "_id": id }.as_bytes());
    }
    let reply = send(many, false).await?;
    let errors = reply.get_array("writeErrors").with_context(|| reply.to_string())?;
    let places: Vec<_> =
        errors.iter().filter_map(|error| error.as_document()?.get_i32("index").ok()).collect();
    ensure!(places == (0..10).map(|n| n * 10_000 + 9_999).collect::<Vec<_>>(), "{places:?}");
    ensure!(reply.get_i32("n")? == 99_990, "{}", reply.get_i32("n")?);
    let some: Vec<u8> = (200_000..205_000).flat_map(|id| rawdoc! { "_id": id }.into_bytes()).collect();
    let reply = send(some, true).await?;
    ensure!(reply.get_i32("n")? == 5_000, "{reply}");
    ensure!(bed.c().count_documents(doc! {}).await? == 400 + 400 + 99_990 + 5_000);
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_by_filter_while_writes_are_divided() -> Result<()> {
    let bed = Bed::start("trap-filter").await?;
    bed.write(insert((0..400).map(|id| rawdoc! { "_id": id, "g": id % 8, "n": 0, "a": [1, 2, 3] }))).await?;
    bed.raw(rawdoc! { "createIndexes": "c", "indexes": [{ "key": { "g": 1 }, "name": "g" }] }).await?;
    bed.move_begins().await?;
    bed.half().await?;
    let c = bed.c();
    let done = c.update_many(doc! { "g": 1 }, doc! { "$inc": { "n": 1 } }).await?;
    ensure!((done.matched_count, done.modified_count) == (50, 50), "{done:?}");
    let none = c.update_many(doc! { "g": 99 }, doc! { "$inc": { "n": 1 } }).await?;
    ensure!((none.matched_count, none.modified_count) == (0, 0), "{none:?}");
    let gone = c.delete_many(doc! { "g": 2 }).await?;
    ensure!(gone.deleted_count == 50, "{gone:?}");
    ensure!(c.delete_many(doc! { "g": 2 }).await?.deleted_count == 0);
    let made = c.update_many(doc! { "g": 77 }, doc! { "$set": { "n": 5 } }).upsert(true).await?;
    ensure!(made.upserted_id.is_some() && made.matched_count == 0, "{made:?}");
    let gone_between = (100..200).filter(|id| id % 8 == 2).count() as u64;
    let done =
        c.update_many(doc! { "_id": { "$gte": 100, "$lt": 200 } }, doc! { "$set": { "z": 1 } }).await?;
    ensure!(done.matched_count == 100 - gone_between, "{done:?}");
    let again = c.update_many(doc! { "z": 1 }, doc! { "$set": { "z": 1 } }).await?;
    ensure!(again.matched_count == done.matched_count && again.modified_count == 0, "{again:?}");
    // Positional operators, a hint, variables, and a pipeline that reads the document.
    bed.write(rawdoc! {
        "update": "c", "let": { "by": 10 }, "updates": [
            { "q": { "g": 3, "a": 2 }, "u": { "$inc": { "a.$": 10 } }, "multi": true, "hint": "g" },
            { "q": { "g": 3 }, "u": { "$inc": { "a.$[x]": 100 } }, "multi": true, "arrayFilters": [{ "x": 1 }] },
            { "q": { "$expr": { "$eq": ["$g", 4] } }, "u": [{ "$set": { "n": { "$add": ["$n", "$$by"] } } }],
              "multi": true },
        ],
    })
    .await?;
    let three = c.find_one(doc! { "_id": 3 }).await?.context("3")?;
    ensure!(three.get_array("a")? == &vec![101.into(), 12.into(), 3.into()], "{three}");
    ensure!(sum(&c, "n").await? == 50 + 5 + 500);
    let shown = c
        .find_one_and_update(doc! { "_id": 4 }, doc! { "$inc": { "n": 1 } })
        .projection(doc! { "_id": 0, "n": 1 })
        .sort(doc! { "g": 1 })
        .await?;
    ensure!(shown == Some(doc! { "n": 10 }), "{shown:?}");
    let refused = c.find_one_and_update(doc! { "g": 4 }, doc! { "$inc": { "n": 1 } }).await;
    ensure!(refused.is_err(), "two authorities could each give one");
    bed.equal().await?;
    ensure!(c.delete_many(doc! {}).await?.deleted_count == 351);
    ensure!(c.count_documents(doc! {}).await? == 0);
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

/// Sets a cluster's clock an hour ahead, as a client that comes from another cluster would.
async fn ahead(set: &ReplicaSet) -> Result<u32> {
    let hello = set.client().await?.database("admin").run_command(doc! { "hello": 1 }).await?;
    let now = hello.get_timestamp("operationTime")?.time;
    let signature = rawdoc! { "hash": bson::Binary { subtype: BinarySubtype::Generic, bytes: vec![0; 20] }, "keyId": 0_i64 };
    let time =
        rawdoc! { "clusterTime": Timestamp { time: now + 3600, increment: 1 }, "signature": signature };
    let mut stream = TcpStream::connect(set.node(0).address()).await?;
    let body = rawdoc! { "ping": 1, "$db": "admin", "$clusterTime": time };
    stream.write_all(&build(1, 0, 0, body.as_bytes(), None)).await?;
    let reply = answer(&mut stream).await?.1;
    ensure!(reply.get_f64("ok")? == 1.0, "{reply}");
    Ok(now)
}

async fn cluster_time(set: &ReplicaSet) -> Result<u32> {
    let hello = set.client().await?.database("admin").run_command(doc! { "hello": 1 }).await?;
    Ok(hello.get_document("$clusterTime")?.get_timestamp("clusterTime")?.time)
}

async fn session(bed: &Bed) -> Result<ClientSession> {
    let options = SessionOptions::builder().causal_consistency(true).build();
    Ok(bed.client.start_session().with_options(options).await?)
}

/// What a session wrote it reads, by key and by filter: one that goes on over the moves, and a new one.
async fn causal(bed: &Bed, lasting: &mut ClientSession, round: &str, by_filter: bool) -> Result<()> {
    let mut fresh = session(bed).await?;
    let c = bed.c();
    for (kind, session) in [("lasting", lasting), ("fresh", &mut fresh)] {
        let round = format!("{round}-{kind}");
        for n in 0..20 {
            let id = format!("{round}-{n}");
            let written = c.insert_one(doc! { "_id": &id, "round": &round }).session(&mut *session).await;
            written.with_context(|| format!("insert {id}"))?;
            let found = c.find_one(doc! { "_id": &id }).session(&mut *session).await;
            ensure!(found.with_context(|| format!("find {id}"))?.is_some(), "{id}");
            if by_filter {
                let count = c.count_documents(doc! { "round": &round }).session(&mut *session).await?;
                ensure!(count == n + 1, "{round}: {count} of {n}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_times_stay_with_their_cluster() -> Result<()> {
    let bed = Bed::start("trap-clock").await?;
    let now = ahead(&bed.old).await?;
    ensure!(cluster_time(&bed.old).await? >= now + 3600);
    let mut lasting = session(&bed).await?;
    causal(&bed, &mut lasting, "before", true).await?;
    bed.move_begins().await?;
    causal(&bed, &mut lasting, "dual", true).await?;
    bed.operator.reads(50).await?;
    causal(&bed, &mut lasting, "mirrored", true).await?;
    bed.operator.writes(50).await?;
    causal(&bed, &mut lasting, "half", false).await?;
    bed.operator.reads(100).await?;
    bed.operator.writes(100).await?;
    causal(&bed, &mut lasting, "all", true).await?;
    bed.operator.rollback().await?;
    causal(&bed, &mut lasting, "back", true).await?;
    ensure!(cluster_time(&bed.new).await? < now + 1800, "old's time has reached new");
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

async fn ttl(set: &ReplicaSet) -> Result<Option<i64>> {
    let indexes = Bed::on(set).await?.run_command(doc! { "listIndexes": "c" }).await?;
    let all = indexes.get_document("cursor")?.get_array("firstBatch")?;
    let ttl = all.iter().filter_map(|index| index.as_document()?.get("expireAfterSeconds").cloned()).next();
    Ok(ttl.and_then(|seconds| seconds.as_i64().or(seconds.as_i32().map(i64::from))))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expiry_is_put_back_by_abort_and_by_complete() -> Result<()> {
    let bed = Bed::start("trap-ttl").await?;
    let index = rawdoc! { "key": { "at": 1 }, "name": "at", "expireAfterSeconds": 3600 };
    bed.raw(rawdoc! { "createIndexes": "c", "indexes": [index] }).await?;
    bed.write(insert([rawdoc! { "_id": 1, "at": bson::DateTime::now() }])).await?;
    let aborted = Operator::of(&bed.proxy, "aborted");
    aborted.create(&["shop.c"]).await?;
    aborted.start().await?;
    aborted.until_synced().await?;
    ensure!(ttl(&bed.old).await? == Some(2_147_483_647) && ttl(&bed.new).await? == Some(2_147_483_647));
    aborted.engine.abort(&me(), "aborted").await?;
    wait_for("expiry to be back", LONG, || async { Ok(ttl(&bed.old).await? == Some(3600)) }).await?;
    wait_for("new to be cleaned up", LONG, || async {
        Ok(Bed::on(&bed.new).await?.list_collection_names().await?.is_empty())
    })
    .await?;
    bed.move_begins().await?;
    bed.operator.reads(100).await?;
    bed.operator.writes(100).await?;
    bed.operator.complete().await?;
    wait_for("expiry to be back on new", LONG, || async { Ok(ttl(&bed.new).await? == Some(3600)) }).await?;
    bed.proxy.shutdown().await;
    Ok(())
}

/// Waits until the migration has failed, and returns why.
async fn failed(operator: &Operator) -> Result<String> {
    wait_for("the migration to fail", LONG, || async {
        Ok(operator.progress().await?.phase == Phase::Failed)
    })
    .await?;
    operator.engine.get(&operator.name).await?.failure.context("a reason")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collections_taken_away_past_the_proxy() -> Result<()> {
    let bed = Bed::start("trap-taken").await?;
    let old = Bed::on(&bed.old).await?;
    for (name, what) in [("dropped", "drop"), ("renamed", "rename"), ("replaced", "rename")] {
        bed.c().insert_one(doc! { "_id": name }).await?;
        let operator = Operator::of(&bed.proxy, name);
        operator.create(&["shop.c"]).await?;
        operator.start().await?;
        operator.until_synced().await?;
        let admin = bed.old.client().await?.database("admin");
        match name {
            "dropped" => old.collection::<Document>("c").drop().await?,
            "renamed" => {
                admin.run_command(doc! { "renameCollection": "shop.c", "to": "shop.elsewhere" }).await?;
            }
            _ => {
                old.collection("other").insert_one(doc! { "_id": "another" }).await?;
                let onto = doc! { "renameCollection": "shop.other", "to": "shop.c", "dropTarget": true };
                admin.run_command(onto).await?;
            }
        }
        let why = failed(&operator).await?;
        ensure!(why.contains(what), "{name}: {why}");
        bed.c().insert_one(doc! { "_id": format!("after-{name}") }).await?;
        ensure!(bed.c().find_one(doc! { "_id": format!("after-{name}") }).await?.is_some());
        operator.engine.abort(&me(), name).await?;
        wait_for("new to be cleaned up", LONG, || async {
            Ok(Bed::on(&bed.new).await?.list_collection_names().await?.is_empty())
        })
        .await?;
        ensure!(bed.c().find_one(doc! { "_id": format!("after-{name}") }).await?.is_some());
    }
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_go_past_the_proxy() -> Result<()> {
    let bed = Bed::start("trap-past").await?;
    bed.write(insert((0..50).map(|id| rawdoc! { "_id": id, "n": 0 }))).await?;
    bed.move_begins().await?;
    let (old, new) = (Bed::on(&bed.old).await?, Bed::on(&bed.new).await?);
    for round in 0..10 {
        for id in 0..20 {
            let inc = update(rawdoc! { "_id": id }, rawdoc! { "$inc": { "n": 1 } });
            let (through, past) = tokio::join!(bed.write(inc.clone()), raw(&old, inc));
            through?;
            past?;
        }
        raw(&old, insert([rawdoc! { "_id": format!("past-{round}"), "n": 0 }])).await?;
        raw(&old, delete(rawdoc! { "_id": 40 + round })).await?;
        // On the mirror nobody may write: whatever it is, it is undone.
        raw(&new, update(rawdoc! { "_id": 20 + round }, rawdoc! { "$inc": { "n": 7 } })).await?;
        raw(&new, insert([rawdoc! { "_id": format!("phantom-{round}"), "n": 1000 }])).await?;
        raw(&new, delete(rawdoc! { "_id": 30 + round })).await?;
    }
    bed.equal().await?;
    ensure!(sum(&old.collection("c"), "n").await? == 10 * 20 * 2);
    ensure!(new.collection::<Document>("c").count_documents(doc! {}).await? == 50);
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn indexes_and_options_change_on_both_sides() -> Result<()> {
    let bed = Bed::start("trap-ddl").await?;
    bed.write(insert((0..50).map(|id| rawdoc! { "_id": id, "n": id }))).await?;
    bed.move_begins().await?;
    for round in ["dual", "half"] {
        let (one, two) = (format!("one-{round}"), format!("two-{round}"));
        let index = |field: &str, name: &str| {
            let mut key = RawDocumentBuf::new();
            key.append(bson::raw::CString::try_from(field).expect("a name"), 1);
            rawdoc! { "key": key, "name": name }
        };
        let both = rawdoc! { "createIndexes": "c", "indexes": [index(&one, &one), index(&two, &two)] };
        bed.raw(both).await?;
        bed.raw(rawdoc! { "dropIndexes": "c", "index": one.as_str() }).await?;
        bed.raw(rawdoc! { "collMod": "c", "index": { "name": two.as_str(), "hidden": true } }).await?;
        bed.raw(rawdoc! { "collMod": "c", "validator": { "round": { "$ne": round } } }).await?;
        // What one side would refuse, the client hears, and nothing is left on the other alone.
        let clash = bed.raw(rawdoc! { "createIndexes": "c", "indexes": [index("n", &two)] }).await;
        ensure!(clash.is_err(), "{clash:?}");
        for set in [&bed.old, &bed.new] {
            let shop = Bed::on(set).await?;
            let indexes = shop.run_command(doc! { "listIndexes": "c" }).await?.to_string();
            ensure!(!indexes.contains(&one) && indexes.contains(&two), "{indexes}");
            ensure!(indexes.contains("\"hidden\": true"), "{indexes}");
            let options = shop.run_command(doc! { "listCollections": 1 }).await?.to_string();
            ensure!(options.contains(&format!("\"$ne\": \"{round}\"")), "{options}");
        }
        if round == "dual" {
            bed.half().await?;
        }
    }
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

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
