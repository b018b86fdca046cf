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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;
    use futures::future::BoxFuture;

    use super::*;
    use crate::clock::Clock;

    /// A clock that goes on only when somebody waits.
    #[derive(Default)]
    struct Waited(Arc<Mutex<Duration>>);

    impl Clock for Waited {
        fn now(&self) -> Duration {
            *self.0.lock()
        }

        fn wall_millis(&self) -> i64 {
            0
        }

        fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
            let now = Arc::clone(&self.0);
            async move { *now.lock() += duration }.boxed()
        }
    }

    /// How long ten batches of 100 documents of 10 kB take.
    async fn ten_batches(documents_per_second: Option<f64>, megabytes_per_second: Option<f64>) -> f64 {
        let clock = Arc::new(Waited::default());
        let limiter = Limiter::new(clock.clone());
        limiter.set(Throttle { documents_per_second, megabytes_per_second });
        for _ in 0..10 {
            limiter.pass(100, 1_000_000).await;
        }
        clock.now().as_secs_f64()
    }

    #[tokio::test]
    async fn both_limits_are_kept() {
        let is = |seconds: f64, expected: f64| (seconds - expected).abs() < 1e-3;
        assert!(is(ten_batches(None, None).await, 0.0));
        assert!(is(ten_batches(None, Some(2.0)).await, 5.0), "10 MB at 2 MB/s");
        assert!(is(ten_batches(Some(50.0), None).await, 20.0), "1,000 documents at 50/s");
        assert!(is(ten_batches(Some(50.0), Some(0.1)).await, 100.0), "the slower one counts");
    }
}
