//! When operations start.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The clock's granularity: waking that much early keeps the timer's own delay
/// out of the latency.
const TICK: Duration = Duration::from_millis(1);

/// Hands out start times to workers.
pub(crate) struct Pacer {
    start: Instant,
    interval: Option<Duration>,
    open: bool,
    taken: AtomicU64,
    next: Mutex<Instant>,
    closed: Mutex<Option<Instant>>,
}

impl Pacer {
    pub(crate) fn new(start: Instant, rate: Option<f64>, open: bool) -> Self {
        Self {
            start,
            interval: rate.map(|rate| Duration::from_secs_f64(1.0 / rate)),
            open,
            taken: AtomicU64::new(0),
            next: Mutex::new(start),
            closed: Mutex::new(None),
        }
    }

    /// Waits for the next start and returns the intended one, from which
    /// latency counts. Open loop: arrival by arrival, late or not. Closed loop:
    /// no sooner than the rate allows, and nothing is made up for.
    pub(crate) async fn next(&self) -> Instant {
        let Some(interval) = self.interval else { return Instant::now() };
        if self.open {
            let arrival = self.taken.fetch_add(1, Ordering::Relaxed);
            let intended = self.start + interval.mul_f64(as_f64(arrival));
            sleep_until(intended).await;
            return intended.min(Instant::now());
        }
        let slot = {
            let mut next = self.next.lock();
            let slot = (*next).max(Instant::now());
            *next = slot + interval;
            slot
        };
        sleep_until(slot).await;
        Instant::now()
    }

    /// No arrivals from now on.
    pub(crate) fn close(&self, now: Instant) {
        self.closed.lock().get_or_insert(now);
    }

    /// Arrivals that are due and not taken.
    pub(crate) fn backlog(&self, now: Instant) -> u64 {
        let (Some(interval), true) = (self.interval, self.open) else { return 0 };
        let until = self.closed.lock().unwrap_or(now);
        let elapsed = until.saturating_duration_since(self.start).as_nanos();
        let due = u64::try_from(elapsed / interval.as_nanos().max(1)).unwrap_or_default();
        due.saturating_sub(self.taken.load(Ordering::Relaxed))
    }
}

#[allow(clippy::cast_precision_loss)]
fn as_f64(count: u64) -> f64 {
    count as f64
}

async fn sleep_until(at: Instant) {
    if at > Instant::now() + TICK {
        tokio::time::sleep_until((at - TICK).into()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_open_loop_does_not_forget_late_arrivals() {
        let start = Instant::now();
        let pacer = Pacer::new(start, Some(1000.0), true);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(pacer.backlog(Instant::now()) >= 49);
        assert_eq!(pacer.next().await, start);
        assert_eq!(pacer.next().await, start + Duration::from_millis(1));
    }

    #[tokio::test]
    async fn a_closed_loop_keeps_the_rate_and_makes_up_for_nothing() {
        let pacer = Pacer::new(Instant::now(), Some(200.0), false);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let begin = Instant::now();
        for _ in 0..11 {
            pacer.next().await;
        }
        assert!(begin.elapsed() >= Duration::from_millis(48), "{:?}", begin.elapsed());
        assert_eq!(pacer.backlog(Instant::now()), 0);
    }
}
