//! The life of sessions: every cluster hears of it, as any of them may have seen one.

use bytes::BytesMut;

use super::dispatch::Dispatch;
use super::operation::{HOLD_FOLLOWER, Operation};
use super::pipeline::Router;
use crate::cluster::Selection;
use crate::model::side::Side;
use crate::wire::error::ErrorReply;

impl Router {
    /// The route's cluster answers; the other one hears of it too, with little patience.
    pub(super) async fn every_cluster(
        &self,
        operation: &Operation<'_>,
        reply: &mut BytesMut,
    ) -> (Side, Result<bool, ErrorReply>) {
        let side = self.side_outside_migrations(operation);
        let first = self.plain(operation, side, reply);
        let second = async {
            let mut ignored = BytesMut::new();
            let Ok(pools) = self.pools(side.other()) else { return };
            let patched = operation.patched(pools.cluster().gossip());
            let dispatch = Dispatch {
                side: side.other(),
                selection: &Selection::Primary,
                kind: operation.kind(),
                hold: HOLD_FOLLOWER,
                only_if: None,
                message: operation.message,
                patched: &patched,
            };
            let sent = self.send(&dispatch, &mut ignored);
            if crate::clock::timeout(&*self.shared.clock, HOLD_FOLLOWER, sent).await.is_err() {
                tracing::debug!(cluster = side.other().as_str(), "gave up telling about sessions");
            }
        };
        let (result, ()) = futures::join!(first, second);
        (side, result)
    }
}
