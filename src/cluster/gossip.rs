//! The highest `$clusterTime` of one cluster. It never crosses to another cluster: signatures and clocks are
//! the cluster's own.

use std::sync::Arc;

use bson::{RawDocument, RawDocumentBuf};

/// The highest `$clusterTime` seen in replies of one cluster.
#[derive(Debug, Default)]
pub struct Gossip {}

impl Gossip {
    /// The document to send as `$clusterTime`, byte for byte as a server sent it; `None` before the first
    /// reply and for servers without cluster time.
    #[must_use]
    pub fn latest(&self) -> Option<Arc<RawDocumentBuf>> {
        unimplemented!()
    }

    /// Takes the `$clusterTime` document of a reply; cheap when it is not newer.
    pub fn observe(&self, _cluster_time: &RawDocument) {
        unimplemented!()
    }
}
