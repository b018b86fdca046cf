//! Comparing everything: when an operator asks, and after a stream has missed changes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;

use super::context::Context;
use super::control::{Mismatch, Phase, Verification};
use super::engine::Environment;
use super::running::Running;
use super::stored::{self, Stored};
use super::verify::{Ended, Verifier};
use crate::model::side::Side;
use crate::policy::gate::{Comparison, unverified};
use crate::state::records::RecordError;

const PARALLEL: usize = 2;
const MARK_LIMIT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(200);

impl Running {
    /// Reserves the one comparison that may run, and stores that it has begun: from then on an earlier one does
    /// not count. `false`: one is running.
    ///
    /// # Errors
    /// [`RecordError`]; nothing has begun then.
    pub(super) async fn begin_comparison(&self, context: &Context) -> Result<bool, RecordError> {
        let begun = Verification {
            running: true,
            namespaces: context.scope.known().iter().map(|namespace| namespace.as_str().to_owned()).collect(),
            started_at: Some(context.clock.wall_millis()),
            ..Verification::default()
        };
        let former = {
            let mut state = self.verification.lock();
            if state.running {
                return Ok(false);
            }
            std::mem::replace(&mut *state, begun.clone())
        };
        let noted =
            self.change_stored(&context.records, |stored| stored.verification = Some(begun.clone())).await;
        if let Err(error) = noted {
            *self.verification.lock() = former;
            return Err(error);
        }
        self.repaired.fetch_add(former.repaired, Ordering::Relaxed);
        Ok(true)
    }

    /// The last full comparison, as `stored` and the one under way tell. It has not ended before that is stored.
    pub(super) fn verification_of(&self, stored: &Stored) -> Option<Verification> {
        let last = stored.verification.as_ref()?;
        let now = self.verification.lock().clone();
        let unended = now.running || last.running;
        let finished_at = now.finished_at.filter(|_| !unended);
        // The end of a migration ends its comparison.
        let is_over = stored.phase.is_over();
        let failure = (unended && is_over).then(|| "the migration ended before".to_owned());
        Some(Verification {
            running: unended && !is_over,
            finished_at,
            failure: now.failure.or(failure),
            ..now
        })
    }

    /// Why writes must not move to new as far as comparisons go, with the way out.
    pub(super) fn unverified(&self, stored: &Stored) -> Option<String> {
        let last = self.verification_of(stored).map(|last| Comparison {
            running: last.running,
            ended: last.finished_at.is_some(),
            outdated: last.outdated,
            failure: last.failure,
            mismatches: last.mismatches,
            repaired: last.repaired,
        });
        unverified(&stored.name, last.as_ref())
    }

    /// Compares both sides once, after [`Self::begin_comparison`]; what differs is repaired, and what came of it
    /// is stored.
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
        let verifier = Verifier::new(Arc::clone(context), PARALLEL);
        let ended = verifier.run(Arc::clone(&self.verification), &found).await;
        let keep = |stored: &mut Stored| stored.verification = Some(self.verification.lock().clone());
        while let Err(error) = self.change_stored(&context.records, keep).await {
            tracing::warn!(%error, "what a verification found is not stored yet");
            context.clock.sleep(RETRY).await;
        }
        ended
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
        if !may_begin || !matches!(self.begin_comparison(context).await, Ok(true)) {
            return context.clock.sleep(RETRY).await;
        }
        let begun = *self.begun_anew.borrow();
        let ended = self.compare_all(environment, context).await;
        if let Some(why) = ended.failure {
            tracing::warn!(migration = %context.name, why, "the comparison begins again");
            return context.clock.sleep(RETRY).await;
        }
        {
            let mut stored = self.stored.lock();
            // Cut off once more meanwhile: what it compared may have been missed since.
            if *self.begun_anew.borrow() != begun || stored.phase != Phase::CatchingUp {
                return;
            }
            stored.recheck = false;
        }
        if let Err(error) = self.persist(&context.records).await {
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
