//! The two clusters.

use serde::{Deserialize, Serialize};

/// One of the two clusters of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Where the data comes from.
    Old,
    /// Where it goes.
    New,
}

impl Side {
    /// Both, old first.
    pub const BOTH: [Self; 2] = [Self::Old, Self::New];

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Old => Self::New,
            Self::New => Self::Old,
        }
    }

    /// 0 for old, 1 for new.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// As it is written in records, metrics and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Old => "old",
            Self::New => "new",
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One value for each side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerSide<T> {
    /// Of old.
    pub old: T,
    /// Of new.
    pub new: T,
}

impl<T> PerSide<T> {
    /// The value of `side`.
    pub const fn get(&self, side: Side) -> &T {
        match side {
            Side::Old => &self.old,
            Side::New => &self.new,
        }
    }

    /// The value of `side`, to change.
    pub const fn get_mut(&mut self, side: Side) -> &mut T {
        match side {
            Side::Old => &mut self.old,
            Side::New => &mut self.new,
        }
    }

    /// Made from each side.
    pub fn from_fn(mut make: impl FnMut(Side) -> T) -> Self {
        Self { old: make(Side::Old), new: make(Side::New) }
    }
}
