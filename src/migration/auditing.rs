//! Writing what operators ask for into the audit.

use std::time::Duration;

use super::control::{AuditEvent, By, ControlError, MigrationView};
use super::engine::Engine;
use super::running::Running;
use super::stored;

impl Engine {
    /// Milliseconds since `began`, on the process's clock.
    pub(super) fn millis_since(&self, began: Duration) -> u64 {
        let took = self.environment.clock.now().saturating_sub(began);
        u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
    }

    /// Writes a change, asked for at `began`, into the audit; the change is made whether or not that works.
    pub(super) async fn note<T>(
        &self,
        by: &By,
        running: &Running,
        (what, from): (String, String),
        result: &Result<T, ControlError>,
        began: Duration,
    ) {
        let event = AuditEvent {
            at: self.environment.clock.wall_millis(),
            who: by.who.0.clone(),
            what,
            from,
            to: describe(&self.view(running)),
            result: match result {
                Ok(_) => "ok".into(),
                Err(error) => format!("{}: {}", error.code, error.detail),
            },
            elapsed_ms: Some(self.millis_since(began)),
        };
        let name = running.stored.lock().name.clone();
        let Ok(state) = self.environment.state() else { return };
        if let Err(error) = stored::audit(state, &name, &event).await {
            tracing::warn!(%error, ?event, "the audit could not be written");
        }
    }
}

/// What an operator can change of a migration, for the audit.
pub(super) fn describe(view: &MigrationView) -> String {
    let paused = if view.paused { " (paused)" } else { "" };
    format!(
        "{}{paused}, reads {} %, writes {} %, epoch {}, throttle {}",
        view.phase, view.reads_percent, view.writes_percent, view.epoch, view.throttle
    )
}
