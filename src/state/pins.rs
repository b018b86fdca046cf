//! Pins as the clusters' records hold them.

use bson::Bson;
use bson::raw::RawBson;
use serde::{Deserialize, Serialize};

use crate::model::side::Side;
use crate::policy::canonical::key_of;
use crate::policy::key_ranges::KeyRanges;
use crate::policy::pins::{Held, Name, Pin, Pins};

/// A key or a range whose slot is held on one cluster, as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredPin {
    /// The key, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Bson>,
    /// The name of the range, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<String>,
    /// Which cluster.
    pub to: Side,
    /// Unix milliseconds.
    pub since: i64,
}

impl StoredPin {
    /// `None`: this version takes it for no key, and it is no range.
    pub(super) fn read(&self, ranges: &KeyRanges) -> Option<Pin> {
        let held = match (&self.key, &self.range) {
            (Some(key), None) => {
                let raw = RawBson::try_from(key.clone()).ok()?;
                Held::key(key_of(raw.as_raw_bson_ref())?, ranges).ok()?
            }
            (None, Some(name)) => Held::range(name, ranges)?,
            _ => return None,
        };
        Some(Pin { held, to: self.to, since: self.since })
    }
}

/// Pins as records hold them.
#[must_use]
pub fn stored_pins(pins: &Pins) -> Vec<StoredPin> {
    let store = |pin: &Pin| {
        let (key, range) = match pin.held.name() {
            Name::Key(key) => (Some(Bson::try_from(RawBson::from(key.value())).ok()?), None),
            Name::Range(name) => (None, Some(name.clone())),
        };
        Some(StoredPin { key, range, to: pin.to, since: pin.since })
    };
    pins.all().iter().filter_map(store).collect()
}
