//! Reads keys out of a TOML file and remembers every mistake instead of stopping at the first.
//!
//! The keys that a section asks for are the keys it knows: whatever is left over is refused when the section
//! is finished, so that there is no second list of keys to keep in step.

use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::problem::Problem;
use super::suggest::nearest;

/// A value and the line it is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) line: Option<usize>,
}

/// A parsed file and its mistakes so far.
pub(super) struct Reader<'a> {
    text: &'a str,
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
        Section { reader: self, name, table, line, present, known: Vec::new() }
    }

    /// Notes a mistake.
    pub(super) fn problem(&mut self, line: Option<usize>, key: &str, message: impl Into<String>) {
        self.problems.push(Problem::new(line, key, message));
    }

    /// Notes a mistake of a key that was read already.
    pub(super) fn problem_at(&mut self, section: &str, key: &str, message: impl Into<String>) {
        let value = self.root.get(section).and_then(|value| match value.get_ref() {
            DeValue::Table(table) => table.get(key).or(Some(value)),
            _ => None,
        });
        let line = value.map(|value| line_of(self.text, value.span().start));
        self.problem(line, &format!("{section}.{key}"), message);
    }

    /// Whether the value of `key`, written or its default, is what is meant: nothing is wrong with it, and no
    /// mistake of syntax can have swallowed it.
    pub(super) fn is_sure(&self, key: &str) -> bool {
        !self.broken && !self.problems.iter().any(|problem| problem.key == key)
    }

    fn missing(&mut self, line: Option<usize>, key: &str, message: String) {
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

/// One section of the file.
pub(super) struct Section<'r, 'a> {
    reader: &'r mut Reader<'a>,
    name: &'static str,
    table: DeTable<'a>,
    line: Option<usize>,
    present: bool,
    known: Vec<&'static str>,
}

impl<'a> Section<'_, 'a> {
    /// Whether the file has it.
    pub(super) fn present(&self) -> bool {
        self.present
    }

    /// Whether `key` is written, right or wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Notes a mistake of `key` of this section.
    pub(super) fn problem(&mut self, line: Option<usize>, key: &str, message: impl Into<String>) {
        let key = format!("{}.{key}", self.name);
        self.reader.problem(line.or(self.line), &key, message);
    }

    /// Notes that `key` is missing, with the line to add.
    pub(super) fn missing(&mut self, key: &str, example: &str) {
        let message = format!("missing; add {key} = {example} below [{}]", self.name);
        self.reader.missing(self.line, &format!("{}.{key}", self.name), message);
    }

    /// A text.
    pub(super) fn text(&mut self, key: &'static str) -> Option<Located<String>> {
        let (value, line) = self.take(key)?;
        match value {
            DeValue::String(text) => Some(Located { value: text.into_owned(), line }),
            other => {
                let message = format!("must be a text in quotes, not {}", kind(&other));
                self.problem(line, key, message);
                None
            }
        }
    }

    /// A text that must be there; `example` is what to write, with its quotes.
    pub(super) fn required(&mut self, key: &'static str, example: &str) -> Option<Located<String>> {
        if self.has(key) {
            return self.text(key);
        }
        self.known.push(key);
        self.missing(key, example);
        None
    }

    /// A whole number within `range`.
    pub(super) fn integer(&mut self, key: &'static str, default: u32, range: RangeInclusive<u32>) -> u32 {
        let Some((value, line)) = self.take(key) else { return default };
        let found = match &value {
            DeValue::Integer(integer) => match to_i128(integer) {
                Some(number) => match u32::try_from(number) {
                    Ok(number) if range.contains(&number) => return number,
                    _ => number.to_string(),
                },
                None => "a larger one".to_owned(),
            },
            other => kind(other).to_owned(),
        };
        let message =
            format!("must be a whole number from {} to {}, not {found}", range.start(), range.end());
        self.problem(line, key, message);
        default
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        match self.take(key) {
            None => default,
            Some((DeValue::Boolean(value), _)) => value,
            Some((other, line)) => {
                let message = format!("must be true or false without quotes, not {}", kind(&other));
                self.problem(line, key, message);
                default
            }
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, default: T, words: &[(&str, T)]) -> T {
        let Some(written) = self.text(key) else { return default };
        self.word(key, &written.value, written.line, words).unwrap_or(default)
    }

    /// A list of some of a few words; `None` when it is not written.
    pub(super) fn choices<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<Vec<T>> {
        let (value, line) = self.take(key)?;
        let DeValue::Array(list) = value else {
            self.problem(line, key, format!("must be a list of texts, not {}", kind(&value)));
            return None;
        };
        let mut chosen = Vec::new();
        for one in &list {
            match one.get_ref() {
                DeValue::String(word) => chosen.extend(self.word(key, word, line, words)),
                other => self.problem(line, key, format!("must be a list of texts, not of {}", kind(other))),
            }
        }
        Some(chosen)
    }

    fn word<T: Copy>(
        &mut self,
        key: &str,
        written: &str,
        line: Option<usize>,
        words: &[(&str, T)],
    ) -> Option<T> {
        let found = words.iter().find(|(word, _)| *word == written).map(|(_, value)| *value);
        if found.is_none() {
            let all: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            self.problem(line, key, format!("must be {}, not \"{written}\"", all.join(" or ")));
        }
        found
    }

    /// Refuses the keys that nobody asked for.
    pub(super) fn finish(self) {
        for (key, _) in &self.table {
            if !self.known.contains(&key.get_ref().as_ref()) {
                let line = Some(line_of(self.reader.text, key.span().start));
                let message = unknown("key", key.get_ref(), &self.known);
                self.reader.problem(line, &format!("{}.{}", self.name, key.get_ref()), message);
            }
        }
    }

    fn take(&mut self, key: &'static str) -> Option<(DeValue<'a>, Option<usize>)> {
        self.known.push(key);
        let value: &Spanned<DeValue<'a>> = self.table.get(key)?;
        let line = line_of(self.reader.text, value.span().start);
        Some((value.get_ref().clone(), Some(line)))
    }
}

fn unknown(what: &str, written: &str, known: &[&str]) -> String {
    match nearest(written, known) {
        Some(near) => format!("unknown {what}; did you mean \"{near}\"?"),
        None => format!("unknown {what}; known here: {}", known.join(", ")),
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}

fn to_i128(integer: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn kind(value: &DeValue<'_>) -> &'static str {
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
