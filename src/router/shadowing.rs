//! Handing reads over, to be run once more: a sample to be compared, and all of them while there is a rehearsal.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;

use super::operation::Operation;
use super::pipeline::Router;
use crate::converge::active::Active;
use crate::model::side::Side;
use crate::policy::classify::Class;
use crate::state::handed_over::Served;
use crate::state::table::MigrationRoute;
use crate::wire::op_msg::OpMsg;

/// A read that is to be run once more and has not been answered yet.
pub(super) struct Sampled {
    active: Arc<Active>,
    compared: bool,
    repeated: bool,
    began: Duration,
}

impl Router {
    /// Whether a read of a migrating namespace is in the sample, or in a rehearsal. One look where nothing is.
    pub(super) fn sampled(&self, operation: &Operation<'_>, route: &MigrationRoute) -> Option<Sampled> {
        let registry = &self.writer.as_ref()?.gate.registry;
        if !registry.samples() || operation.class != Class::Read || !route.mirrors() {
            return None;
        }
        let active = registry.get(&route.name)?;
        let is_off = |(database, collection)| active.shadow_off.is_for_name(database, collection);
        let named = operation.command.database.zip(operation.command.collection());
        let compared = active.shadow.samples(operation.message) && !named.is_some_and(is_off);
        let repeated = active.rehearsal.copies(&operation.message[operation.parts.body.clone()]) > 0;
        (compared || repeated).then(|| Sampled { active, compared, repeated, began: self.now() })
    }

    /// The read has been answered by `side` with what is in `reply`.
    pub(super) fn hand_over(
        &self,
        sampled: Option<Sampled>,
        operation: &Operation<'_>,
        side: Side,
        reply: &BytesMut,
    ) {
        let Some(Sampled { active, compared, repeated, began }) = sampled else { return };
        let (Some(database), Ok(parts)) = (operation.command.database, OpMsg::parse(reply)) else { return };
        let at = self.now();
        let served = Served {
            database,
            body: &operation.message[operation.parts.body.clone()],
            reply: &reply[parts.body],
            side,
            took: at.saturating_sub(began),
            at,
        };
        if compared {
            active.shadow.give(&served);
        }
        // What new serves it need not rehearse.
        if repeated && side == Side::Old {
            active.rehearsal.give(&served);
        }
    }
}
