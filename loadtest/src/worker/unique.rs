//! Two documents swap their unique values, one step after the other.

use bson::doc;

use super::settle::Effects;
use super::single::one_updated;
use super::{Done, Worker};
use crate::docs::DocState;
use crate::latency::Ending;
use crate::ledger::Change;
use crate::ops::OpKind;

impl Worker {
    /// The first is deleted, the second takes its value, and the first comes
    /// back with the value of the second. Stops where the outcome of a step is
    /// not certain.
    pub(super) async fn email_swap(&mut self) -> Option<Done> {
        let kind = OpKind::EmailSwap;
        let (first, first_state) = self.pick_present(&[])?;
        let (second, second_state) = self.pick_present(&[first])?;

        let done = self.delete_key(kind, first, self.named(first)).await;
        if done.writes == 0 {
            return Some(done);
        }
        self.record_part(kind, done);

        let filter = self.named(second);
        let update = doc! { "$set": { "email": self.shared.builder.space.email(first_state.email) } };
        let after = DocState { email: first_state.email, ..second_state.clone() };
        let coll = self.coll.clone();
        let effects = Effects::of(Change { key: second, after: Some(after) });
        let send = async move { Ok(one_updated(&coll.update_one(filter, update).await?)) };
        let done = self.settle(kind, effects, send).await;
        if done.ending == Ending::Error || done.writes == 0 {
            return Some(done);
        }
        self.record_part(kind, done);

        let state = DocState { email: second_state.email, ver: first_state.ver + 1, ..first_state };
        Some(self.insert_key(kind, first, state).await)
    }
}
