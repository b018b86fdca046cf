//! Two clusters with a migration for each plant, the application that reads, and planting itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use bson::{Document, doc};
use futures::TryStreamExt as _;
use mongodb::options::FindOptions;
use mongodb::{Client, ClientSession, Collection, IndexModel};
use reshard::app::Proxy;
use reshard::migration::control::{
    Back, Control as _, Page, Plan, RampDecision, RampView, SetShadow, Shadow, Steer, Verdict,
};
use reshard::model::percent::Percent;
use reshard_testbed::{ReplicaSet, wait_for};

use crate::draw::{Change, DOCUMENTS, Finder, Kind, Plant};
use crate::support::{Operator, me, plant as apply, proxy, two_sets, uri};

/// Readers of each collection, each with a session of its own: some of them are read on new.
const READERS: usize = 12;
/// On a busy machine a ramp comes down now and then, and dwells again.
pub(crate) const RAMPING: Duration = Duration::from_secs(300);
/// How long new takes when it is slow.
const BLOCKED_MS: i32 = 2500;

/// Two clusters.
pub(crate) struct Field {
    _old: ReplicaSet,
    pub(crate) new: ReplicaSet,
    proxy: Proxy,
    client: Client,
}

impl Field {
    pub(crate) async fn start() -> Result<Self> {
        let (old, new) = two_sets("plants").await?;
        let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
        let client = Client::with_uri_str(uri(&proxy)).await?;
        Ok(Self { _old: old, new, proxy, client })
    }

    pub(crate) fn of(&self, plant: &Plant) -> Collection<Document> {
        self.client.database("shop").collection(&plant.name)
    }

    /// Brings a migration up to where its plan has some reads on new, plants, and looks what comes of it.
    pub(crate) async fn tried(&self, plant: &Plant) -> Result<()> {
        let operator = Operator::of(&self.proxy, &plant.name);
        self.filled(plant).await?;
        operator.create(&[&format!("shop.{}", plant.name)]).await?;
        operator.start().await?;
        operator.until_synced().await?;
        let percent = if plant.finder == Finder::Shadow { 100.0 } else { 0.0 };
        let shadow = SetShadow { percent, show_values: false, reset: false };
        operator.engine.set_shadow(&me(), &plant.name, shadow).await?;
        let readers = Readers::start(&self.client, plant).await?;
        operator.engine.start_plan(&me(), &plant.name, plan(plant)).await?;
        let step = Percent::whole(plant.percent);
        let is_clean = |ramp: &RampView| {
            ramp.reads_percent == step && ramp.gates.iter().all(|gate| gate.verdict != Verdict::Broken)
        };
        until_ramp(&operator, "some reads to be on new", is_clean).await?;
        let planted = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        let planted = i64::try_from(planted)?;
        self.put(plant).await?;
        self.is_told(plant, &operator).await?;
        self.has_stopped(plant, &operator, planted).await?;
        operator.engine.steer_plan(&me(), &plant.name, Steer::Pause).await?;
        if matches!(plant.kind, Kind::Slow | Kind::Errors) {
            self.new.fail_point(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await?;
        }
        drop(readers);
        operator.engine.set_shadow(&me(), &plant.name, SetShadow { percent: 0.0, ..shadow }).await?;
        Ok(())
    }

    async fn filled(&self, plant: &Plant) -> Result<()> {
        let c = self.of(plant);
        c.insert_many((0..DOCUMENTS).map(document)).await?;
        if plant.kind == Kind::Index {
            c.create_index(IndexModel::builder().keys(doc! { "rank": 1 }).build()).await?;
        }
        Ok(())
    }

    /// Where no change stream tells of it, so that nothing puts it right.
    async fn put(&self, plant: &Plant) -> Result<()> {
        let ns = format!("shop.{}", plant.name);
        let entry = |op: &str, o: Document| doc! { "op": op, "ns": &ns, "o": o };
        let removed = || entry("d", doc! { "_id": plant.id });
        match plant.kind {
            Kind::Wrong => {
                let wrong = entry("i", changed(document(plant.id), plant.change));
                apply(&self.new, vec![removed(), wrong]).await
            }
            Kind::Missing => apply(&self.new, vec![removed()]).await,
            Kind::Extra => {
                let more = document(DOCUMENTS + plant.id);
                apply(&self.new, vec![entry("i", more)]).await
            }
            Kind::Index => {
                let new = self.new.client().await?;
                Ok(new.database("shop").collection::<Document>(&plant.name).drop_index("rank_1").await?)
            }
            Kind::Slow | Kind::Errors => {
                let how = if plant.kind == Kind::Slow {
                    doc! { "blockConnection": true, "blockTimeMS": BLOCKED_MS }
                } else {
                    doc! { "errorCode": plant.code }
                };
                let mut data = doc! { "failCommands": [plant.command], "namespace": &ns };
                data.extend(how);
                let point = doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data };
                self.new.fail_point(point).await
            }
        }
    }
}

/// The document with this `_id`.
fn document(id: i32) -> Document {
    doc! { "_id": id, "group": id % 10, "rank": id, "n": id % 7, "text": format!("text {id}") }
}

fn changed(mut document: Document, how: Change) -> Document {
    match how {
        Change::Value => document.insert("text", "another"),
        Change::Type => {
            let n = document.get_i32("n").unwrap_or_default();
            document.insert("n", i64::from(n))
        }
        Change::FieldLost => document.remove("text"),
        Change::FieldMore => document.insert("more", true),
        Change::FieldOrder => {
            let group = document.remove("group").unwrap_or_default();
            document.insert("group", group)
        }
    };
    document
}

/// A plan for servers that share two slow processors with their load.
fn plan(plant: &Plant) -> Plan {
    let whole = |percents: &[u8]| percents.iter().copied().map(Percent::whole).collect();
    Plan {
        reads: whole(&[plant.percent, 80, 100]),
        writes: if plant.writes { whole(&[100]) } else { Vec::new() },
        dwell_seconds: 20,
        min_samples: 20,
        // What is planted takes much longer than that.
        p99_floor_ms: if plant.kind == Kind::Index { 600.0 } else { 1000.0 },
        min_oplog_window_seconds: 1.0,
        max_lag_seconds: 60.0,
        max_secondary_lag_seconds: 60.0,
        max_setbacks: 100,
        // All reads are shadowed here, far more than there is time for.
        max_uncompared: 0.9,
        shadow: if plant.finder == Finder::Shadow { Shadow::On } else { Shadow::Off },
        back: Back::Zero,
        ..Plan::default()
    }
}

pub(crate) async fn decisions(operator: &Operator) -> Result<Vec<RampDecision>> {
    Ok(operator.engine.decisions(&operator.name, Page::default()).await?.decisions)
}

pub(crate) async fn until_ramp(
    operator: &Operator,
    what: &str,
    holds: impl Fn(&RampView) -> bool,
) -> Result<RampView> {
    let seen =
        wait_for(what, RAMPING, || async { Ok(holds(&operator.engine.plan(&operator.name).await?)) }).await;
    let view = operator.engine.plan(&operator.name).await?;
    if seen.is_err() {
        let all = decisions(operator).await?;
        seen.with_context(|| format!("{view:#?} {all:#?}"))?;
    }
    Ok(view)
}

/// Asks, from several sessions, until it goes; errors are part of what is tried here.
struct Readers(Arc<AtomicBool>);

impl Readers {
    async fn start(client: &Client, plant: &Plant) -> Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        for reader in 0..READERS {
            let (ended, c) = (Arc::clone(&ended), client.database("shop").collection(&plant.name));
            // A causal read goes to the authority.
            let mut session = client.start_session().causal_consistency(false).await?;
            let by_rank = plant.kind == Kind::Index;
            tokio::spawn(async move {
                let mut step = reader;
                while !ended.load(Ordering::Relaxed) {
                    let _it_may_fail = read(&c, &mut session, step, by_rank).await;
                    step += 1;
                    // So many at once would leave the servers no time for anything else.
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
            });
        }
        Ok(Self(ended))
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn read(
    c: &Collection<Document>,
    session: &mut ClientSession,
    step: usize,
    by_rank: bool,
) -> Result<()> {
    let filter = doc! { "group": i32::try_from(step / 4 % 10)? };
    match step % 4 {
        0 => {
            let mut found = c.find(filter).session(&mut *session).await?;
            found.stream(session).try_collect::<Vec<_>>().await?;
        }
        1 => drop(c.distinct("n", filter).session(session).await?),
        2 => drop(c.count_documents(filter).session(session).await?),
        _ if by_rank => {
            // Of one document by the index, and of all without it: that takes no processor, only time.
            let slowly = doc! { "$where": "sleep(5) || true" };
            let first = FindOptions::builder().sort(doc! { "rank": 1 }).limit(1).build();
            let mut found = c.find(slowly).with_options(first).session(&mut *session).await?;
            found.stream(session).try_collect::<Vec<_>>().await?;
        }
        _ => drop(c.find_one(doc! { "rank": 3 }).session(session).await?),
    }
    Ok(())
}
