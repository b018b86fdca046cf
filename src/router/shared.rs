//! What all workers share.

use std::sync::Arc;

use super::census::Census;
use super::cursors::Cursors;
use super::meters::Meters;
use super::open_transactions::OpenTransactions;
use super::snapshots::Snapshots;
use super::transactions::Transactions;
use crate::clock::SharedClock;
use crate::model::side::Side;
use crate::state::transactions::{self, GivenUp};

/// What all workers share.
pub struct Shared {
    /// Where cursors live.
    pub cursors: Cursors,
    /// Where transactions run.
    pub transactions: Transactions,
    /// Transactions that moves and starts wait for.
    pub open_transactions: OpenTransactions,
    /// Where snapshots of sessions are.
    pub snapshots: Snapshots,
    /// The handles of the metrics.
    pub meters: Meters,
    /// The pools of all workers, for metrics.
    pub census: Census,
    /// The process's clock.
    pub clock: SharedClock,
}

impl Shared {
    /// Empty tables.
    #[must_use]
    pub fn new(clock: SharedClock) -> Arc<Self> {
        let (cursors, transactions, meters, census) = Default::default();
        let (open_transactions, snapshots) = Default::default();
        Arc::new(Self { cursors, transactions, open_transactions, snapshots, meters, census, clock })
    }

    /// Forgets what is idle and publishes gauges. To be called every few seconds.
    pub fn sweep(&self) {
        self.census.publish();
        let now = self.clock.now();
        self.meters.cursors_forgotten(self.cursors.sweep(now));
        self.transactions.sweep(now);
        self.open_transactions.sweep(now);
        for side in Side::BOTH {
            self.meters.tables(side, self.cursors.count(side), self.transactions.count(side));
        }
    }
}

impl transactions::Transactions for Shared {
    fn give_up(&self, migration: &str) -> Vec<GivenUp> {
        let given_up = self.open_transactions.give_up(migration);
        let now = self.clock.now();
        let named = given_up.into_iter().map(|((session, number), side)| {
            let home = self.transactions.find(&session, number, now);
            let (server, user) = home.map_or((None, None), |home| (Some(home.server), home.user));
            GivenUp { session, number, side, server, user }
        });
        named.collect()
    }
}
