//! The documents a load knows, and their `_id`s: of many BSON types, derived
//! from the seed.

use std::fmt;

use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Decimal128, doc};

/// Most workers of one load.
pub(crate) const MAX_WORKERS: usize = 1000;
/// Most own documents of one worker, quarantined ones included.
pub(crate) const MAX_OWN_KEYS: usize = 32_000;
/// Documents that share one value of `group`.
pub(crate) const GROUP_SIZE: u32 = 10;

const HOT_WORKER: u32 = 1023;

/// One document of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// Written by one worker only.
    Own {
        /// The worker.
        worker: u16,
        /// Number within the worker's range.
        n: u32,
    },
    /// Preloaded; written by at most one worker.
    History(u32),
    /// Written by all workers.
    Hot(u16),
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Own { worker, n } => write!(out, "own-{worker}-{n}"),
            Key::History(n) => write!(out, "history-{n}"),
            Key::Hot(n) => write!(out, "hot-{n}"),
        }
    }
}

/// Maps keys to `_id`s and other fixed fields.
#[derive(Clone, Copy, Debug)]
pub struct KeySpace {
    seed: u64,
    bool_ids: bool,
}

/// A well mixed 64-bit value (splitmix64).
pub(crate) fn mix64(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl KeySpace {
    /// The space of a seed.
    pub fn new(seed: u64, bool_ids: bool) -> Self {
        Self { seed, bool_ids }
    }

    /// Value of the field `lt`, which marks the documents of this load.
    pub fn tag(&self) -> i64 {
        mix64(self.seed).cast_signed() >> 11
    }

    /// A hash of the key that differs between seeds.
    pub(crate) fn hash(&self, key: Key) -> u64 {
        mix64(
            self.seed.wrapping_mul(31) ^ mix64(u64::from(self.number(key).unsigned_abs()) | self.class(key)),
        )
    }

    fn class(&self, key: Key) -> u64 {
        match key {
            Key::Own { .. } => 1 << 40,
            Key::History(_) => 2 << 40,
            Key::Hot(_) => 3 << 40,
        }
    }

    /// A number that no other key of this seed has, in the range of `i32`.
    fn number(&self, key: Key) -> i32 {
        let low = match key {
            Key::Own { worker, n } => n * 1024 + u32::from(worker),
            Key::Hot(n) => u32::from(n) * 1024 + HOT_WORKER,
            Key::History(n) => (1 << 25) | n,
        };
        let seed = u32::try_from(mix64(self.seed) & 31).unwrap_or_default();
        ((seed << 26) | (low & ((1 << 26) - 1))).cast_signed()
    }

    /// The `_id` of a key.
    pub fn id(&self, key: Key) -> Bson {
        if let (Key::Own { worker: 0, n: n @ (1 | 2) }, true) = (key, self.bool_ids) {
            return Bson::Boolean(n == 1);
        }
        let number = self.number(key);
        let hash = self.hash(key);
        match (key, hash % 10) {
            (Key::History(_), 0..4) | (_, 0) => self.object_id(number, hash),
            (_, 1) => Bson::Int32(number),
            (_, 2) => Bson::Int64(i64::from(number)),
            (_, 3) => Bson::Double(f64::from(number) + if hash & 1024 == 0 { 0.0 } else { 0.25 }),
            (_, 4) => Bson::String(format!("{key}-{:08x}", hash >> 32)),
            (_, 5) => Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: self.uuid(number, hash) }),
            (_, 6) => Bson::Document(doc! { "w": number / 1024, "n": i64::from(number), "s": self.tag() }),
            (_, 7) => decimal(&format!("{number}.{}", if hash & 1024 == 0 { "00" } else { "750" })),
            (_, 8) => Bson::DateTime(DateTime::from_millis(1_500_000_000_000 + i64::from(number))),
            _ => Bson::String(format!("{:016x}", hash ^ number.unsigned_abs() as u64)),
        }
    }

    fn object_id(&self, number: i32, hash: u64) -> Bson {
        let mut bytes = [0u8; 12];
        bytes[..4].copy_from_slice(&0x6500_0000_u32.wrapping_add(number.unsigned_abs() >> 8).to_be_bytes());
        bytes[4..8].copy_from_slice(&hash.to_be_bytes()[..4]);
        bytes[8..].copy_from_slice(&number.to_be_bytes());
        Bson::ObjectId(ObjectId::from_bytes(bytes))
    }

    fn uuid(&self, number: i32, hash: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16);
        bytes.extend_from_slice(&hash.to_be_bytes());
        bytes.extend_from_slice(&mix64(hash).to_be_bytes()[..4]);
        bytes.extend_from_slice(&number.to_be_bytes());
        bytes
    }

    /// Value of the field `group`: `GROUP_SIZE` documents of one worker, or
    /// all hot documents.
    pub fn group(&self, key: Key) -> String {
        let tag = self.tag();
        match key {
            Key::Own { worker, n } => format!("o-{tag:x}-{worker}-{}", n / GROUP_SIZE),
            Key::History(n) => format!("h-{tag:x}-{}", n / GROUP_SIZE),
            Key::Hot(_) => format!("hot-{tag:x}"),
        }
    }

    /// The unique value with this number.
    pub fn email(&self, number: u64) -> String {
        format!("u{number}@{:x}.test", self.tag())
    }
}

fn decimal(text: &str) -> Bson {
    text.parse::<Decimal128>().map_or_else(|_| Bson::String(text.into()), Bson::Decimal128)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical::canonical_id;
    use std::collections::{HashMap, HashSet};

    #[test]
    fn ids_are_distinct_and_of_many_types() {
        let space = KeySpace::new(7, true);
        let mut seen = HashSet::new();
        let mut types: HashMap<_, usize> = HashMap::new();
        let own = (0..8).flat_map(|worker| (0..300).map(move |n| Key::Own { worker, n }));
        let keys = own.chain((0..5000).map(Key::History)).chain((0..50).map(Key::Hot));
        for key in keys {
            let id = space.id(key);
            *types.entry(id.element_type() as u8).or_default() += 1;
            let raw = bson::RawBson::try_from(id.clone()).unwrap();
            assert!(seen.insert(canonical_id(raw.as_raw_bson_ref())), "{key} {id:?}");
        }
        assert_eq!(types.len(), 10, "{types:?}");
    }

    #[test]
    fn seeds_have_their_own_ids() {
        let (a, b) = (KeySpace::new(1, false), KeySpace::new(2, false));
        assert_ne!(a.tag(), b.tag());
        for n in 0..100 {
            assert_ne!(a.id(Key::History(n)), b.id(Key::History(n)));
        }
    }
}
