//! Pins: what an operator asks for, and what the answers look like.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::control::{ControlError, Ramp, Refusal};
use super::key_ranges::RangeView;
use crate::model::key::Key;
use crate::model::side::Side;
use crate::policy::canonical::key_of;
use crate::policy::key_ranges::KeyRanges;
use crate::policy::pins::{Held, LARGEST_KEY, MOST, Name, Refused};
use crate::policy::route_key::is_unfit;

/// Which cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cluster {
    /// The old one.
    Old,
    /// The new one.
    New,
}

impl From<Cluster> for Side {
    fn from(cluster: Cluster) -> Self {
        match cluster {
            Cluster::Old => Self::Old,
            Cluster::New => Self::New,
        }
    }
}

impl From<Side> for Cluster {
    fn from(side: Side) -> Self {
        match side {
            Side::Old => Self::Old,
            Side::New => Self::New,
        }
    }
}

/// Keys: `_id`s, or values of the route key where a collection has one; and ranges.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// In extended JSON. All of a migration's collections go along: whatever has one of these keys, and with it what
    /// else lies in the same slot, about a thousandth of each collection.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>, example = json!(["acme", 7, { "$oid": "665f1c2ab7e4d3a1c0ffee00" }]))]
    pub keys: Vec<serde_json::Value>,
    /// Ranges of the migration, by name. Nothing but the keys within goes along.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<String>,
}

/// What is to be pinned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPins {
    /// In extended JSON: `_id`s, or values of the route key where a collection has one. All of a migration's collections
    /// go along: whatever has one of these keys, and with it what else lies in the same slot, about a thousandth of each
    /// collection.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>, example = json!(["acme", 7, { "$oid": "665f1c2ab7e4d3a1c0ffee00" }]))]
    pub keys: Vec<serde_json::Value>,
    /// Ranges of the migration, by name. Nothing but the keys within goes along.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<String>,
    /// Where their reads and writes are to be, whatever percentages say.
    pub to: Cluster,
}

impl SetPins {
    /// Without where to.
    pub(super) fn named(&self) -> Keys {
        Keys { keys: self.keys.clone(), ranges: self.ranges.clone() }
    }
}

/// A key or a range whose slot is held on one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PinView {
    /// In extended JSON; left out for a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The name of the range; left out for a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<String>,
    /// Its slot, 0 to 1023: everything in it stays with it.
    pub slot: u16,
    /// Where its reads and writes are to be.
    pub to: Cluster,
    /// They are. Where not, a call did not come to its end: pin it again, or unpin it.
    pub in_force: bool,
    /// Unix milliseconds.
    pub since: i64,
}

/// What is pinned.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PinList {
    /// In the order in which they were set.
    pub pins: Vec<PinView>,
    /// The migration's ranges, pinned or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<RangeView>,
}

/// The answer to a change of pins: it is in force everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pinned {
    /// The move; its percentage is that of the writes that are not pinned.
    #[serde(flatten)]
    pub ramp: Ramp,
    /// All that is pinned now.
    pub pins: Vec<PinView>,
    /// What goes along with each key, in words.
    pub note: String,
}

/// How much is pinned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PinCounts {
    /// Keys and ranges that stay on old.
    pub to_old: u64,
    /// Keys and ranges that are on new.
    pub to_new: u64,
    /// Of both, those that are not where they are to be: a call did not come to its end.
    pub not_in_force: u64,
}

/// What goes along.
pub(super) const NOTE: &str = "each key holds its whole slot, one of 1024: about a thousandth of every collection goes \
                               along; a range holds the keys within it and nothing else";

/// Reads what is to be pinned, or no longer.
///
/// # Errors
/// One of the keys is none or lies in a range, a range is not declared, or nothing is named.
pub(super) fn read_held(asked: &Keys, known: &KeyRanges) -> Result<Vec<Held>, ControlError> {
    let invalid = |code, detail: String| ControlError::new(Refusal::Invalid, code, detail);
    let Keys { keys, ranges } = asked;
    if !(1..=MOST).contains(&(keys.len() + ranges.len())) {
        return Err(invalid("invalid-keys", format!("keys and ranges must name 1 to {MOST}")));
    }
    let read = |value: &serde_json::Value| {
        let bson = bson::Bson::try_from(value.clone()).ok()?;
        let raw = bson::raw::RawBson::try_from(bson).ok()?;
        let raw = raw.as_raw_bson_ref();
        if is_unfit(raw) { None } else { key_of(raw) }
    };
    let key = |value| {
        let key = read(value).ok_or_else(|| invalid("invalid-key", format!("{value} is no key")))?;
        Held::key(key, known).map_err(|range| {
            let detail = format!("{value} lies in the range {range}, which moves as a whole: name that");
            ControlError::new(Refusal::Conflict, "key-in-range", detail)
        })
    };
    let range = |name: &String| {
        Held::range(name, known).ok_or_else(|| {
            let declared: Vec<&str> = known.all().iter().map(|range| &*range.name).collect();
            let which = if declared.is_empty() { "none is".to_owned() } else { declared.join(", ") };
            invalid("no-such-range", format!("the migration has no range {name:?}; declared: {which}"))
        })
    };
    keys.iter().map(key).chain(ranges.iter().map(range)).collect()
}

/// What is held, as an operator would write it.
pub(super) fn shown(held: &Held) -> String {
    match held.name() {
        Name::Key(key) => spelled(key),
        Name::Range(name) => format!("range {name}"),
    }
}

/// A key as an operator would write it.
pub(super) fn spelled(key: &Key) -> String {
    let bson = bson::Bson::try_from(bson::raw::RawBson::from(key.value()));
    bson.map_or_else(|_| format!("{key:?}"), |bson| bson.into_relaxed_extjson().to_string())
}

/// How keys and ranges read in the audit and in answers.
pub(super) fn named(asked: &Keys) -> String {
    const MOST_NAMED: usize = 10;
    let ranges = asked.ranges.iter().map(|name| format!("range {name}"));
    let mut named: Vec<String> = asked.keys.iter().map(ToString::to_string).chain(ranges).collect();
    let all = named.len();
    named.truncate(MOST_NAMED);
    if all > MOST_NAMED {
        named.push(format!("and {} more", all - MOST_NAMED));
    }
    named.join(", ")
}

/// Why keys cannot be pinned, in words.
pub(super) fn refused(refused: &Refused) -> ControlError {
    let of = |kind, code, detail: String| ControlError::new(kind, code, detail);
    match refused {
        Refused::TooLarge => of(
            Refusal::Invalid,
            "invalid-key",
            format!("a key that is pinned has at most {LARGEST_KEY} bytes"),
        ),
        Refused::TooMany(many) => of(
            Refusal::Conflict,
            "too-many-pins",
            format!("{many} keys would be pinned, and {MOST} can be; unpin some, or use percentages"),
        ),
        Refused::Shared(two) => of(
            Refusal::Conflict,
            "slot-shared",
            format!(
                "{} lies in one slot with {}, which is pinned to the other cluster; unpin that, or pin both to one",
                shown(&two[0]),
                shown(&two[1])
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::key_ranges::KeyRange;
    use serde_json::json;

    #[test]
    fn keys_are_read_from_extended_json() {
        let all = [json!("acme"), json!(7), json!({ "$oid": "665f1c2ab7e4d3a1c0ffee00" }), json!({ "a": 1 })];
        let none = KeyRanges::none();
        let read =
            |keys: &[serde_json::Value]| read_held(&Keys { keys: keys.to_vec(), ranges: Vec::new() }, &none);
        let keys = read(&all).unwrap();
        let shown: Vec<String> = keys.iter().map(shown).collect();
        assert_eq!(shown[..3], ["\"acme\"", "7", "{\"$oid\":\"665f1c2ab7e4d3a1c0ffee00\"}"]);
        for wrong in [json!([1]), json!({ "$timestamp": { "t": 0, "i": 0 } }), json!({ "$undefined": true })]
        {
            assert_eq!(read(&[wrong]).unwrap_err().code, "invalid-key");
        }
        assert_eq!(read(&[]).unwrap_err().code, "invalid-keys");
    }

    #[test]
    fn a_range_is_named_and_its_keys_are_not() {
        let few = KeyRange { name: "few".into(), from: Some(0.into()), to: Some(10.into()) };
        let ranges = KeyRanges::new(vec![few]).unwrap();
        let read = |keys: Vec<serde_json::Value>, names: &[&str]| {
            let names = names.iter().map(ToString::to_string).collect();
            let asked = Keys { keys, ranges: names };
            let named = named(&asked);
            read_held(&asked, &ranges).map(|held| (named, held.len())).map_err(|error| error.code)
        };
        assert_eq!(read(vec![json!(10)], &["few"]), Ok(("10, range few".to_owned(), 2)));
        assert_eq!(read(vec![json!(9.5)], &[]), Err("key-in-range"));
        assert_eq!(read(vec![], &["many"]), Err("no-such-range"));
    }
}
