//! Timers on the virtual clock.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::Executor;

/// When a timer fires, and its turn among those of the same moment.
type TimerKey = (u64, u64);

/// The virtual clock and who waits for it.
#[derive(Default)]
pub(super) struct Timers {
    now: u64,
    turn: u64,
    waiting: BTreeMap<TimerKey, Waker>,
}

impl Timers {
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Time passes while a task runs; what is due meanwhile fires late.
    pub(super) fn spend(&mut self, nanos: u64) {
        self.now = self.now.saturating_add(nanos);
    }

    /// The key of a timer `after` nanoseconds from now.
    fn reserve(&mut self, after: u64) -> TimerKey {
        self.turn += 1;
        (self.now.saturating_add(after), self.turn)
    }

    /// Goes to the first timer and takes it.
    pub(super) fn fire(&mut self) -> Option<Waker> {
        let ((at, _), waker) = self.waiting.pop_first()?;
        self.now = self.now.max(at);
        Some(waker)
    }

    pub(super) fn clear(&mut self) -> BTreeMap<TimerKey, Waker> {
        std::mem::take(&mut self.waiting)
    }
}

/// Completes when its time has come.
pub(crate) struct Sleep {
    executor: Executor,
    after: u64,
    key: Option<TimerKey>,
}

impl Sleep {
    pub(super) fn new(executor: Executor, duration: Duration) -> Self {
        let after = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let key = executor.core.lock().timers.reserve(after);
        Self { executor, after, key: Some(key) }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(key) = self.key else { return Poll::Ready(()) };
        let mut core = self.executor.core.lock();
        if self.after == 0 || core.timers.now >= key.0 {
            core.timers.waiting.remove(&key);
            drop(core);
            self.key = None;
            return Poll::Ready(());
        }
        core.timers.waiting.insert(key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waker = self.executor.core.lock().timers.waiting.remove(&key);
            drop(waker);
        }
    }
}
