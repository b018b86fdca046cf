//! Pins: what an operator asks for, and what the answers look like.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::control::{ControlError, Ramp, Refusal};
use crate::model::key::Key;
use crate::model::side::Side;
use crate::policy::canonical::key_of;
use crate::policy::pins::{LARGEST_KEY, MOST, Refused};
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

/// Keys: `_id`s, or values of the route key where a collection has one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// In extended JSON. All of a migration's collections go along: whatever has one of these keys, and with it what
    /// else lies in the same slot, about a thousandth of each collection.
    #[schema(value_type = Vec<Object>, example = json!(["acme", 7, { "$oid": "665f1c2ab7e4d3a1c0ffee00" }]))]
    pub keys: Vec<serde_json::Value>,
}

/// Keys to be pinned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPins {
    /// In extended JSON: `_id`s, or values of the route key where a collection has one. All of a migration's collections
    /// go along: whatever has one of these keys, and with it what else lies in the same slot, about a thousandth of each
    /// collection.
    #[schema(value_type = Vec<Object>, example = json!(["acme", 7, { "$oid": "665f1c2ab7e4d3a1c0ffee00" }]))]
    pub keys: Vec<serde_json::Value>,
    /// Where their reads and writes are to be, whatever percentages say.
    pub to: Cluster,
}

/// A key whose slot is held on one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PinView {
    /// In extended JSON.
    pub key: String,
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PinList {
    /// In the order in which they were set.
    pub pins: Vec<PinView>,
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
    /// Keys that stay on old.
    pub to_old: u64,
    /// Keys that are on new.
    pub to_new: u64,
    /// Of both, those that are not where they are to be: a call did not come to its end.
    pub not_in_force: u64,
}

/// What goes along with each key.
pub(super) const NOTE: &str =
    "each key holds its whole slot, one of 1024: about a thousandth of every collection goes along";

/// Reads keys.
///
/// # Errors
/// One of them is none, or there are none.
pub(super) fn read_keys(keys: &[serde_json::Value]) -> Result<Vec<Key>, ControlError> {
    let invalid = |code, detail: String| ControlError::new(Refusal::Invalid, code, detail);
    if keys.is_empty() || keys.len() > MOST {
        return Err(invalid("invalid-keys", format!("keys must name 1 to {MOST} keys")));
    }
    let read = |value: &serde_json::Value| {
        let bson = bson::Bson::try_from(value.clone()).ok()?;
        let raw = bson::raw::RawBson::try_from(bson).ok()?;
        let raw = raw.as_raw_bson_ref();
        if is_unfit(raw) { None } else { key_of(raw) }
    };
    let read = |value| read(value).ok_or_else(|| invalid("invalid-key", format!("{value} is no key")));
    keys.iter().map(read).collect()
}

/// A key as an operator would write it.
pub(super) fn spelled(key: &Key) -> String {
    let bson = bson::Bson::try_from(bson::raw::RawBson::from(key.value()));
    bson.map_or_else(|_| format!("{key:?}"), |bson| bson.into_relaxed_extjson().to_string())
}

/// How keys read in the audit and in answers.
pub(super) fn named(keys: &[serde_json::Value]) -> String {
    const MOST_NAMED: usize = 10;
    let mut named: Vec<String> = keys.iter().take(MOST_NAMED).map(ToString::to_string).collect();
    if keys.len() > MOST_NAMED {
        named.push(format!("and {} more", keys.len() - MOST_NAMED));
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
                spelled(&two[0]),
                spelled(&two[1])
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_are_read_from_extended_json() {
        let all = [json!("acme"), json!(7), json!({ "$oid": "665f1c2ab7e4d3a1c0ffee00" }), json!({ "a": 1 })];
        let keys = read_keys(&all).unwrap();
        assert_eq!(keys.len(), 4);
        assert_eq!((spelled(&keys[0]), spelled(&keys[1])), ("\"acme\"".to_owned(), "7".to_owned()));
        assert_eq!(spelled(&keys[2]), "{\"$oid\":\"665f1c2ab7e4d3a1c0ffee00\"}");
        for wrong in [json!([1]), json!({ "$timestamp": { "t": 0, "i": 0 } }), json!({ "$undefined": true })]
        {
            assert_eq!(read_keys(&[wrong]).unwrap_err().code, "invalid-key");
        }
        assert_eq!(read_keys(&[]).unwrap_err().code, "invalid-keys");
    }
}
