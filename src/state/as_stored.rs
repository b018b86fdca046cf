//! Forms in which values are stored in records.

use crate::model::slots::SlotSet;

/// Slots as stored.
pub(super) fn slots_as_bson(slots: &SlotSet) -> bson::Bson {
    bson::Bson::Binary(bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: slots.to_bytes() })
}

pub(super) mod slot_bytes {
    use crate::model::slots::SlotSet;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(in crate::state) fn serialize<S: Serializer>(
        slots: &SlotSet,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: slots.to_bytes() }
            .serialize(serializer)
    }

    pub(in crate::state) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SlotSet, D::Error> {
        let binary = bson::Binary::deserialize(deserializer)?;
        SlotSet::from_bytes(&binary.bytes).ok_or_else(|| D::Error::custom("a slot set has 128 bytes"))
    }
}

pub(super) mod as_i64 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error, ser};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(in crate::state) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(i64::try_from(*value).map_err(ser::Error::custom)?)
    }

    pub(in crate::state) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        u64::try_from(i64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
