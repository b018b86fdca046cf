//! Shard keys: where a document lies on a sharded cluster, and the filter that leads there.

use bson::raw::{RawBson, RawBsonRef, RawDocumentBuf};
use bson::{Bson, Document, RawDocument};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The pattern that a collection is sharded by, written as MongoDB writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardKey {
    fields: Vec<Field>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Field {
    path: String,
    hashed: bool,
}

/// A value for each field of a shard key: what leads to the shard where a document lies.
#[derive(Debug, Clone, PartialEq)]
pub struct Place(Vec<RawBson>);

impl ShardKey {
    /// Reads a pattern: paths, each with `1` or `"hashed"`, of which one at most may be hashed.
    ///
    /// # Errors
    /// In words, what is wrong with it.
    pub fn parse(pattern: &Document) -> Result<Self, String> {
        let mut fields = Vec::with_capacity(pattern.len());
        for (path, value) in pattern {
            if path.is_empty() || path.starts_with('$') || path.split('.').any(str::is_empty) {
                return Err(format!("{path:?} is no path of a field"));
            }
            let hashed = match value {
                Bson::String(kind) if kind == "hashed" => true,
                Bson::Int32(1) | Bson::Int64(1) => false,
                Bson::Double(one) if (one - 1.0).abs() < f64::EPSILON => false,
                other => return Err(format!("{path}: use 1 or \"hashed\", not {other}")),
            };
            fields.push(Field { path: path.clone(), hashed });
        }
        if fields.is_empty() {
            return Err("name at least one field".into());
        }
        if fields.iter().filter(|field| field.hashed).count() > 1 {
            return Err("only one field can be hashed".into());
        }
        Ok(Self { fields })
    }

    /// As MongoDB writes it.
    #[must_use]
    pub fn pattern(&self) -> Document {
        let value = |field: &Field| if field.hashed { Bson::from("hashed") } else { Bson::Int32(1) };
        self.fields.iter().map(|field| (field.path.clone(), value(field))).collect()
    }

    /// Whether documents are spread by a hash first of all.
    #[must_use]
    pub fn begins_hashed(&self) -> bool {
        self.fields.first().is_some_and(|field| field.hashed)
    }

    /// The paths before the hashed one.
    pub fn plain_prefix(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().take_while(|field| !field.hashed).map(|field| field.path.as_str())
    }

    /// Every path in order, and whether it is hashed.
    pub fn fields(&self) -> impl Iterator<Item = (&str, bool)> {
        self.fields.iter().map(|field| (field.path.as_str(), field.hashed))
    }

    /// `values` for the first fields, and the lowest for the others.
    #[must_use]
    pub fn fill(&self, values: &[Bson]) -> Vec<Bson> {
        let values = values.iter().cloned().chain(std::iter::repeat(Bson::MinKey));
        values.take(self.fields.len()).collect()
    }

    /// The bound of a chunk with these values.
    #[must_use]
    pub fn bound(&self, values: &[Bson]) -> Document {
        self.fields.iter().map(|field| field.path.clone()).zip(values.iter().cloned()).collect()
    }

    /// Whether a unique index on `key` can stand beside it: it must begin with all of its fields.
    #[must_use]
    pub fn allows_unique(&self, key: &Document) -> bool {
        let begins = self.fields.iter().zip(key.keys()).all(|(field, path)| field.path == *path);
        key.len() >= self.fields.len() && begins && !self.fields.iter().any(|field| field.hashed)
    }

    /// Whether equal `_id`s always lie on one shard: only then does an insert meet the document that is there.
    #[must_use]
    pub fn is_id(&self) -> bool {
        matches!(self.fields.as_slice(), [only] if only.path == "_id")
    }

    /// Adds to `filter`, which names the `_id`, what leads to the shard where `document` lies. A field that
    /// is missing counts as null.
    pub fn aim(&self, filter: &mut RawDocumentBuf, document: &RawDocument) {
        self.aim_at(filter, &self.place_of(document));
    }

    /// The same for the document at `place`.
    pub fn aim_at(&self, filter: &mut RawDocumentBuf, place: &Place) {
        for (field, value) in self.fields.iter().zip(&place.0).filter(|(field, _)| field.path != "_id") {
            let Ok(path) = bson::raw::CString::try_from(field.path.as_str()) else { continue };
            let mut equal = RawDocumentBuf::new();
            equal.append(bson::raw::cstr!("$eq"), value.as_raw_bson_ref());
            filter.append(path, equal);
        }
    }

    /// Where `document` lies. A field that is missing counts as null.
    #[must_use]
    pub fn place_of(&self, document: &RawDocument) -> Place {
        let value = |field: &Field| value_at(document, &field.path).map_or(RawBson::Null, RawBson::from);
        Place(self.fields.iter().map(value).collect())
    }

    /// Where the one document lies that `filter` is about, under simple collation; `None`: it leaves a field open.
    #[must_use]
    pub fn place_in(&self, filter: &RawDocument) -> Option<Place> {
        let value = |field: &Field| demanded(filter, &field.path).map(RawBson::from);
        self.fields.iter().map(value).collect::<Option<_>>().map(Place)
    }

    /// Whether two documents have the same values in the key, by type and bytes: then one can replace the
    /// other where it lies.
    #[must_use]
    pub fn same_place(&self, one: &RawDocument, other: &RawDocument) -> bool {
        self.fields.iter().all(|field| {
            let bytes = |document: &RawDocument| {
                let value = value_at(document, &field.path).unwrap_or(RawBsonRef::Null);
                let mut wrapped = RawDocumentBuf::new();
                wrapped.append(bson::raw::cstr!("v"), value);
                wrapped
            };
            bytes(one).as_bytes() == bytes(other).as_bytes()
        })
    }
}

impl Serialize for ShardKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.pattern().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ShardKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pattern = Document::deserialize(deserializer)?;
        Self::parse(&pattern).map_err(serde::de::Error::custom)
    }
}

/// A [`ShardKey`] as it is stored: a list, since servers before 5.0 store no names with dots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredKey(Vec<Field>);

impl From<ShardKey> for StoredKey {
    fn from(key: ShardKey) -> Self {
        Self(key.fields)
    }
}

impl From<StoredKey> for ShardKey {
    fn from(stored: StoredKey) -> Self {
        Self { fields: stored.0 }
    }
}

/// The value that `filter` demands by `path: value` or `path: {$eq: value}`.
fn demanded<'a>(filter: &'a RawDocument, path: &str) -> Option<RawBsonRef<'a>> {
    match filter.get(path).ok().flatten()? {
        // Either matches more than it says: an array its elements, an expression what it describes.
        RawBsonRef::Array(_) | RawBsonRef::RegularExpression(_) => None,
        RawBsonRef::Document(operators) => match operators.iter().next() {
            Some(Ok((name, value))) if name.as_str() == "$eq" && operators.iter().count() == 1 => {
                (!matches!(value, RawBsonRef::Array(_) | RawBsonRef::RegularExpression(_))).then_some(value)
            }
            Some(Ok((name, _))) if name.as_str().starts_with('$') => None,
            _ => Some(RawBsonRef::Document(operators)),
        },
        value => Some(value),
    }
}

/// What lies at a dotted path. Arrays end it: no part of a shard key may be one.
fn value_at<'a>(document: &'a RawDocument, path: &str) -> Option<RawBsonRef<'a>> {
    let Some((first, rest)) = path.split_once('.') else { return document.get(path).ok().flatten() };
    match document.get(first).ok().flatten()? {
        RawBsonRef::Document(inner) => value_at(inner, rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{doc, rawdoc};

    fn key(pattern: Document) -> ShardKey {
        ShardKey::parse(&pattern).unwrap()
    }

    #[test]
    fn patterns_read_back_and_bad_ones_say_why() {
        let pattern = doc! { "customer.id": 1, "order_id": "hashed" };
        assert_eq!(key(pattern.clone()).pattern(), pattern);
        for bad in [doc! {}, doc! { "a": -1 }, doc! { "a": "hashed", "b": "hashed" }, doc! { "a..b": 1 }] {
            assert!(ShardKey::parse(&bad).is_err(), "{bad}");
        }
        assert!(key(doc! { "_id": "hashed" }).is_id() && !key(doc! { "_id": 1, "a": 1 }).is_id());
    }

    #[test]
    fn an_operator_writes_the_pattern_and_a_list_is_stored() {
        let key = key(doc! { "b.c": 1, "a": "hashed" });
        let json = r#"{"b.c":1,"a":"hashed"}"#;
        assert_eq!(serde_json::to_string(&key).unwrap(), json);
        assert_eq!(serde_json::from_str::<ShardKey>(json).unwrap(), key);
        let stored = bson::serialize_to_bson(&StoredKey::from(key.clone())).unwrap();
        assert!(matches!(stored, Bson::Array(_)), "{stored}");
        assert_eq!(ShardKey::from(bson::deserialize_from_bson::<StoredKey>(stored).unwrap()), key);
    }

    #[test]
    fn unique_indexes_must_begin_with_it() {
        let by = key(doc! { "a": 1, "b": 1 });
        assert!(by.allows_unique(&doc! { "a": 1, "b": 1, "c": 1 }));
        assert!(!by.allows_unique(&doc! { "a": 1 }) && !by.allows_unique(&doc! { "b": 1, "a": 1 }));
        assert!(!key(doc! { "a": "hashed" }).allows_unique(&doc! { "a": 1 }));
    }

    #[test]
    fn a_filter_names_every_field_but_the_id() {
        let document = rawdoc! { "_id": 7, "customer": { "id": "c" }, "tags": [1] };
        let mut filter = rawdoc! { "_id": 7 };
        key(doc! { "customer.id": 1, "region": 1, "_id": 1 }).aim(&mut filter, &document);
        let expected = rawdoc! { "_id": 7, "customer.id": { "$eq": "c" }, "region": { "$eq": null } };
        assert_eq!(filter, expected);
    }

    #[test]
    fn a_filter_says_where_its_document_lies_by_equality_on_every_field() {
        let key = key(doc! { "customer.id": 1, "_id": 1 });
        let document = rawdoc! { "_id": 7, "customer": { "id": "c" } };
        let says = |filter: RawDocumentBuf| key.place_in(&filter);
        let place = key.place_of(&document);
        assert_eq!(says(rawdoc! { "customer.id": "c", "_id": 7, "x": { "$gt": 1 } }), Some(place.clone()));
        assert_eq!(says(rawdoc! { "customer.id": { "$eq": "c" }, "_id": { "$eq": 7 } }), Some(place.clone()));
        for open in
            [rawdoc! { "$in": ["c"] }, rawdoc! { "$eq": "c", "$exists": true }, rawdoc! { "$eq": ["c"] }]
        {
            assert_eq!(says(rawdoc! { "customer.id": open, "_id": 7 }), None);
        }
        assert_eq!(says(rawdoc! { "customer.id": ["c"], "_id": 7 }), None);
        assert_eq!(says(rawdoc! { "_id": 7 }), None);
        let mut filter = rawdoc! { "_id": 7 };
        key.aim_at(&mut filter, &place);
        assert_eq!(filter, rawdoc! { "_id": 7, "customer.id": { "$eq": "c" } });
    }

    #[test]
    fn a_place_is_compared_by_type_and_bytes() {
        let key = key(doc! { "a": 1 });
        assert!(key.same_place(&rawdoc! { "a": 1, "b": 1 }, &rawdoc! { "b": 2, "a": 1 }));
        assert!(!key.same_place(&rawdoc! { "a": 1 }, &rawdoc! { "a": 1.0 }));
        assert!(key.same_place(&rawdoc! {}, &rawdoc! { "a": null }));
    }
}
