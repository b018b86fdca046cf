//! Reads of the application, kept by shape, so that repetitions ask for other values than the read that they repeat.

use std::collections::HashMap;

use crate::migration::shadow::Read;

/// Shapes of which reads are kept.
const MOST_SHAPES: usize = 256;
/// Reads of one shape.
const OF_A_SHAPE: usize = 16;
/// Bytes of a read that is kept.
const MOST_BYTES: usize = 4 << 10;

#[derive(Debug, Default)]
struct Shape {
    reads: Vec<Read>,
    /// Where the next one is put.
    put: usize,
    /// Which one is next to be repeated.
    take: usize,
}

/// What is kept: at most 16 MB.
#[derive(Debug, Default)]
pub(super) struct Recorded(HashMap<u64, Shape>);

impl Recorded {
    /// Keeps `read`, of the shape `hash`, in place of the oldest one.
    pub(super) fn keep(&mut self, hash: u64, read: &Read) {
        let is_new = !self.0.contains_key(&hash);
        if read.body.as_bytes().len() > MOST_BYTES || is_new && self.0.len() >= MOST_SHAPES {
            return;
        }
        let shape = self.0.entry(hash).or_default();
        match shape.reads.get_mut(shape.put) {
            Some(oldest) => *oldest = read.clone(),
            None => shape.reads.push(read.clone()),
        }
        shape.put = (shape.put + 1) % OF_A_SHAPE;
    }

    /// A read like `read`, of the shape `hash`: each that is kept comes in its turn.
    pub(super) fn like(&mut self, hash: u64, read: &Read) -> Read {
        let Some(shape) = self.0.get_mut(&hash) else { return read.clone() };
        shape.take = (shape.take + 1) % shape.reads.len();
        shape.reads[shape.take].clone()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bson::rawdoc;

    use super::*;
    use crate::model::namespace::Namespace;
    use crate::model::side::Side;

    fn read(id: i32, text: &str) -> Read {
        Read {
            name: "find".into(),
            namespace: Namespace::new("shop", "orders"),
            body: rawdoc! { "find": "orders", "filter": { "_id": id, "text": text } },
            served: Side::Old,
        }
    }

    fn id(read: &Read) -> i32 {
        read.body.get_document("filter").unwrap().get_i32("_id").unwrap()
    }

    #[test]
    fn repetitions_ask_for_the_newest_values_in_turn() {
        let mut recorded = Recorded::default();
        assert_eq!(id(&recorded.like(7, &read(-1, ""))), -1);
        (0..40).for_each(|number| recorded.keep(7, &read(number, "")));
        recorded.keep(7, &read(99, &"x".repeat(MOST_BYTES)));
        let asked: BTreeSet<i32> = (0..OF_A_SHAPE).map(|_| id(&recorded.like(7, &read(-1, "")))).collect();
        assert_eq!(asked, (24..40).collect());
    }

    #[test]
    fn shapes_are_bounded() {
        let mut recorded = Recorded::default();
        (0..1_000).for_each(|hash| recorded.keep(hash, &read(1, "")));
        assert_eq!(recorded.0.len(), MOST_SHAPES);
        assert_eq!(id(&recorded.like(999, &read(5, ""))), 5);
    }
}
