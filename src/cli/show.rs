//! Answers of the admin API in words.

use std::fmt::Write;

use super::human::{bar, bytes, count, duration, ended, percent, table, time};
use crate::admin::{ConflictList, MigrationList, MismatchList};
use crate::migration::control::{
    Acknowledged, BypassReport, EventList, MigrationView, Phase, Placement, PreflightReport, Progress, Ramp,
    Severity, Throttle, Verification, VerificationReport,
};

fn phase(phase: Phase, paused: bool) -> String {
    let name = match phase {
        Phase::Created => "created",
        Phase::Preparing => "preparing",
        Phase::Copying => "copying",
        Phase::CatchingUp => "catching up",
        Phase::Synced => "synced",
        Phase::Completed => "completed",
        Phase::Aborted => "aborted",
        Phase::Failed => "failed",
    };
    if paused { format!("{name} (paused)") } else { name.to_owned() }
}

pub(super) fn view(view: &MigrationView) -> String {
    let mut out = format!(
        "{}: {}, reads {} % and writes {} % on new (epoch {})",
        view.name,
        phase(view.phase, view.paused),
        view.reads_percent,
        view.writes_percent,
        view.epoch
    );
    if view.throttle != Throttle::default() {
        let _ = write!(out, "; throttle {}", view.throttle);
    }
    if let Some(failure) = &view.failure {
        let _ = write!(out, "\n  {failure}");
    }
    for placement in &view.placements {
        out.extend(place(placement).map(|place| format!("\n  {place}")));
    }
    out
}

pub(super) fn list(list: &MigrationList) -> String {
    if list.migrations.is_empty() {
        return "No migrations. Make one: reshard migrate create NAME --namespace DB.COLLECTION".to_owned();
    }
    let row = |view: &MigrationView| {
        let namespaces: Vec<_> = view.namespaces.iter().map(|spec| spec.namespace.as_str()).collect();
        [
            view.name.clone(),
            phase(view.phase, view.paused),
            format!("{} %", view.reads_percent),
            format!("{} %", view.writes_percent),
            view.epoch.to_string(),
            namespaces.join(", "),
        ]
    };
    let titles = ["NAME", "PHASE", "READS", "WRITES", "EPOCH", "NAMESPACES"];
    table(titles, list.migrations.iter().map(row).collect())
}

pub(super) fn preflight(report: &PreflightReport) -> String {
    let mut out = String::new();
    for finding in &report.findings {
        let severity = match finding.severity {
            Severity::Info => "info   ",
            Severity::Limits => "limits ",
            Severity::Refused => "refused",
        };
        let place = if finding.namespace.is_empty() { "cluster" } else { &finding.namespace };
        let _ = writeln!(out, "{severity}  {place}: {} ({})", finding.message, finding.code);
        if !finding.remedy.is_empty() {
            let _ = writeln!(out, "         {}", finding.remedy);
        }
    }
    out.push_str(if report.ok { "It can start." } else { "It cannot start." });
    out
}

fn ramp(what: &str, ramp: &Ramp) -> String {
    format!("{what}: {} % on new, in force everywhere (epoch {})", ramp.percent, ramp.epoch)
}

pub(super) fn reads(answer: &Ramp) -> String {
    ramp("reads", answer)
}

pub(super) fn writes(answer: &Ramp) -> String {
    let tries = if answer.attempts == 1 { "try" } else { "tries" };
    let ended = match answer.ended_transactions {
        0 => String::new(),
        ended => format!(", {ended} transactions ended"),
    };
    format!("{}; held {} ms, {} {tries}{ended}", ramp("writes", answer), answer.pause_ms, answer.attempts)
}

pub(super) fn throttle(throttle: &Throttle) -> String {
    if *throttle == Throttle::default() {
        return "the copy goes as fast as it can".to_owned();
    }
    format!("the copy goes at most at {throttle}")
}

pub(super) fn verification(verification: &Verification) -> String {
    let compared = format!(
        "{} of {} documents compared",
        count(verification.compared_documents),
        count(verification.total_documents)
    );
    let found = match (verification.mismatches, verification.repaired) {
        (0, _) => "no difference".to_owned(),
        (found, repaired) => format!("{} different, {} of them made equal", count(found), count(repaired)),
    };
    let asked = &verification.asked;
    let part = match asked.is_full() {
        true => String::new(),
        false => format!(" {} % of the ranges, by {}", asked.sample_percent, asked.compare.as_str()),
    };
    let what = match (&verification.failure, verification.running) {
        (Some(failure), _) => format!("verification{part} stopped: {failure} ({compared}, {found})"),
        (None, true) => format!("verifying{part}: {compared}, {found}"),
        (None, false) => format!("verified{part}: {compared}, {found}"),
    };
    let of = verification.namespaces.join(", ");
    let of = if of.is_empty() { of } else { format!(" in {of}") };
    let at = match (verification.started_at, verification.finished_at) {
        (_, Some(end)) => format!("; ended {}", time(end)),
        (Some(start), None) => format!("; began {}", time(start)),
        (None, None) => String::new(),
    };
    let outdated = if verification.outdated { "; outdated: a stream has missed changes since" } else { "" };
    let left = verification.remaining_seconds.map(|left| format!("; {} left", duration(left)));
    what + &of + &at + outdated + &left.unwrap_or_default()
}

pub(super) fn verification_report(report: &VerificationReport) -> String {
    let mut out = format!("old and new of {}: {}", report.migration, report.conclusion.as_str());
    for reason in &report.reasons {
        let _ = write!(out, "\n  {reason}");
    }
    for last in [&report.verification, &report.spot_check].into_iter().flatten() {
        let _ = write!(out, "\n{}", verification(last));
        if let Some(times) = last.equal_up_to {
            let _ = write!(out, "\n  equal up to {} of old's clock and {} of new's", times.old, times.new);
        }
        let rows = last.collections.iter().map(|of| {
            [
                of.namespace.clone(),
                count(of.documents_on_old),
                count(of.documents_on_new),
                count(of.mismatches),
                count(of.repaired),
                of.digest_of_old.clone(),
                of.digest_of_new.clone(),
            ]
        });
        let titles =
            ["NAMESPACE", "ON OLD", "ON NEW", "DIFFERENT", "MADE EQUAL", "DIGEST OF OLD", "DIGEST OF NEW"];
        let _ = write!(out, "\n{}", table(titles, rows.collect()).trim_end());
    }
    for spot in &report.blind_spots {
        let _ = write!(out, "\n  not seen by digests: {spot}");
    }
    let _ = write!(out, "\nfingerprint {}", report.fingerprint);
    out
}

/// One line, for watching.
pub(super) fn progress_line(name: &str, progress: &Progress) -> String {
    let done = percent(progress.copied_documents, progress.total_documents);
    let mut parts = vec![
        format!("{name}: {} {} {done} %", phase(progress.phase, progress.paused), bar(done)),
        format!("{:.0} documents/s", progress.documents_per_second),
        format!("{}/s", bytes(progress.bytes_per_second)),
    ];
    // All of it would not fit the line.
    parts.extend(progress.remaining_note.as_ref().map(|_| "will never catch up".to_owned()));
    parts.extend(progress.remaining_seconds.map(|left| format!("{} left", duration(left))));
    parts.extend(progress.lag_seconds.map(|lag| format!("lag {}", duration(lag))));
    parts.push(format!("reads {} % writes {} %", progress.reads_percent, progress.writes_percent));
    parts.join(", ")
}

/// All there is to know, for one look.
pub(super) fn progress(name: &str, progress: &Progress) -> String {
    let done = percent(progress.copied_documents, progress.total_documents);
    let left =
        progress.remaining_seconds.map_or(String::new(), |left| format!("; about {} left", duration(left)));
    let follows = matches!(progress.phase, Phase::CatchingUp | Phase::Synced);
    let (of_copy, of_streams) = if follows { (String::new(), left) } else { (left, String::new()) };
    let note = progress.remaining_note.as_ref().map_or(String::new(), |note| format!("; {note}"));
    let rows = [
        ("traffic", traffic(progress)),
        (
            "copy",
            format!(
                "{} {done} %  {} of {} documents, {} of {}",
                bar(done),
                count(progress.copied_documents),
                count(progress.total_documents),
                as_bytes(progress.copied_bytes),
                as_bytes(progress.total_bytes)
            ),
        ),
        (
            "rate",
            format!(
                "{:.0} documents/s, {}/s{of_copy}",
                progress.documents_per_second,
                bytes(progress.bytes_per_second)
            ),
        ),
        ("lag", lag(progress) + &of_streams + &note),
        (
            "streams",
            format!(
                "{} converged, {} repaired, {} mirror writes made up for, {} conflicts{}",
                count(progress.converged),
                count(progress.repaired),
                count(progress.mirror_failures),
                count(progress.conflicts),
                shards_read(progress)
            ),
        ),
        ("pinned", super::pins::counts(&progress.pins)),
        ("switched", super::pins::switched(&progress.switches)),
        ("throttle", progress.throttle.to_string()),
        ("violated", violated(progress)),
        ("bypass", past_the_proxy(progress)),
        ("shadow", super::shadow::in_status(progress)),
        ("rehearsed", super::rehearsal::in_status(progress)),
        ("verified", progress.verification.as_ref().map_or("not yet".to_owned(), verification)),
        ("checked", progress.spot_check.as_ref().map_or("no part by itself".to_owned(), verification)),
        ("cut-over", cut_over(progress)),
    ];
    let mut out = format!("{name}: {}\n", phase(progress.phase, progress.paused));
    for (title, text) in rows {
        let _ = writeln!(out, "  {title:<9} {text}");
    }
    let ranges = super::pins::where_ranges_are(&progress.ranges);
    let returned = progress.unreturned.as_ref().map(super::pins::returning);
    for (title, text) in [("ranges", ranges), ("returned", returned)] {
        _ = text.map(|text| writeln!(out, "  {title:<9} {text}"));
    }
    for place in progress.placements.iter().filter_map(place) {
        let _ = writeln!(out, "  {:<9} {place}", "placed");
    }
    out
}

fn violated(progress: &Progress) -> String {
    match progress.invariant_violations {
        0 => "no invariant".to_owned(),
        times => format!("invariants did not hold {} times; see cut-over and the log", count(times)),
    }
}

/// Where a collection lies on new and by what it is divided; `None` where that is as always.
fn place(placement: &Placement) -> Option<String> {
    let Placement { namespace, shard_key, route_key, primary_shard } = placement;
    let shard = |shard| format!("{namespace} has no shard_key; its primary shard on new is {shard}");
    let key = shard_key.as_ref().map(|key| format!("{namespace} is sharded on new by {}", key.pattern()));
    let lies = key.or_else(|| primary_shard.as_ref().map(shard));
    let divided = route_key.as_ref().map(|field| format!("{namespace} is divided by its route_key {field}"));
    let all: Vec<String> = [lies, divided].into_iter().flatten().collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// Nothing where no collection is sharded.
fn shards_read(progress: &Progress) -> String {
    if progress.targeted_reads + progress.broadcast_reads == 0 {
        return String::new();
    }
    let (targeted, broadcast) = (count(progress.targeted_reads), count(progress.broadcast_reads));
    format!("; {targeted} targeted reads, {broadcast} broadcast reads")
}

fn past_the_proxy(progress: &Progress) -> String {
    let mut out = format!(
        "{} writes past the proxy in 24 h, {} in all",
        count(progress.bypass_writes),
        count(progress.bypass_writes_total)
    );
    if progress.bypass_writes_unjudged > 0 {
        let _ = write!(out, "; of {} changes nobody can tell", count(progress.bypass_writes_unjudged));
    }
    out
}

fn traffic(progress: &Progress) -> String {
    format!(
        "reads {} % and writes {} % on new (epoch {})",
        progress.reads_percent, progress.writes_percent, progress.epoch
    )
}

fn lag(progress: &Progress) -> String {
    let one = |lag: Option<f64>| lag.map_or("unknown".to_owned(), duration);
    let window =
        progress.oplog_window_seconds.map(|window| format!("; old's oplog keeps {}", duration(window)));
    format!(
        "old to new {}, new to old {}{}",
        one(progress.lag.old_to_new),
        one(progress.lag.new_to_old),
        window.unwrap_or_default()
    )
}

fn cut_over(progress: &Progress) -> String {
    if progress.can_cut_over {
        return "ready".to_owned();
    }
    let mut out = "not yet".to_owned();
    for reason in &progress.blocked_by {
        let _ = write!(out, "\n            - {reason}");
    }
    out
}

fn as_bytes(number: u64) -> String {
    bytes(number as f64)
}

pub(super) fn conflicts(list: &ConflictList) -> String {
    if list.conflicts.is_empty() {
        return "No conflicts.".to_owned();
    }
    let rows = list.conflicts.iter().map(|one| {
        [one.namespace.clone(), one.key.clone(), time(one.since), one.tries.to_string(), one.error.clone()]
    });
    table(["NAMESPACE", "KEY", "SINCE", "TRIES", "ERROR"], rows.collect())
}

pub(super) fn mismatches(list: &MismatchList) -> String {
    if list.mismatches.is_empty() {
        return "No differences.".to_owned();
    }
    let rows = list.mismatches.iter().map(|one| {
        let repaired = if one.repaired { "yes" } else { "no" };
        let fields = one.paths.join(", ");
        [one.namespace.clone(), one.key.clone(), one.kind.clone(), fields, repaired.to_owned(), time(one.at)]
    });
    table(["NAMESPACE", "KEY", "KIND", "FIELDS", "REPAIRED", "FOUND"], rows.collect())
}

pub(super) fn bypass(report: &BypassReport) -> String {
    let mut out = format!(
        "{} writes past the proxy in 24 h, {} in all",
        count(report.bypass_writes),
        count(report.bypass_writes_total)
    );
    if let Some(Acknowledged { up_to, who, at, reason, .. }) = &report.acknowledged {
        let _ = write!(out, "; acknowledged up to number {up_to} by {who}, {}: {reason}", time(*at));
    }
    if let Some(why) = &report.blocks {
        let _ = write!(out, "\nIn the way of moving writes: {why}");
    }
    if report.writes.is_empty() {
        return out;
    }
    let rows = report.writes.iter().map(|one| {
        let lost = match (&one.image, one.undone) {
            (_, false) => "nothing".to_owned(),
            (None, true) => "a deletion".to_owned(),
            (Some(image), true) if one.image_truncated => format!("{image}..."),
            (Some(image), true) => image.clone(),
        };
        let place = format!("{} {}", one.side, one.namespace);
        [one.number.to_string(), time(one.at), place, one.key.clone(), one.kind.clone(), lost]
    });
    let _ = write!(out, "\n{}", table(["NUMBER", "SEEN", "WHERE", "KEY", "KIND", "LOST"], rows.collect()));
    if let Some(next) = report.next {
        let _ = write!(out, "\nMore: --before {next}");
    }
    out
}

pub(super) fn acknowledged(made: &Acknowledged) -> String {
    let latest = if made.latest.is_empty() { String::new() } else { format!(", the last {}", made.latest) };
    format!("acknowledged {} writes to old, up to number {}{latest}", made.writes, made.up_to)
}

pub(super) fn events(list: &EventList) -> String {
    if list.events.is_empty() {
        return "No events.".to_owned();
    }
    let rows = list.events.iter().map(|one| {
        let change = if one.from == one.to { one.to.clone() } else { format!("{} -> {}", one.from, one.to) };
        [time(one.at), one.who.clone(), one.what.clone(), change, ended(&one.result, one.elapsed_ms)]
    });
    let mut out = table(["TIME", "WHO", "WHAT", "STATE", "RESULT"], rows.collect());
    if let Some(next) = list.next {
        let _ = write!(out, "More: --before {next}");
    }
    out
}
