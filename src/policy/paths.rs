//! Where two documents differ.

use bson::RawDocument;
use bson::raw::RawBsonRef;

/// Paths of the fields that differ, with dots and positions in arrays as in a query, at most `most`. Equal values
/// in another order of fields, or of another type, differ. It is `(order of fields)` of a document whose
/// fields only stand in another order.
#[must_use]
pub fn differing(one: &RawDocument, other: &RawDocument, most: usize) -> Vec<String> {
    let mut found = Found { paths: Vec::new(), most };
    documents(&mut found, "", one, other);
    found.paths
}

struct Found {
    paths: Vec<String>,
    most: usize,
}

impl Found {
    fn tell(&mut self, path: String) {
        if self.paths.len() < self.most {
            self.paths.push(path);
        }
    }
}

fn documents(found: &mut Found, at: &str, one: &RawDocument, other: &RawDocument) {
    if one.as_bytes() == other.as_bytes() {
        return;
    }
    let before = found.paths.len();
    for (name, value) in one.iter().flatten() {
        let path = join(at, name.as_str());
        match other.get(name.as_str()) {
            Ok(Some(there)) => values(found, path, value, there),
            _ => found.tell(path),
        }
    }
    for (name, _) in other.iter().flatten() {
        if !matches!(one.get(name.as_str()), Ok(Some(_))) {
            found.tell(join(at, name.as_str()));
        }
    }
    if found.paths.len() == before {
        found.tell(join(at, "(order of fields)"));
    }
}

fn values(found: &mut Found, path: String, one: RawBsonRef<'_>, other: RawBsonRef<'_>) {
    match (one, other) {
        (RawBsonRef::Document(one), RawBsonRef::Document(other)) => documents(found, &path, one, other),
        (RawBsonRef::Array(one), RawBsonRef::Array(other)) => {
            let (mut one, mut other) = (one.into_iter().flatten(), other.into_iter().flatten());
            for position in 0_usize.. {
                let path = join(&path, &position.to_string());
                match (one.next(), other.next()) {
                    (Some(one), Some(other)) => values(found, path, one, other),
                    (None, None) => return,
                    _ => found.tell(path),
                }
            }
        }
        _ if !same(one, other) => found.tell(path),
        _ => {}
    }
}

/// By bytes: NaN is itself, and 0.0 is not -0.0.
fn same(one: RawBsonRef<'_>, other: RawBsonRef<'_>) -> bool {
    match (one, other) {
        (RawBsonRef::Double(one), RawBsonRef::Double(other)) => one.to_bits() == other.to_bits(),
        _ => one == other,
    }
}

fn join(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}

#[cfg(test)]
mod tests {
    use bson::{Bson, doc, rawdoc};

    use super::*;

    #[test]
    fn each_field_that_differs_is_named() {
        let one = rawdoc! { "_id": 1, "a": 1, "b": { "c": [1, { "d": 2 }], "e": 1 }, "gone": 1 };
        let other = rawdoc! { "_id": 1, "a": 1_i64, "b": { "c": [1, { "d": 3 }, 4], "e": 1 }, "more": 1 };
        assert_eq!(differing(&one, &other, 20), ["a", "b.c.1.d", "b.c.2", "gone", "more"]);
        assert_eq!(differing(&one, &other, 2), ["a", "b.c.1.d"]);
        assert!(differing(&one, &one, 20).is_empty());
    }

    #[test]
    fn what_only_bytes_tell_apart_is_named_too() {
        let one = rawdoc! { "_id": 1, "zero": 0.0, "nan": f64::NAN, "o": { "a": 1, "b": 2 } };
        let other = rawdoc! { "_id": 1, "zero": -0.0, "nan": f64::NAN, "o": { "b": 2, "a": 1 } };
        assert_eq!(differing(&one, &other, 20), ["zero", "o.(order of fields)"]);
    }

    proptest::proptest! {
        #[test]
        fn whatever_has_other_bytes_has_a_path(a in 0_i32..3, b in 0_i32..3, c: bool, d: bool) {
            let document = |value: i32, flag: bool| {
                let mut document = doc! { "x": value };
                let nested = doc! { "y": [value, flag], "z": Bson::Null };
                if flag { document.insert("n", nested) } else { document.insert("m", Bson::Null) };
                bson::RawDocumentBuf::try_from(&document).unwrap()
            };
            let (one, other) = (document(a, c), document(b, d));
            let equal = one.as_bytes() == other.as_bytes();
            proptest::prop_assert_eq!(differing(&one, &other, 20).is_empty(), equal);
        }
    }
}
