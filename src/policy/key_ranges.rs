//! Ranges of keys that are slots of their own: all keys between two bounds lie in one slot, which no percentage below 100
//! has, and which is pinned by its name.
//!
//! Which range a key falls into is told by its value alone, never by its spelling: two spellings of one key must have one
//! slot. That is why a bound of numbers is a whole one, against which any number can be held exactly.

use std::borrow::Cow;

use bson::raw::RawBsonRef;
use serde::{Deserialize, Serialize};

use super::canonical::{Number, number_of};
use crate::model::key::Key;
pub use crate::model::slots::MOST_RANGES;
use crate::model::slots::{Layout, Slot};

/// The most bytes of a bound.
pub const LARGEST_BOUND: usize = 512;

/// Where a value lies among those of its kind; kinds never mix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place<'a> {
    /// A number, rounded down. What is none comes first, and whatever has more than 64 bits lies beyond these.
    Number(i128),
    /// A text, byte by byte.
    Text(Cow<'a, [u8]>),
    /// Binary data: by length, then subtype, then bytes.
    Binary(usize, u8, Cow<'a, [u8]>),
    /// An object id.
    ObjectId([u8; 12]),
    /// Milliseconds since 1970.
    Date(i64),
}

impl<'a> Place<'a> {
    /// `None` for what no range can hold.
    fn of(value: RawBsonRef<'a>) -> Option<Self> {
        match value {
            RawBsonRef::String(text) | RawBsonRef::Symbol(text) => Some(Self::Text(text.as_bytes().into())),
            RawBsonRef::Binary(binary) => {
                Some(Self::Binary(binary.bytes.len(), binary.subtype.into(), binary.bytes.into()))
            }
            RawBsonRef::ObjectId(id) => Some(Self::ObjectId(id.bytes())),
            RawBsonRef::DateTime(date) => Some(Self::Date(date.timestamp_millis())),
            value => number_of(value).map(|number| Self::Number(floor(&number))),
        }
    }

    fn into_owned(self) -> Place<'static> {
        match self {
            Self::Number(number) => Place::Number(number),
            Self::Text(text) => Place::Text(text.into_owned().into()),
            Self::Binary(length, subtype, bytes) => Place::Binary(length, subtype, bytes.into_owned().into()),
            Self::ObjectId(id) => Place::ObjectId(id),
            Self::Date(date) => Place::Date(date),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Number(_) => Kind::Number,
            Self::Text(_) => Kind::Text,
            Self::Binary(..) => Kind::Binary,
            Self::ObjectId(_) => Kind::ObjectId,
            Self::Date(_) => Kind::Date,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Number,
    Text,
    Binary,
    ObjectId,
    Date,
}

/// Beyond all of 64 bits, on either side; and before all, for what is no number.
const ABOVE: i128 = i64::MAX as i128 + 1;
const BELOW: i128 = i64::MIN as i128 - 1;
const NONE: i128 = i64::MIN as i128 - 2;

/// The largest whole number that is not above it.
fn floor(number: &Number) -> i128 {
    match *number {
        Number::Integer(whole) => whole.into(),
        Number::Double(bits) => match f64::from_bits(bits) {
            value if value.is_nan() => NONE,
            #[expect(clippy::cast_possible_truncation, reason = "saturates, beyond 64 bits")]
            value => (value.floor() as i128).clamp(BELOW, ABOVE),
        },
        Number::Decimal(negative, _, 0..) => {
            // Whole, and no integer of 64 bits.
            if negative { BELOW } else { ABOVE }
        }
        Number::Decimal(negative, coefficient, exponent) => {
            // Not whole, as it has no trailing zeros.
            let power = 10_u128.checked_pow(exponent.unsigned_abs());
            let whole = i128::try_from(power.map_or(0, |power| coefficient / power)).unwrap_or(i128::MAX);
            let floor = if negative { -whole - 1 } else { whole };
            floor.clamp(BELOW, ABOVE)
        }
    }
}

/// Keys from one bound on up to another. Also how it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyRange {
    /// How operators call it.
    pub name: String,
    /// The first key; without it, from the lowest of its kind on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<bson::Bson>,
    /// The first key that is beyond it; without it, to the highest of its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<bson::Bson>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    kind: Kind,
    from: Option<Place<'static>>,
    to: Option<Place<'static>>,
    slot: Slot,
}

/// The ranges of a migration, which never change: a document would get another slot.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyRanges {
    layout: Layout,
    /// As they were declared, which gives them their slots.
    declared: Vec<KeyRange>,
    /// In order.
    spans: Vec<Span>,
}

impl Default for KeyRanges {
    fn default() -> Self {
        Self::none()
    }
}

impl KeyRanges {
    /// No ranges.
    #[must_use]
    pub const fn none() -> Self {
        Self { layout: Layout::NO_RANGES, declared: Vec::new(), spans: Vec::new() }
    }

    /// Those.
    ///
    /// # Errors
    /// In words, everything that is wrong with them.
    pub fn new(declared: Vec<KeyRange>) -> Result<Self, Vec<String>> {
        let Some(layout) = Layout::with_ranges(declared.len()) else {
            return Err(vec![format!("{} are declared, and {MOST_RANGES} can be", declared.len())]);
        };
        let mut wrong = Vec::new();
        let mut spans = Vec::new();
        for (number, range) in declared.iter().enumerate() {
            if !is_name(&range.name) {
                wrong.push(format!("{:?}: use 1 to 64 letters, digits, '-' and '_' for a name", range.name));
            } else if declared[..number].iter().any(|other| other.name == range.name) {
                wrong.push(format!("{} is declared twice", range.name));
            }
            match layout.of_range(number).map(|slot| span(range, slot)) {
                Some(Ok(span)) => spans.push(span),
                Some(Err(why)) => wrong.push(format!("{}: {why}", range.name)),
                None => {}
            }
        }
        spans.sort_by(|a, b| (a.kind, &a.from).cmp(&(b.kind, &b.from)));
        for pair in spans.windows(2) {
            let is_apart = pair[0].to.is_some() && pair[0].to <= pair[1].from;
            if pair[0].kind == pair[1].kind && !is_apart {
                let name = |span: &Span| {
                    let number = usize::from(span.slot.number() - layout.hashed());
                    &*declared[number].name
                };
                wrong.push(format!("{} and {} overlap", name(&pair[0]), name(&pair[1])));
            }
        }
        if wrong.is_empty() { Ok(Self { layout, declared, spans }) } else { Err(wrong) }
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Each of them, as declared.
    #[must_use]
    pub fn all(&self) -> &[KeyRange] {
        &self.declared
    }

    /// What the slots are for.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// The slot of a key: that of its range, or else of its hash.
    #[must_use]
    pub fn slot_of(&self, key: &Key) -> Slot {
        if self.is_empty() {
            return key.id_slot();
        }
        self.slot_of_range_with(key).unwrap_or_else(|| self.layout.of_hash(key.slot_hash()))
    }

    fn slot_of_range_with(&self, key: &Key) -> Option<Slot> {
        let place = Place::of(key.value())?;
        let kind = place.kind();
        let begun = self.spans.partition_point(|span| {
            (span.kind, span.from.as_ref()).cmp(&(kind, Some(&place))) != std::cmp::Ordering::Greater
        });
        let last = &self.spans[begun.checked_sub(1)?];
        let holds = last.kind == kind && last.to.as_ref().is_none_or(|to| place < *to);
        holds.then_some(last.slot)
    }

    /// The range that a key falls into.
    #[must_use]
    pub fn with(&self, key: &Key) -> Option<&KeyRange> {
        let slot = self.slot_of_range_with(key)?;
        self.declared.get(usize::from(slot.number().checked_sub(self.layout.hashed())?))
    }

    /// The slot of a range, by its name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Slot> {
        self.layout.of_range(self.declared.iter().position(|range| range.name == name)?)
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=64).contains(&name.len()) && name.chars().all(allowed)
}

fn span(range: &KeyRange, slot: Slot) -> Result<Span, String> {
    let from = range.from.as_ref().map(bound).transpose()?;
    let to = range.to.as_ref().map(bound).transpose()?;
    let kinds = (from.as_ref().map(Place::kind), to.as_ref().map(Place::kind));
    let kind = match kinds {
        (None, None) => return Err("it has no bound; give one at least".to_owned()),
        (Some(from), Some(to)) if from != to => {
            return Err("its bounds are not of one kind: both numbers, or both texts, ...".to_owned());
        }
        (from, to) => from.or(to).ok_or("it has no bound")?,
    };
    if from.is_some() && to.is_some() && from >= to {
        return Err(
            "it is empty: the second bound, which is no part of it, must be above the first".to_owned()
        );
    }
    Ok(Span { kind, from, to, slot })
}

fn bound(value: &bson::Bson) -> Result<Place<'static>, String> {
    let raw = bson::raw::RawBson::try_from(value.clone()).map_err(|error| error.to_string())?;
    if let Some(number) = number_of(raw.as_raw_bson_ref()) {
        return match number {
            Number::Integer(whole) => Ok(Place::Number(whole.into())),
            _ => Err(format!("{value} is no whole number of 64 bits, and only such are bounds")),
        };
    }
    match Place::of(raw.as_raw_bson_ref()) {
        Some(Place::Text(bytes) | Place::Binary(_, _, bytes)) if bytes.len() > LARGEST_BOUND => {
            Err(format!("a bound has at most {LARGEST_BOUND} bytes"))
        }
        Some(place) => Ok(place.into_owned()),
        None => {
            Err(format!("{value} is no bound: use numbers, texts, object ids, dates or binary data (UUIDs)"))
        }
    }
}

#[cfg(test)]
#[path = "key_ranges_tests.rs"]
mod tests;
