//! What the checker found.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// Kinds of violations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ViolationKind {
    /// An acknowledged write is not there.
    LostWrite,
    /// A document that was acknowledged and never deleted is not there.
    MissingDocument,
    /// A write took effect more than once, or although it was refused.
    DoubleEffect,
    /// A deleted document is back.
    Resurrected,
    /// A document that only one worker writes has other content.
    WrongContent,
    /// A document that nobody wrote.
    UnexpectedDocument,
    /// The same `_id` twice.
    DuplicateDocument,
    /// A transaction of which a part is there.
    TornTransaction,
    /// An acknowledgement that does not fit what was there, for example
    /// nothing matched although the document exists.
    WrongReply,
    /// A value that a unique index must refuse was accepted.
    UniqueBroken,
    /// A read did not return what was acknowledged to the same worker before.
    WrongRead,
}

/// One violation.
#[derive(Clone, Debug, Serialize)]
pub struct Violation {
    /// What kind.
    pub kind: ViolationKind,
    /// The document, as the load names it, or its `_id`.
    pub document: String,
    /// What was expected and what was found.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?} {}: {}", self.kind, self.document, self.detail)
    }
}

/// Violations with a bound on what is kept of each kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    pub(crate) counts: BTreeMap<ViolationKind, u64>,
    pub(crate) examples: Vec<Violation>,
    keep: u64,
}

impl Findings {
    pub(crate) fn new(keep: usize) -> Self {
        Self { keep: u64::try_from(keep).unwrap_or(u64::MAX), ..Self::default() }
    }

    pub(crate) fn add(
        &mut self,
        kind: ViolationKind,
        document: impl fmt::Display,
        detail: impl Into<String>,
    ) {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        if *count <= self.keep {
            self.examples.push(Violation { kind, document: document.to_string(), detail: detail.into() });
        }
    }

    pub(crate) fn total(&self) -> u64 {
        self.counts.values().sum()
    }
}

/// The result of `Outcome::verify`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Documents read.
    pub documents: u64,
    /// Documents that should be there for certain.
    pub documents_expected: u64,
    /// Documents of nobody or of another load.
    pub foreign_documents: u64,
    /// Single writes acknowledged.
    pub acknowledged: u64,
    /// Single writes refused without effect.
    pub failed: u64,
    /// Single writes whose outcome is not known.
    pub unknown: u64,
    /// Documents in which a write of unknown outcome took effect.
    pub unknown_applied: u64,
    /// Documents in which it did not.
    pub unknown_not_applied: u64,
    /// Unique tokens found in hot documents.
    pub hot_tokens: u64,
    /// Violations by kind.
    pub violations: BTreeMap<ViolationKind, u64>,
    /// Examples of each kind.
    pub examples: Vec<Violation>,
    /// Time it took.
    pub seconds: f64,
}

impl Report {
    /// No violation.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }

    /// How many violations of a kind.
    pub fn count(&self, kind: ViolationKind) -> u64 {
        self.violations.get(&kind).copied().unwrap_or_default()
    }

    /// The examples of a kind.
    pub fn examples_of(&self, kind: ViolationKind) -> impl Iterator<Item = &Violation> {
        self.examples.iter().filter(move |violation| violation.kind == kind)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "checked {} documents ({} expected, {} foreign) and {} hot tokens in {:.1} s",
            self.documents, self.documents_expected, self.foreign_documents, self.hot_tokens, self.seconds
        )?;
        writeln!(
            out,
            "{} writes acknowledged, {} refused, {} of unknown outcome (documents: {} with it, {} without)",
            self.acknowledged, self.failed, self.unknown, self.unknown_applied, self.unknown_not_applied
        )?;
        if self.is_clean() {
            return write!(out, "CLEAN: every acknowledged write took effect exactly once");
        }
        write!(out, "VIOLATIONS:")?;
        for (kind, count) in &self.violations {
            write!(out, "\n  {kind:?}: {count}")?;
            for example in self.examples_of(*kind).take(5) {
                write!(out, "\n    {}: {}", example.document, example.detail)?;
            }
        }
        Ok(())
    }
}
