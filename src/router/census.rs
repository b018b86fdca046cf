//! The connections of all workers together, for metrics.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use metrics::{counter, gauge, histogram};
use parking_lot::Mutex;

use crate::cluster::command::ServerId;
use crate::cluster::{PoolStats, Pools};
use crate::model::side::Side;
use crate::telemetry::metrics as names;

/// The pools of all workers.
#[derive(Debug, Default)]
pub struct Census {
    pools: Mutex<Vec<(Side, Weak<Pools>)>>,
}

impl Census {
    /// Adds the pools of one worker.
    pub fn add(&self, side: Side, pools: &Arc<Pools>) {
        pools.note_waits_in(histogram!(names::POOL_WAIT, "cluster" => side.as_str()));
        self.pools.lock().push((side, Arc::downgrade(pools)));
    }

    /// Counts the connections per cluster and server.
    #[must_use]
    pub fn count(&self) -> HashMap<(Side, ServerId), PoolStats> {
        let mut sums: HashMap<(Side, ServerId), PoolStats> = HashMap::new();
        let mut pools = self.pools.lock();
        pools.retain(|(side, pools)| {
            let Some(pools) = pools.upgrade() else { return false };
            for (server, stats) in pools.stats() {
                let sum = sums.entry((*side, server)).or_default();
                sum.in_use += stats.in_use;
                sum.idle += stats.idle;
                sum.waiting += stats.waiting;
                sum.created += stats.created;
                sum.gave_up += stats.gave_up;
            }
            true
        });
        sums
    }

    /// Publishes what [`Self::count`] finds.
    pub fn publish(&self) {
        for ((side, server), stats) in self.count() {
            let labels = [("cluster", side.as_str().to_owned()), ("server", server.to_string())];
            #[expect(clippy::cast_precision_loss, reason = "counts of connections are far below 2^53")]
            let [in_use, idle, waiting] = [stats.in_use, stats.idle, stats.waiting].map(|count| count as f64);
            gauge!(names::POOL_IN_USE, &labels).set(in_use);
            gauge!(names::POOL_IDLE, &labels).set(idle);
            gauge!(names::POOL_WAITING, &labels).set(waiting);
            counter!(names::POOL_CREATED, &labels).absolute(stats.created);
            counter!(names::POOL_GAVE_UP, &labels).absolute(stats.gave_up);
        }
    }
}
