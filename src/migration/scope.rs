//! What a migration moves: the collections that it knows, and patterns that name those to come.

use parking_lot::Mutex;

use super::control::NamespaceSpec;
use crate::model::namespace::Namespace;
use crate::model::pattern::Pattern;

/// What a migration moves.
#[derive(Debug, Default)]
pub struct Scope {
    patterns: Vec<Pattern>,
    known: Mutex<Vec<Namespace>>,
}

impl Scope {
    /// These collections and no others.
    #[must_use]
    pub fn of(namespaces: Vec<Namespace>) -> Self {
        Self { patterns: Vec::new(), known: Mutex::new(namespaces) }
    }

    /// What `specs` name by themselves, `known` besides, and their patterns.
    #[must_use]
    pub fn new(specs: &[NamespaceSpec], known: impl IntoIterator<Item = Namespace>) -> Self {
        let (patterns, names): (Vec<_>, Vec<_>) =
            specs.iter().map(|spec| spec.namespace.as_str()).partition(|name| Pattern::is_meant(name));
        let scope = Self::of(names.into_iter().filter_map(Namespace::parse).collect());
        known.into_iter().for_each(|namespace| scope.add(namespace));
        Self {
            patterns: patterns.into_iter().filter_map(|text| Pattern::parse(text).ok()).collect(),
            ..scope
        }
    }

    /// The collections, as known now.
    #[must_use]
    pub fn known(&self) -> Vec<Namespace> {
        self.known.lock().clone()
    }

    /// Whether a collection is part of it.
    #[must_use]
    pub fn contains(&self, namespace: &Namespace) -> bool {
        self.known.lock().contains(namespace)
    }

    /// A collection is part of it from now on.
    pub fn add(&self, namespace: Namespace) {
        let mut known = self.known.lock();
        if !known.contains(&namespace) {
            known.push(namespace);
        }
    }

    /// Its patterns.
    #[must_use]
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Whether one of its patterns names a collection.
    #[must_use]
    pub fn awaits(&self, namespace: &Namespace) -> bool {
        self.patterns.iter().any(|pattern| pattern.names(namespace.database(), namespace.collection()))
    }
}
