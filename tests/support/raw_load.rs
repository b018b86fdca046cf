//! A load of plain commands, for servers that the driver of the other load refuses, and what must be there after it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use bson::{Document, RawDocumentBuf, cstr, doc, rawdoc};
use reshard::cluster::command::{Request, SharedCluster};
use reshard::cluster::{Cluster, Settings};
use reshard::shutdown::Tasks;
use reshard::state::records::{batch, lsid};
use reshard_testbed::wait_for;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::LONG;

/// Keys that all workers write.
const HOT: i32 = 20;

/// How often each document has been added to; a document that is not here must not be there.
type Expected = BTreeMap<String, i32>;

/// Workers that write to `shop.c`; each write has a session and a number, and must be answered without an error.
pub(crate) struct RawLoad {
    through: String,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    workers: Vec<JoinHandle<Result<Expected>>>,
}

impl RawLoad {
    /// Makes `documents` besides those that are written, and begins.
    pub(crate) async fn start(through: &str, workers: usize, documents: i32) -> Result<Self> {
        let mut first = Worker::connect(through, "seed").await?;
        let seed = (0..documents).map(|n| format!("seed-{n}"));
        let all: Vec<String> = (0..HOT).map(hot).chain(seed).collect();
        for some in all.chunks(1000) {
            let documents: Vec<Document> = some.iter().map(|id| doc! { "_id": id, "n": 0 }).collect();
            first.write(doc! { "insert": "c", "documents": documents }).await?;
            first.expected.extend(some.iter().map(|id| (id.clone(), 0)));
        }
        let (stop, rounds) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let seeded = first.expected;
        let mut running = vec![tokio::spawn(async move { Ok(seeded) })];
        for number in 0..workers {
            let mut worker = Worker::connect(through, &format!("worker{number}")).await?;
            let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
            running.push(tokio::spawn(async move {
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    worker.round(round).await.with_context(|| format!("{} in round {round}", worker.name))?;
                    round += 1;
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                Ok(worker.expected)
            }));
        }
        Ok(Self { through: through.to_owned(), stop, rounds, workers: running })
    }

    /// Waits for so many rounds more.
    pub(crate) async fn work(&self, rounds: u64) -> Result<()> {
        let from = self.rounds.load(Ordering::Relaxed);
        wait_for("the load to go on", LONG, || async {
            let ended = self.workers.iter().skip(1).any(JoinHandle::is_finished);
            Ok(ended || self.rounds.load(Ordering::Relaxed) >= from + rounds)
        })
        .await
    }

    /// Ends it, and looks through the proxy whether each write counts exactly once.
    pub(crate) async fn holds(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let mut expected = Expected::new();
        for worker in self.workers {
            for (id, times) in worker.await?? {
                *expected.entry(id).or_default() += times;
            }
        }
        let found = Worker::connect(&self.through, "look").await?.all().await?;
        let wrong: Vec<_> =
            expected.iter().filter(|(id, times)| found.get(*id) != Some(times)).take(5).collect();
        ensure!(wrong.is_empty(), "{wrong:?} and more are expected");
        let more: Vec<_> = found.keys().filter(|id| !expected.contains_key(*id)).take(5).collect();
        ensure!(more.is_empty(), "{more:?} and more are there");
        Ok(())
    }
}

fn hot(number: i32) -> String {
    format!("hot-{}", number % HOT)
}

struct Worker {
    name: String,
    cluster: SharedCluster,
    session: Uuid,
    number: i64,
    expected: Expected,
    _tasks: Tasks,
}

impl Worker {
    async fn connect(through: &str, name: &str) -> Result<Self> {
        let tasks = Tasks::default();
        let cluster = Cluster::connect(Settings::parse(through).await?, &tasks).await?.pools(1);
        let (session, expected) = (Uuid::new_v4(), Expected::new());
        Ok(Self { name: name.to_owned(), cluster, session, number: 0, expected, _tasks: tasks })
    }

    async fn write(&mut self, command: Document) -> Result<()> {
        self.number += 1;
        let mut body = RawDocumentBuf::try_from(&command)?;
        body.append(cstr!("lsid"), lsid(self.session));
        body.append(cstr!("txnNumber"), self.number);
        let reply = self.cluster.run(Request::new("shop", body)).await?;
        let clean = reply.error().is_none() && reply.body.get("writeErrors")?.is_none();
        let shown: String = format!("{command}").chars().take(200).collect();
        ensure!(clean, "{shown}: {:?}", reply.body);
        Ok(())
    }

    async fn round(&mut self, round: i32) -> Result<()> {
        let own = |round: i32| format!("{}-{round}", self.name);
        let (mine, last, hot) = (own(round), own(round - 1), hot(round));
        let inc = |id: &str| doc! { "q": { "_id": id }, "u": { "$inc": { "n": 1 } } };
        self.write(doc! { "insert": "c", "documents": [{ "_id": &mine, "n": 0 }] }).await?;
        self.write(doc! { "update": "c", "updates": [inc(&mine), inc(&hot)] }).await?;
        let more = doc! { "$inc": { "n": 1 } };
        self.write(doc! { "findAndModify": "c", "query": { "_id": &hot }, "update": more }).await?;
        let made = format!("{mine}-made");
        let upsert = doc! { "q": { "_id": &made }, "u": { "$inc": { "n": 1 } }, "upsert": true };
        self.write(doc! { "update": "c", "updates": [upsert] }).await?;
        self.expected.extend([(mine, 1), (made, 1)]);
        *self.expected.entry(hot).or_default() += 2;
        if round % 2 == 1 {
            self.write(doc! { "delete": "c", "deletes": [{ "q": { "_id": &last }, "limit": 1 }] }).await?;
            self.expected.remove(&last);
        }
        Ok(())
    }

    async fn all(&mut self) -> Result<Expected> {
        let find = rawdoc! { "find": "c", "batchSize": 1_000_000, "singleBatch": true };
        let reply = self.cluster.run(Request::new("shop", find)).await?;
        ensure!(reply.error().is_none(), "{reply:?}");
        let found = batch(&reply.body, "firstBatch").map_err(anyhow::Error::msg)?;
        found.iter().map(|it| Ok((it.get_str("_id")?.to_owned(), it.get_i32("n")?))).collect()
    }
}
