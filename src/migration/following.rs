//! What the clusters' records say that has not reached everybody yet: the other record, and what is stored.
//!
//! One record decides, and what it says is in force from then on. Whoever is cut off between two stores leaves
//! the others behind; here they follow, at once, by a repeated call or at the next start of the process.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bson::doc;

use super::context::Context;
use super::control::{ControlError, Phase};
use super::engine::{Engine, RETRY, unavailable};
use super::ramping::conflict;
use super::running::Running;
use crate::converge::active::Active;
use crate::model::side::Side;

const LOOK: Duration = Duration::from_secs(1);

/// History is being copied as long as this lives.
pub(super) struct Copying(Option<Arc<Active>>);

impl Drop for Copying {
    fn drop(&mut self) {
        self.0.iter().for_each(|active| active.copying.store(false, Ordering::Relaxed));
    }
}

impl Context {
    /// Whether both records say that both clusters are written.
    pub(super) fn mirrors_by_both_records(&self) -> bool {
        let mirrors = |side| self.authorities.get(side).known().is_some_and(|record| record.phase.mirrors());
        Side::BOTH.into_iter().all(mirrors)
    }

    /// Makes both records say that both clusters are written; what is stored says so before.
    ///
    /// # Errors
    /// [`ControlError`]; it can be repeated.
    pub(super) async fn raise_to_mirroring(&self) -> Result<(), ControlError> {
        if self.mirrors_by_both_records() {
            return Ok(());
        }
        self.level_epochs().await?;
        if let Some(ended) = self.ended_by_record() {
            return Err(half_ended(ended));
        }
        if !self.mirrors_by_both_records() {
            let follows = self.raise_in_force(doc! { "phase": Phase::Copying.as_str() }).await?;
            if let Some(why) = follows {
                tracing::warn!(migration = %self.name, why, "a record follows later");
            }
        }
        self.publish(|_| ());
        Ok(())
    }

    /// The end of the migration, once a record has it.
    pub(super) fn ended_by_record(&self) -> Option<Phase> {
        self.route().map(|route| route.phase).filter(|phase| phase.is_over())
    }
}

/// Its end is decided, and not everything knows it.
pub(super) fn half_ended(phase: Phase) -> ControlError {
    let call = if phase == Phase::Completed { "complete" } else { "abort" };
    let detail = format!("that it is {phase} is decided, and not stored everywhere: call {call} again");
    conflict("wrong-phase", detail)
}

impl Running {
    /// Tells the data plane that history is being copied, until the answer is dropped.
    pub(super) fn says_copying(&self) -> Copying {
        let active = self.active.lock().clone();
        active.iter().for_each(|active| active.copying.store(true, Ordering::Relaxed));
        Copying(active)
    }

    /// Brings the record that is behind to what the other says, whenever both can be written.
    pub(super) async fn keep_records_level(self: Arc<Self>, context: Arc<Context>) {
        loop {
            context.clock.sleep(LOOK).await;
            let known = [&context.authorities.old, &context.authorities.new].map(|side| side.known());
            let [Some(old), Some(new)] = known else { continue };
            let leases = context.leases();
            if old.epoch == new.epoch || !leases.old || !leases.new {
                continue;
            }
            let _one_at_a_time = self.calls.lock().await;
            match self.aborting.unless_asked(context.level_epochs()).await {
                Ok(Ok(())) => {}
                Ok(Err(why)) | Err(why) => {
                    tracing::debug!(migration = %context.name, %why, "one record is behind the other");
                }
            }
        }
    }
}

impl Engine {
    /// Before a migration goes on that an earlier process left: what the records and what is stored say must
    /// fit. `false`: it is over.
    pub(super) async fn fit_together(&self, running: &Arc<Running>, context: &Arc<Context>) -> bool {
        loop {
            let one_at_a_time = running.calls.lock().await;
            let phase = running.stored.lock().phase;
            let fitted = match context.ended_by_record() {
                _ if phase.is_over() => return false,
                Some(ended) => self.finish_end(running, context, ended).await.map(|()| false),
                None if phase.mirrors() => {
                    let raised = running.aborting.unless_asked(context.raise_to_mirroring()).await;
                    raised.and_then(|raised| raised).map(|()| true)
                }
                None => return true,
            };
            drop(one_at_a_time);
            match fitted {
                Ok(goes_on) => return goes_on,
                Err(why) => {
                    tracing::warn!(migration = %context.name, %why, "what an earlier process left waits");
                }
            }
            self.environment.clock.sleep(RETRY).await;
        }
    }

    /// Stores an end that a record has, and lets everybody go by it.
    pub(super) async fn finish_end(
        &self,
        running: &Arc<Running>,
        context: &Arc<Context>,
        phase: Phase,
    ) -> Result<(), ControlError> {
        let ended_at = Some(context.clock.wall_millis());
        let stored = running.change_stored(&context.records, |stored| {
            stored.phase = phase;
            stored.ended_at = ended_at;
        });
        stored.await.map_err(|error| unavailable(format!("{}: {error}", half_ended(phase).detail)))?;
        let version = if phase == Phase::Completed {
            context.publish(|_| ()).unwrap_or(0)
        } else {
            let version = self.leave_to_old(context);
            running.token.cancel();
            version
        };
        self.spawn_clean_up(running, context, version);
        Ok(())
    }
}
