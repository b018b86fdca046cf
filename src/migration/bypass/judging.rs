//! From when on events can be judged: once nobody else can write for the migration.

use std::sync::Arc;
use std::time::Duration;

use crate::converge::read::time_now;
use crate::converge::shards;
use crate::migration::context::Context;
use crate::migration::running::Running;
use crate::model::side::{PerSide, Side};

const LOOK: Duration = Duration::from_millis(200);
/// A server's own removal of due documents may still be at work so long after it was suspended, and some more.
const TTL_MILLIS: i64 = 120_000;

impl Running {
    /// Lets events be judged while no other process can write for the migration. What such a one may have
    /// written before is not judged.
    pub(in crate::migration) async fn keep_judging(self: Arc<Self>, context: Arc<Context>) {
        loop {
            let alone = self.watch.problems().is_empty();
            for side in Side::BOTH {
                let own = &context.converger.own;
                match own.judged_from(side) {
                    Some(_) if !alone => own.judge_from(side, None),
                    None if side == Side::Old && self.may_still_expire(&context) => {}
                    None if alone => match now_everywhere(&context, side).await {
                        // Somebody may have joined meanwhile.
                        Ok(time) if self.watch.problems().is_empty() => own.judge_from(side, Some(time)),
                        Ok(_) => {}
                        Err(why) => tracing::debug!(%side, why, "events cannot be judged yet"),
                    },
                    _ => {}
                }
            }
            context.clock.sleep(LOOK).await;
        }
    }

    /// Whether old itself may still remove documents although its TTL indexes are suspended.
    fn may_still_expire(&self, context: &Context) -> bool {
        let stored = self.stored.lock();
        let since = stored.started_at.map_or(0, |at| context.clock.wall_millis() - at);
        since < TTL_MILLIS && stored.created.iter().any(|created| !created.ttl.is_empty())
    }
}

impl Context {
    /// The mirror writes up to these numbers have been barred.
    pub(in crate::migration) async fn note_barred(&self, lost: PerSide<Option<u64>>) {
        for side in Side::BOTH {
            let Some(number) = *lost.get(side) else { continue };
            match now_everywhere(self, side).await {
                Ok(time) => self.converger.own.barred(side, number, time),
                Err(why) => tracing::debug!(%side, why, "what may still have arrived is not known yet"),
            }
        }
    }
}

/// A time that nothing which has been executed by now is later than, on any shard.
async fn now_everywhere(context: &Context, side: Side) -> Result<bson::Timestamp, String> {
    let cluster = &**context.clusters.get(side);
    let is_sharded = shards::is_sharded(cluster).await?;
    context.converger.own.set_router(side, is_sharded);
    if is_sharded {
        shards::push_clocks(cluster).await?;
    }
    time_now(cluster).await
}
