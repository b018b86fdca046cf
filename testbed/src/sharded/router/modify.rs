//! findAndModify, on the one shard that owns the document.

use bson::raw::cstr;
use bson::{Bson, Document, RawDocument, RawDocumentBuf, doc};
use reshard::cluster::command::number;

use super::Router;
use super::backend::Repeat;
use super::failure::{Failure, NAMESPACE_NOT_FOUND};
use super::key_change::Moved;
use super::raw;
use super::table::Table;
use super::versioned::Versioned;

/// `WouldChangeOwningShard`.
pub(super) const WOULD_CHANGE_SHARD: f64 = 283.0;

impl Router {
    pub(super) async fn find_and_modify(
        &self,
        database: &str,
        body: &RawDocument,
    ) -> Result<RawDocumentBuf, Failure> {
        let body = self.with_write_concern(&raw::renamed(body, cstr!("findAndModify"))?)?;
        let collection =
            body.get_str("findAndModify").map_err(|error| Failure::bad_value(error.to_string()))?;
        let query = raw::document(&body, "query")?;
        let retryable = body.get("txnNumber")?.is_some();
        let (upsert, new) = (raw::truth(&body, "upsert"), raw::truth(&body, "new"));
        let command = Versioned {
            database,
            collection,
            body: &body,
            create: upsert,
            repeat: if retryable { Repeat::Yes } else { Repeat::No },
        };
        let (_, mut replies) = match self.versioned(command, |table| owner(table, &query)).await {
            Err(failure) if failure.code() == NAMESPACE_NOT_FOUND => {
                let nothing = doc! {"n": 0, "updatedExisting": false};
                let reply = doc! {"lastErrorObject": nothing, "value": Bson::Null, "ok": 1.0};
                return Ok(RawDocumentBuf::try_from(&reply)?);
            }
            Err(failure) if retryable => return Err(failure.of_numbered_write()),
            replies => replies?,
        };
        let (_, reply) = replies.pop().ok_or_else(|| Failure::bad_value("nobody was asked"))?;
        if number(&reply, "code") != Some(WOULD_CHANGE_SHARD) {
            return raw::reply(&reply);
        }
        if retryable {
            let plain = raw::without(&body, &["lsid", "txnNumber"])?;
            match self.move_document(database, collection, &plain, &query).await? {
                Some(Moved::Stayed(reply)) => return raw::reply(&reply),
                Some(Moved::Failed(error)) => {
                    return Err(Failure(doc! {"ok": 0.0}.into_iter().chain(error).collect()));
                }
                Some(Moved::Done { before, after, inserted }) => {
                    let reply = reply_of_move(&before, &after, inserted, new);
                    return Ok(RawDocumentBuf::try_from(&reply)?);
                }
                None => {}
            }
        }
        Err(needs_number())
    }
}

/// What mongos says to a change of the shard key that it could not repeat.
pub(super) fn needs_number() -> Failure {
    let message =
        "Must run update to shard key field in a multi-statement transaction or with retryWrites: true.";
    Failure::new(20, "IllegalOperation", message)
}

fn owner(table: &Table, query: &Document) -> Result<Vec<String>, Failure> {
    let Some(sharding) = &table.sharding else { return Ok(table.shards()) };
    let key = sharding.key_of_filter(query).ok_or_else(|| {
        Failure::new(61, "ShardKeyNotFound", "Query for sharded findAndModify must contain the shard key")
    })?;
    Ok(vec![sharding.chunk_of(&key)?.shard.clone()])
}

fn reply_of_move(before: &Document, after: &Document, inserted: bool, new: bool) -> Document {
    let mut last = doc! {"n": 1, "updatedExisting": !inserted};
    if inserted {
        last.insert("upserted", after.get("_id").cloned().unwrap_or(Bson::Null));
    }
    let value = match (new, inserted) {
        (true, _) => Bson::from(after.clone()),
        (false, true) => Bson::Null,
        (false, false) => Bson::from(before.clone()),
    };
    doc! {"lastErrorObject": last, "value": value, "ok": 1.0}
}
