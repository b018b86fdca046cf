//! Comparing and repairing, and expiry, on real servers with both streams followed.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Error, Result, bail, ensure};
use bson::{Bson, Document, doc, rawdoc};
use common::{Pair, eventually};
use parking_lot::Mutex;
use reshard::clock::{SharedClock, SystemClock};
use reshard::converge::converger::Converger;
use reshard::converge::lanes::Lanes;
use reshard::converge::sessions::{SESSIONS, Sessions};
use reshard::migration::bypass::{Examiner, Log};
use reshard::migration::context::Context;
use reshard::migration::control::{Basis, Mismatch, Phase, Verification, Verify};
use reshard::migration::prepare::{plan, prepare};
use reshard::migration::scope::Scope;
use reshard::migration::stream::ChangeStream;
use reshard::migration::tailer::{Health, Tailer};
use reshard::migration::ttl::expire_due;
use reshard::migration::verify::{VERIFIED, Verifier, forget};
use reshard::model::namespace::{DATABASE, Namespace};
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
use reshard::state::record::AuthorityRecord;
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

#[tokio::test(flavor = "multi_thread")]
async fn what_is_proved_is_said_with_counts_digests_and_times() -> Result<()> {
    let pair = Pair::start().await?;
    fill(&pair, 3000).await?;
    let bed = Bed::start(pair, 50).await?;
    let (state, _) = bed.verify().await;
    let of = &state.collections[0];
    ensure!(state.collections.len() == 1 && of.namespace == "shop.c", "{state:?}");
    ensure!((of.documents_on_old, of.documents_on_new) == (3008, 3008), "{of:?}");
    ensure!(of.digest_of_old == of.digest_of_new && of.digest_of_old.len() == 32, "{of:?}");
    let proved = state.equal_up_to.expect("a proof");
    let before = bed.ctx.mark(Side::Old, Duration::from_secs(5)).await.map_err(Error::msg)?;
    ensure!(
        proved.old.seconds <= before.time && proved.old.seconds + 60 > before.time,
        "{proved:?} {before}"
    );
    // One that only tells.
    bed.unseen(spoil_little).await?;
    let (state, told) = bed.verify_as(Verify { repair: false, ..Verify::default() }).await;
    let of = &state.collections[0];
    ensure!(of.digest_of_old != of.digest_of_new && (of.mismatches, of.repaired) == (1, 0), "{of:?}");
    ensure!(told.len() == 1 && !told[0].repaired && state.failure.is_none(), "{told:?} {state:?}");
    ensure!(state.equal_up_to.is_none() && !bed.are_equal().await?, "{state:?}");
    let (state, _) = bed.verify().await;
    ensure!((state.mismatches, state.repaired) == (1, 1) && state.equal_up_to.is_some(), "{state:?}");
    ensure!(bed.are_equal().await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_differ_are_named() -> Result<()> {
    let pair = Pair::start().await?;
    let bed = Bed::start(pair, 0).await?;
    bed.unseen(async |pair| {
        let document = |price: Bson| doc! { "_id": 1, "lines": [{ "price": 1 }, { "price": price }], "n": 1 };
        pair.on_old(doc! { "insert": "c", "documents": [document(2.into())] }).await?;
        pair.on_new(doc! { "insert": "c", "documents": [document(2_i64.into())] }).await?;
        Ok(())
    })
    .await?;
    let (_, told) = bed.verify().await;
    ensure!(told.len() == 1 && told[0].paths == ["lines.1.price"], "{told:?}");
    Ok(())
}

/// Digests find what they can, and exactly what their list of blind spots says they do not.
#[tokio::test(flavor = "multi_thread")]
async fn digests_keep_to_their_blind_spots() -> Result<()> {
    let pair = Pair::start().await?;
    fill(&pair, 3000).await?;
    let bed = Bed::start(pair, 0).await?;
    let digest = Verify { compare: Basis::Digest, ..Verify::default() };
    let (state, _) = bed.verify_as(digest).await;
    ensure!(
        state.mismatches == 0 && state.compared_documents == 3008 && state.failure.is_none(),
        "{state:?}"
    );
    let of = &state.collections[0];
    ensure!(of.digest_of_old == of.digest_of_new, "{of:?}");
    // It is no proof.
    ensure!(state.equal_up_to.is_none(), "{state:?}");
    bed.unseen(async |pair| {
        let set = |id: i32, value: Bson| doc! { "q": { "_id": id }, "u": { "$set": { "a": value } } };
        // The same number of another type, or with the same integer part: not seen.
        let unseen = [set(10, 10_i64.into()), set(11, 11.0.into()), set(12, 12.7.into())];
        let seen = [set(20, 21.into()), set(21, "21".into()), set(22, Bson::Null)];
        let updates: Vec<Document> = unseen.into_iter().chain(seen).collect();
        pair.on_new(doc! { "update": "c", "updates": updates }).await?;
        spoil_little(pair).await
    })
    .await?;
    let (state, told) = bed.verify_as(digest).await;
    let told: BTreeSet<_> = told.iter().map(|it| it.key.as_str()).collect();
    ensure!(told == ["20", "21", "22", "3"].into(), "{told:?}");
    ensure!(state.repaired == 4 && !bed.are_equal().await?, "{state:?}");
    let (state, told) = bed.verify().await;
    let told: BTreeSet<_> = told.iter().map(|it| it.key.as_str()).collect();
    ensure!(told == ["10", "11", "12"].into() && state.repaired == 3, "{told:?}");
    ensure!(bed.are_equal().await?);
    Ok(())
}

/// Large enough for several ranges.
async fn fill_ranges(pair: &Pair) -> Result<()> {
    let text = "x".repeat(4000);
    for first in (0..4000).step_by(500) {
        let documents: Vec<Document> =
            (first..first + 500).map(|id| doc! { "_id": id, "a": id, "text": &text }).collect();
        pair.on_old(doc! { "insert": "c", "documents": documents.clone() }).await?;
        pair.on_new(doc! { "insert": "c", "documents": documents }).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_compares_a_part_and_proves_nothing() -> Result<()> {
    let pair = Pair::start().await?;
    fill_ranges(&pair).await?;
    let bed = Bed::start(pair, 0).await?;
    let (state, _) = bed.verify_as(Verify { sample_percent: 30.0, ..Verify::default() }).await;
    ensure!(state.failure.is_none() && state.mismatches == 0 && state.equal_up_to.is_none(), "{state:?}");
    ensure!((1..3000).contains(&state.compared_documents), "{state:?}");
    Ok(())
}

/// What an earlier process has compared is not compared again, and counts.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_cut_short_goes_on_where_it_was() -> Result<()> {
    let pair = Pair::start().await?;
    fill_ranges(&pair).await?;
    let bed = Bed::start(pair, 0).await?;
    bed.unseen(async |pair| {
        let every_tenth =
            doc! { "q": { "_id": { "$mod": [10, 0] } }, "u": { "$set": { "a": 0.5 } }, "multi": true };
        pair.on_new(doc! { "update": "c", "updates": [every_tenth] }).await.map(|_| ())
    })
    .await?;
    let slowly = Verify { documents_per_second: Some(800.0), parallel: 1, ..Verify::default() };
    let (state, told) = (Arc::new(Mutex::new(Verification::default())), Arc::new(Mutex::new(0_u64)));
    let sink = told.clone();
    let found = move |_: Mismatch| *sink.lock() += 1;
    let verifier = Verifier::new(bed.ctx.clone(), slowly);
    let run = verifier.run(state.clone(), &found);
    let some_are_done = eventually("some ranges to be done", async || {
        let stored = bed.ctx.records.find(DATABASE, VERIFIED, rawdoc! { "done": true }, 100).await?;
        Ok(stored.len() >= 2)
    });
    tokio::select! {
        ended = run => bail!("it ended before it was cut short: {ended:?}"),
        waited = some_are_done => waited?,
    }
    let stored = bed.ctx.records.find(DATABASE, VERIFIED, rawdoc! { "done": true }, 100).await?;
    let done: i64 = stored
        .iter()
        .map(|range| {
            range.get_document("tally").and_then(|tally| tally.get_i64("documents_on_old")).unwrap_or(0)
        })
        .sum();
    ensure!(done > 0 && done < 4000, "{done}");
    let (state, after) = bed.go_on(Verify::default()).await;
    ensure!(state.failure.is_none() && state.equal_up_to.is_some(), "{state:?}");
    ensure!(state.compared_documents == 4000 && state.total_documents == 4000, "{state:?}");
    ensure!(state.collections[0].documents_on_new == 4000, "{state:?}");
    ensure!(state.mismatches == 400 && state.repaired == 400, "{state:?}");
    // Those of the ranges that were done are not told again.
    ensure!(after.len() < 400 && after.len() as u64 + *told.lock() >= 400, "{} {}", after.len(), told.lock());
    ensure!(bed.are_equal().await?);
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
    // One of the two cannot be there. The streams see what is removed to make room, and may be the ones that find it
    // stuck: then the one that the verification made room for is told as repaired, as it was.
    let one_stays_out = async || Ok(bed.ctx.parking.len() == 1);
    eventually("one of the two to be parked", one_stays_out).await?;
    let stays =
        ["100", "101"].iter().filter(|key| told.contains(&("missing_on_mirror", **key, false))).count();
    ensure!(stays == 1 || told.contains(&("missing_on_mirror", "101", true)), "{told:?}");
    let unrepaired = 2 + u64::try_from(stays)?;
    ensure!(state.mismatches - state.repaired == unrepaired && state.failure.is_none(), "{state:?}");
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

#[tokio::test(flavor = "multi_thread")]
async fn due_documents_are_removed_on_their_authority() -> Result<()> {
    let pair = Pair::start().await?;
    let partial = doc! { "kind": "brief" };
    let indexes = vec![
        doc! { "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": 3600 },
        doc! { "key": { "u": 1 }, "name": "u_1", "expireAfterSeconds": 0, "partialFilterExpression": partial },
    ];
    pair.on_old(doc! { "createIndexes": "c", "indexes": indexes }).await?;
    let made = plan(&pair.clusters, &[Namespace::new("shop", "c").into()]).await.map_err(Error::msg)?;
    prepare(&pair.clusters, &made).await.map_err(Error::msg)?;
    let now = bson::DateTime::now().timestamp_millis();
    let at = |seconds: i64| bson::DateTime::from_millis(now + seconds * 1000);
    let mut documents: Vec<Document> = (0..700).map(|id| doc! { "_id": id, "t": at(-7200) }).collect();
    documents.extend([
        doc! { "_id": "later", "t": at(-1800) },
        doc! { "_id": "no date", "t": 5 },
        doc! { "_id": "one of many", "t": [at(-7200), at(7200)] },
        doc! { "_id": "brief", "u": at(-1), "kind": "brief" },
        doc! { "_id": "lasting", "u": at(-1) },
    ]);
    for cluster in [&pair.clusters.old, &pair.clusters.new] {
        common::run(&**cluster, "shop", &doc! { "insert": "c", "documents": documents.clone() }).await?;
    }
    let bed = Bed::start(pair, 50).await?;
    let removed = expire_due(&bed.ctx, &made).await.map_err(Error::msg)?;
    ensure!(removed == 702, "{removed}");
    bed.caught_up().await?;
    ensure!(bed.are_equal().await?);
    let left = bed.pair.on_new(doc! { "distinct": "c", "key": "_id" }).await?;
    let left: BTreeSet<_> = left.get_array("values")?.iter().filter_map(Bson::as_str).collect();
    ensure!(left == ["lasting", "later", "no date"].into(), "{left:?}");
    ensure!(expire_due(&bed.ctx, &made).await.map_err(Error::msg)? == 0);
    // Without the lease nothing is removed.
    bed.pair.on_old(doc! { "insert": "c", "documents": [{ "_id": 1, "t": at(-7200) }] }).await?;
    bed.caught_up().await?;
    for side in Side::BOTH {
        bed.ctx.authorities.get(side).lease.lost();
    }
    ensure!(expire_due(&bed.ctx, &made).await.map_err(Error::msg)? == 0);
    Ok(())
}
