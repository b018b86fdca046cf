//! Filters: the part of MongoDB's query language that the proxy and its tests use.

use bson::{RawArray, RawBsonRef, RawDocument};

use super::error::{BAD_VALUE, Failure, Outcome};
use super::key::{class, equal, key_of};

/// Whether `document` matches `filter`.
pub(crate) fn matches(filter: &RawDocument, document: &RawDocument) -> Outcome<bool> {
    for element in filter {
        let (name, condition) = element?;
        if !clause(name.as_str(), condition, document)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn clause(name: &str, condition: RawBsonRef<'_>, document: &RawDocument) -> Outcome<bool> {
    match name {
        "$and" => all(condition, document),
        "$or" => any(condition, document),
        "$nor" => Ok(!any(condition, document)?),
        "$expr" => Ok(truthy(&evaluate(condition, document)?)),
        "$comment" => Ok(true),
        _ if name.starts_with('$') => Err(unsupported("operator", name)),
        _ => field(name, condition, document),
    }
}

fn list<'a>(condition: RawBsonRef<'a>) -> Outcome<&'a RawArray> {
    condition.as_array().ok_or_else(|| Failure::new(BAD_VALUE, "needs an array"))
}

fn all(condition: RawBsonRef<'_>, document: &RawDocument) -> Outcome<bool> {
    for part in list(condition)? {
        let part = part?.as_document().ok_or_else(|| unsupported("clause", "not a document"))?;
        if !matches(part, document)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn any(condition: RawBsonRef<'_>, document: &RawDocument) -> Outcome<bool> {
    for part in list(condition)? {
        let part = part?.as_document().ok_or_else(|| unsupported("clause", "not a document"))?;
        if matches(part, document)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn field(path: &str, condition: RawBsonRef<'_>, document: &RawDocument) -> Outcome<bool> {
    let Some(operators) = operators(condition) else {
        return Ok(holds(path, document, &|value| is(value, condition)));
    };
    for element in operators {
        let (name, argument) = element?;
        if !operator(path, name.as_str(), argument, document)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The condition as `{$operator: ..}`, `None` if it is a value to equal.
pub(crate) fn operators<'a>(condition: RawBsonRef<'a>) -> Option<&'a RawDocument> {
    let document = condition.as_document()?;
    let (first, _) = document.iter().next()?.ok()?;
    first.as_str().starts_with('$').then_some(document)
}

fn operator(path: &str, name: &str, argument: RawBsonRef<'_>, document: &RawDocument) -> Outcome<bool> {
    let compare = |accept: fn(std::cmp::Ordering) -> bool| {
        let bound = key_of(argument);
        holds(path, document, &|value| {
            value.is_some_and(|value| class(value) == class(argument) && accept(key_of(value).cmp(&bound)))
        })
    };
    Ok(match name {
        "$eq" => holds(path, document, &|value| is(value, argument)),
        "$ne" => !holds(path, document, &|value| is(value, argument)),
        "$in" | "$nin" => {
            let items = list(argument)?;
            let found =
                holds(path, document, &|value| items.into_iter().flatten().any(|item| is(value, item)));
            found == (name == "$in")
        }
        "$gt" => compare(std::cmp::Ordering::is_gt),
        "$gte" => compare(std::cmp::Ordering::is_ge),
        "$lt" => compare(std::cmp::Ordering::is_lt),
        "$lte" => compare(std::cmp::Ordering::is_le),
        "$exists" => {
            let wanted = argument.as_bool().unwrap_or(true);
            holds(path, document, &|value| value.is_some()) == wanted
        }
        "$not" => !field(path, argument, document)?,
        "$options" => true,
        "$regex" => {
            let names = Names::parse(argument.as_str().unwrap_or_default())?;
            holds(path, document, &|value| {
                value.and_then(RawBsonRef::as_str).is_some_and(|it| names.take(it))
            })
        }
        _ => return Err(unsupported("operator", name)),
    })
}

/// The only regular expressions that are asked for: of names that do not begin like those of servers, and that some
/// parts make up with anything between them, `^(?!a|b)part.*part$`.
struct Names {
    not: Vec<String>,
    parts: Vec<String>,
}

impl Names {
    fn parse(expression: &str) -> Outcome<Self> {
        let unknown = || Failure::new(BAD_VALUE, format!("the simulator does not know {expression:?}"));
        let inner = expression.strip_prefix("^(?!").and_then(|rest| rest.strip_suffix('$'));
        let (not, parts) = inner.and_then(|inner| inner.split_once(')')).ok_or_else(unknown)?;
        let plain = |text: &str| text.replace('\\', "");
        Ok(Self { not: not.split('|').map(plain).collect(), parts: parts.split(".*").map(plain).collect() })
    }

    fn take(&self, name: &str) -> bool {
        if self.not.iter().any(|beginning| name.starts_with(beginning)) {
            return false;
        }
        let [first, between @ .., last] = self.parts.as_slice() else {
            return self.parts.first().is_some_and(|all| all == name);
        };
        let Some(mut rest) =
            name.strip_prefix(first.as_str()).and_then(|rest| rest.strip_suffix(last.as_str()))
        else {
            return false;
        };
        between.iter().all(|part| match rest.split_once(part.as_str()) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    }
}

fn is(value: Option<RawBsonRef<'_>>, wanted: RawBsonRef<'_>) -> bool {
    match value {
        Some(value) => equal(value, wanted),
        None => matches!(wanted, RawBsonRef::Null),
    }
}

/// Whether any value at `path` (through arrays too) satisfies `test`; a missing one counts as `None`.
fn holds(path: &str, document: &RawDocument, test: &dyn Fn(Option<RawBsonRef<'_>>) -> bool) -> bool {
    let (head, tail) = path.split_once('.').map_or((path, None), |(head, tail)| (head, Some(tail)));
    let value = document.get(head).ok().flatten();
    match (tail, value) {
        (None, Some(RawBsonRef::Array(items))) => {
            test(value) || items.into_iter().flatten().any(|item| test(Some(item)))
        }
        (None, value) => test(value),
        (Some(tail), Some(RawBsonRef::Document(inner))) => holds(tail, inner, test),
        (Some(tail), Some(RawBsonRef::Array(items))) => items
            .into_iter()
            .flatten()
            .filter_map(RawBsonRef::as_document)
            .any(|inner| holds(tail, inner, test)),
        (Some(_), _) => test(None),
    }
}

/// The value of an aggregation expression: constants, `$$ROOT`, fields, and a few comparisons.
pub(crate) fn evaluate<'a>(
    expression: RawBsonRef<'a>,
    document: &'a RawDocument,
) -> Outcome<Option<RawBsonRef<'a>>> {
    match expression {
        RawBsonRef::String("$$ROOT") => Ok(Some(RawBsonRef::Document(document))),
        RawBsonRef::String(path) if path.starts_with("$$") => Err(unsupported("variable", path)),
        RawBsonRef::String(path) if path.starts_with('$') => Ok(lookup(&path[1..], document)),
        _ => match operators(expression) {
            Some(operation) => call(operation, document),
            None => Ok(Some(expression)),
        },
    }
}

fn call<'a>(operation: &'a RawDocument, document: &'a RawDocument) -> Outcome<Option<RawBsonRef<'a>>> {
    let (name, argument) = operation.iter().next().ok_or_else(|| unsupported("expression", "empty"))??;
    let result = match name.as_str() {
        "$literal" => return Ok(Some(argument)),
        "$size" => return Ok(Some(RawBsonRef::Int32(count_fields(argument, document)?))),
        "$eq" | "$ne" | "$cmp" => {
            let mut sides = Vec::with_capacity(2);
            for side in list(argument)? {
                sides.push(evaluate(side?, document)?);
            }
            let same = match (sides[0], sides[1]) {
                (Some(left), Some(right)) => equal(left, right),
                (left, right) => left.is_none() && right.is_none(),
            };
            if name.as_str() == "$cmp" {
                // Only its zero is asked for.
                return Ok(Some(RawBsonRef::Int32(i32::from(!same))));
            }
            same == (name.as_str() == "$eq")
        }
        "$and" => {
            let mut result = true;
            for part in list(argument)? {
                result &= truthy(&evaluate(part?, document)?);
            }
            result
        }
        other => return Err(unsupported("expression", other)),
    };
    Ok(Some(RawBsonRef::Boolean(result)))
}

/// Of `{$objectToArray: <field>}`, the only thing whose size is asked for.
fn count_fields(argument: RawBsonRef<'_>, document: &RawDocument) -> Outcome<i32> {
    let object = argument.as_document().and_then(|argument| argument.get("$objectToArray").ok().flatten());
    let object = object.ok_or_else(|| unsupported("size of", "something else"))?;
    match evaluate(object, document)? {
        Some(RawBsonRef::Document(fields)) => Ok(i32::try_from(fields.iter().count()).unwrap_or(i32::MAX)),
        _ => Err(unsupported("size of", "no object")),
    }
}

fn truthy(value: &Option<RawBsonRef<'_>>) -> bool {
    match value {
        None | Some(RawBsonRef::Null | RawBsonRef::Boolean(false) | RawBsonRef::Int32(0)) => false,
        Some(RawBsonRef::Int64(value)) => *value != 0,
        Some(RawBsonRef::Double(value)) => *value != 0.0,
        Some(_) => true,
    }
}

/// The value at a dotted path, not through arrays.
pub(crate) fn lookup<'a>(path: &str, document: &'a RawDocument) -> Option<RawBsonRef<'a>> {
    match path.split_once('.') {
        None => document.get(path).ok().flatten(),
        Some((head, tail)) => lookup(tail, document.get(head).ok().flatten()?.as_document()?),
    }
}

fn unsupported(what: &str, name: &str) -> Failure {
    Failure::new(BAD_VALUE, format!("the simulator knows no {what} {name}"))
}
