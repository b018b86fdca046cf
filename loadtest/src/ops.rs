//! Kinds of operations and their weights.

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use serde::Serialize;

use crate::config::Profile;

macro_rules! op_kinds {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $keyed:literal, $unique:literal;)*) => {
        /// One kind of operation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum OpKind { $($(#[$doc])* $variant,)* }

        impl OpKind {
            /// All kinds.
            pub const ALL: &'static [OpKind] = &[$(OpKind::$variant,)*];

            /// Name used in reports and in `--mix`.
            pub fn name(self) -> &'static str {
                match self { $(OpKind::$variant => $name,)* }
            }

            fn weights(self) -> (u32, u32) {
                match self { $(OpKind::$variant => ($keyed, $unique),)* }
            }
        }
    };
}

op_kinds! {
    /// `insertOne` of an own document.
    Insert = "insert", 8, 6;
    /// `insertMany`, ordered, now and then with a duplicate in the middle.
    InsertManyOrdered = "insert_many_ordered", 2, 2;
    /// `insertMany`, unordered, now and then with a duplicate in the middle.
    InsertManyUnordered = "insert_many_unordered", 2, 2;
    /// An insert that must fail with a duplicate key.
    DuplicateInsert = "duplicate_insert", 1, 2;
    /// `$inc` on an own or preloaded document.
    Inc = "inc", 12, 8;
    /// `$push` of a unique token.
    Push = "push", 8, 5;
    /// `$set` of the value.
    Set = "set", 8, 6;
    /// An update written as a pipeline.
    PipelineUpdate = "pipeline_update", 3, 3;
    /// An update with `upsert`, on a document that exists or not.
    Upsert = "upsert", 5, 4;
    /// `replaceOne`, sometimes with `upsert`.
    Replace = "replace", 6, 4;
    /// `deleteOne`.
    Delete = "delete", 6, 4;
    /// `deleteMany` of a group.
    DeleteMany = "delete_many", 1, 1;
    /// `findOneAndUpdate`.
    FindOneAndUpdate = "find_one_and_update", 5, 4;
    /// `findOneAndReplace`.
    FindOneAndReplace = "find_one_and_replace", 2, 2;
    /// `findOneAndDelete`.
    FindOneAndDelete = "find_one_and_delete", 1, 1;
    /// `updateMany` of a group.
    UpdateMany = "update_many", 3, 3;
    /// One `update` or `delete` command with several statements.
    Bulk = "bulk", 4, 3;
    /// `$inc` on a hot document.
    HotInc = "hot_inc", 8, 6;
    /// `$push` of a unique token, with a counter, on a hot document.
    HotPush = "hot_push", 10, 6;
    /// `findOneAndUpdate` on a hot document.
    HotFindOneAndUpdate = "hot_find_one_and_update", 3, 2;
    /// `updateMany` over all hot documents.
    HotUpdateMany = "hot_update_many", 1, 1;
    /// Two documents in one transaction.
    Transaction = "transaction", 0, 6;
    /// `updateOne` by a field that is not `_id`.
    UnkeyedUpdate = "unkeyed_update", 0, 4;
    /// `findOneAndUpdate` by a field that is not `_id`.
    UnkeyedFindOneAndUpdate = "unkeyed_find_one_and_update", 0, 4;
    /// `deleteOne` by a field that is not `_id`.
    UnkeyedDelete = "unkeyed_delete", 0, 1;
    /// A new value for the unique field.
    EmailChange = "email_change", 0, 4;
    /// Two documents swap their unique values: delete, update, insert.
    EmailSwap = "email_swap", 0, 2;
    /// `find` by `_id`.
    FindById = "find_by_id", 12, 12;
    /// `find` by `group`.
    FindByGroup = "find_by_group", 3, 3;
    /// `find` of hot documents.
    FindHot = "find_hot", 3, 2;
    /// An aggregation over a group.
    Aggregate = "aggregate", 2, 2;
}

impl OpKind {
    /// Whether it writes.
    pub fn is_write(self) -> bool {
        !matches!(self, OpKind::FindById | OpKind::FindByGroup | OpKind::FindHot | OpKind::Aggregate)
    }
}

impl fmt::Display for OpKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

impl FromStr for OpKind {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = OpKind::ALL.iter().copied().find(|kind| kind.name() == text);
        found.ok_or_else(|| {
            let names: Vec<_> = OpKind::ALL.iter().map(|kind| kind.name()).collect();
            anyhow::anyhow!("unknown operation {text:?}; known: {}", names.join(", "))
        })
    }
}

/// Weights of the kinds of operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix(Vec<(OpKind, u32)>);

impl Mix {
    /// The weights of a profile.
    pub fn of(profile: Profile) -> Self {
        let weight = |kind: OpKind| match profile {
            Profile::Keyed => kind.weights().0,
            Profile::Unique => kind.weights().1,
        };
        Self(OpKind::ALL.iter().map(|&kind| (kind, weight(kind))).collect())
    }

    /// Exactly these weights, all others 0.
    pub fn only(weights: &[(OpKind, u32)]) -> Self {
        Self(weights.to_vec())
    }

    /// The same with one weight changed.
    pub fn with(mut self, kind: OpKind, weight: u32) -> Self {
        self.0.retain(|(known, _)| *known != kind);
        self.0.push((kind, weight));
        self
    }

    /// The same without reads.
    pub fn writes_only(mut self) -> Self {
        self.0.retain(|(kind, _)| kind.is_write());
        self
    }

    /// Sum of the weights.
    pub fn total(&self) -> u32 {
        self.0.iter().map(|(_, weight)| weight).sum()
    }

    /// The weight of one kind.
    pub fn weight(&self, kind: OpKind) -> u32 {
        self.0.iter().find(|(known, _)| *known == kind).map_or(0, |(_, weight)| *weight)
    }

    pub(crate) fn pick(&self, rng: &mut impl Rng) -> OpKind {
        let mut left = rng.random_range(0..self.total().max(1));
        for &(kind, weight) in &self.0 {
            if left < weight {
                return kind;
            }
            left -= weight;
        }
        OpKind::FindById
    }
}

impl FromStr for Mix {
    type Err = anyhow::Error;

    /// `inc=10,push=5`: exactly these weights.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut mix = Self(Vec::new());
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
            mix = mix.with(name.trim().parse()?, weight.trim().parse()?);
        }
        Ok(mix)
    }
}
