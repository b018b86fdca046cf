//! What goes wrong, and when: all from the seed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reshard::model::side::Side;

use super::proxy::{Front, Proxy, Site};
use crate::executor::ProcessId;
use crate::rng::Rng;

/// Kinds of faults, each with its weight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mix {
    /// The proxy dies at some await; a successor follows.
    pub(crate) crash: u64,
    /// The proxy stands still; perhaps a successor takes over meanwhile.
    pub(crate) pause: u64,
    /// A cluster elects another primary.
    pub(crate) failover: u64,
    /// The proxy does not reach a cluster.
    pub(crate) cut: u64,
    /// Some commands arrive much later.
    pub(crate) hold: u64,
    /// The proxy is cut off, and the servers find its connections dead; a successor takes over.
    pub(crate) lost: u64,
    /// The most faults of one schedule.
    pub(crate) most: u64,
    /// The longest time between two faults.
    pub(crate) every: Duration,
}

impl Mix {
    /// All kinds.
    pub(crate) const ALL: Self = Self {
        crash: 3,
        pause: 2,
        failover: 3,
        cut: 2,
        hold: 4,
        lost: 0,
        most: 10,
        every: Duration::from_secs(3),
    };
    /// Nothing ever goes wrong.
    pub(crate) const NONE: Self = Self {
        crash: 0,
        pause: 0,
        failover: 0,
        cut: 0,
        hold: 0,
        lost: 0,
        most: 0,
        every: Duration::from_secs(1),
    };
}

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// See [`Mix::crash`].
    Crash,
    /// See [`Mix::pause`].
    Pause,
    /// See [`Mix::failover`].
    Failover,
    /// See [`Mix::cut`].
    Cut,
    /// See [`Mix::hold`].
    Hold,
    /// See [`Mix::lost`].
    Lose,
    /// Some commands are executed, and their sender does not hear of it.
    Deafen,
}

/// Makes things go wrong until it is told to stop.
pub(crate) struct Faults {
    pub(crate) site: Site,
    pub(crate) front: Front,
    pub(crate) rng: Rng,
    pub(crate) mix: Mix,
    pub(crate) stop: Arc<AtomicBool>,
    /// The proxy started last.
    pub(crate) proxy: Arc<Proxy>,
    /// Its number.
    pub(crate) number: u32,
    /// All waits are this many times shorter.
    pub(crate) haste: u32,
}

const COMMANDS: [&str; 6] = ["insert", "update", "delete", "findAndModify", "find", "aggregate"];

impl Faults {
    /// Goes on until it is told to stop; returns with one proxy alive and no other.
    pub(crate) async fn run(mut self) -> Arc<Proxy> {
        let mut left = self.rng.below(self.mix.most + 1);
        while !self.stop.load(Ordering::Relaxed) {
            self.wait(Duration::ZERO, self.mix.every).await;
            let Mix { crash, pause, failover, cut, hold, lost, .. } = self.mix;
            let weights = [
                (Fault::Crash, crash),
                (Fault::Pause, pause),
                (Fault::Failover, failover),
                (Fault::Cut, cut),
                (Fault::Hold, hold),
                (Fault::Lose, lost),
            ];
            let all: u64 = weights.iter().map(|(_, weight)| weight).sum();
            if left == 0 || all == 0 {
                continue;
            }
            left -= 1;
            let mut dice = self.rng.below(all);
            for (fault, weight) in weights {
                if dice < weight {
                    self.strike(fault).await;
                    break;
                }
                dice -= weight;
            }
        }
        self.proxy
    }

    /// Makes it happen, and waits until it is over.
    pub(crate) async fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Crash => self.crash().await,
            Fault::Pause => self.pause().await,
            Fault::Failover => self.failover().await,
            Fault::Cut => self.cut().await,
            Fault::Hold => self.hold().await,
            Fault::Lose => self.lose().await,
            Fault::Deafen => self.deafen(),
        }
    }

    async fn wait(&mut self, low: Duration, high: Duration) {
        let pause = self.rng.between(low, high) / self.haste;
        self.site.world.sleep(pause).await;
    }

    fn side(&mut self) -> Side {
        *self.rng.pick(&Side::BOTH)
    }

    fn id(&self) -> ProcessId {
        self.proxy.process.id
    }

    fn succeed(&mut self) {
        self.number += 1;
        self.proxy = self.front.start(&self.site, self.number);
    }

    async fn crash(&mut self) {
        let world = self.site.world.clone();
        world.crash_after(&self.proxy.process, self.rng.below(400) as u32);
        for _ in 0..200 {
            if world.executor().crashed(self.id()) {
                break;
            }
            world.sleep(Duration::from_millis(10)).await;
        }
        world.crash(&self.proxy.process);
        self.front.close();
        self.wait(Duration::from_millis(20), Duration::from_secs(2)).await;
        self.succeed();
        self.wait(Duration::ZERO, Duration::from_secs(6)).await;
    }

    async fn pause(&mut self) {
        let world = self.site.world.clone();
        let paused = Arc::clone(&self.proxy);
        world.pause(&paused.process);
        paused.stood_still.store(true, Ordering::Relaxed);
        self.wait(Duration::from_millis(100), Duration::from_secs(5)).await;
        // Before the start it is not: its successor would not know of a migration that it starts afterwards (a
        // limit that the docs tell of).
        if self.rng.chance(500) || !self.site.has_started() {
            world.resume(&paused.process);
            return;
        }
        // Taken for dead.
        self.front.close();
        self.succeed();
        self.wait(Duration::ZERO, Duration::from_secs(6)).await;
        world.resume(&paused.process);
        self.wait(Duration::ZERO, Duration::from_secs(3)).await;
        world.crash(&paused.process);
        self.wait(Duration::ZERO, Duration::from_secs(5)).await;
    }

    async fn failover(&mut self) {
        let side = self.side();
        let cluster = self.site.clusters.get(side).clone();
        let kept = self.rng.below(3) as usize;
        let longest = Duration::from_secs(2);
        let stale = self.rng.chance(400).then(|| self.rng.between(Duration::from_millis(50), longest));
        if self.rng.chance(500) {
            // More than usual is undone.
            cluster.hold_commits(true);
            self.wait(Duration::from_millis(10), Duration::from_millis(400)).await;
        }
        cluster.failover_with(kept, stale);
        cluster.hold_commits(false);
    }

    async fn cut(&mut self) {
        let (side, id) = (self.side(), self.id());
        let index = self.site.clusters.get(side).index();
        let network = self.site.world.network().clone();
        network.cut(id, index);
        self.wait(Duration::from_millis(50), Duration::from_secs(4)).await;
        network.heal(id, index);
    }

    /// A successor takes over; then the way is open again, for a while.
    async fn lose(&mut self) {
        if !self.site.has_started() {
            return;
        }
        let world = self.site.world.clone();
        let lost = Arc::clone(&self.proxy);
        self.site.cut_off(&lost);
        self.front.close();
        self.succeed();
        self.wait(Duration::from_secs(1), Duration::from_secs(14)).await;
        for side in Side::BOTH {
            world.network().heal(lost.process.id, self.site.clusters.get(side).index());
        }
        self.wait(Duration::ZERO, Duration::from_secs(5)).await;
        world.crash(&lost.process);
        self.wait(Duration::ZERO, Duration::from_secs(5)).await;
    }

    async fn hold(&mut self) {
        let (side, id) = (self.side(), self.id());
        let index = self.site.clusters.get(side).index();
        let network = self.site.world.network().clone();
        let command = *self.rng.pick(&COMMANDS);
        let hold = network.hold(id, index, command, 1 + self.rng.below(3) as u32);
        self.wait(Duration::from_millis(50), Duration::from_secs(8)).await;
        // What it did not meet by now would be held for good, and the connection of a dead process stay open.
        network.forget_hold(hold);
        for (number, _) in network.under_way().into_iter().filter(|(_, message)| message.held) {
            network.release(number);
        }
    }

    fn deafen(&mut self) {
        let (side, id) = (self.side(), self.id());
        let command = *self.rng.pick(&COMMANDS);
        let count = 1 + self.rng.below(2) as u32;
        self.site.world.network().deafen(id, self.site.clusters.get(side).index(), command, count);
    }
}
