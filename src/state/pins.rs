//! Pins as the clusters' records hold them.

use bson::Bson;
use bson::raw::RawBson;
use serde::{Deserialize, Serialize};

use crate::model::side::Side;
use crate::policy::canonical::key_of;
use crate::policy::pins::{Pin, Pins};

/// A key whose slot is held on one cluster, as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredPin {
    /// The key.
    pub key: Bson,
    /// Which cluster.
    pub to: Side,
    /// Unix milliseconds.
    pub since: i64,
}

impl StoredPin {
    /// `None`: this version takes it for no key.
    pub(super) fn read(&self) -> Option<Pin> {
        let raw = RawBson::try_from(self.key.clone()).ok()?;
        let key = key_of(raw.as_raw_bson_ref())?;
        Some(Pin { key, to: self.to, since: self.since })
    }
}

/// Pins as records hold them.
#[must_use]
pub fn stored_pins(pins: &Pins) -> Vec<StoredPin> {
    let store = |pin: &Pin| {
        let key = Bson::try_from(RawBson::from(pin.key.value())).ok()?;
        Some(StoredPin { key, to: pin.to, since: pin.since })
    };
    pins.all().iter().filter_map(store).collect()
}
