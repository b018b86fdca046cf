//! The life of sessions: every cluster hears of it, as any of them may have seen one.

use bytes::BytesMut;
use futures::future::join_all;

use super::dispatch::Dispatch;
use super::operation::{HOLD_FOLLOWER, Operation};
use super::pipeline::Router;
use crate::cluster::{Role, Selection};
use crate::model::side::Side;
use crate::wire::error::ErrorReply;

impl Router {
    /// The route's cluster answers; the others hear of it too, with little patience.
    pub(super) async fn every_cluster(
        &self,
        operation: &Operation<'_>,
        reply: &mut BytesMut,
    ) -> (Side, Result<bool, ErrorReply>) {
        let side = self.side_outside_migrations(operation);
        let first = self.plain(operation, side, reply);
        let others = self.others(operation, side);
        let others = join_all(others.iter().map(|(side, server)| self.tell(operation, *side, server)));
        let (result, _) = futures::join!(first, others);
        (side, result)
    }

    /// Who hears of it besides the primary of `side`. What is to be killed may be at any server, as a router would
    /// look for it at all of them; what ends, the others learn from the primary.
    fn others(&self, operation: &Operation<'_>, side: Side) -> Vec<(Side, Selection)> {
        let mut others = vec![(side.other(), Selection::Primary)];
        if !operation.command.name.starts_with("kill") {
            return others;
        }
        for side in Side::BOTH {
            let Ok(pools) = self.pools(side) else { continue };
            for server in &pools.cluster().topology().servers {
                if server.role.takes_operations() && server.role != Role::Primary {
                    others.push((side, Selection::Server(server.address.clone())));
                }
            }
        }
        others
    }

    async fn tell(&self, operation: &Operation<'_>, side: Side, selection: &Selection) {
        let mut ignored = BytesMut::new();
        let Ok(pools) = self.pools(side) else { return };
        let patched = operation.patched(pools.times());
        let dispatch = Dispatch {
            side,
            selection,
            kind: operation.kind(),
            hold: HOLD_FOLLOWER,
            only_if: None,
            message: operation.message,
            patched: &patched,
        };
        let sent = self.send(&dispatch, &mut ignored);
        if crate::clock::timeout(&*self.shared.clock, HOLD_FOLLOWER, sent).await.is_err() {
            tracing::debug!(cluster = side.as_str(), "gave up telling about sessions");
        }
    }
}
