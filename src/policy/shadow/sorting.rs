//! The order that a query asks for, as servers understand it.

use std::cmp::Ordering;

use bson::raw::{RawArray, RawBsonRef};
use bson::{Bson, RawDocument};

use crate::policy::order::{compare, rank};

/// Combinations of array elements that are looked at for the key of one document. Servers sort by fields of one array
/// only, so that there are no more of them than elements.
const MOST_COMBINATIONS: usize = 100_000;

/// The fields that a query sorts by, each with whether it ascends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sort {
    fields: Vec<(String, bool)>,
    /// Strings are in the order of a language, which is not known here.
    collated: bool,
    /// Several documents may have one `_id`.
    repeats: bool,
}

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
        (!fields.is_empty()).then_some(Self { fields, ..Self::default() })
    }

    /// The same order with strings as a language has them, if `collated`.
    #[must_use]
    pub fn under_collation(mut self, collated: bool) -> Self {
        self.collated = collated;
        self
    }

    /// The same order of documents several of which may have one `_id`, if `repeats`.
    #[must_use]
    pub fn of_repeated_ids(mut self, repeats: bool) -> Self {
        self.repeats = repeats;
        self
    }

    /// No two documents stand at one place of it. Under a collation two spellings stand at one.
    #[must_use]
    pub fn is_total(&self) -> bool {
        !self.collated && !self.repeats && self.paths().any(|path| path == "_id")
    }

    /// The fields, with a dot between names.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|(path, _)| path.as_str())
    }

    /// What `document` is sorted by: a value for each field, null where it is not there.
    ///
    /// Of an array that fields lie in each element makes one key, with all of these fields; the first in the order counts.
    #[must_use]
    pub fn key(&self, document: &RawDocument) -> Vec<Bson> {
        let steps: Vec<Vec<&str>> = self.paths().map(|path| path.split('.').collect()).collect();
        let places = steps.iter().map(|steps| place_of(RawBsonRef::Document(document), steps)).collect();
        let mut first = First { sort: self, key: None, left: MOST_COMBINATIONS };
        first.look(places);
        first.key.unwrap_or_else(|| vec![Bson::Null; self.fields.len()])
    }

    /// The order of two keys; `None`: it depends on the order of strings in a language.
    #[must_use]
    pub fn order(&self, left: &[Bson], right: &[Bson]) -> Option<Ordering> {
        for ((_, ascends), (left, right)) in self.fields.iter().zip(left.iter().zip(right)) {
            let order = compare(left, right);
            if order == Ordering::Equal {
                continue;
            }
            if self.collated && rank(left) == rank(right) && has_text(left) {
                return None;
            }
            return Some(if *ascends { order } else { order.reverse() });
        }
        Some(Ordering::Equal)
    }

    /// Whether two keys stand at one place of it, as far as that can be told.
    #[must_use]
    pub fn may_tie(&self, left: &[Bson], right: &[Bson]) -> bool {
        self.order(left, right).is_none_or(Ordering::is_eq)
    }

    /// Whether `keys` ascend in it, as far as that can be told.
    #[must_use]
    pub fn holds(&self, keys: &[Vec<Bson>]) -> bool {
        keys.windows(2).all(|pair| self.order(&pair[0], &pair[1]).is_none_or(Ordering::is_le))
    }
}

/// Whether the order of a value may depend on a language.
fn has_text(value: &Bson) -> bool {
    matches!(value, Bson::String(_) | Bson::Symbol(_) | Bson::Document(_) | Bson::Array(_))
}

/// Where a field of a key was found.
#[derive(Clone)]
enum Place<'a> {
    Nowhere,
    Empty,
    Value(RawBsonRef<'a>),
    /// In the elements of an array, below these steps.
    Within(&'a RawArray, &'a [&'a str]),
}

fn place_of<'a>(value: RawBsonRef<'a>, steps: &'a [&'a str]) -> Place<'a> {
    match (value, steps) {
        (RawBsonRef::Array(array), []) => Place::Within(array, steps),
        (value, []) => Place::Value(value),
        (RawBsonRef::Document(document), [step, below @ ..]) => match document.get(step) {
            Ok(Some(value)) => place_of(value, below),
            _ => Place::Nowhere,
        },
        (RawBsonRef::Array(array), [step, below @ ..]) => {
            let numbered = step.parse().ok().and_then(|number| array.get(number).ok().flatten());
            numbered.map_or(Place::Within(array, steps), |item| place_of(item, below))
        }
        _ => Place::Nowhere,
    }
}

/// The same for an element of an array: one that is an array itself is a value.
fn place_in<'a>(element: RawBsonRef<'a>, steps: &'a [&'a str]) -> Place<'a> {
    match (element, steps) {
        (value, []) => Place::Value(value),
        (RawBsonRef::Document(_), _) => place_of(element, steps),
        _ => Place::Nowhere,
    }
}

/// The first key of a document.
struct First<'s> {
    sort: &'s Sort,
    key: Option<Vec<Bson>>,
    left: usize,
}

impl First<'_> {
    fn look<'a>(&mut self, places: Vec<Place<'a>>) {
        let array = places.iter().find_map(|place| match place {
            Place::Within(array, _) => Some(*array),
            _ => None,
        });
        let Some(array) = array else { return self.take(places) };
        let inside =
            |place: &Place<'a>| matches!(place, Place::Within(other, _) if std::ptr::eq(*other, array));
        let mut is_empty = true;
        for element in array.into_iter().flatten() {
            if self.left == 0 {
                return;
            }
            is_empty = false;
            let one = places.iter().map(|place| match place {
                Place::Within(_, steps) if inside(place) => place_in(element, steps),
                place => place.clone(),
            });
            self.look(one.collect());
        }
        if is_empty {
            let one = places.iter().map(|place| match place {
                Place::Within(_, []) if inside(place) => Place::Empty,
                Place::Within(..) if inside(place) => Place::Nowhere,
                place => place.clone(),
            });
            self.look(one.collect());
        }
    }

    fn take(&mut self, places: Vec<Place<'_>>) {
        self.left = self.left.saturating_sub(1);
        let value = |place: Place<'_>| match place {
            Place::Value(value) => Bson::try_from(value).unwrap_or(Bson::Null),
            // An empty array comes before null.
            Place::Empty => Bson::Undefined,
            Place::Nowhere | Place::Within(..) => Bson::Null,
        };
        let key: Vec<Bson> = places.into_iter().map(value).collect();
        if self.key.as_ref().is_none_or(|first| self.sort.order(&key, first) == Some(Ordering::Less)) {
            self.key = Some(key);
        }
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
        assert_eq!(key(&rawdoc! { "a": [{ "b": 5 }, { "b": 3 }], "c": 9 }), [Bson::Int32(3), Bson::Int32(9)]);
        assert_eq!(key(&rawdoc! { "a": 1, "c": [1, 9, 4] }), [Bson::Null, Bson::Int32(9)]);
        assert_eq!(key(&rawdoc! { "a": 1, "c": [] }), [Bson::Null, Bson::Undefined]);
        assert_eq!(key(&rawdoc! { "a": [], "c": [[7]] })[0], Bson::Null);
        assert_eq!(
            key(&rawdoc! { "a": [{ "b": 5 }, 3] }),
            [Bson::Null, Bson::Null],
            "an element without the field"
        );
        assert_eq!(key(&rawdoc! {}), [Bson::Null, Bson::Null]);
    }

    #[test]
    fn fields_in_one_array_belong_to_one_element() {
        let elements = || rawdoc! { "a": [{ "b": 1, "c": 9 }, { "b": 0, "c": 5 }, { "b": 0, "c": 7 }] };
        let key = |sort: &RawDocument| Sort::of(sort).unwrap().key(&elements());
        assert_eq!(key(&rawdoc! { "a.b": 1, "a.c": 1 }), [Bson::Int32(0), Bson::Int32(5)]);
        assert_eq!(key(&rawdoc! { "a.b": 1, "a.c": -1 }), [Bson::Int32(0), Bson::Int32(7)]);
        assert_eq!(key(&rawdoc! { "a.b": -1, "a.c": 1 }), [Bson::Int32(1), Bson::Int32(9)]);
        assert_eq!(key(&rawdoc! { "a.1.c": 1 }), [Bson::Int32(5)]);
        // Not what servers sort by; it ends all the same.
        let both = Sort::of(&rawdoc! { "a": 1, "b": 1 }).unwrap();
        let many: bson::raw::RawArrayBuf = (0..2000).map(bson::raw::RawBson::Int32).collect();
        assert_eq!(both.key(&rawdoc! { "a": many.clone(), "b": many }), [Bson::Int32(0), Bson::Int32(0)]);
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
        assert!(!sort.clone().under_collation(true).is_total());
        assert!(!sort.of_repeated_ids(true).is_total());
    }

    #[test]
    fn one_number_and_nothing_at_all_stand_at_one_place() {
        let sort = Sort::of(&rawdoc! { "a": 1 }).unwrap();
        let key = |document: &RawDocument| sort.key(document);
        let decimal: bson::Decimal128 = "5.00".parse().unwrap();
        let five =
            [rawdoc! { "a": 5 }, rawdoc! { "a": 5_i64 }, rawdoc! { "a": 5.0 }, rawdoc! { "a": decimal }];
        let nothing = [rawdoc! {}, rawdoc! { "a": bson::RawBson::Null }];
        let nan = [rawdoc! { "a": f64::NAN }, rawdoc! { "a": -f64::NAN }];
        for group in [&five[..], &nothing, &nan] {
            assert!(group.iter().all(|one| sort.may_tie(&key(one), &key(&group[0]))), "{group:?}");
        }
        assert!(!sort.may_tie(&key(&five[0]), &key(&nothing[0])));
    }

    #[test]
    fn strings_under_a_collation_are_in_no_order_that_is_known() {
        let sort = Sort::of(&rawdoc! { "a": 1, "b": 1 }).unwrap().under_collation(true);
        let key = |document: &RawDocument| sort.key(document);
        let (upper, lower) = (key(&rawdoc! { "a": "A", "b": 2 }), key(&rawdoc! { "a": "a", "b": 1 }));
        assert_eq!(sort.order(&upper, &lower), None);
        assert!(sort.holds(&[upper.clone(), lower.clone()]) && sort.holds(&[lower, upper.clone()]));
        let number = key(&rawdoc! { "a": 1, "b": 1 });
        assert_eq!(sort.order(&number, &upper), Some(Ordering::Less));
        assert_eq!(sort.order(&upper, &key(&rawdoc! { "a": "A", "b": 1 })), Some(Ordering::Greater));
    }

    #[test]
    fn what_is_not_sorted_by_fields_is_no_order() {
        assert_eq!(Sort::of(&rawdoc! { "$natural": 1 }), None);
        assert_eq!(Sort::of(&rawdoc! { "score": { "$meta": "textScore" } }), None);
        assert_eq!(Sort::of(&rawdoc! {}), None);
    }
}
