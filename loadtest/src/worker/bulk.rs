//! One command with several statements, sent as a retryable write.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bson::{Document, doc};
use mongodb::error::{Error, Result};
use rand::Rng;

use super::settle::{Effects, Mismatch, count, expect};
use super::{Done, Worker};
use crate::docs::DocState;
use crate::errors::is_retryable;
use crate::hot::HotEffect;
use crate::ledger::Change;
use crate::ops::OpKind;

impl Worker {
    /// Updates, upserts and replacements by `_id`, or deletes by `_id`.
    pub(super) async fn bulk(&mut self) -> Option<Done> {
        let (effects, mut command) =
            if self.rng.random_ratio(1, 5) { self.bulk_delete()? } else { self.bulk_update()? };
        command.insert("ordered", self.rng.random::<bool>());
        let wanted = i64::try_from(effects.len()).ok()?;
        if self.bulk_session.is_none() {
            match self.client.start_session().await {
                Ok(session) => self.bulk_session = Some(Arc::new(tokio::sync::Mutex::new(session))),
                Err(error) => {
                    self.note(OpKind::Bulk, &error);
                    return Some(Done::ERROR);
                }
            }
        }
        let session = self.bulk_session.clone()?;
        command.insert("txnNumber", self.shared.next_txn.fetch_add(1, Ordering::Relaxed));
        let database = self.coll.client().database(&self.shared.config.database);
        let send = async {
            let mut session = session.lock().await;
            let session = &mut *session;
            let mut reply = database.run_command(command.clone()).session(&mut *session).await;
            if reply.as_ref().is_err_and(is_retryable) {
                let again = database.run_command(command).session(&mut *session).await;
                // An error that says "not sent" now says nothing of the first try.
                reply = again
                    .or_else(|error| if is_retryable(&error) { Err(error) } else { reply.and(Err(error)) });
            }
            judge(&reply?, wanted)
        };
        Some(self.settle_many(OpKind::Bulk, effects, send).await)
    }

    fn bulk_delete(&mut self) -> Option<(Effects, Document)> {
        let how_many = self.rng.random_range(2..=4);
        let picked = self.pick_several(how_many);
        let statements: Vec<_> =
            picked.iter().map(|(key, _)| doc! { "q": self.named(*key), "limit": 1 }).collect();
        let changes = picked.iter().map(|(key, _)| Change { key: *key, after: None }).collect();
        let command = doc! { "delete": self.coll.name(), "deletes": statements };
        (!picked.is_empty()).then_some((Effects { changes, hot: Vec::new() }, command))
    }

    fn bulk_update(&mut self) -> Option<(Effects, Document)> {
        let how_many = self.rng.random_range(2..=6);
        let picked = self.pick_several(how_many);
        let mut effects = Effects::default();
        let mut statements = Vec::new();
        for (key, before) in &picked {
            let (after, update) = if self.rng.random_ratio(1, 5) {
                let after = DocState { ver: before.ver + 1, toks: Vec::new(), ..before.clone() };
                let fields = self.shared.builder.fields(*key, &after);
                (after, fields.into())
            } else {
                let mutation = self.mutation(OpKind::Bulk, before);
                let after = mutation.apply(before);
                let update = mutation.statement(&self.shared.builder, *key, &after);
                (after, update)
            };
            statements.push(doc! { "q": self.named(*key), "u": update });
            effects.changes.push(Change { key: *key, after: Some(after) });
        }
        let taken: Vec<_> = picked.iter().map(|(key, _)| *key).collect();
        if let Some(key) = self.pick_absent(&taken) {
            let state = DocState::new(self.fresh_email());
            let fields = self.shared.builder.content(key, &state);
            statements.push(doc! { "q": self.named(key), "u": { "$setOnInsert": fields }, "upsert": true });
            effects.changes.push(Change { key, after: Some(state) });
        }
        if let Some((n, token)) = self.pick_hot_token() {
            let update = doc! { "$push": { "toks": token }, "$inc": { "c": 1_i64 } };
            statements.push(doc! { "q": self.named(Self::hot_key(n)), "u": update });
            effects.hot.push((n, HotEffect::Push(token)));
        }
        let command = doc! { "update": self.coll.name(), "updates": statements };
        (!picked.is_empty()).then_some((effects, command))
    }
}

fn judge(reply: &Document, wanted: i64) -> Result<Mismatch> {
    for name in ["writeErrors", "writeConcernError"] {
        if let Some(error) = reply.get(name) {
            return Err(Error::custom(format!("{name}: {error}")));
        }
    }
    let n = match reply.get("n") {
        Some(bson::Bson::Int32(n)) => i64::from(*n),
        Some(bson::Bson::Int64(n)) => *n,
        _ => -1,
    };
    Ok(expect("n", &n, &wanted)
        .map(|mismatch| format!("{mismatch} ({} statements)", count(usize::try_from(wanted).unwrap_or(0)))))
}
