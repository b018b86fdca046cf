//! What a server tells about itself to those who look before they act.

use std::sync::Arc;

use bson::raw::{RawDocumentBuf, cstr};
use bson::{RawArrayBuf, Timestamp, rawdoc};

use super::command::Command;
use super::read::batch_reply;
use super::state::{Place, State};
use super::store::Doc;

/// The answer to a question about the server; `None` if it is none.
pub(crate) fn run(state: &State, place: Place, command: &Command<'_>) -> Option<RawDocumentBuf> {
    match command.name {
        "connectionStatus" => Some(rawdoc! { "authInfo": {
            "authenticatedUsers": RawArrayBuf::new(), "authenticatedUserRoles": RawArrayBuf::new(),
            "authenticatedUserPrivileges": RawArrayBuf::new(),
        } }),
        "getParameter" => Some(rawdoc! {
            "featureCompatibilityVersion": { "version": "6.0" }, "notablescan": false,
        }),
        "getDefaultRWConcern" => Some(rawdoc! { "defaultWriteConcern": { "w": "majority", "wtimeout": 0 } }),
        "replSetGetConfig" => Some(config(state)),
        "listDatabases" => Some(databases(state, place)),
        "find" if is_oplog(command) => Some(oplog_end(state, place, command)),
        "collStats" if is_oplog(command) => {
            Some(rawdoc! { "ns": "local.oplog.rs", "size": 1_i64, "maxSize": 1_000_000_000_i64 })
        }
        _ => None,
    }
}

fn is_oplog(command: &Command<'_>) -> bool {
    command.database() == "local" && command.argument.as_str() == Some("oplog.rs")
}

fn config(state: &State) -> RawDocumentBuf {
    let mut members = RawArrayBuf::new();
    for (id, server) in state.servers.iter().enumerate() {
        members.push(rawdoc! { "_id": id as i32, "host": &**server, "arbiterOnly": false });
    }
    rawdoc! { "config": { "_id": "rs", "members": members, "writeConcernMajorityJournalDefault": true } }
}

fn databases(state: &State, place: Place) -> RawDocumentBuf {
    let mut names: Vec<&str> =
        state.member(place).store.iter().filter_map(|(ns, _)| Some(ns.split_once('.')?.0)).collect();
    names.dedup();
    let mut databases = RawArrayBuf::new();
    for name in names {
        databases.push(rawdoc! { "name": name });
    }
    rawdoc! { "databases": databases }
}

/// The first or the last entry of the log, by `$natural`.
fn oplog_end(state: &State, place: Place, command: &Command<'_>) -> RawDocumentBuf {
    let order = command.document("sort").and_then(|sort| sort.get_i32("$natural").ok());
    let time: Timestamp = if order == Some(1) { state.log_start } else { state.member(place).applied };
    let mut entry = RawDocumentBuf::new();
    entry.append(cstr!("ts"), time);
    let batch: Vec<Doc> = vec![Arc::new(entry)];
    batch_reply("firstBatch", &batch, 0, "local.oplog.rs", None)
}
