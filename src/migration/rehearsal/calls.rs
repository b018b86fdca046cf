//! What an operator can ask about rehearsals, and how one ends by itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;

use super::Rehearser;
use super::view::{RehearsalCounts, RehearsalView, SetRehearsal};
use crate::converge::active::Active;
use crate::migration::control::{By, Control, ControlError, Refusal};
use crate::migration::engine::{Engine, Environment};
use crate::migration::ramping::conflict;
use crate::migration::running::Running;
use crate::migration::shapes::{together, view};
use crate::model::side::Side;
use crate::policy::rehearsal::{Seen, trouble};
use crate::state::rehearsing::MOST_TENTHS;

/// Minutes of a rehearsal, unless told otherwise.
const MINUTES: u32 = 10;
const MOST_MINUTES: u32 = 1440;
/// How far back it is looked at whether new can take it.
const SPAN: Duration = Duration::from_secs(10);
/// Who ends one that ends by itself, in the audit.
const WHO: &str = "rehearsal";

/// A rehearsal, running or over.
#[derive(Debug, Clone)]
pub struct Run {
    factor: f64,
    began_at: i64,
    ends_at: i64,
    ended: Option<String>,
    /// Failed writes to the mirror when it began.
    mirror_failures: u64,
}

impl SetRehearsal {
    /// The factor in tenths, and the minutes.
    ///
    /// # Errors
    /// One of them makes no sense.
    fn checked(&self) -> Result<(u32, u32), ControlError> {
        let tenths = (self.factor * 10.0).round();
        let fits =
            (0.0..=f64::from(MOST_TENTHS)).contains(&tenths) && (self.factor * 10.0 - tenths).abs() < 1e-6;
        if !fits {
            let detail = format!("factor must be 0, or from 0.1 to 5 in steps of 0.1, not {}", self.factor);
            return Err(ControlError::new(Refusal::Invalid, "invalid-factor", detail));
        }
        let minutes = self.minutes.unwrap_or(MINUTES);
        if !(1..=MOST_MINUTES).contains(&minutes) {
            let detail = format!("minutes must be a whole number from 1 to {MOST_MINUTES}");
            return Err(ControlError::new(Refusal::Invalid, "invalid-minutes", detail));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 50")]
        Ok((tenths as u32, minutes))
    }
}

impl std::fmt::Display for SetRehearsal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.because, self.factor > 0.0) {
            (Some(why), _) => write!(f, "rehearse 0: {why}"),
            (None, false) => f.write_str("rehearse 0"),
            (None, true) => {
                write!(f, "rehearse {}, {} minutes", self.factor, self.minutes.unwrap_or(MINUTES))
            }
        }
    }
}

impl Running {
    /// Gets ready to repeat reads.
    pub(in crate::migration) fn spawn_rehearsal(self: &Arc<Self>, environment: &Environment) {
        let (Some(context), Some(active)) = (self.parts(), self.active.lock().clone()) else { return };
        let new = environment.rehearsal.clone().unwrap_or_else(|| context.clusters.new.clone());
        let rehearser = Rehearser { context, new, rehearsal: Arc::clone(&active.rehearsal) };
        self.spawn(environment, "rehearsal", rehearser.run().boxed());
    }

    /// In numbers.
    pub(in crate::migration) fn rehearsal_counts(&self) -> RehearsalCounts {
        let Some(active) = self.active.lock().clone() else { return RehearsalCounts::default() };
        let rehearsal = &active.rehearsal;
        RehearsalCounts {
            rehearsal_factor: f64::from(rehearsal.tenths()) / 10.0,
            rehearsal_reads: rehearsal.reads.load(Ordering::Relaxed),
            rehearsal_errors: rehearsal.errors.load(Ordering::Relaxed),
            rehearsal_dropped: rehearsal.dropped(),
            rehearsal_skipped: rehearsal.skipped.load(Ordering::Relaxed),
        }
    }

    /// How the rehearsal goes, or how the last one went.
    pub(in crate::migration) fn rehearsal_view(&self, now: Duration) -> RehearsalView {
        let mut told = RehearsalView { counts: self.rehearsal_counts(), ..RehearsalView::default() };
        if let Some(run) = &*self.rehearsal.lock() {
            told.began_at = Some(run.began_at);
            told.ends_at = Some(run.ends_at);
            told.ended.clone_from(&run.ended);
        }
        if let Some(active) = self.active.lock().clone() {
            let shapes = active.rehearsal.shapes();
            told.old = together(&shapes, Side::Old, now);
            told.new = together(&shapes, Side::New, now);
            told.shapes = shapes.all().iter().map(|watched| view(watched, now)).collect();
        }
        told
    }
}

fn mirror_failures(active: &Active) -> u64 {
    active.counters.mirror_failures.load(Ordering::Relaxed)
}

impl Engine {
    /// Begins a rehearsal, in place of the one before, or ends it.
    pub(in crate::migration) fn rehearse(
        &self,
        running: &Running,
        asked: &SetRehearsal,
    ) -> Result<RehearsalView, ControlError> {
        let (tenths, minutes) = asked.checked()?;
        let (phase, copied) = {
            let stored = running.stored.lock();
            (stored.phase, stored.copied)
        };
        let active = running.active.lock().clone();
        if tenths > 0 && (phase.is_over() || !copied || active.is_none()) {
            let detail =
                format!("it is {phase}: reads can be repeated on new from the end of the copy to the end");
            return Err(conflict("wrong-phase", detail));
        }
        let clock = &self.environment.clock;
        let now = clock.wall_millis();
        if let Some(active) = active {
            let mut known = running.rehearsal.lock();
            if tenths > 0 {
                active.rehearsal.begin_anew();
                *known = Some(Run {
                    factor: asked.factor,
                    began_at: now,
                    ends_at: now + i64::from(minutes) * 60_000,
                    ended: None,
                    mirror_failures: mirror_failures(&active),
                });
            } else if let Some(run) = known.as_mut().filter(|run| run.ended.is_none()) {
                run.ended = Some(asked.because.clone().unwrap_or_else(|| "stopped".to_owned()));
                run.ends_at = now;
            }
            self.environment.registry.set_rehearsing(&active, tenths);
        }
        Ok(running.rehearsal_view(clock.now()))
    }

    /// Ends a rehearsal that is over, or that new cannot take.
    pub(in crate::migration) async fn look_at_rehearsal(&self, running: &Running) {
        let Some(run) = running.rehearsal.lock().clone().filter(|run| run.ended.is_none()) else { return };
        let Some(active) = running.active.lock().clone() else { return };
        let progress = self.progress_of(running);
        let (now, wall) = (self.environment.clock.now(), self.environment.clock.wall_millis());
        let of_late = active.rehearsal.shapes().all().iter().fold((0, 0), |(answered, errors), watched| {
            let measured = watched.window(Side::New, now, SPAN);
            (answered + measured.samples(), errors + measured.errors)
        });
        let seen = Seen {
            answered: of_late.0,
            errors: of_late.1,
            mirror_failures: mirror_failures(&active).saturating_sub(run.mirror_failures),
            lag: progress.lag_seconds,
        };
        let over = (wall >= run.ends_at).then(|| "its time is over".to_owned());
        let over = over.or_else(|| progress.phase.is_over().then(|| format!("it is {}", progress.phase)));
        let Some(why) = over.or_else(|| trouble(&seen)) else { return };
        tracing::info!(migration = %running.stored.lock().name, factor = run.factor, why, "a rehearsal ends");
        let name = running.stored.lock().name.clone();
        let asked = SetRehearsal { factor: 0.0, minutes: None, because: Some(why) };
        if let Err(error) = self.set_rehearsal(&By::any(WHO), &name, asked).await {
            tracing::warn!(migration = name, ?error, "a rehearsal could not be ended and is tried again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_come_in_tenths_and_minutes_make_a_day_at_most() {
        let checked = |factor, minutes| SetRehearsal { factor, minutes, because: None }.checked().ok();
        assert_eq!(checked(0.0, None), Some((0, 10)));
        assert_eq!(checked(0.1, Some(1)), Some((1, 1)));
        assert_eq!(checked(5.0, Some(1440)), Some((50, 1440)));
        for (factor, minutes) in
            [(5.1, None), (-0.1, None), (0.25, None), (f64::NAN, None), (1.0, Some(0)), (1.0, Some(1441))]
        {
            assert_eq!(checked(factor, minutes), None, "{factor} {minutes:?}");
        }
    }
}
