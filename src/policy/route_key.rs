//! What the slot of a document is computed from: its `_id`, or a field that the application never changes.
//!
//! Everything that asks for the slot of a document, a key or a command asks [`By`], so that two parts of the
//! product cannot disagree about whose a document is.

use bson::RawDocument;
use bson::raw::{RawBsonRef, RawDocumentBuf, cstr};

use super::canonical::key_of;
use super::key_ranges::KeyRanges;
use super::statement::value_in;
use crate::model::key::Key;
use crate::model::side::Side;
use crate::model::slots::Slot;

/// A field of the top level that decides a document's slot in place of `_id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteKey(bson::raw::CString);

impl RouteKey {
    /// Reads what an operator asks for.
    ///
    /// # Errors
    /// In words, what is wrong with it.
    pub fn parse(field: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("route_key: {field:?} {why}"));
        if field == "_id" {
            return wrong("is what counts without one; leave it out");
        }
        if field.contains('.') {
            return wrong("is a path; only a field of the top level can be a route key");
        }
        if field.is_empty() || field.starts_with('$') {
            return wrong("is no name of a field");
        }
        bson::raw::CString::try_from(field).map(Self).or_else(|_| wrong("is no name of a field"))
    }

    /// The field's name.
    #[must_use]
    pub fn field(&self) -> &str {
        self.0.as_str()
    }

    /// A document's value; missing means null.
    #[must_use]
    pub fn value_of<'a>(&self, document: &'a RawDocument) -> RawBsonRef<'a> {
        document.get(self.field()).ok().flatten().unwrap_or(RawBsonRef::Null)
    }

    /// The value that a filter names; under another collation than simple a text is none.
    #[must_use]
    pub fn named_in(&self, filter: &RawDocument, simple: bool) -> Option<Key> {
        value_in(filter, self.field(), simple).filter(|key| !is_unfit(key.value()))
    }

    /// A condition that holds for a document as long as its route key is that of `document`.
    #[must_use]
    pub fn condition(&self, document: &RawDocument) -> RawDocumentBuf {
        let mut equal = RawDocumentBuf::new();
        match self.value_of(document) {
            RawBsonRef::Undefined => equal.append(cstr!("$eq"), RawBsonRef::Null),
            value => equal.append(cstr!("$eq"), value),
        }
        let mut condition = RawDocumentBuf::new();
        condition.append(self.0.clone(), equal);
        condition
    }

    /// A projection to what tells key and slot of a document.
    #[must_use]
    pub fn projection(&self) -> RawDocumentBuf {
        let mut projection = bson::rawdoc! { "_id": 1 };
        projection.append(self.0.clone(), 1);
        projection
    }

    /// A filter for documents whose value is an array, which has no slot of its own.
    #[must_use]
    pub fn arrays(&self) -> RawDocumentBuf {
        let mut filter = RawDocumentBuf::new();
        filter.append(self.0.clone(), bson::rawdoc! { "$type": "array" });
        filter
    }

    /// Whether two documents of one `_id` on two clusters are out of the question: servers and drivers make such
    /// `_id`s at random, or it names the route key itself.
    #[must_use]
    pub fn suits_id_of(&self, document: &RawDocument) -> bool {
        let id = document.get("_id").ok().flatten().unwrap_or(RawBsonRef::Null);
        match id {
            RawBsonRef::ObjectId(_) => true,
            RawBsonRef::Binary(binary) => {
                let uuid = [bson::spec::BinarySubtype::Uuid, bson::spec::BinarySubtype::UuidOld];
                uuid.contains(&binary.subtype)
            }
            RawBsonRef::Document(parts) => {
                let part = parts.get(self.field()).ok().flatten();
                part.is_some_and(|part| {
                    key_of(part).is_some() && key_of(part) == key_of(self.value_of(document))
                })
            }
            _ => false,
        }
    }
}

/// Whether a document with this route key cannot be taken: an array is found by each of its members, and a
/// server puts the time in the place of an empty timestamp.
#[must_use]
pub fn is_unfit(value: RawBsonRef<'_>) -> bool {
    matches!(value, RawBsonRef::Array(_))
        || matches!(value, RawBsonRef::Timestamp(time) if time.time == 0 && time.increment == 0)
}

static NO_RANGES: KeyRanges = KeyRanges::none();

/// What the slots of a namespace are computed from: the `_id` or a field, and the ranges that are slots of their own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct By<'a> {
    field: Option<&'a RouteKey>,
    ranges: &'a KeyRanges,
}

impl<'a> By<'a> {
    /// The `_id`, without ranges.
    pub const ID: By<'static> = By { field: None, ranges: &NO_RANGES };

    /// A field, or the `_id` without one.
    #[must_use]
    pub const fn new(field: Option<&'a RouteKey>, ranges: &'a KeyRanges) -> Self {
        Self { field, ranges }
    }

    /// The field, if it is one.
    #[must_use]
    pub const fn field(self) -> Option<&'a RouteKey> {
        self.field
    }

    /// The slot of a document. A value of a field that no filter can name counts as null: nothing but a filter that
    /// names no key meets it.
    #[must_use]
    pub fn of_document(self, document: &RawDocument) -> Option<Slot> {
        let key = match self.field {
            None => key_of(document.get("_id").ok().flatten()?)?,
            Some(field) => key_of(field.value_of(document)).or_else(|| key_of(RawBsonRef::Null))?,
        };
        Some(self.ranges.slot_of(&key))
    }

    /// The slot of the document of a key, if that is known without the document.
    #[must_use]
    pub fn of_key(self, key: &Key) -> Option<Slot> {
        match self.field {
            None => Some(self.ranges.slot_of(key)),
            Some(_) => None,
        }
    }

    /// The slot of all that a filter can match, if it names one.
    #[must_use]
    pub fn of_filter(self, filter: &RawDocument, simple: bool) -> Option<Slot> {
        let key = match self.field {
            None => value_in(filter, "_id", simple),
            Some(field) => field.named_in(filter, simple),
        };
        key.map(|key| self.ranges.slot_of(&key))
    }
}

/// Whose an `_id` is, by the documents that both clusters have of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Neither has one.
    Nobody,
    /// All of them are this one's.
    One(Side),
    /// Of some it is not known at the moment.
    Unknown,
    /// They have different route keys, whose authorities differ.
    Several,
}

/// From the authority of each document of an `_id`, wherever it was found.
#[must_use]
pub fn owner(authorities: impl IntoIterator<Item = Option<Side>>) -> Owner {
    authorities.into_iter().fold(Owner::Nobody, |owner, authority| match (owner, authority) {
        (Owner::Unknown, _) | (_, None) => Owner::Unknown,
        (Owner::Nobody, Some(side)) => Owner::One(side),
        (Owner::One(known), Some(side)) if known == side => owner,
        _ => Owner::Several,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::key_ranges::KeyRange;
    use bson::{doc, oid::ObjectId, rawdoc};

    fn tenant() -> RouteKey {
        RouteKey::parse("tenant").unwrap()
    }

    #[test]
    fn only_a_field_of_the_top_level_can_be_one() {
        for wrong in ["_id", "a.b", "", "$a", "a\0b"] {
            assert!(RouteKey::parse(wrong).unwrap_err().starts_with("route_key: "), "{wrong:?}");
        }
        assert_eq!(tenant().field(), "tenant");
    }

    #[test]
    fn a_document_and_a_filter_for_it_have_one_slot() {
        let tenant = tenant();
        let by = By::new(Some(&tenant), &NO_RANGES);
        let agree = |document: &RawDocument, filter: &RawDocument| {
            by.of_filter(filter, true).is_some_and(|slot| Some(slot) == by.of_document(document))
        };
        assert!(agree(&rawdoc! { "_id": 1, "tenant": 7 }, &rawdoc! { "tenant": 7.0, "a": 1 }));
        assert!(agree(
            &rawdoc! { "_id": 1, "tenant": "x" },
            &rawdoc! { "$and": [{ "tenant": { "$eq": "x" } }] }
        ));
        // Missing means null.
        assert!(agree(&rawdoc! { "_id": 1 }, &rawdoc! { "tenant": null }));
        assert!(agree(&rawdoc! { "_id": 1, "tenant": null }, &rawdoc! { "tenant": null }));
        assert!(!agree(&rawdoc! { "_id": 1, "tenant": 7 }, &rawdoc! { "tenant": 8 }));
        // Two documents of one tenant lie together, whatever their ids.
        assert_eq!(
            by.of_document(&rawdoc! { "_id": 1, "tenant": 7 }),
            by.of_document(&rawdoc! { "tenant": 7, "_id": 2 })
        );
        // An `_id` alone says nothing.
        assert_eq!(by.of_filter(&rawdoc! { "_id": 1 }, true), None);
        assert_eq!(by.of_key(&key_of(RawBsonRef::Int32(1)).unwrap()), None);
        assert!(By::ID.of_filter(&rawdoc! { "_id": 1 }, true).is_some());
    }

    #[test]
    fn what_may_match_other_values_is_no_key() {
        let tenant = tenant();
        let named = |filter: RawDocumentBuf, simple| tenant.named_in(&filter, simple).is_some();
        assert!(!named(rawdoc! { "tenant": "x" }, false), "another spelling may be equal");
        assert!(named(rawdoc! { "tenant": 5 }, false), "numbers have none");
        assert!(!named(rawdoc! { "tenant": { "$gt": 5 } }, true));
        assert!(!named(rawdoc! { "tenant": { "$in": [5, 6] } }, true));
        assert!(!named(rawdoc! { "tenant": [5] }, true));
        assert!(!named(rawdoc! { "$or": [{ "tenant": 5 }] }, true));
        assert!(!named(rawdoc! { "tenant": bson::Timestamp { time: 0, increment: 0 } }, true));
    }

    #[test]
    fn ids_must_be_random_or_contain_the_route_key() {
        let suits = |document: bson::Document| {
            tenant().suits_id_of(&bson::RawDocumentBuf::try_from(&document).unwrap())
        };
        assert!(suits(doc! { "_id": ObjectId::new(), "tenant": 1 }));
        assert!(suits(doc! { "_id": bson::Uuid::new(), "tenant": 1 }));
        assert!(suits(doc! { "_id": { "tenant": 1.0, "n": 5 }, "tenant": 1 }));
        assert!(!suits(doc! { "_id": { "tenant": 2, "n": 5 }, "tenant": 1 }));
        assert!(!suits(doc! { "_id": { "n": 5 }, "tenant": 1 }));
        assert!(!suits(doc! { "_id": 5, "tenant": 1 }));
        assert!(!suits(doc! { "_id": "a-1", "tenant": 1 }));
    }

    #[test]
    fn documents_and_filters_of_a_range_lie_in_its_slot() {
        let tenant = tenant();
        let range = |name: &str, from: i32, to: i32| KeyRange {
            name: name.into(),
            from: Some(from.into()),
            to: Some(to.into()),
        };
        let ranges = KeyRanges::new(vec![range("few", 0, 10), range("more", 10, 20)]).unwrap();
        let by = By::new(Some(&tenant), &ranges);
        let (few, more) = (ranges.named("few"), ranges.named("more"));
        assert!(few.is_some() && more.is_some() && few != more);
        assert_eq!(by.of_document(&rawdoc! { "_id": 15, "tenant": 9.5 }), few);
        assert_eq!(by.of_filter(&rawdoc! { "tenant": { "$eq": 10_i64 } }, true), more);
        assert_eq!(by.of_filter(&rawdoc! { "_id": 15 }, true), None);
        let beside = by.of_document(&rawdoc! { "tenant": 20 });
        assert!(beside.is_some() && beside != few && beside != more);
        // Without the field, and where it is an array, it is null, which no range holds.
        let null = by.of_filter(&rawdoc! { "tenant": null }, true);
        assert_eq!(by.of_document(&rawdoc! { "_id": 5 }), null);
        assert_eq!(by.of_document(&rawdoc! { "_id": 5, "tenant": [5] }), null);
        assert!(null != few && null != more);
        let by_id = By::new(None, &ranges);
        assert_eq!(by_id.of_document(&rawdoc! { "_id": 15, "tenant": 9 }), more);
        assert_eq!(by_id.of_key(&key_of(RawBsonRef::Double(0.0)).unwrap()), few);
    }

    #[test]
    fn documents_of_one_id_have_one_owner_or_none() {
        use Side::{New, Old};
        assert_eq!(owner([]), Owner::Nobody);
        assert_eq!(owner([Some(New)]), Owner::One(New));
        assert_eq!(owner([Some(Old), Some(Old)]), Owner::One(Old));
        assert_eq!(owner([Some(Old), Some(New)]), Owner::Several);
        assert_eq!(owner([Some(Old), None]), Owner::Unknown);
        assert_eq!(owner([Some(Old), Some(New), None]), Owner::Unknown);
    }

    #[test]
    fn slots_of_route_keys_are_pinned() {
        // Part of the stored format, as those of `_id`s are, and the same function.
        let tenant = tenant();
        let by = By::new(Some(&tenant), &NO_RANGES);
        let slot = |document: &RawDocument| by.of_document(document).unwrap().number();
        assert_eq!((slot(&rawdoc! { "tenant": 1 }), slot(&rawdoc! { "tenant": "a" })), (362, 533));
        assert_eq!(slot(&rawdoc! {}), slot(&rawdoc! { "tenant": [1, 2] }));
    }
}
