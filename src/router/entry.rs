//! Entering a write on a migrating namespace: wait out fences, find the authorities, begin under leases.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{SharedClock, timeout};
use crate::cluster::command::OnlyIf;
use crate::converge::active::{Active, Registry};
use crate::model::side::{PerSide, Side};
use crate::model::slots::SlotSet;
use crate::policy::invariants::{Invariant, acknowledged};
use crate::state::inflight::{Inflight, Ticket, Work};
use crate::state::lease::Generation;
use crate::state::table::{MigrationRoute, Routing, RoutingTable};
use crate::state::unsettled::Unsettled;
use crate::wire::error::{ErrorReply, HOST_UNREACHABLE, NO_WRITES_PERFORMED, RETRYABLE_WRITE};
use tokio::sync::Semaphore;

/// Writes that may wait for fences and leases at once.
pub const MOST_HELD: usize = 20_000;
const LEASE_PAUSE: Duration = Duration::from_millis(20);

/// The way into the migrating path.
#[derive(Clone)]
pub struct Gate {
    /// The routing tables.
    pub routing: Arc<Routing>,
    /// The register of work under way.
    pub inflight: Arc<Inflight>,
    /// The migrations that this process works on.
    pub registry: Arc<Registry>,
    /// Bounds the writes that wait.
    pub waiting: Arc<Semaphore>,
    /// Writes whose outcome is not known.
    pub unsettled: Arc<Unsettled>,
    /// The clock.
    pub clock: SharedClock,
}

/// A write that may go ahead.
pub struct Entered {
    /// Proof of having entered.
    pub ticket: Ticket,
    /// How the namespace is routed for this write.
    pub route: Arc<MigrationRoute>,
    /// The migration; `None` once it is over.
    pub active: Option<Arc<Active>>,
    /// What knows of retries: the migration, also for a while after it is over.
    pub retries: Option<Arc<Active>>,
    /// The leases that it began under.
    leases: Vec<(Side, Generation)>,
}

/// What held when a write was answered.
pub struct Answered {
    leases_hold: bool,
    /// Whether the reply may be shown.
    pub may_show: bool,
    /// The slots of each side; `None` where nothing migrates any more.
    owned: Option<PerSide<SlotSet>>,
}

fn owned(route: &MigrationRoute) -> PerSide<SlotSet> {
    PerSide::from_fn(|side| *route.owned_by(side))
}

impl Entered {
    /// One that holds nothing but its place.
    #[cfg(test)]
    pub(super) fn of(ticket: Ticket, route: Arc<MigrationRoute>) -> Self {
        Self { ticket, route, active: None, retries: None, leases: Vec::new() }
    }

    /// What holds now that there is an answer about `namespace`. Looked at once: a lease that ends later was held
    /// when the write was executed, however long it takes until the reply is out.
    #[must_use]
    pub fn answered(&self, gate: &Gate, namespace: &str) -> Answered {
        let Some(active) = &self.active else {
            return Answered { leases_hold: true, may_show: true, owned: None };
        };
        // Before the leases: who owned what while they held.
        let table = gate.routing.peek();
        // Once the migration is aborted there is no route, and nobody has moved anything.
        let owned = owned(table.route(namespace).unwrap_or(&self.route));
        let leases_hold = hold(active, &self.leases);
        Answered {
            leases_hold,
            may_show: leases_hold || !active.converger.safeguards.reply_check,
            owned: Some(owned),
        }
    }

    /// Whether every lease that the write began under still holds: only then may its reply be shown.
    #[must_use]
    pub fn may_answer(&self) -> bool {
        let Some(active) = &self.active else { return true };
        !active.converger.safeguards.reply_check || hold(active, &self.leases)
    }

    /// Its reply about `slots` is shown: what must have held when it was `answered`.
    pub(super) fn watch(&self, answered: &Answered, slots: &SlotSet) {
        let (Some(active), Some(then)) = (&self.active, &answered.owned) else { return };
        let holds = acknowledged(answered.leases_hold, slots, &owned(&self.route), then);
        active.converger.violations.watch(Invariant::Acknowledged, holds);
    }

    /// Whether they hold, to be asked before each attempt: what is sent later than a lease may arrive where
    /// its slots were, and a retry would take it for done.
    #[must_use]
    pub fn only_if_held(&self) -> OnlyIf {
        let (active, leases) = (self.active.clone(), self.leases.clone());
        OnlyIf(Arc::new(move || {
            let Some(active) = &active else { return true };
            !active.converger.safeguards.send_check || hold(active, &leases)
        }))
    }
}

/// Held by a write from before it is looked up whether its namespace migrates, until there is an answer: a
/// migration that starts meanwhile waits for it.
pub struct Passing {
    _table: Arc<RoutingTable>,
}

impl Passing {
    /// Goes by the table of this moment.
    #[must_use]
    pub fn by(routing: &Routing) -> Self {
        Self { _table: routing.load() }
    }
}

fn hold(active: &Active, leases: &[(Side, Generation)]) -> bool {
    leases.iter().all(|(side, generation)| active.authorities.get(*side).lease.holds(*generation))
}

enum Try {
    Entered(Box<Entered>),
    /// Not a migrating namespace any more.
    Elsewhere,
    /// A fence, or slots without an owner: wait for a table newer than this.
    Table(u64, &'static str),
    Lease(Side),
}

impl Gate {
    /// A write of a namespace that does not migrate has failed: it may be executed once it does.
    pub fn note_failed(
        &self,
        namespace: &str,
        session: Option<[u8; 16]>,
        number: Option<i64>,
        error: &ErrorReply,
    ) {
        if error.labels.contains(&NO_WRITES_PERFORMED) {
            return;
        }
        self.registry.process.stray(namespace, self.clock.now());
        if let Some((session, number)) = session.zip(number) {
            self.unsettled.note(session, number, &SlotSet::ALL, 0, self.clock.now());
        }
    }

    /// Enters a write on `slots` of `namespace`, waiting at most `hold`. `Ok(None)`: the namespace does not
    /// migrate.
    ///
    /// # Errors
    /// The error to answer with when the wait was too long; nothing was sent.
    pub async fn enter(
        &self,
        namespace: &str,
        slots: SlotSet,
        work: Work,
        what: &Arc<str>,
        hold: Duration,
    ) -> Result<Option<Entered>, ErrorReply> {
        let deadline = self.clock.now() + hold;
        let mut permit = None;
        loop {
            let why = match self.try_enter(namespace, slots, work, what) {
                Try::Entered(entered) => return Ok(Some(*entered)),
                Try::Elsewhere => return Ok(None),
                Try::Table(version, why) => {
                    let left = deadline.saturating_sub(self.clock.now());
                    permit = Some(self.permit(permit)?);
                    match timeout(&*self.clock, left, self.routing.changed_since(version)).await {
                        Ok(()) => continue,
                        Err(_) => why.to_owned(),
                    }
                }
                Try::Lease(side) => {
                    permit = Some(self.permit(permit)?);
                    self.clock.sleep(LEASE_PAUSE).await;
                    if self.clock.now() < deadline {
                        continue;
                    }
                    format!("the {side} cluster does not grant this proxy the lease to write")
                }
            };
            return Err(not_sent(why));
        }
    }

    fn permit<'a>(
        &'a self,
        held: Option<tokio::sync::SemaphorePermit<'a>>,
    ) -> Result<tokio::sync::SemaphorePermit<'a>, ErrorReply> {
        match held {
            Some(permit) => Ok(permit),
            None => {
                self.waiting.try_acquire().map_err(|_| not_sent("too many writes wait for a move".into()))
            }
        }
    }

    fn try_enter(&self, namespace: &str, slots: SlotSet, work: Work, what: &Arc<str>) -> Try {
        let Some(name) = self.routing.peek().route(namespace).map(|route| Arc::clone(&route.name)) else {
            return Try::Elsewhere;
        };
        let ticket = self.inflight.enter(&name, slots, work, what);
        let Some(route) = ticket.table.route(namespace).cloned() else { return Try::Elsewhere };
        let version = ticket.table.version;
        if route.held.meets(&slots) {
            return Try::Table(version, "a move of its slots takes too long");
        }
        if !slots.minus(&route.settled()).is_empty() {
            return Try::Table(version, "the owner of its slots is not known");
        }
        if route.phase.is_over() {
            let retries = self.registry.get(&route.name);
            return Try::Entered(Box::new(Entered {
                ticket,
                route,
                active: None,
                retries,
                leases: Vec::new(),
            }));
        }
        let Some(active) = self.registry.get(&route.name) else {
            return Try::Table(version, "its migration is being started");
        };
        let mut leases = Vec::new();
        for side in Side::BOTH.into_iter().filter(|side| route.owned_by(*side).meets(&slots)) {
            match active.authorities.get(side).lease.begin() {
                Some(generation) => leases.push((side, generation)),
                None => return Try::Lease(side),
            }
        }
        let retries = Some(Arc::clone(&active));
        Try::Entered(Box::new(Entered { ticket, route, active: Some(active), retries, leases }))
    }
}

/// The error for a write that was not sent anywhere.
#[must_use]
pub fn not_sent(why: String) -> ErrorReply {
    ErrorReply::new(HOST_UNREACHABLE, why).labelled(vec![RETRYABLE_WRITE, NO_WRITES_PERFORMED])
}
