//! A single-threaded executor on a virtual clock: the seed picks which of the ready tasks runs next, and when
//! none is ready the clock jumps to the next timer.

mod task;
mod timer;

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::rng::Rng;
use task::{Ready, Tasks};
pub(crate) use timer::Sleep;
use timer::Timers;

/// Who owns a task; tasks die and pause with their process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ProcessId(pub(crate) u32);

/// The process of the world itself (network, servers, the scenario); it never crashes.
pub(crate) const WORLD: ProcessId = ProcessId(0);

/// Why a run ended before its main task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Halt {
    /// Nothing is ready and no timer is set.
    #[error("deadlock at {at:?}; waiting: {waiting}")]
    Deadlock {
        /// The virtual time.
        at: Duration,
        /// The names of the tasks that wait.
        waiting: String,
    },
    /// More polls than the limit.
    #[error("still running after {steps} steps, at {at:?}")]
    StepLimit {
        /// The polls made.
        steps: u64,
        /// The virtual time.
        at: Duration,
    },
}

/// Everything that can change while tasks run.
struct Core {
    rng: Rng,
    tasks: Tasks,
    timers: Timers,
    steps: u64,
    step_limit: u64,
    trace: u64,
    /// What a look at a clock may cost, in nanoseconds.
    look: u64,
}

/// A handle to the executor; clones share it.
#[derive(Clone)]
pub(crate) struct Executor {
    core: Arc<Mutex<Core>>,
    ready: Arc<Ready>,
}

impl Executor {
    /// An executor whose choices follow `rng`.
    pub(crate) fn new(rng: Rng) -> Self {
        let ready = Arc::new(Ready::default());
        let core = Core {
            rng,
            tasks: Tasks::new(ready.clone()),
            timers: Timers::default(),
            steps: 0,
            step_limit: 2_000_000,
            trace: 0,
            look: 0,
        };
        Self { core: Arc::new(Mutex::new(core)), ready }
    }

    /// Ends a run after this many polls.
    pub(crate) fn limit_steps(&self, limit: u64) {
        self.core.lock().step_limit = limit;
    }

    /// A busy machine: time goes on between two lines of a task, too, by up to `look` for each look at a clock.
    pub(crate) fn be_busy(&self, look: Duration) {
        self.core.lock().look = u64::try_from(look.as_nanos()).unwrap_or(u64::MAX);
    }

    /// The time, for a process: asking takes some on a busy machine.
    pub(crate) fn look(&self) -> Duration {
        let mut core = self.core.lock();
        if core.look > 0 {
            let most = core.look;
            let spent = core.rng.below(most);
            core.timers.spend(spent);
        }
        Duration::from_nanos(core.timers.now())
    }

    /// Virtual time since the world began.
    pub(crate) fn now(&self) -> Duration {
        Duration::from_nanos(self.core.lock().timers.now())
    }

    /// Polls made so far.
    pub(crate) fn steps(&self) -> u64 {
        self.core.lock().steps
    }

    /// A hash over everything that happened; equal for equal schedules.
    pub(crate) fn trace(&self) -> u64 {
        self.core.lock().trace
    }

    /// Adds `value` to the trace.
    pub(crate) fn record(&self, value: u64) {
        self.core.lock().fold(value);
    }

    /// Completes after `duration`.
    pub(crate) fn sleep(&self, duration: Duration) -> Sleep {
        Sleep::new(self.clone(), duration)
    }

    /// Runs `future` in the background, as a part of `process`; dropped at once if that has crashed.
    pub(crate) fn spawn(&self, process: ProcessId, name: &'static str, future: BoxFuture<'static, ()>) {
        let rejected = self.core.lock().tasks.insert(process, name, future);
        drop(rejected);
    }

    /// Drops every task of `process`, wherever it waits; later ones never start.
    pub(crate) fn crash(&self, process: ProcessId) {
        let dropped = self.core.lock().tasks.crash(process);
        drop(dropped);
    }

    /// Crashes `process` instead of its n-th poll from now.
    pub(crate) fn crash_after(&self, process: ProcessId, polls: u32) {
        self.core.lock().tasks.arm(process, polls);
    }

    /// Whether `process` has crashed.
    pub(crate) fn crashed(&self, process: ProcessId) -> bool {
        self.core.lock().tasks.crashed(process)
    }

    /// Stops polling the tasks of `process`; time goes on.
    pub(crate) fn pause(&self, process: ProcessId) {
        self.core.lock().tasks.pause(process);
    }

    /// Goes on with a paused process.
    pub(crate) fn resume(&self, process: ProcessId) {
        self.core.lock().tasks.resume(process);
    }

    /// Runs `main` to its end, and everything else beside it.
    ///
    /// # Errors
    /// [`Halt`] when it cannot end.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        main: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Halt> {
        let result = Arc::new(Mutex::new(None));
        let slot = result.clone();
        self.spawn(WORLD, "main", main.map(move |value| *slot.lock() = Some(value)).boxed());
        loop {
            if !self.step()? {
                self.advance()?;
            }
            if let Some(value) = result.lock().take() {
                return Ok(value);
            }
        }
    }

    /// Drops all tasks; the world ends.
    pub(crate) fn shutdown(&self) {
        let (tasks, timers) = {
            let mut core = self.core.lock();
            (core.tasks.clear(), core.timers.clear())
        };
        drop(tasks);
        drop(timers);
    }

    /// Polls one ready task; false if there is none.
    fn step(&self) -> Result<bool, Halt> {
        let Some(mut running) = self.next_ready()? else { return Ok(false) };
        let waker = Waker::from(running.wake.clone());
        let poll = running.future.poll_unpin(&mut Context::from_waker(&waker));
        let finished = matches!(poll, Poll::Ready(()));
        let leftover = self.core.lock().tasks.put_back(running, finished);
        drop(leftover);
        Ok(true)
    }

    fn next_ready(&self) -> Result<Option<task::Running>, Halt> {
        loop {
            let mut core = self.core.lock();
            let Some(id) = self.ready.pick(&mut core.rng) else { return Ok(None) };
            let (running, crashed) = core.tasks.take(id);
            let Some(running) = running else {
                drop(core);
                drop(crashed);
                continue;
            };
            core.steps += 1;
            let now = core.timers.now();
            core.fold(now ^ (u64::from(running.process.0) << 48) ^ (id.index as u64));
            let steps = core.steps;
            if steps <= core.step_limit {
                return Ok(Some(running));
            }
            // Dropping a task may need the lock.
            drop(core);
            drop(running);
            return Err(Halt::StepLimit { steps, at: Duration::from_nanos(now) });
        }
    }

    /// Moves the clock to the next timer and fires it.
    fn advance(&self) -> Result<(), Halt> {
        let fired = self.core.lock().timers.fire();
        if let Some(waker) = fired {
            waker.wake();
            return Ok(());
        }
        let core = self.core.lock();
        Err(Halt::Deadlock { at: Duration::from_nanos(core.timers.now()), waiting: core.tasks.names() })
    }
}

impl Core {
    fn fold(&mut self, value: u64) {
        self.trace = (self.trace.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}
