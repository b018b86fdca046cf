//! Comparing everything: when an operator asks, and after a stream has missed changes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;

use super::context::Context;
use super::control::{ControlError, Mismatch, Phase, Refusal, Verification};
use super::engine::{Engine, Environment, no_new, unavailable};
use super::running::Running;
use super::stored;
use super::stream::ChangeStream;
use super::tailer::Health;
use super::verify::{Ended, Verifier};
use crate::model::side::Side;
use crate::state::checkpoint;

const PARALLEL: usize = 2;
const MARK_LIMIT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(200);

impl Running {
    /// Reserves the one comparison that may run; `false`: one is running.
    pub(super) fn claim_comparison(&self) -> bool {
        let mut state = self.verification.lock();
        if state.running {
            return false;
        }
        self.repaired.fetch_add(state.repaired, Ordering::Relaxed);
        *state = Verification { running: true, ..Verification::default() };
        true
    }

    /// Compares both sides once, after [`Self::claim_comparison`]; what differs is stored and repaired.
    pub(super) async fn compare_all(
        self: &Arc<Self>,
        environment: &Environment,
        context: &Arc<Context>,
    ) -> Ended {
        let (records, name) = (Arc::clone(&context.records), Arc::clone(&context.name));
        let spawn = Arc::clone(&environment.spawn);
        let found = move |mismatch: Mismatch| {
            let (records, name) = (Arc::clone(&records), Arc::clone(&name));
            let store = async move {
                if let Err(error) = stored::store_mismatch(&records, &name, &mismatch).await {
                    tracing::warn!(%error, ?mismatch, "a difference could not be stored");
                }
            };
            spawn.spawn("mismatch", store.boxed());
        };
        Verifier::new(Arc::clone(context), PARALLEL).run(Arc::clone(&self.verification), &found).await
    }

    /// Makes mirrors readable, at the beginning and each time that a stream has begun anew: not before
    /// nothing that was missed can be left.
    pub(super) async fn keep_level(self: Arc<Self>, environment: Arc<Environment>, context: Arc<Context>) {
        let mut begun_anew = self.begun_anew.subscribe();
        loop {
            begun_anew.mark_unchanged();
            while self.stored.lock().recheck {
                self.recheck(&environment, &context).await;
            }
            self.make_readable(&context).await;
            if begun_anew.changed().await.is_err() {
                return;
            }
        }
    }

    /// Compares everything after a stream has begun anew. Documents that changed at every look changed after
    /// that, and the stream has named them.
    async fn recheck(self: &Arc<Self>, environment: &Environment, context: &Arc<Context>) {
        let may_begin = self.stored.lock().phase == Phase::CatchingUp;
        if !may_begin || !self.claim_comparison() {
            return context.clock.sleep(RETRY).await;
        }
        let begun = *self.begun_anew.borrow();
        let ended = self.compare_all(environment, context).await;
        if let Some(why) = ended.failure {
            tracing::warn!(migration = %context.name, why, "the comparison begins again");
            return context.clock.sleep(RETRY).await;
        }
        let stored = {
            let mut stored = self.stored.lock();
            // Cut off once more meanwhile: what it compared may have been missed since.
            if *self.begun_anew.borrow() != begun || stored.phase != Phase::CatchingUp {
                return;
            }
            stored.recheck = false;
            stored.clone()
        };
        if let Err(error) = stored.store(&context.records).await {
            tracing::warn!(%error, "that everything was compared could not be stored; a restart repeats it");
        }
    }

    /// Writes a marker to each stream: once it has passed, the mirror misses nothing that was acknowledged
    /// before this process began.
    async fn make_readable(&self, context: &Context) {
        let Some(active) = self.active.lock().clone() else { return };
        for side in Side::BOTH {
            let time = loop {
                match context.mark(side, MARK_LIMIT).await {
                    Ok(time) => break time,
                    Err(why) => tracing::debug!(%side, why, "no marker yet"),
                }
                context.clock.sleep(RETRY).await;
            };
            let stored = self.stored.lock();
            if stored.recheck {
                return;
            }
            active.unreadable.begin(side, time);
        }
    }
}

impl Engine {
    /// Gives streams that were cut off a new beginning. What they have missed, a comparison of everything
    /// finds; until it has gone through nothing moves and no mirror is read.
    pub(super) async fn begin_anew(&self, running: &Running) -> Result<(), ControlError> {
        let context = running.parts().ok_or_else(no_new)?;
        let mut cut_off = Vec::new();
        for side in Side::BOTH {
            match &*running.health.get(side).lock() {
                Health::CutOff(_) => cut_off.push(side),
                Health::Failed(why) => {
                    let detail = format!(
                        "the stream of {side} cannot go on, whatever is compared: {why}; abort the migration"
                    );
                    return Err(ControlError::new(Refusal::Conflict, "cannot-resume", detail));
                }
                _ => {}
            }
        }
        if cut_off.is_empty() {
            return Err(unavailable("how far the streams are is not known yet; try again".into()));
        }
        let before = running.stored.lock().clone();
        let phase = if before.copied { Phase::CatchingUp } else { Phase::Copying };
        // Stored before the new beginnings: without it those would pass for a stream that missed nothing.
        let stored = stored::Stored { recheck: true, failure: None, phase, ..before };
        stored.store(&context.records).await.map_err(|error| unavailable(error.to_string()))?;
        running.stored.lock().recheck = true;
        for side in &cut_off {
            if let Some(active) = &*running.active.lock() {
                active.unreadable.forget(*side);
            }
            let opened = ChangeStream::open(context.clusters.get(*side), &context.scope, None).await;
            let (stream, batch) = opened.map_err(|error| unavailable(error.to_string()))?;
            stream.close().await;
            let at = context.clock.wall_millis();
            checkpoint::store(&context.records, &context.name, *side, &batch.token, at)
                .await
                .map_err(|error| unavailable(error.to_string()))?;
        }
        for side in cut_off {
            *running.health.get(side).lock() = Health::Idle;
        }
        *running.stored.lock() = stored;
        running.begun_anew.send_modify(|times| *times += 1);
        Ok(())
    }
}
