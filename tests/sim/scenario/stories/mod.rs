//! One story for each safeguard that random schedules do not miss: it goes well, and does not without it.

pub(super) mod away;
pub(super) mod leases;
pub(super) mod moves;
pub(super) mod readers;
pub(super) mod streams;
mod violations;

use std::sync::Arc;
use std::time::Duration;

use bson::{RawBsonRef, rawdoc};
use reshard::model::side::Side;
use reshard::model::slots::SlotSet;
use reshard::policy::canonical::key_of;
use reshard::policy::writes::Verb;
use reshard::wire::error::{NO_SUCH_TRANSACTION, NO_WRITES_PERFORMED, TRANSIENT_TRANSACTION};

use crate::checks::history::Action;
use crate::network::Weather;
use crate::scenario::client::{COUNTED, COUNTERS, NS};
use crate::scenario::operator::Step;
use crate::scenario::options::UNVERIFIED;
use crate::scenario::prepared::Write;
use crate::scenario::proxy::Answer;
use crate::scenario::stage::{Ending, Stage, tell};
use crate::schedules;

/// A batch of two authorities, of which one cannot be reached: what the other has done is not denied.
async fn a_batch_that_is_cut_in_two(stage: Arc<Stage>) -> Ending {
    let proxy = stage.proxy(1).await;
    stage.synced().await?;
    stage.steps(&[Step::Writes(60)]).await?;
    let moved = |id: &i32| SlotSet::percent(60).contains(key_of(RawBsonRef::Int32(*id)).unwrap().id_slot());
    let (new, old): (Vec<i32>, Vec<i32>) = (COUNTERS..COUNTERS + COUNTED).partition(moved);
    let (Some(on_old), Some(on_new)) = (old.first(), new.first()) else {
        return Err("all counters are on one side".into());
    };
    stage.world.network().cut(proxy.process.id, stage.index(Side::New));
    let mut client = stage.client(1);
    let statement = |id: &i32| rawdoc! { "q": { "_id": *id }, "u": { "$inc": { "n": 1 } } };
    let body = rawdoc! { "update": "c", "updates": [statement(on_old), statement(on_new)] };
    let write = client.prepare(Verb::Update, body, true);
    for id in [on_old, on_new] {
        client.history.invoke(NS, RawBsonRef::Int32(*id), Action::Increment("n"));
    }
    let answer = Arc::clone(&proxy).write(&stage.world, Arc::clone(&write.command)).await;
    stage.world.network().heal_all();
    match answer {
        Answer::Error(error) if !error.labels.contains(&NO_WRITES_PERFORMED) => Ok(proxy),
        Answer::Error(error) => Err(format!("invariant 11: a part was done, and denied: {error:?}")),
        _ => Err("new cannot have answered".into()),
    }
}

#[test]
fn what_a_part_of_a_batch_has_done_is_not_denied() {
    schedules::all("what_a_part_of_a_batch_has_done_is_not_denied", 3, &Weather::calm(), |world| {
        tell(world, UNVERIFIED, a_batch_that_is_cut_in_two)
    });
}

/// A commit of a transaction that this process knows nothing of: before a move of what it may have written it
/// is let through, and is in the way of a move until it leaves. After one it only is if it is committed.
async fn commits_of_a_dead_process(stage: Arc<Stage>) -> Ending {
    let proxy = stage.proxy(1).await;
    stage.synced().await?;
    let mut client = stage.client(1);
    let (committed, open) = (client.prepare_step(COUNTERS), client.prepare_step(COUNTERS));
    client.succeed(&proxy, &committed).await?;
    let ask = async |write: &Write| {
        let patience = Duration::from_secs(1);
        proxy.writer.enter_foreign_commit(&write.session, write.number, Side::Old, patience).await
    };
    let entered = ask(&open).await.map_err(|error| format!("not let through: {error:?}"))?;
    if proxy.oldest_transaction().is_none() || entered.len() != 1 {
        return Err("a move would not wait for it".into());
    }
    drop(entered);
    stage.steps(&[Step::Writes(100)]).await?;
    let refused = ask(&open).await.err().ok_or("invariant 6: a commit under the former authority")?;
    if refused.code != NO_SUCH_TRANSACTION || refused.labels != [TRANSIENT_TRANSACTION] {
        return Err(format!("not to be run again: {refused:?}"));
    }
    ask(&committed).await.map_err(|error| format!("it is committed: {error:?}"))?;
    Ok(proxy)
}

#[test]
fn a_commit_of_a_dead_process_is_in_time_or_aborted() {
    schedules::all("a_commit_of_a_dead_process_is_in_time_or_aborted", 2, &Weather::calm(), |world| {
        tell(world, UNVERIFIED, commits_of_a_dead_process)
    });
}
