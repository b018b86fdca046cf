//! One server as monitors and pools share it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::command::ServerId;

/// Most connections being opened to one server at once, so that a failover is not followed by a storm.
const MAX_CONNECTING: usize = 2;

/// One server as monitors and pools share it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) address: ServerId,
    /// Connections of older generations are closed instead of used again.
    generation: AtomicU64,
    /// Bounds the connections being opened.
    pub(super) connecting: Semaphore,
    /// Wakes a monitor that sleeps between checks.
    pub(super) wake: Notify,
    /// Wakes a monitor and makes it ask on a new connection, even while it waits for an answer.
    pub(super) recheck: Notify,
    /// Ends the monitor.
    pub(super) stop: CancellationToken,
    removed: AtomicBool,
}

impl Member {
    pub(super) fn new(address: ServerId) -> Self {
        Self {
            address,
            generation: AtomicU64::new(0),
            connecting: Semaphore::new(MAX_CONNECTING),
            wake: Notify::new(),
            recheck: Notify::new(),
            stop: CancellationToken::new(),
            removed: AtomicBool::new(false),
        }
    }

    /// The generation of connections opened now.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Makes all present connections old.
    pub(super) fn retire_connections(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Makes all connections of `generation` old; `false` when somebody did so before.
    pub(super) fn retire_generation(&self, generation: u64) -> bool {
        let next = generation.wrapping_add(1);
        self.generation.compare_exchange(generation, next, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// The server does not belong to the cluster any more.
    pub(super) fn remove(&self) {
        self.removed.store(true, Ordering::Release);
        self.retire_connections();
        self.stop.cancel();
    }

    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }
}
