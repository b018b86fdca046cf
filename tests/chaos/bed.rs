//! A replica set of three as old, two shards as new, the program between them, and a load.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bson::{Bson, Document, doc};
use parking_lot::Mutex;
use reshard_loadtest::{KeyFields, Load, LoadConfig, Outcome, Profile, Violation, ViolationKind};
use reshard_testbed::{Node, ReplicaSet, ShardedCluster, wait_for};
use serde_json::{Value, json};

use crate::plan::{MEMBERS, SHARDS};
use crate::proxies::Proxies;
use crate::support::LONG;
use crate::support::proof::{are_equal, load, work};
use crate::support::relay::Relay;

pub(crate) const NAME: &str = "orders";
pub(crate) const NAMESPACE: &str = "shop.orders";
const DOCUMENTS: usize = 5_000;
pub(crate) const OUT_OF_DISK_SPACE: i32 = 14031;

pub(crate) struct Bed {
    pub(crate) old: ReplicaSet,
    pub(crate) new: ShardedCluster,
    /// Of the proxies alone: members see each other past it.
    pub(crate) ways_to_old: Vec<Relay>,
    pub(crate) way_to_new: Relay,
    pub(crate) proxies: Proxies,
    load: Load,
    /// A disk of new was full.
    pub(crate) was_full: AtomicBool,
    /// Documents that a rollback without new has named.
    unreturned: Mutex<BTreeSet<String>>,
    /// What was last granted.
    pub(crate) reads: AtomicU8,
    /// Calls that moved writes.
    moves: AtomicU32,
}

impl Bed {
    /// The load goes on and the migration has started.
    pub(crate) async fn start() -> Result<Self> {
        let (old, new) = tokio::try_join!(
            ReplicaSet::builder("chaos-old").nodes(MEMBERS).start(),
            ShardedCluster::builder().shards(SHARDS).start()
        )?;
        let members: Vec<&str> = old.nodes().iter().map(Node::address).collect();
        let ways_to_old = Relay::to_each(&members).await?;
        let way_to_new = Relay::to(new.router().address()).await?;
        let seeds: Vec<&str> = ways_to_old.iter().map(Relay::address).collect();
        let old_uri = format!("mongodb://{}/?replicaSet={}", seeds.join(","), old.name());
        let proxies = Proxies::start(&old_uri, &way_to_new.uri()).await?;
        let config = LoadConfig {
            key_fields: KeyFields::CustomerOrder,
            keep_examples: 1_000,
            ..load(proxies.uri(), Profile::Keyed, DOCUMENTS)
        };
        Load::prepare(&config).await?;
        let load = Load::start(config).await?;
        let spec = json!({ "namespace": NAMESPACE, "shard_key": { "customer_id": 1, "order_id": 1 } });
        proxies.now().create_and_start_as(NAME, spec).await?;
        let (was_full, unreturned, reads, moves) = Default::default();
        Ok(Self { old, new, ways_to_old, way_to_new, proxies, load, was_full, unreturned, reads, moves })
    }

    pub(crate) fn granted(&self, what: &str, percent: u8) {
        match what {
            "reads" => self.reads.store(percent, Ordering::Relaxed),
            "writes" | "rollback" => drop(self.moves.fetch_add(1, Ordering::Relaxed)),
            _ => {}
        }
        if what == "rollback" {
            self.reads.store(0, Ordering::Relaxed);
        }
    }

    /// Where everything is well, what an operator asks for is granted.
    pub(crate) async fn climb(&self, percent: u8) -> Result<()> {
        self.rest().await?;
        // Reads go first on the way up, and last on the way down.
        self.proxies.now().percent(NAME, "reads", 100).await?;
        for what in ["writes", "reads"] {
            self.proxies.now().percent(NAME, what, percent).await?;
            self.granted(what, percent);
        }
        Ok(())
    }

    /// Until what a rollback without new has left there is back; what both have changed an operator looks at.
    async fn until_returned(&self) -> Result<()> {
        let returned = wait_for("what new has to be back on old", LONG, || async {
            let path = format!("/v1/migrations/{NAME}/progress");
            let (status, progress) = self.proxies.now().get(&path).await?;
            let unreturned = &progress["unreturned"];
            let is_back = status == 200 && (unreturned.is_null() || unreturned["state"] == "done");
            let conflicts = unreturned["conflicts"].as_u64().unwrap_or(0);
            if is_back && !unreturned.is_null() {
                self.note_unreturned().await?;
            }
            if is_back && conflicts > 0 && unreturned["acknowledged"].is_null() {
                let path = format!("/v1/migrations/{NAME}/unreturned/acknowledge");
                self.proxies.now().http("POST", &path, Some(json!({ "reason": "chaos" }))).await?;
                return Ok(false);
            }
            Ok(is_back)
        });
        returned.await.with_context(|| self.proxies.tails())
    }

    /// Until they were back, old had its own state of these documents; where both have changed, that stands, and the
    /// program has named what new had.
    async fn note_unreturned(&self) -> Result<()> {
        let path = format!("/v1/migrations/{NAME}/unreturned?limit=1000");
        let list = self.proxies.now().call("GET", &path, None).await?;
        let (database, collection) = NAMESPACE.split_once('.').context("a namespace")?;
        let on_old = self.old.client().await?.database(database).collection::<Document>(collection);
        for document in list["documents"].as_array().into_iter().flatten() {
            let id: Value = serde_json::from_str(document["key"].as_str().context("a key")?)?;
            let there = on_old.find_one(doc! { "_id": Bson::try_from(id)? }).await?;
            let name = match (there, document["on_new"].as_str()) {
                (Some(there), _) => there.get_str("key")?.to_owned(),
                (None, Some(on_new)) => named(&serde_json::from_str(on_new)?)?,
                // Removed on both.
                (None, None) => continue,
            };
            self.unreturned.lock().insert(name);
        }
        Ok(())
    }

    /// Until writes may move.
    async fn rest(&self) -> Result<()> {
        self.proxies.now().until_ready().await?;
        self.until_returned().await?;
        let resumed = wait_for("it to be resumed", LONG, || async {
            let (_, progress) = self.proxies.now().get(&format!("/v1/migrations/{NAME}/progress")).await?;
            if progress["paused"] == false && progress["phase"] != "failed" {
                return Ok(true);
            }
            self.proxies.now().http("POST", &format!("/v1/migrations/{NAME}/resume"), None).await?;
            Ok(false)
        });
        resumed.await.with_context(|| self.proxies.tails())?;
        self.proxies.now().until_free(NAME).await
    }

    /// Everything is well again, and all that was ever promised holds.
    pub(crate) async fn prove(self) -> Result<()> {
        work(&self.load, 200).await?;
        let outcome = self.load.stop().await;
        let (errors, moves) = (&outcome.stats.errors.by_label, self.moves.load(Ordering::Relaxed));
        println!("{} operations, errors {errors:?}, {moves} moves of writes", outcome.stats.total.operations);
        // At the end, if not before.
        ensure!(moves > 0, "no write ever moved");
        let proved = async {
            let has_returned = !self.unreturned.lock().is_empty();
            familiar(&outcome, self.was_full.load(Ordering::Relaxed), has_returned)?;
            self.proxies.no_invariant_was_broken()?;
            self.proxies.now().until_level(NAME).await?;
            let report = outcome.verify(&self.proxies.uri()).await?;
            let unreturned = self.unreturned.lock().clone();
            let lost = report.examples.iter().find(|found| !is_excused(found, &unreturned));
            ensure!(
                lost.is_none(),
                "{lost:?} was told by nobody of {} documents\n{report}",
                unreturned.len()
            );
            are_equal(&self.old.uri(), &self.new.uri(), NAMESPACE).await
        };
        proved.await.with_context(|| self.proxies.tails())
    }
}

/// How long a fault lasts is what the plan says; no condition ends it.
pub(crate) async fn lasts(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Whether a rollback without new has told of it. Reads and replies that are about several documents name some of them.
fn is_excused(found: &Violation, unreturned: &BTreeSet<String>) -> bool {
    let is_reply = found.kind == ViolationKind::WrongReply && found.document.contains(", ");
    let is_of_several = is_reply || found.kind == ViolationKind::WrongRead;
    unreturned.contains(&found.document) || (is_of_several && !unreturned.is_empty())
}

/// How the load calls a document.
fn named(document: &Value) -> Result<String> {
    Ok(document["key"].as_str().with_context(|| format!("{document} has no name"))?.to_owned())
}

const DUPLICATE_KEY: i32 = 11000;

/// Errors that drivers know from failovers and shutdowns of MongoDB itself, by the codes of the retryable
/// reads and writes specifications; and those that say that a write was given up.
/// 225 refuses a retry of which nobody can tell whether it was executed.
const FAMILIAR: [i32; 21] = [
    6, 7, 24, 50, 64, 89, 91, 112, 133, 134, 189, 225, 234, 251, 262, 9001, 10107, 11600, 11602, 13435, 13436,
];

/// `was_full`: new's disk. `has_returned`: what only new had; meanwhile old goes on with documents that only new knew to
/// be deleted, so that they cannot be inserted.
fn familiar(outcome: &Outcome, was_full: bool, has_returned: bool) -> Result<()> {
    let full = was_full.then_some(&OUT_OF_DISK_SPACE);
    let there = has_returned.then_some(&DUPLICATE_KEY);
    let codes = FAMILIAR.iter().chain(full).chain(there);
    let known: BTreeSet<String> = codes.map(|code| format!("code {code}")).collect();
    // Connections that broke off, and servers that could not be found for long.
    let network = ["Io", "ServerSelection", "ConnectionPoolCleared"];
    let errors = &outcome.stats.errors;
    let strange =
        errors.by_label.keys().find(|label| !known.contains(*label) && !network.contains(&label.as_str()));
    if let Some(strange) = strange {
        let code = strange.strip_prefix("code ").and_then(|code| code.parse().ok());
        let seen: Vec<_> = errors.first.iter().filter(|error| error.code == code).collect();
        bail!("the application saw {strange}: {seen:#?}");
    }
    Ok(())
}
