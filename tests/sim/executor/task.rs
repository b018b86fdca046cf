//! The tasks, the processes that own them, and the queue of those that are ready.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;

use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::ProcessId;
use crate::rng::Rng;

/// A slot of the slab and which of its tenants is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TaskId {
    pub(super) index: usize,
    generation: u64,
}

/// Tasks that were woken, sorted: channels may wake several in an order of their own.
#[derive(Default)]
pub(super) struct Ready(Mutex<Vec<TaskId>>);

impl Ready {
    /// Takes one, chosen by `rng`.
    pub(super) fn pick(&self, rng: &mut Rng) -> Option<TaskId> {
        let mut queue = self.0.lock();
        match queue.len() {
            0 => None,
            1 => queue.pop(),
            length => Some(queue.remove(rng.index(length))),
        }
    }

    fn add(&self, id: TaskId) {
        let mut queue = self.0.lock();
        let place = queue.partition_point(|other| *other < id);
        queue.insert(place, id);
    }
}

/// Wakes one task; queues it at most once.
pub(super) struct TaskWake {
    id: TaskId,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.add(self.id);
        }
    }
}

/// A task out of its slot, to be polled.
pub(super) struct Running {
    id: TaskId,
    pub(super) process: ProcessId,
    name: &'static str,
    pub(super) wake: Arc<TaskWake>,
    pub(super) future: BoxFuture<'static, ()>,
}

enum Slot {
    Free,
    /// Being polled at the moment.
    Taken,
    Waiting(Running),
}

#[derive(Default)]
struct Process {
    crashed: bool,
    paused: bool,
    /// Polls left before it crashes.
    fuse: Option<u32>,
    /// Woken while paused.
    stash: Vec<TaskId>,
}

/// All tasks.
pub(super) struct Tasks {
    ready: Arc<Ready>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    generation: u64,
    processes: BTreeMap<ProcessId, Process>,
}

impl Tasks {
    pub(super) fn new(ready: Arc<Ready>) -> Self {
        Self { ready, slots: Vec::new(), free: Vec::new(), generation: 0, processes: BTreeMap::new() }
    }

    /// Starts a task; gives it back if its process is dead.
    pub(super) fn insert(
        &mut self,
        process: ProcessId,
        name: &'static str,
        future: BoxFuture<'static, ()>,
    ) -> Option<BoxFuture<'static, ()>> {
        if self.crashed(process) {
            return Some(future);
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            self.slots.len() - 1
        });
        self.generation += 1;
        let id = TaskId { index, generation: self.generation };
        let wake = Arc::new(TaskWake { id, queued: AtomicBool::new(false), ready: self.ready.clone() });
        wake.wake_by_ref();
        self.slots[index] = Slot::Waiting(Running { id, process, name, wake, future });
        None
    }

    /// Takes a ready task out to be polled. A process whose fuse has burnt down crashes instead.
    pub(super) fn take(&mut self, id: TaskId) -> (Option<Running>, Vec<Running>) {
        let Slot::Waiting(task) = &self.slots[id.index] else { return (None, Vec::new()) };
        if task.id != id {
            return (None, Vec::new());
        }
        task.wake.queued.store(false, Ordering::Relaxed);
        let process = task.process;
        if let Some(state) = self.processes.get_mut(&process) {
            if state.paused {
                task.wake.queued.store(true, Ordering::Relaxed);
                state.stash.push(id);
                return (None, Vec::new());
            }
            match &mut state.fuse {
                Some(0) => return (None, self.crash(process)),
                Some(left) => *left -= 1,
                None => {}
            }
        }
        match std::mem::replace(&mut self.slots[id.index], Slot::Taken) {
            Slot::Waiting(task) => (Some(task), Vec::new()),
            Slot::Free | Slot::Taken => (None, Vec::new()),
        }
    }

    /// Puts a polled task back; returns it if it is over.
    pub(super) fn put_back(&mut self, task: Running, finished: bool) -> Option<Running> {
        let index = task.id.index;
        if finished || self.crashed(task.process) {
            self.slots[index] = Slot::Free;
            self.free.push(index);
            return Some(task);
        }
        self.slots[index] = Slot::Waiting(task);
        None
    }

    pub(super) fn crashed(&self, process: ProcessId) -> bool {
        self.processes.get(&process).is_some_and(|state| state.crashed)
    }

    /// Ends a process; returns its tasks, to be dropped without the lock.
    pub(super) fn crash(&mut self, process: ProcessId) -> Vec<Running> {
        self.processes.insert(process, Process { crashed: true, ..Process::default() });
        let mut dropped = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if matches!(slot, Slot::Waiting(task) if task.process == process)
                && let Slot::Waiting(task) = std::mem::replace(slot, Slot::Free)
            {
                self.free.push(index);
                dropped.push(task);
            }
        }
        dropped
    }

    pub(super) fn arm(&mut self, process: ProcessId, polls: u32) {
        self.processes.entry(process).or_default().fuse = Some(polls);
    }

    pub(super) fn pause(&mut self, process: ProcessId) {
        self.processes.entry(process).or_default().paused = true;
    }

    pub(super) fn resume(&mut self, process: ProcessId) {
        let Some(state) = self.processes.get_mut(&process) else { return };
        state.paused = false;
        for id in state.stash.drain(..) {
            self.ready.add(id);
        }
    }

    pub(super) fn clear(&mut self) -> Vec<Running> {
        self.free.clear();
        self.ready.0.lock().clear();
        let slots = std::mem::take(&mut self.slots);
        let waiting = slots.into_iter().filter_map(|slot| match slot {
            Slot::Waiting(task) => Some(task),
            Slot::Free | Slot::Taken => None,
        });
        waiting.collect()
    }

    /// Who waits, for a report of a deadlock.
    pub(super) fn names(&self) -> String {
        let waiting = self.slots.iter().filter_map(|slot| match slot {
            Slot::Waiting(task) => Some(format!("{}/{}", task.process.0, task.name)),
            Slot::Free | Slot::Taken => None,
        });
        waiting.collect::<Vec<_>>().join(", ")
    }
}
