//! Writes to documents that all workers write.

use bson::{Bson, doc};
use mongodb::options::ReturnDocument;
use rand::Rng;

use super::settle::{Effects, Mismatch, expect};
use super::single::one_updated;
use super::{Done, Worker};
use crate::hot::HotEffect;
use crate::keys::Key;
use crate::ops::OpKind;

impl Worker {
    pub(super) fn hot_key(n: usize) -> Key {
        Key::Hot(u16::try_from(n).unwrap_or(u16::MAX))
    }

    fn pick_hot(&mut self) -> usize {
        self.rng.random_range(0..self.shared.hot.len())
    }

    /// A hot document that takes another token, and the token.
    pub(super) fn pick_hot_token(&mut self) -> Option<(usize, i64)> {
        let most = self.shared.config.tokens_per_hot_key;
        let n = [(); 4]
            .map(|()| self.pick_hot())
            .into_iter()
            .find(|&n| self.shared.hot[n].lock().token_count() < most)?;
        Some((n, self.shared.ledgers[self.id].lock().fresh_token()))
    }

    pub(super) async fn hot_inc(&mut self) -> Done {
        let n = self.pick_hot();
        let filter = self.named(Self::hot_key(n));
        let effects = Effects { changes: Vec::new(), hot: vec![(n, HotEffect::Inc)] };
        let coll = self.coll.clone();
        let send =
            async move { Ok(one_updated(&coll.update_one(filter, doc! { "$inc": { "n": 1_i64 } }).await?)) };
        self.settle(OpKind::HotInc, effects, send).await
    }

    pub(super) async fn hot_push(&mut self) -> Done {
        let Some((n, token)) = self.pick_hot_token() else { return self.hot_inc().await };
        let filter = self.named(Self::hot_key(n));
        let effects = Effects { changes: Vec::new(), hot: vec![(n, HotEffect::Push(token))] };
        let coll = self.coll.clone();
        let send = async move {
            let update = doc! { "$push": { "toks": token }, "$inc": { "c": 1_i64 } };
            Ok(one_updated(&coll.update_one(filter, update).await?))
        };
        self.settle(OpKind::HotPush, effects, send).await
    }

    pub(super) async fn hot_find_one_and_update(&mut self) -> Done {
        let Some((n, token)) = self.pick_hot_token() else { return self.hot_inc().await };
        let filter = self.named(Self::hot_key(n));
        let effects = Effects { changes: Vec::new(), hot: vec![(n, HotEffect::Push(token))] };
        let coll = self.coll.clone();
        let send = async move {
            let update = doc! { "$push": { "toks": token }, "$inc": { "c": 1_i64 } };
            let found =
                coll.find_one_and_update(filter, update).return_document(ReturnDocument::After).await?;
            let Some(found) = found else {
                return Ok(Some("no document came back, though it exists".into()));
            };
            let tokens = found.get_array("toks").map(Vec::as_slice).unwrap_or_default();
            let times = tokens.iter().filter(|other| other.as_i64() == Some(token)).count();
            Ok::<Mismatch, _>(expect("times the new token is there", &times, &1))
        };
        self.settle(OpKind::HotFindOneAndUpdate, effects, send).await
    }

    pub(super) async fn hot_update_many(&mut self) -> Done {
        let hot = self.shared.hot.len();
        let filter = doc! { "group": self.shared.builder.space.group(Key::Hot(0)) };
        let effects = Effects { changes: Vec::new(), hot: (0..hot).map(|n| (n, HotEffect::Inc)).collect() };
        let wanted = super::settle::count(hot);
        let coll = self.coll.clone();
        let send = async move {
            let result = coll.update_many(filter, doc! { "$inc": { "n": 1_i64 } }).await?;
            Ok(expect("matched", &result.matched_count, &wanted)
                .or_else(|| expect("modified", &result.modified_count, &wanted)))
        };
        self.settle_many(OpKind::HotUpdateMany, effects, send).await
    }

    /// Reads a hot document: what this worker added must be there.
    pub(super) async fn find_hot(&mut self) -> Done {
        let n = self.pick_hot();
        let find = self.coll.find_one(self.named(Self::hot_key(n))).projection(doc! { "toks": 0 });
        match find.await {
            Ok(found) => {
                let count = found.as_ref().and_then(|found| found.get("n")).and_then(Bson::as_i64);
                if count.is_none_or(|count| count < self.hot_incs[n]) {
                    let detail =
                        format!("n is {count:?}, this worker alone raised it to {}", self.hot_incs[n]);
                    self.wrong_read(OpKind::FindHot, Self::hot_key(n), &detail);
                }
                Done::READ
            }
            Err(error) => {
                self.note(OpKind::FindHot, &error);
                Done::ERROR
            }
        }
    }
}
