//! What an operator can ask about writes that went past the proxy.

use std::sync::atomic::Ordering;

use super::view::{Acknowledge, Acknowledged, BypassReport, Page};
use crate::migration::control::{Actor, ControlError, Refusal};
use crate::migration::engine::{Engine, unavailable};
use crate::migration::running::Running;
use crate::policy::bypass::{Example, Window};
use crate::state::records::RecordError;

const MOST_ON_A_PAGE: u16 = 1000;

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err gives")]
fn away(error: RecordError) -> ControlError {
    unavailable(error.to_string())
}

impl Engine {
    /// What was written past the proxy and stands in the way of moving more writes to new.
    pub(in crate::migration) fn bypass_in_the_way(&self, running: &Running) -> Option<String> {
        match running.bypass.kept() {
            Some(kept) => kept.tally.stands_in_the_way(self.environment.clock.wall_millis()),
            None => Some("whether anything was written past the proxy is not known yet".to_owned()),
        }
    }

    /// The counts alone.
    pub(in crate::migration) fn bypass_counts(&self, running: &Running) -> BypassReport {
        let kept = running.bypass.kept().unwrap_or_default();
        let now = self.environment.clock.wall_millis();
        let count = |count: i64| u64::try_from(count).unwrap_or(0);
        BypassReport {
            bypass_writes: count(kept.tally.lately.count(now)),
            bypass_writes_total: count(kept.tally.total),
            bypass_writes_unjudged: running.bypass.unjudged.load(Ordering::Relaxed),
            blocks: kept.tally.stands_in_the_way(now),
            acknowledged: kept.acknowledged,
            ..BypassReport::default()
        }
    }

    /// The counts, and a part of the list.
    pub(in crate::migration) async fn bypass_report(
        &self,
        running: &Running,
        page: Page,
    ) -> Result<BypassReport, ControlError> {
        if page.limit.is_some_and(|limit| !(1..=MOST_ON_A_PAGE).contains(&limit)) {
            let detail = format!("limit must be a whole number from 1 to {MOST_ON_A_PAGE}");
            return Err(ControlError::new(Refusal::Invalid, "invalid-limit", detail));
        }
        let state = self.environment.state()?;
        if running.bypass.kept().is_none() {
            // A migration that is over is not followed, and still has its list.
            running.bypass.load(state).await.map_err(away)?;
        }
        let (writes, next) = running.bypass.list(state, page).await.map_err(away)?;
        Ok(BypassReport { writes, next, ..self.bypass_counts(running) })
    }

    /// Notes that an operator knows of everything that went past the proxy by now.
    pub(in crate::migration) async fn acknowledge(
        &self,
        who: &Actor,
        running: &Running,
        asked: &Acknowledge,
    ) -> Result<Acknowledged, ControlError> {
        let reason = asked.reason.trim();
        if reason.is_empty() {
            let detail = "reason: say why these writes do not matter; it is kept in the audit";
            return Err(ControlError::new(Refusal::Invalid, "reason-missing", detail));
        }
        let (who, at) = (who.0.clone(), self.environment.clock.wall_millis());
        let acknowledged = running
            .bypass
            .change(self.environment.state()?, |kept| {
                let tally = &mut kept.tally;
                if asked.up_to.is_some_and(|seen| seen < tally.total) {
                    return Err(tally.total);
                }
                let latest = latest(&tally.unacknowledged);
                let acknowledged = Acknowledged {
                    up_to: tally.total,
                    writes: tally.open,
                    latest,
                    at,
                    who: who.clone(),
                    reason: reason.to_owned(),
                };
                tally.acknowledge();
                kept.acknowledged = Some(acknowledged.clone());
                Ok(acknowledged)
            })
            .await
            .map_err(away)?;
        acknowledged.map_err(|total| {
            let detail =
                format!("up_to: there are later writes, the last is number {total}; look at them first");
            ControlError::new(Refusal::Conflict, "more-bypass-writes", detail)
        })
    }
}

fn latest(window: &Window) -> String {
    let latest = window.latest.as_ref();
    latest.map_or_else(String::new, |Example { namespace, key, .. }| format!("{namespace}, _id {key}"))
}
