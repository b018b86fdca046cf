//! Writes to one document.

use bson::{Bson, Document, doc};
use mongodb::options::ReturnDocument;
use mongodb::results::UpdateResult;
use rand::Rng;

use super::settle::{Effects, Mismatch, expect};
use super::{Done, Worker};
use crate::docs::DocState;
use crate::keys::Key;
use crate::ledger::Change;
use crate::ops::OpKind;
use crate::verify::differences;

/// One document matched and changed.
pub(super) fn one_updated(result: &UpdateResult) -> Mismatch {
    expect("matched", &result.matched_count, &1).or_else(|| expect("modified", &result.modified_count, &1))
}

fn one_upserted(result: &UpdateResult, id: &Bson, existed: bool) -> Mismatch {
    if existed {
        return one_updated(result);
    }
    match &result.upserted_id {
        Some(upserted) if upserted == id => None,
        other => Some(format!("upserted _id {other:?}, matched {}, expected {id}", result.matched_count)),
    }
}

/// The document that came back is the one that should be there.
pub(super) fn same_document(found: Option<&Document>, wanted: Option<&Document>) -> Mismatch {
    match (found, wanted) {
        (None, None) => None,
        (None, Some(_)) => Some("no document came back, though it exists".into()),
        (Some(_), None) => Some("a document came back, though it does not exist".into()),
        (Some(found), Some(wanted)) => {
            let different = differences(wanted, found);
            let details: Vec<_> = different.into_iter().map(|(_, detail)| detail).collect();
            (!details.is_empty()).then(|| format!("another document came back: {}", details.join("; ")))
        }
    }
}

impl Worker {
    pub(super) fn build(&self, key: Key, state: &DocState) -> Document {
        self.shared.builder.build(key, state)
    }

    /// What names it, but with the unique field instead of `_id` for the kinds that name no `_id`.
    fn filter(&self, kind: OpKind, key: Key, state: &DocState) -> Document {
        let mut filter = self.named(key);
        if let OpKind::UnkeyedUpdate | OpKind::UnkeyedFindOneAndUpdate | OpKind::UnkeyedDelete = kind {
            filter.remove("_id");
            filter.insert("email", self.shared.builder.space.email(state.email));
        }
        filter
    }

    pub(super) async fn update_one(&mut self, kind: OpKind) -> Option<Done> {
        let (key, before) = self.pick_present(&[])?;
        let mutation = self.mutation(kind, &before);
        let after = mutation.apply(&before);
        let update = mutation.update(&self.shared.builder, key, &after);
        let filter = self.filter(kind, key, &before);
        let coll = self.coll.clone();
        let effects = Effects::of(Change { key, after: Some(after) });
        let send = async move { Ok(one_updated(&coll.update_one(filter, update).await?)) };
        Some(self.settle(kind, effects, send).await)
    }

    pub(super) async fn find_one_and_update(&mut self, kind: OpKind) -> Option<Done> {
        let (key, before) = self.pick_present(&[])?;
        let mutation = self.mutation(kind, &before);
        let after = mutation.apply(&before);
        let update = mutation.update(&self.shared.builder, key, &after);
        let filter = self.filter(kind, key, &before);
        let (which, wanted) = if self.rng.random() {
            (ReturnDocument::After, self.build(key, &after))
        } else {
            (ReturnDocument::Before, self.build(key, &before))
        };
        let coll = self.coll.clone();
        let effects = Effects::of(Change { key, after: Some(after) });
        let send = async move {
            let found = coll.find_one_and_update(filter, update).return_document(which).await?;
            Ok(same_document(found.as_ref(), Some(&wanted)))
        };
        Some(self.settle(kind, effects, send).await)
    }

    pub(super) async fn upsert(&mut self) -> Option<Done> {
        let (key, before) = self.pick_any()?;
        let by = self.rng.random_range(1..=9_i64);
        let existed = before.is_some();
        let base = before.unwrap_or_else(|| DocState::new(self.fresh_email()));
        let mut fields = self.shared.builder.content(key, &base);
        fields.remove("rev");
        let after = DocState { rev: base.rev + by, ..base };
        let (id, filter) = (self.id_of(key), self.named(key));
        let coll = self.coll.clone();
        let effects = Effects::of(Change { key, after: Some(after) });
        let send = async move {
            let update = doc! { "$inc": { "rev": by }, "$setOnInsert": fields };
            let result = coll.update_one(filter, update).upsert(true).await?;
            Ok(one_upserted(&result, &id, existed))
        };
        Some(self.settle(OpKind::Upsert, effects, send).await)
    }

    fn replacement(&self, before: &DocState) -> DocState {
        DocState { rev: before.rev + 1, toks: Vec::new(), ver: before.ver + 1, ..before.clone() }
    }

    pub(super) async fn replace(&mut self) -> Option<Done> {
        let upsert = self.rng.random_ratio(1, 3);
        let (key, before) = if upsert {
            self.pick_any()?
        } else {
            self.pick_present(&[]).map(|(key, state)| (key, Some(state)))?
        };
        let existed = before.is_some();
        let after = match &before {
            Some(before) => self.replacement(before),
            None => DocState::new(self.fresh_email()),
        };
        let fields = self.shared.builder.fields(key, &after);
        let (id, filter) = (self.id_of(key), self.named(key));
        let coll = self.coll.clone();
        let effects = Effects::of(Change { key, after: Some(after) });
        let send = async move {
            let result = coll.replace_one(filter, fields).upsert(upsert).await?;
            Ok(one_upserted(&result, &id, existed))
        };
        Some(self.settle(OpKind::Replace, effects, send).await)
    }

    pub(super) async fn find_one_and_replace(&mut self) -> Option<Done> {
        let (key, before) = self.pick_present(&[])?;
        let after = self.replacement(&before);
        let wanted = self.build(key, &before);
        let fields = self.shared.builder.fields(key, &after);
        let filter = self.named(key);
        let coll = self.coll.clone();
        let effects = Effects::of(Change { key, after: Some(after) });
        let send = async move {
            let found = coll.find_one_and_replace(filter, fields).await?;
            Ok(same_document(found.as_ref(), Some(&wanted)))
        };
        Some(self.settle(OpKind::FindOneAndReplace, effects, send).await)
    }

    pub(super) async fn delete(&mut self) -> Option<Done> {
        let (key, _) = self.pick_present(&[])?;
        Some(self.delete_key(OpKind::Delete, key, self.named(key)).await)
    }

    pub(super) async fn unkeyed_delete(&mut self) -> Option<Done> {
        let (key, before) = self.pick_present(&[])?;
        let filter = self.filter(OpKind::UnkeyedDelete, key, &before);
        Some(self.delete_key(OpKind::UnkeyedDelete, key, filter).await)
    }

    pub(super) async fn delete_key(&mut self, kind: OpKind, key: Key, filter: Document) -> Done {
        let coll = self.coll.clone();
        let send = async move { Ok(expect("deleted", &coll.delete_one(filter).await?.deleted_count, &1)) };
        self.settle(kind, Effects::of(Change { key, after: None }), send).await
    }

    pub(super) async fn find_one_and_delete(&mut self) -> Option<Done> {
        let (key, before) = self.pick_present(&[])?;
        let wanted = self.build(key, &before);
        let filter = self.named(key);
        let coll = self.coll.clone();
        let send = async move {
            let found = coll.find_one_and_delete(filter).await?;
            Ok(same_document(found.as_ref(), Some(&wanted)))
        };
        Some(self.settle(OpKind::FindOneAndDelete, Effects::of(Change { key, after: None }), send).await)
    }
}
