//! What was counted of one range.

use bson::{Document, RawDocument, doc};

use crate::migration::control::Verification;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};

/// Documents, digests and differences of one range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) documents: PerSide<u64>,
    /// Sums of the documents' hashes: they do not depend on the order.
    pub(super) digest: PerSide<u128>,
    pub(super) mismatches: u64,
    pub(super) repaired: u64,
}

impl Tally {
    /// Counts a document read of `side`.
    pub(super) fn count(&mut self, side: Side, hash: u128) {
        *self.documents.get_mut(side) += 1;
        let digest = self.digest.get_mut(side);
        *digest = digest.wrapping_add(hash);
    }

    /// Counts a real difference.
    pub(super) fn tell(&mut self, repaired: bool) {
        self.mismatches += 1;
        self.repaired += u64::from(repaired);
    }

    /// Adds all of it to what was compared of `namespace`.
    pub(super) fn add_to(&self, all: &mut Verification, namespace: &Namespace) {
        self.add_documents_to(all, namespace);
        self.add_differences_to(all, namespace.as_str());
    }

    pub(super) fn add_documents_to(&self, all: &mut Verification, namespace: &Namespace) {
        all.compared_documents += self.documents.old.max(self.documents.new);
        let of = all.collections.iter_mut().find(|of| of.namespace == namespace.as_str());
        let Some(of) = of else { return };
        of.documents_on_old += self.documents.old;
        of.documents_on_new += self.documents.new;
        for (sum, digest) in
            [(&mut of.digest_of_old, self.digest.old), (&mut of.digest_of_new, self.digest.new)]
        {
            *sum = spelled(read(sum).wrapping_add(digest));
        }
    }

    pub(super) fn add_differences_to(&self, all: &mut Verification, namespace: &str) {
        all.mismatches += self.mismatches;
        all.repaired += self.repaired;
        if let Some(of) = all.collections.iter_mut().find(|of| of.namespace == namespace) {
            of.mismatches += self.mismatches;
            of.repaired += self.repaired;
        }
    }

    /// As it is stored.
    pub(super) fn stored(&self) -> Document {
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        doc! {
            "documents_on_old": count(self.documents.old), "documents_on_new": count(self.documents.new),
            "digest_of_old": spelled(self.digest.old), "digest_of_new": spelled(self.digest.new),
            "mismatches": count(self.mismatches), "repaired": count(self.repaired),
        }
    }

    /// As it was stored.
    pub(super) fn read(stored: &RawDocument) -> Self {
        let count = |field: &str| {
            stored.get_i64(field).ok().and_then(|count| u64::try_from(count).ok()).unwrap_or_default()
        };
        let digest = |field: &str| stored.get_str(field).map_or(0, read);
        Self {
            documents: PerSide { old: count("documents_on_old"), new: count("documents_on_new") },
            digest: PerSide { old: digest("digest_of_old"), new: digest("digest_of_new") },
            mismatches: count("mismatches"),
            repaired: count("repaired"),
        }
    }
}

fn spelled(digest: u128) -> String {
    format!("{digest:032x}")
}

fn read(digest: &str) -> u128 {
    u128::from_str_radix(digest, 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use bson::RawDocumentBuf;

    use super::*;
    use crate::migration::control::Compared;

    fn tally(of_old: &[u128], of_new: &[u128]) -> Tally {
        let mut tally = Tally::default();
        of_old.iter().for_each(|hash| tally.count(Side::Old, *hash));
        of_new.iter().for_each(|hash| tally.count(Side::New, *hash));
        tally
    }

    #[test]
    fn ranges_add_up_whatever_their_order() {
        let namespace = Namespace::new("shop", "c");
        let collections = vec![Compared { namespace: "shop.c".into(), ..Compared::default() }];
        let mut all = Verification { collections, ..Verification::default() };
        let mut first = tally(&[1, u128::MAX], &[u128::MAX]);
        first.tell(true);
        first.add_to(&mut all, &namespace);
        tally(&[7], &[7, 1]).add_to(&mut all, &namespace);
        let of = &all.collections[0];
        assert_eq!((of.documents_on_old, of.documents_on_new), (3, 3));
        assert_eq!(of.digest_of_old, of.digest_of_new);
        assert_eq!(of.digest_of_old, spelled(7));
        assert_eq!((of.mismatches, of.repaired, all.mismatches, all.repaired), (1, 1, 1, 1));
        assert_eq!(all.compared_documents, 4);
    }

    #[test]
    fn it_is_read_as_it_was_stored() {
        let mut tally = tally(&[1, u128::MAX - 5], &[3]);
        tally.tell(true);
        tally.tell(false);
        let stored = RawDocumentBuf::try_from(&tally.stored()).unwrap();
        assert_eq!(Tally::read(&stored), tally);
    }
}
