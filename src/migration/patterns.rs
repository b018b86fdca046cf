//! Which collections patterns name.

use std::time::Duration;

use bson::rawdoc;

use super::catalog::all;
use super::context::Context;
use super::control::NamespaceSpec;
use super::prepare::Wanted;
use crate::cluster::command::{Commands, Request};
use crate::model::namespace::Namespace;
use crate::model::pattern::Pattern;

const LIMIT: Duration = Duration::from_secs(10);

/// What a pattern names on `old`, views and the like too.
///
/// # Errors
/// In words, why that is not known.
pub async fn named(old: &dyn Commands, pattern: &Pattern) -> Result<Vec<Namespace>, String> {
    let body = rawdoc! { "listCollections": 1, "nameOnly": true };
    let request = Request::new(pattern.database(), body).within(LIMIT);
    let listed = all(old, request, "$cmd.listCollections").await;
    let listed = listed.map_err(|error| format!("what {} names on old: {error}", pattern.as_str()))?;
    let names = listed.iter().filter_map(|one| one.get_str("name").ok());
    let mut found: Vec<Namespace> = names
        .filter(|name| pattern.names(pattern.database(), name))
        .map(|name| Namespace::new(pattern.database(), name))
        .collect();
    found.sort();
    Ok(found)
}

/// A pattern, and what it named when it was looked at.
pub type Named = (Pattern, Vec<Namespace>);

/// All that `specs` name, by themselves or by patterns, each once; and what each pattern named.
///
/// # Errors
/// In words, why that is not known.
pub async fn resolve(
    old: &dyn Commands,
    specs: &[NamespaceSpec],
) -> Result<(Vec<Wanted>, Vec<Named>), String> {
    let mut wanted = by_name(specs);
    let mut patterns = Vec::new();
    for spec in specs.iter().filter(|spec| Pattern::is_meant(&spec.namespace)) {
        let pattern = Pattern::parse(&spec.namespace)?;
        let found = named(old, &pattern).await?;
        for namespace in &found {
            // Who is named twice is as it is named first, by itself before any pattern.
            if !wanted.iter().any(|known| known.namespace == *namespace) {
                wanted.push(Wanted::with(namespace.clone(), spec));
            }
        }
        patterns.push((pattern, found));
    }
    Ok((wanted, patterns))
}

/// What `specs` name by themselves.
#[must_use]
pub fn by_name(specs: &[NamespaceSpec]) -> Vec<Wanted> {
    let plain = specs.iter().filter(|spec| !Pattern::is_meant(&spec.namespace));
    plain.filter_map(|spec| Some(Wanted::with(Namespace::parse(&spec.namespace)?, spec))).collect()
}

/// As a pattern of `specs` asks for a collection that it names.
#[must_use]
pub fn by_pattern(specs: &[NamespaceSpec], namespace: &Namespace) -> Option<Wanted> {
    let names = |spec: &&NamespaceSpec| {
        Pattern::is_meant(&spec.namespace)
            && Pattern::parse(&spec.namespace)
                .is_ok_and(|pattern| pattern.names(namespace.database(), namespace.collection()))
    };
    specs.iter().find(names).map(|spec| Wanted::with(namespace.clone(), spec))
}

/// What could be part of two migrations, if that is so for these two names or patterns.
#[must_use]
pub fn clash(one: &str, other: &str) -> bool {
    let names = |pattern: &str, name: &str| {
        let (pattern, name) = (Pattern::parse(pattern), Namespace::parse(name));
        pattern.is_ok_and(|it| name.is_some_and(|name| it.names(name.database(), name.collection())))
    };
    match (Pattern::is_meant(one), Pattern::is_meant(other)) {
        (false, false) => one == other,
        (true, false) => names(one, other),
        (false, true) => names(other, one),
        (true, true) => match (Pattern::parse(one), Pattern::parse(other)) {
            (Ok(one), Ok(other)) => one.overlaps(&other),
            _ => false,
        },
    }
}

/// What the patterns of a migration name on old and is not part of it.
///
/// # Errors
/// In words, why that is not known.
pub async fn left_out(context: &Context) -> Result<Vec<Namespace>, String> {
    let mut left = Vec::new();
    for pattern in context.scope.patterns() {
        left.extend(named(&*context.clusters.old, pattern).await?);
    }
    left.retain(|namespace| !context.scope.contains(namespace));
    left.dedup();
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_is_as_it_is_named_first() {
        let spec = |namespace: &str, chunks| NamespaceSpec {
            initial_chunks: Some(chunks),
            ..NamespaceSpec::plain(namespace)
        };
        let specs = [spec("shop.*_x", 1), spec("shop.*", 2), spec("shop.own", 3)];
        let chunks =
            |name: &str| by_pattern(&specs, &Namespace::new("shop", name)).and_then(|it| it.initial_chunks);
        assert_eq!((chunks("a_x"), chunks("a")), (Some(1), Some(2)));
        assert!(by_pattern(&specs, &Namespace::new("stop", "a")).is_none());
        assert_eq!(by_name(&specs).len(), 1);
    }

    #[test]
    fn nothing_can_be_part_of_two_migrations() {
        assert!(clash("a.x", "a.x") && clash("a.*", "a.x") && clash("a.x", "a.x*") && clash("a.*", "a.y*"));
        assert!(!clash("a.x", "a.y") && !clash("a.*", "b.x") && !clash("a.x*", "a.y*"));
    }
}
