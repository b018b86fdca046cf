//! Commands under way, and what schedules do to them: hold, release, cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::fate::{Fate, Weather};
use crate::executor::{Executor, ProcessId};
use crate::rng::Rng;

/// A command that was sent and has not arrived.
#[derive(Clone)]
pub(crate) struct Message {
    /// The sender.
    pub(crate) process: ProcessId,
    /// The number of the cluster that it goes to.
    pub(crate) cluster: usize,
    /// The name of the command.
    pub(crate) command: String,
    /// It waits for its release.
    pub(crate) held: bool,
    pub(super) gate: Arc<Notify>,
}

/// Which hold is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HoldId(u64);

/// Holds the next messages that fit.
struct Hold {
    id: HoldId,
    process: ProcessId,
    cluster: usize,
    command: &'static str,
    count: u32,
    /// So many that fit pass first.
    skip: u32,
    /// When its sender is told that its outcome is not known.
    told: Option<Duration>,
    /// Their answers are lost.
    deaf: bool,
    /// They are not held.
    pass: bool,
}

impl Hold {
    const fn of(process: ProcessId, cluster: usize, command: &'static str, count: u32) -> Self {
        let (id, skip, told) = (HoldId(0), 0, None);
        Self { id, process, cluster, command, count, skip, told, deaf: false, pass: false }
    }
}

struct State {
    rng: Rng,
    weather: Weather,
    cut: BTreeSet<(ProcessId, usize)>,
    down: BTreeSet<usize>,
    holds: Vec<Hold>,
    last_hold: u64,
    under_way: BTreeMap<u64, Message>,
    /// Those of them that went down with their connections.
    severed: BTreeSet<u64>,
    last: u64,
    sent: u64,
}

/// The network between all processes and all clusters; clones share it.
#[derive(Clone)]
pub(crate) struct Network {
    pub(super) executor: Executor,
    state: Arc<Mutex<State>>,
    /// A cut was healed.
    pub(super) healed: Arc<Notify>,
}

impl Network {
    /// A network with this weather.
    pub(crate) fn new(executor: Executor, rng: Rng, weather: Weather) -> Self {
        let state = State {
            rng,
            weather,
            cut: BTreeSet::new(),
            down: BTreeSet::new(),
            holds: Vec::new(),
            last_hold: 0,
            under_way: BTreeMap::new(),
            severed: BTreeSet::new(),
            last: 0,
            sent: 0,
        };
        Self { executor, state: Arc::new(Mutex::new(state)), healed: Arc::new(Notify::new()) }
    }

    /// Changes the weather for what is sent from now on.
    pub(crate) fn set_weather(&self, weather: Weather) {
        self.state.lock().weather = weather;
    }

    /// Nothing passes between a process and a cluster.
    pub(crate) fn cut(&self, process: ProcessId, cluster: usize) {
        self.state.lock().cut.insert((process, cluster));
    }

    /// The same, and what is under way between them is lost: the server has found the connections dead.
    pub(crate) fn sever(&self, process: ProcessId, cluster: usize) {
        let mut state = self.state.lock();
        let State { cut, under_way, severed, .. } = &mut *state;
        cut.insert((process, cluster));
        for (id, message) in under_way.iter().filter(|(_, it)| it.process == process && it.cluster == cluster)
        {
            severed.insert(*id);
            message.gate.notify_one();
        }
    }

    /// They hear each other again.
    pub(crate) fn heal(&self, process: ProcessId, cluster: usize) {
        self.state.lock().cut.remove(&(process, cluster));
        self.healed.notify_waiters();
    }

    /// Nobody reaches a cluster.
    pub(crate) fn take_down(&self, cluster: usize) {
        self.state.lock().down.insert(cluster);
    }

    /// A cluster can be reached again.
    pub(crate) fn bring_up(&self, cluster: usize) {
        self.state.lock().down.remove(&cluster);
        self.healed.notify_waiters();
    }

    /// Everybody reaches everything.
    pub(crate) fn heal_all(&self) {
        let mut state = self.state.lock();
        state.cut.clear();
        state.down.clear();
        drop(state);
        self.healed.notify_waiters();
    }

    /// Holds the next `count` commands called `command` from a process to a cluster, until they are released.
    pub(crate) fn hold(
        &self,
        process: ProcessId,
        cluster: usize,
        command: &'static str,
        count: u32,
    ) -> HoldId {
        self.add_hold(Hold::of(process, cluster, command, count))
    }

    /// As [`Self::hold`] for one command; the next `skip` that fit pass before.
    pub(crate) fn hold_after(&self, process: ProcessId, cluster: usize, command: &'static str, skip: u32) {
        self.add_hold(Hold { skip, ..Hold::of(process, cluster, command, 1) });
    }

    /// As [`Self::hold`]; their sender is soon told that their outcome is not known.
    pub(crate) fn lose_track(&self, process: ProcessId, cluster: usize, command: &'static str, count: u32) {
        let told = Some(Duration::from_millis(5));
        self.add_hold(Hold { told, ..Hold::of(process, cluster, command, count) });
    }

    /// The next `count` commands called `command` from a process to a cluster are executed, and not answered.
    pub(crate) fn deafen(&self, process: ProcessId, cluster: usize, command: &'static str, count: u32) {
        self.add_hold(Hold { deaf: true, pass: true, ..Hold::of(process, cluster, command, count) });
    }

    /// As [`Self::hold`], and their answers are lost.
    pub(crate) fn swallow(&self, process: ProcessId, cluster: usize, command: &'static str, count: u32) {
        self.add_hold(Hold { deaf: true, ..Hold::of(process, cluster, command, count) });
    }

    fn add_hold(&self, hold: Hold) -> HoldId {
        let mut state = self.state.lock();
        state.last_hold += 1;
        let id = HoldId(state.last_hold);
        state.holds.push(Hold { id, ..hold });
        id
    }

    /// Holds nothing more by this one; what it holds stays held.
    pub(crate) fn forget_hold(&self, id: HoldId) {
        self.state.lock().holds.retain(|hold| hold.id != id);
    }

    /// Delivers what is held on its way to a cluster.
    pub(crate) fn release_held(&self, cluster: usize) {
        for message in self.state.lock().under_way.values() {
            if message.held && message.cluster == cluster {
                message.gate.notify_one();
            }
        }
    }

    /// Forgets the holds; what they hold stays held.
    pub(crate) fn forget_holds(&self) {
        self.state.lock().holds.clear();
    }

    /// The commands that were sent and have not arrived.
    pub(crate) fn under_way(&self) -> Vec<(u64, Message)> {
        self.state.lock().under_way.iter().map(|(id, message)| (*id, message.clone())).collect()
    }

    /// Delivers one command now.
    pub(crate) fn release(&self, id: u64) {
        if let Some(message) = self.state.lock().under_way.get(&id) {
            message.gate.notify_one();
        }
    }

    /// Delivers all that is under way now, and forgets the holds.
    pub(crate) fn flush(&self) {
        let mut state = self.state.lock();
        state.holds.clear();
        for message in state.under_way.values() {
            message.gate.notify_one();
        }
    }

    /// How many commands were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.state.lock().sent
    }

    pub(super) fn is_cut(&self, process: ProcessId, cluster: usize) -> bool {
        let state = self.state.lock();
        state.down.contains(&cluster) || state.cut.contains(&(process, cluster))
    }

    /// Rolls the fate of a command and notes that it is under way.
    pub(super) fn send(&self, process: ProcessId, cluster: usize, command: &str) -> (u64, Fate, Message) {
        let mut state = self.state.lock();
        let State { rng, weather, .. } = &mut *state;
        let mut fate = Fate::roll(weather, rng);
        let rule = state.holds.iter_mut().find(|hold| {
            hold.count > 0 && hold.process == process && hold.cluster == cluster && hold.command == command
        });
        let held = rule.is_some_and(|hold| {
            if hold.skip > 0 {
                hold.skip -= 1;
                return false;
            }
            hold.count -= 1;
            fate.given_up = hold.told.or(fate.given_up);
            fate.reply_lost |= hold.deaf;
            !hold.pass
        });
        let gate = Arc::new(Notify::new());
        let message = Message { process, cluster, command: command.to_owned(), held, gate };
        state.last += 1;
        state.sent += 1;
        let id = state.last;
        state.under_way.insert(id, message.clone());
        (id, fate, message)
    }

    /// A command is not under way any more; whether it was lost with its connection.
    pub(super) fn arrived(&self, id: u64) -> bool {
        let mut state = self.state.lock();
        state.under_way.remove(&id);
        state.severed.remove(&id)
    }
}
