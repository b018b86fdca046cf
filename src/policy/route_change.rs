//! Whether an update may change a document's route key, and with it whose the document is.

use bson::RawDocument;
use bson::raw::RawBsonRef;

use super::canonical::key_of;
use super::route_key::{RouteKey, is_unfit};
use super::statement::is_replacement;
use crate::model::key::Key;

/// What an update may do to a route key, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// It stays as it is.
    None,
    /// It may become another value.
    Value,
    /// It may become what no document may have, such as an array.
    Unfit,
}

/// What `update` may do to the route key of a document that had `named` before, as far as the filter says.
#[must_use]
pub fn change_of(update: RawBsonRef<'_>, key: &RouteKey, named: Option<&Key>) -> Change {
    let looking = Looking { key, named };
    match update {
        RawBsonRef::Document(document) if is_replacement(document) => looking.set_to(key.value_of(document)),
        RawBsonRef::Document(operators) => {
            greatest(operators.iter().flatten().map(|(name, what)| looking.operator(name.as_str(), what)))
        }
        RawBsonRef::Array(stages) => {
            let stages = stages.into_iter().flatten().filter_map(|stage| stage.as_document());
            let parts = stages.flat_map(|stage| stage.iter().flatten());
            greatest(parts.map(|(name, what)| looking.stage(name.as_str(), what)))
        }
        // For the server to refuse.
        _ => Change::None,
    }
}

fn greatest(changes: impl Iterator<Item = Change>) -> Change {
    changes.max().unwrap_or(Change::None)
}

struct Looking<'a> {
    key: &'a RouteKey,
    named: Option<&'a Key>,
}

impl Looking<'_> {
    /// It becomes `value`.
    fn set_to(&self, value: RawBsonRef<'_>) -> Change {
        if is_unfit(value) {
            return Change::Unfit;
        }
        match (key_of(value), self.named) {
            (Some(value), Some(named)) if value == *named => Change::None,
            _ => Change::Value,
        }
    }

    /// Whether a path is the route key, or lies in it.
    fn lies_in(&self, path: &str) -> bool {
        path.split('.').next() == Some(self.key.field())
    }

    fn operator(&self, name: &str, what: RawBsonRef<'_>) -> Change {
        let Some(paths) = what.as_document() else { return Change::None };
        greatest(paths.iter().flatten().map(|(path, value)| self.one(name, path.as_str(), value)))
    }

    fn one(&self, operator: &str, path: &str, value: RawBsonRef<'_>) -> Change {
        if operator == "$rename" && value.as_str().is_some_and(|target| self.lies_in(target)) {
            return Change::Unfit;
        }
        if !self.lies_in(path) {
            return Change::None;
        }
        let is_whole = path == self.key.field();
        match operator {
            "$set" | "$setOnInsert" if is_whole => self.set_to(value),
            "$push" | "$pushAll" | "$addToSet" if is_whole => Change::Unfit,
            "$min" | "$max" if is_whole && is_unfit(value) => Change::Unfit,
            _ => Change::Value,
        }
    }

    fn stage(&self, name: &str, what: RawBsonRef<'_>) -> Change {
        match (name, what) {
            ("$set" | "$addFields", RawBsonRef::Document(fields)) => self.computed(fields),
            ("$unset", RawBsonRef::String(path)) => self.removed(path),
            ("$unset", RawBsonRef::Array(paths)) => greatest(
                paths.into_iter().flatten().filter_map(|path| path.as_str()).map(|path| self.removed(path)),
            ),
            ("$project", RawBsonRef::Document(fields)) => {
                let of_key = fields.iter().flatten().find(|(path, _)| self.lies_in(path.as_str()));
                match of_key {
                    Some((path, value)) if path.as_str() == self.key.field() && is_true(value) => {
                        Change::None
                    }
                    Some((_, value)) if !is_flag(value) => Change::Unfit,
                    _ => Change::Value,
                }
            }
            // What comes of it is not known before a server has computed it.
            _ => Change::Unfit,
        }
    }

    /// Fields that are given the values of expressions.
    fn computed(&self, fields: &RawDocument) -> Change {
        let mut of_key = fields.iter().flatten().filter(|(path, _)| self.lies_in(path.as_str()));
        let is_plain = |value: RawBsonRef<'_>| match value {
            RawBsonRef::String(text) => !text.starts_with('$'),
            RawBsonRef::Document(_) | RawBsonRef::Array(_) => false,
            _ => true,
        };
        of_key
            .try_fold(Change::None, |so_far, (path, value)| {
                if path.as_str() != self.key.field() || !is_plain(value) {
                    return Err(Change::Unfit);
                }
                Ok(so_far.max(self.set_to(value)))
            })
            .unwrap_or_else(std::convert::identity)
    }

    fn removed(&self, path: &str) -> Change {
        if self.lies_in(path) { Change::Value } else { Change::None }
    }
}

fn is_flag(value: RawBsonRef<'_>) -> bool {
    matches!(
        value,
        RawBsonRef::Boolean(_) | RawBsonRef::Int32(_) | RawBsonRef::Int64(_) | RawBsonRef::Double(_)
    )
}

fn is_true(value: RawBsonRef<'_>) -> bool {
    match value {
        RawBsonRef::Boolean(truth) => truth,
        RawBsonRef::Int32(number) => number != 0,
        RawBsonRef::Int64(number) => number != 0,
        RawBsonRef::Double(number) => number != 0.0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::raw::RawBson;
    use bson::{Bson, bson};

    /// What an update does for a filter that names the tenant 7.
    fn change(update: Bson) -> Change {
        let key = RouteKey::parse("tenant").unwrap();
        let named = key_of(RawBsonRef::Int32(7)).unwrap();
        let raw = RawBson::try_from(update).unwrap();
        change_of(raw.as_raw_bson_ref(), &key, Some(&named))
    }

    #[test]
    fn updates_that_leave_it_alone() {
        for harmless in [
            bson!({ "$inc": { "n": 1 }, "$set": { "tenants": 1, "a.tenant": 2 } }),
            // It is what it was.
            bson!({ "$set": { "tenant": 7.0 }, "$setOnInsert": { "tenant": 7 } }),
            bson!({ "tenant": 7, "n": 1 }),
            bson!([{ "$set": { "n": { "$add": ["$n", 1] } } }, { "$unset": ["a", "b"] }]),
            bson!([{ "$set": { "tenant": 7 } }]),
            bson!([{ "$project": { "tenant": 1, "n": 1 } }]),
            bson!({ "$rename": { "a": "b" } }),
        ] {
            assert_eq!(change(harmless.clone()), Change::None, "{harmless}");
        }
    }

    #[test]
    fn updates_that_may_change_it() {
        for changing in [
            bson!({ "$set": { "tenant": 8 } }),
            bson!({ "$set": { "tenant.part": 8 } }),
            bson!({ "$setOnInsert": { "tenant": 8 } }),
            bson!({ "$unset": { "tenant": "" } }),
            bson!({ "$inc": { "tenant": 1 } }),
            bson!({ "$min": { "tenant": 1 } }),
            bson!({ "$currentDate": { "tenant": true } }),
            bson!({ "$rename": { "tenant": "was" } }),
            bson!({ "$pull": { "tenant": 1 } }),
            // Replacements that do not repeat it.
            bson!({ "tenant": 8 }),
            bson!({ "n": 1 }),
            bson!({}),
            bson!([{ "$unset": "tenant" }]),
            bson!([{ "$unset": ["a", "tenant.b"] }]),
            bson!([{ "$set": { "tenant": 8 } }]),
            bson!([{ "$project": { "n": 1 } }]),
        ] {
            assert_eq!(change(changing.clone()), Change::Value, "{changing}");
        }
    }

    #[test]
    fn updates_that_may_make_it_unfit() {
        for unfit in [
            bson!({ "$set": { "tenant": [7] } }),
            bson!({ "tenant": [7] }),
            bson!({ "$push": { "tenant": 7 } }),
            bson!({ "$addToSet": { "tenant": 7 } }),
            bson!({ "$max": { "tenant": [1] } }),
            bson!({ "$rename": { "list": "tenant" } }),
            bson!({ "$set": { "tenant": Bson::Timestamp(bson::Timestamp { time: 0, increment: 0 }) } }),
            bson!([{ "$set": { "tenant": "$other" } }]),
            bson!([{ "$set": { "tenant": { "$add": [1, 2] } } }]),
            bson!([{ "$addFields": { "tenant.a": 1 } }]),
            bson!([{ "$replaceWith": { "tenant": 7 } }]),
            bson!([{ "$replaceRoot": { "newRoot": "$a" } }]),
            bson!([{ "$project": { "tenant": "$list" } }]),
        ] {
            assert_eq!(change(unfit.clone()), Change::Unfit, "{unfit}");
        }
    }

    #[test]
    fn without_a_name_in_the_filter_every_value_is_another() {
        let key = RouteKey::parse("tenant").unwrap();
        let set = bson::rawdoc! { "$set": { "tenant": 7 } };
        assert_eq!(change_of(RawBsonRef::Document(&set), &key, None), Change::Value);
        let other = bson::rawdoc! { "$set": { "n": 7 } };
        assert_eq!(change_of(RawBsonRef::Document(&other), &key, None), Change::None);
    }
}
