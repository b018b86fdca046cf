//! Writes to all documents of a group.

use bson::{Document, doc};

use super::settle::{Effects, expect};
use super::{Done, Worker};
use crate::docs::DocState;
use crate::keys::Key;
use crate::ledger::Change;
use crate::ops::OpKind;

impl Worker {
    pub(super) fn group_filter(&self, group: &[(Key, Option<DocState>)]) -> Option<Document> {
        let (key, _) = group.first()?;
        Some(doc! { "group": self.shared.builder.space.group(*key) })
    }

    /// All members are in it, absent ones too: should the outcome stay unknown,
    /// nothing may come into the group any more.
    fn group_effects(
        group: &[(Key, Option<DocState>)],
        change: impl Fn(&DocState) -> Option<DocState>,
    ) -> (Effects, u64) {
        let changes =
            group.iter().map(|(key, state)| Change { key: *key, after: state.as_ref().and_then(&change) });
        let present = group.iter().filter(|(_, state)| state.is_some()).count();
        (Effects { changes: changes.collect(), hot: Vec::new() }, super::settle::count(present))
    }

    pub(super) async fn update_many(&mut self) -> Option<Done> {
        let group = self.pick_group()?;
        let filter = self.group_filter(&group)?;
        let (effects, present) =
            Self::group_effects(&group, |state| Some(DocState { m: state.m + 1, ..state.clone() }));
        let coll = self.coll.clone();
        let send = async move {
            let result = coll.update_many(filter, doc! { "$inc": { "m": 1_i64 } }).await?;
            Ok(expect("matched", &result.matched_count, &present)
                .or_else(|| expect("modified", &result.modified_count, &present)))
        };
        Some(self.settle_many(OpKind::UpdateMany, effects, send).await)
    }

    pub(super) async fn delete_many(&mut self) -> Option<Done> {
        let group = self.pick_group()?;
        let filter = self.group_filter(&group)?;
        let (effects, present) = Self::group_effects(&group, |_| None);
        let coll = self.coll.clone();
        let send =
            async move { Ok(expect("deleted", &coll.delete_many(filter).await?.deleted_count, &present)) };
        Some(self.settle_many(OpKind::DeleteMany, effects, send).await)
    }
}
