//! Collections and indexes as their servers describe them: what counts as equal, what can be made again.

use bson::{Bson, Document};

/// `expireAfterSeconds` of a TTL index whose expiry is suspended: its maximum, 68 years.
pub const SUSPENDED: i64 = 2_147_483_647;
/// What a TTL index is made with before it is suspended: servers before 5.0 take only what does not reach
/// back before 1970.
pub const MADE_WITH: i64 = 1_700_000_000;

/// What a server adds to an index, or what has no meaning any more.
const NOT_MADE: [&str; 5] = ["v", "ns", "background", "safe", "dropDups"];
/// Collection options that are not the user's, or have no meaning any more.
const NOT_OPTIONS: [&str; 5] = ["autoIndexId", "flags", "temp", "idIndex", "uuid"];

/// A collection, view or the like.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Collection {
    /// `collection`, `view` or `timeseries`.
    pub kind: String,
    /// Its options.
    pub options: Document,
    /// Its indexes, the one on `_id` included.
    pub indexes: Vec<Index>,
}

/// An index.
#[derive(Debug, Clone, PartialEq)]
pub struct Index {
    /// As `listIndexes` gives it.
    pub spec: Document,
    /// It is still being built.
    pub building: bool,
}

impl Index {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.spec.get_str("name").unwrap_or("")
    }

    /// It comes with the collection: on `_id`, or the collection's own order.
    #[must_use]
    pub fn is_implied(&self) -> bool {
        self.name() == "_id_" || truth(self.spec.get("clustered"))
    }

    /// Two documents cannot have the same value.
    #[must_use]
    pub fn is_unique(&self) -> bool {
        truth(self.spec.get("unique")) || truth(self.spec.get("prepareUnique"))
    }

    /// The first field of its key.
    #[must_use]
    pub fn first_field(&self) -> &str {
        self.spec.get_document("key").ok().and_then(|key| key.keys().next()).map_or("", String::as_str)
    }

    /// Whether it removes documents after a time.
    #[must_use]
    pub fn is_ttl(&self) -> bool {
        self.spec.contains_key("expireAfterSeconds")
    }

    /// Whether no query may use it. It removes documents all the same.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        matches!(self.spec.get("hidden"), Some(Bson::Boolean(true)))
    }

    /// Seconds after which it removes a document; `None` for other indexes and for values that are no number.
    #[must_use]
    pub fn ttl(&self) -> Option<i64> {
        match self.spec.get("expireAfterSeconds")? {
            Bson::Int32(seconds) => Some(i64::from(*seconds)),
            Bson::Int64(seconds) => Some(*seconds),
            #[expect(clippy::cast_possible_truncation, reason = "checked to be finite; saturates")]
            Bson::Double(seconds) if seconds.is_finite() => Some(*seconds as i64),
            _ => None,
        }
    }

    /// What `createIndexes` takes to make the same index; a TTL index is made so that it removes nothing later
    /// than 1972.
    #[must_use]
    pub fn creation(&self) -> Document {
        let wanted = self.spec.iter().filter(|(name, _)| !NOT_MADE.contains(&name.as_str()));
        let mut creation: Document = wanted.map(|(name, value)| (name.clone(), value.clone())).collect();
        if self.is_ttl() {
            creation.insert("expireAfterSeconds", MADE_WITH);
        }
        creation
    }

    /// Whether both do the same; the seconds of a TTL do not count, as they are suspended at times.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        self.same_key(other) && comparable_index(&self.spec) == comparable_index(&other.spec)
    }

    /// Whether both have the same key, in the same order.
    #[must_use]
    pub fn same_key(&self, other: &Self) -> bool {
        let key = |index: &Self| -> Vec<(String, Bson)> {
            let key = index.spec.get_document("key").cloned().unwrap_or_default();
            key.into_iter().map(|(field, kind)| (field, plain(&kind))).collect()
        };
        key(self) == key(other)
    }
}

fn truth(value: Option<&Bson>) -> bool {
    match value {
        Some(Bson::Boolean(truth)) => *truth,
        Some(Bson::Int32(number)) => *number != 0,
        Some(Bson::Int64(number)) => *number != 0,
        Some(Bson::Double(number)) => *number != 0.0,
        _ => false,
    }
}

/// Numbers of one value are the same, whatever type they have.
fn plain(value: &Bson) -> Bson {
    match value {
        Bson::Int32(number) => Bson::Double(f64::from(*number)),
        #[expect(clippy::cast_precision_loss, reason = "options stay far below 2^53")]
        Bson::Int64(number) => Bson::Double(*number as f64),
        Bson::Document(document) => {
            Bson::Document(document.iter().map(|(name, value)| (name.clone(), plain(value))).collect())
        }
        Bson::Array(items) => Bson::Array(items.iter().map(plain).collect()),
        other => other.clone(),
    }
}

fn comparable_index(spec: &Document) -> Document {
    let mut comparable = Document::new();
    for (name, value) in spec {
        match name.as_str() {
            "key" => {}
            "expireAfterSeconds" => {
                comparable.insert("expireAfterSeconds", true);
            }
            "unique" | "sparse" | "hidden" | "prepareUnique" | "clustered" => {
                if truth(Some(value)) {
                    comparable.insert(name, true);
                }
            }
            "wildcardProjection" => {
                let mut paths = Document::new();
                flatten("", value, &mut paths);
                comparable.insert(name, paths);
            }
            other if NOT_MADE.contains(&other) => {}
            _ => {
                comparable.insert(name, plain(value));
            }
        }
    }
    comparable
}

/// A projection as paths: versions store `{"a.b": 1}` in forms of their own, with `_id` left out explicitly.
fn flatten(path: &str, value: &Bson, paths: &mut Document) {
    let Bson::Document(document) = value else {
        if path != "_id" || truth(Some(value)) {
            paths.insert(path, truth(Some(value)));
        }
        return;
    };
    for (name, value) in document {
        let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        flatten(&below, value, paths);
    }
}

/// Options in a form in which equal ones are equal: without what servers add, and without defaults.
#[must_use]
pub fn comparable_options(options: &Document) -> Document {
    let is_default = |name: &str, value: &Bson| match name {
        "validationLevel" => value.as_str() == Some("strict"),
        "validationAction" => value.as_str() == Some("error"),
        "validator" => value.as_document().is_some_and(Document::is_empty),
        "changeStreamPreAndPostImages" => {
            value.as_document().is_some_and(|images| !truth(images.get("enabled")))
        }
        "recordPreImages" | "capped" => !truth(Some(value)),
        _ => false,
    };
    options
        .iter()
        .filter(|(name, value)| !NOT_OPTIONS.contains(&name.as_str()) && !is_default(name, value))
        .map(|(name, value)| (name.clone(), plain(value)))
        .collect()
}

/// What `create` takes besides the name to make a collection with the same options.
#[must_use]
pub fn creation_options(options: &Document) -> Document {
    let wanted = options.iter().filter(|(name, _)| !NOT_OPTIONS.contains(&name.as_str()));
    let mut creation: Document = wanted.map(|(name, value)| (name.clone(), value.clone())).collect();
    if truth(creation.remove("recordPreImages").as_ref()) {
        // The name that this option has had since 6.0.
        creation.insert("changeStreamPreAndPostImages", bson::doc! { "enabled": true });
    }
    creation
}

/// Whether the collection orders strings by a language unless asked otherwise.
#[must_use]
pub fn has_collation(options: &Document) -> bool {
    let collation = options.get_document("collation").ok();
    collation.is_some_and(|collation| collation.get_str("locale").ok() != Some("simple"))
}

/// Why documents cannot be divided between two authorities by their `_id` or by the field `route_key`: each unique
/// index whose values another document could hold on the other cluster.
#[must_use]
pub fn unique_across<'a>(indexes: &'a [Index], route_key: Option<&str>) -> Vec<&'a Index> {
    let unique = indexes.iter().filter(|index| !index.is_implied() && index.is_unique());
    // Under another collation, values that are equal to the index may lie in two slots.
    let begins_with = |index: &Index, field| index.first_field() == field && !has_collation(&index.spec);
    unique
        .filter(|index| {
            index.first_field() != "_id" && !route_key.is_some_and(|field| begins_with(index, field))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    fn index(spec: Document) -> Index {
        Index { spec, building: false }
    }

    #[test]
    fn the_order_of_a_key_counts_and_number_types_do_not() {
        let one = index(doc! { "v": 2, "key": { "a": 1, "b": 1 }, "name": "n" });
        assert!(one.same_as(&index(doc! { "v": 1, "key": { "a": 1.0, "b": 1_i64 }, "name": "n" })));
        assert!(!one.same_as(&index(doc! { "v": 2, "key": { "b": 1, "a": 1 }, "name": "n" })));
        assert!(
            !one.same_as(&index(doc! { "v": 2, "key": { "a": 1, "b": 1 }, "name": "n", "sparse": true }))
        );
    }

    #[test]
    fn a_ttl_index_is_made_as_good_as_suspended_and_still_counts_as_the_same() {
        let ttl = index(doc! { "v": 2, "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": 60 });
        let made = ttl.creation();
        assert_eq!(made, doc! { "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": MADE_WITH });
        assert!(ttl.same_as(&index(made)));
        assert_eq!(ttl.ttl(), Some(60));
        assert_eq!(index(doc! { "expireAfterSeconds": f64::NAN }).ttl(), None);
    }

    #[test]
    fn a_wildcard_projection_is_the_same_in_any_spelling() {
        let one = index(doc! { "name": "w", "wildcardProjection": { "x": 1, "y.z": 1 } });
        let other = doc! { "_id": false, "y": { "z": true }, "x": true };
        assert!(one.same_as(&index(doc! { "name": "w", "wildcardProjection": other })));
        let less = doc! { "x": 1 };
        assert!(!one.same_as(&index(doc! { "name": "w", "wildcardProjection": less })));
    }

    #[test]
    fn defaults_of_options_are_equal_to_none() {
        let given = doc! { "validationLevel": "strict", "validationAction": "error", "flags": 1 };
        assert_eq!(comparable_options(&given), doc! {});
        let warn = doc! { "validationAction": "warn" };
        assert_eq!(comparable_options(&warn), warn);
    }

    #[test]
    fn only_unique_indexes_that_begin_with_the_id_can_be_divided() {
        let indexes = [
            index(doc! { "key": { "_id": 1 }, "name": "_id_" }),
            index(doc! { "key": { "email": 1 }, "name": "email_1", "unique": true }),
            index(doc! { "key": { "_id": 1, "x": 1 }, "name": "both", "unique": true }),
            index(doc! { "key": { "x": 1 }, "name": "x_1" }),
        ];
        let names = |route_key| -> Vec<_> {
            unique_across(&indexes, route_key).into_iter().map(Index::name).collect()
        };
        assert_eq!(names(None), ["email_1"]);
        assert_eq!(names(Some("other")), ["email_1"]);
        assert!(names(Some("email")).is_empty());
        let german = index(doc! {
            "key": { "email": 1 }, "name": "e", "unique": true, "collation": { "locale": "de" },
        });
        assert_eq!(unique_across(&[german], Some("email")).len(), 1);
    }

    #[test]
    fn a_simple_collation_is_none() {
        assert!(!has_collation(&doc! { "collation": { "locale": "simple" } }));
        assert!(has_collation(&doc! { "collation": { "locale": "de" } }));
    }
}
