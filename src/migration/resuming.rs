//! A migration that has failed goes on: its streams begin anew, and everything is compared.

use super::catalog::describe;
use super::context::Context;
use super::control::{ControlError, Phase};
use super::engine::{Engine, no_new, unavailable};
use super::prepare;
use super::ramping::conflict;
use super::running::Running;
use super::stream::ChangeStream;
use super::tailer::Health;
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::state::checkpoint;
use crate::state::parking::MOST;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

impl Engine {
    /// Gives streams that cannot go on a new beginning. What they have missed, a comparison of everything
    /// finds; until it has gone through nothing moves and no mirror is read.
    pub(super) async fn begin_anew(&self, running: &Running) -> Result<(), ControlError> {
        let context = running.parts().ok_or_else(no_new)?;
        if context.parking.is_full() {
            let detail = format!(
                "more than {MOST} keys cannot be made equal: remove what stands in their way (see conflicts); \
                 they are tried again all the time, and once {MOST} or less are parked it can be resumed"
            );
            return Err(conflict("too-many-parked", detail));
        }
        let ended = to_begin_anew(running)?;
        running.aborting.unless_asked(restore_collections(running, &context)).await??;
        // Stored before the new beginnings: without it those would pass for a stream that missed nothing.
        running.verification.lock().outdated = true;
        running.spot_check.lock().outdated = true;
        let missed = running.change_stored(&context.records, |stored| {
            stored.recheck = true;
            for last in [&mut stored.verification, &mut stored.spot_check].into_iter().flatten() {
                last.outdated = true;
            }
        });
        missed.await.map_err(|error| unavailable(error.to_string()))?;
        for side in &ended {
            begin_stream(running, &context, *side).await?;
        }
        for side in ended {
            *running.health.get(side).lock() = Health::Idle;
        }
        let going_on = running.change_stored(&context.records, |stored| {
            stored.phase = if stored.copied { Phase::CatchingUp } else { Phase::Copying };
            stored.failure = None;
        });
        going_on.await.map_err(|error| unavailable(error.to_string()))?;
        running.begun_anew.send_modify(|times| *times += 1);
        Ok(())
    }
}

/// The streams that cannot go on from where they are.
fn to_begin_anew(running: &Running) -> Result<Vec<Side>, ControlError> {
    let health = |side| running.health.get(side).lock().clone();
    let ended = |side: &Side| matches!(health(*side), Health::CutOff(_) | Health::Failed(_));
    let ended: Vec<Side> = Side::BOTH.into_iter().filter(ended).collect();
    // None: started again, both may have found their way. With a comparison pending, an earlier call has
    // given them new beginnings and got no further.
    let both_follow = Side::BOTH.into_iter().all(|side| health(side) == Health::Following);
    if ended.is_empty() && !both_follow && !running.stored.lock().recheck {
        return Err(unavailable("how far the streams are is not known yet; try again".into()));
    }
    Ok(ended)
}

async fn begin_stream(running: &Running, context: &Context, side: Side) -> Result<(), ControlError> {
    if let Some(active) = &*running.active.lock() {
        active.unreadable.forget(side);
    }
    let opened = ChangeStream::open(context.clusters.get(side), &context.scope, None).await;
    let (stream, batch) = opened.map_err(|error| unavailable(error.to_string()))?;
    stream.close().await;
    let at = context.clock.wall_millis();
    checkpoint::store(&context.records, &context.name, side, &batch.token, at)
        .await
        .map_err(|error| unavailable(error.to_string()))
}

/// Collections that are gone: what nobody reads is made again, and filled by the comparison. One that is gone
/// where it decides must come back by hand: the comparison would empty the other side too.
async fn restore_collections(running: &Running, context: &Context) -> Result<(), ControlError> {
    let new_decides = context.route().is_some_and(|route| !route.owned_by_new.is_empty());
    let mut gone = Vec::new();
    for namespace in &context.scope.known() {
        for side in Side::BOTH {
            let found = describe(&**context.clusters.get(side), namespace, LIMIT).await;
            let found = found.map_err(|error| unavailable(format!("{namespace} on {side}: {error}")))?;
            if found.is_none() {
                gone.push((namespace.clone(), side));
            }
        }
    }
    if let Some((namespace, side)) = gone.iter().find(|(_, side)| *side == Side::Old || new_decides) {
        return Err(gone_by_hand(context, namespace, *side));
    }
    let mut plan = running.stored.lock().created.clone();
    plan.retain(|created| gone.iter().any(|(namespace, _)| namespace.as_str() == created.namespace));
    prepare::prepare(&context.clusters, &plan).await.map_err(unavailable)
}

fn gone_by_hand(context: &Context, namespace: &Namespace, side: Side) -> ControlError {
    let other = side.other();
    let owned = context.route().map(|route| match side {
        Side::Old => route.owned_by_old,
        Side::New => route.owned_by_new,
    });
    let detail = if owned.is_some_and(|owned| owned.is_empty()) {
        format!(
            "{namespace} is gone on {side}: create it there as it was, empty, with its indexes, and resume; the \
             comparison fills it from {other}"
        )
    } else {
        format!(
            "{namespace} is gone on {side}, which decides what is in it: restore it there with its documents and \
             indexes ({other} has them still, as of the last moment), then resume. Whatever is not in it then \
             the comparison removes from {other} too"
        )
    };
    conflict("collection-gone", detail)
}
