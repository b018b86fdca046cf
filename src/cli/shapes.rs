//! Shapes of commands, in words.

use std::fmt::Write;

use super::human::{count, table};
use crate::migration::control::{ShapeList, ShapeView, SideLatency};

pub(super) fn shapes(list: &ShapeList) -> String {
    if list.shapes.is_empty() {
        return "Nothing was asked yet.".to_owned();
    }
    let mut out = format!("{} shapes; p50/p95/p99 of the last five minutes\n", count(list.shape_count));
    let _ = writeln!(out, "old: {}\nnew: {}", side(&list.old), side(&list.new));
    let rows = list.shapes.iter().map(|one| {
        let baseline = one.baseline_p99_ms.map_or("-".to_owned(), ms);
        [one.shape.clone(), cells(&one.old), cells(&one.new), baseline, named(one)]
    });
    out.push_str(&table(["SHAPE", "OLD", "NEW", "BASELINE P99", "COMMAND"], rows.collect()));
    if list.shapes_not_told_apart > 0 {
        let _ = write!(out, "\n{} operations of further shapes", count(list.shapes_not_told_apart));
    }
    if let Some(next) = list.next {
        let _ = write!(out, "\nMore: --after {next}");
    }
    out
}

/// What a shape asks for, and of what.
pub(super) fn named(one: &ShapeView) -> String {
    if one.namespace.is_empty() { one.text.clone() } else { format!("{} {}", one.namespace, one.text) }
}

pub(super) fn side(one: &SideLatency) -> String {
    format!(
        "{} operations, {} errors ({} and {} in five minutes), {}",
        count(one.operations),
        count(one.errors),
        count(one.recent_operations),
        count(one.recent_errors),
        latencies(one)
    )
}

pub(super) fn cells(one: &SideLatency) -> String {
    if one.operations == 0 {
        return "-".to_owned();
    }
    let errors =
        if one.recent_errors > 0 { format!(", {} failed", count(one.recent_errors)) } else { String::new() };
    format!("{} x {}{errors}", count(one.recent_operations), latencies(one))
}

fn latencies(one: &SideLatency) -> String {
    let or_unknown = |value: Option<f64>| value.map_or("-".to_owned(), ms);
    format!("{}/{}/{}", or_unknown(one.p50_ms), or_unknown(one.p95_ms), or_unknown(one.p99_ms))
}

fn ms(value: f64) -> String {
    if value < 10.0 { format!("{value:.1} ms") } else { format!("{value:.0} ms") }
}
