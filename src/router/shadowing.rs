//! Handing a sample of the reads over, to be run on the other cluster too.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;

use super::operation::Operation;
use super::pipeline::Router;
use crate::model::side::Side;
use crate::policy::classify::Class;
use crate::state::shadowing::{Served, Shadow};
use crate::state::table::MigrationRoute;
use crate::wire::op_msg::OpMsg;

/// A read in the sample that has not been answered yet.
pub(super) struct Sampled {
    shadow: Arc<Shadow>,
    began: Duration,
}

impl Router {
    /// Whether a read of a migrating namespace is in the sample. One look where nothing is sampled.
    pub(super) fn sampled(&self, operation: &Operation<'_>, route: &MigrationRoute) -> Option<Sampled> {
        let registry = &self.writer.as_ref()?.gate.registry;
        if !registry.shadowing() || operation.class != Class::Read || !route.mirrors() {
            return None;
        }
        let shadow = Arc::clone(&registry.get(&route.name)?.shadow);
        shadow.samples(operation.message).then(|| Sampled { shadow, began: self.now() })
    }

    /// The read has been answered by `side` with what is in `reply`.
    pub(super) fn hand_over(
        &self,
        sampled: Option<Sampled>,
        operation: &Operation<'_>,
        side: Side,
        reply: &BytesMut,
    ) {
        let Some(Sampled { shadow, began }) = sampled else { return };
        let (Some(database), Ok(parts)) = (operation.command.database, OpMsg::parse(reply)) else { return };
        let at = self.now();
        shadow.give(&Served {
            database,
            body: &operation.message[operation.parts.body.clone()],
            reply: &reply[parts.body],
            side,
            took: at.saturating_sub(began),
            at,
        });
    }
}
