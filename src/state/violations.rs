//! Invariants of one migration that did not hold: counted, logged, and remembered until both sides were
//! compared.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::clock::SharedClock;
use crate::policy::invariants::{Holds, Invariant, still_matters};

/// How often an invariant did not hold, and the last time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Its name.
    pub invariant: String,
    /// How often.
    pub count: i64,
    /// The last time; Unix milliseconds.
    pub at: i64,
    /// What was wrong then.
    pub what: String,
}

/// What did not hold so far.
pub struct Violations {
    migration: String,
    clock: SharedClock,
    found: Mutex<BTreeMap<Invariant, Violation>>,
}

impl Violations {
    /// None yet.
    #[must_use]
    pub fn new(migration: &str, clock: SharedClock) -> Self {
        Self { migration: migration.to_owned(), clock, found: Mutex::default() }
    }

    /// Counts a predicate that does not hold.
    pub fn watch(&self, invariant: Invariant, holds: Holds) {
        let Err(what) = holds else { return };
        let at = self.clock.wall_millis();
        let count = {
            let mut found = self.found.lock();
            let name = || invariant.as_str().to_owned();
            let known = found.entry(invariant).or_insert_with(|| Violation {
                invariant: name(),
                count: 0,
                at,
                what: String::new(),
            });
            known.count += 1;
            known.at = at;
            known.what.clone_from(&what);
            known.count
        };
        // One that goes on must not fill the log.
        if count <= 10 || count.count_ones() == 1 {
            let (number, name) = (invariant.number(), invariant.as_str());
            tracing::error!(
                migration = self.migration,
                number,
                name,
                what,
                count,
                "an invariant does not hold"
            );
        }
    }

    /// What an earlier process has found.
    pub fn learn(&self, stored: &[Violation]) {
        let mut found = self.found.lock();
        for violation in stored {
            if let Some(invariant) = Invariant::named(&violation.invariant) {
                let known = found.entry(invariant).or_insert_with(|| violation.clone());
                known.count = known.count.max(violation.count);
            }
        }
    }

    /// Everything, to be stored.
    #[must_use]
    pub fn list(&self) -> Vec<Violation> {
        self.found.lock().values().cloned().collect()
    }

    /// How often one did not hold.
    #[must_use]
    pub fn count(&self, invariant: Invariant) -> u64 {
        let found = self.found.lock();
        found.get(&invariant).map_or(0, |known| u64::try_from(known.count).unwrap_or(0))
    }

    /// How often any did not.
    #[must_use]
    pub fn total(&self) -> u64 {
        Invariant::ALL.into_iter().map(|invariant| self.count(invariant)).sum()
    }

    /// Why nothing may move, in words: the sides may differ where no stream tells. `verified` is when the last
    /// full comparison began that left no difference.
    #[must_use]
    pub fn in_the_way(&self, verified: Option<i64>) -> Vec<String> {
        let found = self.found.lock();
        found
            .iter()
            .filter(|(invariant, known)| invariant.is_about_data() && still_matters(known.at, verified))
            .map(|(invariant, known)| {
                format!(
                    "invariant {} ({}) did not hold, {} times: {}; look at the log, report it, then run: reshard \
                     migrate verify {} --wait",
                    invariant.number(),
                    known.invariant,
                    known.count,
                    known.what,
                    self.migration
                )
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn what_did_not_hold_is_counted_kept_and_in_the_way_until_compared() {
        let violations = Violations::new("m", Arc::new(SystemClock));
        violations.watch(Invariant::Once, Ok(()));
        violations.watch(Invariant::NotDelayed, Err("late".into()));
        assert!(violations.in_the_way(None).is_empty(), "a late reply is no difference");
        violations.watch(Invariant::Once, Err("twice".into()));
        violations.watch(Invariant::Once, Err("and again".into()));
        let stored = violations.list();
        let next = Violations::new("m", Arc::new(SystemClock));
        next.learn(&stored);
        assert_eq!((next.count(Invariant::Once), next.total()), (2, 3));
        let why = next.in_the_way(Some(0));
        assert!(why.len() == 1 && why[0].contains("2 times: and again"), "{why:?}");
        assert!(next.in_the_way(Some(i64::MAX)).is_empty());
    }
}
