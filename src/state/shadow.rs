//! What shadow reads have found, for whoever decides by it.

use std::sync::atomic::{AtomicU64, Ordering};

const UNKNOWN: u64 = u64::MAX;

/// Persistent differences between both clusters' answers; unknown until somebody compares them.
#[derive(Debug)]
pub struct PersistentDifferences(AtomicU64);

impl Default for PersistentDifferences {
    fn default() -> Self {
        Self(AtomicU64::new(UNKNOWN))
    }
}

impl PersistentDifferences {
    /// How many there are; `None`: not known.
    #[must_use]
    pub fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|count| *count != UNKNOWN)
    }

    /// Says how many there are, or that it is not known (any more).
    pub fn set(&self, count: Option<u64>) {
        self.0.store(count.unwrap_or(UNKNOWN), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_not_known_until_told() {
        let differences = PersistentDifferences::default();
        assert_eq!(differences.get(), None);
        differences.set(Some(0));
        assert_eq!(differences.get(), Some(0));
        differences.set(None);
        assert_eq!(differences.get(), None);
    }
}
