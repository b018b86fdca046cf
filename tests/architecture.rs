//! The rules of the house, as a test: which module may import which, what stays out of `policy`, how long a
//! file may be. The rows are those of `src/lib.rs`.
//!
//! The sources are read as text. Tests (`#[cfg(test)]` items, `*_tests.rs`) and comments are not looked at.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests too.

use std::fs;
use std::path::{Path, PathBuf};

/// The rows, the lowest first. A module imports only from lower rows, never from its own.
const ROWS: [&[&str]; 10] = [
    &["model", "telemetry", "clock", "shutdown", "handover"],
    &["wire", "policy"],
    &["cluster"],
    &["state"],
    &["converge"],
    &["router", "migration"],
    &["listener", "admin"],
    &["config"],
    &["app"],
    &["main", "cli"],
];

/// What decisions must not know, each with the reason.
const NOT_IN_POLICY: [(&str, &str); 10] = [
    ("tokio", "decisions run without a runtime"),
    ("futures", "decisions run without a runtime"),
    ("async ", "decisions do not wait"),
    (".await", "decisions do not wait"),
    ("Instant::", "time is passed in"),
    ("SystemTime", "time is passed in"),
    ("crate::clock", "time is passed in"),
    ("rand::", "randomness is passed in"),
    ("tracing::", "callers log what a decision says"),
    ("metrics::", "callers count what a decision says"),
];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 6] = ["utils", "util", "common", "helpers", "helper", "misc"];

const MOST_LINES: usize = 400;

/// The part of one file that is no test.
struct Source {
    path: String,
    module: String,
    /// Numbered from 1, with comments taken out.
    lines: Vec<(usize, String)>,
}

impl Source {
    fn parse(path: &str, text: &str) -> Self {
        let below = path.strip_prefix("src/").unwrap();
        let module = below.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        Self { path: path.to_owned(), module, lines: without_tests(text) }
    }

    fn row(&self) -> Option<usize> {
        row_of(&self.module)
    }
}

fn row_of(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

/// The lines of `text` outside `#[cfg(test)]` items. Relies on the formatter: an item ends at its own
/// indentation.
fn without_tests(text: &str) -> Vec<(usize, String)> {
    let mut kept = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            let code = if line.trim_start().starts_with("//") { "" } else { line };
            kept.push((index + 1, code.to_owned()));
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let end = format!("{}}}", " ".repeat(indent));
        for (_, line) in lines.by_ref() {
            let attribute = line.trim_start().starts_with("#[");
            if line == end
                || (!attribute
                    && line.trim_end().ends_with(';')
                    && !line.starts_with(&" ".repeat(indent + 1)))
            {
                break;
            }
        }
    }
    kept
}

/// The modules of this crate that a line names.
fn imports(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("crate::").filter_map(|(at, found)| {
        let whole =
            line[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '$');
        let rest = &line[at + found.len()..];
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        whole.then_some(&rest[..end])
    })
}

fn layer_violations(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let Some(own) = source.row() else {
        return vec![format!(
            "{}:1: module {} has no row; add it to src/lib.rs and here",
            source.path, source.module
        )];
    };
    for (number, line) in &source.lines {
        for import in imports(line) {
            let at = format!("{}:{number}", source.path);
            match row_of(import) {
                _ if import == source.module => {}
                None => found.push(format!("{at}: write `use crate::module::...`, one module a line, not `{}`", line.trim())),
                Some(row) if row < own => {}
                Some(row) if row == own => found.push(format!(
                    "{at}: {} imports {import}, which is of its own row; what they share belongs in a lower one",
                    source.module
                )),
                Some(row) => found.push(format!(
                    "{at}: {} (row {own}) imports {import} (row {row}); imports point to lower rows only",
                    source.module
                )),
            }
        }
    }
    found
}

fn policy_violations(source: &Source) -> Vec<String> {
    if source.module != "policy" {
        return Vec::new();
    }
    let lines = source.lines.iter().flat_map(|line| NOT_IN_POLICY.map(|banned| (line, banned)));
    lines
        .filter(|((_, line), (word, _))| line.contains(word))
        .map(|((number, _), (word, why))| {
            format!("{}:{number}: `{}` in policy: {why}", source.path, word.trim())
        })
        .collect()
}

fn size_violation(source: &Source) -> Option<String> {
    let lines = source.lines.len();
    (lines > MOST_LINES).then(|| {
        format!(
            "{}:{MOST_LINES}: {lines} lines without tests, more than {MOST_LINES}; is it one thing?",
            source.path
        )
    })
}

fn name_violation(path: &str) -> Option<String> {
    let named = |part: &str| EMPTY_NAMES.contains(&part.trim_end_matches(".rs"));
    path.split('/').any(named).then(|| format!("{path}:1: name it by what is inside"))
}

/// All files below `src`, as paths from the root of the repository.
fn paths() -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    walk(&root.join("src"), &mut found);
    let mut paths: Vec<_> =
        found.iter().map(|path| path.strip_prefix(root).unwrap().to_str().unwrap().to_owned()).collect();
    paths.sort();
    paths
}

fn sources() -> Vec<Source> {
    let production = |path: &String| {
        path.ends_with(".rs") && !path.ends_with("_tests.rs") && path != "src/lib.rs" && path != "src/main.rs"
    };
    let read = |path: String| Source::parse(&path, &fs::read_to_string(&path).unwrap());
    let sources: Vec<_> = paths().into_iter().filter(production).map(read).collect();
    assert!(sources.len() > 100, "only {} files: are these the sources?", sources.len());
    sources
}

fn none(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn imports_point_to_lower_rows() {
    none(&sources().iter().flat_map(layer_violations).collect::<Vec<_>>());
}

#[test]
fn decisions_are_pure() {
    none(&sources().iter().flat_map(policy_violations).collect::<Vec<_>>());
}

#[test]
fn files_are_short() {
    none(&sources().iter().filter_map(size_violation).collect::<Vec<_>>());
}

#[test]
fn names_say_what_is_inside() {
    none(&paths().iter().filter_map(|path| name_violation(path)).collect::<Vec<_>>());
}

#[test]
fn the_rows_are_those_of_the_documentation() {
    let text = fs::read_to_string("src/lib.rs").unwrap();
    let rows: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("//! ")).collect();
    for (number, row) in ROWS.iter().enumerate() {
        let documented = rows.iter().find(|line| line.starts_with(&format!("{number}  ")));
        let documented = documented.unwrap_or_else(|| panic!("src/lib.rs has no row {number}"));
        for module in *row {
            let names = |word: &str| word.trim_end_matches(',') == *module;
            assert!(
                documented.split_whitespace().any(names),
                "src/lib.rs, row {number}: {module} is missing"
            );
        }
    }
    for module in text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')) {
        assert!(row_of(module).is_some(), "src/lib.rs: module {module} has no row");
    }
}

/// A rule that finds nothing in bad code is no rule.
#[test]
fn each_rule_bites() {
    let check = |path: &str, text: &str| {
        let source = Source::parse(path, text);
        let mut found = layer_violations(&source);
        found.extend(policy_violations(&source));
        found.extend(size_violation(&source));
        found.extend(name_violation(path));
        found.into_iter().map(|line| line.split(": ").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for (path, text, at) in [
        ("src/router/x.rs", "use std::fmt;\nuse crate::migration::engine::Engine;\n", "src/router/x.rs:2"),
        ("src/state/x.rs", "fn f() -> crate::app::Proxy {}\n", "src/state/x.rs:1"),
        ("src/wire/x.rs", "pub(crate) use crate::{model, policy};\n", "src/wire/x.rs:1"),
        ("src/wire/x.rs", "use crate::policy::writes;\n", "src/wire/x.rs:1"),
        ("src/policy/x.rs", "pub async fn f() {}\n", "src/policy/x.rs:1"),
        ("src/policy/x.rs", "let now = std::time::Instant::now();\n", "src/policy/x.rs:1"),
        ("src/unheard/of.rs", "\n", "src/unheard/of.rs:1"),
        ("src/wire/common/x.rs", "\n", "src/wire/common/x.rs:1"),
        ("src/wire/x.rs", &"\n".repeat(401), "src/wire/x.rs:400"),
        ("src/model/x.rs", "#[cfg(test)]\nmod x_tests;\nuse crate::app::Proxy;\n", "src/model/x.rs:3"),
        (
            "src/model/x.rs",
            "#[cfg(test)]\nmod tests {\n    use super::*;\n}\nuse crate::app::Proxy;\n",
            "src/model/x.rs:5",
        ),
    ] {
        assert_eq!(check(path, text), [at], "{text:?}");
    }
    for (path, text) in [
        ("src/router/x.rs", "use crate::router::y;\nuse crate::state::table::Route;\n"),
        ("src/model/x.rs", "// use crate::app::Proxy;\n/// [`crate::app::Proxy`]\nfn f() {}\n"),
        ("src/model/x.rs", "#[cfg(test)]\nmod tests {\n    use crate::app::Proxy;\n}\n"),
        ("src/policy/x.rs", "#[cfg(test)]\nmod tests {\n    async fn f() {}\n}\n"),
    ] {
        assert_eq!(check(path, text), [""; 0], "{text:?}");
    }
}
