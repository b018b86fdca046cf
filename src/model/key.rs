//! Keys of documents: an `_id` as sent, and the one form that all its equal spellings share.

use bson::raw::{RawBson, RawBsonRef};

use super::namespace::Namespace;
use super::slots::Slot;

/// A document's `_id` together with its canonical form.
///
/// `1`, `1.0`, a long 1 and a decimal `1.00` are one `_id` to MongoDB, so they are one key here.
#[derive(Clone)]
pub struct Key {
    value: RawBson,
    canonical: Box<[u8]>,
}

impl Key {
    /// A key from an `_id` and its canonical form, made by `policy::canonical`.
    #[must_use]
    pub const fn new(value: RawBson, canonical: Box<[u8]>) -> Self {
        Self { value, canonical }
    }

    /// The `_id` as it was sent.
    #[must_use]
    pub fn value(&self) -> RawBsonRef<'_> {
        self.value.as_raw_bson_ref()
    }

    /// The form that equal `_id`s share.
    #[must_use]
    pub fn canonical(&self) -> &[u8] {
        &self.canonical
    }

    /// 128 bits that stand for the key in bounded tables; stable across processes and versions.
    #[must_use]
    pub fn fingerprint(&self) -> u128 {
        xxhash_rust::xxh3::xxh3_128(&self.canonical)
    }

    /// The same for the key in a collection: several collections have equal keys.
    #[must_use]
    pub fn fingerprint_in(&self, namespace: &Namespace) -> u128 {
        self.fingerprint() ^ xxhash_rust::xxh3::xxh3_128(namespace.as_str().as_bytes())
    }

    /// The hash of its form, of which slots are made.
    #[must_use]
    pub fn slot_hash(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&self.canonical)
    }

    /// The slot of its form where no ranges are declared: that of the document where slots are computed from `_id`s.
    /// Whoever asks whose a document is asks `policy::route_key::By`.
    #[must_use]
    pub fn id_slot(&self) -> Slot {
        Slot::of_hash(self.slot_hash())
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.canonical == other.canonical
    }
}

impl Eq for Key {}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.canonical.hash(state);
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.canonical.cmp(&other.canonical)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.value)
    }
}
