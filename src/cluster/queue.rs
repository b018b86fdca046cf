//! Those who wait for a connection: how many there are, for how long, and who got none.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use metrics::Histogram;

/// Where the times of waiting are noted; nowhere, until somebody says.
#[derive(Debug, Default)]
pub(super) struct Waits(OnceLock<Histogram>);

impl Waits {
    /// From now on they are noted here. The first call counts.
    pub(super) fn go_to(&self, histogram: Histogram) {
        _ = self.0.set(histogram);
    }

    fn note(&self, begun: Instant) {
        if let Some(histogram) = self.0.get() {
            histogram.record(begun.elapsed().as_secs_f64());
        }
    }
}

/// The queue of one pool.
#[derive(Debug)]
pub(super) struct Queue {
    waits: Arc<Waits>,
    waiting: AtomicUsize,
    gave_up: AtomicU64,
}

impl Queue {
    pub(super) fn new(waits: Arc<Waits>) -> Self {
        Self { waits, waiting: AtomicUsize::new(0), gave_up: AtomicU64::new(0) }
    }

    /// Begins to wait.
    pub(super) fn join(&self) -> Patience<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Patience { queue: self, begun: Instant::now(), in_line: true, is_over: false }
    }

    /// Who waits because all connections are in use.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Who left without a connection.
    pub(super) fn gave_up(&self) -> u64 {
        self.gave_up.load(Ordering::Relaxed)
    }
}

/// Somebody who waits. Dropped before it is over, it counts as given up.
pub(super) struct Patience<'a> {
    queue: &'a Queue,
    begun: Instant,
    in_line: bool,
    is_over: bool,
}

impl Patience<'_> {
    /// All connections are not in use any more; there may be none yet.
    pub(super) fn has_a_turn(mut self) -> Self {
        self.leave_line();
        self
    }

    /// There is a connection, or the server gives none.
    pub(super) fn end(mut self) {
        self.is_over = true;
    }

    fn leave_line(&mut self) {
        if std::mem::take(&mut self.in_line) {
            self.queue.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Patience<'_> {
    fn drop(&mut self) {
        self.leave_line();
        if !self.is_over {
            self.queue.gave_up.fetch_add(1, Ordering::Relaxed);
        }
        self.queue.waits.note(self.begun);
    }
}
