//! The order that a query asks for, as servers understand it.

use std::cmp::Ordering;

use bson::raw::RawBsonRef;
use bson::{Bson, RawDocument};

use crate::policy::order::{compare, compare_all};

/// The fields that a query sorts by, each with whether it ascends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sort(Vec<(String, bool)>);

impl Sort {
    /// The order that `sort` asks for; `None` where it names none of fields alone (`$natural`, `$meta`).
    #[must_use]
    pub fn of(sort: &RawDocument) -> Option<Self> {
        let mut fields = Vec::new();
        for element in sort {
            let (name, direction) = element.ok()?;
            let ascends = match direction {
                RawBsonRef::Int32(number) => number > 0,
                RawBsonRef::Int64(number) => number > 0,
                RawBsonRef::Double(number) => number > 0.0,
                _ => return None,
            };
            if name.as_str().starts_with('$') {
                return None;
            }
            fields.push((name.as_str().to_owned(), ascends));
        }
        (!fields.is_empty()).then_some(Self(fields))
    }

    /// No two documents of a collection stand at one place of it.
    #[must_use]
    pub fn is_total(&self) -> bool {
        self.0.iter().any(|(name, _)| name == "_id")
    }

    /// What `document` is sorted by. Fields that a projection took away count as missing: then more documents
    /// stand at one place than the server knows of.
    #[must_use]
    pub fn key(&self, document: &RawDocument) -> Vec<Bson> {
        let one = |(path, ascends): &(String, bool)| {
            let mut values = Vec::new();
            let steps: Vec<&str> = path.split('.').collect();
            gather(RawBsonRef::Document(document), &steps, &mut values);
            // Of the elements of an array the first in the order counts.
            let first = values.into_iter().reduce(|best, other| {
                let before =
                    compare(&other, &best) == if *ascends { Ordering::Less } else { Ordering::Greater };
                if before { other } else { best }
            });
            first.unwrap_or(Bson::Null)
        };
        self.0.iter().map(one).collect()
    }

    /// The order of two keys.
    #[must_use]
    pub fn order(&self, left: &[Bson], right: &[Bson]) -> Ordering {
        let pairs = self.0.iter().zip(left.iter().zip(right)).map(|((_, ascends), (left, right))| {
            let order = compare(left, right);
            if *ascends { order } else { order.reverse() }
        });
        let differing = pairs.into_iter().find(|order| *order != Ordering::Equal);
        differing.unwrap_or_else(|| compare_all(left, right))
    }

    /// Whether `keys` ascend in it.
    #[must_use]
    pub fn holds(&self, keys: &[Vec<Bson>]) -> bool {
        keys.windows(2).all(|pair| self.order(&pair[0], &pair[1]) != Ordering::Greater)
    }
}

fn gather(value: RawBsonRef<'_>, steps: &[&str], found: &mut Vec<Bson>) {
    let Some((step, below)) = steps.split_first() else {
        let RawBsonRef::Array(array) = value else {
            found.extend(Bson::try_from(value).ok());
            return;
        };
        let before = found.len();
        found.extend(array.into_iter().flatten().filter_map(|item| Bson::try_from(item).ok()));
        if found.len() == before {
            // An empty array comes before null.
            found.push(Bson::Undefined);
        }
        return;
    };
    match value {
        RawBsonRef::Document(document) => match document.get(step) {
            Ok(Some(value)) => gather(value, below, found),
            _ => found.push(Bson::Null),
        },
        RawBsonRef::Array(array) => {
            let numbered = step.parse().ok().and_then(|number| array.get(number).ok().flatten());
            if let Some(item) = numbered {
                gather(item, below, found);
                return;
            }
            let documents =
                array.into_iter().flatten().filter(|item| matches!(item, RawBsonRef::Document(_)));
            documents.for_each(|item| gather(item, steps, found));
        }
        _ => found.push(Bson::Null),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn keys_are_found_on_their_paths() {
        let sort = Sort::of(&rawdoc! { "a.b": 1, "c": -1 }).unwrap();
        assert!(!sort.is_total());
        let key = |document: &RawDocument| sort.key(document);
        assert_eq!(key(&rawdoc! { "a": { "b": 2 }, "c": "x" }), [Bson::Int32(2), Bson::from("x")]);
        assert_eq!(
            key(&rawdoc! { "a": [{ "b": 5 }, { "b": 3 }], "c": [1, 9, 4] }),
            [Bson::Int32(3), Bson::Int32(9)]
        );
        assert_eq!(key(&rawdoc! { "a": 1, "c": [] }), [Bson::Null, Bson::Undefined]);
        assert_eq!(key(&rawdoc! {}), [Bson::Null, Bson::Null]);
    }

    #[test]
    fn an_order_holds_among_equal_keys_too() {
        let sort = Sort::of(&rawdoc! { "a": -1, "_id": 1 }).unwrap();
        assert!(sort.is_total());
        let keys = |documents: &[(i32, i32)]| -> Vec<_> {
            documents.iter().map(|(a, id)| sort.key(&rawdoc! { "_id": *id, "a": *a })).collect()
        };
        assert!(sort.holds(&keys(&[(3, 1), (3, 2), (1, 0)])));
        assert!(!sort.holds(&keys(&[(3, 2), (3, 1)])));
        assert!(!sort.holds(&keys(&[(1, 1), (2, 2)])));
    }

    #[test]
    fn what_is_not_sorted_by_fields_is_no_order() {
        assert_eq!(Sort::of(&rawdoc! { "$natural": 1 }), None);
        assert_eq!(Sort::of(&rawdoc! { "score": { "$meta": "textScore" } }), None);
        assert_eq!(Sort::of(&rawdoc! {}), None);
    }
}
