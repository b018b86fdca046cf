//! What an update makes of a document: operators, a replacement, or a small pipeline.

use bson::raw::{RawDocumentBuf, cstr};
use bson::{Bson, Document, RawBsonRef, RawDocument, Timestamp};

use super::error::{BAD_VALUE, Failure, Outcome};
use super::filter::{evaluate, operators};
use super::key::equal;

/// The `u` of an update.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change<'a> {
    /// `{$set: ..}` and the like.
    Operators(&'a RawDocument),
    /// A whole document.
    Replacement(&'a RawDocument),
    /// An aggregation pipeline.
    Pipeline(&'a bson::RawArray),
}

impl<'a> Change<'a> {
    /// Reads the `u` (or `update`) of a statement.
    pub(crate) fn parse(value: RawBsonRef<'a>) -> Outcome<Self> {
        match value {
            RawBsonRef::Array(stages) => Ok(Self::Pipeline(stages)),
            RawBsonRef::Document(document) if operators(value).is_some() => Ok(Self::Operators(document)),
            RawBsonRef::Document(document) => Ok(Self::Replacement(document)),
            _ => Err(Failure::new(BAD_VALUE, "an update is a document or a pipeline")),
        }
    }

    /// Whether streams call the change a replacement.
    pub(crate) fn replaces(self) -> bool {
        matches!(self, Self::Replacement(_))
    }

    /// The document after the change; `inserting` when an upsert makes it.
    pub(crate) fn apply(
        self,
        before: &RawDocument,
        inserting: bool,
        now: Timestamp,
    ) -> Outcome<RawDocumentBuf> {
        let after = match self {
            Self::Operators(operators) => operate(operators, before, inserting, now)?,
            Self::Replacement(document) => with_id(&stamped(document, now), before),
            Self::Pipeline(stages) => pipeline(stages, before)?,
        };
        let (old, new) = (before.get("_id")?, after.get("_id")?);
        if let (Some(old), Some(new)) = (old, new)
            && !equal(old, new)
        {
            return Err(Failure::new(66, "the immutable field '_id' cannot be changed"));
        }
        Ok(after)
    }
}

/// Empty timestamps at the top level become the server's time, as on insert and replace.
pub(crate) fn stamped(document: &RawDocument, now: Timestamp) -> RawDocumentBuf {
    let empty = |value| matches!(value, RawBsonRef::Timestamp(Timestamp { time: 0, increment: 0 }));
    if !document.iter().flatten().any(|(name, value)| name.as_str() != "_id" && empty(value)) {
        return document.to_owned();
    }
    let mut result = RawDocumentBuf::new();
    for (name, value) in document.iter().flatten() {
        let value = if name.as_str() != "_id" && empty(value) { RawBsonRef::Timestamp(now) } else { value };
        result.append(name, value);
    }
    result
}

/// `document` with the `_id` of `before` in front, the rest as it is.
fn with_id(document: &RawDocument, before: &RawDocument) -> RawDocumentBuf {
    let kept = before.get("_id").ok().flatten();
    let own = document.get("_id").ok().flatten();
    let Some(id) = own.or(kept) else { return document.to_owned() };
    let mut result = RawDocumentBuf::new();
    result.append(cstr!("_id"), id);
    for (name, value) in document.iter().flatten() {
        if name.as_str() != "_id" {
            result.append(name, value);
        }
    }
    result
}

fn pipeline(stages: &bson::RawArray, before: &RawDocument) -> Outcome<RawDocumentBuf> {
    let mut current = before.to_owned();
    for stage in stages {
        let stage = stage?.as_document().ok_or_else(|| Failure::new(BAD_VALUE, "bad stage"))?;
        let (name, argument) =
            stage.iter().next().ok_or_else(|| Failure::new(BAD_VALUE, "empty stage"))??;
        current = match name.as_str() {
            "$replaceWith" => replaced(argument, &current)?,
            "$replaceRoot" => {
                let root = argument.as_document().and_then(|spec| spec.get("newRoot").ok().flatten());
                replaced(root.ok_or_else(|| Failure::new(BAD_VALUE, "no newRoot"))?, &current)?
            }
            "$set" | "$addFields" => assigned(argument, &current)?,
            "$unset" => removed(argument, &current)?,
            other => return Err(Failure::new(BAD_VALUE, format!("unknown stage {other}"))),
        };
    }
    Ok(current)
}

/// Keeps the new document as it is, with the old `_id` only if it has none.
fn replaced(root: RawBsonRef<'_>, current: &RawDocument) -> Outcome<RawDocumentBuf> {
    let value = evaluate(root, current)?.and_then(RawBsonRef::as_document);
    let value = value.ok_or_else(|| Failure::new(40228, "$replaceWith needs a document"))?;
    if value.get("_id")?.is_some() { Ok(value.to_owned()) } else { Ok(with_id(value, current)) }
}

fn assigned(argument: RawBsonRef<'_>, current: &RawDocument) -> Outcome<RawDocumentBuf> {
    let fields = argument.as_document().ok_or_else(|| Failure::new(BAD_VALUE, "$set needs a document"))?;
    let mut document = Document::try_from(current)?;
    for field in fields {
        let (name, expression) = field?;
        if let Some(value) = evaluate(expression, current)? {
            set(&mut document, name.as_str(), value.try_into()?);
        }
    }
    Ok(RawDocumentBuf::try_from(&document)?)
}

fn removed(argument: RawBsonRef<'_>, current: &RawDocument) -> Outcome<RawDocumentBuf> {
    let mut document = Document::try_from(current)?;
    if let Some(name) = argument.as_str() {
        unset(&mut document, name);
    }
    for name in argument.as_array().into_iter().flatten().flatten().filter_map(RawBsonRef::as_str) {
        unset(&mut document, name);
    }
    Ok(RawDocumentBuf::try_from(&document)?)
}

fn operate(
    operators: &RawDocument,
    before: &RawDocument,
    inserting: bool,
    now: Timestamp,
) -> Outcome<RawDocumentBuf> {
    let mut document = Document::try_from(before)?;
    for operator in operators {
        let (operator, fields) = operator?;
        let fields = fields.as_document().ok_or_else(|| Failure::new(9, "an operator needs a document"))?;
        for field in fields {
            let (path, argument) = field?;
            operation(&mut document, operator.as_str(), path.as_str(), argument, inserting, now)?;
        }
    }
    Ok(RawDocumentBuf::try_from(&document)?)
}

fn operation(
    document: &mut Document,
    operator: &str,
    path: &str,
    argument: RawBsonRef<'_>,
    inserting: bool,
    now: Timestamp,
) -> Outcome<()> {
    let value = Bson::try_from(argument)?;
    match operator {
        "$set" => set(document, path, value),
        "$setOnInsert" if !inserting => {}
        "$setOnInsert" => set(document, path, value),
        "$unset" => unset(document, path),
        "$inc" => {
            let sum = match get(document, path) {
                Some(current) => add(current, &value)?,
                None => value,
            };
            set(document, path, sum);
        }
        "$push" => push(document, path, value)?,
        "$max" => {
            let greater = match (get(document, path), &value) {
                (Some(current), value) => real(current) < real(value),
                (None, _) => true,
            };
            if greater {
                set(document, path, value);
            }
        }
        "$currentDate" => set(document, path, Bson::Timestamp(now)),
        other => return Err(Failure::new(9, format!("unknown modifier {other}"))),
    }
    Ok(())
}

/// Appends one value, or with `$each` several, of which `$slice` keeps the last.
fn push(document: &mut Document, path: &str, value: Bson) -> Outcome<()> {
    let mut items = match get(document, path) {
        Some(Bson::Array(items)) => items.clone(),
        Some(_) => return Err(Failure::new(BAD_VALUE, "$push needs an array")),
        None => Vec::new(),
    };
    match &value {
        Bson::Document(spec) if spec.contains_key("$each") => {
            items.extend(spec.get_array("$each").cloned().unwrap_or_default());
            if let Ok(keep) = spec.get_i32("$slice") {
                let surplus = items.len().saturating_sub(keep.unsigned_abs() as usize);
                items.drain(..surplus);
            }
        }
        _ => items.push(value),
    }
    set(document, path, Bson::Array(items));
    Ok(())
}

fn add(left: &Bson, right: &Bson) -> Outcome<Bson> {
    Ok(match (left, right) {
        (Bson::Int32(a), Bson::Int32(b)) => match a.checked_add(*b) {
            Some(sum) => Bson::Int32(sum),
            None => Bson::Int64(i64::from(*a) + i64::from(*b)),
        },
        (Bson::Int32(a), Bson::Int64(b)) | (Bson::Int64(b), Bson::Int32(a)) => whole(i64::from(*a), *b)?,
        (Bson::Int64(a), Bson::Int64(b)) => whole(*a, *b)?,
        _ => {
            let (Some(a), Some(b)) = (real(left), real(right)) else {
                return Err(Failure::new(14, "cannot apply $inc to a value of non-numeric type"));
            };
            Bson::Double(a + b)
        }
    })
}

fn whole(a: i64, b: i64) -> Outcome<Bson> {
    a.checked_add(b).map(Bson::Int64).ok_or_else(|| Failure::new(BAD_VALUE, "integer overflow"))
}

fn real(value: &Bson) -> Option<f64> {
    match value {
        Bson::Int32(value) => Some(f64::from(*value)),
        Bson::Int64(value) => Some(*value as f64),
        Bson::Double(value) => Some(*value),
        _ => None,
    }
}

fn get<'a>(document: &'a Document, path: &str) -> Option<&'a Bson> {
    match path.split_once('.') {
        None => document.get(path),
        Some((head, tail)) => get(document.get(head)?.as_document()?, tail),
    }
}

fn set(document: &mut Document, path: &str, value: Bson) {
    let Some((head, tail)) = path.split_once('.') else {
        document.insert(path, value);
        return;
    };
    if !matches!(document.get(head), Some(Bson::Document(_))) {
        document.insert(head, Document::new());
    }
    if let Some(Bson::Document(inner)) = document.get_mut(head) {
        set(inner, tail, value);
    }
}

fn unset(document: &mut Document, path: &str) {
    match path.split_once('.') {
        None => {
            document.remove(path);
        }
        Some((head, tail)) => {
            if let Some(Bson::Document(inner)) = document.get_mut(head) {
                unset(inner, tail);
            }
        }
    }
}
