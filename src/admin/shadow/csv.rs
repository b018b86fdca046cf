//! Shadow reads as comma-separated values.

use std::collections::BTreeSet;

use crate::migration::shadow::{AccessView, LatencyView, ShapeDiff};

/// One line for each shape, with a column for each kind of difference that there is.
#[must_use]
pub(super) fn csv(shapes: &[ShapeDiff]) -> String {
    let kinds: BTreeSet<&str> =
        shapes.iter().flat_map(|shape| shape.differences.keys().map(String::as_str)).collect();
    let mut head = vec![
        "shape",
        "namespace",
        "command",
        "query",
        "runs",
        "equal",
        "permuted",
        "transient",
        "different",
        "nondeterministic",
        "unsettled",
        "failed",
        "first_seen",
        "last_seen",
        "old_samples",
        "old_p50_ms",
        "old_p95_ms",
        "old_p99_ms",
        "new_samples",
        "new_p50_ms",
        "new_p95_ms",
        "new_p99_ms",
        "old_scan",
        "old_documents_examined",
        "old_shards",
        "new_scan",
        "new_documents_examined",
        "new_shards",
    ];
    head.extend(&kinds);
    let mut out = line(head.into_iter().map(str::to_owned));
    for shape in shapes {
        let time = |time: Option<i64>| time.map_or(String::new(), |time| time.to_string());
        let texts = [&shape.shape, &shape.namespace, &shape.command, &shape.query].map(Clone::clone);
        let counts = [
            shape.runs,
            shape.equal,
            shape.permuted,
            shape.transient,
            shape.different,
            shape.nondeterministic,
            shape.unsettled,
            shape.failed,
        ];
        let cells = texts
            .into_iter()
            .chain(counts.map(|count| count.to_string()))
            .chain([time(shape.first_seen), time(shape.last_seen)])
            .chain(latency(&shape.old))
            .chain(latency(&shape.new))
            .chain(access(shape.old_access.as_ref()))
            .chain(access(shape.new_access.as_ref()))
            .chain(kinds.iter().map(|kind| shape.differences.get(*kind).unwrap_or(&0).to_string()));
        out.push_str(&line(cells));
    }
    out
}

fn latency(view: &LatencyView) -> impl Iterator<Item = String> {
    let quantiles = [view.p50_ms, view.p95_ms, view.p99_ms];
    let quantiles =
        quantiles.into_iter().map(|millis| millis.map_or(String::new(), |millis| millis.to_string()));
    std::iter::once(view.samples.to_string()).chain(quantiles)
}

fn access(view: Option<&AccessView>) -> [String; 3] {
    view.map_or_else(Default::default, |view| {
        [view.scan.clone(), view.documents_examined.to_string(), view.shards.clone()]
    })
}

fn line(cells: impl Iterator<Item = String>) -> String {
    let mut line = cells.map(|text| cell(&text)).collect::<Vec<_>>().join(",");
    line.push_str("\r\n");
    line
}

/// Quoted where it must be (RFC 4180); a formula, which a spreadsheet would run, begins with an apostrophe.
fn cell(text: &str) -> String {
    let text = if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']) {
        format!("'{text}")
    } else {
        text.to_owned()
    };
    if text.contains([',', '"', '\n', '\r']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_and_run_nothing() {
        assert_eq!(cell("plain"), "plain");
        assert_eq!(cell(r#"{"a": 1, "b": 2}"#), r#""{""a"": 1, ""b"": 2}""#);
        for formula in ["=1+1", "+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", "\n=1"] {
            let unquoted = cell(formula).trim_matches('"').to_owned();
            assert_eq!(unquoted, format!("'{formula}"));
        }
    }

    #[test]
    fn each_kind_has_its_column() {
        let shape = |name: &str, kind: &str| ShapeDiff {
            shape: name.into(),
            namespace: "shop.c".into(),
            command: "find".into(),
            query: "{a: 1}, sort".into(),
            runs: 5,
            equal: 4,
            permuted: 0,
            transient: 0,
            different: 1,
            nondeterministic: 0,
            unsettled: 0,
            failed: 0,
            differences: [(kind.to_owned(), 1)].into(),
            first_seen: Some(7),
            last_seen: None,
            examples: Vec::new(),
            old: LatencyView { samples: 1, p50_ms: Some(0.5), p95_ms: None, p99_ms: None },
            new: LatencyView::default(),
            old_access: None,
            new_access: Some(AccessView {
                at: 1,
                scan: "collection".into(),
                documents_examined: 90,
                shards: "all".into(),
            }),
        };
        let table = csv(&[shape("a", "missing"), shape("b", "value")]);
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[0].ends_with("new_documents_examined,new_shards,missing,value"));
        assert_eq!(
            lines[1],
            "a,shop.c,find,\"{a: 1}, sort\",5,4,0,0,1,0,0,0,7,,1,0.5,,,0,,,,,,,collection,90,all,1,0"
        );
        assert!(lines[2].ends_with(",0,1"));
    }
}
