//! Where two documents differ, field by field, and in what way.

use std::collections::{HashMap, HashSet};

use bson::RawDocument;
use bson::raw::{RawBson, RawBsonRef};

use crate::policy::canonical::key_of;
use crate::policy::nesting::DEEPEST;

/// In what way two values of one field differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FieldKind {
    /// The shadow's document lacks the field.
    Missing,
    /// Only the shadow's document has the field.
    Extra,
    /// Values of one type that are not equal.
    Value,
    /// Values of two types, also where they stand for one number.
    Type,
    /// The same fields in another order.
    FieldOrder,
    /// One of them is no number, or both are with other bits.
    Nan,
    /// Zero with and without a sign.
    NegativeZero,
    /// One decimal in two representations: `1.0` and `1.00`.
    Decimal128,
}

impl FieldKind {
    /// As reports name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "field_missing",
            Self::Extra => "field_extra",
            Self::Value => "value",
            Self::Type => "type",
            Self::FieldOrder => "field_order",
            Self::Nan => "nan",
            Self::NegativeZero => "negative_zero",
            Self::Decimal128 => "decimal128",
        }
    }
}

/// One difference within a document.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldDifference {
    /// Names from the outermost in, with a dot between; elements of arrays by their number. Empty: the value itself.
    pub path: String,
    /// In what way.
    pub kind: FieldKind,
    /// What the cluster has that served the read.
    pub served: Option<RawBson>,
    /// What its shadow has.
    pub shadow: Option<RawBson>,
}

/// Where `served` and `shadow` differ; at most `most` places. Empty only where they are equal byte for byte.
#[must_use]
pub fn differing(served: &RawDocument, shadow: &RawDocument, most: usize) -> Vec<FieldDifference> {
    let mut found = Found { all: Vec::new(), most };
    if served.as_bytes() != shadow.as_bytes() {
        found.documents("", served, shadow, DEEPEST);
        if found.all.is_empty() {
            // What does not parse, or nests too deep, is told as a whole.
            found.add("", FieldKind::Value, None, None);
        }
    }
    found.all
}

/// Where two values differ, as [`differing`].
#[must_use]
pub fn differing_values(served: RawBsonRef<'_>, shadow: RawBsonRef<'_>, most: usize) -> Vec<FieldDifference> {
    let mut found = Found { all: Vec::new(), most };
    found.values("", served, shadow, DEEPEST);
    found.all
}

struct Found {
    all: Vec<FieldDifference>,
    most: usize,
}

impl Found {
    fn add(
        &mut self,
        path: &str,
        kind: FieldKind,
        served: Option<RawBsonRef<'_>>,
        shadow: Option<RawBsonRef<'_>>,
    ) {
        if self.all.len() < self.most {
            let own = |value: RawBsonRef<'_>| RawBson::from(value);
            let (served, shadow) = (served.map(own), shadow.map(own));
            self.all.push(FieldDifference { path: path.to_owned(), kind, served, shadow });
        }
    }

    fn documents(&mut self, path: &str, served: &RawDocument, shadow: &RawDocument, depth: u32) {
        let (Some(of_served), Some(of_shadow), Some(depth)) =
            (elements(served), elements(shadow), depth.checked_sub(1))
        else {
            let whole = (RawBsonRef::Document(served), RawBsonRef::Document(shadow));
            self.add(path, FieldKind::Value, Some(whole.0), Some(whole.1));
            return;
        };
        let places: HashMap<Name<'_>, usize> =
            of_shadow.iter().enumerate().map(|(place, (name, _))| (*name, place)).collect();
        let mut met = Vec::with_capacity(of_served.len());
        for (name, value) in &of_served {
            match places.get(name) {
                Some(place) => {
                    met.push(*place);
                    self.values(&below(path, name.0), *value, of_shadow[*place].1, depth);
                }
                None => self.add(&below(path, name.0), FieldKind::Missing, Some(*value), None),
            }
        }
        if !met.is_sorted() {
            let whole = (RawBsonRef::Document(served), RawBsonRef::Document(shadow));
            self.add(path, FieldKind::FieldOrder, Some(whole.0), Some(whole.1));
        }
        let met: HashSet<usize> = met.into_iter().collect();
        for (place, (name, value)) in of_shadow.iter().enumerate() {
            if met.contains(&place) {
                continue;
            }
            self.add(&below(path, name.0), FieldKind::Extra, None, Some(*value));
        }
    }

    fn values(&mut self, path: &str, served: RawBsonRef<'_>, shadow: RawBsonRef<'_>, depth: u32) {
        match (served, shadow) {
            (RawBsonRef::Document(of_served), RawBsonRef::Document(of_shadow)) => {
                if of_served.as_bytes() != of_shadow.as_bytes() {
                    self.documents(path, of_served, of_shadow, depth);
                }
            }
            (RawBsonRef::Array(of_served), RawBsonRef::Array(of_shadow)) => {
                if of_served.as_bytes() != of_shadow.as_bytes() {
                    // An array is stored as a document whose names are numbers.
                    let documents = (
                        RawDocument::from_bytes(of_served.as_bytes()),
                        RawDocument::from_bytes(of_shadow.as_bytes()),
                    );
                    match documents {
                        (Ok(of_served), Ok(of_shadow)) => self.documents(path, of_served, of_shadow, depth),
                        _ => self.add(path, FieldKind::Value, Some(served), Some(shadow)),
                    }
                }
            }
            _ => {
                if let Some(kind) = scalar(served, shadow) {
                    self.add(path, kind, Some(served), Some(shadow));
                }
            }
        }
    }
}

/// A field's name, and how many of that name come before it: a document may have several.
type Name<'a> = (&'a str, usize);

fn elements(document: &RawDocument) -> Option<Vec<(Name<'_>, RawBsonRef<'_>)>> {
    let mut all: Vec<(Name<'_>, RawBsonRef<'_>)> = Vec::new();
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for element in document {
        let (name, value) = element.ok()?;
        let before = seen.entry(name.as_str()).or_insert(0);
        all.push(((name.as_str(), *before), value));
        *before += 1;
    }
    Some(all)
}

fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// In what way two values differ that are not both documents or both arrays; `None`: not at all.
fn scalar(served: RawBsonRef<'_>, shadow: RawBsonRef<'_>) -> Option<FieldKind> {
    use RawBsonRef::{Decimal128, Double};
    match (served, shadow) {
        (Double(left), Double(right)) => {
            if left.to_bits() == right.to_bits() {
                None
            } else if left.is_nan() || right.is_nan() {
                Some(FieldKind::Nan)
            } else if left == right {
                Some(FieldKind::NegativeZero)
            } else {
                Some(FieldKind::Value)
            }
        }
        (Decimal128(left), Decimal128(right)) => {
            let one_value = || key_of(served).is_some_and(|key| key_of(shadow) == Some(key));
            if left.bytes() == right.bytes() {
                None
            } else if left.to_string() == "NaN" || right.to_string() == "NaN" {
                Some(FieldKind::Nan)
            } else if one_value() {
                Some(FieldKind::Decimal128)
            } else {
                Some(FieldKind::Value)
            }
        }
        _ if served.element_type() != shadow.element_type() => Some(FieldKind::Type),
        _ => (served != shadow).then_some(FieldKind::Value),
    }
}

#[cfg(test)]
#[path = "fields_tests.rs"]
pub(crate) mod tests;
