//! What the application has written on old since it took its slots back: by old's stream, and by what this process knows
//! of writes that have changed nothing there.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bson::raw::RawDocumentBuf;
use bson::{RawDocument, Timestamp};
use parking_lot::Mutex;

use crate::converge::active::Active;
use crate::converge::shards::push_clocks;
use crate::converge::witness::Witness;
use crate::migration::context::Context;
use crate::migration::stream::{Batch, ChangeStream, Event, StreamError};
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::Side;

/// How long a stream waits for an event while somebody waits for its position.
pub(super) const IMPATIENCE: Duration = Duration::from_millis(10);
const MARK_LIMIT: Duration = Duration::from_secs(10);
/// What [`Witness::sees`] answers where it has found keys that must not be brought back.
pub(super) const WRITTEN_SINCE: &str = "the application has written it on old since";

/// Judges documents that are about to be brought back.
pub(super) struct Since {
    context: Arc<Context>,
    active: Arc<Active>,
    /// Fingerprints of the keys that are of interest.
    candidates: HashSet<u128>,
    followed: tokio::sync::Mutex<Followed>,
    found: Mutex<Found>,
}

struct Followed {
    stream: Option<ChangeStream>,
    token: RawDocumentBuf,
    position: Timestamp,
    changed: HashSet<u128>,
    /// Old's stream does not reach back, or cannot be read: nobody can tell what was written.
    blind: bool,
}

/// What it has said of the keys of a chunk.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// May be brought back.
    pub(super) free: BTreeSet<Key>,
    /// Must not.
    pub(super) written: BTreeSet<Key>,
}

impl std::fmt::Debug for Since {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Since").field("candidates", &self.candidates.len()).finish_non_exhaustive()
    }
}

impl Since {
    pub(super) fn new(
        context: Arc<Context>,
        active: Arc<Active>,
        token: RawDocumentBuf,
        candidates: HashSet<u128>,
    ) -> Self {
        let position = Timestamp { time: 0, increment: 0 };
        let (stream, changed) = (None, HashSet::new());
        let followed = Followed { stream, token, position, changed, blind: false };
        Self {
            context,
            active,
            candidates,
            followed: tokio::sync::Mutex::new(followed),
            found: Mutex::default(),
        }
    }

    /// What was said since this was asked last.
    pub(super) fn take(&self) -> Found {
        std::mem::take(&mut self.found.lock())
    }

    /// Follows old's stream beyond everything that old has executed by now.
    async fn catch_up(&self, followed: &mut Followed) -> Result<(), String> {
        let now = self.context.mark(Side::Old, MARK_LIMIT).await?;
        while !followed.blind && followed.position < now {
            match self.step(followed).await {
                Ok(batch) => self.take_in(followed, &batch),
                Err(StreamError::Broken(why)) => {
                    followed.stream = None;
                    return Err(format!("old's stream: {why}"));
                }
                Err(why) => {
                    tracing::warn!(migration = %self.context.name, %why, "what was written on old is not known");
                    followed.blind = true;
                }
            }
        }
        Ok(())
    }

    async fn step(&self, followed: &mut Followed) -> Result<Batch, StreamError> {
        let old = &self.context.clusters.old;
        if let Some(stream) = &mut followed.stream {
            if let Err(why) = push_clocks(&**old).await {
                tracing::debug!(why, "the clocks of quiet shards are left to the shards");
            }
            return stream.next(IMPATIENCE).await;
        }
        let (stream, batch) = ChangeStream::open(old, &self.context.scope, Some(&followed.token)).await?;
        followed.stream = Some(stream);
        Ok(batch)
    }

    fn take_in(&self, followed: &mut Followed, batch: &Batch) {
        for event in &batch.events {
            match event {
                Event::Change { namespace, key, .. } => {
                    let fingerprint = key.fingerprint_in(namespace);
                    if self.candidates.contains(&fingerprint) {
                        followed.changed.insert(fingerprint);
                    }
                }
                Event::Marker => {}
                Event::Structural { .. } | Event::Unreadable(_) => followed.blind = true,
            }
        }
        followed.position = followed.position.max(batch.position);
        followed.token.clone_from(&batch.token);
    }
}

#[async_trait]
impl Witness for Since {
    fn watches(&self, _: &Namespace, _: &Key) -> bool {
        true
    }

    async fn sees(
        &self,
        _: Side,
        namespace: &Namespace,
        lost: Vec<(Key, Option<&RawDocument>)>,
    ) -> Result<(), String> {
        let keys: Vec<Key> = lost.into_iter().map(|(key, _)| key).collect();
        let mut followed = self.followed.lock().await;
        self.catch_up(&mut followed).await?;
        let mut found = self.found.lock();
        let mut is_free = true;
        for key in keys {
            let fingerprint = key.fingerprint_in(namespace);
            if followed.blind
                || followed.changed.contains(&fingerprint)
                || self.active.unreturned.may_be_written(fingerprint)
            {
                is_free = false;
                found.free.remove(&key);
                found.written.insert(key);
            } else {
                found.free.insert(key);
            }
        }
        if is_free { Ok(()) } else { Err(WRITTEN_SINCE.to_owned()) }
    }
}
