//! A process of the system under test: its clock, its tasks, its name.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use reshard::clock::{Clock, SharedClock};
use reshard::shutdown::{SharedSpawn, Spawn};

use crate::executor::{Executor, ProcessId};

/// A clock of one machine: its own zero and its own rate.
#[derive(Clone)]
pub(crate) struct SimClock {
    executor: Executor,
    offset: Duration,
    /// How much faster it runs than the world, in millionths (may be negative).
    drift_ppm: i64,
}

impl SimClock {
    /// A clock that is `offset` ahead and runs `drift_ppm` too fast.
    pub(crate) fn new(executor: Executor, offset: Duration, drift_ppm: i64) -> Self {
        Self { executor, offset, drift_ppm }
    }

    fn scale(duration: Duration, numerator: i64, denominator: i64) -> Duration {
        let nanos = duration.as_nanos() * numerator.unsigned_abs() as u128;
        Duration::from_nanos(u64::try_from(nanos / denominator.unsigned_abs() as u128).unwrap_or(u64::MAX))
    }
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        self.offset + Self::scale(self.executor.look(), 1_000_000 + self.drift_ppm, 1_000_000)
    }

    fn wall_millis(&self) -> i64 {
        1_700_000_000_000 + self.now().as_millis() as i64
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let world = Self::scale(duration, 1_000_000, 1_000_000 + self.drift_ppm);
        // One more nanosecond: `now` must have passed the duration after rounding down.
        let world = if duration.is_zero() { world } else { world + Duration::from_nanos(1) };
        self.executor.sleep(world).boxed()
    }
}

/// Starts tasks of one process.
#[derive(Clone)]
pub(crate) struct SimSpawn {
    executor: Executor,
    process: ProcessId,
}

impl Spawn for SimSpawn {
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) {
        self.executor.spawn(self.process, name, task);
    }
}

/// One running process; a restart is a new one.
#[derive(Clone)]
pub(crate) struct Process {
    /// Its identity in the executor.
    pub(crate) id: ProcessId,
    /// Its name; the `appName` of its connections.
    pub(crate) name: Arc<str>,
    executor: Executor,
    clock: Arc<SimClock>,
}

impl Process {
    /// A process with a clock of its own.
    pub(crate) fn new(id: ProcessId, name: &str, executor: Executor, clock: SimClock) -> Self {
        Self { id, name: name.into(), executor, clock: Arc::new(clock) }
    }

    /// Its clock.
    pub(crate) fn clock(&self) -> SharedClock {
        self.clock.clone()
    }

    /// Its spawner.
    pub(crate) fn spawner(&self) -> SharedSpawn {
        Arc::new(SimSpawn { executor: self.executor.clone(), process: self.id })
    }

    /// Starts a task of it.
    pub(crate) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.executor.spawn(self.id, name, task.boxed());
    }
}
