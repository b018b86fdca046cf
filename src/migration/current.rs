//! Mirrors that reads may meet: replies wait for them, and what nobody waited for is done before the first read.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::context::Context;
use super::control::ControlError;
use super::engine::unavailable;
use crate::model::side::Side;
use crate::model::slots::SlotSet;
use crate::state::inflight::Work;

const STREAM_LIMIT: Duration = Duration::from_secs(20);

/// Replies wait for mirrors as long as this lives, and afterwards only where a read can meet one.
pub(super) struct KeptCurrent<'a>(&'a Context);

impl Drop for KeptCurrent<'_> {
    fn drop(&mut self) {
        self.0.keeps_mirrors_current.store(false, Ordering::Relaxed);
        self.0.publish(|_| ());
    }
}

impl Context {
    /// Lets replies wait for mirrors until the answer is dropped, also where a route is published meanwhile.
    pub(super) fn keep_mirrors_current(&self) -> KeptCurrent<'_> {
        self.keeps_mirrors_current.store(true, Ordering::Relaxed);
        KeptCurrent(self)
    }

    /// Brings `ack = both` into force, with every mirror write before it done or passed by the streams.
    pub(super) async fn make_mirrors_current(&self) -> Result<(), ControlError> {
        let version =
            self.publish(|route| route.ack_both = true).ok_or_else(|| unavailable("no route".into()))?;
        if !self.safeguards.mirrors_current {
            return Ok(());
        }
        let drained = self.inflight.drained(&self.name, &SlotSet::ALL, version, &[Work::Write]);
        crate::clock::timeout(&*self.clock, STREAM_LIMIT, drained)
            .await
            .map_err(|_| unavailable("writes that began before do not end".into()))?;
        for side in Side::BOTH {
            let time =
                self.mark(side, STREAM_LIMIT).await.map_err(|why| unavailable(format!("{side}: {why}")))?;
            if !self.frontiers.get(side).wait_past(time, &*self.clock, STREAM_LIMIT).await {
                return Err(unavailable(format!("the stream of {side} does not catch up")));
            }
        }
        Ok(())
    }
}
