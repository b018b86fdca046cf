//! What a write command is about.

use bson::RawDocument;
use bson::raw::{RawArray, RawBsonRef, RawDocumentBuf, cstr};

use super::shard_key::{Place, ShardKey};
use super::statement::{Statement, has_collation};
use crate::model::key::Key;
use crate::model::namespace::Namespace;

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
    /// The numbers of the statements (`stmtIds`), where the client gives them: other commands may have others under
    /// the same `txnNumber`.
    pub numbers: Option<Vec<i32>>,
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
            numbers: None,
            max_time_ms: None,
            concern: None,
        };
        let simple = !has_collation(body);
        let mut has_statements = sequence.is_some();
        let mut first = None;
        for element in body {
            let (name, value) = element.map_err(|_| NotUnderstood)?;
            let array = verb.array().is_some_and(|array| array == name.as_str());
            match (name.as_str(), value) {
                ("$db" | "$clusterTime", _) => continue,
                (_, RawBsonRef::Array(items)) if array => {
                    if std::mem::replace(&mut has_statements, true) {
                        return Err(NotUnderstood);
                    }
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
                ("stmtIds", RawBsonRef::Array(ids)) if verb.array().is_some() => {
                    let ids = ids.into_iter().map(|id| id.ok()?.as_i32()).collect::<Option<Vec<_>>>();
                    command.numbers = Some(ids.ok_or(NotUnderstood)?);
                    continue;
                }
                ("stmtId", RawBsonRef::Int32(from)) if verb.array().is_some() => {
                    first = Some(from);
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
            let statement = Statement::find_and_modify(body, simple);
            command.statements.push(statement);
        }
        if let Some(first) = first {
            // Servers take one of both.
            let numbers = (first..).take(command.statements.len()).collect();
            command.numbers.replace(numbers).is_none().then_some(()).ok_or(NotUnderstood)?;
        }
        let all_numbered = command.numbers.as_ref().is_none_or(|all| all.len() == command.statements.len());
        if command.statements.is_empty() || !all_numbered { Err(NotUnderstood) } else { Ok(command) }
    }

    /// The number under which servers know the statement at `index`.
    #[must_use]
    pub fn number(&self, index: usize) -> i32 {
        let given = self.numbers.as_ref().and_then(|numbers| numbers.get(index).copied());
        given.unwrap_or_else(|| i32::try_from(index).unwrap_or(i32::MAX))
    }

    fn add_array(
        &mut self,
        items: &RawArray,
        simple: bool,
        new_id: &mut impl FnMut() -> bson::oid::ObjectId,
    ) -> Result<(), NotUnderstood> {
        for item in items {
            match item {
                Ok(RawBsonRef::Document(document)) => self.add(document, simple, new_id)?,
                // Servers pass over these, and do the rest.
                Ok(RawBsonRef::Null | RawBsonRef::Undefined) => {}
                _ => return Err(NotUnderstood),
            }
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
            Verb::Insert => Statement::insert(raw, new_id),
            Verb::Update => Statement::update(raw, simple),
            Verb::Delete => Statement::delete(raw, simple),
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

    /// Where the document of a statement lies, before it, on a cluster that is sharded by `shard_key`; `None`:
    /// the statement does not say.
    #[must_use]
    pub fn place(&self, statement: &Statement, shard_key: &ShardKey) -> Option<Place> {
        let (filter, collation) = match self.verb {
            Verb::Insert => return Some(shard_key.place_of(&statement.raw)),
            Verb::FindAndModify => (self.body.get_document("query"), false),
            Verb::Update | Verb::Delete => (statement.raw.get_document("q"), has_collation(&statement.raw)),
        };
        // Under another collation than simple, what is equal to a value may lie elsewhere.
        if collation || has_collation(&self.body) { None } else { shard_key.place_in(filter.ok()?) }
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
    fn where_a_document_lies_is_said_by_inserts_and_by_filters_without_a_collation() {
        let key = ShardKey::parse(&bson::doc! { "a": 1 }).unwrap();
        let place = |body: RawDocumentBuf| {
            let command = parse(&body);
            command.place(&command.statements[0], &key)
        };
        let at = |value: i32| Some(key.place_of(&rawdoc! { "a": value }));
        assert_eq!(place(rawdoc! { "insert": "c", "documents": [{ "_id": 1, "a": 3 }] }), at(3));
        let update = rawdoc! { "q": { "_id": 1, "a": 3 }, "u": { "$set": { "a": 4 } } };
        assert_eq!(place(rawdoc! { "update": "c", "updates": [update.clone()] }), at(3));
        assert_eq!(place(rawdoc! { "findAndModify": "c", "query": { "a": 3 }, "remove": true }), at(3));
        assert_eq!(place(rawdoc! { "delete": "c", "deletes": [{ "q": { "_id": 1 }, "limit": 1 }] }), None);
        let mut collated = update;
        collated.append(cstr!("collation"), rawdoc! { "locale": "de" });
        assert_eq!(place(rawdoc! { "update": "c", "updates": [collated] }), None);
    }

    #[test]
    fn unacknowledged_writes_are_acknowledged_to_the_proxy() {
        let command = parse(&rawdoc! { "insert": "c", "documents": [{}], "writeConcern": { "w": 0 } });
        assert_eq!(command.concern, Some(rawdoc! { "w": 1 }));
    }

    #[test]
    fn statements_keep_the_numbers_that_a_client_gives_them() {
        let command = parse(&rawdoc! { "insert": "c", "documents": [{}, {}], "stmtIds": [4, 9] });
        assert_eq!((command.number(0), command.number(1)), (4, 9));
        assert!(command.body.get("stmtIds").unwrap().is_none());
        assert_eq!(parse(&rawdoc! { "insert": "c", "documents": [{}, {}] }).number(1), 1);
        assert_eq!(parse(&rawdoc! { "insert": "c", "documents": [{}, {}], "stmtId": 7 }).number(1), 8);
        let wrong = rawdoc! { "insert": "c", "documents": [{}], "stmtIds": [1, 2] };
        assert!(
            WriteCommand::parse(Namespace::new("d", "c"), Verb::Insert, &wrong, None, ObjectId::new).is_err()
        );
    }

    #[test]
    fn nothing_among_statements_is_passed_over() {
        let mut documents = bson::raw::RawArrayBuf::new();
        documents.push(rawdoc! { "_id": 1 });
        documents.push(RawBsonRef::Null);
        documents.push(RawBsonRef::Undefined);
        documents.push(rawdoc! { "_id": 2 });
        assert_eq!(parse(&rawdoc! { "insert": "c", "documents": documents }).statements.len(), 2);
        let number = rawdoc! { "insert": "c", "documents": [{ "_id": 1 }, 5] };
        let namespace = Namespace::new("d", "c");
        assert!(WriteCommand::parse(namespace, Verb::Insert, &number, None, ObjectId::new).is_err());
    }

    #[test]
    fn statements_stand_in_one_place() {
        let body = rawdoc! { "insert": "c", "documents": [{ "_id": 1 }] };
        let one = rawdoc! { "_id": 2 };
        let twice = WriteCommand::parse(
            Namespace::new("d", "c"),
            Verb::Insert,
            &body,
            Some(one.as_bytes()),
            ObjectId::new,
        );
        assert!(twice.is_err());
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
}
