//! The highest `$clusterTime` of one cluster. It never crosses to another cluster: signatures and clocks are
//! the cluster's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use bson::{RawDocument, RawDocumentBuf, Timestamp};
use parking_lot::Mutex;

/// The highest `$clusterTime` seen in replies of one cluster.
#[derive(Debug, Default)]
pub struct Gossip {
    /// The timestamp of `latest`; most replies bring nothing newer and need only this.
    newest: AtomicU64,
    latest: ArcSwapOption<RawDocumentBuf>,
    writing: Mutex<()>,
    foreign: AtomicBool,
}

impl Gossip {
    /// Clients may hold times of another cluster from now on.
    pub fn expect_foreign_times(&self) {
        self.foreign.store(true, Ordering::Relaxed);
    }

    /// The time to wait for instead of one that a client asks for, which may be another cluster's: the
    /// newest that was ever seen of this one, so never an older read than the client's. `None` where clients
    /// only know this cluster.
    #[must_use]
    pub fn instead_of_a_clients(&self) -> Option<u64> {
        let newest = self.newest.load(Ordering::Relaxed);
        (self.foreign.load(Ordering::Relaxed) && newest > 0).then_some(newest)
    }

    /// The document to send as `$clusterTime`, byte for byte as a server sent it; `None` before the first
    /// reply and for servers without cluster time.
    #[must_use]
    pub fn latest(&self) -> Option<Arc<RawDocumentBuf>> {
        self.latest.load_full()
    }

    /// The time of [`Self::latest`].
    #[must_use]
    pub fn newest(&self) -> Timestamp {
        let newest = self.newest.load(Ordering::Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        Timestamp { time: (newest >> 32) as u32, increment: newest as u32 }
    }

    /// Takes the `$clusterTime` document of a reply; cheap when it is not newer.
    pub fn observe(&self, cluster_time: &RawDocument) {
        let Ok(time) = cluster_time.get_timestamp("clusterTime") else { return };
        let time = (u64::from(time.time) << 32) | u64::from(time.increment);
        if time <= self.newest.load(Ordering::Relaxed) {
            return;
        }
        let _writing = self.writing.lock();
        if time > self.newest.load(Ordering::Relaxed) {
            self.latest.store(Some(Arc::new(cluster_time.to_owned())));
            self.newest.store(time, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;

    fn at(time: u32, key: i64) -> RawDocumentBuf {
        rawdoc! { "clusterTime": Timestamp { time, increment: 1 }, "signature": { "keyId": key } }
    }

    #[test]
    fn times_of_clients_are_replaced_only_where_they_may_be_foreign() {
        let gossip = Gossip::default();
        gossip.observe(&at(5, 1));
        assert_eq!(gossip.instead_of_a_clients(), None);
        gossip.expect_foreign_times();
        assert_eq!(gossip.instead_of_a_clients(), Some((5 << 32) | 1));
    }

    #[test]
    fn only_a_newer_time_replaces() {
        let gossip = Gossip::default();
        assert!(gossip.latest().is_none());
        gossip.observe(&at(5, 1));
        gossip.observe(&at(4, 2));
        gossip.observe(&at(5, 3));
        assert_eq!(*gossip.latest().unwrap(), at(5, 1));
        gossip.observe(&at(6, 4));
        assert_eq!(*gossip.latest().unwrap(), at(6, 4));
    }
}
