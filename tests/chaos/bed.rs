//! A replica set of three as old, two shards as new, the program between them, and a load.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bson::doc;
use reshard_loadtest::{KeyFields, Load, LoadConfig, Outcome, Profile};
use reshard_testbed::{ReplicaSet, ShardedCluster, wait_for};
use rustix::process::Signal;
use serde_json::json;

use crate::plan::Step;
use crate::support::LONG;
use crate::support::process::Server;
use crate::support::proof::{load, prove_between, work};
use crate::support::relay::{Mode, Relay};

const NAME: &str = "orders";
const NAMESPACE: &str = "shop.orders";
const DOCUMENTS: usize = 5_000;
const OUT_OF_DISK_SPACE: i32 = 14031;
/// Members of old; one may be away.
const MEMBERS: usize = 3;

pub(crate) struct Bed {
    old: ReplicaSet,
    new: ShardedCluster,
    network: Relay,
    server: Server,
    load: Load,
    /// A disk of new was full.
    was_full: AtomicBool,
    /// Calls that moved writes.
    moves: AtomicU32,
}

impl Bed {
    /// The load goes on and the migration has started.
    pub(crate) async fn start() -> Result<Self> {
        let (old, new) = tokio::try_join!(
            ReplicaSet::builder("chaos-old").nodes(MEMBERS).start(),
            ShardedCluster::builder().shards(2).start()
        )?;
        let network = Relay::to(new.router().address()).await?;
        let server = Server::start(&old.uri(), Some(&network.uri())).await?;
        let config = LoadConfig {
            key_fields: KeyFields::CustomerOrder,
            ..load(server.uri(), Profile::Keyed, DOCUMENTS)
        };
        Load::prepare(&config).await?;
        let load = Load::start(config).await?;
        let spec = json!({ "namespace": NAMESPACE, "shard_key": { "customer_id": 1, "order_id": 1 } });
        server.create_and_start_as(NAME, spec).await?;
        let (was_full, moves) = (AtomicBool::default(), AtomicU32::default());
        Ok(Self { old, new, network, server, load, was_full, moves })
    }

    /// Lets one thing happen, and whatever it disturbs be as before.
    pub(crate) async fn take(&self, step: Step) -> Result<()> {
        match step {
            Step::KillProxy => {
                self.server.kill9()?;
                self.server.spawn()?;
            }
            Step::HangProxy(time) => {
                self.server.signal(Signal::STOP)?;
                lasts(time).await;
                self.server.signal(Signal::CONT)?;
            }
            Step::OldElects => self.old.stepdown().await?,
            Step::HangOldPrimary(time) => {
                let primary = self.old.node(self.old.primary().await?);
                primary.pause().await?;
                lasts(time).await;
                primary.resume().await?;
            }
            Step::KillOldMember(member, time) => {
                let member = self.old.node(member);
                member.kill9().await?;
                lasts(time).await;
                member.start().await?;
            }
            Step::CutNew(time) => self.network_is(Mode::Cut, time).await,
            Step::StallNew(time) => self.network_is(Mode::Stall, time).await,
            Step::KillNewShard(shard, time) => {
                let shard = self.new.shard(shard);
                shard.kill9_all().await?;
                lasts(time).await;
                shard.start_all().await?;
            }
            Step::FillNew(time) => {
                self.was_full.store(true, Ordering::Relaxed);
                self.disk_of_new(true).await?;
                lasts(time).await;
                self.disk_of_new(false).await?;
            }
            Step::Reads(percent) => self.ask("PUT", "reads", Some(percent)).await,
            Step::Writes(percent) => self.ask("PUT", "writes", Some(percent)).await,
            Step::Rollback => self.ask("POST", "rollback", None).await,
            Step::Pause => self.ask("POST", "pause", None).await,
            Step::Resume => self.ask("POST", "resume", None).await,
            Step::Verify => self.ask("POST", "verify", None).await,
            Step::Rest => self.rest().await?,
        }
        Ok(())
    }

    /// A call in the middle of what else happens.
    pub(crate) async fn later(&self, call: Option<(Duration, Step)>) -> Result<()> {
        let Some((after, call)) = call else { return Ok(()) };
        lasts(after).await;
        println!("          meanwhile: {call}");
        self.take(call).await
    }

    async fn network_is(&self, mode: Mode, time: Duration) {
        self.network.set(mode);
        lasts(time).await;
        self.network.set(Mode::Carry);
    }

    /// Writes of documents fail on the shards as they do where the disk is full.
    async fn disk_of_new(&self, is_full: bool) -> Result<()> {
        let mode = if is_full { "alwaysOn" } else { "off" };
        for shard in self.new.shards() {
            let full = doc! {
                "failCommands": ["insert", "update", "delete"], "namespace": NAMESPACE,
                "errorCode": OUT_OF_DISK_SPACE,
            };
            shard
                .fail_point(doc! { "configureFailPoint": "failCommand", "mode": mode, "data": full })
                .await?;
        }
        Ok(())
    }

    /// A call that may be refused, or find nobody: the next one comes anyway.
    async fn ask(&self, method: &str, what: &str, percent: Option<u8>) {
        let path = format!("/v1/migrations/{NAME}/{what}");
        let body = percent.map(|percent| json!({ "percent": percent }));
        match self.server.http(method, &path, body).await {
            Ok((status, answer)) => {
                if status < 300 && matches!(what, "writes" | "rollback") {
                    self.moves.fetch_add(1, Ordering::Relaxed);
                }
                let why = if status < 300 { String::new() } else { answer["detail"].to_string() };
                println!("          {status} {}", why.chars().take(160).collect::<String>());
            }
            Err(error) => println!("          {error}"),
        }
    }

    /// Until writes may move.
    async fn rest(&self) -> Result<()> {
        self.server.until_ready().await?;
        let resumed = wait_for("it to be resumed", LONG, || async {
            let (_, progress) = self.server.get(&format!("/v1/migrations/{NAME}/progress")).await?;
            if progress["paused"] == false && progress["phase"] != "failed" {
                return Ok(true);
            }
            self.server.http("POST", &format!("/v1/migrations/{NAME}/resume"), None).await?;
            Ok(false)
        });
        resumed.await.with_context(|| self.server.tail())?;
        self.server.until_free(NAME).await
    }

    /// Everything is well again, and all that was ever promised holds.
    pub(crate) async fn prove(self) -> Result<()> {
        self.rest().await?;
        work(&self.load, 200).await?;
        let outcome = self.load.stop().await;
        let (errors, moves) = (&outcome.stats.errors.by_label, self.moves.load(Ordering::Relaxed));
        println!("{} operations, errors {errors:?}, {moves} moves of writes", outcome.stats.total.operations);
        familiar(&outcome, self.was_full.load(Ordering::Relaxed))?;
        self.server.until_level(NAME).await?;
        let (old, new) = (self.old.uri(), self.new.uri());
        prove_between(outcome, &old, &new, &self.server.uri(), NAMESPACE)
            .await
            .with_context(|| self.server.tail())
    }
}

/// How long a fault lasts is what the plan says; no condition ends it.
async fn lasts(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Errors that drivers know from failovers and shutdowns of MongoDB itself, by the codes of the retryable
/// reads and writes specifications; and those that say that a write was given up.
const FAMILIAR: [i32; 20] =
    [6, 7, 24, 50, 64, 89, 91, 112, 133, 134, 189, 234, 251, 262, 9001, 10107, 11600, 11602, 13435, 13436];

fn familiar(outcome: &Outcome, was_full: bool) -> Result<()> {
    let full = was_full.then_some(&OUT_OF_DISK_SPACE);
    let known: BTreeSet<String> = FAMILIAR.iter().chain(full).map(|code| format!("code {code}")).collect();
    // Connections that broke off, and servers that could not be found for long.
    let network = ["Io", "ServerSelection", "ConnectionPoolCleared"];
    let errors = &outcome.stats.errors;
    let strange =
        errors.by_label.keys().find(|label| !known.contains(*label) && !network.contains(&label.as_str()));
    ensure!(strange.is_none(), "the application saw {strange:?}: {errors:#?}");
    Ok(())
}
