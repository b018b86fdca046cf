//! The life of a migration.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a migration is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Known by name; nothing has been done.
    Created,
    /// Collections and indexes are being made on new, streams opened.
    Preparing,
    /// Every write goes to both clusters; history is being copied.
    Copying,
    /// The copy is there; changes made meanwhile are being followed.
    CatchingUp,
    /// New follows old closely: reads and writes can move.
    Synced,
    /// Over: new serves, old is no longer followed.
    Completed,
    /// Over: old serves, as before.
    Aborted,
    /// Stopped by something that needs an operator; old or new serves as the percentages say.
    Failed,
}

impl Phase {
    /// All of them, in the order of a migration's life.
    pub const ALL: [Self; 8] = [
        Self::Created,
        Self::Preparing,
        Self::Copying,
        Self::CatchingUp,
        Self::Synced,
        Self::Completed,
        Self::Aborted,
        Self::Failed,
    ];

    /// As it is written in records and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Preparing => "preparing",
            Self::Copying => "copying",
            Self::CatchingUp => "catching_up",
            Self::Synced => "synced",
            Self::Completed => "completed",
            Self::Aborted => "aborted",
            Self::Failed => "failed",
        }
    }

    /// Both clusters are written.
    #[must_use]
    pub const fn mirrors(self) -> bool {
        matches!(self, Self::Copying | Self::CatchingUp | Self::Synced | Self::Failed)
    }

    /// History is copied, so that both sides can be compared in full.
    #[must_use]
    pub const fn can_be_compared(self) -> bool {
        matches!(self, Self::CatchingUp | Self::Synced)
    }

    /// Nothing more will happen.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Aborted)
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
