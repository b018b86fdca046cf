//! Pipelines over several collections that were seen: some of them cannot run while one of these moves, and preflight
//! says so before anybody meets it.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::model::namespace::Namespace;

/// Most pairs of collections that are remembered; what comes later is not.
const MOST: usize = 1_000;

/// How a pipeline uses a second collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// It is read beside the first.
    Joined,
    /// It is written.
    Written,
}

/// Two collections of one pipeline.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    /// The one that the pipeline is run on.
    pub own: Namespace,
    /// The other.
    pub other: Namespace,
    /// How that is used.
    pub used: Use,
}

/// What was seen since this process began.
#[derive(Debug, Default)]
pub struct Pipelines(Mutex<BTreeMap<Pair, u64>>);

impl Pipelines {
    /// Takes note of a pipeline on `own`.
    pub fn note<'a>(&self, own: &Namespace, others: impl IntoIterator<Item = &'a Namespace>, used: Use) {
        for other in others {
            let pair = Pair { own: own.clone(), other: other.clone(), used };
            let mut seen = self.0.lock();
            if let Some(times) = seen.get_mut(&pair) {
                *times += 1;
            } else if seen.len() < MOST {
                seen.insert(pair, 1);
            }
        }
    }

    /// All pairs, and how often each was seen.
    #[must_use]
    pub fn seen(&self) -> Vec<(Pair, u64)> {
        self.0.lock().iter().map(|(pair, times)| (pair.clone(), *times)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_counted_and_bounded() {
        let (own, pipelines) = (Namespace::new("d", "own"), Pipelines::default());
        let others: Vec<_> = (0..MOST + 5).map(|n| Namespace::new("d", &format!("c{n}"))).collect();
        pipelines.note(&own, &others, Use::Joined);
        pipelines.note(&own, &others[..1], Use::Joined);
        pipelines.note(&own, &others[..1], Use::Written);
        let seen = pipelines.seen();
        assert_eq!(seen.len(), MOST);
        assert!(seen.iter().any(|(pair, times)| pair.other == others[0] && *times == 2));
    }
}
