//! `findAndModify`.

use bson::raw::{RawDocumentBuf, cstr};
use bson::{RawBson, RawDocument, rawdoc};

use super::command::Command;
use super::error::{Failure, Outcome};
use super::sessions::Statement;
use super::state::{Place, State};
use super::store::Doc;
use super::update::Change;
use super::write::{Updating, Writer};

/// Runs a findAndModify.
pub(crate) fn run(state: &mut State, place: Place, command: &Command<'_>) -> Outcome<RawDocumentBuf> {
    let names_retries = state.names_retries;
    let mut writer = Writer::new(state, place, command)?;
    let id = command.statement_id(0);
    let remove = command.flag("remove", false);
    if let Some(executed) = writer.history(id) {
        let mut reply = repeated(&executed, remove);
        if names_retries {
            reply.append(cstr!("retriedStmtId"), id);
        }
        return Ok(reply);
    }
    let filter = command.document("query").unwrap_or_else(|| empty());
    if remove {
        let written = writer.delete(filter, true, id, true)?;
        return Ok(answer(rawdoc! { "n": written.n }, written.before.as_ref()));
    }
    let change = command.body.get("update")?.ok_or_else(|| Failure::new(9, "update or remove is needed"))?;
    let updating = Updating {
        filter,
        change: Change::parse(change)?,
        multi: false,
        upsert: command.flag("upsert", false),
    };
    let new = command.flag("new", false);
    let value_of: fn(&Doc, &Doc) -> Option<Doc> =
        if new { |_, after| Some(after.clone()) } else { |before, _| Some(before.clone()) };
    let written = writer.update(&updating, id, value_of)?;
    let last = last_error(written.n, written.upserted.as_ref());
    Ok(answer(last, if new { written.after.as_ref() } else { written.before.as_ref() }))
}

fn last_error(n: i32, upserted: Option<&RawBson>) -> RawDocumentBuf {
    let mut last = rawdoc! { "n": n, "updatedExisting": n > 0 && upserted.is_none() };
    if let Some(id) = upserted {
        last.append(cstr!("upserted"), id.as_raw_bson_ref());
    }
    last
}

fn answer(last: RawDocumentBuf, value: Option<&Doc>) -> RawDocumentBuf {
    let mut reply = rawdoc! { "lastErrorObject": last };
    match value {
        Some(document) => reply.append(cstr!("value"), &**document),
        None => reply.append(cstr!("value"), bson::RawBsonRef::Null),
    }
    reply
}

fn repeated(executed: &Statement, remove: bool) -> RawDocumentBuf {
    let result = &executed.result;
    let last = if remove {
        rawdoc! { "n": result.n }
    } else {
        last_error(result.n, result.upserted.as_ref())
    };
    answer(last, result.value.as_ref())
}

fn empty() -> &'static RawDocument {
    RawDocument::from_bytes(b"\x05\0\0\0\0").unwrap()
}
