//! Shadow reads as one page of HTML that needs nothing else: no script, no other file.

use std::fmt::Write;

use super::moment;
use crate::admin::page::{escaped, list, page};
use crate::migration::shadow::{AccessView, DiffReport, Example, LatencyView, ShapeDiff};

const STYLE: &str = "h2{font:600 15px ui-monospace,monospace;margin:2rem 0 .5rem;overflow-wrap:anywhere}\
.bar{display:flex;height:14px;background:#8883;margin:.4rem 0}.bar i{display:block}i.equal{background:#4a9}\
i.transient{background:#db4}i.different{background:#c33}.other{background:#999}.old{background:#57a}.new{background:#a75}\
.time{display:inline-block;height:10px}.none{color:#777}";

/// The page about `report` of the migration `name`.
#[must_use]
pub(super) fn html(name: &str, report: &DiffReport) -> String {
    let mut body = counts(report);
    if report.shapes.is_empty() {
        body.push_str("<p class=\"none\">Nothing has been compared.</p>\n");
    }
    report.shapes.iter().for_each(|one| body.push_str(&shape(one)));
    if let Some(next) = report.next {
        let _ =
            writeln!(body, "<p class=\"none\">There are more shapes: ask for them with after={next}.</p>");
    }
    page(&format!("Shadow reads of {name}"), STYLE, &body)
}

fn counts(report: &DiffReport) -> String {
    let counts = &report.counts;
    let differences = counts.shadow_differences.map_or("unknown".to_owned(), |found| found.to_string());
    let rows = [
        ("share of reads", format!("{} %", counts.shadow_percent)),
        ("sampled", counts.shadow_sampled.to_string()),
        ("compared", counts.shadow_compared.to_string()),
        ("equal", counts.shadow_equal.to_string()),
        ("differ for good", differences),
        ("differed for a moment", counts.shadow_transient.to_string()),
        ("nondeterministic", counts.shadow_nondeterministic.to_string()),
        ("unsettled", counts.shadow_unsettled.to_string()),
        ("failed", counts.shadow_failed.to_string()),
        ("dropped", counts.shadow_dropped.to_string()),
        ("skipped", counts.shadow_skipped.to_string()),
    ];
    let mut out = "<table>\n".to_owned();
    for (title, text) in rows {
        let _ = writeln!(out, "<tr><th>{title}<td class=\"n\">{text}");
    }
    let reasons: Vec<_> =
        report.skipped.iter().map(|(reason, times)| format!("skipped {times}: {reason}")).collect();
    out + "</table>\n" + &list(&reasons)
}

fn shape(one: &ShapeDiff) -> String {
    let mut out = format!("<h2>{} {}</h2>\n", escaped(&one.namespace), escaped(&one.query));
    let same = one.equal + one.permuted;
    let other = one.runs - same - one.transient - one.different;
    let parts =
        [("equal", same), ("transient", one.transient), ("different", one.different), ("other", other)];
    out.push_str("<div class=\"bar\">");
    for (class, count) in parts.into_iter().filter(|(_, count)| *count > 0) {
        let width = share(count as f64, one.runs as f64);
        let _ =
            write!(out, "<i class=\"{class}\" style=\"width:{width:.1}%\" title=\"{class}: {count}\"></i>");
    }
    let _ = writeln!(
        out,
        "</div>\n<p>{} runs, {} equal, {} in another order, {} for a moment, <b>{} different</b>, {} nondeterministic, {} unsettled, {} \
         failed; shape {}</p>",
        one.runs,
        one.equal,
        one.permuted,
        one.transient,
        one.different,
        one.nondeterministic,
        one.unsettled,
        one.failed,
        escaped(&one.shape)
    );
    out.push_str(&latencies(one));
    out.push_str(&accesses(one));
    if one.different > 0 {
        let kinds: Vec<_> =
            one.differences.iter().map(|(kind, times)| format!("{} {times}", escaped(kind))).collect();
        let (first, last) = (moment(one.first_seen), moment(one.last_seen));
        let kinds = kinds.join(", ");
        let _ = writeln!(out, "<p>{kinds}; first seen {first}, last {last}</p>\n<table>");
        one.examples.iter().for_each(|one| out.push_str(&example(one)));
        out.push_str("</table>\n");
    }
    out
}

fn latencies(one: &ShapeDiff) -> String {
    let longest = [one.old.p99_ms, one.new.p99_ms].into_iter().flatten().fold(0.0, f64::max);
    let of = |view: &LatencyView| [view.p50_ms, view.p95_ms, view.p99_ms];
    let (of_old, of_new) = (of(&one.old), of(&one.new));
    let mut out = "<table>\n".to_owned();
    for (index, title) in ["p50", "p95", "p99"].into_iter().enumerate() {
        for (side, quantiles) in [("old", of_old), ("new", of_new)] {
            let Some(millis) = quantiles[index] else { continue };
            let samples = if side == "old" { one.old.samples } else { one.new.samples };
            let width = share(millis, longest) * 3.0;
            let _ = writeln!(
                out,
                "<tr><th>{title} {side}<td class=\"n\">{millis} ms<td class=\"n\">{samples} reads<td><span \
                 class=\"time {side}\" style=\"width:{width:.0}px\"></span>"
            );
        }
    }
    out + "</table>\n"
}

fn accesses(one: &ShapeDiff) -> String {
    let mut out = String::new();
    for (side, access) in [("old", &one.old_access), ("new", &one.new_access)] {
        let Some(AccessView { scan, documents_examined, shards, .. }) = access else { continue };
        let _ = writeln!(
            out,
            "<tr><th>{side}<td>{}<td class=\"n\">{documents_examined}<td>{}",
            escaped(scan),
            escaped(shards)
        );
    }
    if out.is_empty() {
        return out;
    }
    format!("<table>\n<tr><th><th>scan<th>documents examined<th>shards asked\n{out}</table>\n")
}

fn share(part: f64, all: f64) -> f64 {
    if all > 0.0 { part / all * 100.0 } else { 0.0 }
}

fn example(one: &Example) -> String {
    let key = one.key.as_deref().map_or(String::new(), |key| format!("_id <code>{}</code>", escaped(key)));
    let mut out = format!(
        "<tr><td>{}<td>{}<td>{key}<td>served by {}<td>",
        moment(Some(one.at)),
        escaped(&one.kind),
        escaped(&one.served_by)
    );
    for field in &one.fields {
        let value = |value: &Option<String>| value.as_deref().map_or("nothing".to_owned(), escaped);
        let (path, kind) = (escaped(&field.path), escaped(&field.kind));
        let (old, new) = (value(&field.old), value(&field.new));
        let _ = write!(out, "<code>{path}</code> {kind}: old {old}, new {new}<br>");
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_does_nothing_in_a_page() {
        let page = html("<script>alert('x')</script>", &DiffReport::default());
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;alert(&#39;x&#39;)"), "{page}");
    }
}
