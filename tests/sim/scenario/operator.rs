//! The operator: asks, and asks again when it was refused or the proxy died.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};
use reshard::migration::control::{
    By, Cluster, Control, ControlError, Keys, NamespaceSpec, NewMigration, Patience, RangeSpec, SetPins,
    Verify, WithoutNew,
};
use reshard::migration::engine::Engine;
use tokio::sync::Notify;

use super::client::{COUNTED, COUNTERS, NS, REGISTERS};
use super::proxy::Front;
use crate::rng::Rng;
use crate::world::World;

/// The name of the migration.
pub(crate) const MIGRATION: &str = "m";

/// One call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Create.
    Create,
    /// Create, by a pattern that names all of the database.
    CreateAll,
    /// Create, with ranges of registers and of counters.
    CreateWithRanges,
    /// Start.
    Start,
    /// Move reads.
    Reads(u8),
    /// Move writes.
    Writes(u8),
    /// Hold a range on a cluster.
    Range(&'static str, Cluster),
    /// Take everything back without new, or a range.
    WithoutNew(Option<&'static str>),
}

/// What became of the calls.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    /// Moves of writes that were made.
    pub(crate) moves: u32,
    /// The step that was given up, and why.
    pub(crate) given_up: Option<String>,
}

/// How long one step is tried.
const PATIENCE: Duration = Duration::from_secs(240);

/// Some way up and down and up, of `least` moves or a few more.
pub(crate) fn way(rng: &mut Rng, least: u64) -> Vec<Step> {
    let mut steps = vec![Step::Create, Step::Start, Step::Reads(100)];
    let mut at = 0;
    for _ in 0..least + rng.below(3) {
        let others: Vec<u8> = [0, 25, 60, 100].into_iter().filter(|percent| *percent != at).collect();
        at = *rng.pick(&others);
        steps.push(Step::Writes(at));
    }
    steps
}

/// The same, with ranges that go first, come back and go again, each by itself.
pub(crate) fn way_of_ranges(rng: &mut Rng, least: u64) -> Vec<Step> {
    let mut steps = way(rng, least);
    steps[0] = Step::CreateWithRanges;
    let (mut first, mut second) = (Cluster::New, Cluster::New);
    // From the start on, reads and writes of the first are on new while all else is on old.
    let mut at = 2;
    while at <= steps.len() {
        let (name, to) = if rng.chance(500) { ("registers", &mut first) } else { ("counters", &mut second) };
        steps.insert(at, Step::Range(name, *to));
        *to = if *to == Cluster::New { Cluster::Old } else { Cluster::New };
        at += 2;
    }
    steps
}

/// Some of the registers and some of the counters; the others are in no range.
fn ranges() -> Vec<RangeSpec> {
    let range = |name: &str, from: i32, many: i32| RangeSpec {
        name: name.to_owned(),
        from: Some(from.into()),
        to: Some((from + many).into()),
    };
    vec![range("registers", 2, REGISTERS / 2), range("counters", COUNTERS + 1, COUNTED / 2)]
}

/// The longest pause between two calls of an operator who has time.
pub(crate) const PAUSE: Duration = Duration::from_secs(2);

/// Makes the calls one after the other, with pauses of at most `most_pause`.
pub(crate) async fn operate(
    world: World,
    front: Front,
    mut rng: Rng,
    steps: Vec<Step>,
    started: &Notify,
    most_pause: Duration,
) -> Calls {
    let mut calls = Calls::default();
    for step in steps {
        let give_up = world.executor().now() + PATIENCE;
        let mut why = "no proxy lived long enough".to_owned();
        loop {
            if world.executor().now() >= give_up {
                started.notify_waiters();
                calls.given_up = Some(format!("{step:?}: {why}"));
                return calls;
            }
            let proxy = front.proxy().await;
            let engine = Arc::clone(&proxy.engine);
            let call = proxy.within(async move { ask(&engine, step).await });
            let limit = world.executor().sleep(Duration::from_secs(60));
            match select(std::pin::pin!(call), limit).await {
                Either::Left((Some(Ok(())), _)) => break,
                Either::Left((Some(Err(error)), _)) => why = format!("{error} {:?}", error.reasons),
                Either::Left((None, _)) => {}
                Either::Right(_) => why = "no answer".to_owned(),
            }
            world.sleep(rng.between(Duration::from_millis(100), Duration::from_millis(600))).await;
        }
        if step == Step::Start {
            started.notify_waiters();
        }
        calls.moves += u32::from(matches!(step, Step::Writes(_) | Step::Range(..)));
        world.sleep(rng.between(Duration::ZERO, most_pause)).await;
    }
    calls
}

async fn ask(engine: &Engine, step: Step) -> Result<(), ControlError> {
    let by = By::any("operator");
    match step {
        Step::Create | Step::CreateAll | Step::CreateWithRanges => {
            let name = if step == Step::CreateAll { "app.*" } else { NS };
            let namespaces = vec![NamespaceSpec::plain(name)];
            let ranges = if step == Step::CreateWithRanges { ranges() } else { Vec::new() };
            engine
                .create(&by, NewMigration { name: MIGRATION.to_owned(), namespaces, ranges })
                .await
                .map(|_| ())
        }
        Step::Range(name, to) => {
            let asked = SetPins { keys: Vec::new(), ranges: vec![name.to_owned()], to };
            let pinned = engine.pin(&by, MIGRATION, asked).await.map(|_| ());
            verified(engine, &by, pinned).await
        }
        Step::WithoutNew(range) => {
            let reason = WithoutNew { reason: "new is away".to_owned() };
            let only = range.map(|name| Keys { keys: Vec::new(), ranges: vec![name.to_owned()] });
            engine.rollback_without_new(&by, MIGRATION, reason, only).await.map(|_| ())
        }
        Step::Start => engine.start(&by, MIGRATION).await.map(|_| ()),
        Step::Reads(percent) => engine.set_reads(&by, MIGRATION, percent.into()).await.map(|_| ()),
        Step::Writes(percent) => {
            let moved = engine.set_writes(&by, MIGRATION, percent.into(), Patience::default()).await;
            verified(engine, &by, moved.map(|_| ())).await
        }
    }
}

/// What is refused for want of a comparison has begun one, as the refusal says; then again.
async fn verified(engine: &Engine, by: &By, moved: Result<(), ControlError>) -> Result<(), ControlError> {
    if let Err(refused) = &moved
        && refused.reasons.iter().any(|why| why.contains("run: reshard migrate verify"))
    {
        engine.verify(by, MIGRATION, Verify::default()).await?;
    }
    moved
}
