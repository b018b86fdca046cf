//! What a sceptic wants to know at the end.

use std::fmt;
use std::time::Duration;

use reshard_loadtest::{Gap, Report, Stats, ViolationKind};
use serde::Serialize;

use crate::moves::Move;
use crate::proof::{Seen, differing};
use crate::screen::thousands;
use crate::shadow::Shadowed;
use crate::spread::Spread;

/// All that was measured.
pub(crate) struct Numbers {
    pub(crate) migrations: &'static [&'static str],
    /// Of each of them.
    pub(crate) stats: Vec<Stats>,
    pub(crate) reports: Vec<Report>,
    pub(crate) seen: Seen,
    pub(crate) moves: Vec<Move>,
    pub(crate) mismatches: u64,
    pub(crate) shadowed: Vec<Shadowed>,
    pub(crate) took: Duration,
}

/// The summary.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Summary {
    /// Nothing was lost, nothing differs, nothing failed.
    pub(crate) good: bool,
    pub(crate) acknowledged_writes: u64,
    /// Acknowledged, and not there.
    pub(crate) lost_writes: u64,
    /// Anything else that the checker found: taken effect twice, come back, wrong content, wrong answers.
    pub(crate) other_violations: u64,
    /// Writes that the application does not know the outcome of.
    pub(crate) unknown_writes: u64,
    pub(crate) compared_documents: u64,
    pub(crate) differing_documents: u64,
    /// Found by reshard's own verifications, while writes went on.
    pub(crate) verification_mismatches: u64,
    /// What shadow reads came to, with the reports of what they found.
    pub(crate) shadowed: Vec<Shadowed>,
    pub(crate) application_errors: u64,
    pub(crate) transactions_run_again: u64,
    pub(crate) moves: Vec<Move>,
    /// The longest time any writer waited for an acknowledgement, whatever was tried meanwhile.
    pub(crate) longest_gap: Option<Gap>,
    pub(crate) latency: Vec<Line>,
    /// How old and new hold the orders; empty if they are replica sets.
    pub(crate) spread: Vec<Spread>,
    pub(crate) seconds: f64,
}

/// Latency of one phase of one collection, in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    pub(crate) phase: String,
    pub(crate) collection: String,
    pub(crate) operations: u64,
    pub(crate) per_second: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    pub(crate) longest_gap: f64,
}

impl Summary {
    pub(crate) fn of(numbers: Numbers) -> Self {
        let Numbers { migrations, stats, reports, seen, moves, mismatches, shadowed, took } = numbers;
        let sum = |of: fn(&Stats) -> u64| stats.iter().map(of).sum::<u64>();
        let is_lost = |kind| matches!(kind, ViolationKind::LostWrite | ViolationKind::MissingDocument);
        let violations = |lost: bool| {
            let all = reports.iter().flat_map(|report| &report.violations);
            all.filter(|(kind, _)| is_lost(**kind) == lost).map(|(_, count)| count).sum::<u64>()
        };
        let gaps = stats.iter().flat_map(|stats| [&stats.total.longest_outage, &stats.total.longest_write]);
        let longest_gap = gaps.flatten().max_by(|a, b| a.milliseconds.total_cmp(&b.milliseconds)).cloned();
        let mut summary = Self {
            good: false,
            acknowledged_writes: sum(|stats| stats.acknowledged),
            lost_writes: violations(true),
            other_violations: violations(false),
            unknown_writes: sum(|stats| stats.unknown),
            compared_documents: seen.comparisons.iter().map(|one| one.documents_b).sum(),
            differing_documents: seen.comparisons.iter().map(differing).sum(),
            verification_mismatches: mismatches,
            shadowed,
            application_errors: sum(|stats| stats.errors.total),
            transactions_run_again: sum(|stats| stats.transaction_retries),
            moves,
            longest_gap,
            latency: migrations.iter().zip(&stats).flat_map(|(name, stats)| lines(name, stats)).collect(),
            spread: seen.spread,
            seconds: took.as_secs_f64(),
        };
        summary.good = summary.acknowledged_writes > 0
            && summary.compared_documents > 0
            && summary.shadowed.iter().all(|one| one.compared > 0 && one.different == 0)
            && summary.lost_writes
                + summary.other_violations
                + summary.differing_documents
                + summary.verification_mismatches
                + summary.application_errors
                == 0;
        summary
    }

    fn spread(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [old, new] = self.spread.as_slice() else { return Ok(()) };
        writeln!(out, "\n  {:<36}{:>18}{:>18}", "", "before (old)", "after (new)")?;
        let touched = |spread: &Spread| format!("{:.2} of {}", spread.touched, spread.documents.len());
        writeln!(
            out,
            "  {:<36}{:>18}{:>18}",
            "shards a query by customer touches",
            touched(old),
            touched(new)
        )?;
        writeln!(out, "  {:<36}{:>18}{:>18}", "orders on each shard", old.documents(), new.documents())
    }

    fn table(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = ["ops/s", "p50", "p99", "max", "gap"];
        writeln!(out, "\n  Latency in ms, as the application saw it (gap: the longest any writer waited)")?;
        let mut names: Vec<&str> = self.latency.iter().map(|line| &*line.collection).collect();
        names.dedup();
        for name in names {
            write!(out, "\n  {name:<16}")?;
            heads.iter().try_for_each(|head| write!(out, "{head:>9}"))?;
            writeln!(out)?;
            for line in self.latency.iter().filter(|line| line.collection == name) {
                let Line { phase, per_second, p50, p99, max, longest_gap, .. } = line;
                writeln!(
                    out,
                    "    {phase:<14}{per_second:>9.0}{p50:>9.1}{p99:>9.1}{max:>9.1}{longest_gap:>9.1}"
                )?;
            }
        }
        Ok(())
    }
}

fn lines(collection: &str, stats: &Stats) -> Vec<Line> {
    let gap = |gap: &Option<Gap>| gap.as_ref().map_or(0.0, |gap| gap.milliseconds);
    let line = |phase: &reshard_loadtest::PhaseStats| Line {
        phase: phase.name.clone(),
        collection: collection.to_owned(),
        operations: phase.operations,
        per_second: phase.throughput,
        p50: phase.latency.p50,
        p99: phase.latency.p99,
        max: phase.latency.max,
        longest_gap: gap(&phase.longest_outage).max(gap(&phase.longest_write)),
    };
    stats.phases.iter().map(line).collect()
}

impl fmt::Display for Summary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = "─".repeat(78);
        writeln!(out, "\n{rule}\n  For the sceptic\n")?;
        let mut line = |what: &str, value: String| writeln!(out, "  {what:<36}{value:>12}");
        line("acknowledged writes", thousands(self.acknowledged_writes))?;
        line("  of these lost", thousands(self.lost_writes))?;
        line("  twice, back again, or wrong", thousands(self.other_violations))?;
        line("documents compared byte by byte", thousands(self.compared_documents))?;
        line("  of these different", thousands(self.differing_documents))?;
        line("different in reshard's own checks", thousands(self.verification_mismatches))?;
        let shadowed = |of: fn(&Shadowed) -> u64| thousands(self.shadowed.iter().map(of).sum());
        line("reads compared with new's answer", shadowed(|one| one.compared))?;
        line("  of these different for good", shadowed(|one| one.different))?;
        line("errors the application saw", thousands(self.application_errors))?;
        line("moves of writes", thousands(self.moves.len() as u64))?;
        let given_up: u32 = self.moves.iter().map(|one| one.attempts.saturating_sub(1)).sum();
        line("  attempts given up before", given_up.to_string())?;
        if let Some(gap) = &self.longest_gap {
            line("longest gap any writer saw", format!("{:.0} ms", gap.milliseconds))?;
        }
        self.spread(out)?;
        self.table(out)?;
        for Shadowed { migration, report, .. } in &self.shadowed {
            write!(out, "\n  Diff report of {migration}: {}", report.display())?;
        }
        writeln!(out)?;
        let verdict = if self.good {
            "Nothing lost, nothing different, no error."
        } else {
            "NOT GOOD: see the numbers above that should be 0."
        };
        write!(out, "\n  {verdict} {:.0} s in all.\n{rule}", self.seconds)
    }
}
