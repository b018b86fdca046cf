//! A lease as its holder sees it.
//!
//! No expiry is stored anywhere and no two machines' clocks are compared: the holder counts from before it
//! asked, on its own clock.

use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::SharedClock;

/// The right to write to one cluster for a migration, for a while.
pub struct Lease {
    clock: SharedClock,
    length: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default, Clone, Copy)]
struct State {
    generation: u64,
    until: Duration,
}

/// Work begun under a lease; ends with it, even if the lease is granted again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation(u64);

impl Lease {
    /// A lease that has not been granted yet.
    #[must_use]
    pub fn new(clock: SharedClock, length: Duration) -> Self {
        Self { clock, length, state: Mutex::default() }
    }

    /// Records a grant that was asked for at `asked` on the clock.
    pub fn granted(&self, asked: Duration) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        if now >= state.until {
            state.generation += 1;
        }
        state.until = state.until.max(asked + self.length);
    }

    /// Gives it up.
    pub fn lost(&self) {
        self.state.lock().until = Duration::ZERO;
    }

    /// The generation to begin work under; `None` while it is not held.
    #[must_use]
    pub fn begin(&self) -> Option<Generation> {
        let state = self.state.lock();
        (self.clock.now() < state.until).then_some(Generation(state.generation))
    }

    /// Whether work begun under `generation` may still count.
    #[must_use]
    pub fn holds(&self, generation: Generation) -> bool {
        self.begin() == Some(generation)
    }
}
