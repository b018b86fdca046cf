//! What was measured, for people and for programs.

use std::fmt;

use serde::Serialize;

use crate::moves::Moved;
use crate::raw_copy::Copied;

/// The copy's speed, in multiples of the plain one's.
const COPY_LIMIT: f64 = 0.7;
/// How long a write may take while writes move.
pub(crate) const GAP_LIMIT_MS: f64 = 500.0;

/// One copy of all documents.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    plain: bool,
    documents: u64,
    megabytes: f64,
    seconds: f64,
    megabytes_per_second: f64,
}

impl Run {
    pub(crate) fn new(plain: bool, copied: Copied) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "bytes of a benchmark")]
        let megabytes = copied.bytes as f64 / 1e6;
        let seconds = copied.took.as_secs_f64();
        Self {
            plain,
            documents: copied.documents,
            megabytes,
            seconds,
            megabytes_per_second: megabytes / seconds,
        }
    }

    fn name(&self) -> &'static str {
        if self.plain { "plain copy" } else { "reshard" }
    }
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    runs: Vec<Run>,
    /// Medians, in MB/s.
    plain: f64,
    backfill: f64,
    copy_ratio: f64,
    moves: Vec<Moved>,
    load_operations_per_second: f64,
    longest_pause_ms: u64,
    longest_write_gap_ms: f64,
    clean: bool,
    missed: Vec<String>,
}

/// 0 of nothing.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    match (figures.get(figures.len() / 2), figures.len() % 2) {
        (None, _) => 0.0,
        (Some(upper), 0) => f64::midpoint(figures[figures.len() / 2 - 1], *upper),
        (Some(middle), _) => *middle,
    }
}

impl Report {
    pub(crate) fn new(runs: Vec<Run>, moves: Vec<Moved>, operations: f64, clean: bool) -> Self {
        let speeds = |plain: bool| {
            let of = runs.iter().filter(|run| run.plain == plain);
            of.map(|run| run.megabytes_per_second).collect()
        };
        let (plain, backfill) = (median(speeds(true)), median(speeds(false)));
        let copy_ratio = backfill / plain;
        let of_writes = || moves.iter().filter(|moved| moved.pause_ms.is_some());
        let longest_pause_ms = of_writes().filter_map(|moved| moved.pause_ms).max().unwrap_or(0);
        let longest_write_gap_ms = of_writes().map(|moved| moved.longest_write_ms).fold(0.0, f64::max);
        let mut missed = Vec::new();
        if copy_ratio < COPY_LIMIT {
            missed.push(format!("the copy runs at {copy_ratio:.2} of a plain one, not {COPY_LIMIT}"));
        }
        if longest_write_gap_ms >= GAP_LIMIT_MS {
            missed.push(format!("a write took {longest_write_gap_ms:.0} ms at a move, not {GAP_LIMIT_MS}"));
        }
        if !clean {
            missed.push("the load found violations".to_owned());
        }
        let load_operations_per_second = operations;
        Self {
            runs,
            plain,
            backfill,
            copy_ratio,
            moves,
            load_operations_per_second,
            longest_pause_ms,
            longest_write_gap_ms,
            clean,
            missed,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "| copy | documents | MB | seconds | MB/s |")?;
        writeln!(out, "|---|---:|---:|---:|---:|")?;
        for run in &self.runs {
            writeln!(
                out,
                "| {} | {} | {:.1} | {:.2} | {:.1} |",
                run.name(),
                run.documents,
                run.megabytes,
                run.seconds,
                run.megabytes_per_second
            )?;
        }
        writeln!(
            out,
            "\nMedians: reshard {:.1} MB/s, plain copy {:.1} MB/s, ratio **{:.2}**\n",
            self.backfill, self.plain, self.copy_ratio
        )?;
        writeln!(
            out,
            "| step | writes held ms | attempts | longest write ms | longest outage of a writer ms | errors |"
        )?;
        writeln!(out, "|---|---:|---:|---:|---:|---:|")?;
        for moved in &self.moves {
            let pause = moved.pause_ms.map_or("-".into(), |pause| pause.to_string());
            writeln!(
                out,
                "| {} | {pause} | {} | {:.1} | {:.1} | {} |",
                moved.step, moved.attempts, moved.longest_write_ms, moved.longest_outage_ms, moved.errors
            )?;
        }
        writeln!(
            out,
            "\nAt {:.0} operations/s; every acknowledged write took effect exactly once: {}",
            self.load_operations_per_second,
            if self.clean { "yes" } else { "NO" }
        )?;
        writeln!(
            out,
            "Longest write gap at a move of writes: **{:.0} ms** (held by the proxy: {} ms)\n",
            self.longest_write_gap_ms, self.longest_pause_ms
        )?;
        writeln!(
            out,
            "Targets: the copy at {COPY_LIMIT} of a plain one or faster, write gaps under {GAP_LIMIT_MS} ms."
        )?;
        for missed in &self.missed {
            writeln!(out, "MISSED: {missed}")?;
        }
        if self.missed.is_empty() {
            writeln!(out, "Both are met.")?;
        }
        Ok(())
    }
}
