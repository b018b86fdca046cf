//! What happens: each step, and what an operator is answered.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use bson::doc;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::bed::{Bed, NAME, NAMESPACE, OUT_OF_DISK_SPACE, lasts};
use crate::plan::{Moment, Step};
use crate::support::relay::{Mode, Relay};

impl Bed {
    /// Lets a step happen, and what comes in the middle of it.
    pub(crate) async fn live(&self, moment: Moment) -> Result<()> {
        let Moment { step, fault, call } = moment;
        tokio::try_join!(self.take(step), self.later(fault), self.later(call)).map(drop)
    }

    /// Lets one thing happen, and whatever it disturbs be as before.
    pub(crate) async fn take(&self, step: Step) -> Result<()> {
        match step {
            Step::KillProxy { ahead } => self.proxies.restart(ahead)?,
            Step::HangProxy(time) => {
                let proxy = self.proxies.now();
                proxy.signal(Signal::STOP)?;
                lasts(time).await;
                proxy.signal(Signal::CONT)?;
            }
            Step::Succeed { ahead } => self.proxies.succeed(ahead)?,
            Step::Overtake { hangs, lingers, stay, ahead } => {
                self.proxies.overtake(hangs, lingers, stay, ahead).await?;
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
            Step::CutNew(time) => is(&[&self.way_to_new], Mode::Cut, time).await,
            Step::LoseNew(time) => {
                let taken_back = self.post("rollback", Some(json!({ "without_new": { "reason": "chaos" } })));
                let cut = async { is(&[&self.way_to_new], Mode::Cut, time).await };
                tokio::join!(cut, taken_back);
            }
            Step::StallNew(time) => is(&[&self.way_to_new], Mode::Stall, time).await,
            Step::CutOld(time) => is(&self.all_to_old(), Mode::Cut, time).await,
            Step::StallOld(time) => is(&self.all_to_old(), Mode::Stall, time).await,
            Step::CutOldMember(member, time) => is(&[&self.ways_to_old[member]], Mode::Cut, time).await,
            Step::ResetOld => self.ways_to_old.iter().for_each(Relay::reset),
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
            Step::Reads(percent) => self.put("reads", percent).await,
            Step::Writes(percent) => {
                // Writes may not be more on new than reads.
                if self.reads.load(Ordering::Relaxed) < percent {
                    self.put("reads", percent).await;
                }
                self.put("writes", percent).await;
            }
            Step::Rollback => self.post("rollback", None).await,
            Step::Pause => self.post("pause", None).await,
            Step::Resume => self.post("resume", None).await,
            Step::Verify => self.post("verify", None).await,
            Step::Climb(percent) => self.climb(percent).await?,
        }
        Ok(())
    }

    async fn later(&self, what: Option<(Duration, Step)>) -> Result<()> {
        let Some((after, step)) = what else { return Ok(()) };
        lasts(after).await;
        println!("          meanwhile: {step}");
        self.take(step).await
    }

    fn all_to_old(&self) -> Vec<&Relay> {
        self.ways_to_old.iter().collect()
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

    async fn put(&self, what: &str, percent: u8) {
        self.ask("PUT", what, Some(json!({ "percent": percent })), percent).await;
    }

    async fn post(&self, what: &str, body: Option<Value>) {
        self.ask("POST", what, body, 0).await;
    }

    /// A call that may be refused, or find nobody: the next one comes anyway.
    async fn ask(&self, method: &str, what: &str, body: Option<Value>, percent: u8) {
        let path = format!("/v1/migrations/{NAME}/{what}");
        match self.proxies.now().http(method, &path, body).await {
            Ok((status, answer)) => {
                if status < 300 {
                    self.granted(what, percent);
                }
                let why = if status < 300 { String::new() } else { answer["detail"].to_string() };
                println!("          {status} {}", why.chars().take(160).collect::<String>());
            }
            Err(error) => println!("          {error}"),
        }
    }
}

async fn is(ways: &[&Relay], mode: Mode, time: Duration) {
    ways.iter().for_each(|way| way.set(mode));
    lasts(time).await;
    ways.iter().for_each(|way| way.set(Mode::Carry));
}
