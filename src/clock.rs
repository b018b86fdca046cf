//! Time as the engine sees it: the only place that asks the operating system for it.
//!
//! Everything that waits or measures takes a [`Clock`], so that the simulator can run the same code on a
//! clock of its own. Leases count on [`Clock::now`], which goes on while the machine is suspended.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Either, select};

/// A source of time and of waiting.
pub trait Clock: Send + Sync {
    /// Time since some fixed moment of this machine; never goes back, runs during suspend.
    fn now(&self) -> Duration;
    /// Milliseconds since the Unix epoch, for records that people read; no decision rests on it.
    fn wall_millis(&self) -> i64;
    /// Completes once `duration` has passed on [`Clock::now`].
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// The clock that the whole process shares.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
    }

    fn wall_millis(&self) -> i64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(duration).boxed()
    }
}

/// The time limit of [`timeout`] passed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("timed out")]
pub struct Elapsed;

/// Runs `future` for at most `limit` on `clock`.
///
/// # Errors
/// [`Elapsed`] when the limit passed first; the future is dropped then.
pub async fn timeout<F: Future>(clock: &dyn Clock, limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    let future = std::pin::pin!(future);
    match select(future, clock.sleep(limit)).await {
        Either::Left((output, _)) => Ok(output),
        Either::Right(((), _)) => Err(Elapsed),
    }
}
