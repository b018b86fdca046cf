//! Reads, and what they must return: every write of this worker that was
//! acknowledged before.

use std::collections::BTreeMap;

use bson::{Bson, Document, doc};
use futures::TryStreamExt;
use mongodb::error::Result;

use super::single::same_document;
use super::{Done, Worker};
use crate::docs::DocState;
use crate::keys::Key;
use crate::ops::OpKind;
use crate::report::ViolationKind;

impl Worker {
    pub(super) fn wrong_read(&self, kind: OpKind, key: Key, detail: &str) {
        if self.shared.config.check_reads {
            self.violation(ViolationKind::WrongRead, kind, &key.to_string(), detail);
        }
    }

    fn read_done(&self, kind: OpKind, key: Key, result: Result<Option<String>>) -> Done {
        match result {
            Ok(mismatch) => {
                if let Some(mismatch) = mismatch {
                    self.wrong_read(kind, key, &mismatch);
                }
                Done::READ
            }
            Err(error) => {
                self.note(kind, &error);
                Done::ERROR
            }
        }
    }

    pub(super) async fn find_by_id(&mut self) -> Done {
        let Some((key, state)) = self.pick_any() else { return Done::READ };
        let wanted = state.map(|state| self.build(key, &state));
        let result = self.coll.find_one(self.named(key)).await;
        let result = result.map(|found| same_document(found.as_ref(), wanted.as_ref()));
        self.read_done(OpKind::FindById, key, result)
    }

    pub(super) async fn find_by_group(&mut self) -> Option<Done> {
        let group = self.pick_group()?;
        let filter = self.group_filter(&group)?;
        let key = group.first()?.0;
        let result = async { self.coll.find(filter).await?.try_collect::<Vec<Document>>().await }.await;
        let result = result.map(|found| self.same_group(&group, &found));
        Some(self.read_done(OpKind::FindByGroup, key, result))
    }

    fn same_group(&self, group: &[(Key, Option<DocState>)], found: &[Document]) -> Option<String> {
        let mut by_key: BTreeMap<&str, &Document> = BTreeMap::new();
        for document in found {
            if by_key.insert(document.get_str("key").unwrap_or_default(), document).is_some() {
                return Some("a document came back twice".into());
            }
        }
        group.iter().find_map(|(key, state)| {
            let wanted = state.as_ref().map(|state| self.build(*key, state));
            let found = by_key.get(key.to_string().as_str()).copied();
            same_document(found, wanted.as_ref()).map(|detail| format!("{key}: {detail}"))
        })
    }

    /// Counts and sums up a group.
    pub(super) async fn aggregate(&mut self) -> Option<Done> {
        let group = self.pick_group()?;
        let filter = self.group_filter(&group)?;
        let key = group.first()?.0;
        let states: Vec<_> = group.iter().filter_map(|(_, state)| state.as_ref()).collect();
        let wanted = (i64::try_from(states.len()).ok()?, states.iter().map(|state| state.rev).sum::<i64>());
        let sums = doc! { "_id": null, "count": { "$sum": 1_i64 }, "rev": { "$sum": "$rev" } };
        let pipeline = [doc! { "$match": filter }, doc! { "$group": sums }];
        let result = async { self.coll.aggregate(pipeline).await?.try_collect::<Vec<_>>().await }.await;
        let result = result.map(|rows| {
            let number =
                |name| rows.first().and_then(|row| row.get(name)).and_then(Bson::as_i64).unwrap_or(-1);
            let found = (number("count"), number("rev"));
            (found != wanted).then(|| format!("(count, sum) is {found:?}, expected {wanted:?}"))
        });
        Some(self.read_done(OpKind::Aggregate, key, result))
    }
}
