//! Messages of the wire protocol, as far as the benchmarks need them.

use anyhow::{Context, Result, bail};
use bson::{RawDocument, RawDocumentBuf};

/// Length of a message's header.
pub(crate) const HEADER: usize = 16;
const OP_MSG: i32 = 2013;
/// The body begins after the header, the flags and the kind of the section.
const BODY: usize = HEADER + 5;

/// An OP_MSG, with documents beside the body under a name. Its number is 0.
pub(crate) fn message(body: &RawDocumentBuf, documents: Option<(&str, &[u8])>) -> Result<Vec<u8>> {
    let more = documents.map_or(0, |(name, documents)| name.len() + documents.len() + 6);
    let mut bytes = Vec::with_capacity(BODY + body.as_bytes().len() + more);
    bytes.resize(HEADER + 4, 0);
    bytes[12..16].copy_from_slice(&OP_MSG.to_le_bytes());
    bytes.push(0);
    bytes.extend_from_slice(body.as_bytes());
    if let Some((name, documents)) = documents {
        bytes.push(1);
        let length = i32::try_from(4 + name.len() + 1 + documents.len())?;
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(documents);
    }
    let length = i32::try_from(bytes.len())?;
    bytes[0..4].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// A number of a message's header.
pub(crate) fn field(bytes: &[u8], at: usize) -> i32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_le_bytes)
}

/// The body of a reply that says that all went well.
pub(crate) fn check(reply: &[u8]) -> Result<&RawDocument> {
    let body = reply.get(BODY..).context("a short reply")?;
    let body = RawDocument::from_bytes(body).context("the reply is not one document")?;
    let refused = |field| matches!(body.get(field), Ok(Some(_)));
    if body.get_f64("ok").ok() != Some(1.0) || refused("writeErrors") || refused("writeConcernError") {
        bail!("{body:?}");
    }
    Ok(body)
}
