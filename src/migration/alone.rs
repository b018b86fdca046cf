//! A process without `[new]`: what its one cluster has must be all there is.

use bson::rawdoc;

use super::control::Phase;
use super::engine::{Engine, RETRY};
use crate::model::side::Side;
use crate::state::record::{AUTHORITY, AuthorityRecord, DATABASE};
use crate::state::records::RecordError;

const UNAUTHORIZED: i32 = 13;

impl Engine {
    /// Looks whether the one cluster of this process is part of a migration. Waits until it answers.
    ///
    /// # Errors
    /// In words, why it must not be served alone, and what to do.
    pub(super) async fn may_serve_alone(&self) -> Result<(), String> {
        let Some(records) = self.environment.records.get(Side::Old) else { return Ok(()) };
        let found = loop {
            match records.find(DATABASE, AUTHORITY, rawdoc! {}, 1000).await {
                Ok(found) => break found,
                // An account that ran a migration may read it.
                Err(RecordError::Refused(error)) if error.code == UNAUTHORIZED => {
                    tracing::warn!(%error, "whether a migration is under way cannot be read");
                    return Ok(());
                }
                Err(error) => tracing::debug!(%error, "whether a migration is under way cannot be read yet"),
            }
            self.environment.clock.sleep(RETRY).await;
        };
        for raw in found {
            let record = AuthorityRecord::read(Side::Old, &raw)?;
            if let Some(why) = needs_both(&record.name, record.side, record.phase) {
                return Err(why);
            }
        }
        Ok(())
    }
}

/// Why a cluster that was `side` of a migration must not be served alone.
fn needs_both(name: &str, side: Side, phase: Phase) -> Option<String> {
    match (side, phase) {
        (_, Phase::Aborted) | (Side::New, Phase::Completed) => None,
        (Side::Old, Phase::Completed) => Some(format!(
            "migration {name} was completed: its collections are on the new cluster, and this one has fallen behind. \
             Write the new cluster's uri into [old], or put [new] back"
        )),
        (Side::Old, _) => Some(format!(
            "migration {name} is under way, and there is no [new]: what is written there would be missed, and what \
             is written here would be lost. Put [new] back; to leave the migration, roll back and abort it first"
        )),
        (Side::New, _) => Some(format!(
            "[old] is the new cluster of migration {name}, which is under way: both clusters must be there, as [old] \
             and as [new]"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alone_only_with_all_there_is() {
        for side in Side::BOTH {
            assert_eq!(needs_both("m", side, Phase::Aborted), None);
            for phase in [Phase::Preparing, Phase::Copying, Phase::CatchingUp, Phase::Synced, Phase::Failed] {
                assert!(needs_both("m", side, phase).is_some(), "{side} {phase}");
            }
        }
        assert_eq!(needs_both("m", Side::New, Phase::Completed), None);
        assert!(needs_both("m", Side::Old, Phase::Completed).is_some());
    }
}
