//! What is known of the documents that all workers write: counters and sets of
//! unique tokens, whose order does not matter.

use std::collections::{HashMap, HashSet};

use crate::ledger::Verdict;

/// A write's effect on one hot document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HotEffect {
    /// `n` goes up by one.
    Inc,
    /// The token is added to `toks`, and `c` goes up by one.
    Push(i64),
}

/// One hot document.
#[derive(Clone, Debug, Default)]
pub(crate) struct HotEntry {
    pub(crate) incs: u64,
    pub(crate) incs_open: u64,
    pub(crate) tokens: HashSet<i64>,
    /// Tokens whose outcome is not known, with their transaction.
    pub(crate) open: HashMap<i64, Option<u64>>,
    /// Tokens that were refused and must not be there.
    pub(crate) refused: HashSet<i64>,
}

impl HotEntry {
    /// Records a write before it is sent.
    pub(crate) fn begin(&mut self, effect: HotEffect, joint: Option<u64>) {
        match effect {
            HotEffect::Inc => self.incs_open += 1,
            HotEffect::Push(token) => {
                self.open.insert(token, joint);
            }
        }
    }

    /// Records how it ended.
    pub(crate) fn finish(&mut self, effect: HotEffect, verdict: Verdict) {
        if verdict == Verdict::Unknown {
            return;
        }
        let acknowledged = verdict == Verdict::Acknowledged;
        match effect {
            HotEffect::Inc => {
                self.incs_open = self.incs_open.saturating_sub(1);
                self.incs += u64::from(acknowledged);
            }
            HotEffect::Push(token) => {
                self.open.remove(&token);
                if acknowledged { &mut self.tokens } else { &mut self.refused }.insert(token);
            }
        }
    }

    /// Tokens that are or may be there.
    pub(crate) fn token_count(&self) -> usize {
        self.tokens.len() + self.open.len()
    }
}

/// What is wrong with a hot document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HotFault {
    CounterLow {
        found: i64,
        least: u64,
    },
    CounterHigh {
        found: i64,
        most: u64,
    },
    TokenMissing(i64),
    TokenTwice(i64, usize),
    TokenRefused(i64),
    TokenUnknown(i64),
    /// `c` and the number of tokens, which change together, differ.
    Torn {
        c: i64,
        tokens: usize,
    },
}

/// Compares a hot document as found with what is known.
pub(crate) fn check_hot(entry: &HotEntry, n: i64, c: i64, found: &[i64]) -> Vec<HotFault> {
    let mut faults = Vec::new();
    let seen_n = u64::try_from(n).unwrap_or_default();
    if seen_n < entry.incs {
        faults.push(HotFault::CounterLow { found: n, least: entry.incs });
    }
    let most = entry.incs + entry.incs_open;
    if seen_n > most {
        faults.push(HotFault::CounterHigh { found: n, most });
    }
    let mut times: HashMap<i64, usize> = HashMap::new();
    for &token in found {
        *times.entry(token).or_default() += 1;
    }
    faults
        .extend(entry.tokens.iter().filter(|&t| !times.contains_key(t)).map(|&t| HotFault::TokenMissing(t)));
    for (&token, &count) in &times {
        if count > 1 {
            faults.push(HotFault::TokenTwice(token, count));
        }
        if entry.refused.contains(&token) {
            faults.push(HotFault::TokenRefused(token));
        } else if !entry.tokens.contains(&token) && !entry.open.contains_key(&token) {
            faults.push(HotFault::TokenUnknown(token));
        }
    }
    if usize::try_from(c) != Ok(found.len()) {
        faults.push(HotFault::Torn { c, tokens: found.len() });
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> HotEntry {
        let mut entry = HotEntry::default();
        let verdicts = [Verdict::Acknowledged, Verdict::Unknown, Verdict::Failed];
        for (token, verdict) in (1..).zip(verdicts) {
            for effect in [HotEffect::Inc, HotEffect::Push(token)] {
                entry.begin(effect, None);
                entry.finish(effect, verdict);
            }
        }
        entry
    }

    #[test]
    fn an_unknown_effect_may_be_there_once_or_not_at_all() {
        assert!(check_hot(&entry(), 1, 1, &[1]).is_empty());
        assert!(check_hot(&entry(), 2, 2, &[2, 1]).is_empty());
    }

    #[test]
    fn faults_are_named() {
        let find = |n, c, tokens: &[i64]| check_hot(&entry(), n, c, tokens);
        assert_eq!(find(0, 1, &[1]), [HotFault::CounterLow { found: 0, least: 1 }]);
        assert_eq!(find(3, 1, &[1]), [HotFault::CounterHigh { found: 3, most: 2 }]);
        assert_eq!(find(1, 0, &[]), [HotFault::TokenMissing(1)]);
        assert_eq!(find(1, 2, &[1, 1]), [HotFault::TokenTwice(1, 2)]);
        assert_eq!(find(1, 3, &[1, 2, 2]), [HotFault::TokenTwice(2, 2)]);
        assert_eq!(find(1, 2, &[1, 3]), [HotFault::TokenRefused(3)]);
        assert_eq!(find(1, 2, &[1, 9]), [HotFault::TokenUnknown(9)]);
        assert_eq!(find(1, 2, &[1]), [HotFault::Torn { c: 2, tokens: 1 }]);
    }
}
