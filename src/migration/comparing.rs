//! Comparing both sides: when an operator asks, and after a stream has missed changes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;

use super::context::Context;
use super::control::{
    Basis, ControlError, Identities, Mismatch, Phase, Refusal, Verification, VerificationReport, Verify,
};
use super::engine::{Environment, unavailable};
use super::report::{MOST_LISTED, conclude};
use super::running::Running;
use super::stored::{self, Stored};
use super::verify::{self, Ended, Verifier};
use crate::model::side::Side;
use crate::policy::gate::{Comparison, unverified};
use crate::state::records::RecordError;
use crate::state::switched::SwitchedOff;

const MARK_LIMIT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(200);

impl Running {
    /// What is known in this process of the last comparison of the kind of `asked`.
    fn comparison(&self, asked: &Verify) -> &Arc<Mutex<Verification>> {
        if asked.is_full() { &self.verification } else { &self.spot_check }
    }

    /// Takes up what is stored of comparisons.
    pub(super) fn take_up_comparisons(&self, stored: &Stored) {
        *self.verification.lock() = stored.verification.clone().unwrap_or_default();
        *self.spot_check.lock() = stored.spot_check.clone().unwrap_or_default();
    }

    /// Goes on with the comparison that another process has begun and not ended.
    pub(super) fn go_on_comparing(self: &Arc<Self>, environment: &Arc<Environment>) {
        let unended = self.stored.lock().unended().map(|last| last.asked);
        if let (Some(asked), Some(context)) = (unended, self.parts()) {
            tracing::info!(migration = %context.name, "the comparison goes on");
            self.spawn_comparison(environment, context, asked);
        }
    }

    /// Begins one for an operator; while one is running, that one goes on.
    pub(super) async fn start_comparison(
        self: &Arc<Self>,
        environment: &Arc<Environment>,
        asked: Verify,
    ) -> Result<Verification, ControlError> {
        let problems = asked.problems();
        if !problems.is_empty() {
            let refused = ControlError::new(Refusal::Invalid, "invalid-body", problems.join("; "));
            return Err(refused.because(problems));
        }
        let phase = self.stored.lock().phase;
        if !phase.can_be_compared() {
            let detail = format!("it is {phase}; verification needs the copy to be finished");
            return Err(ControlError::new(Refusal::Conflict, "wrong-phase", detail));
        }
        let Some(context) = self.parts() else { return Err(unavailable("not started".into())) };
        if context.route().is_some_and(|route| !route.returning.is_empty()) {
            let detail =
                "what only new has acknowledged is yet to be brought back to old; compare afterwards";
            return Err(ControlError::new(Refusal::Conflict, "bringing-back", detail));
        }
        if asked.compare == Basis::Digest {
            verify::digests_or_refused(&context).await?;
        }
        let begun = self.begin_comparison(&context, &asked).await;
        if begun.map_err(|error| unavailable(error.to_string()))? {
            self.spawn_comparison(environment, context, asked);
        }
        let running = [&self.verification, &self.spot_check].map(|state| state.lock().clone());
        let [full, part] = running;
        Ok(if part.running { part } else { full })
    }

    /// What comparisons have proved so far.
    pub(super) async fn report(&self, environment: &Environment) -> Result<VerificationReport, ControlError> {
        let stored = self.stored.lock().clone();
        let mut mismatches = stored::mismatches(environment.state()?, &stored.name)
            .await
            .map_err(|error| unavailable(error.to_string()))?;
        mismatches.truncate(MOST_LISTED);
        let (verification, spot_check) = (self.verification_of(&stored), self.spot_check_of(&stored));
        let lacking = self.unverified(&stored);
        let (conclusion, reasons) = conclude(verification.as_ref(), spot_check.as_ref(), lacking);
        let record = self.parts().and_then(|context| context.authorities.old.known());
        let clusters = record.map(|record| record.identities).unwrap_or_default();
        let kinds = [&verification, &spot_check].into_iter().flatten();
        let blind_spots =
            kinds.flat_map(|last| last.asked.compare.blind_spots()).map(|spot| (*spot).to_owned());
        Ok(VerificationReport {
            migration: stored.name.clone(),
            made_at: environment.clock.wall_millis(),
            made_by: env!("CARGO_PKG_VERSION").to_owned(),
            phase: stored.phase,
            clusters: Identities { old: clusters.old, new: clusters.new },
            conclusion,
            reasons,
            blind_spots: blind_spots.collect(),
            verification,
            spot_check,
            mismatches,
            fingerprint: String::new(),
        }
        .sealed())
    }

    /// Compares in the background, after [`Self::begin_comparison`].
    pub(super) fn spawn_comparison(
        self: &Arc<Self>,
        environment: &Arc<Environment>,
        context: Arc<Context>,
        asked: Verify,
    ) {
        let (comparing, with) = (Arc::clone(self), Arc::clone(environment));
        self.apply_switches();
        let switched = Some(Arc::clone(&self.repair_off));
        let verify = async move { _ = comparing.compare_all(&with, &context, asked, switched).await };
        self.spawn(environment, "verify", verify.boxed());
    }

    /// Reserves the one comparison that may run, and stores that it has begun: from then on an earlier one of its
    /// kind does not count. `false`: one is running.
    ///
    /// # Errors
    /// [`RecordError`]; nothing has begun then.
    pub(super) async fn begin_comparison(
        &self,
        context: &Context,
        asked: &Verify,
    ) -> Result<bool, RecordError> {
        let begun = Verification {
            asked: *asked,
            running: true,
            namespaces: context.scope.known().iter().map(|namespace| namespace.as_str().to_owned()).collect(),
            started_at: Some(context.clock.wall_millis()),
            ..Verification::default()
        };
        let former = {
            // Always in this order.
            let (mut full, mut part) = (self.verification.lock(), self.spot_check.lock());
            if full.running || part.running {
                return Ok(false);
            }
            let state = if asked.is_full() { &mut full } else { &mut part };
            std::mem::replace(&mut **state, begun.clone())
        };
        let noted = self.note_comparison(context, &begun).await;
        if let Err(error) = noted {
            *self.comparison(asked).lock() = former;
            return Err(error);
        }
        self.repaired.fetch_add(former.repaired, Ordering::Relaxed);
        Ok(true)
    }

    /// Stores that one has begun. Ranges of an earlier one are forgotten first: a process that finds this one
    /// unended goes on with the ranges that it finds.
    async fn note_comparison(&self, context: &Context, begun: &Verification) -> Result<(), RecordError> {
        verify::forget(&context.records, &context.name).await?;
        let note = |stored: &mut Stored| *stored.comparison_mut(&begun.asked) = Some(begun.clone());
        self.change_stored(&context.records, note).await
    }

    /// The last full comparison, as `stored` and the one under way tell.
    pub(super) fn verification_of(&self, stored: &Stored) -> Option<Verification> {
        Some(comparison_of(stored.verification.as_ref()?, &self.verification, stored.phase))
    }

    /// The last comparison of a part, or by digests.
    pub(super) fn spot_check_of(&self, stored: &Stored) -> Option<Verification> {
        Some(comparison_of(stored.spot_check.as_ref()?, &self.spot_check, stored.phase))
    }

    /// Why writes must not move to new as far as comparisons go, with the way out.
    pub(super) fn unverified(&self, stored: &Stored) -> Option<String> {
        let last = self.verification_of(stored).map(judged);
        let part = self.spot_check_of(stored).map(judged);
        unverified(&stored.name, last.as_ref(), part.as_ref())
    }

    /// Compares both sides once, after [`Self::begin_comparison`]; what came of it is stored.
    pub(super) async fn compare_all(
        self: &Arc<Self>,
        environment: &Environment,
        context: &Arc<Context>,
        asked: Verify,
        only_tells: Option<Arc<SwitchedOff>>,
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
        let state = self.comparison(&asked);
        let verifier = Verifier::new(Arc::clone(context), asked).only_telling(only_tells);
        let ended = verifier.run(Arc::clone(state), &found).await;
        let keep = |stored: &mut Stored| *stored.comparison_mut(&asked) = Some(state.lock().clone());
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

    /// Compares everything after a stream has begun anew, and makes it equal: what was missed comes from nowhere else, so
    /// that no switch counts. Documents that changed at every look changed after
    /// that, and the stream has named them.
    async fn recheck(self: &Arc<Self>, environment: &Environment, context: &Arc<Context>) {
        let may_begin = self.stored.lock().phase == Phase::CatchingUp;
        let all = Verify::default();
        if !may_begin || !matches!(self.begin_comparison(context, &all).await, Ok(true)) {
            return context.clock.sleep(RETRY).await;
        }
        let begun = *self.begun_anew.borrow();
        let ended = self.compare_all(environment, context, all, None).await;
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

/// A comparison as its `last` stored state and the one under way tell. It has not ended before that is stored.
fn comparison_of(last: &Verification, now: &Mutex<Verification>, phase: Phase) -> Verification {
    let now = now.lock().clone();
    let unended = now.running || last.running;
    // The end of a migration ends its comparison.
    let is_over = phase.is_over();
    let failure = (unended && is_over).then(|| "the migration ended before".to_owned());
    Verification {
        running: unended && !is_over,
        finished_at: now.finished_at.filter(|_| !unended),
        equal_up_to: now.equal_up_to.filter(|_| !unended),
        failure: now.failure.or(failure),
        ..now
    }
}

fn judged(last: Verification) -> Comparison {
    Comparison {
        running: last.running,
        ended: last.finished_at.is_some(),
        outdated: last.outdated,
        failure: last.failure,
        mismatches: last.mismatches,
        repaired: last.repaired,
        began: last.started_at,
    }
}
