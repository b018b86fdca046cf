//! What a write command is about: its statements, and the key of each where one can be told.

use bson::RawDocument;
use bson::raw::{RawArray, RawBsonRef, RawDocumentBuf, cstr};

use super::canonical::key_of;
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::number::number;

/// The commands that write documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// `insert`
    Insert,
    /// `update`
    Update,
    /// `delete`
    Delete,
    /// `findAndModify`
    FindAndModify,
}

impl Verb {
    /// The verb of a command's name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "insert" => Some(Self::Insert),
            "update" => Some(Self::Update),
            "delete" => Some(Self::Delete),
            "findAndModify" | "findandmodify" => Some(Self::FindAndModify),
            _ => None,
        }
    }

    /// The field that holds its statements, where it can have several.
    #[must_use]
    pub const fn array(self) -> Option<&'static str> {
        match self {
            Self::Insert => Some("documents"),
            Self::Update => Some("updates"),
            Self::Delete => Some("deletes"),
            Self::FindAndModify => None,
        }
    }

    /// The command's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::FindAndModify => "findAndModify",
        }
    }
}

/// One statement of a write command.
#[derive(Debug, Clone)]
pub struct Statement {
    /// The document that describes it; of an insert, the document itself.
    pub raw: RawDocumentBuf,
    /// Whose document it is about; `None`: it does not say.
    pub key: Option<Key>,
    /// It may write more than one document.
    pub multi: bool,
    /// It inserts when nothing matches.
    pub upsert: bool,
    /// What it does to the document does not depend on what is there: an insert, a replacement or a
    /// deletion by `_id` alone.
    pub direct: bool,
}

/// A write command, understood.
#[derive(Debug, Clone)]
pub struct WriteCommand {
    /// Which command.
    pub verb: Verb,
    /// Where it writes.
    pub namespace: Namespace,
    /// The command without its statements, `$db` and `$clusterTime`; of a `findAndModify`, all of it.
    pub body: RawDocumentBuf,
    /// What it does.
    pub statements: Vec<Statement>,
    /// It stops at the first error.
    pub ordered: bool,
    /// The `lsid`.
    pub lsid: Option<RawDocumentBuf>,
    /// The `txnNumber`.
    pub txn_number: Option<i64>,
    /// `maxTimeMS`.
    pub max_time_ms: Option<i64>,
    /// The `writeConcern`.
    pub concern: Option<RawDocumentBuf>,
}

/// Why a command is left to the server to refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotUnderstood;

impl WriteCommand {
    /// Understands the command `body`, with the statements of `sequence` if they travel beside it. Inserts
    /// without an `_id` are given one by `new_id`.
    ///
    /// # Errors
    /// [`NotUnderstood`] when a server would refuse it too.
    pub fn parse(
        namespace: Namespace,
        verb: Verb,
        body: &RawDocument,
        sequence: Option<&[u8]>,
        mut new_id: impl FnMut() -> bson::oid::ObjectId,
    ) -> Result<Self, NotUnderstood> {
        let mut command = Self {
            verb,
            namespace,
            body: RawDocumentBuf::new(),
            statements: Vec::new(),
            ordered: true,
            lsid: None,
            txn_number: None,
            max_time_ms: None,
            concern: None,
        };
        let simple = !has_collation(body);
        for element in body {
            let (name, value) = element.map_err(|_| NotUnderstood)?;
            let array = verb.array().is_some_and(|array| array == name.as_str());
            match (name.as_str(), value) {
                ("$db" | "$clusterTime", _) => continue,
                (_, RawBsonRef::Array(items)) if array => {
                    command.add_array(items, simple, &mut new_id)?;
                    continue;
                }
                ("readConcern", RawBsonRef::Document(concern)) => {
                    let concern = timeless(concern);
                    if !concern.is_empty() {
                        command.body.append(name, concern);
                    }
                    continue;
                }
                ("ordered", RawBsonRef::Boolean(ordered)) => command.ordered = ordered,
                ("lsid", RawBsonRef::Document(lsid)) => command.lsid = Some(lsid.to_owned()),
                ("txnNumber", RawBsonRef::Int64(number)) => command.txn_number = Some(number),
                ("maxTimeMS", value) => {
                    command.max_time_ms = value.as_i64().or(value.as_i32().map(i64::from))
                }
                ("writeConcern", RawBsonRef::Document(concern)) => {
                    let concern = acknowledged(concern);
                    command.body.append(cstr!("writeConcern"), concern.clone());
                    command.concern = Some(concern);
                    continue;
                }
                _ => {}
            }
            command.body.append(name, value);
        }
        let mut rest = sequence.unwrap_or_default();
        while !rest.is_empty() {
            let (document, after) = split_document(rest).ok_or(NotUnderstood)?;
            command.add(document, simple, &mut new_id)?;
            rest = after;
        }
        if verb == Verb::FindAndModify {
            let statement = find_and_modify(body, simple);
            command.statements.push(statement);
        }
        if command.statements.is_empty() { Err(NotUnderstood) } else { Ok(command) }
    }

    fn add_array(
        &mut self,
        items: &RawArray,
        simple: bool,
        new_id: &mut impl FnMut() -> bson::oid::ObjectId,
    ) -> Result<(), NotUnderstood> {
        for item in items {
            let Ok(RawBsonRef::Document(document)) = item else { return Err(NotUnderstood) };
            self.add(document, simple, new_id)?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        raw: &RawDocument,
        simple: bool,
        new_id: &mut impl FnMut() -> bson::oid::ObjectId,
    ) -> Result<(), NotUnderstood> {
        let statement = match self.verb {
            Verb::Insert => insert(raw, new_id),
            Verb::Update => update(raw, simple),
            Verb::Delete => delete(raw, simple),
            Verb::FindAndModify => return Err(NotUnderstood),
        };
        self.statements.push(statement);
        Ok(())
    }

    /// The keys of all statements; `None` when one does not say.
    #[must_use]
    pub fn keys(&self) -> Option<Vec<Key>> {
        self.statements.iter().map(|statement| statement.key.clone()).collect()
    }

    /// The session's UUID.
    #[must_use]
    pub fn session(&self) -> Option<[u8; 16]> {
        match self.lsid.as_ref()?.get("id") {
            Ok(Some(RawBsonRef::Binary(id))) => id.bytes.try_into().ok(),
            _ => None,
        }
    }

    /// Whether every statement says whose document it is about.
    #[must_use]
    pub fn is_keyed(&self) -> bool {
        self.statements.iter().all(|statement| statement.key.is_some())
    }

    /// The statements laid back to back, as a document sequence.
    #[must_use]
    pub fn sequence(&self) -> Option<(&'static str, Vec<u8>)> {
        let array = self.verb.array()?;
        let length = self.statements.iter().map(|statement| statement.raw.as_bytes().len()).sum();
        let mut bytes = Vec::with_capacity(length);
        for statement in &self.statements {
            bytes.extend_from_slice(statement.raw.as_bytes());
        }
        Some((array, bytes))
    }
}

fn split_document(bytes: &[u8]) -> Option<(&RawDocument, &[u8])> {
    let length = usize::try_from(i32::from_le_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let document = RawDocument::from_bytes(bytes.get(..length)?).ok()?;
    Some((document, &bytes[length..]))
}

fn has_collation(body: &RawDocument) -> bool {
    matches!(body.get("collation"), Ok(Some(_)))
}

/// Drivers send `afterClusterTime` with the writes of causal sessions, too. It may be the other cluster's, and
/// adds nothing: a write is made on what its primary has now.
fn timeless(concern: &RawDocument) -> RawDocumentBuf {
    let mut copy = RawDocumentBuf::new();
    for (name, value) in concern.iter().flatten().filter(|(name, _)| name.as_str() != "afterClusterTime") {
        copy.append(name, value);
    }
    copy
}

/// The proxy must hear what became of a write, whether or not the client wants to.
fn acknowledged(concern: &RawDocument) -> RawDocumentBuf {
    let zero = |value: RawBsonRef<'_>| {
        matches!(value, RawBsonRef::Int32(0) | RawBsonRef::Int64(0))
            || matches!(value, RawBsonRef::Double(w) if w == 0.0)
    };
    let mut copy = RawDocumentBuf::new();
    for element in concern {
        let Ok((name, value)) = element else { return concern.to_owned() };
        if name.as_str() == "w" && zero(value) {
            copy.append(name, 1);
        } else {
            copy.append(name, value);
        }
    }
    copy
}

fn insert(raw: &RawDocument, new_id: &mut impl FnMut() -> bson::oid::ObjectId) -> Statement {
    let statement =
        |raw: RawDocumentBuf, key| Statement { raw, key, multi: false, upsert: false, direct: true };
    if let Ok(Some(id)) = raw.get("_id") {
        return statement(raw.to_owned(), key_of(id));
    }
    let mut with_id = RawDocumentBuf::new();
    with_id.append(cstr!("_id"), new_id());
    for (name, value) in raw.iter().flatten() {
        with_id.append(name, value);
    }
    let key = with_id.get("_id").ok().flatten().and_then(key_of);
    statement(with_id, key)
}

fn update(raw: &RawDocument, simple: bool) -> Statement {
    let simple = simple && !has_collation(raw);
    let filter = raw.get_document("q").ok();
    let replacement = matches!(raw.get("u"), Ok(Some(RawBsonRef::Document(u))) if is_replacement(u));
    Statement {
        raw: raw.to_owned(),
        key: filter.and_then(|filter| key_in(filter, simple)),
        multi: raw.get_bool("multi").unwrap_or(false),
        upsert: raw.get_bool("upsert").unwrap_or(false),
        direct: replacement && filter.is_some_and(only_id),
    }
}

fn delete(raw: &RawDocument, simple: bool) -> Statement {
    let simple = simple && !has_collation(raw);
    let filter = raw.get_document("q").ok();
    let one = number(raw, "limit").is_some_and(|limit| limit == 1.0);
    Statement {
        raw: raw.to_owned(),
        key: filter.and_then(|filter| key_in(filter, simple)),
        multi: !one,
        upsert: false,
        direct: filter.is_some_and(only_id),
    }
}

fn find_and_modify(body: &RawDocument, simple: bool) -> Statement {
    let filter = body.get_document("query").ok();
    Statement {
        raw: RawDocumentBuf::new(),
        key: filter.and_then(|filter| key_in(filter, simple)),
        multi: false,
        upsert: body.get_bool("upsert").unwrap_or(false),
        direct: false,
    }
}

fn is_replacement(update: &RawDocument) -> bool {
    update.iter().next().is_none_or(|first| matches!(first, Ok((name, _)) if !name.as_str().starts_with('$')))
}

fn only_id(filter: &RawDocument) -> bool {
    let mut fields = filter.iter();
    matches!(fields.next(), Some(Ok((name, _))) if name.as_str() == "_id") && fields.next().is_none()
}

/// The key that a filter pins down by `_id: value` or `_id: {$eq: value}`. Under a collation a string in a
/// filter is not a key.
#[must_use]
pub fn key_in(filter: &RawDocument, simple: bool) -> Option<Key> {
    let value = filter.get("_id").ok().flatten()?;
    let value = match value {
        RawBsonRef::Document(document) => match document.iter().next() {
            Some(Ok((name, inner))) if name.as_str() == "$eq" && document.iter().count() == 1 => inner,
            Some(Ok((name, _))) if name.as_str().starts_with('$') => return None,
            _ => value,
        },
        value => value,
    };
    let text = matches!(value, RawBsonRef::String(_) | RawBsonRef::Document(_) | RawBsonRef::Symbol(_));
    if text && !simple { None } else { key_of(value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{oid::ObjectId, rawdoc};

    fn parse(body: &RawDocument) -> WriteCommand {
        let verb = Verb::of(body.iter().next().unwrap().unwrap().0.as_str()).unwrap();
        WriteCommand::parse(Namespace::new("d", "c"), verb, body, None, ObjectId::new).unwrap()
    }

    #[test]
    fn an_insert_without_id_is_given_one_in_front() {
        let command = parse(&rawdoc! { "insert": "c", "documents": [{ "a": 1 }, { "_id": 5, "a": 2 }] });
        let first = command.statements[0].raw.iter().next().unwrap().unwrap();
        assert_eq!(first.0.as_str(), "_id");
        assert!(command.is_keyed());
        assert!(command.body.get("documents").unwrap().is_none());
    }

    #[test]
    fn keys_come_from_equality_on_the_id_alone() {
        let of = |filter: RawDocumentBuf| {
            parse(&rawdoc! { "update": "c", "updates": [{ "q": filter, "u": { "$inc": { "n": 1 } } }] })
                .statements[0]
                .key
                .is_some()
        };
        assert!(of(rawdoc! { "_id": 1, "a": 2 }));
        assert!(of(rawdoc! { "_id": { "$eq": "x" } }));
        assert!(of(rawdoc! { "_id": { "a": 1 } }));
        assert!(!of(rawdoc! { "_id": { "$gt": 1 } }));
        assert!(!of(rawdoc! { "a": 1 }));
    }

    #[test]
    fn what_is_direct_does_not_depend_on_the_document() {
        let direct = |update: RawDocumentBuf| {
            parse(&rawdoc! { "update": "c", "updates": [{ "q": { "_id": 1 }, "u": update }] }).statements[0]
                .direct
        };
        assert!(direct(rawdoc! { "a": 1 }));
        assert!(!direct(rawdoc! { "$set": { "a": 1 } }));
        let more = parse(&rawdoc! { "delete": "c", "deletes": [{ "q": { "_id": 1, "a": 2 }, "limit": 1 }] });
        assert!(!more.statements[0].direct);
    }

    #[test]
    fn unacknowledged_writes_are_acknowledged_to_the_proxy() {
        let command = parse(&rawdoc! { "insert": "c", "documents": [{}], "writeConcern": { "w": 0 } });
        assert_eq!(command.concern, Some(rawdoc! { "w": 1 }));
    }

    #[test]
    fn a_time_to_wait_for_is_not_passed_on() {
        let time = bson::Timestamp { time: 9, increment: 1 };
        let write = |concern: RawDocumentBuf| {
            let body = parse(&rawdoc! { "insert": "c", "documents": [{}], "readConcern": concern }).body;
            body.get_document("readConcern").ok().map(ToOwned::to_owned)
        };
        assert_eq!(write(rawdoc! { "afterClusterTime": time }), None);
        let local = rawdoc! { "level": "local" };
        assert_eq!(write(rawdoc! { "level": "local", "afterClusterTime": time }), Some(local));
    }

    #[test]
    fn a_string_under_a_collation_is_no_key() {
        let command = parse(&rawdoc! {
            "delete": "c", "deletes": [{ "q": { "_id": "a" }, "limit": 1, "collation": { "locale": "de" } }],
        });
        assert!(!command.is_keyed());
    }
}
