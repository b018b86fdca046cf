//! How fast the copy may go; settable while it runs.

use std::time::Duration;

use parking_lot::Mutex;

use super::control::Throttle;
use crate::clock::SharedClock;

/// Two token buckets, for documents and bytes. Unlimited to begin with.
pub struct Limiter {
    clock: SharedClock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    throttle: Throttle,
    /// When what was let through so far is paid for.
    paid_at: Duration,
}

const LONGEST_WAIT: Duration = Duration::from_millis(500);

impl Limiter {
    /// Unlimited.
    #[must_use]
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, state: Mutex::default() }
    }

    /// Sets the limits from now on.
    pub fn set(&self, throttle: Throttle) {
        let mut state = self.state.lock();
        state.throttle = throttle;
        state.paid_at = self.clock.now();
    }

    /// The limits in force.
    #[must_use]
    pub fn get(&self) -> Throttle {
        self.state.lock().throttle
    }

    /// Accounts for a batch and waits until the rate allows for it.
    pub async fn pass(&self, documents: u64, bytes: u64) {
        let due = {
            let mut state = self.state.lock();
            let cost = cost(state.throttle, documents, bytes);
            state.paid_at = state.paid_at.max(self.clock.now()) + cost;
            state.paid_at
        };
        loop {
            let now = self.clock.now();
            // A limit raised meanwhile shortens the wait.
            let due = due.min(self.state.lock().paid_at);
            if now >= due {
                return;
            }
            self.clock.sleep((due - now).min(LONGEST_WAIT)).await;
        }
    }
}

fn cost(throttle: Throttle, documents: u64, bytes: u64) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "counts of one batch")]
    let seconds = |amount: u64, rate: Option<f64>, unit: f64| match rate {
        Some(rate) if rate > 0.0 => amount as f64 / (rate * unit),
        _ => 0.0,
    };
    let by_documents = seconds(documents, throttle.documents_per_second, 1.0);
    let by_bytes = seconds(bytes, throttle.megabytes_per_second, 1e6);
    Duration::from_secs_f64(by_documents.max(by_bytes).min(3600.0))
}
