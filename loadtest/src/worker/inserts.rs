//! Inserts, single and many, and such that must be refused.

use bson::Document;
use mongodb::error::{Error, ErrorKind};
use rand::Rng;

use super::settle::{Effects, count, expect};
use super::{Done, Worker};
use crate::config::Profile;
use crate::docs::DocState;
use crate::errors::{DUPLICATE_KEY, code, verdict};
use crate::keys::Key;
use crate::latency::Ending;
use crate::ledger::{Change, Verdict};
use crate::ops::OpKind;
use crate::report::ViolationKind;

impl Worker {
    pub(super) async fn insert(&mut self) -> Option<Done> {
        let key = self.pick_absent(&[])?;
        let state = DocState::new(self.fresh_email());
        Some(self.insert_key(OpKind::Insert, key, state).await)
    }

    pub(super) async fn insert_key(&mut self, kind: OpKind, key: Key, state: DocState) -> Done {
        let document = self.build(key, &state);
        let id = self.id_of(key);
        let coll = self.coll.clone();
        let effects = Effects::of(Change { key, after: Some(state) });
        let send =
            async move { Ok(expect("inserted _id", &coll.insert_one(document).await?.inserted_id, &id)) };
        self.settle(kind, effects, send).await
    }

    /// Three to eight documents; now and then one of them must be refused.
    pub(super) async fn insert_many(&mut self, ordered: bool) -> Option<Done> {
        let kind = if ordered { OpKind::InsertManyOrdered } else { OpKind::InsertManyUnordered };
        let mut keys = Vec::new();
        for _ in 0..self.rng.random_range(3..=8) {
            keys.extend(self.pick_absent(&keys));
        }
        let changes: Vec<_> = keys
            .into_iter()
            .map(|key| Change { key, after: Some(DocState::new(self.fresh_email())) })
            .collect();
        let mut batch: Vec<(Option<Change>, Document)> = Vec::new();
        for change in &changes {
            let document = self.build(change.key, change.after.as_ref()?);
            batch.push((Some(change.clone()), document));
        }
        if batch.len() < 2 {
            return None;
        }
        if self.rng.random_ratio(1, 6)
            && let Some((key, state)) = self.pick_present(&[])
        {
            let at = self.rng.random_range(0..=batch.len());
            let fresh = DocState::new(self.fresh_email());
            batch.insert(at, (None, self.build(key, &DocState { ver: state.ver + 1, ..fresh })));
        }
        Some(self.send_many(kind, ordered, changes, batch).await)
    }

    async fn send_many(
        &mut self,
        kind: OpKind,
        ordered: bool,
        changes: Vec<Change>,
        batch: Vec<(Option<Change>, Document)>,
    ) -> Done {
        let effects = Effects { changes, hot: Vec::new() };
        self.begin(&effects, None);
        let (items, documents): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let duplicate = items.iter().position(Option::is_none);
        let result = self.coll.insert_many(documents).ordered(ordered).await;
        let error = match result {
            Ok(_) if duplicate.is_some() => {
                self.wrong_reply(kind, &effects, "a document whose _id exists was accepted");
                return Done { ending: Ending::Good, writes: 0 };
            }
            Ok(_) => {
                self.finish_all(&effects, Verdict::Acknowledged);
                return Done { ending: Ending::Good, writes: count(effects.len()) };
            }
            Err(error) => error,
        };
        let verdicts = insert_verdicts(&error, ordered, items.len());
        let mut writes = 0;
        for (change, verdict) in items.iter().zip(&verdicts) {
            if let Some(change) = change {
                writes += u64::from(*verdict == Verdict::Acknowledged);
                self.finish_change(change, *verdict);
            }
        }
        if duplicate.is_some_and(|at| only_duplicate(&error, at)) {
            return Done { ending: Ending::Good, writes };
        }
        self.note(kind, &error);
        Done { ending: Ending::Error, writes }
    }

    /// An insert whose `_id`, or unique value, exists.
    pub(super) async fn duplicate_insert(&mut self) -> Option<Done> {
        let kind = OpKind::DuplicateInsert;
        let (other, taken) = self.pick_present(&[])?;
        let by_email = self.shared.config.profile == Profile::Unique && self.rng.random();
        let (key, state) = if by_email {
            (self.pick_absent(&[other])?, DocState::new(taken.email))
        } else {
            (other, DocState { ver: taken.ver + 1, ..DocState::new(self.fresh_email()) })
        };
        let document = self.build(key, &state);
        // If it were accepted by `_id`, the other document would still be as it was.
        let effects =
            if by_email { Effects::of(Change { key, after: Some(state) }) } else { Effects::default() };
        self.begin(&effects, None);
        let result = self.coll.insert_one(document).await;
        let error = match result {
            Ok(_) => {
                self.finish_all(&effects, Verdict::Acknowledged);
                self.violation(
                    ViolationKind::UniqueBroken,
                    kind,
                    &key.to_string(),
                    "a duplicate was accepted",
                );
                return Some(Done { ending: Ending::Good, writes: 0 });
            }
            Err(error) => error,
        };
        self.finish_all(&effects, verdict(&error));
        if code(&error) == Some(DUPLICATE_KEY) {
            return Some(Done { ending: Ending::Good, writes: 0 });
        }
        self.note(kind, &error);
        Some(Done::ERROR)
    }
}

/// What the error of an insert says about each of its documents.
fn insert_verdicts(error: &Error, ordered: bool, len: usize) -> Vec<Verdict> {
    let ErrorKind::InsertMany(many) = error.kind.as_ref() else {
        return vec![verdict(error); len];
    };
    let refused: Vec<_> = many.write_errors.iter().flatten().map(|error| error.index).collect();
    let first = refused.iter().min().copied().unwrap_or(len);
    let executed = |at: usize| if ordered { at < first } else { !refused.contains(&at) };
    let good = if many.write_concern_error.is_some() { Verdict::Unknown } else { Verdict::Acknowledged };
    (0..len).map(|at| if executed(at) { good } else { Verdict::Failed }).collect()
}

/// The error is the duplicate that was put there.
fn only_duplicate(error: &Error, at: usize) -> bool {
    let ErrorKind::InsertMany(many) = error.kind.as_ref() else { return false };
    let mut errors = many.write_errors.iter().flatten();
    many.write_concern_error.is_none() && errors.all(|error| error.index == at && error.code == DUPLICATE_KEY)
}
