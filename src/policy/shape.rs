//! The shape of a command: what it asks for, without the values that it asks about.
//!
//! `{find: orders, filter: {customer_id: ?, at: {$gt: ?}}, sort: {at: 1}}`. Commands of one shape are served by one
//! plan on one index, so that their latencies can be compared. One walk gives both the hash and the text: the hash
//! on every operation, without an allocation; the text when a shape is seen for the first time.

use bson::RawDocument;
use bson::raw::{RawArray, RawBsonRef};

use super::shape_words::{
    MOST_FIELDS, MOST_SEGMENT, UNITS, WORDS, computes, is_computed, is_locale, is_made_up, is_usual_index,
};

/// Elements of an array that are looked at.
const MOST_ELEMENTS: usize = 16;
/// Tokens of a shape; what is longer is cut.
const MOST_TOKENS: u32 = 400;
/// Documents within documents that are looked at.
const MOST_DEPTH: u32 = 24;
/// Longest name or kept text, in bytes.
const MOST_NAME: usize = 120;
/// So many digits in a row number things.
const NUMBERING: usize = 4;
/// Longest text of a shape, in bytes: texts are kept, and stored with baselines.
const MOST_TEXT: usize = 4000;

/// A command whose shape is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// `database.collection`.
    pub namespace: &'a str,
    /// The command. Its statements may be in it, or in [`Self::statements`].
    pub body: &'a RawDocument,
    /// The field of its statements, the first of them, and how many there are.
    pub statements: Option<(&'a str, Option<&'a RawDocument>, usize)>,
}

impl Asked<'_> {
    /// A stable hash: equal for commands of one shape on one namespace.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut sink = Hash(0xcbf2_9ce4_8422_2325);
        sink.put(self.namespace);
        sink.put("\0");
        Walk::into(&mut sink).command(self);
        // The multiplication alone leaves the upper bits of short texts alike.
        let mixed = (sink.0 ^ (sink.0 >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed ^ (mixed >> 33)
    }

    /// The shape in words. It holds no value of a filter, an update or a document.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        Walk::into(&mut text).command(self);
        if text.len() > MOST_TEXT {
            text.truncate(cut(&text, MOST_TEXT).len());
            text.push_str("...");
        }
        text
    }
}

/// Where the words of a shape go.
trait Sink {
    fn put(&mut self, text: &str);
}

impl Sink for String {
    fn put(&mut self, text: &str) {
        self.push_str(text);
    }
}

struct Hash(u64);

impl Sink for Hash {
    fn put(&mut self, text: &str) {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// What a value is to the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A value: never shown.
    Value,
    /// Fields and conditions of a query.
    Filter,
    /// What a query says of one field.
    Condition,
    /// The operators of an update, or a replacement.
    Update,
    /// The fields that an operator changes.
    Changed,
    /// Stages, and whatever is in them.
    Expression,
    /// Directions of an order, and options: numbers and the words that servers have for them.
    Kept,
    /// An index, by name or by its fields.
    Hint,
    /// The language of a collation.
    Locale,
    /// A unit of time.
    Unit,
    /// The name of a field or a collection.
    Name,
    /// What a stage says of another collection.
    Joined,
    /// What a stage says of a place.
    Located,
    /// Shown where it says only whether a field is there.
    Projection,
    /// A statement of an update or a delete.
    Statement,
}

/// What the field `key` of a command is; `None`: it does not belong to the shape.
fn part_of_command(key: &str) -> Option<Part> {
    Some(match key {
        "filter" | "query" | "q" | "min" | "max" | "arrayFilters" => Part::Filter,
        "update" | "u" => Part::Update,
        "pipeline" => Part::Expression,
        "sort" | "collation" | "multi" | "upsert" | "remove" | "new" | "tailable" => Part::Kept,
        "hint" => Part::Hint,
        "key" => Part::Name,
        "projection" | "fields" => Part::Projection,
        "limit" | "skip" => Part::Value,
        "updates" | "deletes" => Part::Statement,
        "documents" => Part::Value,
        _ => return None,
    })
}

/// What stands under `key` in a `part`; `None`: it does not belong to the shape.
fn part_under(part: Part, key: &str) -> Option<Part> {
    Some(match (part, key) {
        (Part::Statement, "limit") => Part::Kept,
        (Part::Statement, _) => return part_of_command(key),
        (Part::Filter, "$comment") => return None,
        (Part::Filter, "$and" | "$or" | "$nor") => Part::Filter,
        (Part::Filter | Part::Condition, "$expr") => Part::Expression,
        (Part::Filter, _) | (Part::Condition, "$not") => Part::Condition,
        (Part::Condition | Part::Expression, "$elemMatch") | (Part::Expression, "$match") => Part::Filter,
        // The document that a field is compared with.
        (Part::Condition, key) if !key.starts_with('$') => return None,
        (Part::Update, _) => Part::Changed,
        (Part::Joined, _) => return Some(part_of_join(key)),
        (Part::Located, "query") => Part::Filter,
        (Part::Located, "key" | "distanceField" | "includeLocs") => Part::Name,
        (Part::Expression, _) => return Some(part_of_stage(key)),
        (Part::Projection, _) => Part::Expression,
        (Part::Kept, "locale") => Part::Locale,
        (Part::Kept | Part::Hint | Part::Locale, _) => Part::Kept,
        (Part::Name, _) => Part::Name,
        (Part::Condition | Part::Changed | Part::Value | Part::Unit | Part::Located, _) => Part::Value,
    })
}

/// What stands under the stage or operator `key`.
fn part_of_stage(key: &str) -> Part {
    match key {
        "$sort" => Part::Kept,
        "$project" => Part::Projection,
        "$literal" | "$documents" | "$search" | "$searchMeta" | "$vectorSearch" => Part::Value,
        "$lookup" | "$graphLookup" | "$unionWith" => Part::Joined,
        "$geoNear" => Part::Located,
        "unit" => Part::Unit,
        _ => Part::Expression,
    }
}

/// What stands under `key` where a stage names another collection.
fn part_of_join(key: &str) -> Part {
    match key {
        "from" | "coll" | "as" | "localField" | "foreignField" | "connectFromField" | "connectToField"
        | "depthField" => Part::Name,
        "restrictSearchWithMatch" => Part::Filter,
        _ => Part::Expression,
    }
}

struct Walk<'s, S> {
    sink: &'s mut S,
    left: u32,
    depth: u32,
}

impl<'s, S: Sink> Walk<'s, S> {
    fn into(sink: &'s mut S) -> Self {
        Self { sink, left: MOST_TOKENS, depth: 0 }
    }

    fn command(&mut self, asked: &Asked<'_>) {
        let mut elements = asked.body.iter_elements();
        let Some(Ok(first)) = elements.next() else { return };
        self.sink.put("{");
        self.name(first.key().as_str());
        self.sink.put(": ");
        self.sink.put(asked.namespace.split_once('.').map_or(asked.namespace, |(_, collection)| collection));
        for element in elements.flatten() {
            let name = element.key().as_str();
            let Some(part) = part_of_command(name) else { continue };
            let Ok(value) = element.value() else { continue };
            if matches!(value, RawBsonRef::Document(empty) if empty.is_empty()) {
                // Drivers differ in whether they send what says nothing.
                continue;
            }
            self.sink.put(", ");
            self.field(name, value, part);
        }
        if let Some((field, first, count)) = asked.statements {
            self.sink.put(", ");
            self.sink.put(field);
            self.sink.put(": [");
            match first.filter(|_| field != "documents") {
                Some(first) => self.document(first, Part::Statement),
                None => self.sink.put("?"),
            }
            self.sink.put(if count > 1 { ", ...]" } else { "]" });
        }
        self.sink.put("}");
    }

    fn field(&mut self, name: &str, value: RawBsonRef<'_>, part: Part) {
        self.name(name);
        self.sink.put(": ");
        self.value(value, part);
    }

    /// A name, with what numbers or identifies something as one: names that are values have a shape too.
    fn name(&mut self, name: &str) {
        let is_plain = |byte: u8| !byte.is_ascii_digit() && byte != b'@';
        if name.len() <= MOST_SEGMENT && name.bytes().all(is_plain) {
            return self.sink.put(name);
        }
        for (index, segment) in cut(name, MOST_NAME).split('.').enumerate() {
            if index > 0 {
                self.sink.put(".");
            }
            self.segment(segment);
        }
    }

    fn segment(&mut self, segment: &str) {
        if is_made_up(segment) {
            return self.sink.put("#");
        }
        let mut rest = segment;
        while let Some(begin) = rest.find(|letter: char| letter.is_ascii_digit()) {
            let (before, from) = rest.split_at(begin);
            let digits = from.bytes().take_while(u8::is_ascii_digit).count();
            let (number, behind) = from.split_at(digits);
            self.sink.put(before);
            self.sink.put(if digits < NUMBERING { number } else { "#" });
            rest = behind;
        }
        self.sink.put(rest);
    }

    fn value(&mut self, value: RawBsonRef<'_>, part: Part) {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 || self.depth >= MOST_DEPTH {
            return self.sink.put("...");
        }
        match (value, part) {
            (RawBsonRef::Array(array), _) => self.array(array, part),
            (_, Part::Value | Part::Changed) if !has_fields(value, part) => self.sink.put("?"),
            (RawBsonRef::Document(document), _) => self.document(document, part),
            (RawBsonRef::String(text), _) => self.text(text, part),
            (value, Part::Kept | Part::Locale) => self.kept(value),
            _ => self.sink.put("?"),
        }
    }

    /// A text: a value, unless servers know it, or it is a name.
    fn text(&mut self, text: &str, part: Part) {
        let is_known = match part {
            Part::Name | Part::Joined => return self.name(text),
            Part::Expression if text.starts_with('$') => return self.name(text),
            Part::Kept => WORDS.contains(&text),
            Part::Unit => UNITS.contains(&text),
            Part::Locale => is_locale(text),
            Part::Hint => text.len() <= MOST_NAME && is_usual_index(text),
            _ => false,
        };
        self.sink.put(if is_known { text } else { "?" });
    }

    fn document(&mut self, document: &RawDocument, part: Part) {
        let mut elements = document.iter_elements().flatten().peekable();
        let is_plain = elements.peek().is_some_and(|first| !first.key().as_str().starts_with('$'));
        match part {
            // Compared as a whole.
            Part::Condition if is_plain => return self.sink.put("?"),
            Part::Update if is_plain => return self.sink.put("{...}"),
            // A value among expressions.
            Part::Expression if is_plain && !computes(document, MOST_DEPTH) => return self.sink.put("?"),
            _ => {}
        }
        self.depth += 1;
        self.sink.put("{");
        let mut is_first = true;
        for element in elements {
            if self.left == 0 {
                break;
            }
            let name = element.key().as_str();
            let Some(under) = part_under(part, name) else { continue };
            let Ok(value) = element.value() else { continue };
            if !std::mem::take(&mut is_first) {
                self.sink.put(", ");
            }
            self.field(name, value, under);
        }
        self.sink.put("}");
        self.depth -= 1;
    }

    /// Lists of values are one, however long; what is made of documents is looked into.
    fn array(&mut self, array: &RawArray, part: Part) {
        let is_list = match part {
            Part::Filter | Part::Kept | Part::Statement | Part::Update | Part::Projection => false,
            Part::Expression => {
                !array.into_iter().flatten().take(MOST_FIELDS).any(|item| is_computed(item, MOST_DEPTH))
            }
            _ => true,
        };
        self.sink.put("[");
        let mut elements = array.into_iter().flatten();
        if is_list {
            self.sink.put("?");
        } else {
            self.depth += 1;
            for (index, element) in elements.by_ref().take(MOST_ELEMENTS).enumerate() {
                if index > 0 {
                    self.sink.put(", ");
                }
                // A pipeline as an update.
                self.value(element, if part == Part::Update { Part::Expression } else { part });
            }
            if elements.next().is_some() {
                self.sink.put(", ...");
            }
            self.depth -= 1;
        }
        self.sink.put("]");
    }

    fn kept(&mut self, value: RawBsonRef<'_>) {
        self.sink.put(match value {
            RawBsonRef::Boolean(true) => "true",
            RawBsonRef::Boolean(false) => "false",
            // Drivers send a number in several types.
            value => match number(value) {
                Some(-1) => "-1",
                Some(0) => "0",
                Some(1) => "1",
                _ => "?",
            },
        });
    }
}

/// Whether it is a document whose fields belong to the shape although its values do not.
fn has_fields(value: RawBsonRef<'_>, part: Part) -> bool {
    part == Part::Changed && matches!(value, RawBsonRef::Document(_))
}

#[expect(clippy::cast_possible_truncation, clippy::float_cmp, reason = "only small whole numbers matter")]
fn number(value: RawBsonRef<'_>) -> Option<i64> {
    match value {
        RawBsonRef::Int32(number) => Some(number.into()),
        RawBsonRef::Int64(number) => Some(number),
        RawBsonRef::Double(number) if number.trunc() == number => Some(number as i64),
        _ => None,
    }
}

/// The begin of a text, at most so many bytes of it.
fn cut(text: &str, most: usize) -> &str {
    let end = (0..=text.len().min(most)).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
#[path = "shape_tests.rs"]
mod tests;
