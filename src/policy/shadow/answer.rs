//! Whether two replies to one read say the same.

use std::collections::HashMap;

use bson::RawDocument;
use bson::raw::{RawArrayBuf, RawBson, RawBsonRef, RawDocumentBuf};
use xxhash_rust::xxh3::xxh3_128;

use super::ends::{Cut, Ends, Replies};
use super::sorting::Sort;
use crate::model::key::Key;
use crate::policy::canonical::key_of;
use crate::policy::fields::{FieldDifference, differing, differing_values};

/// Places told of one document.
pub const MOST_FIELDS: usize = 20;
/// Sums of the same doubles differ by less than this part of them.
const ROUNDING: f64 = 1e-12;

/// What a read came to, all batches of a cursor together.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Documents of a cursor.
    Documents(Vec<RawDocumentBuf>),
    /// A number of documents.
    Count(RawBson),
    /// Different values of a field.
    Values(Vec<RawBson>),
    /// `ok: 0` with this code.
    Error(i32),
}

/// What a query says about the order and the choice of its documents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// The order that it asks for.
    pub sort: Option<Sort>,
    /// It takes a part of a longer list: which of several documents at one place of the order are in it is not said.
    pub cut: Option<Cut>,
    /// The reply does not show all that it is sorted by: what stands at one place of the order cannot be seen.
    pub hidden: bool,
    /// It adds up numbers, in the order in which a cluster meets its documents: the last bits of a double depend on it.
    pub rounds: bool,
}

/// Kinds of differences between two replies. Missing and extra are seen from the cluster that served the read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Its shadow lacks a document.
    Missing,
    /// Only its shadow has a document.
    Extra,
    /// Both have the document, with differences in its fields.
    Changed,
    /// The same documents in an order that the query does not allow.
    Order,
    /// Another number.
    Count,
    /// A value that only one of them found.
    Values,
    /// Only one of them failed, or with another code.
    Error,
}

impl Kind {
    /// As reports name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Changed => "changed",
            Self::Order => "order",
            Self::Count => "count",
            Self::Values => "values",
            Self::Error => "error_code",
        }
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Its kind.
    pub kind: Kind,
    /// The document's `_id`, where it has one.
    pub key: Option<Key>,
    /// Where within it.
    pub fields: Vec<FieldDifference>,
    /// What stands for that which was served; `None`: nothing.
    pub served: Option<u128>,
    /// What stands for that which the shadow has.
    pub shadow: Option<u128>,
}

/// What two replies are to each other.
#[derive(Debug, Clone, PartialEq)]
pub enum Comparison {
    /// The same, in one order.
    Equal,
    /// The same, in another order that the query allows.
    Permuted,
    /// They differ at most in which documents at one place of the order they took, and do not show whether they do.
    Untold,
    /// They differ.
    Different(Vec<Difference>),
}

/// Compares the reply that was `served` with that of its `shadow`.
#[must_use]
pub fn compare(served: &Answer, shadow: &Answer, terms: &Terms) -> Comparison {
    match (served, shadow) {
        (Answer::Documents(served), Answer::Documents(shadow)) => documents(served, shadow, terms),
        (Answer::Values(served), Answer::Values(shadow)) => values(served, shadow),
        (Answer::Count(left), Answer::Count(right)) => {
            // A number of documents is one number, whatever type a server writes it in.
            let (left, right) = (left.as_raw_bson_ref(), right.as_raw_bson_ref());
            if left == right || key_of(left).is_some_and(|key| key_of(right) == Some(key)) {
                return Comparison::Equal;
            }
            whole(Kind::Count, differing_values(left, right, 1), digest(left), digest(right))
        }
        (Answer::Error(left), Answer::Error(right)) if left == right => Comparison::Equal,
        _ => {
            let (left, right) = (code(served), code(shadow));
            let fields = differing_values(RawBsonRef::Int32(left), RawBsonRef::Int32(right), 1);
            let of = |code: i32| digest(RawBsonRef::Int32(code));
            whole(Kind::Error, fields, of(left), of(right))
        }
    }
}

fn code(answer: &Answer) -> i32 {
    if let Answer::Error(code) = answer { *code } else { 0 }
}

fn whole(kind: Kind, fields: Vec<FieldDifference>, served: u128, shadow: u128) -> Comparison {
    Comparison::Different(vec![Difference {
        kind,
        key: None,
        fields,
        served: Some(served),
        shadow: Some(shadow),
    }])
}

fn digest(value: RawBsonRef<'_>) -> u128 {
    let mut array = RawArrayBuf::new();
    array.push(RawBson::from(value));
    xxh3_128(array.as_bytes())
}

/// Distinct values come in no order, and of several spellings of one number a server shows whichever it met first.
fn values(served: &[RawBson], shadow: &[RawBson]) -> Comparison {
    if served == shadow {
        return Comparison::Equal;
    }
    let identity = |value: &RawBson| {
        let value = value.as_raw_bson_ref();
        key_of(value).map_or_else(|| digest(value), |key| key.fingerprint())
    };
    let (of_served, of_shadow): (HashMap<u128, &RawBson>, HashMap<u128, &RawBson>) = (
        served.iter().map(|value| (identity(value), value)).collect(),
        shadow.iter().map(|value| (identity(value), value)).collect(),
    );
    let only = |here: &HashMap<u128, &RawBson>, there: &HashMap<u128, &RawBson>| -> Vec<(u128, RawBson)> {
        let only = here.iter().filter(|(identity, _)| !there.contains_key(identity));
        only.map(|(identity, value)| (*identity, (*value).clone())).collect()
    };
    let missing = only(&of_served, &of_shadow).into_iter().map(|(identity, value)| Difference {
        kind: Kind::Values,
        key: key_of(value.as_raw_bson_ref()),
        fields: Vec::new(),
        served: Some(identity),
        shadow: None,
    });
    let extra = only(&of_shadow, &of_served).into_iter().map(|(identity, value)| Difference {
        kind: Kind::Values,
        key: key_of(value.as_raw_bson_ref()),
        fields: Vec::new(),
        served: None,
        shadow: Some(identity),
    });
    let mut all: Vec<Difference> = missing.chain(extra).collect();
    all.sort_by(|left, right| left.key.cmp(&right.key));
    if all.is_empty() { Comparison::Permuted } else { Comparison::Different(all) }
}

fn documents(served: &[RawDocumentBuf], shadow: &[RawDocumentBuf], terms: &Terms) -> Comparison {
    let same = |(left, right): (&RawDocumentBuf, &RawDocumentBuf)| left.as_bytes() == right.as_bytes();
    if served.len() == shadow.len() && served.iter().zip(shadow).all(same) {
        return Comparison::Equal;
    }
    let Unmatched { mut pairs, by_place, missing, extra } = unmatched(served, shadow);
    let is_rounded = |(left, right): &(&RawDocument, &RawDocument)| {
        terms.rounds && differing(left, right, MOST_FIELDS).iter().all(is_rounding)
    };
    pairs.retain(|pair| !is_rounded(pair));
    let replies = Replies { served, shadow, terms };
    let ends = if by_place {
        let (left, right): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
        replies.at_the_ends(&left, &right)
    } else {
        replies.at_the_ends(&missing, &extra)
    };
    if by_place && ends != Ends::Differ {
        pairs.clear();
    }
    let mut all: Vec<Difference> = pairs.iter().map(|(left, right)| changed(left, right)).collect();
    if ends == Ends::Differ {
        all.extend(missing.iter().map(|document| alone(Kind::Missing, document)));
        all.extend(extra.iter().map(|document| alone(Kind::Extra, document)));
    }
    if !all.is_empty() {
        return Comparison::Different(all);
    }
    if ends == Ends::Untold {
        return Comparison::Untold;
    }
    if replies.misplaced() {
        return whole(Kind::Order, Vec::new(), in_order(served), in_order(shadow));
    }
    Comparison::Permuted
}

fn in_order(documents: &[RawDocumentBuf]) -> u128 {
    let digests = documents.iter().map(|document| xxh3_128(document.as_bytes()));
    digests.fold(0, |all, one| all.rotate_left(5) ^ one)
}

struct Unmatched<'a> {
    /// One `_id`, or one place where there are none, and other bytes.
    pairs: Vec<(&'a RawDocument, &'a RawDocument)>,
    /// They are pairs by their place alone.
    by_place: bool,
    missing: Vec<&'a RawDocument>,
    extra: Vec<&'a RawDocument>,
}

/// What is left once documents that are equal byte for byte are taken away, as often as they are there; matched by
/// `_id`.
fn unmatched<'a>(served: &'a [RawDocumentBuf], shadow: &'a [RawDocumentBuf]) -> Unmatched<'a> {
    let mut counts: HashMap<&[u8], usize> = HashMap::new();
    shadow.iter().for_each(|document| *counts.entry(document.as_bytes()).or_default() += 1);
    let mut left = Vec::new();
    for document in served {
        match counts.get_mut(document.as_bytes()) {
            Some(count) if *count > 0 => *count -= 1,
            _ => left.push(&**document),
        }
    }
    // The last ones of several that are equal are those that are too many: it makes no difference which.
    let mut of_shadow: Vec<&RawDocument> = Vec::new();
    for document in shadow.iter().rev() {
        if let Some(count) = counts.get_mut(document.as_bytes()).filter(|count| **count > 0) {
            *count -= 1;
            of_shadow.push(&**document);
        }
    }
    of_shadow.reverse();
    let without_ids = left.iter().chain(&of_shadow).all(|document| id_of(document).is_none());
    if without_ids && served.len() == shadow.len() {
        let pairs = left.into_iter().zip(of_shadow).collect();
        return Unmatched { pairs, by_place: true, missing: Vec::new(), extra: Vec::new() };
    }
    let mut by_key: HashMap<Option<Key>, Vec<&RawDocument>> = HashMap::new();
    of_shadow.iter().rev().for_each(|document| by_key.entry(id_of(document)).or_default().push(*document));
    let (mut pairs, mut missing) = (Vec::new(), Vec::new());
    for document in left {
        let key = id_of(document);
        match by_key.get_mut(&key).filter(|_| key.is_some()).and_then(Vec::pop) {
            Some(twin) => pairs.push((document, twin)),
            None => missing.push(document),
        }
    }
    let paired: Vec<*const RawDocument> = pairs.iter().map(|(_, twin)| std::ptr::from_ref(*twin)).collect();
    let is_left = |document: &&RawDocument| !paired.iter().any(|twin| std::ptr::eq(*twin, *document));
    let extra = of_shadow.into_iter().filter(is_left).collect();
    Unmatched { pairs, by_place: false, missing, extra }
}

fn id_of(document: &RawDocument) -> Option<Key> {
    key_of(document.get("_id").ok().flatten()?)
}

fn changed(served: &RawDocument, shadow: &RawDocument) -> Difference {
    Difference {
        kind: Kind::Changed,
        key: id_of(served),
        fields: differing(served, shadow, MOST_FIELDS),
        served: Some(xxh3_128(served.as_bytes())),
        shadow: Some(xxh3_128(shadow.as_bytes())),
    }
}

/// Two sums of the same doubles, added in another order.
fn is_rounding(field: &FieldDifference) -> bool {
    let (Some(RawBson::Double(left)), Some(RawBson::Double(right))) = (&field.served, &field.shadow) else {
        return false;
    };
    (left - right).abs() <= ROUNDING * left.abs().max(right.abs())
}

fn alone(kind: Kind, document: &RawDocument) -> Difference {
    let bytes = Some(xxh3_128(document.as_bytes()));
    let (served, shadow) = if kind == Kind::Missing { (bytes, None) } else { (None, bytes) };
    Difference { kind, key: id_of(document), fields: Vec::new(), served, shadow }
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
