//! Shadow reads in words.

use std::fmt::Write;

use super::human::{count, table, time};
use crate::migration::control::{DiffReport, Progress, ShadowCounts, ShadowView};
use crate::migration::shadow::{AccessView, LatencyView, ShapeDiff};

pub(super) fn switched(view: &ShadowView) -> String {
    if view.percent == 0.0 {
        return "shadow reads are off".to_owned();
    }
    let values = if view.show_values { "; examples show values" } else { "" };
    format!("{} % of the reads also run on the other cluster{values}", view.percent)
}

/// One line of a status.
pub(super) fn in_status(progress: &Progress) -> String {
    summary(&progress.shadow)
}

fn summary(counts: &ShadowCounts) -> String {
    if counts.shadow_percent == 0.0 && counts.shadow_compared == 0 {
        return "off".to_owned();
    }
    let differences = counts.shadow_differences.map_or("unknown".to_owned(), count);
    format!(
        "{} % of reads; {} compared, {differences} differ for good, {} differed for a moment; {} nondeterministic, {} \
         unsettled, {} failed, {} dropped, {} skipped",
        counts.shadow_percent,
        count(counts.shadow_compared),
        count(counts.shadow_transient),
        count(counts.shadow_nondeterministic),
        count(counts.shadow_unsettled),
        count(counts.shadow_failed),
        count(counts.shadow_dropped),
        count(counts.shadow_skipped)
    )
}

pub(super) fn diffs(report: &DiffReport) -> String {
    let mut out = format!("shadow: {}\n", summary(&report.counts));
    for (reason, times) in &report.skipped {
        let _ = writeln!(out, "  skipped {}: {reason}", count(*times));
    }
    if report.shapes.is_empty() {
        return out + "Nothing has been compared.";
    }
    let rows = report.shapes.iter().map(|shape| {
        let numbers = [shape.runs, shape.different, shape.transient, shape.nondeterministic];
        let [runs, different, transient, nondeterministic] = numbers.map(|number| number.to_string());
        let times = format!("{} / {}", quantiles(&shape.old), quantiles(&shape.new));
        [shape.shape.clone(), runs, different, transient, nondeterministic, times, shape.query.clone()]
    });
    let head = ["SHAPE", "RUNS", "DIFFERENT", "TRANSIENT", "NONDET.", "P50,P95,P99 MS OLD/NEW", "QUERY"];
    out.push_str(&table(head, rows.collect()));
    for shape in report.shapes.iter().filter(|shape| shape.new_access.is_some() || shape.old_access.is_some())
    {
        let sides = [("old", &shape.old_access), ("new", &shape.new_access)];
        let told: Vec<_> =
            sides.into_iter().filter_map(|(side, view)| Some(access(side, view.as_ref()?))).collect();
        let _ = write!(out, "\n{}: {}", shape.shape, told.join("; "));
    }
    for shape in report.shapes.iter().filter(|shape| shape.different > 0) {
        out.push('\n');
        out.push_str(&examples(shape));
    }
    if let Some(next) = report.next {
        let _ = write!(out, "\nMore: --after {next}");
    }
    out
}

fn quantiles(view: &LatencyView) -> String {
    let one = |quantile: Option<f64>| quantile.map_or("-".to_owned(), |millis| format!("{millis:.1}"));
    [view.p50_ms, view.p95_ms, view.p99_ms].map(one).join(",")
}

/// How one side gets at the documents of a shape.
fn access(side: &str, view: &AccessView) -> String {
    let scan = match view.scan.as_str() {
        "collection" => "scans the whole collection",
        "index" => "uses an index",
        _ => "looks at no document",
    };
    let shards = match view.shards.as_str() {
        "unsharded" => String::new(),
        "one" => ", asks one shard".to_owned(),
        asked => format!(", asks {asked} shards"),
    };
    format!("{side} {scan}, {} examined{shards}", count(u64::try_from(view.documents_examined).unwrap_or(0)))
}

fn examples(shape: &ShapeDiff) -> String {
    let kinds: Vec<_> = shape.differences.iter().map(|(kind, times)| format!("{kind} {times}")).collect();
    let seen = [shape.first_seen, shape.last_seen].map(|at| at.map_or("-".to_owned(), time));
    let mut out = format!("{}: {}; from {} to {}", shape.shape, kinds.join(", "), seen[0], seen[1]);
    for one in &shape.examples {
        let key = one.key.as_deref().map_or(String::new(), |key| format!(" _id {key}"));
        let _ = write!(out, "\n  {}{key} (served by {})", one.kind, one.served_by);
        for field in &one.fields {
            let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
            let (old, new) = (value(&field.old), value(&field.new));
            let _ = write!(out, "\n    {} {}: old {old}, new {new}", field.path, field.kind);
        }
    }
    out
}
