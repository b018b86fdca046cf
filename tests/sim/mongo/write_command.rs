//! The write commands: their statements one by one, and the report of them.

use bson::raw::{RawDocumentBuf, cstr};
use bson::{RawArrayBuf, RawBson, RawDocument, rawdoc};
use reshard::cluster::command::number;

use super::command::Command;
use super::error::{Failure, Outcome};
use super::state::{Place, State};
use super::update::Change;
use super::write::{Updating, Writer};

/// The counts and errors of a write command.
#[derive(Default)]
struct Report {
    n: i32,
    modified: i32,
    upserted: RawArrayBuf,
    any_upserted: bool,
    errors: RawArrayBuf,
    failed: bool,
}

impl Report {
    fn error(&mut self, index: usize, failure: &Failure) {
        self.errors.push(failure.write_error(index));
        self.failed = true;
    }

    fn add(&mut self, index: usize, n: i32, modified: i32, upserted: Option<&RawBson>) {
        self.n += n;
        self.modified += modified;
        if let Some(id) = upserted {
            let mut entry = rawdoc! { "index": index as i32 };
            entry.append(cstr!("_id"), id.as_raw_bson_ref());
            self.upserted.push(entry);
            self.any_upserted = true;
        }
    }

    fn reply(self, updates: bool) -> RawDocumentBuf {
        let mut reply = rawdoc! { "n": self.n };
        if self.any_upserted {
            reply.append(cstr!("upserted"), self.upserted);
        }
        if updates {
            reply.append(cstr!("nModified"), self.modified);
        }
        if self.failed {
            reply.append(cstr!("writeErrors"), self.errors);
        }
        reply
    }
}

/// Runs a write command; errors of single statements are in its reply.
pub(crate) fn run(state: &mut State, place: Place, command: &Command<'_>) -> Outcome<RawDocumentBuf> {
    let field = match command.name {
        "insert" => "documents",
        "update" => "updates",
        _ => "deletes",
    };
    let statements = command.documents(field)?;
    let ordered = command.flag("ordered", true);
    let names_retries = state.names_retries;
    let mut writer = Writer::new(state, place, command)?;
    let mut report = Report::default();
    for (index, statement) in statements.into_iter().enumerate() {
        let id = command.statement_id(index);
        if let Err(failure) = one(&mut writer, command.name, statement, index, id, &mut report) {
            report.error(index, &failure);
            if ordered {
                break;
            }
        }
    }
    let mut reply = report.reply(command.name == "update");
    writer.note_retries(&mut reply, names_retries);
    Ok(reply)
}

fn one(
    writer: &mut Writer<'_>,
    name: &str,
    statement: &RawDocument,
    index: usize,
    id: i32,
    report: &mut Report,
) -> Outcome<()> {
    if name == "insert" {
        let n = writer.insert(statement, id)?;
        report.add(index, n, 0, None);
        return Ok(());
    }
    let filter = statement.get_document("q").map_err(|_| Failure::new(40414, "a statement needs q"))?;
    if let Some(executed) = writer.history(id) {
        let result = &executed.result;
        report.add(index, 1, result.modified, result.upserted.as_ref());
        return Ok(());
    }
    let written = if name == "update" {
        let change = statement.get("u")?.ok_or_else(|| Failure::new(40414, "an update needs u"))?;
        let flag = |name| statement.get_bool(name).unwrap_or(false);
        let change = Change::parse(change)?;
        let updating = Updating { filter, change, multi: flag("multi"), upsert: flag("upsert") };
        writer.update(&updating, id, |_, _| None)?
    } else {
        writer.delete(filter, number(statement, "limit") == Some(1.0), id, false)?
    };
    report.add(index, written.n, written.modified, written.upserted.as_ref());
    Ok(())
}
