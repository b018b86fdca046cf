//! What an operator can ask about shadow reads.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::FutureExt;

use super::explaining::Turns;
use super::view::{DiffReport, SetShadow, ShadowCounts, ShadowView};
use super::{Shadower, Tally};
use crate::converge::active::Active;
use crate::migration::control::{ControlError, Part, Refusal};
use crate::migration::engine::{Engine, Environment, unavailable};
use crate::migration::running::Running;
use crate::policy::shadow::eligible::Reason;

const PAGE: u16 = 100;
const MOST_ON_A_PAGE: u16 = 1000;

impl SetShadow {
    /// The share in tenths of a percent.
    ///
    /// # Errors
    /// It is none.
    fn tenths(self) -> Result<u32, ControlError> {
        let tenths = (self.percent * 10.0).round();
        let fits = (0.0..=1000.0).contains(&tenths) && (self.percent * 10.0 - tenths).abs() < 1e-6;
        if !fits {
            let detail =
                format!("percent must be a number from 0 to 100 in steps of 0.1, not {}", self.percent);
            return Err(ControlError::new(Refusal::Invalid, "invalid-percent", detail));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000")]
        Ok(tenths as u32)
    }
}

impl std::fmt::Display for SetShadow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} %", self.percent)?;
        if self.show_values {
            f.write_str(", with values")?;
        }
        if self.reset {
            f.write_str(", forgetting what was found")?;
        }
        Ok(())
    }
}

impl Running {
    /// Starts to run sampled reads on the other cluster, as far as that is switched on.
    pub(in crate::migration) fn spawn_shadow(self: &Arc<Self>, environment: &Environment) {
        let (Some(context), Some(active)) = (self.parts(), self.active.lock().clone()) else { return };
        let settings = self.stored.lock().shadow;
        self.shadow.set(settings);
        let asked = SetShadow { percent: settings.percent, ..SetShadow::default() };
        environment.registry.set_shadowing(&active, asked.tenths().unwrap_or(0));
        let running = Arc::clone(self);
        let shadower = Shadower {
            copied: Box::new(move || running.stored.lock().copied),
            clusters: environment.shadow.clone().unwrap_or_else(|| context.clusters.clone()),
            context,
            shadow: Arc::clone(&active.shadow),
            reports: Arc::clone(&self.shadow),
            turns: Turns::default(),
        };
        self.spawn(environment, "shadow", shadower.run().boxed());
    }

    /// How reads ended in this process, those that were dropped among them.
    pub(in crate::migration) fn shadow_tally(&self) -> Tally {
        let tally = self.shadow.tally();
        let dropped = |active: &Active| active.shadow.queue.dropped.load(Ordering::Relaxed);
        let dropped = self.active.lock().as_deref().map_or(0, dropped);
        Tally { uncompared: tally.uncompared + dropped, ..tally }
    }

    /// Reads with a difference that stays, ever; unknown until what is stored is read.
    pub(in crate::migration) fn shadow_differences(&self) -> Option<u64> {
        self.shadow.is_read().then(|| u64::try_from(self.shadow.sum().different).unwrap_or(0))
    }

    /// Why reads, or some of them, are not compared now.
    pub(in crate::migration) fn shadow_is_off(&self) -> Option<String> {
        let off = self.stored.lock().off.shadow.clone();
        if self.shadow.settings().percent <= 0.0 || off.all {
            return Some("shadow reads are off".to_owned());
        }
        let names: Vec<_> = off.namespaces.into_iter().collect();
        (!names.is_empty()).then(|| format!("shadow reads are off for {}", names.join(", ")))
    }

    /// In numbers.
    pub(in crate::migration) fn shadow_counts(&self) -> ShadowCounts {
        let active = self.active.lock().clone();
        let (sum, settings) = (self.shadow.sum(), self.shadow.settings());
        let count = |count: i64| u64::try_from(count).unwrap_or(0);
        let compared = count(sum.equal + sum.permuted + sum.transient + sum.different);
        let (sampled, dropped, skipped) = active.map_or((0, 0, 0), |active| {
            let skipped = Reason::ALL.into_iter().map(|reason| active.shadow.skipped(reason)).sum();
            let load = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
            (load(&active.shadow.sampled), load(&active.shadow.queue.dropped), skipped)
        });
        // Unknown must not look like none.
        let is_off = self.stored.lock().off.shadow.all;
        let known = settings.percent > 0.0 && !is_off && compared > 0 && self.shadow.is_read();
        ShadowCounts {
            shadow_percent: settings.percent,
            shadow_sampled: sampled,
            shadow_compared: compared,
            shadow_equal: count(sum.equal + sum.permuted),
            shadow_transient: count(sum.transient),
            shadow_differences: known.then(|| count(sum.different)),
            shadow_nondeterministic: count(sum.nondeterministic),
            shadow_unsettled: count(sum.unsettled),
            shadow_failed: count(sum.failed),
            shadow_dropped: dropped,
            shadow_skipped: skipped,
        }
    }
}

impl Engine {
    /// Sets how shadow reads are to run.
    pub(in crate::migration) async fn switch_shadow(
        &self,
        running: &Running,
        asked: SetShadow,
    ) -> Result<ShadowView, ControlError> {
        let tenths = asked.tenths()?;
        let phase = running.stored.lock().phase;
        if phase.is_over() && tenths > 0 {
            let detail = format!("it is {phase}: its reads are not compared any more");
            return Err(ControlError::new(Refusal::Conflict, "wrong-phase", detail));
        }
        let state = self.environment.state()?;
        let view = ShadowView { percent: f64::from(tenths) / 10.0, show_values: asked.show_values };
        let stored = running.change_stored(state, |stored| stored.shadow = view).await;
        stored.map_err(|error| unavailable(error.to_string()))?;
        if asked.reset {
            running.shadow.forget(state).await.map_err(|error| unavailable(error.to_string()))?;
        }
        running.shadow.set(view);
        if let Some(active) = running.active.lock().as_deref() {
            self.environment.registry.set_shadowing(active, tenths);
        }
        Ok(view)
    }

    /// What shadow reads have found.
    pub(in crate::migration) async fn diff_report(
        &self,
        running: &Running,
        page: Part,
    ) -> Result<DiffReport, ControlError> {
        if page.limit.is_some_and(|limit| !(1..=MOST_ON_A_PAGE).contains(&limit)) {
            let detail = format!("limit must be a whole number from 1 to {MOST_ON_A_PAGE}");
            return Err(ControlError::new(Refusal::Invalid, "invalid-limit", detail));
        }
        if !running.shadow.is_read() {
            let state = self.environment.state()?;
            running.shadow.load(state).await.map_err(|error| unavailable(error.to_string()))?;
        }
        let all = running.shadow.list();
        let offset = usize::try_from(page.after).unwrap_or(usize::MAX).min(all.len());
        let end = all.len().min(offset + usize::from(page.limit.unwrap_or(PAGE)));
        let active = running.active.lock().clone();
        let skipped = Reason::ALL.into_iter().filter_map(|reason| {
            let count = active.as_ref().map_or(0, |active| active.shadow.skipped(reason));
            (count > 0).then(|| (reason.as_str().to_owned(), count))
        });
        Ok(DiffReport {
            counts: running.shadow_counts(),
            skipped: skipped.collect(),
            next: (end < all.len()).then_some(end as u64),
            shapes: all[offset..end].to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_come_in_tenths() {
        let tenths = |percent| SetShadow { percent, ..SetShadow::default() }.tenths().ok();
        assert_eq!(tenths(0.0), Some(0));
        assert_eq!(tenths(0.3), Some(3));
        assert_eq!(tenths(12.7), Some(127));
        assert_eq!(tenths(100.0), Some(1000));
        for bad in [0.25, -0.1, 100.1, f64::NAN, f64::INFINITY] {
            assert_eq!(tenths(bad), None, "{bad}");
        }
    }
}
