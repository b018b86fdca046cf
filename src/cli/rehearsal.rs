//! Rehearsals in words.

use std::fmt::Write;

use super::human::{count, table, time};
use super::shapes::{cells, named, side};
use crate::migration::control::{Progress, RehearsalCounts, RehearsalView};

/// One line of a status.
pub(super) fn in_status(progress: &Progress) -> String {
    summary(&progress.rehearsal)
}

fn summary(counts: &RehearsalCounts) -> String {
    if counts.rehearsal_factor == 0.0 && counts.rehearsal_reads + counts.rehearsal_errors == 0 {
        return "off".to_owned();
    }
    format!(
        "{} x the reads of old; {} answered, {} failed, {} dropped, {} never repeated",
        counts.rehearsal_factor,
        count(counts.rehearsal_reads),
        count(counts.rehearsal_errors),
        count(counts.rehearsal_dropped),
        count(counts.rehearsal_skipped)
    )
}

pub(super) fn view(view: &RehearsalView) -> String {
    let Some(began) = view.began_at else {
        return "there was no rehearsal since the process began".to_owned();
    };
    let ends = view.ends_at.map_or("-".to_owned(), time);
    let end = match &view.ended {
        Some(why) => format!("ended {ends}: {why}"),
        None => format!("ends {ends}"),
    };
    let mut out = format!("rehearsal: {}\nbegan {}, {end}\n", summary(&view.counts), time(began));
    let _ = writeln!(out, "old as asked: {}\nnew repeated: {}", side(&view.old), side(&view.new));
    let rows =
        view.shapes.iter().map(|one| [one.shape.clone(), cells(&one.old), cells(&one.new), named(one)]);
    out.push_str(&table(["SHAPE", "OLD AS ASKED", "NEW REPEATED", "COMMAND"], rows.collect()));
    out
}
