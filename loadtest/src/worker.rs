//! One writer: it does one operation at a time and knows what each must lead to.

use std::sync::Arc;
use std::time::Instant;

use bson::{Bson, Document};
use mongodb::{Client, ClientSession, Collection};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;

use crate::keys::{Key, mix64};
use crate::latency::{Ending, Sample};
use crate::load::{Order, Shared};
use crate::ops::OpKind;

mod bulk;
mod groups;
mod hot;
mod inserts;
mod mutation;
pub(crate) mod pacer;
mod pick;
mod reads;
mod settle;
mod single;
mod transaction;
mod unique;

/// How an operation ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    ending: Ending,
    /// Writes acknowledged.
    writes: u64,
}

impl Done {
    const READ: Done = Done { ending: Ending::Good, writes: 0 };
    const ERROR: Done = Done { ending: Ending::Error, writes: 0 };
}

/// One writer.
pub(crate) struct Worker {
    id: usize,
    shared: Arc<Shared>,
    client: Client,
    coll: Collection<Document>,
    rng: StdRng,
    /// Numbers of the own documents in use.
    slots: Vec<u32>,
    next_slot: u32,
    /// Hot counters that this worker raised, for its reads.
    hot_incs: Vec<i64>,
    bulk_session: Option<Arc<tokio::sync::Mutex<ClientSession>>>,
    /// Start from which the operation under way is measured.
    intended: Instant,
}

impl Worker {
    pub(crate) fn new(id: usize, shared: Arc<Shared>, client: Client) -> Self {
        let config = &shared.config;
        let coll = client.database(&config.database).collection(&config.collection);
        let seed = mix64(config.seed ^ mix64(u64::try_from(id).unwrap_or_default()));
        let own = u32::try_from(config.own_keys_per_worker).unwrap_or(u32::MAX);
        Self {
            id,
            client,
            coll,
            rng: StdRng::seed_from_u64(seed),
            slots: (0..own).collect(),
            next_slot: own,
            hot_incs: vec![0; config.hot_keys],
            bulk_session: None,
            intended: Instant::now(),
            shared,
        }
    }

    /// Works until told to stop.
    pub(crate) async fn run(mut self, mut orders: watch::Receiver<Order>) -> Self {
        loop {
            let order = orders.wait_for(|order| *order != Order::Rest).await.map(|order| *order);
            if !matches!(order, Ok(Order::Work)) {
                return self;
            }
            let intended = tokio::select! {
                biased;
                _ = orders.wait_for(|order| *order != Order::Work) => continue,
                intended = self.shared.pacer.next() => intended,
            };
            self.intended = intended;
            self.shared.busy.lock()[self.id] = Some(intended);
            // Whoever pauses gives the order first and then looks who is busy.
            if *orders.borrow() != Order::Work {
                self.shared.busy.lock()[self.id] = None;
                continue;
            }
            let kind = self.shared.mix.pick(&mut self.rng);
            let (kind, done) = Box::pin(self.operation(kind)).await;
            self.record(kind, done);
            self.shared.busy.lock()[self.id] = None;
            if done.ending == Ending::Error {
                tokio::time::sleep(std::time::Duration::from_millis(self.rng.random_range(5..30))).await;
            }
        }
    }

    /// Does an operation of this kind, or another where no document suits it,
    /// within the time allowed. What is given up stays in the ledger as unknown.
    async fn operation(&mut self, kind: OpKind) -> (OpKind, Done) {
        let limit = self.shared.config.operation_timeout;
        let attempt = async {
            match self.dispatch(kind).await {
                Some(done) => (kind, done),
                None => match self.insert().await {
                    Some(done) => (OpKind::Insert, done),
                    None => (OpKind::HotInc, self.hot_inc().await),
                },
            }
        };
        match tokio::time::timeout(limit, attempt).await {
            Ok(done) => done,
            Err(_) => {
                self.note(kind, &mongodb::error::Error::custom(format!("no answer within {limit:?}")));
                (kind, Done::ERROR)
            }
        }
    }

    /// `None` if no document suits.
    async fn dispatch(&mut self, kind: OpKind) -> Option<Done> {
        match kind {
            OpKind::Insert => self.insert().await,
            OpKind::InsertManyOrdered => self.insert_many(true).await,
            OpKind::InsertManyUnordered => self.insert_many(false).await,
            OpKind::DuplicateInsert => self.duplicate_insert().await,
            OpKind::Inc | OpKind::Push | OpKind::Set | OpKind::PipelineUpdate => self.update_one(kind).await,
            OpKind::Upsert => self.upsert().await,
            OpKind::Replace => self.replace().await,
            OpKind::Delete => self.delete().await,
            OpKind::DeleteMany => self.delete_many().await,
            OpKind::FindOneAndUpdate => self.find_one_and_update(kind).await,
            OpKind::FindOneAndReplace => self.find_one_and_replace().await,
            OpKind::FindOneAndDelete => self.find_one_and_delete().await,
            OpKind::UpdateMany => self.update_many().await,
            OpKind::Bulk => self.bulk().await,
            OpKind::HotInc => Some(self.hot_inc().await),
            OpKind::HotPush => Some(self.hot_push().await),
            OpKind::HotFindOneAndUpdate => Some(self.hot_find_one_and_update().await),
            OpKind::HotUpdateMany => Some(self.hot_update_many().await),
            OpKind::Transaction => self.transaction().await,
            OpKind::UnkeyedUpdate | OpKind::EmailChange => self.update_one(kind).await,
            OpKind::UnkeyedFindOneAndUpdate => self.find_one_and_update(kind).await,
            OpKind::UnkeyedDelete => self.unkeyed_delete().await,
            OpKind::EmailSwap => self.email_swap().await,
            OpKind::FindById => Some(self.find_by_id().await),
            OpKind::FindByGroup => self.find_by_group().await,
            OpKind::FindHot => Some(self.find_hot().await),
            OpKind::Aggregate => self.aggregate().await,
        }
    }

    fn record(&mut self, kind: OpKind, done: Done) {
        let Done { ending, writes } = done;
        let sample =
            Sample { worker: self.id, kind, intended: self.intended, end: Instant::now(), ending, writes };
        self.shared.recorder.lock().record(sample);
    }

    /// Records a part of a longer operation and measures the rest from here.
    fn record_part(&mut self, kind: OpKind, done: Done) {
        self.record(kind, done);
        self.intended = Instant::now();
    }

    fn note(&self, kind: OpKind, error: &mongodb::error::Error) {
        let at = self.shared.start.elapsed().as_secs_f64();
        self.shared.errors.lock().note(at, kind, error, self.shared.config.keep_examples);
    }

    fn id_of(&self, key: Key) -> Bson {
        self.shared.builder.space.id(key)
    }

    /// The filter that names one document.
    fn named(&self, key: Key) -> Document {
        self.shared.builder.name(key)
    }
}
