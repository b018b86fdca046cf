//! Numbers of a load, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::errors::ErrorStats;

/// Percentiles in milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

#[allow(clippy::cast_precision_loss)]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| millis(histogram.value_at_quantile(quantile));
        Self {
            count: histogram.len(),
            mean: histogram.mean() / 1000.0,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: millis(histogram.max()),
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{:>8} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>9.2}",
            self.count, self.p50, self.p90, self.p99, self.p999, self.max
        )
    }
}

/// The longest time something took.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Gap {
    /// How long.
    pub milliseconds: f64,
    /// The worker that saw it.
    pub worker: usize,
    /// The operation that ended it.
    pub operation: String,
    /// Its start, counted from the start of the load.
    pub at_seconds: f64,
}

impl fmt::Display for Gap {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { milliseconds, worker, operation, at_seconds } = self;
        write!(out, "{milliseconds:.1} ms (worker {worker}, {operation}, at {at_seconds:.2} s)")
    }
}

/// Numbers of one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Glance {
    /// Operations that ended well so far.
    pub operations: u64,
    /// Of the running phase, all kinds together.
    pub latency: Latency,
    /// Single writes acknowledged so far.
    pub acknowledged: u64,
    /// Errors that the application saw so far.
    pub errors: u64,
    /// Violations seen while running.
    pub violations: u64,
    /// Age of the oldest operation under way, from its intended start.
    pub oldest_outstanding_ms: f64,
}

/// Numbers of one phase.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseStats {
    /// Its name.
    pub name: String,
    /// How long it ran.
    pub seconds: f64,
    /// Operations that ended well.
    pub operations: u64,
    /// Operations that ended with an error.
    pub errors: u64,
    /// Single writes acknowledged; one operation can hold several.
    pub writes_acknowledged: u64,
    /// Operations per second.
    pub throughput: f64,
    /// All kinds together.
    pub latency: Latency,
    /// By kind of operation.
    pub by_kind: BTreeMap<String, Latency>,
    /// The slowest acknowledged write of any worker, from its intended start.
    /// One that overlaps several phases counts in each.
    pub longest_write: Option<Gap>,
    /// The longest time any worker waited for an acknowledged write, errors and
    /// tries in between included.
    pub longest_outage: Option<Gap>,
}

impl PhaseStats {
    pub(crate) fn new(
        name: &str,
        seconds: f64,
        latency: Latency,
        by_kind: BTreeMap<String, Latency>,
        (operations, errors, writes_acknowledged): (u64, u64, u64),
        (longest_write, longest_outage): (Option<Gap>, Option<Gap>),
    ) -> Self {
        #[allow(clippy::cast_precision_loss)]
        let throughput = if seconds > 0.0 { operations as f64 / seconds } else { 0.0 };
        Self {
            name: name.into(),
            seconds,
            operations,
            errors,
            writes_acknowledged,
            throughput,
            latency,
            by_kind,
            longest_write,
            longest_outage,
        }
    }
}

impl fmt::Display for PhaseStats {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{}: {:.1} s, {} operations ({:.0}/s), {} writes acknowledged, {} errors",
            self.name, self.seconds, self.operations, self.throughput, self.writes_acknowledged, self.errors
        )?;
        for (label, gap) in [("slowest write", &self.longest_write), ("longest outage", &self.longest_outage)]
        {
            if let Some(gap) = gap {
                writeln!(out, "  {label}: {gap}")?;
            }
        }
        writeln!(out, "  {:<28}    count    p50 ms       p90       p99     p99.9       max", "latency")?;
        writeln!(out, "  {:<28} {}", "all", self.latency)?;
        for (kind, latency) in &self.by_kind {
            writeln!(out, "  {kind:<28} {latency}")?;
        }
        Ok(())
    }
}

/// Numbers of a load so far.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// Time since the start.
    pub seconds: f64,
    /// All phases together.
    pub total: PhaseStats,
    /// Each phase, in the order of their first start.
    pub phases: Vec<PhaseStats>,
    /// Name of the phase that runs.
    pub current_phase: String,
    /// Errors that the application saw.
    pub errors: ErrorStats,
    /// Single writes acknowledged.
    pub acknowledged: u64,
    /// Single writes refused without effect.
    pub failed: u64,
    /// Single writes whose outcome is not known.
    pub unknown: u64,
    /// Whole transactions that were run again after a transient error.
    pub transaction_retries: u64,
    /// Operations under way.
    pub outstanding: usize,
    /// Age of the oldest of them, from its intended start.
    pub oldest_outstanding_ms: f64,
    /// Open loop: arrivals that are due and wait for a free worker.
    pub backlog: u64,
    /// Violations seen while running: wrong replies and wrong reads.
    pub violations: u64,
}

impl Stats {
    /// The numbers of a phase.
    pub fn phase(&self, name: &str) -> Option<&PhaseStats> {
        self.phases.iter().find(|phase| phase.name == name)
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.phases.len() > 1 {
            for phase in &self.phases {
                writeln!(out, "{phase}")?;
            }
        }
        writeln!(out, "{}", self.total)?;
        writeln!(
            out,
            "writes: {} acknowledged, {} refused, {} unknown; transactions run again: {}",
            self.acknowledged, self.failed, self.unknown, self.transaction_retries
        )?;
        write!(out, "{}", self.errors)
    }
}
