//! The world of one schedule: executor, network, clusters and processes from one seed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use reshard::cluster::command::SharedCluster;

use crate::executor::{Executor, Halt, ProcessId};
use crate::mongo::cluster::{Cluster, ClusterOptions};
use crate::network::{Connection, Network, Weather};
use crate::process::{Process, SimClock};
use crate::rng::Rng;

struct Inner {
    seed: u64,
    executor: Executor,
    network: Network,
    rng: Mutex<Rng>,
    clusters: Mutex<Vec<Cluster>>,
    processes: AtomicU32,
}

/// A world; clones share it. Call [`World::end`] when it is over: its tasks hold it.
#[derive(Clone)]
pub(crate) struct World(Arc<Inner>);

impl World {
    /// The world of `seed`.
    pub(crate) fn new(seed: u64, weather: Weather) -> Self {
        let mut rng = Rng::new(seed);
        let executor = Executor::new(rng.fork(1));
        let network = Network::new(executor.clone(), rng.fork(2), weather);
        Self(Arc::new(Inner {
            seed,
            executor,
            network,
            rng: Mutex::new(rng),
            clusters: Mutex::new(Vec::new()),
            processes: AtomicU32::new(0),
        }))
    }

    /// Its seed.
    pub(crate) fn seed(&self) -> u64 {
        self.0.seed
    }

    /// Its executor.
    pub(crate) fn executor(&self) -> &Executor {
        &self.0.executor
    }

    /// Its network.
    pub(crate) fn network(&self) -> &Network {
        &self.0.network
    }

    /// A generator of its own for a part of the schedule.
    pub(crate) fn rng(&self) -> Rng {
        self.0.rng.lock().fork(3)
    }

    /// A new cluster.
    pub(crate) fn cluster(&self, name: &str, options: ClusterOptions) -> Cluster {
        let mut clusters = self.0.clusters.lock();
        let rng = self.0.rng.lock().fork(4);
        let cluster = Cluster::new(name, clusters.len(), self.0.executor.clone(), rng, options);
        clusters.push(cluster.clone());
        cluster
    }

    /// A new process with a clock that is right.
    pub(crate) fn process(&self, name: &str) -> Process {
        self.process_with(name, 0)
    }

    /// A new process whose clock runs `drift_ppm` millionths too fast.
    pub(crate) fn process_with(&self, name: &str, drift_ppm: i64) -> Process {
        let id = ProcessId(self.0.processes.fetch_add(1, Ordering::Relaxed) + 1);
        let offset = Duration::from_secs(self.0.rng.lock().below(100_000));
        let clock = SimClock::new(self.0.executor.clone(), offset, drift_ppm);
        Process::new(id, name, self.0.executor.clone(), clock)
    }

    /// A connection of a process, under its name.
    pub(crate) fn connect(&self, process: &Process, cluster: &Cluster) -> SharedCluster {
        self.connect_as(process, cluster, &process.name)
    }

    /// A connection of a process with this `appName`.
    pub(crate) fn connect_as(&self, process: &Process, cluster: &Cluster, app: &str) -> SharedCluster {
        let app: Arc<str> = app.into();
        Arc::new(Connection::open(self.0.network.clone(), cluster.clone(), process.id, app))
    }

    /// Ends a process at whatever it awaits. What it sent still arrives.
    pub(crate) fn crash(&self, process: &Process) {
        self.0.executor.crash(process.id);
    }

    /// Ends a process instead of its n-th poll from now.
    pub(crate) fn crash_after(&self, process: &Process, polls: u32) {
        self.0.executor.crash_after(process.id, polls);
    }

    /// A process stands still while time goes on.
    pub(crate) fn pause(&self, process: &Process) {
        self.0.executor.pause(process.id);
    }

    /// A paused process goes on.
    pub(crate) fn resume(&self, process: &Process) {
        self.0.executor.resume(process.id);
    }

    /// Waits in virtual time.
    pub(crate) async fn sleep(&self, duration: Duration) {
        self.0.executor.sleep(duration).await;
    }

    /// Calm weather, everything reachable, all late commands delivered, all majorities complete.
    pub(crate) async fn settle(&self) {
        self.0.network.set_weather(Weather::calm());
        self.0.network.heal_all();
        self.0.network.flush();
        let clusters = self.0.clusters.lock().clone();
        for cluster in &clusters {
            cluster.hold_commits(false);
        }
        self.sleep(Duration::from_millis(50)).await;
        self.0.network.flush();
        while !clusters.iter().all(Cluster::settled) {
            self.sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs the schedule to the end of `main`; background tasks live on until [`World::end`].
    ///
    /// # Errors
    /// [`Halt`] when it cannot end.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        main: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Halt> {
        self.0.executor.run(main)
    }

    /// Drops everything that still runs.
    pub(crate) fn end(&self) {
        self.0.executor.shutdown();
    }

    /// A hash over all that happened.
    pub(crate) fn trace(&self) -> u64 {
        self.0.executor.trace()
    }
}
