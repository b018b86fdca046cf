//! Who is at work on which slots: the epoch guard.
//!
//! Whoever may write enters before it looks at the routing table, and leaves when everything it began is
//! done, known or dropped. After a new table is published, nobody works by an older one once
//! [`Inflight::drained`] returns.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::table::{Routing, RoutingTable};
use crate::clock::SharedClock;
use crate::model::slots::SlotSet;

/// What kind of work a ticket stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A command of an application, with its mirror writes.
    Write,
    /// An open transaction.
    Transaction,
    /// A converge by a tailer, the backfill or a repair.
    Converge,
}

#[derive(Debug)]
struct Entry {
    version: u64,
    migration: Arc<str>,
    slots: SlotSet,
    work: Work,
    what: Arc<str>,
    since: Duration,
}

/// The register of work under way.
pub struct Inflight {
    stripes: [Mutex<HashMap<u64, Entry>>; STRIPES],
    next: AtomicU64,
    left: Notify,
    clock: SharedClock,
    routing: Arc<Routing>,
}

const STRIPES: usize = 16;

/// Proof of having entered; leaving is dropping it.
pub struct Ticket {
    register: Arc<Inflight>,
    id: u64,
    /// The table that this work goes by.
    pub table: Arc<RoutingTable>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.register.stripe(self.id).lock().remove(&self.id);
        self.register.left.notify_waiters();
    }
}

/// Work that stands in the way of a fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oldest {
    /// What kind of work it is.
    pub work: Work,
    /// What it is: the command and its namespace.
    pub what: Arc<str>,
    /// For how long it has been under way.
    pub age: Duration,
}

impl Inflight {
    /// The tables that work goes by.
    #[must_use]
    pub const fn routing(&self) -> &Arc<Routing> {
        &self.routing
    }

    /// An empty register for the tables of `routing`.
    #[must_use]
    pub fn new(routing: Arc<Routing>, clock: SharedClock) -> Arc<Self> {
        Arc::new(Self {
            stripes: std::array::from_fn(|_| Mutex::default()),
            next: AtomicU64::new(0),
            left: Notify::new(),
            clock,
            routing,
        })
    }

    fn stripe(&self, id: u64) -> &Mutex<HashMap<u64, Entry>> {
        #[expect(clippy::cast_possible_truncation, reason = "only the low bits count")]
        let index = id as usize % STRIPES;
        &self.stripes[index]
    }

    /// Enters work on `slots` of `migration`, and returns the table to go by.
    pub fn enter(
        self: &Arc<Self>,
        migration: &Arc<str>,
        slots: SlotSet,
        work: Work,
        what: &Arc<str>,
    ) -> Ticket {
        loop {
            let table = self.routing.load();
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let entry = Entry {
                version: table.version,
                migration: Arc::clone(migration),
                slots,
                work,
                what: Arc::clone(what),
                since: self.clock.now(),
            };
            self.stripe(id).lock().insert(id, entry);
            let ticket = Ticket { register: Arc::clone(self), id, table };
            // A table published between the load and the entry may have been drained without us.
            if self.routing.peek().version == ticket.table.version {
                return ticket;
            }
        }
    }

    /// The oldest work of `kinds` that touches `slots` and entered below `version`.
    #[must_use]
    pub fn oldest(&self, migration: &str, slots: &SlotSet, version: u64, kinds: &[Work]) -> Option<Oldest> {
        let now = self.clock.now();
        let mut oldest: Option<Oldest> = None;
        for stripe in &self.stripes {
            for entry in stripe.lock().values() {
                let counts = entry.version < version
                    && &*entry.migration == migration
                    && kinds.contains(&entry.work)
                    && entry.slots.meets(slots);
                let age = now.saturating_sub(entry.since);
                if counts && oldest.as_ref().is_none_or(|oldest| oldest.age < age) {
                    oldest = Some(Oldest { work: entry.work, what: Arc::clone(&entry.what), age });
                }
            }
        }
        oldest
    }

    /// Waits until no work of `kinds` on `slots` that entered below `version` is left.
    pub async fn drained(&self, migration: &str, slots: &SlotSet, version: u64, kinds: &[Work]) {
        loop {
            let left = self.left.notified();
            let mut left = std::pin::pin!(left);
            left.as_mut().enable();
            if self.oldest(migration, slots, version, kinds).is_none() {
                return;
            }
            left.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use futures::FutureExt;

    #[test]
    fn drained_waits_for_those_who_entered_before() {
        let routing = Arc::new(Routing::default());
        let register = Inflight::new(Arc::clone(&routing), Arc::new(SystemClock));
        let (name, what): (Arc<str>, Arc<str>) = ("m".into(), "update".into());
        let before = register.enter(&name, SlotSet::ALL, Work::Write, &what);
        let version = routing.publish(|_| ());
        let after = register.enter(&name, SlotSet::ALL, Work::Write, &what);
        let slots = SlotSet::percent(10);
        let mut drained = Box::pin(register.drained("m", &slots, version, &[Work::Write]));
        assert!(drained.as_mut().now_or_never().is_none());
        assert_eq!(after.table.version, version);
        drop(before);
        assert!(drained.as_mut().now_or_never().is_some());
    }
}
