//! A running load.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bson::Document;
use mongodb::Client;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::LoadConfig;
use crate::docs::Builder;
use crate::errors::ErrorStats;
use crate::hot::HotEntry;
use crate::keys::Key;
use crate::latency::Recorder;
use crate::ledger::{Ledger, Tally};
use crate::ops::Mix;
use crate::outcome::Outcome;
use crate::prepare::{self, history_count, hot_count};
use crate::report::Findings;
use crate::scan::connect;
use crate::stats::{Glance, Stats};
use crate::worker::Worker;
use crate::worker::pacer::Pacer;

/// What workers share.
pub(crate) struct Shared {
    pub(crate) config: LoadConfig,
    pub(crate) mix: Mix,
    pub(crate) builder: Builder,
    pub(crate) start: Instant,
    pub(crate) pacer: Pacer,
    pub(crate) recorder: Mutex<Recorder>,
    pub(crate) errors: Mutex<ErrorStats>,
    pub(crate) tally: Mutex<Tally>,
    pub(crate) findings: Mutex<Findings>,
    pub(crate) hot: Vec<Mutex<HotEntry>>,
    pub(crate) ledgers: Vec<Mutex<Ledger>>,
    /// Intended start of what each worker is doing.
    pub(crate) busy: Mutex<Vec<Option<Instant>>>,
    pub(crate) next_joint: AtomicU64,
    pub(crate) next_txn: AtomicI64,
    pub(crate) transaction_retries: AtomicU64,
}

impl fmt::Debug for Shared {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

/// First transaction number of bulk commands: above all that a pooled session
/// has used.
const FIRST_TXN: i64 = 1 << 40;

impl Shared {
    fn new(config: LoadConfig) -> Self {
        let workers = config.workers;
        let start = Instant::now();
        Self {
            mix: config.effective_mix(),
            builder: prepare::builder(&config),
            start,
            pacer: Pacer::new(start, config.rate, config.open_loop),
            recorder: Mutex::new(Recorder::new(&config.first_phase, workers, start)),
            errors: Mutex::default(),
            tally: Mutex::default(),
            findings: Mutex::new(Findings::new(config.keep_examples)),
            hot: (0..config.hot_keys).map(|_| Mutex::default()).collect(),
            ledgers: (0..workers)
                .map(|worker| Mutex::new(Ledger::new(u16::try_from(worker).unwrap_or(u16::MAX))))
                .collect(),
            busy: Mutex::new(vec![None; workers]),
            next_joint: AtomicU64::new(1),
            next_txn: AtomicI64::new(FIRST_TXN),
            transaction_retries: AtomicU64::new(0),
            config,
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        let now = Instant::now();
        let (total, phases, current) = {
            let recorder = self.recorder.lock();
            (recorder.total(now), recorder.phases(now), recorder.current_name())
        };
        let tally = *self.tally.lock();
        let busy: Vec<Instant> = self.busy.lock().iter().flatten().copied().collect();
        let oldest = busy.iter().min().map_or(Duration::ZERO, |since| now.saturating_duration_since(*since));
        let errors = self.errors.lock().clone();
        let violations = self.findings.lock().total();
        Stats {
            seconds: total.seconds,
            total,
            phases,
            current_phase: current,
            errors,
            acknowledged: tally.acknowledged,
            failed: tally.failed,
            unknown: tally.unknown,
            transaction_retries: self.transaction_retries.load(Ordering::Relaxed),
            outstanding: busy.len(),
            oldest_outstanding_ms: oldest.as_secs_f64() * 1000.0,
            backlog: self.pacer.backlog(now),
            violations,
        }
    }
}

/// What the workers are told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Work,
    Rest,
    Stop,
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    order: watch::Sender<Order>,
    workers: JoinSet<Worker>,
}

impl Load {
    /// Brings the collection into the state that a load starts from: removes
    /// what an earlier load with this seed left, creates the profile's indexes,
    /// inserts `documents` preloaded documents and the hot ones. An existing
    /// collection (sharded, with other indexes) is kept unless `drop_first`.
    pub async fn prepare(config: &LoadConfig) -> Result<()> {
        prepare::prepare(config).await
    }

    /// Starts the workers. The collection must be as `prepare` left it.
    pub async fn start(config: LoadConfig) -> Result<Load> {
        config.check()?;
        let uris: Vec<_> = std::iter::once(&config.uri).chain(&config.more_uris).collect();
        let mut clients = Vec::with_capacity(uris.len());
        for uri in uris {
            clients.push(connect(uri, config.workers + 8).await?);
        }
        check_prepared(&config, &clients[0]).await?;
        let shared = Arc::new(Shared::new(config));
        let (order, orders) = watch::channel(Order::Work);
        let mut workers = JoinSet::new();
        for id in 0..shared.config.workers {
            let worker = Worker::new(id, shared.clone(), clients[id % clients.len()].clone());
            workers.spawn(worker.run(orders.clone()));
        }
        Ok(Load { shared, order, workers })
    }

    /// Starts a phase, or goes on with the one of that name; its numbers are
    /// apart from those of the others.
    pub fn set_phase(&self, name: &str) {
        self.shared.recorder.lock().set_phase(name, Instant::now());
    }

    /// Lets each worker finish its operation and do nothing more until `resume`. False: not all have
    /// finished within `drain_timeout`.
    pub async fn pause(&self) -> bool {
        let _ = self.order.send_replace(Order::Rest);
        let deadline = Instant::now() + self.shared.config.drain_timeout;
        while self.shared.busy.lock().iter().any(Option::is_some) {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.shared.recorder.lock().pause(Instant::now());
        true
    }

    /// Ends a pause, with a phase as in `set_phase`. In an open loop the arrivals of the pause are due now.
    pub fn resume(&self, phase: &str) {
        self.set_phase(phase);
        let _ = self.order.send_replace(Order::Work);
    }

    /// The numbers of this moment, cheap enough to be asked for many times a second.
    pub fn glance(&self) -> Glance {
        let oldest = self.shared.busy.lock().iter().flatten().min().copied();
        let oldest = oldest.map_or(Duration::ZERO, |since| since.elapsed());
        let (operations, latency) = self.shared.recorder.lock().glance();
        Glance {
            operations,
            latency,
            acknowledged: self.shared.tally.lock().acknowledged,
            errors: self.shared.errors.lock().total,
            violations: self.shared.findings.lock().total(),
            oldest_outstanding_ms: oldest.as_secs_f64() * 1000.0,
        }
    }

    /// The numbers so far.
    pub fn snapshot(&self) -> Stats {
        self.shared.stats()
    }

    /// Ends the load: each worker finishes its operation. What is not finished
    /// after `drain_timeout` is given up and counts as unknown.
    pub async fn stop(mut self) -> Outcome {
        let now = Instant::now();
        self.shared.recorder.lock().pause(now);
        self.shared.pacer.close(now);
        let _ = self.order.send_replace(Order::Stop);
        let deadline = tokio::time::Instant::now() + self.shared.config.drain_timeout;
        // Kept until the last worker is done: their sessions hold transaction
        // numbers that no other worker may meet in the pool.
        let mut finished = Vec::new();
        while let Ok(Some(worker)) = tokio::time::timeout_at(deadline, self.workers.join_next()).await {
            match worker {
                Ok(worker) => finished.push(worker),
                Err(error) => self.shared.findings.lock().add(
                    crate::report::ViolationKind::WrongReply,
                    "worker",
                    format!("a worker ended early: {error}"),
                ),
            }
        }
        self.workers.shutdown().await;
        Outcome { stats: self.shared.stats(), shared: self.shared }
    }
}

async fn check_prepared(config: &LoadConfig, client: &Client) -> Result<()> {
    let builder = prepare::builder(config);
    let collection = client.database(&config.database).collection::<Document>(&config.collection);
    let fresh = async |key: Key, wanted: Document| -> Result<bool> {
        let found = collection.find_one(builder.name(key)).await;
        Ok(found.context("cannot read the collection")? == Some(wanted))
    };
    let mut ready = fresh(Key::Hot(0), builder.hot(0)).await?;
    let last_hot = hot_count(config) - 1;
    ready &= fresh(Key::Hot(last_hot), builder.hot(last_hot)).await?;
    if let Some(last) = history_count(config).checked_sub(1) {
        ready &=
            fresh(Key::History(last), builder.build(Key::History(last), &Builder::history(last))).await?;
    }
    ensure!(
        ready,
        "{} is not as Load::prepare leaves it with this seed, size and number of documents",
        config.namespace()
    );
    Ok(())
}
