//! `bulkWrite`: writes of several collections in one command, divided into the commands of one collection each.
//!
//! Each part names its statements by their place in the client's command (`stmtIds`), so that servers, and the
//! question about what a former authority has executed, find them again under the one number that all have.

use std::collections::HashMap;

use bson::RawDocument;
use bson::raw::{RawArrayBuf, RawBsonRef, RawDocumentBuf, cstr};

use super::writes::Verb;
use crate::model::namespace::Namespace;
use crate::model::number::number;

/// A `bulkWrite`, understood.
#[derive(Debug, Clone)]
pub struct BulkWrite {
    operations: Vec<Op>,
    targets: Vec<Target>,
    /// It stops at the first error.
    pub ordered: bool,
    /// Only errors are told one by one.
    pub errors_only: bool,
    /// Fields that every part has too.
    common: RawDocumentBuf,
    in_transaction: bool,
    is_numbered: bool,
}

/// One of `ops`.
#[derive(Debug, Clone)]
struct Op {
    verb: Verb,
    target: usize,
    raw: RawDocumentBuf,
}

/// One of `nsInfo`.
#[derive(Debug, Clone)]
struct Target {
    namespace: Namespace,
    /// What else it says, such as the collection's UUID.
    more: RawDocumentBuf,
}

/// Some operations, as a command of one collection.
#[derive(Debug, Clone, PartialEq)]
pub struct BulkPart {
    /// Their places in the client's command, ascending.
    pub indexes: Vec<usize>,
    /// What they do.
    pub verb: Verb,
    /// The command, but for its statements.
    pub body: RawDocumentBuf,
    /// The statements, laid back to back.
    pub documents: Vec<u8>,
}

/// Fields of a `bulkWrite` that mean nothing to its parts.
const OWN: [&str; 8] = ["bulkWrite", "ops", "nsInfo", "errorsOnly", "cursor", "stmtId", "stmtIds", "$db"];
/// Fields that only the first statement of a transaction has.
const FIRST_ONLY: [&str; 2] = ["startTransaction", "readConcern"];

impl BulkWrite {
    /// The names in `nsInfo`, in the body or beside it; what is no name is left out.
    pub fn namespaces<'a>(body: &'a RawDocument, beside: Option<&'a [u8]>) -> impl Iterator<Item = &'a str> {
        let inline = body.get_array("nsInfo").ok().into_iter().flatten().flatten();
        let inline = inline.filter_map(RawBsonRef::as_document);
        inline.chain(documents(beside).flatten()).filter_map(|one| one.get_str("ns").ok())
    }

    /// Understands the command `body`, with `ops` and `nsInfo` where they travel beside it.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(body: &RawDocument, ops: Option<&[u8]>, spaces: Option<&[u8]>) -> Result<Self, String> {
        let mut bulk = Self {
            operations: Vec::new(),
            targets: Vec::new(),
            ordered: true,
            errors_only: false,
            common: RawDocumentBuf::new(),
            in_transaction: false,
            is_numbered: false,
        };
        for element in body {
            let (name, value) = element.map_err(|_| "bulkWrite is no valid BSON")?;
            match (name.as_str(), value) {
                ("ordered", RawBsonRef::Boolean(ordered)) => bulk.ordered = ordered,
                ("errorsOnly", RawBsonRef::Boolean(only)) => bulk.errors_only = only,
                ("autocommit", _) => bulk.in_transaction = true,
                ("txnNumber", _) => bulk.is_numbered = true,
                _ => {}
            }
            if !OWN.contains(&name.as_str()) {
                bulk.common.append(name, value);
            }
        }
        for space in listed(body, "nsInfo", spaces)? {
            bulk.targets.push(Target::parse(space)?);
        }
        for (index, op) in listed(body, "ops", ops)?.into_iter().enumerate() {
            let op = Op::parse(op).filter(|op| op.target < bulk.targets.len());
            bulk.operations.push(op.ok_or_else(|| {
                format!("bulkWrite ops entry {index} is no insert, update or delete of an entry of nsInfo")
            })?);
        }
        if bulk.operations.is_empty() {
            return Err("bulkWrite has no ops".into());
        }
        bulk.is_numbered &= !bulk.in_transaction;
        Ok(bulk)
    }

    /// The parts, in the order in which they run. An ordered command is cut into runs of one collection and one kind;
    /// of an unordered one, what belongs together goes together.
    ///
    /// A server tells of several updates or deletes no more than their sum: unless only errors are wanted, each is
    /// sent by itself.
    pub fn parts(&self) -> impl Iterator<Item = BulkPart> {
        let mut parts: Vec<Vec<usize>> = Vec::new();
        // The newest part of each kind and collection. Parts may be as many as operations.
        let mut newest: HashMap<(Verb, usize), usize> = HashMap::new();
        for (index, op) in self.operations.iter().enumerate() {
            let kind = (op.verb, op.target);
            let joins = newest.get(&kind).filter(|at| !self.ordered || **at + 1 == parts.len());
            if let Some(part) = joins.and_then(|at| parts.get_mut(*at)) {
                part.push(index);
                continue;
            }
            if self.errors_only || op.verb == Verb::Insert {
                newest.insert(kind, parts.len());
            }
            parts.push(vec![index]);
        }
        parts.into_iter().enumerate().map(|(number, indexes)| self.part(indexes, number == 0))
    }

    fn part(&self, indexes: Vec<usize>, is_first: bool) -> BulkPart {
        let Op { verb, target, .. } = self.operations[indexes[0]];
        let target = &self.targets[target];
        let mut body = RawDocumentBuf::new();
        let name = match verb {
            Verb::Insert => cstr!("insert"),
            Verb::Update => cstr!("update"),
            Verb::Delete | Verb::FindAndModify => cstr!("delete"),
        };
        body.append(name, target.namespace.collection());
        for (name, value) in self.common.iter().flatten() {
            let applies = match name.as_str() {
                "let" => verb != Verb::Insert,
                "bypassDocumentValidation" | "bypassEmptyTsReplacement" => verb != Verb::Delete,
                name if FIRST_ONLY.contains(&name) => is_first || !self.in_transaction,
                _ => true,
            };
            if applies {
                body.append(name, value);
            }
        }
        for (name, value) in target.more.iter().flatten() {
            body.append(name, value);
        }
        if self.is_numbered {
            let ids: RawArrayBuf =
                indexes.iter().map(|index| i32::try_from(*index).unwrap_or(i32::MAX)).collect();
            body.append(cstr!("stmtIds"), ids);
        }
        body.append(cstr!("$db"), target.namespace.database());
        let mut documents = Vec::new();
        for index in &indexes {
            self.operations[*index].write_statement(&mut documents);
        }
        BulkPart { indexes, verb, body, documents }
    }
}

impl Target {
    fn parse(raw: &RawDocument) -> Result<Self, String> {
        let name = raw.get_str("ns").map_err(|_| "an entry of nsInfo has no ns")?;
        let namespace = Namespace::parse(name);
        let namespace = namespace.ok_or_else(|| format!("ns {name:?} of nsInfo is no collection's name"))?;
        let mut more = RawDocumentBuf::new();
        for (name, value) in raw.iter().flatten().filter(|(name, _)| name.as_str() != "ns") {
            more.append(name, value);
        }
        Ok(Self { namespace, more })
    }
}

impl Op {
    fn parse(raw: &RawDocument) -> Option<Self> {
        let first = raw.iter().next()?.ok()?.0.as_str();
        let verb = match first {
            "insert" => Verb::Insert,
            "update" => Verb::Update,
            "delete" => Verb::Delete,
            _ => return None,
        };
        raw.iter().all(|element| element.is_ok()).then_some(())?;
        if verb == Verb::Insert {
            raw.get_document("document").ok()?;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a whole number, not negative"
        )]
        let target = number(raw, first).filter(|at| *at >= 0.0 && at.fract() == 0.0)? as usize;
        Some(Self { verb, target, raw: raw.to_owned() })
    }

    /// As the command of one collection has it.
    fn write_statement(&self, out: &mut Vec<u8>) {
        if self.verb == Verb::Insert {
            out.extend_from_slice(self.raw.get_document("document").map_or(&[], RawDocument::as_bytes));
            return;
        }
        let mut statement = RawDocumentBuf::new();
        let mut is_multi = false;
        for (name, value) in self.raw.iter().flatten().skip(1) {
            match name.as_str() {
                "filter" => statement.append(cstr!("q"), value),
                "updateMods" => statement.append(cstr!("u"), value),
                "constants" => statement.append(cstr!("c"), value),
                "multi" if self.verb == Verb::Delete => is_multi = value.as_bool() == Some(true),
                _ => statement.append(name, value),
            }
        }
        if self.verb == Verb::Delete {
            statement.append(cstr!("limit"), i32::from(!is_multi));
        }
        out.extend_from_slice(statement.as_bytes());
    }
}

/// The documents of a field, in the body or beside it.
fn listed<'a>(
    body: &'a RawDocument,
    field: &str,
    beside: Option<&'a [u8]>,
) -> Result<Vec<&'a RawDocument>, String> {
    let wrong = || format!("bulkWrite needs {field} once, a list of documents");
    let listed: Option<Vec<_>> = match (body.get(field).ok().flatten(), beside) {
        (None, Some(_)) => documents(beside).collect(),
        (Some(RawBsonRef::Array(items)), None) => {
            // Servers pass over nothing.
            let nothing = |item: &RawBsonRef<'_>| matches!(item, RawBsonRef::Null | RawBsonRef::Undefined);
            let items = items.into_iter().filter(|item| !item.as_ref().is_ok_and(nothing));
            items.map(|item| item.ok()?.as_document()).collect()
        }
        _ => None,
    };
    listed.ok_or_else(wrong)
}

/// Documents laid back to back; `None` in the place of what is none, and nothing behind it.
fn documents(bytes: Option<&[u8]>) -> impl Iterator<Item = Option<&RawDocument>> {
    let mut rest = bytes.unwrap_or_default();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let length = rest.first_chunk().and_then(|four| usize::try_from(i32::from_le_bytes(*four)).ok());
        let cut = length.filter(|length| *length >= 5).and_then(|length| rest.split_at_checked(length));
        let (one, after) = cut.unwrap_or((&[], &[]));
        rest = after;
        Some(RawDocument::from_bytes(one).ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    const SPACES: [&str; 2] = ["a.x", "b.y"];

    fn bulk(more: RawDocumentBuf, ops: &[RawDocumentBuf]) -> RawDocumentBuf {
        let mut body = rawdoc! { "bulkWrite": 1 };
        let spaces: RawArrayBuf = SPACES.into_iter().map(|ns| rawdoc! { "ns": ns }).collect();
        body.append(cstr!("nsInfo"), spaces);
        body.append(cstr!("ops"), ops.iter().cloned().collect::<RawArrayBuf>());
        for (name, value) in more.iter().flatten() {
            body.append(name, value);
        }
        body.append(cstr!("$db"), "admin");
        body
    }

    fn insert(space: i32, id: i32) -> RawDocumentBuf {
        rawdoc! { "insert": space, "document": { "_id": id } }
    }

    fn update(space: i32, id: i32) -> RawDocumentBuf {
        rawdoc! { "update": space, "filter": { "_id": id }, "updateMods": { "$inc": { "n": 1 } }, "multi": false }
    }

    fn delete(space: i32, id: i32) -> RawDocumentBuf {
        rawdoc! { "delete": space, "filter": { "_id": id }, "multi": false }
    }

    fn parts(body: &RawDocument) -> Vec<BulkPart> {
        BulkWrite::parse(body, None, None).unwrap().parts().collect()
    }

    fn places(parts: &[BulkPart]) -> Vec<Vec<usize>> {
        parts.iter().map(|part| part.indexes.clone()).collect()
    }

    fn six() -> Vec<RawDocumentBuf> {
        vec![insert(0, 1), insert(0, 2), insert(1, 3), update(0, 1), update(0, 2), insert(0, 4)]
    }

    #[test]
    fn an_ordered_one_is_cut_into_runs() {
        let ordered = bulk(rawdoc! { "errorsOnly": true }, &six());
        assert_eq!(places(&parts(&ordered)), [vec![0, 1], vec![2], vec![3, 4], vec![5]]);
    }

    #[test]
    fn of_an_unordered_one_what_belongs_together_goes_together() {
        let unordered = bulk(rawdoc! { "errorsOnly": true, "ordered": false }, &six());
        assert_eq!(places(&parts(&unordered)), [vec![0, 1, 5], vec![2], vec![3, 4]]);
    }

    /// As many operations as servers take, each of a collection of its own or told by itself.
    #[test]
    fn as_many_parts_as_operations_are_made_too() {
        const MOST: usize = 100_000;
        let bytes = |of: &dyn Fn(usize) -> RawDocumentBuf| -> Vec<u8> {
            (0..MOST).flat_map(|number| of(number).into_bytes()).collect()
        };
        let place = |number: usize| i32::try_from(number).unwrap();
        let spaces = bytes(&|number| rawdoc! { "ns": format!("d.c{number}") });
        for ordered in [false, true] {
            let body = rawdoc! { "bulkWrite": 1, "ordered": ordered, "$db": "admin" };
            for ops in [bytes(&|number| insert(place(number), 1)), bytes(&|number| update(0, place(number)))]
            {
                let bulk = BulkWrite::parse(&body, Some(&ops), Some(&spaces)).unwrap();
                assert!(bulk.parts().enumerate().all(|(number, part)| part.indexes == [number]));
                assert_eq!(bulk.parts().count(), MOST);
            }
        }
    }

    #[test]
    fn updates_that_are_told_one_by_one_are_sent_one_by_one() {
        let told = bulk(rawdoc! {}, &six());
        assert_eq!(places(&parts(&told)), [vec![0, 1], vec![2], vec![3], vec![4], vec![5]]);
    }

    #[test]
    fn a_part_is_the_command_of_its_collection() {
        let more = rawdoc! {
            "errorsOnly": true, "ordered": true, "let": { "x": 1 }, "bypassDocumentValidation": true, "comment": "c",
            "lsid": { "id": 5 }, "txnNumber": 7_i64, "writeConcern": { "w": 1 }, "cursor": { "batchSize": 3 },
        };
        let update = rawdoc! {
            "update": 1, "filter": { "_id": 2 }, "updateMods": [{ "$set": { "a": "$$x" } }], "multi": true, "upsert": true,
            "arrayFilters": [{ "e": 1 }], "hint": "h", "collation": { "locale": "de" }, "constants": { "k": 1 }, "sort": { "n": 1 },
        };
        let all = parts(&bulk(
            more,
            &[insert(0, 1), update, delete(1, 3), rawdoc! { "delete": 1, "filter": {}, "multi": true }],
        ));
        let shared = |body: &mut RawDocumentBuf| {
            body.append(cstr!("comment"), "c");
            body.append(cstr!("lsid"), rawdoc! { "id": 5 });
            body.append(cstr!("txnNumber"), 7_i64);
            body.append(cstr!("writeConcern"), rawdoc! { "w": 1 });
        };
        let mut first = rawdoc! { "insert": "x", "ordered": true, "bypassDocumentValidation": true };
        shared(&mut first);
        first.append(cstr!("stmtIds"), [0].into_iter().collect::<RawArrayBuf>());
        first.append(cstr!("$db"), "a");
        assert_eq!((&all[0].body, &*all[0].documents), (&first, rawdoc! { "_id": 1 }.as_bytes()));
        let statement = rawdoc! {
            "q": { "_id": 2 }, "u": [{ "$set": { "a": "$$x" } }], "multi": true, "upsert": true,
            "arrayFilters": [{ "e": 1 }], "hint": "h", "collation": { "locale": "de" }, "c": { "k": 1 }, "sort": { "n": 1 },
        };
        assert_eq!(all[1].documents, statement.as_bytes());
        assert_eq!(all[1].body.get_document("let").unwrap(), &*rawdoc! { "x": 1 });
        let deletes = [rawdoc! { "q": { "_id": 3 }, "limit": 1 }, rawdoc! { "q": {}, "limit": 0 }];
        assert_eq!(all[2].documents, deletes.map(RawDocumentBuf::into_bytes).concat());
        assert!(all[2].body.get("bypassDocumentValidation").unwrap().is_none());
        let ids: RawArrayBuf = [2, 3].into_iter().collect();
        assert_eq!(all[2].body.get_array("stmtIds").unwrap(), &*ids);
        assert_eq!(all[2].body.get_str("$db").unwrap(), "b");
    }

    #[test]
    fn only_the_first_part_begins_a_transaction() {
        let more = rawdoc! {
            "txnNumber": 7_i64, "autocommit": false, "startTransaction": true, "readConcern": { "level": "snapshot" },
        };
        let all = parts(&bulk(more, &[insert(0, 1), insert(1, 2)]));
        let begins: Vec<_> =
            all.iter().map(|part| part.body.get("startTransaction").unwrap().is_some()).collect();
        assert_eq!(begins, [true, false]);
        assert!(
            all[1].body.get("readConcern").unwrap().is_none() && all[1].body.get_bool("autocommit").is_ok()
        );
        assert!(all[0].body.get("stmtIds").unwrap().is_none());
    }

    #[test]
    fn ops_and_names_may_stand_beside_the_body() {
        let body = rawdoc! { "bulkWrite": 1, "$db": "admin" };
        let ops = [insert(0, 1), insert(1, 2)].map(RawDocumentBuf::into_bytes).concat();
        let spaces = SPACES.map(|ns| rawdoc! { "ns": ns }.into_bytes()).concat();
        let parsed = BulkWrite::parse(&body, Some(&ops), Some(&spaces)).unwrap();
        assert_eq!(places(&parsed.parts().collect::<Vec<_>>()), [vec![0], vec![1]]);
        assert_eq!(BulkWrite::namespaces(&body, Some(&spaces)).collect::<Vec<_>>(), SPACES);
        assert_eq!(BulkWrite::namespaces(&bulk(rawdoc! {}, &[]), None).collect::<Vec<_>>(), SPACES);
        let twice = bulk(rawdoc! {}, &[insert(0, 1)]);
        assert!(BulkWrite::parse(&twice, Some(&ops), None).is_err());
        assert!(BulkWrite::parse(&body, Some(&ops[..ops.len() - 1]), Some(&spaces)).is_err());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let wrong = |op: RawDocumentBuf| {
            BulkWrite::parse(&bulk(rawdoc! {}, &[insert(0, 1), op]), None, None).unwrap_err()
        };
        for op in [insert(2, 1), insert(-1, 1), rawdoc! { "insert": 0 }, rawdoc! { "find": 0 }, rawdoc! {}] {
            assert!(wrong(op).contains("ops entry 1"));
        }
        assert!(BulkWrite::parse(&bulk(rawdoc! {}, &[]), None, None).is_err());
        assert!(BulkWrite::parse(&rawdoc! { "bulkWrite": 1 }, None, None).unwrap_err().contains("nsInfo"));
    }
}
