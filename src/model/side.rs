//! The two clusters of a migration.

/// One of the two clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// Where the data was before the migration.
    Old,
    /// Where the data goes.
    New,
}

impl Side {
    /// Both, in the order of [`Self::index`].
    pub const BOTH: [Self; 2] = [Self::Old, Self::New];

    /// 0 for old, 1 for new.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// Its name in logs, metrics and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Old => "old",
            Self::New => "new",
        }
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Old => Self::New,
            Self::New => Self::Old,
        }
    }
}
