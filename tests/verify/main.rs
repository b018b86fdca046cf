//! Comparing and repairing, and expiry, on real servers with both streams followed.

#[path = "../common/mod.rs"]
mod common;
mod expiry;
mod proofs;
mod route_keys;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Error, Result, ensure};
use bson::{Bson, Document, doc};
use common::{Pair, eventually};
use parking_lot::Mutex;
use reshard::clock::{SharedClock, SystemClock};
use reshard::converge::converger::Converger;
use reshard::converge::lanes::Lanes;
use reshard::converge::sessions::{SESSIONS, Sessions};
use reshard::migration::bypass::{Examiner, Log};
use reshard::migration::context::Context;
use reshard::migration::control::{Mismatch, Phase, Verification, Verify};
use reshard::migration::scope::Scope;
use reshard::migration::stream::ChangeStream;
use reshard::migration::tailer::{Health, Tailer};
use reshard::migration::verify::{Verifier, forget};
use reshard::model::namespace::Namespace;
use reshard::model::side::{PerSide, Side};
use reshard::model::slots::SlotSet;
use reshard::policy::retry::Memory;
use reshard::policy::safeguards::Safeguards;
use reshard::state::authority::Authority;
use reshard::state::checkpoint;
use reshard::state::frontier::Frontier;
use reshard::state::inflight::Inflight;
use reshard::state::lease::Lease;
use reshard::state::own_writes::OwnWrites;
use reshard::state::parking::Parking;
use reshard::state::recent::Recent;
use reshard::state::record::{AuthorityRecord, StoredRouteKey};
use reshard::state::records::Records;
use reshard::state::table::Routing;
use reshard::state::violations::Violations;
use tokio::sync::watch;
use uuid::Uuid;

const NAME: &str = "m";

/// A migration with its streams followed; half of the slots, if any, belong to new.
struct Bed {
    pair: Pair,
    ctx: Arc<Context>,
    pause: watch::Sender<bool>,
    recent: Arc<Recent>,
}

impl Bed {
    async fn start(pair: Pair, new_percent: u8) -> Result<Self> {
        Self::divided(pair, new_percent, Vec::new()).await
    }

    async fn divided(pair: Pair, new_percent: u8, route_keys: Vec<StoredRouteKey>) -> Result<Self> {
        let namespaces = vec![Namespace::new("shop", "c")];
        let clock: SharedClock = Arc::new(SystemClock);
        let clusters = pair.clusters.clone();
        let records = PerSide::from_fn(|side| {
            let limit = Duration::from_secs(10);
            Arc::new(Records::new(clusters.get(side).clone(), clock.clone(), Uuid::new_v4(), limit))
        });
        let owned = SlotSet::percent(new_percent);
        let authorities = PerSide::from_fn(|side| {
            let lease = Lease::new(clock.clone(), Duration::from_secs(60));
            let records = records.get(side).clone();
            Arc::new(Authority::new(side, NAME, "p1", SESSIONS, records, clock.clone(), lease))
        });
        for side in Side::BOTH {
            let mut record = AuthorityRecord::begin(NAME, side, PerSide::default(), vec!["shop.c".into()]);
            record.owned = if side == Side::New { owned } else { SlotSet::ALL.minus(&owned) };
            record.phase = Phase::Synced;
            let record = record.routed_by(route_keys.clone());
            authorities.get(side).create(&record).await?;
            ensure!(authorities.get(side).beat(|| ()).await?);
        }
        let sessions = PerSide::from_fn(|side| {
            Arc::new(Sessions::new("p1", side, clusters.get(side).clone(), clock.clone()))
        });
        let routing = Arc::new(Routing::default());
        let inflight = Inflight::new(routing.clone(), clock.clone());
        let converger = Arc::new(Converger {
            migration: NAME.into(),
            clusters: clusters.clone(),
            sessions: sessions.clone(),
            inflight: inflight.clone(),
            lanes: Arc::new(Lanes::default()),
            own: OwnWrites::new(clock.clone()),
            clock: clock.clone(),
            safeguards: Safeguards::default(),
            converged: 0.into(),
            violations: Arc::new(Violations::new(NAME, clock.clone())),
            looks: Default::default(),
            interrupt: tokio::sync::Notify::new(),
        });
        let ctx = Arc::new(Context {
            name: NAME.into(),
            scope: Arc::new(Scope::of(namespaces)),
            newcomers: Arc::default(),
            clusters,
            authorities,
            sessions,
            routing,
            inflight,
            converger,
            retries: Arc::new(Mutex::new(Memory::new(100))),
            frontiers: PerSide::default(),
            parking: Arc::new(Parking::new(NAME)),
            records: records.old.clone(),
            clock,
            keeps_mirrors_current: false.into(),
            publishing: parking_lot::Mutex::default(),
            taking_back: parking_lot::Mutex::default(),
            safeguards: Safeguards::default(),
        });
        ensure!(ctx.publish(|_| ()).is_some());
        let bed =
            Self { pair, ctx, pause: watch::Sender::new(false), recent: Arc::new(Recent::new(100_000)) };
        bed.follow_from_now().await?;
        for side in Side::BOTH {
            tokio::spawn(bed.tailer(side).run());
        }
        bed.caught_up().await?;
        Ok(bed)
    }

    /// Whatever happened before is not looked at by the streams.
    async fn follow_from_now(&self) -> Result<()> {
        for side in Side::BOTH {
            let (stream, batch) =
                ChangeStream::open(self.ctx.clusters.get(side), &self.ctx.scope, None).await?;
            checkpoint::store(&self.ctx.records, NAME, side, &batch.token, 0).await?;
            stream.close().await;
        }
        Ok(())
    }

    fn tailer(&self, side: Side) -> Tailer {
        let ctx = &self.ctx;
        Tailer {
            side,
            cluster: ctx.clusters.get(side).clone(),
            scope: Arc::clone(&ctx.scope),
            newcomers: Arc::clone(&ctx.newcomers),
            converger: ctx.converger.clone(),
            frontier: ctx.frontiers.get(side).clone(),
            recent: self.recent.clone(),
            examiner: Arc::new(Examiner {
                own: ctx.converger.own.clone(),
                registry: Arc::default(),
                log: Arc::new(Log::new(NAME)),
                records: ctx.records.clone(),
                authorities: ctx.authorities.clone(),
                clock: ctx.clock.clone(),
            }),
            parking: ctx.parking.clone(),
            records: ctx.records.clone(),
            clock: ctx.clock.clone(),
            paused: self.pause.subscribe(),
            health: Arc::new(Mutex::new(Health::Idle)),
            begun_anew: tokio::sync::watch::channel(0).1,
        }
    }

    async fn caught_up(&self) -> Result<()> {
        for side in Side::BOTH {
            let time = self.ctx.mark(side, Duration::from_secs(5)).await.map_err(Error::msg)?;
            let frontier: &Frontier = self.ctx.frontiers.get(side);
            ensure!(
                frontier.wait_past(time, &*self.ctx.clock, Duration::from_secs(15)).await,
                "{side} is behind"
            );
        }
        Ok(())
    }

    /// Runs `changes` behind the back of the streams.
    async fn unseen(&self, changes: impl AsyncFnOnce(&Pair) -> Result<()>) -> Result<()> {
        self.caught_up().await?;
        self.pause.send_replace(true);
        eventually("the streams stop", async || {
            Ok(Side::BOTH.into_iter().all(|side| self.ctx.frontiers.get(side).position().is_none()))
        })
        .await?;
        changes(&self.pair).await?;
        self.follow_from_now().await?;
        self.pause.send_replace(false);
        self.caught_up().await
    }

    async fn verify(&self) -> (Verification, Vec<Mismatch>) {
        self.verify_as(Verify::default()).await
    }

    async fn verify_as(&self, asked: Verify) -> (Verification, Vec<Mismatch>) {
        forget(&self.ctx.records, NAME).await.expect("a place to store ranges");
        self.go_on(asked).await
    }

    /// With the ranges that an earlier one has left.
    async fn go_on(&self, asked: Verify) -> (Verification, Vec<Mismatch>) {
        let state = Arc::new(Mutex::new(Verification::default()));
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = told.clone();
        let found = move |mismatch| sink.lock().push(mismatch);
        Verifier::new(self.ctx.clone(), asked).run(state.clone(), &found).await;
        let (state, told) = (state.lock().clone(), std::mem::take(&mut *told.lock()));
        (state, told)
    }

    async fn are_equal(&self) -> Result<bool> {
        let [old, new] = self.pair.hashes().await?;
        let of = |hash: &Document| hash.get_document("collections").ok().and_then(|it| it.get("c").cloned());
        Ok(of(&old) == of(&new))
    }
}

/// Documents with `_id`s of many types, so that ranges meet all of them.
fn documents(count: i32) -> Vec<Document> {
    let mut documents: Vec<Document> =
        (0..count).map(|id| doc! { "_id": id, "a": id, "text": "x".repeat(50) }).collect();
    let odd: [Bson; 8] = [
        Bson::Null,
        "text".into(),
        1.5.into(),
        doc! { "a": 1 }.into(),
        true.into(),
        Bson::MinKey,
        Bson::MaxKey,
        bson::oid::ObjectId::new().into(),
    ];
    documents.extend(odd.into_iter().map(|id| doc! { "_id": id, "a": 0 }));
    documents
}

async fn fill(pair: &Pair, count: i32) -> Result<()> {
    for chunk in documents(count).chunks(2000) {
        pair.on_old(doc! { "insert": "c", "documents": chunk.to_vec() }).await?;
        pair.on_new(doc! { "insert": "c", "documents": chunk.to_vec() }).await?;
    }
    Ok(())
}

async fn spoil(pair: &Pair) -> Result<()> {
    let update = |id: Bson| doc! { "q": { "_id": id }, "u": { "$set": { "a": 1.0 } } };
    let delete = |id: Bson| doc! { "q": { "_id": id }, "limit": 1 };
    // Equal by value, not by bytes; and a document under an `_id` that is equal by value.
    pair.on_new(doc! { "update": "c", "updates": [update(1.into()), update(2999.into())] }).await?;
    pair.on_new(
        doc! { "delete": "c", "deletes": [delete(2.into()), delete(Bson::Null), delete(Bson::MaxKey)] },
    )
    .await?;
    pair.on_new(doc! { "insert": "c", "documents": [{ "_id": -5 }, { "_id": "zz" }] }).await?;
    pair.on_new(doc! { "delete": "c", "deletes": [delete(7.into())] }).await?;
    pair.on_new(doc! { "insert": "c", "documents": [{ "_id": 7.0, "a": 7, "text": "x".repeat(50) }] })
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_difference_is_found_and_repaired() -> Result<()> {
    let pair = Pair::start().await?;
    fill(&pair, 3000).await?;
    let bed = Bed::start(pair, 0).await?;
    let (state, told) = bed.verify().await;
    ensure!(state.failure.is_none() && state.mismatches == 0 && !state.running, "{state:?} {told:?}");
    ensure!(state.compared_documents == 3008 && state.total_documents == 3008, "{state:?}");
    ensure!(state.finished_at.is_some());
    bed.unseen(spoil).await?;
    ensure!(!bed.are_equal().await?);
    let (state, told) = bed.verify().await;
    let told: BTreeSet<_> = told.iter().map(|it| (it.kind.as_str(), it.key.as_str(), it.repaired)).collect();
    let expected: BTreeSet<_> = [
        ("content", "1", true),
        ("content", "2999", true),
        ("content", "7.0", true),
        ("missing_on_mirror", "2", true),
        ("missing_on_mirror", "null", true),
        ("missing_on_mirror", "{\"$maxKey\":1}", true),
        ("extra_on_mirror", "-5", true),
        ("extra_on_mirror", "\"zz\"", true),
    ]
    .into();
    ensure!(told == expected, "{told:?}");
    ensure!(state.mismatches == 8 && state.repaired == 8 && state.failure.is_none(), "{state:?}");
    ensure!(bed.are_equal().await?);
    let (state, _) = bed.verify().await;
    ensure!(state.mismatches == 0 && state.failure.is_none(), "{state:?}");
    Ok(())
}

/// With authority on both sides, each document is repaired towards its own mirror.
#[tokio::test(flavor = "multi_thread")]
async fn repair_follows_the_authority_of_each_document() -> Result<()> {
    let pair = Pair::start().await?;
    fill(&pair, 2000).await?;
    let bed = Bed::start(pair, 50).await?;
    bed.unseen(async |pair| {
        let u = doc! { "$set": { "a": "new" } };
        pair.on_new(
            doc! { "update": "c", "updates": [{ "q": { "_id": { "$lt": 400 } }, "u": u, "multi": true }] },
        )
        .await?;
        Ok(())
    })
    .await?;
    let (state, told) = bed.verify().await;
    // 0 to 399 and 1.5.
    ensure!(state.mismatches == 401 && state.repaired == 401 && told.len() == 401, "{state:?}");
    ensure!(bed.are_equal().await?);
    let kept = bed.pair.on_old(doc! { "count": "c", "query": { "a": "new" } }).await?.get_i32("n")?;
    ensure!((100..300).contains(&kept), "about half belongs to new: {kept}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_repaired_and_other_structure_are_told() -> Result<()> {
    let pair = Pair::start().await?;
    fill(&pair, 10).await?;
    pair.on_old(doc! { "createIndexes": "c", "indexes": [{ "key": { "x": 1 }, "name": "x_1" }] }).await?;
    let bed = Bed::start(pair, 0).await?;
    bed.unseen(async |pair| {
        pair.on_old(doc! { "insert": "c", "documents": [{ "_id": 100, "u": 1 }, { "_id": 101, "u": 1 }] })
            .await?;
        pair.on_new(doc! { "insert": "c", "documents": [{ "_id": 100, "u": 1 }] }).await?;
        let unique = vec![doc! { "key": { "u": 1 }, "name": "u_1", "unique": true, "sparse": true }];
        pair.on_new(doc! { "createIndexes": "c", "indexes": unique }).await?;
        Ok(())
    })
    .await?;
    let (state, told) = bed.verify().await;
    let told: BTreeSet<_> = told.iter().map(|it| (it.kind.as_str(), it.key.as_str(), it.repaired)).collect();
    ensure!(told.contains(&("index", "x_1", false)) && told.contains(&("index", "u_1", false)), "{told:?}");
    // Both are right on old, and the one that new has stays there.
    let one_stays_out = async || Ok(bed.ctx.parking.len() == 1);
    eventually("one of the two to be parked", one_stays_out).await?;
    ensure!(told.contains(&("missing_on_mirror", "101", false)), "{told:?}");
    ensure!(!told.iter().any(|(_, key, _)| *key == "100"), "{told:?}");
    ensure!(state.mismatches - state.repaired == 3 && state.failure.is_none(), "{state:?}");
    Ok(())
}

/// Documents that change all the time are not reported, and real differences are found among them.
#[tokio::test(flavor = "multi_thread")]
async fn writes_that_go_on_are_no_differences() -> Result<()> {
    let pair = Pair::start().await?;
    fill(&pair, 3000).await?;
    let bed = Bed::start(pair, 0).await?;
    bed.unseen(spoil).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (old, stop) = (bed.pair.clusters.old.clone(), stop.clone());
            tokio::spawn(async move {
                let mut written = 0;
                while !stop.load(Ordering::Relaxed) {
                    let id = 1000 + (written * 7 + writer * 13) % 50;
                    let statement = match written % 5 {
                        0 => doc! { "delete": "c", "deletes": [{ "q": { "_id": id }, "limit": 1 }] },
                        _ => doc! { "update": "c", "updates": [
                            { "q": { "_id": id }, "u": { "$inc": { "a": 1 } }, "upsert": true },
                        ] },
                    };
                    common::run(&*old, "shop", &statement).await?;
                    written += 1;
                }
                anyhow::Ok(written)
            })
        })
        .collect();
    let (mut mismatches, mut rounds) = (0, 0);
    for _ in 0..5 {
        let (state, told) = bed.verify().await;
        ensure!(told.iter().all(|it| !it.key.starts_with("10")), "{told:?}");
        mismatches += state.mismatches;
        rounds += u32::from(state.failure.is_some());
    }
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        written += writer.await??;
    }
    println!("{written} writes, {rounds} of 5 runs with unsettled keys");
    ensure!(mismatches == 8, "{mismatches}");
    bed.caught_up().await?;
    let (state, _) = bed.verify().await;
    ensure!(state.mismatches == 0 && state.failure.is_none(), "{state:?}");
    ensure!(bed.are_equal().await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_stream_nothing_is_called_equal() -> Result<()> {
    let pair = Pair::start().await?;
    fill(&pair, 10).await?;
    let bed = Bed::start(pair, 0).await?;
    bed.unseen(spoil_little).await?;
    bed.pause.send_replace(true);
    eventually("the stream stops", async || Ok(bed.ctx.frontiers.old.position().is_none())).await?;
    let pause = bed.pause.clone();
    let state = Arc::new(Mutex::new(Verification::default()));
    let verifier = Verifier::new(bed.ctx.clone(), Verify { parallel: 1, ..Verify::default() });
    let found = |mismatch: Mismatch| println!("{mismatch:?}");
    let run = verifier.run(state.clone(), &found);
    // It goes on trying, and reports nothing.
    ensure!(tokio::time::timeout(Duration::from_secs(3), run).await.is_err());
    ensure!(state.lock().running && state.lock().mismatches == 0);
    pause.send_replace(false);
    let (state, _) = bed.verify().await;
    ensure!(state.mismatches == 1 && state.repaired == 1, "{state:?}");
    Ok(())
}

async fn spoil_little(pair: &Pair) -> Result<()> {
    pair.on_new(doc! { "delete": "c", "deletes": [{ "q": { "_id": 3 }, "limit": 1 }] }).await.map(|_| ())
}
