//! One story for each safeguard that random schedules do not miss: it goes well, and does not without it.

pub(super) mod leases;
pub(super) mod moves;
pub(super) mod streams;

use std::sync::Arc;

use bson::{RawBsonRef, rawdoc};
use reshard::model::side::Side;
use reshard::model::slots::SlotSet;
use reshard::policy::canonical::key_of;
use reshard::policy::safeguards::Safeguards;
use reshard::policy::writes::Verb;
use reshard::wire::error::NO_WRITES_PERFORMED;

use crate::checks::history::Action;
use crate::network::Weather;
use crate::scenario::client::{COUNTED, COUNTERS, NS};
use crate::scenario::operator::Step;
use crate::scenario::proxy::Answer;
use crate::scenario::stage::{Ending, Stage, tell};
use crate::schedules;

/// A batch of two authorities, of which one cannot be reached: what the other has done is not denied.
async fn a_batch_that_is_cut_in_two(stage: Arc<Stage>) -> Ending {
    let proxy = stage.proxy(1).await;
    stage.synced().await?;
    stage.steps(&[Step::Writes(60)]).await?;
    let moved = |id: &i32| SlotSet::percent(60).contains(key_of(RawBsonRef::Int32(*id)).unwrap().slot());
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
        tell(world, Safeguards::default(), a_batch_that_is_cut_in_two)
    });
}
