//! Both ways to another shard key side by side, for people and for programs.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use reshard_loadtest::{Gap, Stats};
use serde::Serialize;

use crate::report::{GAP_LIMIT_MS, median};
use crate::sharded::{AFTER, BEFORE, COPYING, SWITCHING};

/// How the shard key was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Way {
    Native,
    Reshard,
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Native => "reshardCollection",
            Self::Reshard => "reshard",
        }
    }
}

/// What writers saw in one phase.
#[derive(Clone, Debug, Default, Serialize)]
struct Writes {
    phase: &'static str,
    seconds: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// The slowest acknowledged write.
    longest_ms: f64,
    /// The longest time any writer was without an acknowledged write.
    longest_outage_ms: f64,
    errors: u64,
}

/// One change of the shard key.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    way: Way,
    documents: u64,
    megabytes: f64,
    copy_seconds: f64,
    copy_megabytes_per_second: f64,
    /// From the request until it is done.
    seconds: f64,
    /// Of all servers and the proxy, from the request until it is done.
    cpu_seconds: f64,
    proxy_cpu_seconds: f64,
    /// What the shards held more at most: documents and indexes.
    extra_megabytes: f64,
    writes: Vec<Writes>,
    /// While it copied and switched.
    longest_write_gap_ms: f64,
    longest_outage_ms: f64,
    /// Soon after the change no write waited for a writer any more.
    worked_off: bool,
    /// Every acknowledged write took effect exactly once.
    clean: bool,
}

#[expect(clippy::cast_precision_loss, reason = "bytes of a benchmark")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

impl Figures {
    pub(crate) fn new(way: Way, documents: u64, bytes: u64, copy: Duration, took: Duration) -> Self {
        let (megabytes, copy_seconds) = (megabytes(bytes), copy.as_secs_f64());
        Self {
            way,
            documents,
            megabytes,
            copy_seconds,
            copy_megabytes_per_second: megabytes / copy_seconds,
            seconds: took.as_secs_f64(),
            cpu_seconds: 0.0,
            proxy_cpu_seconds: 0.0,
            extra_megabytes: 0.0,
            writes: Vec::new(),
            longest_write_gap_ms: 0.0,
            longest_outage_ms: 0.0,
            worked_off: false,
            clean: false,
        }
    }

    /// CPU time of everything and, of that, the proxy's; and by how many bytes the shards grew.
    pub(crate) fn add_costs(&mut self, cpu: f64, of_proxy: f64, growth: u64) {
        (self.cpu_seconds, self.proxy_cpu_seconds) = (cpu, of_proxy);
        self.extra_megabytes = megabytes(growth);
    }

    pub(crate) fn add_load(&mut self, stats: &Stats, worked_off: bool, clean: bool) -> Result<()> {
        (self.worked_off, self.clean) = (worked_off, clean);
        for phase in [BEFORE, COPYING, SWITCHING, AFTER] {
            let seen = stats.phase(phase).with_context(|| format!("no writes while {phase}"))?;
            let ms = |gap: &Option<Gap>| gap.as_ref().map_or(0.0, |gap| gap.milliseconds);
            self.writes.push(Writes {
                phase,
                seconds: seen.seconds,
                p50_ms: seen.latency.p50,
                p99_ms: seen.latency.p99,
                longest_ms: ms(&seen.longest_write),
                longest_outage_ms: ms(&seen.longest_outage),
                errors: seen.errors,
            });
        }
        let meanwhile = || [COPYING, SWITCHING].into_iter().filter_map(|phase| self.during(phase));
        let gap = meanwhile().map(|writes| writes.longest_ms).fold(0.0, f64::max);
        let outage = meanwhile().map(|writes| writes.longest_outage_ms).fold(0.0, f64::max);
        (self.longest_write_gap_ms, self.longest_outage_ms) = (gap, outage);
        Ok(())
    }

    fn during(&self, phase: &str) -> Option<&Writes> {
        self.writes.iter().find(|writes| writes.phase == phase)
    }

    fn copying_p99(&self) -> f64 {
        self.during(COPYING).map_or(0.0, |writes| writes.p99_ms)
    }

    fn errors(&self) -> u64 {
        self.writes.iter().map(|writes| writes.errors).sum()
    }
}

/// One target, and whether it was reached.
#[derive(Clone, Debug, Serialize)]
struct Verdict {
    target: &'static str,
    met: bool,
    found: String,
}

impl Verdict {
    fn all(runs: &[Figures]) -> Vec<Self> {
        let of = |way: Way, figure: fn(&Figures) -> f64| -> Vec<f64> {
            runs.iter().filter(|run| run.way == way).map(figure).collect()
        };
        let both =
            |figure: fn(&Figures) -> f64| (median(of(Way::Native, figure)), median(of(Way::Reshard, figure)));
        let (native_speed, speed) = both(|run| run.copy_megabytes_per_second);
        let (native_p99, p99) = both(Figures::copying_p99);
        let worst = |way| of(way, |run| run.longest_write_gap_ms).into_iter().fold(0.0, f64::max);
        let (native_gap, gap) = (worst(Way::Native), worst(Way::Reshard));
        let clean = runs.iter().filter(|run| run.way == Way::Reshard).all(|run| run.clean);
        vec![
            Self {
                target: "the copy at least as fast as reshardCollection's",
                met: speed >= native_speed,
                found: format!("{speed:.1} MB/s and {native_speed:.1}"),
            },
            Self {
                target: "the longest write gap under 500 ms",
                met: gap < GAP_LIMIT_MS,
                found: format!("{gap:.0} ms; reshardCollection {native_gap:.0}"),
            },
            Self {
                target: "the application's p99 during the copy below reshardCollection's",
                met: p99 < native_p99,
                found: format!("{p99:.1} ms and {native_p99:.1}"),
            },
            Self {
                target: "every acknowledged write took effect exactly once",
                met: clean,
                found: if clean { "no violation" } else { "VIOLATIONS" }.to_owned(),
            },
        ]
    }
}

/// Everything that was measured on sharded clusters.
#[derive(Debug, Serialize)]
pub(crate) struct ShardedReport {
    writes_per_second: f64,
    /// Native and reshard in turns.
    runs: Vec<Figures>,
    verdicts: Vec<Verdict>,
}

impl ShardedReport {
    pub(crate) fn new(writes_per_second: f64, runs: Vec<Figures>) -> Self {
        let verdicts = Verdict::all(&runs);
        Self { writes_per_second, runs, verdicts }
    }

    fn row(
        &self,
        out: &mut fmt::Formatter<'_>,
        name: &str,
        cell: impl Fn(&Figures) -> String,
    ) -> fmt::Result {
        write!(out, "| {name} |")?;
        for run in &self.runs {
            write!(out, " {} |", cell(run))?;
        }
        writeln!(out)
    }
}

const NOTES: &str = "\
Copying is what the config server calls cloning, and what reshard does. Switching is all that follows: to apply
what was written meanwhile and to block writes; with reshard to catch up, to compare everything, and to move reads and
then writes to 100 %. After that reshard still writes to both clusters, so that a rollback loses nothing.
The same load generator on both sides, an open loop of writes of single documents, timed from when they were due:
reshardCollection's goes to the cluster's router, reshard's to the proxy, which goes to the routers of both clusters.
CPU: all servers and routers of the one cluster, or of both and the proxy; from the request until it is done, with what
the load itself costs. Extra room: what all shards hold, documents uncompressed and indexes, at most meanwhile less
before (dbStats of all databases but local, so without oplogs): reshardCollection's temporary collections, or new.
";

impl fmt::Display for ShardedReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "Another shard key at {:.0} writes/s\n", self.writes_per_second)?;
        self.row(out, "", |run| run.way.name().to_owned())?;
        writeln!(out, "|---|{}", "---:|".repeat(self.runs.len()))?;
        self.row(out, "documents", |run| run.documents.to_string())?;
        self.row(out, "MB", |run| format!("{:.1}", run.megabytes))?;
        self.row(out, "copy MB/s", |run| format!("{:.1}", run.copy_megabytes_per_second))?;
        self.row(out, "copy s", |run| format!("{:.2}", run.copy_seconds))?;
        self.row(out, "time in all s", |run| format!("{:.2}", run.seconds))?;
        self.row(out, "longest write gap ms", |run| format!("{:.0}", run.longest_write_gap_ms))?;
        self.row(out, "longest outage of a writer ms", |run| format!("{:.0}", run.longest_outage_ms))?;
        for phase in [BEFORE, COPYING, SWITCHING, AFTER] {
            let cell = |run: &Figures| {
                let writes = run.during(phase).cloned().unwrap_or_default();
                format!("{:.1} / {:.1}", writes.p50_ms, writes.p99_ms)
            };
            self.row(out, &format!("write p50 / p99 ms, {phase}"), cell)?;
        }
        let kept_up = |run: &Figures| if run.worked_off { "yes" } else { "NO" }.to_owned();
        self.row(out, "the rate was kept up", kept_up)?;
        self.row(out, "errors seen", |run| run.errors().to_string())?;
        self.row(out, "CPU s", |run| format!("{:.1}", run.cpu_seconds))?;
        self.row(out, "of it the proxy", |run| format!("{:.1}", run.proxy_cpu_seconds))?;
        self.row(out, "extra room MB", |run| format!("{:.1}", run.extra_megabytes))?;
        self.row(out, "writes exactly once", |run| if run.clean { "yes" } else { "NO" }.to_owned())?;
        writeln!(out, "\n{NOTES}")?;
        for verdict in &self.verdicts {
            let met = if verdict.met { "met" } else { "MISSED" };
            writeln!(out, "{met}: {} ({})", verdict.target, verdict.found)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(way: Way, copy_seconds: u64, p99_ms: f64, gap: f64) -> Figures {
        let took = Duration::from_secs(copy_seconds);
        let mut figures = Figures::new(way, 1_000, 10_000_000, took, took * 2);
        figures.writes = vec![Writes { phase: COPYING, p99_ms, ..Writes::default() }];
        figures.longest_write_gap_ms = gap;
        figures.clean = true;
        figures
    }

    fn met(runs: &[Figures]) -> Vec<bool> {
        Verdict::all(runs).iter().map(|verdict| verdict.met).collect()
    }

    #[test]
    fn targets_are_met_where_reshard_is_no_worse() {
        let native = run(Way::Native, 10, 100.0, 2_000.0);
        assert_eq!(met(&[native.clone(), run(Way::Reshard, 10, 99.0, 499.0)]), [true, true, true, true]);
        assert_eq!(met(&[native, run(Way::Reshard, 11, 100.0, 500.0)]), [false, false, false, true]);
    }

    #[test]
    fn the_worst_gap_of_all_rounds_counts() {
        let rounds = [run(Way::Native, 10, 50.0, 1.0), run(Way::Reshard, 5, 10.0, 20.0)];
        let mut runs = [rounds.clone(), rounds].concat();
        runs.extend([run(Way::Native, 10, 50.0, 1.0), run(Way::Reshard, 99, 90.0, 900.0)]);
        assert_eq!(met(&runs), [true, false, true, true], "the others go by medians");
    }

    #[test]
    fn a_violation_is_no_success() {
        let mut lost = run(Way::Reshard, 1, 1.0, 1.0);
        lost.clean = false;
        let runs = [run(Way::Native, 10, 50.0, 1.0), lost];
        assert_eq!(met(&runs), [true, true, true, false]);
        assert!(ShardedReport::new(200.0, runs.to_vec()).to_string().contains("MISSED: every acknowledged"));
    }
}
