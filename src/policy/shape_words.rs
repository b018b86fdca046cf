//! Which words of a command belong to its shape, and which are values.

use bson::RawDocument;
use bson::raw::RawBsonRef;

/// A longer part of a name is a value that somebody uses as one.
pub(super) const MOST_SEGMENT: usize = 64;
/// Fields that are looked at to tell a document of values from an expression.
pub(super) const MOST_FIELDS: usize = 64;

/// What orders, indexes and collations have for options.
pub(super) const WORDS: [&str; 14] = [
    "textScore",
    "indexKey",
    "hashed",
    "text",
    "2d",
    "2dsphere",
    "upper",
    "lower",
    "off",
    "shifted",
    "non-ignorable",
    "punct",
    "space",
    "simple",
];

/// Units of time.
pub(super) const UNITS: [&str; 9] =
    ["year", "quarter", "month", "week", "day", "hour", "minute", "second", "millisecond"];

/// Whether a text names a language, as `de` or `de_AT`.
pub(super) fn is_locale(text: &str) -> bool {
    let (language, country) =
        text.split_once('_').map_or((text, "AA"), |(language, country)| (language, country));
    let is_language =
        matches!(language.len(), 2 | 3) && language.bytes().all(|byte| byte.is_ascii_lowercase());
    let is_country = country.len() == 2 && country.bytes().all(|byte| byte.is_ascii_uppercase());
    text == "simple" || is_language && is_country
}

/// Whether an index has the name that drivers make of its fields. Any other may be anything.
pub(super) fn is_usual_index(name: &str) -> bool {
    let is_made_of_fields = ["_1", "_-1", "_hashed", "_text", "_2d", "_2dsphere"]
        .into_iter()
        .any(|end| name.strip_suffix(end).is_some_and(|field| !field.is_empty()));
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'$');
    name == "_id_" || is_made_of_fields && name.bytes().all(is_plain) && !name.split('_').any(is_identifier)
}

/// Whether a part of a name is a value that somebody uses as one: a number, a date, an identifier, an address.
pub(super) fn is_made_up(segment: &str) -> bool {
    let has_letters = segment.bytes().any(|byte| byte.is_ascii_alphabetic() || !byte.is_ascii());
    let has_digits = segment.bytes().any(|byte| byte.is_ascii_digit());
    segment.len() > MOST_SEGMENT
        || segment.contains('@')
        || has_digits && !has_letters
        || is_identifier(segment)
}

/// Whether it is written as an `ObjectId`, a UUID or a hash is.
fn is_identifier(text: &str) -> bool {
    text.len() >= 16
        && text.bytes().any(|byte| byte.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// Whether anything in a document of an expression is computed: if not, it is a value.
pub(super) fn computes(document: &RawDocument, depth: u32) -> bool {
    document.iter_elements().flatten().take(MOST_FIELDS).any(|element| {
        element.key().as_str().starts_with('$')
            || element.value().is_ok_and(|value| is_computed(value, depth.saturating_sub(1)))
    })
}

/// Whether anything in a value of an expression is computed.
pub(super) fn is_computed(value: RawBsonRef<'_>, depth: u32) -> bool {
    match value {
        RawBsonRef::String(text) => text.starts_with('$'),
        RawBsonRef::Document(document) => depth > 0 && computes(document, depth),
        RawBsonRef::Array(array) => {
            depth > 0
                && array.into_iter().flatten().take(MOST_FIELDS).any(|item| is_computed(item, depth - 1))
        }
        _ => false,
    }
}
