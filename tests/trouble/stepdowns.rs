//! The primary of either cluster steps down in every phase.

use std::pin::pin;

use anyhow::{Result, bail, ensure};
use futures::future::{Either, select};
use reshard::migration::control::Phase;
use reshard::model::percent::Percent;
use reshard::model::side::Side;
use reshard::state::record::FenceState;
use reshard_loadtest::Profile;
use reshard_testbed::{ReplicaSet, wait_for};

use crate::late_streams;
use crate::support::proof::{HALF_AS_MANY, few_errors_of_the_unrepeated};
use crate::support::trial::Trial;
use crate::support::{LONG, makes_collections_slowly};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stepdowns_of_old_in_every_phase() -> Result<()> {
    stepdowns_of_old("stepdown", Profile::Keyed, &[50, 100], &[60, 20, 100]).await
}

/// The same for a collection with a unique index and transactions, whose writes move in one step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stepdowns_of_old_in_every_phase_moving_in_one_step() -> Result<()> {
    stepdowns_of_old("stepdown-step", Profile::Unique, &[100], &[100, 0, 100]).await
}

/// Three members copy each of them.
const FEW_DOCUMENTS: usize = 20_000;

/// New's primary, from the first copied document to after the end: mirror, owner of half, owner of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stepdowns_of_new_in_every_phase() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ReplicaSet::builder("stepdown-of-new-old").start(),
        ReplicaSet::builder("stepdown-of-new").nodes(3).start()
    )?;
    let trial = Trial::create(old, new, Profile::Keyed, FEW_DOCUMENTS).await?;
    trial.operator.start().await?;
    let mut stepdowns = 0;
    let mut step_down = async || {
        stepdowns += 1;
        trial.new.stepdown().await?;
        trial.work(100).await?;
        trial.operator.until_synced().await
    };
    step_down().await?;
    step_down().await?;
    trial.operator.reads(100).await?;
    step_down().await?;
    for percent in [50, 100] {
        trial.operator.writes(percent).await?;
        step_down().await?;
    }
    trial.back().await?;
    step_down().await?;
    trial.operator.reads(100).await?;
    trial.operator.writes(100).await?;
    trial.complete().await?;
    trial.new.stepdown().await?;
    trial.work(100).await?;
    let allowed = BROKEN_OFF * (stepdowns + 1);
    trial.holds_on_new(|errors| few_errors_of_the_unrepeated(errors, allowed)).await
}

/// Of what was under way at each, so much may break off where it is nothing that drivers repeat.
const BROKEN_OFF: usize = 6;

/// In every phase, `writes` being the percentages that it passes; then in the middle of `moves`, up and down.
async fn stepdowns_of_old(name: &str, profile: Profile, writes: &[u8], moves: &[u8]) -> Result<()> {
    let (old, new) = (format!("{name}-old"), format!("{name}-new"));
    let (old, new) =
        tokio::try_join!(ReplicaSet::builder(&old).nodes(3).start(), ReplicaSet::builder(&new).start())?;
    let trial = Trial::create(old, new, profile, HALF_AS_MANY).await?;
    old_steps_down_while_it_prepares(&trial).await?;
    let mut stepdowns = 1;
    let mut step_down = async || {
        stepdowns += 1;
        trial.old.stepdown().await?;
        trial.work(100).await
    };
    step_down().await?;
    trial.operator.until_synced().await?;
    step_down().await?;
    trial.operator.until_synced().await?;
    trial.operator.reads(100).await?;
    step_down().await?;
    trial.operator.until_synced().await?;
    for percent in writes {
        trial.operator.writes(*percent).await?;
        step_down().await?;
        trial.operator.until_synced().await?;
    }
    trial.back().await?;
    step_down().await?;
    trial.operator.until_synced().await?;
    trial.operator.reads(100).await?;
    for percent in moves {
        old_steps_down_at_a_fence(&trial, *percent).await?;
    }
    trial.complete().await?;
    step_down().await?;
    let allowed = BROKEN_OFF * (stepdowns + moves.len());
    trial.holds_on_new(|errors| few_errors_of_the_unrepeated(errors, allowed)).await
}

async fn old_steps_down_while_it_prepares(trial: &Trial) -> Result<()> {
    makes_collections_slowly(&trial.new, true).await?;
    let stepping = async {
        wait_for("it to prepare", LONG, || async {
            Ok(trial.operator.progress().await?.phase == Phase::Preparing)
        })
        .await?;
        trial.old.stepdown().await
    };
    let (started, stepped) = tokio::join!(trial.operator.start(), stepping);
    stepped?;
    makes_collections_slowly(&trial.new, false).await?;
    if started.is_err() {
        wait_for("it to start", LONG, || async { trial.operator.start().await.map(|()| true) }).await?;
    }
    Ok(())
}

/// A move holds writes up until old's stream, which is late, has shown what was written before: meanwhile old's primary
/// steps down. When the move is given up, nothing has changed, and it may be repeated.
async fn old_steps_down_at_a_fence(trial: &Trial, percent: u8) -> Result<()> {
    let (operator, before) = (&trial.operator, trial.operator.progress().await?.writes_percent);
    let giver = if Percent::from(percent) > before { Side::Old } else { Side::New };
    let is_fenced = || {
        let active = operator.engine.environment.registry.get(&operator.name);
        let record = active.and_then(|active| active.authorities.get(giver).known());
        record.and_then(|record| record.fence).is_some_and(|fence| fence.state == FenceState::Open)
    };
    // A stream stays where it was opened, also when that is the primary no longer.
    for node in trial.old.nodes() {
        node.admin(late_streams(true, 3_000)).await?;
    }
    trial.work(50).await?;
    let fenced = wait_for("a fence", LONG, || async { is_fenced() });
    let (moving, fenced) = (pin!(operator.writes(percent)), pin!(fenced));
    let moving = match select(moving, fenced).await {
        Either::Left((moved, _)) => {
            bail!("{before} to {percent} without a fence that could be seen: {moved:?}")
        }
        Either::Right((fenced, moving)) => fenced.map(|()| moving)?,
    };
    let (moved, stepped) = tokio::join!(moving, trial.old.stepdown());
    stepped?;
    for node in trial.old.nodes() {
        node.admin(late_streams(false, 3_000)).await?;
    }
    if let Err(why) = moved {
        let after = operator.progress().await?.writes_percent;
        ensure!(after == before, "{before} became {after}, and yet: {why}");
        operator.until_synced().await?;
        operator.writes(percent).await?;
    }
    trial.work(100).await?;
    operator.until_synced().await
}
