//! Damage to messages, by a seed: to their bytes, and to what they say.

use bson::{Bson, Document, RawDocument, doc};
use reshard::wire::op_msg::{OpMsg, build};

/// A generator of numbers that a seed repeats (SplitMix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// The next one.
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..most`; 0 of none.
    pub(crate) fn below(&mut self, most: usize) -> usize {
        usize::try_from(self.roll() % (most.max(1) as u64)).unwrap_or(0)
    }
}

/// Lengths, counts and flags that are at the edge of something.
const EDGES: [i32; 16] =
    [0, 1, -1, 2, 4, 5, 15, 16, 17, 127, 200, 65_535, 48_000_000, 48_000_001, i32::MAX, i32::MIN];
/// Types of BSON, sections and flags.
const BYTES: [u8; 24] =
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 0x7f, 0x80, 0xfe, 0xff];

/// One of `seeds`, damaged in up to four places. Mostly its header still tells its length, so that what lies
/// behind it is looked at.
pub(crate) fn mutate(dice: &mut Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[dice.below(seeds.len())].clone();
    for _ in 0..=dice.below(4) {
        damage(dice, &mut bytes, seeds);
    }
    if dice.below(8) > 0 && bytes.len() >= 16 {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        if bytes.get(16).is_some_and(|flags| flags & 1 == 1) && dice.below(2) == 0 {
            // A checksum: without this one hardly ever has one flag less to be told by.
            bytes[16] &= 0xfe;
        }
    }
    bytes
}

fn damage(dice: &mut Dice, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let at = dice.below(bytes.len());
    let to = at + dice.below((bytes.len() - at).min(64));
    match dice.below(9) {
        0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
        1 if at < bytes.len() => bytes[at] = BYTES[dice.below(BYTES.len())],
        2 | 3 if at + 4 <= bytes.len() => {
            bytes[at..at + 4].copy_from_slice(&EDGES[dice.below(EDGES.len())].to_le_bytes());
        }
        4 => bytes.truncate(at),
        5 => _ = bytes.drain(at..to),
        6 => {
            let piece = bytes[at..to].to_vec();
            bytes.splice(to..to, piece);
        }
        7 => {
            let other = &seeds[dice.below(seeds.len())];
            let from = dice.below(other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        _ => one_length_off(dice, bytes),
    }
}

/// A little-endian number that is small enough for a length, and one more or less.
fn one_length_off(dice: &mut Dice, bytes: &mut [u8]) {
    let start = dice.below(bytes.len());
    for at in start..bytes.len().saturating_sub(4) {
        let Some(four) = bytes[at..].first_chunk::<4>() else { return };
        let length = i32::from_le_bytes(*four);
        if (1..4096).contains(&length) {
            let off = if dice.below(2) == 0 { length + 1 } else { length - 1 };
            bytes[at..at + 4].copy_from_slice(&off.to_le_bytes());
            return;
        }
    }
}

/// Fields that decide something.
const FIELDS: [&str; 20] = [
    "$db",
    "lsid",
    "txnNumber",
    "autocommit",
    "readConcern",
    "writeConcern",
    "$readPreference",
    "$clusterTime",
    "maxTimeMS",
    "collation",
    "hint",
    "ordered",
    "stmtIds",
    "let",
    "cursor",
    "_id",
    "$and",
    "q",
    "collection",
    "recoveryToken",
];

/// A value of some type, mostly not the one that is wanted.
fn strange(dice: &mut Dice) -> Bson {
    let deep = (0..120).fold(Bson::Null, |inside, _| Bson::Document(doc! { "a": inside }));
    let all = [
        Bson::Null,
        "".into(),
        "x".into(),
        "items".into(),
        "$a".into(),
        0.into(),
        (-1).into(),
        1.5.into(),
        f64::NAN.into(),
        i64::MAX.into(),
        i64::MIN.into(),
        true.into(),
        Bson::Array(vec![]),
        Bson::Array(vec![Bson::Null, 5.into()]),
        doc! {}.into(),
        doc! { "$eq": 1 }.into(),
        doc! { "": 1 }.into(),
        doc! { "level": "snapshot" }.into(),
        doc! { "w": 0 }.into(),
        doc! { "mode": "nearest" }.into(),
        Bson::MinKey,
        Bson::MaxKey,
        Bson::Undefined,
        bson::Timestamp { time: 0, increment: 0 }.into(),
        bson::Timestamp { time: u32::MAX, increment: 7 }.into(),
        Bson::Symbol("s".into()),
        Bson::JavaScriptCode("f".into()),
        bson::oid::ObjectId::from_bytes([7; 12]).into(),
        Bson::Binary(bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: vec![3; 16] }),
        Bson::Binary(bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: vec![] }),
        deep,
    ];
    let which = dice.below(all.len());
    all.into_iter().nth(which).unwrap_or(Bson::Null)
}

/// One of `seeds` with other fields and values: a message that is whole, of a command that may not be. What is no
/// command is damaged instead.
pub(crate) fn twist(dice: &mut Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    let seed = &seeds[dice.below(seeds.len())];
    let Some(mut body) = body(seed) else { return mutate(dice, seeds) };
    for _ in 0..=dice.below(3) {
        twist_document(dice, &mut body, 4);
    }
    bson::serialize_to_vec(&body).map_or_else(|_| Vec::new(), |bytes| build(5, 0, 0, &bytes, None))
}

/// The command, with what stands beside its body in it.
fn body(message: &[u8]) -> Option<Document> {
    let parts = OpMsg::parse(message).ok()?;
    let mut body = Document::try_from(RawDocument::from_bytes(&message[parts.body]).ok()?).ok()?;
    for sequence in parts.sequences {
        let mut rest = &message[sequence.documents];
        let mut documents = Vec::new();
        while let Some(length) = rest.first_chunk().map(|four| i32::from_le_bytes(*four)) {
            let (one, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            documents.push(Bson::Document(Document::try_from(RawDocument::from_bytes(one).ok()?).ok()?));
            rest = after;
        }
        body.insert(String::from_utf8(message[sequence.identifier].to_vec()).ok()?, documents);
    }
    Some(body)
}

/// Changes a field of `document`, or of a document so deep in it.
pub(crate) fn twist_document(dice: &mut Dice, document: &mut Document, depth: u32) {
    let keys: Vec<String> = document.keys().cloned().collect();
    let key = keys.get(dice.below(keys.len())).cloned().unwrap_or_default();
    match dice.below(10) {
        0 => _ = document.remove(&key),
        1 => _ = document.insert(FIELDS[dice.below(FIELDS.len())], strange(dice)),
        // To the end, where it is no command's name any more.
        2 => _ = document.remove(&key).map(|value| document.insert(key, value)),
        _ => match document.get_mut(&key) {
            Some(value) => twist_value(dice, value, depth),
            None => _ = document.insert(key, strange(dice)),
        },
    }
}

fn twist_value(dice: &mut Dice, value: &mut Bson, depth: u32) {
    let goes_on = depth > 0 && dice.below(3) > 0;
    match value {
        Bson::Document(inside) if goes_on => twist_document(dice, inside, depth - 1),
        Bson::Array(inside) if goes_on && !inside.is_empty() => {
            let at = dice.below(inside.len());
            match dice.below(6) {
                0 => _ = inside.remove(at),
                1 => inside.push(strange(dice)),
                _ => twist_value(dice, &mut inside[at], depth - 1),
            }
        }
        value => *value = strange(dice),
    }
}
