//! Lanes: one writer at a time for a key, within this process.
//!
//! They make the first attempt of a mirror write succeed most of the time. No proof rests on them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::model::key::Key;

const STRIPES: usize = 4096;
/// A command on more keys than this takes no lanes, and is not mirrored inline.
pub const MOST_KEYS: usize = 64;

/// Striped locks by key, and how often a change stream has told of a key of each.
pub struct Lanes {
    /// Made when they are first needed: most never are.
    locks: Vec<OnceLock<Arc<Mutex<()>>>>,
    touched: Vec<AtomicU64>,
}

/// How often each lane had been touched at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched(Vec<u64>);

/// Lanes taken; given back when dropped.
pub struct Taken {
    _guards: Vec<OwnedMutexGuard<()>>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            locks: (0..STRIPES).map(|_| OnceLock::new()).collect(),
            touched: (0..STRIPES).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Lanes {
    /// Takes the lanes of `keys` in ascending order, so that no two commands wait for each other.
    pub async fn take(&self, namespace: &str, keys: &[Key]) -> Taken {
        let seed = seed_of(namespace);
        let mut stripes: Vec<usize> = keys.iter().map(|key| stripe(seed, key)).collect();
        stripes.sort_unstable();
        stripes.dedup();
        let mut guards = Vec::with_capacity(stripes.len());
        for stripe in stripes {
            let lock = self.locks[stripe].get_or_init(Arc::default);
            guards.push(Arc::clone(lock).lock_owned().await);
        }
        Taken { _guards: guards }
    }

    /// Whether somebody writes `key`, or one that shares its lane. Nobody is kept waiting by the look.
    #[must_use]
    pub fn is_busy(&self, namespace: &str, key: &Key) -> bool {
        let lock = self.locks[stripe(seed_of(namespace), key)].get();
        lock.is_some_and(|lock| lock.try_lock().is_err())
    }

    /// A change stream tells of a change of `key`.
    pub fn touch(&self, namespace: &str, key: &Key) {
        self.touched[stripe(seed_of(namespace), key)].fetch_add(1, Ordering::Relaxed);
    }

    /// How often each lane has been touched by now.
    #[must_use]
    pub fn touched(&self) -> Touched {
        Touched(self.touched.iter().map(|count| count.load(Ordering::Relaxed)).collect())
    }

    /// Whether no change of `key` was told of since `then`.
    #[must_use]
    pub fn rests(&self, namespace: &str, key: &Key, then: &Touched) -> bool {
        let stripe = stripe(seed_of(namespace), key);
        self.touched[stripe].load(Ordering::Relaxed) == then.0[stripe]
    }
}

fn seed_of(namespace: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(namespace.as_bytes())
}

fn stripe(seed: u64, key: &Key) -> usize {
    let hash = xxhash_rust::xxh3::xxh3_64_with_seed(key.canonical(), seed);
    #[expect(clippy::cast_possible_truncation, reason = "only the low bits count")]
    let index = hash as usize % STRIPES;
    index
}
