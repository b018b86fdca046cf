//! A random workload on one cluster in rough weather: it must satisfy the checkers, replay exactly, and be
//! fast; and a world that loses acknowledged writes must not satisfy them.

use std::time::Duration;

use bson::raw::RawDocumentBuf;
use bson::{RawBsonRef, rawdoc};
use reshard::cluster::command::{Reply, Request, SendError, SharedCluster};

use crate::checks::checker::{Initial, check_history};
use crate::checks::history::{Action, History, Told};
use crate::mongo::cluster::{Cluster, ClusterOptions};
use crate::network::Weather;
use crate::rng::Rng;
use crate::schedules;
use crate::world::World;

const CLIENTS: u32 = 4;
const STEPS: u32 = 50;

/// One client: puts, deletes, steps and reads on a few keys.
struct Client {
    cluster: SharedCluster,
    history: History,
    rng: Rng,
    number: i64,
    name: String,
    majority: bool,
}

impl Client {
    async fn run(mut self, steps: u32) {
        for _ in 0..steps {
            match self.rng.below(10) {
                0..=2 => self.put().await,
                3 => self.delete().await,
                4..=7 => self.step().await,
                _ => self.read().await,
            }
        }
    }

    fn retryable(&mut self, mut body: RawDocumentBuf) -> RawDocumentBuf {
        self.number += 1;
        body.append(bson::raw::cstr!("lsid"), rawdoc! { "id": self.name.as_str() });
        body.append(bson::raw::cstr!("txnNumber"), self.number);
        let w = if self.majority {
            rawdoc! { "w": "majority" }
        } else {
            rawdoc! { "w": 1 }
        };
        body.append(bson::raw::cstr!("writeConcern"), w);
        body
    }

    /// Sends a write up to three times, as drivers retry.
    async fn write(&self, body: RawDocumentBuf) -> Told {
        let mut may_have_run = false;
        for _ in 0..3 {
            let request = Request::new("app", body.clone()).within(Duration::from_secs(5));
            match self.cluster.run(request).await {
                Ok(reply) => match told(&reply) {
                    Told::Unknown => may_have_run = true,
                    told => return told,
                },
                Err(SendError::NotSent(_) | SendError::Busy(_) | SendError::LoginRefused(_)) => {}
                Err(SendError::Unknown(_)) => may_have_run = true,
            }
        }
        if may_have_run { Told::Unknown } else { Told::Refused }
    }

    async fn put(&mut self) {
        let id = self.rng.below(4) as i32;
        let document = rawdoc! { "_id": id, "by": self.name.as_str(), "number": self.number };
        let operation = self.history.invoke("app.c", RawBsonRef::Int32(id), Action::Put(document.clone()));
        let body = self.retryable(rawdoc! { "update": "c", "updates": [
        { "q": { "_id": id }, "u": document, "upsert": true } ] });
        let told = self.write(body).await;
        self.history.answer(operation, told);
    }

    async fn delete(&mut self) {
        let id = self.rng.below(4) as i32;
        let operation = self.history.invoke("app.c", RawBsonRef::Int32(id), Action::Delete);
        let body = self.retryable(rawdoc! { "delete": "c", "deletes": [{ "q": { "_id": id }, "limit": 1 }] });
        let told = self.write(body).await;
        self.history.answer(operation, told);
    }

    async fn step(&mut self) {
        let id = 100 + self.rng.below(3) as i32;
        let id_ref = RawBsonRef::Int32(id);
        let token = self.number * 100 + i64::from(self.name.as_bytes()[1]);
        let one = self.history.invoke("app.c", id_ref, Action::Increment("n"));
        let two = self.history.invoke("app.c", id_ref, Action::Push("list", token));
        let body = self.retryable(rawdoc! { "update": "c", "updates": [
        { "q": { "_id": id }, "u": { "$inc": { "n": 1 }, "$push": { "list": token } }, "upsert": true } ] });
        let told = self.write(body).await;
        self.history.answer(one, told.clone());
        self.history.answer(two, told);
    }

    async fn read(&mut self) {
        let id = self.rng.below(4) as i32;
        let operation = self.history.invoke("app.c", RawBsonRef::Int32(id), Action::Read);
        let body = rawdoc! { "find": "c", "filter": { "_id": id } };
        if let Ok(reply) = self.cluster.run(Request::new("app", body)).await
            && reply.error().is_none()
        {
            let found = super::batch(&reply).first().map(|document| (*document).to_owned());
            self.history.answer(operation, Told::Saw(found));
        }
    }
}

/// What a reply to a write means.
fn told(reply: &Reply) -> Told {
    if reply.error().is_some() || reply.body.get("writeConcernError").unwrap().is_some() {
        return Told::Unknown;
    }
    if super::write_error(reply).is_some() { Told::Unknown } else { Told::Durable }
}

/// One schedule. Clients of a world with `majority` off believe in writes that a failover may undo.
fn schedule(world: &World, majority: bool) -> Result<(), String> {
    let cluster = world.cluster("old", ClusterOptions::default());
    let history = History::new(world.executor().clone());
    let main = drive(world.clone(), cluster.clone(), history.clone(), majority);
    world.run(main).map_err(|halt| halt.to_string())?;
    if history.durable() < 10 {
        return Err("hardly anything was acknowledged".into());
    }
    check_history(&history, &Initial::new(), |_, _| &cluster).map_err(|violation| violation.to_string())
}

async fn drive(world: World, cluster: Cluster, history: History, majority: bool) {
    let (sender, mut done) = tokio::sync::mpsc::unbounded_channel::<()>();
    for number in 0..CLIENTS {
        let process = world.process(&format!("c{number}"));
        let client = Client {
            cluster: world.connect(&process, &cluster),
            history: history.clone(),
            rng: world.rng(),
            number: 0,
            name: format!("c{number}"),
            majority,
        };
        let sender = sender.clone();
        process.spawn("client", async move {
            client.run(STEPS).await;
            drop(sender);
        });
        if number == 0 {
            let mut rng = world.rng();
            world.crash_after(&process, rng.below(400) as u32 + 50);
        }
    }
    drop(sender);
    let mut rng = world.rng();
    for _ in 0..2 {
        world.sleep(rng.between(Duration::ZERO, Duration::from_millis(300))).await;
        // A fresh deposed primary may answer local reads from the past, which this checker does not allow.
        cluster.failover();
    }
    let _ = done.recv().await;
    world.settle().await;
}

#[test]
fn a_sound_world_satisfies_the_checkers() {
    schedules::all("a_sound_world_satisfies_the_checkers", 100, &Weather::rough(), |world| {
        schedule(world, true)
    });
}

#[test]
fn lost_writes_are_found() {
    let tally = schedules::tally(1..200, &Weather::rough(), |world| schedule(world, false));
    println!("lost writes found in {} of {} schedules", tally.failures.len(), tally.schedules);
    assert!(tally.failures.len() > 20);
}

#[test]
fn the_same_seed_replays_exactly() {
    let run = |seed| {
        let world = World::new(seed, Weather::rough());
        schedule(&world, true).unwrap();
        let trace = (world.trace(), world.executor().steps(), world.executor().now());
        world.end();
        trace
    };
    for seed in 1..10 {
        assert_eq!(run(seed), run(seed));
    }
    assert_ne!(run(1).0, run(2).0);
}

#[test]
fn a_schedule_takes_milliseconds() {
    let tally = schedules::tally(1..101, &Weather::rough(), |world| schedule(world, true));
    let each = tally.took / 100;
    let commands = tally.commands / 100;
    let per_command = tally.took.as_nanos() / u128::from(tally.commands.max(1));
    println!("{each:?} per schedule of {commands} commands; {per_command} ns per command");
}
