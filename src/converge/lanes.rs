//! Lanes: one writer at a time for a key, within this process.
//!
//! They make the first attempt of a mirror write succeed most of the time. No proof rests on them.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::model::key::Key;

const STRIPES: usize = 4096;
/// A command on more keys than this takes no lanes, and is not mirrored inline.
pub const MOST_KEYS: usize = 64;

/// Striped locks by key.
pub struct Lanes(Vec<Arc<Mutex<()>>>);

/// Lanes taken; given back when dropped.
pub struct Taken {
    _guards: Vec<OwnedMutexGuard<()>>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self((0..STRIPES).map(|_| Arc::default()).collect())
    }
}

impl Lanes {
    /// Takes the lanes of `keys` in ascending order, so that no two commands wait for each other.
    pub async fn take(&self, namespace: &str, keys: &[Key]) -> Taken {
        let seed = xxhash_rust::xxh3::xxh3_64(namespace.as_bytes());
        let mut stripes: Vec<usize> = keys.iter().map(|key| stripe(seed, key)).collect();
        stripes.sort_unstable();
        stripes.dedup();
        let mut guards = Vec::with_capacity(stripes.len());
        for stripe in stripes {
            guards.push(Arc::clone(&self.0[stripe]).lock_owned().await);
        }
        Taken { _guards: guards }
    }
}

fn stripe(seed: u64, key: &Key) -> usize {
    let hash = xxhash_rust::xxh3::xxh3_64_with_seed(key.canonical(), seed);
    #[expect(clippy::cast_possible_truncation, reason = "only the low bits count")]
    let index = hash as usize % STRIPES;
    index
}
