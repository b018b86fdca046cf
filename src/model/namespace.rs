//! Names of collections.

use std::sync::Arc;

/// The database that holds the product's records on either cluster.
pub const DATABASE: &str = "reshard";

/// `database.collection`.
#[derive(Clone)]
pub struct Namespace {
    full: Arc<str>,
    dot: usize,
}

impl Namespace {
    /// From its two parts.
    #[must_use]
    pub fn new(database: &str, collection: &str) -> Self {
        Self { full: format!("{database}.{collection}").into(), dot: database.len() }
    }

    /// From `database.collection`; `None` when a part is missing.
    #[must_use]
    pub fn parse(full: &str) -> Option<Self> {
        let dot = full.find('.')?;
        (dot > 0 && dot + 1 < full.len()).then(|| Self { full: full.into(), dot })
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> &str {
        self.full.split_at(self.dot).0
    }

    /// The collection.
    #[must_use]
    pub fn collection(&self) -> &str {
        self.full.split_at(self.dot + 1).1
    }

    /// `database.collection`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.full
    }
}

impl PartialEq for Namespace {
    fn eq(&self, other: &Self) -> bool {
        self.full == other.full
    }
}

impl Eq for Namespace {}

impl PartialOrd for Namespace {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Namespace {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.full.cmp(&other.full)
    }
}

impl std::hash::Hash for Namespace {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.full.hash(state);
    }
}

/// Look-ups by the full name need no owned value.
impl std::borrow::Borrow<str> for Namespace {
    fn borrow(&self) -> &str {
        &self.full
    }
}

impl std::fmt::Display for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.full)
    }
}

impl std::fmt::Debug for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.full)
    }
}
