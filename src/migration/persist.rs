//! Storing what is known of a migration, one store after the other.
//!
//! Each stores all fields. Two at once could end with those of the earlier moment, and what was noted in between
//! would be lost at the next start.

use super::control::ControlError;
use super::engine::unavailable;
use super::running::Running;
use super::stored::Stored;
use crate::state::records::{RecordError, Records};

impl Running {
    /// Stores what is known here.
    ///
    /// # Errors
    /// [`RecordError`].
    pub(super) async fn persist(&self, records: &Records) -> Result<(), RecordError> {
        self.change_stored(records, |_| ()).await
    }

    /// Changes what is stored, and when that is done what is known here.
    ///
    /// # Errors
    /// [`RecordError`]; nothing has changed here then.
    pub(super) async fn change_stored(
        &self,
        records: &Records,
        change: impl Fn(&mut Stored) + Send,
    ) -> Result<(), RecordError> {
        let _one_at_a_time = self.storing.lock().await;
        let mut next = self.stored.lock().clone();
        if !next.is_read() {
            return Err(RecordError::Unavailable(
                "what is stored of the migration has not been read yet".into(),
            ));
        }
        change(&mut next);
        next.store(records).await?;
        change(&mut self.stored.lock());
        Ok(())
    }
}

/// After a restart, while a cluster is away, a migration may be known by the clusters' records alone.
///
/// # Errors
/// Nothing more is known yet.
pub(super) fn must_be_read(running: &Running) -> Result<(), ControlError> {
    if running.stored.lock().is_read() {
        return Ok(());
    }
    Err(unavailable("what is stored of the migration has not been read yet; try again".into()))
}
