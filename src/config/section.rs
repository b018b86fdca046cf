//! One section of the file, and the kinds of values that its keys have.

use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::reader::{Located, Reader, kind, line_of, unknown};

/// One section of the file.
pub(super) struct Section<'r, 'a> {
    pub(super) reader: &'r mut Reader<'a>,
    /// As it stands before the keys in errors.
    pub(super) name: String,
    pub(super) table: DeTable<'a>,
    pub(super) line: Option<usize>,
    pub(super) present: bool,
    pub(super) known: Vec<&'static str>,
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

    /// Notes a mistake of `key`, on its line if it is written.
    pub(super) fn problem_at(&mut self, key: &str, message: impl Into<String>) {
        let line = self.table.get(key).map(|value| line_of(self.reader.text, value.span().start));
        self.problem(line, key, message);
    }

    /// Notes a mistake of the section itself.
    pub(super) fn problem_here(&mut self, message: impl Into<String>) {
        let name = self.name.clone();
        self.reader.problem(self.line, &name, message);
    }

    /// Notes that `key` is missing, with the line to add.
    pub(super) fn missing(&mut self, key: &str, example: &str) {
        let place = match self.name.rsplit_once('[') {
            Some(_) => "in its braces".to_owned(),
            None => format!("below [{}]", self.name),
        };
        let message = format!("missing; add {key} = {example} {place}");
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

    /// One of a few words; `None` when it is written, and none of them.
    pub(super) fn chosen<T: Copy>(
        &mut self,
        key: &'static str,
        default: T,
        words: &[(&str, T)],
    ) -> Option<T> {
        if !self.has(key) {
            self.known.push(key);
            return Some(default);
        }
        let written = self.text(key)?;
        self.word(key, &written.value, written.line, words)
    }

    /// A key that is known and does not fit here; returns whether it is written.
    pub(super) fn refuse(&mut self, key: &'static str) -> bool {
        self.known.push(key);
        self.has(key)
    }

    /// Texts by their names, as in `example`.
    pub(super) fn texts(&mut self, key: &'static str, example: &str) -> Vec<(String, String)> {
        let Some((value, line)) = self.take(key) else { return Vec::new() };
        let DeValue::Table(table) = value else {
            self.problem(line, key, format!("must be like {example}, not {}", kind(&value)));
            return Vec::new();
        };
        let mut found = Vec::new();
        for (name, value) in &table {
            match value.get_ref() {
                DeValue::String(text) => found.push((name.get_ref().to_string(), text.to_string())),
                other => {
                    let message = format!("{} must be a text in quotes, not {}", name.get_ref(), kind(other));
                    self.problem(line, key, message);
                }
            }
        }
        found
    }

    /// Opens each of a list of sections in braces.
    pub(super) fn each_of(&mut self, key: &'static str, mut read: impl FnMut(Section<'_, 'a>)) {
        let Some((value, line)) = self.take(key) else { return };
        let DeValue::Array(list) = value else {
            let message = format!("must be a list like [{{ address = \"...\" }}], not {}", kind(&value));
            return self.problem(line, key, message);
        };
        for (number, value) in list.into_iter().enumerate() {
            let name = format!("{}.{key}[{number}]", self.name);
            let line = Some(line_of(self.reader.text, value.span().start));
            match value.into_inner() {
                DeValue::Table(table) => {
                    read(Section {
                        reader: self.reader,
                        name,
                        table,
                        line,
                        present: true,
                        known: Vec::new(),
                    });
                }
                other => {
                    let message = format!("must be like {{ address = \"...\" }}, not {}", kind(&other));
                    self.reader.problem(line, &name, message);
                }
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

fn to_i128(integer: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}
