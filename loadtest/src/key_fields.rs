//! Fields beside `_id` that name a document: what a collection may be sharded by.

use bson::{Bson, Document, RawBson, doc};
use clap::ValueEnum;
use serde::Serialize;

use crate::canonical::canonical_id;
use crate::keys::mix64;

/// Customers that all documents are spread over.
const CUSTOMERS: u64 = 500;

/// By what the operations of a load name a document. MongoDB refuses upserts and findAndModify on a sharded
/// collection that do not name its whole shard key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum KeyFields {
    /// By its `_id` alone.
    #[default]
    Id,
    /// By its `_id`, `customer_id` (one of 500) and `order_id`. Every document has these two fields; they
    /// follow from its `_id` and never change.
    CustomerOrder,
}

impl KeyFields {
    /// The fields beside `_id` of the document with this one, in the order in which an upsert puts them.
    pub fn of(self, id: &Bson) -> Document {
        match self {
            Self::Id => Document::new(),
            Self::CustomerOrder => {
                let hash = stable_hash(id);
                let customer = i32::try_from(hash % CUSTOMERS).unwrap_or_default();
                // So that whoever takes numbers for doubles still has the same one.
                let order = mix64(hash) >> 11;
                doc! { "customer_id": customer, "order_id": order.cast_signed() }
            }
        }
    }
}

/// The same on every machine and in every version, and for all `_id`s that the server takes as one.
fn stable_hash(id: &Bson) -> u64 {
    let raw = RawBson::try_from(id.clone()).unwrap_or(RawBson::Null);
    let bytes = canonical_id(raw.as_raw_bson_ref());
    mix64(
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Key, KeySpace};
    use std::collections::{HashMap, HashSet};

    #[test]
    fn an_id_alone_names_a_document_unless_asked_otherwise() {
        assert!(KeyFields::default().of(&Bson::Int32(7)).is_empty());
    }

    #[test]
    fn they_follow_from_the_id_whatever_its_type() {
        let fields = |id: Bson| KeyFields::CustomerOrder.of(&id);
        assert_eq!(fields(Bson::Int32(7)), doc! { "customer_id": 61, "order_id": 749_420_407_276_743_i64 });
        assert_eq!(fields(Bson::Int32(7)), fields(Bson::Double(7.0)));
        assert_ne!(fields(Bson::Int32(7)), fields(Bson::String("7".into())));
    }

    #[test]
    fn documents_are_spread_over_all_customers_and_have_orders_of_their_own() {
        let space = KeySpace::new(1, true);
        let (mut customers, mut orders) = (HashMap::<i32, usize>::new(), HashSet::new());
        for n in 0..20_000 {
            let fields = KeyFields::CustomerOrder.of(&space.id(Key::History(n)));
            *customers.entry(fields.get_i32("customer_id").unwrap()).or_default() += 1;
            assert!(orders.insert(fields.get_i64("order_id").unwrap()));
        }
        assert_eq!(customers.len(), 500);
        assert!(customers.values().all(|orders| (10..90).contains(orders)), "{customers:?}");
    }
}
