//! Two documents in one transaction, retried as the drivers' rules say.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bson::{Document, doc};
use mongodb::ClientSession;
use mongodb::error::{Error, Result};
use mongodb::options::{ReadConcern, UpdateModifications, WriteConcern};
use rand::Rng;

use super::settle::{Effects, Mismatch, count, expect};
use super::single::one_updated;
use super::{Done, Worker};
use crate::docs::DocState;
use crate::errors::{is_transient, is_unknown_commit};
use crate::hot::HotEffect;
use crate::latency::Ending;
use crate::ledger::{Change, Verdict};
use crate::ops::OpKind;

/// How long a transaction is tried again.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Clone)]
enum Step {
    Update(Document, UpdateModifications),
    Insert(Document),
    Delete(Document),
}

/// How one attempt ended.
enum Attempt {
    Committed,
    /// A step did not do what it must.
    Wrong(String),
    /// Not committed; may be run again.
    Again(Error),
    /// Not committed.
    Refused(Error),
    /// Perhaps committed.
    Unclear(Error),
}

impl Worker {
    pub(super) async fn transaction(&mut self) -> Option<Done> {
        let (effects, steps) = match self.rng.random_range(0..4) {
            0 => self.plan_hot()?,
            1 => self.plan_move()?,
            2 => self.plan_swap()?,
            _ => self.plan_pair()?,
        };
        let joint = self.shared.next_joint.fetch_add(1, Ordering::Relaxed);
        self.begin(&effects, Some(joint));
        let start = Instant::now();
        let error = loop {
            match self.attempt(&steps, start).await {
                Attempt::Committed => {
                    self.finish_all(&effects, Verdict::Acknowledged);
                    return Some(Done { ending: Ending::Good, writes: count(effects.len()) });
                }
                Attempt::Wrong(mismatch) => {
                    self.wrong_reply(OpKind::Transaction, &effects, &mismatch);
                    return Some(Done { ending: Ending::Good, writes: 0 });
                }
                Attempt::Again(_) if start.elapsed() < PATIENCE => {
                    self.shared.transaction_retries.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(self.rng.random_range(1..10))).await;
                }
                Attempt::Again(error) | Attempt::Refused(error) => {
                    self.finish_all(&effects, Verdict::Failed);
                    break error;
                }
                Attempt::Unclear(error) => {
                    self.finish_all(&effects, Verdict::Unknown);
                    break error;
                }
            }
        };
        self.note(OpKind::Transaction, &error);
        Some(Done::ERROR)
    }

    async fn attempt(&self, steps: &[Step], start: Instant) -> Attempt {
        let mut session = match self.client.start_session().await {
            Ok(session) => session,
            Err(error) => return Attempt::Refused(error),
        };
        let begin = session
            .start_transaction()
            .read_concern(ReadConcern::snapshot())
            .write_concern(WriteConcern::majority());
        if let Err(error) = begin.await {
            return Attempt::Refused(error);
        }
        for step in steps {
            let stopped = match self.step(&mut session, step.clone()).await {
                Ok(None) => continue,
                Ok(Some(mismatch)) => Attempt::Wrong(mismatch),
                Err(error) if is_transient(&error) => Attempt::Again(error),
                Err(error) => Attempt::Refused(error),
            };
            let _ = session.abort_transaction().await;
            return stopped;
        }
        loop {
            match session.commit_transaction().await {
                Ok(()) => return Attempt::Committed,
                Err(error) if is_unknown_commit(&error) && start.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) if is_transient(&error) => return Attempt::Again(error),
                Err(error) => return Attempt::Unclear(error),
            }
        }
    }

    async fn step(&self, session: &mut ClientSession, step: Step) -> Result<Mismatch> {
        match step {
            Step::Update(filter, update) => {
                Ok(one_updated(&self.coll.update_one(filter, update).session(session).await?))
            }
            Step::Insert(document) => {
                self.coll.insert_one(document).session(session).await?;
                Ok(None)
            }
            Step::Delete(filter) => {
                Ok(expect("deleted", &self.coll.delete_one(filter).session(session).await?.deleted_count, &1))
            }
        }
    }

    fn plan_update(&mut self, taken: &[crate::keys::Key], effects: &mut Effects) -> Option<Step> {
        let (key, before) = self.pick_present(taken)?;
        let mutation = self.mutation(OpKind::Transaction, &before);
        let after = mutation.apply(&before);
        let update = mutation.update(&self.shared.builder, key, &after);
        effects.changes.push(Change { key, after: Some(after) });
        Some(Step::Update(self.named(key), update))
    }

    /// Two documents are updated.
    fn plan_pair(&mut self) -> Option<(Effects, Vec<Step>)> {
        let mut effects = Effects::default();
        let first = self.plan_update(&[], &mut effects)?;
        let taken = [effects.changes.first()?.key];
        let second = self.plan_update(&taken, &mut effects)?;
        Some((effects, vec![first, second]))
    }

    /// An own document and a hot one are updated.
    fn plan_hot(&mut self) -> Option<(Effects, Vec<Step>)> {
        let mut effects = Effects::default();
        let first = self.plan_update(&[], &mut effects)?;
        let (n, token) = self.pick_hot_token()?;
        effects.hot.push((n, HotEffect::Push(token)));
        let update = doc! { "$push": { "toks": token }, "$inc": { "c": 1_i64 } };
        Some((effects, vec![first, Step::Update(self.named(Self::hot_key(n)), update.into())]))
    }

    /// A document goes, and another comes with its unique value.
    fn plan_move(&mut self) -> Option<(Effects, Vec<Step>)> {
        let (from, before) = self.pick_present(&[])?;
        let to = self.pick_absent(&[from])?;
        let state = DocState { ver: before.ver + 1, ..DocState::new(before.email) };
        let steps = vec![Step::Delete(self.named(from)), Step::Insert(self.build(to, &state))];
        let changes = vec![Change { key: from, after: None }, Change { key: to, after: Some(state) }];
        Some((Effects { changes, hot: Vec::new() }, steps))
    }

    /// Two documents swap their unique values, by way of a third.
    fn plan_swap(&mut self) -> Option<(Effects, Vec<Step>)> {
        let (first, a) = self.pick_present(&[])?;
        let (second, b) = self.pick_present(&[first])?;
        let between = self.fresh_email();
        let set = |key, email| {
            let update = doc! { "$set": { "email": self.shared.builder.space.email(email) } };
            Step::Update(self.named(key), update.into())
        };
        let steps = vec![set(first, between), set(second, a.email), set(first, b.email)];
        let changes = vec![
            Change { key: first, after: Some(DocState { email: b.email, ..a.clone() }) },
            Change { key: second, after: Some(DocState { email: a.email, ..b }) },
        ];
        Some((Effects { changes, hot: Vec::new() }, steps))
    }
}
