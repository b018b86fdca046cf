//! The production engine in the world: a migration with its operator, clients and faults.

mod client;
mod directed;
mod faults;
mod generated;
mod ledger;
mod operator;
mod options;
mod prepared;
mod proxy;
mod runs;
mod stage;
mod stories;
mod teeth;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::raw::RawDocumentBuf;
use bson::{RawBson, rawdoc};
use reshard::migration::control::Control;
use reshard::model::side::{PerSide, Side};
use reshard::model::slots::{Slot, SlotSet};
use reshard::policy::canonical;
use reshard::policy::invariants::Invariant;
use reshard::policy::key_ranges::KeyRanges;
use reshard::policy::safeguards::Safeguards;
use reshard::state::record::AuthorityRecord;
use tokio::sync::{Notify, mpsc};

use self::client::{COUNTED, COUNTERS, Client, LATE, NS, REGISTERS};
use self::faults::Faults;
use self::ledger::Ledger;
use self::operator::{Calls, MIGRATION, PAUSE, operate, way, way_of_ranges};
pub(crate) use self::options::{Done, Options};
use self::proxy::{Front, Proxy, Site};
use crate::checks::checker::{Initial, check_equal, check_history};
use crate::checks::history::History;
use crate::mongo::cluster::{Cluster, ClusterOptions};
use crate::mongo::key::{Key, document_key, key_of};
use crate::network::Weather;
use crate::world::World;

/// Documents that nobody writes but the copy.
const UNTOUCHED: i32 = 20;
/// How long the streams may take to settle in the end.
const SETTLE: Duration = Duration::from_secs(300);
/// How long nothing may change, several times, before it has settled: longer than any pause before another attempt.
const REST: Duration = Duration::from_millis(600);

/// One schedule from its seed to its checks.
///
/// # Errors
/// What does not hold, with the story of the key.
pub(crate) fn schedule(world: &World, options: &Options) -> Result<Done, String> {
    world.executor().limit_steps(5_000_000);
    let main = Scenario::new(world, options).run(options.clone());
    world.run(main).map_err(|halt| halt.to_string())?
}

struct Scenario {
    site: Site,
    front: Front,
    history: History,
    ledger: Ledger,
    initial: Initial,
}

impl Scenario {
    fn new(world: &World, options: &Options) -> Self {
        world.network().set_weather(options.weather.clone());
        let mut rng = world.rng();
        let clusters = PerSide::from_fn(|side| {
            let options = ClusterOptions { names_retries: rng.chance(500), ..ClusterOptions::default() };
            world.cluster(side.as_str(), options)
        });
        let mut initial = Initial::new();
        for document in documents() {
            initial.insert((NS, document_key(&document)), document);
        }
        clusters.old.load(NS, initial.values().cloned());
        let ledger = Ledger::open(world.executor(), &clusters);
        let history = History::new(world.executor().clone());
        let site = Site { world: world.clone(), clusters, safeguards: options.safeguards };
        Self { site, front: Front::new(), history, ledger, initial }
    }

    async fn run(self, options: Options) -> Result<Done, String> {
        let world = self.site.world.clone();
        let (stop_clients, stop_faults) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        // What was sent before the migration began is not known to it (see `runs::known`): either nothing is
        // late by then, or nothing has been sent.
        let started = Arc::new(Notify::new());
        let calm_start = options.early_writers || world.rng().chance(500);
        let late_writers = !options.early_writers && !calm_start;
        if calm_start && !options.early_writers {
            world.network().set_weather(Weather::calm());
        }
        let (sender, mut ended) = mpsc::unbounded_channel::<()>();
        for number in 0..options.clients {
            let begin = late_writers.then(|| Arc::clone(&started));
            self.begin_client(number, &options, &stop_clients, begin, sender.clone());
        }
        drop(sender);
        let first = self.front.start(&self.site, 1);
        if options.old_write {
            world.network().hold(first.process.id, self.site.clusters.old.index(), "update", 2);
        }
        if options.slow_copy {
            world.network().hold(first.process.id, self.site.clusters.new.index(), "insert", 1);
        }
        let faults = Faults {
            site: self.site.clone(),
            front: self.front.clone(),
            rng: world.rng(),
            mix: options.mix,
            stop: Arc::clone(&stop_faults),
            proxy: first,
            number: 1,
            haste: 1,
        };
        let faults = async {
            if calm_start && !options.early_writers {
                started.notified().await;
                world.network().set_weather(options.weather.clone());
            }
            faults.run().await
        };
        let releases = async {
            if options.old_write {
                // After the first move; as long as there is none, after a while.
                let give_up = world.executor().now() + Duration::from_secs(30);
                while self.owned(Side::New).is_empty() && world.executor().now() < give_up {
                    world.sleep(Duration::from_millis(20)).await;
                }
                world.network().flush();
            }
            if options.slow_copy {
                started.notified().await;
                world.sleep(Duration::from_millis(1500)).await;
                world.network().flush();
            }
        };
        let operator = async {
            let mut rng = world.rng();
            let way = if options.ranges { way_of_ranges } else { way };
            let steps = way(&mut rng, options.moves);
            world.sleep(rng.between(Duration::ZERO, Duration::from_millis(500))).await;
            let calls = operate(world.clone(), self.front.clone(), rng, steps, &started, PAUSE).await;
            stop_faults.store(true, Ordering::Relaxed);
            calls
        };
        let (calls, proxy, ()) = futures::join!(operator, faults, releases);
        world.settle().await;
        stop_clients.store(true, Ordering::Relaxed);
        let _ = ended.recv().await;
        self.end(&world, calls, &proxy).await
    }

    fn begin_client(
        &self,
        number: u8,
        options: &Options,
        stop: &Arc<AtomicBool>,
        begin: Option<Arc<Notify>>,
        ended: mpsc::UnboundedSender<()>,
    ) {
        let process = self.site.world.process(&format!("client-{number}"));
        let client = self.client(number, options, stop);
        process.spawn("client", async move {
            if let Some(begin) = begin {
                begin.notified().await;
            }
            client.run().await;
            drop(ended);
        });
    }

    fn client(&self, number: u8, options: &Options, stop: &Arc<AtomicBool>) -> Client {
        let world = self.site.world.clone();
        Client {
            front: self.front.clone(),
            history: self.history.clone(),
            ledger: self.ledger.clone(),
            rng: world.rng(),
            world,
            number,
            sessions: 0,
            txn: 0,
            writes: 0,
            stop: Arc::clone(stop),
            pause: options.pause,
            reads: options.reads,
            broken: options.broken,
        }
    }

    /// Lets it settle, and checks.
    async fn end(&self, world: &World, calls: Calls, proxy: &Arc<Proxy>) -> Result<Done, String> {
        if let Some(why) = &*proxy.engine.fatal().borrow() {
            return Err(format!("the last proxy refuses to serve: {why}"));
        }
        let settled = self.quiesce(world, proxy).await;
        settled.map_err(|why| format!("{why}; the operator: {:?}", calls.given_up))?;
        self.nothing_past_the_proxy(proxy).await?;
        let seen_by_proxies = self.front.violations();
        let parked = proxy.engine.conflicts(MIGRATION).await.unwrap_or_default();
        if !parked.is_empty() {
            return Err(format!("nothing should be parked: {parked:?}"));
        }
        self.check()?;
        self.no_false_alarm(&seen_by_proxies)?;
        Ok(Done {
            durable: self.history.durable(),
            moves: calls.moves,
            proxies: proxy.process.id.0,
            given_up: calls.given_up,
        })
    }

    /// Where nothing is switched off that they would miss, proxies find nothing wrong either.
    fn no_false_alarm(&self, seen: &BTreeMap<Invariant, u64>) -> Result<(), String> {
        let Safeguards { verified, .. } = self.site.safeguards;
        if self.site.safeguards != (Safeguards { verified, ..Safeguards::ALL }) {
            return Ok(());
        }
        let expected = |invariant: &Invariant| !verified && *invariant == Invariant::EveryGate;
        match seen.iter().find(|(invariant, _)| !expected(invariant)) {
            None => Ok(()),
            Some(found) => Err(format!("a proxy found an invariant broken that was not: {found:?}")),
        }
    }

    /// All of its writers go through a proxy: none of their writes is taken for one that went past.
    async fn nothing_past_the_proxy(&self, proxy: &Arc<Proxy>) -> Result<(), String> {
        if self.site.safeguards != Safeguards::default() {
            return Ok(());
        }
        let progress = proxy.engine.progress(MIGRATION).await.map_err(|error| error.to_string())?;
        if progress.bypass_writes_total > 0 {
            return Err(format!("writes are taken for such as went past the proxy: {progress:?}"));
        }
        Ok(())
    }

    /// Waits until both streams have passed everything and nothing follows from it.
    async fn quiesce(&self, world: &World, proxy: &Arc<Proxy>) -> Result<(), String> {
        let give_up = world.executor().now() + SETTLE;
        let mut quiet = 0;
        while quiet < 3 {
            world.settle().await;
            let before = self.ledger.changes();
            let times = PerSide::from_fn(|side| self.site.clusters.get(side).state().primary.applied);
            loop {
                let active = proxy.registry.get(MIGRATION);
                let passed = |side| {
                    active
                        .as_ref()
                        .is_some_and(|active| active.frontiers.get(side).has_passed(*times.get(side)))
                };
                if Side::BOTH.into_iter().all(passed) {
                    break;
                }
                if world.executor().now() >= give_up {
                    let progress = proxy.engine.progress(MIGRATION).await;
                    return Err(format!("invariant 2: it does not settle: {progress:?}"));
                }
                world.sleep(Duration::from_millis(100)).await;
            }
            world.sleep(REST).await;
            quiet = if self.ledger.changes() == before { quiet + 1 } else { 0 };
        }
        Ok(())
    }

    fn record(&self, side: Side) -> Option<AuthorityRecord> {
        let id = RawBson::from(MIGRATION);
        let document = self.site.clusters.get(side).document("reshard.authority", id.as_raw_bson_ref());
        document.and_then(|raw| bson::deserialize_from_slice(raw.as_bytes()).ok())
    }

    /// The slots that a cluster's record says it owns.
    fn owned(&self, side: Side) -> SlotSet {
        self.record(side).map(|record| record.owned).unwrap_or_default()
    }

    /// The ranges that old's record tells of.
    fn ranges(&self) -> KeyRanges {
        self.record(Side::Old).map(|record| record.key_ranges()).unwrap_or_default()
    }

    fn check(&self) -> Result<(), String> {
        let clusters = &self.site.clusters;
        let slots = slots(&self.ranges());
        let owned = PerSide::from_fn(|side| self.owned(side));
        let authority = |key: &Key| {
            if owned.new.contains(slots[key]) { &clusters.new } else { &clusters.old }
        };
        self.ledger
            .check_acknowledged(clusters, |key| slots[key])
            .map_err(|violation| violation.to_string())?;
        for (ns, key) in [NS, LATE].into_iter().flat_map(|ns| slots.keys().map(move |key| (ns, key))) {
            let document = |cluster: &Cluster| cluster.state().primary.store.document(ns, key).cloned();
            let differs = document(&clusters.old) != document(&clusters.new);
            let checked = check_history(&self.history.only(ns, key), &self.initial, |_, key| authority(key));
            let checked = match (checked, differs) {
                (Ok(()), true) => check_equal(&clusters.old, &clusters.new, ns, &BTreeSet::new()),
                (checked, _) => checked,
            };
            checked.map_err(|violation| format!("{violation}{}", self.ledger.story(clusters, key)))?;
        }
        self.check_untouched(authority)?;
        self.ledger.check_mirrored(clusters, |key| slots[key]).map_err(|violation| violation.to_string())
    }

    /// What nobody wrote is what it was.
    fn check_untouched<'a>(&self, authority: impl Fn(&Key) -> &'a Cluster) -> Result<(), String> {
        for id in 1000..1000 + UNTOUCHED {
            let key = key_of(bson::RawBsonRef::Int32(id));
            let found = authority(&key).state().primary.store.document(NS, &key).cloned();
            let before = &self.initial[&(NS, key)];
            if found.as_ref().map(|found| found.as_bytes()) != Some(before.as_bytes()) {
                return Err(format!("invariant 1: {id}, which nobody wrote, is {found:?}"));
            }
        }
        Ok(())
    }
}

/// What is there before it begins: half of the registers, all counters, and some that nobody writes.
fn documents() -> Vec<RawDocumentBuf> {
    let registers = (0..REGISTERS).step_by(2).map(|id| rawdoc! { "_id": id, "by": -1, "number": 0_i64 });
    let counters = (COUNTERS..COUNTERS + COUNTED)
        .map(|id| rawdoc! { "_id": id, "n": 0, "list": bson::RawArrayBuf::new() });
    let untouched = (1000..1000 + UNTOUCHED).map(|id| rawdoc! { "_id": id, "text": "as it was" });
    registers.chain(counters).chain(untouched).collect()
}

/// The slot of every document.
fn slots(ranges: &KeyRanges) -> BTreeMap<Key, Slot> {
    let ids = (0..REGISTERS).chain(COUNTERS..COUNTERS + COUNTED).chain(1000..1000 + UNTOUCHED);
    ids.map(|id| {
        let id = bson::RawBsonRef::Int32(id);
        (key_of(id), ranges.slot_of(&canonical::key_of(id).unwrap()))
    })
    .collect()
}
