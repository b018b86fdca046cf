//! Changes to an existing document: the update to send, and the state it
//! leads to.

use bson::{Document, doc};
use mongodb::options::UpdateModifications;
use rand::Rng;

use super::Worker;
use crate::docs::{Builder, DocState, MAX_OWN_TOKENS};
use crate::keys::Key;
use crate::ops::OpKind;

/// One change.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mutation {
    Inc(i64),
    Push(i64),
    ClearTokens,
    Set,
    Pipeline(i64),
    Email(u64),
}

impl Mutation {
    pub(super) fn apply(self, before: &DocState) -> DocState {
        let mut after = before.clone();
        match self {
            Mutation::Inc(by) | Mutation::Pipeline(by) => after.rev += by,
            Mutation::Push(token) => after.toks.push(token),
            Mutation::ClearTokens => after.toks.clear(),
            Mutation::Set => after.ver += 1,
            Mutation::Email(email) => after.email = email,
        }
        after
    }

    /// `None` for a pipeline.
    fn document(self, builder: &Builder, key: Key, after: &DocState) -> Option<Document> {
        Some(match self {
            Mutation::Inc(by) => doc! { "$inc": { "rev": by } },
            Mutation::Push(token) => doc! { "$push": { "toks": token } },
            Mutation::ClearTokens => doc! { "$set": { "toks": [] } },
            Mutation::Set => doc! { "$set": {
                "val": Builder::val(key, after.ver), "pad": builder.pad(key, after.ver), "ver": after.ver,
            } },
            Mutation::Email(email) => doc! { "$set": { "email": builder.space.email(email) } },
            Mutation::Pipeline(_) => return None,
        })
    }

    fn pipeline(self) -> Vec<Document> {
        let Mutation::Pipeline(by) = self else { return Vec::new() };
        vec![doc! { "$set": { "rev": { "$add": ["$rev", by] } } }]
    }

    /// As the driver takes it.
    pub(super) fn update(self, builder: &Builder, key: Key, after: &DocState) -> UpdateModifications {
        match self.document(builder, key, after) {
            Some(document) => UpdateModifications::Document(document),
            None => UpdateModifications::Pipeline(self.pipeline()),
        }
    }

    /// As it stands in a command.
    pub(super) fn statement(self, builder: &Builder, key: Key, after: &DocState) -> bson::Bson {
        match self.document(builder, key, after) {
            Some(document) => document.into(),
            None => self.pipeline().into(),
        }
    }
}

impl Worker {
    /// The change that a kind of operation makes, or any.
    pub(super) fn mutation(&mut self, kind: OpKind, before: &DocState) -> Mutation {
        let by = self.rng.random_range(1..=9);
        let choice = match kind {
            OpKind::Inc => 0,
            OpKind::Push => 1,
            OpKind::Set => 2,
            OpKind::PipelineUpdate => 3,
            OpKind::EmailChange => 4,
            _ => self.rng.random_range(0..4),
        };
        match choice {
            0 => Mutation::Inc(by),
            1 if before.toks.len() >= MAX_OWN_TOKENS => Mutation::ClearTokens,
            1 => Mutation::Push(self.shared.ledgers[self.id].lock().fresh_token()),
            2 => Mutation::Set,
            3 => Mutation::Pipeline(by),
            _ => Mutation::Email(self.fresh_email()),
        }
    }

    pub(super) fn fresh_email(&self) -> u64 {
        self.shared.ledgers[self.id].lock().fresh_email()
    }
}
