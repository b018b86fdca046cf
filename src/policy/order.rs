//! The order of BSON values, as MongoDB compares them.

use std::cmp::Ordering;

use bson::{Bson, Decimal128};

/// The rank of a type among the others; types of one rank are compared by value. These are also the
/// numbers that the hash of a value begins with.
#[must_use]
pub fn rank(value: &Bson) -> i32 {
    match value {
        Bson::MinKey => -1,
        Bson::Undefined => 0,
        Bson::Null => 5,
        Bson::Int32(_) | Bson::Int64(_) | Bson::Double(_) | Bson::Decimal128(_) => 10,
        Bson::String(_) | Bson::Symbol(_) => 15,
        Bson::Document(_) => 20,
        Bson::Array(_) => 25,
        Bson::Binary(_) => 30,
        Bson::ObjectId(_) => 35,
        Bson::Boolean(_) => 40,
        Bson::DateTime(_) => 45,
        Bson::Timestamp(_) => 47,
        Bson::RegularExpression(_) => 50,
        Bson::DbPointer(_) => 55,
        Bson::JavaScriptCode(_) => 60,
        Bson::JavaScriptCodeWithScope(_) => 65,
        Bson::MaxKey => 127,
    }
}

/// Compares two values.
#[must_use]
pub fn compare(left: &Bson, right: &Bson) -> Ordering {
    let ranks = rank(left).cmp(&rank(right));
    if ranks != Ordering::Equal {
        return ranks;
    }
    match (left, right) {
        (Bson::Document(left), Bson::Document(right)) => {
            let field = |((left_key, left), (right_key, right)): ((&String, &Bson), (&String, &Bson))| {
                rank(left)
                    .cmp(&rank(right))
                    .then_with(|| left_key.as_bytes().cmp(right_key.as_bytes()))
                    .then_with(|| compare(left, right))
            };
            let differing = left.iter().zip(right).map(field).find(|order| *order != Ordering::Equal);
            differing.unwrap_or_else(|| left.len().cmp(&right.len()))
        }
        (Bson::Array(left), Bson::Array(right)) => compare_all(left, right),
        (Bson::Binary(left), Bson::Binary(right)) => {
            let key = |binary: &bson::Binary| (binary.bytes.len(), u8::from(binary.subtype));
            key(left).cmp(&key(right)).then_with(|| left.bytes.cmp(&right.bytes))
        }
        (Bson::ObjectId(left), Bson::ObjectId(right)) => left.bytes().cmp(&right.bytes()),
        (Bson::Boolean(left), Bson::Boolean(right)) => left.cmp(right),
        (Bson::DateTime(left), Bson::DateTime(right)) => left.cmp(right),
        (Bson::Timestamp(left), Bson::Timestamp(right)) => left.cmp(right),
        _ => match (text(left), text(right)) {
            (Some(left), Some(right)) => left.as_bytes().cmp(right.as_bytes()),
            _ => numbers(left, right),
        },
    }
}

/// Compares two keys field by field.
#[must_use]
pub fn compare_all(left: &[Bson], right: &[Bson]) -> Ordering {
    let pairs = left.iter().zip(right).map(|(left, right)| compare(left, right));
    let differing = pairs.into_iter().find(|order| *order != Ordering::Equal);
    differing.unwrap_or_else(|| left.len().cmp(&right.len()))
}

fn text(value: &Bson) -> Option<&str> {
    match value {
        Bson::String(text) | Bson::Symbol(text) | Bson::JavaScriptCode(text) => Some(text),
        Bson::RegularExpression(regex) => Some(regex.pattern.as_str()),
        _ => None,
    }
}

fn numbers(left: &Bson, right: &Bson) -> Ordering {
    match (integer(left), integer(right)) {
        (Some(left), Some(right)) => left.cmp(&right),
        // A number that is none comes before all others.
        _ => match (float(left), float(right)) {
            (left, right) if left.is_nan() || right.is_nan() => right.is_nan().cmp(&left.is_nan()),
            (left, right) => left.partial_cmp(&right).unwrap_or(Ordering::Equal),
        },
    }
}

fn integer(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Int64(number) => Some(*number),
        _ => None,
    }
}

/// The nearest double of a number.
#[must_use]
pub fn float(value: &Bson) -> f64 {
    match value {
        Bson::Int32(number) => f64::from(*number),
        #[expect(clippy::cast_precision_loss, reason = "whole numbers are compared as such")]
        Bson::Int64(number) => *number as f64,
        Bson::Double(number) => *number,
        Bson::Decimal128(number) => decimal(number),
        _ => 0.0,
    }
}

/// The nearest double of a decimal.
#[must_use]
pub fn decimal(number: &Decimal128) -> f64 {
    number.to_string().replace("Infinity", "inf").parse().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{bson, doc};

    #[test]
    fn values_of_all_types_are_in_order() {
        let sorted = [
            Bson::MinKey,
            Bson::Null,
            Bson::Double(f64::NAN),
            Bson::Int64(-5),
            Bson::Double(1.5),
            Bson::Int32(2),
            Bson::Decimal128("2.5".parse().unwrap()),
            Bson::from("a"),
            Bson::from("b"),
            Bson::from(doc! {"a": 1}),
            Bson::from(doc! {"a": 1, "b": 1}),
            Bson::from(doc! {"a": "x"}),
            bson!([1]),
            bson!([1, 2]),
            Bson::Boolean(false),
            Bson::Boolean(true),
            Bson::MaxKey,
        ];
        for pair in sorted.windows(2) {
            assert_eq!(compare(&pair[0], &pair[1]), Ordering::Less, "{} {}", pair[0], pair[1]);
            assert_eq!(compare(&pair[1], &pair[0]), Ordering::Greater);
        }
        assert_eq!(compare(&Bson::Int32(3), &Bson::Double(3.0)), Ordering::Equal);
    }
}
