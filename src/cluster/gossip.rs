//! The highest `$clusterTime` of one cluster. It never crosses to another cluster: signatures and clocks are
//! the cluster's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use bson::{RawDocument, RawDocumentBuf};
use parking_lot::Mutex;

/// The highest `$clusterTime` seen in replies of one cluster.
#[derive(Debug, Default)]
pub struct Gossip {
    /// The timestamp of `latest`; most replies bring nothing newer and need only this.
    newest: AtomicU64,
    latest: ArcSwapOption<RawDocumentBuf>,
    writing: Mutex<()>,
}

impl Gossip {
    /// The document to send as `$clusterTime`, byte for byte as a server sent it; `None` before the first
    /// reply and for servers without cluster time.
    #[must_use]
    pub fn latest(&self) -> Option<Arc<RawDocumentBuf>> {
        self.latest.load_full()
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
    use bson::{Timestamp, rawdoc};

    use super::*;

    fn at(time: u32, key: i64) -> RawDocumentBuf {
        rawdoc! { "clusterTime": Timestamp { time, increment: 1 }, "signature": { "keyId": key } }
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
