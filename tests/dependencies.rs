//! The part of `cargo deny check` that needs no network once all crates are there: licences, crates that must not come in, and where they
//! come from, as `deny.toml` says.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests too.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn deny() -> toml::Table {
    std::fs::read_to_string("deny.toml").unwrap().parse().unwrap()
}

/// Strings of an array, or a field of tables in it.
fn listed(deny: &toml::Table, section: &str, name: &str, field: &str) -> Vec<String> {
    let items = deny[section][name].as_array().unwrap();
    let text = |item: &toml::Value| item.as_str().or_else(|| item[field].as_str()).map(str::to_owned);
    let listed: Vec<_> = items.iter().filter_map(text).collect();
    assert_eq!(listed.len(), items.len(), "{section}.{name}");
    listed
}

/// Every package of the lock file that is part of a build for one of the targets.
fn packages() -> Vec<Value> {
    let deny = deny();
    let targets = deny["graph"]["targets"].as_array().unwrap();
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--locked", "--format-version", "1"]);
    for target in targets {
        command.args(["--filter-platform", target.as_str().unwrap()]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    // Packages of other platforms are listed too, but no part of the graph.
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let used: BTreeSet<&str> = nodes.iter().filter_map(|node| node["id"].as_str()).collect();
    let all = metadata["packages"].as_array().unwrap();
    all.iter().filter(|package| used.contains(package["id"].as_str().unwrap())).cloned().collect()
}

/// Whether a licence expression can be satisfied by `allowed` ones. `AND` binds closer than `OR`.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let verdict = either(&mut words, allowed);
    verdict && words.next().is_none()
}

type Words<'a, 'b> = &'a mut std::iter::Peekable<std::str::SplitWhitespace<'b>>;

fn either(words: Words<'_, '_>, allowed: &[String]) -> bool {
    let mut verdict = both(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        verdict |= both(words, allowed);
    }
    verdict
}

fn both(words: Words<'_, '_>, allowed: &[String]) -> bool {
    let mut verdict = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        verdict &= one(words, allowed);
    }
    verdict
}

fn one(words: Words<'_, '_>, allowed: &[String]) -> bool {
    let Some(word) = words.next() else { return false };
    if word == "(" {
        let verdict = either(words, allowed);
        return verdict && words.next() == Some(")");
    }
    let mut name = word.to_owned();
    if words.next_if_eq(&"WITH").is_some() {
        name = format!("{word} WITH {}", words.next().unwrap_or_default());
    }
    allowed.contains(&name)
}

#[test]
fn licences_are_those_that_are_allowed() {
    let allowed = listed(&deny(), "licenses", "allow", "id");
    let refused: Vec<String> = packages()
        .iter()
        .filter(|package| !is_allowed(package["license"].as_str().unwrap_or_default(), &allowed))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], package["license"]))
        .collect();
    assert!(refused.is_empty(), "not allowed by deny.toml:\n{}", refused.join("\n"));
}

#[test]
fn no_crate_comes_in_that_must_not_nor_from_elsewhere() {
    let banned = listed(&deny(), "bans", "deny", "crate");
    let packages = packages();
    assert!(packages.len() > 100, "only {} packages: is this the graph?", packages.len());
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        assert!(!banned.iter().any(|banned| banned == name), "{name} must not come in: see deny.toml");
        let source = package["source"].as_str();
        assert!(source.is_none_or(|source| source == CRATES_IO), "{name} comes from {source:?}");
    }
}

/// A rule that lets everything pass is no rule.
#[test]
fn expressions_are_understood() {
    let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
    let yes = [
        "MIT",
        "MIT OR GPL-3.0",
        "GPL-3.0/MIT",
        "(GPL-3.0 OR MIT) AND ISC",
        "Apache-2.0 WITH LLVM-exception",
        "GPL-3.0 AND ISC OR MIT",
    ];
    for expression in yes {
        assert!(is_allowed(expression, &allowed), "{expression}");
    }
    let no = ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0", "Apache-2.0", "MIT )", "( MIT"];
    for expression in no {
        assert!(!is_allowed(expression, &allowed), "{expression}");
    }
}
