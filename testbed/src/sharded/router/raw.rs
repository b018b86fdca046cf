//! Raw documents: what is not looked at passes through byte for byte.

use bson::raw::{CStr, CString, RawBsonRef};
use bson::{Document, RawDocument, RawDocumentBuf};
use reshard::wire::header::read_i32;
use reshard::wire::op_msg::{OpMsg, SequenceRange};

use super::failure::Failure;

/// Fields of a command that are for the router alone.
const FOR_ROUTERS: [&str; 6] =
    ["$db", "$clusterTime", "$readPreference", "apiVersion", "apiStrict", "apiDeprecationErrors"];

/// Fields of a reply that are for routers alone.
const FROM_SHARDS: [&str; 10] = [
    "$clusterTime",
    "$configTime",
    "$topologyTime",
    "lastCommittedOpTime",
    "electionId",
    "opTime",
    "$gleStats",
    "$configServerState",
    "shardVersion",
    "databaseVersion",
];

/// The command of a message, with documents that stood beside it put into it, without what is for the router.
pub(super) fn command(message: &[u8], parts: &OpMsg) -> Result<RawDocumentBuf, Failure> {
    let body = message.get(parts.body.clone()).unwrap_or_default();
    let mut command = without(RawDocument::from_bytes(body)?, &FOR_ROUTERS)?;
    for sequence in &parts.sequences {
        let name = String::from_utf8_lossy(&message[sequence.identifier.clone()]);
        let mut documents = bson::RawArrayBuf::new();
        documents_of(message, sequence)?.into_iter().for_each(|document| documents.push(document));
        command.append(name_of(&name)?, documents);
    }
    Ok(command)
}

/// The documents of a list that stands in the command or beside it.
pub(super) fn list<'a>(
    message: &'a [u8],
    parts: &OpMsg,
    body: &'a RawDocument,
    name: &str,
) -> Result<Vec<&'a RawDocument>, Failure> {
    let mut documents = Vec::new();
    for sequence in &parts.sequences {
        if message[sequence.identifier.clone()] == *name.as_bytes() {
            documents.extend(documents_of(message, sequence)?);
        }
    }
    if let Some(RawBsonRef::Array(list)) = body.get(name)? {
        for document in list {
            let document = document?.as_document();
            documents.push(
                document.ok_or_else(|| Failure::new(14, "TypeMismatch", format!("{name}: no document")))?,
            );
        }
    }
    Ok(documents)
}

fn documents_of<'a>(message: &'a [u8], sequence: &SequenceRange) -> Result<Vec<&'a RawDocument>, Failure> {
    let mut rest = &message[sequence.documents.clone()];
    let mut documents = Vec::new();
    while let Some(length) = read_i32(rest, 0) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let document = rest.get(..length).ok_or_else(|| Failure::bad_value("document sequence"))?;
        documents.push(RawDocument::from_bytes(document)?);
        rest = &rest[length..];
    }
    Ok(documents)
}

/// A copy without some fields.
pub(super) fn without(document: &RawDocument, names: &[&str]) -> Result<RawDocumentBuf, Failure> {
    let mut kept = RawDocumentBuf::new();
    for element in document.iter_elements() {
        let element = element?;
        if !names.contains(&element.key().as_str()) {
            kept.append(element.key(), element.value()?);
        }
    }
    Ok(kept)
}

/// A copy with further fields at its end.
pub(super) fn with(document: &RawDocument, fields: &Document) -> Result<RawDocumentBuf, Failure> {
    let mut whole = document.to_owned();
    for (name, value) in fields {
        whole.append(name_of(name)?, bson::RawBson::try_from(value.clone())?);
    }
    Ok(whole)
}

/// A copy with another name of the command.
pub(super) fn renamed(document: &RawDocument, name: &CStr) -> Result<RawDocumentBuf, Failure> {
    let mut copy = RawDocumentBuf::new();
    for (index, element) in document.iter_elements().enumerate() {
        let element = element?;
        copy.append(if index == 0 { name } else { element.key() }, element.value()?);
    }
    Ok(copy)
}

/// A reply of a shard as a client gets it.
pub(super) fn reply(document: &RawDocument) -> Result<RawDocumentBuf, Failure> {
    without(document, &FROM_SHARDS)
}

/// Whether a field of a reply is for routers alone, except for the cluster's time.
pub(super) fn is_from_shards(key: &[u8]) -> bool {
    key != b"$clusterTime" && FROM_SHARDS.iter().any(|name| name.as_bytes() == key)
}

/// As [`reply`], of a decoded one.
pub(super) fn cleaned(document: Document) -> Document {
    document.into_iter().filter(|(key, _)| !FROM_SHARDS.contains(&key.as_str())).collect()
}

/// A document in a command.
pub(super) fn document(command: &RawDocument, field: &str) -> Result<Document, Failure> {
    match command.get(field)? {
        Some(RawBsonRef::Document(document)) => Ok(Document::try_from(document)?),
        _ => Ok(Document::new()),
    }
}

pub(super) fn name_of(name: &str) -> Result<CString, Failure> {
    CString::try_from(name).map_err(Failure::from)
}

/// A whole number of any type.
pub(super) fn whole(document: &RawDocument, field: &str) -> Option<i64> {
    match document.get(field).ok()?? {
        RawBsonRef::Int32(number) => Some(i64::from(number)),
        RawBsonRef::Int64(number) => Some(number),
        #[expect(clippy::cast_possible_truncation, reason = "as the server does")]
        RawBsonRef::Double(number) => Some(number as i64),
        _ => None,
    }
}

/// Truth as servers read it.
pub(super) fn truth(document: &RawDocument, field: &str) -> bool {
    match document.get(field) {
        Ok(Some(RawBsonRef::Boolean(value))) => value,
        _ => whole(document, field).is_some_and(|number| number != 0),
    }
}
