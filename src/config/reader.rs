//! Reads keys out of a TOML file and remembers every mistake instead of stopping at the first.
//!
//! The keys that a section asks for are the keys it knows: whatever is left over is refused when the section
//! is finished, so that there is no second list of keys to keep in step.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::Problem;
use super::section::Section;
use super::suggest::nearest;

/// A value and the line it is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) line: Option<usize>,
}

/// A parsed file and its mistakes so far.
pub(super) struct Reader<'a> {
    pub(super) text: &'a str,
    root: DeTable<'a>,
    known: Vec<&'static str>,
    problems: Vec<Problem>,
    /// After a mistake of syntax, what is missing may have been swallowed by it.
    broken: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let (root, errors) = DeTable::parse_recoverable(text);
        let problems: Vec<_> = errors
            .iter()
            // Only the message: the full text of the error repeats the line, which may hold a secret.
            .map(|error| {
                let line = error.span().map(|span| line_of(text, span.start));
                Problem::new(line, "", format!("not valid TOML: {}", error.message().replace('\n', "; ")))
            })
            .collect();
        let broken = !problems.is_empty();
        Self { text, root: root.into_inner(), known: Vec::new(), problems, broken }
    }

    /// Opens section `name`, whether it is there or not.
    pub(super) fn section(&mut self, name: &'static str) -> Section<'_, 'a> {
        self.known.push(name);
        let entry = self.root.get(name).map(|value| (value.get_ref().clone(), value.span().start));
        let mut line = None;
        let mut table = DeTable::new();
        let mut present = false;
        if let Some((value, start)) = entry {
            line = Some(line_of(self.text, start));
            present = true;
            match value {
                DeValue::Table(found) => table = found,
                other => {
                    let message = format!("must be a section, not {}; write [{name}]", kind(&other));
                    self.problems.push(Problem::new(line, name, message));
                    present = false;
                }
            }
        }
        Section { reader: self, name: name.to_owned(), table, line, present, known: Vec::new() }
    }

    /// Opens each section below `name`: `[name.ONE]`, `[name.OTHER]`.
    pub(super) fn sections_of(&mut self, name: &'static str, mut read: impl FnMut(&str, Section<'_, 'a>)) {
        let Section { table, .. } = self.section(name);
        for (key, value) in table {
            let (key, line) = (key.into_inner(), line_of(self.text, value.span().start));
            let line = Some(line);
            let name = format!("{name}.{key}");
            match value.into_inner() {
                DeValue::Table(table) => {
                    let known = Vec::new();
                    read(&key, Section { reader: self, name, table, line, present: true, known });
                }
                other => {
                    let message = format!("must be a section, not {}; write [{name}]", kind(&other));
                    self.problems.push(Problem::new(line, name, message));
                }
            }
        }
    }

    /// Notes a mistake.
    pub(super) fn problem(&mut self, line: Option<usize>, key: &str, message: impl Into<String>) {
        self.problems.push(Problem::new(line, key, message));
    }

    /// Notes a mistake of a key that was read already.
    pub(super) fn problem_at(&mut self, section: &str, key: &str, message: impl Into<String>) {
        let value = self.find(section, key);
        let line = value.map(|value| line_of(self.text, value.span().start));
        self.problem(line, &format!("{section}.{key}"), message);
    }

    /// `key` of a section like `listen`, `listeners.legacy` or `listen.secondaries[0]`; where it is not written,
    /// what it would stand in.
    fn find(&self, section: &str, key: &str) -> Option<&Spanned<DeValue<'a>>> {
        let mut steps = section.split(['.', '[']).map(|step| step.trim_end_matches(']'));
        let mut value = self.root.get(steps.next()?)?;
        for step in steps.chain([key]) {
            let inner = match value.get_ref() {
                DeValue::Table(table) => table.get(step),
                DeValue::Array(list) => step.parse().ok().and_then(|at: usize| list.get(at)),
                _ => None,
            };
            value = inner.unwrap_or(value);
        }
        Some(value)
    }

    /// Whether the value of `key`, written or its default, is what is meant: nothing is wrong with it, and no
    /// mistake of syntax can have swallowed it.
    pub(super) fn is_sure(&self, key: &str) -> bool {
        !self.broken && !self.problems.iter().any(|problem| problem.key == key)
    }

    pub(super) fn missing(&mut self, line: Option<usize>, key: &str, message: String) {
        if !self.broken {
            self.problem(line, key, message);
        }
    }

    /// Refuses the sections that nobody asked for.
    pub(super) fn finish(&mut self) {
        for (key, _) in &self.root {
            if !self.known.contains(&key.get_ref().as_ref()) {
                let line = Some(line_of(self.text, key.span().start));
                let message = unknown("section", key.get_ref(), &self.known);
                self.problems.push(Problem::new(line, key.get_ref().to_string(), message));
            }
        }
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }
}

pub(super) fn unknown(what: &str, written: &str, known: &[&str]) -> String {
    match nearest(written, known) {
        Some(near) => format!("unknown {what}; did you mean \"{near}\"?"),
        None => format!("unknown {what}; known here: {}", known.join(", ")),
    }
}

pub(super) fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}

pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}
