//! New is there again: what only new has comes back, each document unless the application has written it on old since.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bson::raw::RawDocumentBuf;
use bson::{Document, Timestamp};

use super::list::{self, BROUGHT_BACK, CONFLICT, Entry, NAMED, ON_BOTH};
use super::naming::parked;
use super::since::{IMPATIENCE, Since, WRITTEN_SINCE};
use super::view::{UnreturnedState, UnreturnedView};
use crate::converge::lanes::MOST_KEYS;
use crate::converge::shards::push_clocks;
use crate::migration::context::Context;
use crate::migration::running::Running;
use crate::migration::stream::{Batch, ChangeStream, Event, StreamError};
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::state::record::FenceState;
use crate::state::returning::Returning;

const LOOK: Duration = Duration::from_millis(500);
const RETRY: Duration = Duration::from_secs(1);
/// How often it is looked again whether a stream tells everything that did not.
const RETRY_INCOMPLETE: Duration = Duration::from_secs(30);
const MARK_LIMIT: Duration = Duration::from_secs(10);
/// More documents than this are not brought back at once.
const MOST: usize = 500_000;

type Candidates = BTreeMap<Namespace, BTreeSet<Key>>;

/// Why it does not go on.
enum Halt {
    /// Worth another try.
    Again(String),
    /// What can be brought back is; the rest nobody can tell.
    Incomplete(String),
}

impl From<String> for Halt {
    fn from(why: String) -> Self {
        Self::Again(why)
    }
}

impl Running {
    /// Brings back what only new has, whenever new is there again.
    pub(in crate::migration) async fn keep_returning(self: Arc<Self>, context: Arc<Context>) {
        loop {
            context.clock.sleep(LOOK).await;
            let Some(record) = context.authorities.old.known() else { continue };
            let Some(returning) = record.returning else {
                let is_open = |view: &UnreturnedView| view.state != UnreturnedState::Done;
                if self.stored.lock().unreturned.as_ref().is_some_and(is_open) {
                    // It has ended, and that could not be stored then.
                    self.note_returning(&context, None, None).await;
                }
                continue;
            };
            let leases = context.leases();
            if !leases.old || !leases.new {
                continue;
            }
            if let Some(view) = &mut self.stored.lock().unreturned {
                view.state = UnreturnedState::BringingBack;
            }
            let (problem, pause) = match self.return_all(&context, &returning).await {
                Ok(()) => (None, Duration::ZERO),
                Err(Halt::Again(why)) => (Some(why), RETRY),
                Err(Halt::Incomplete(why)) => (Some(why), RETRY_INCOMPLETE),
            };
            if let Some(why) = &problem {
                tracing::warn!(migration = %context.name, why, "what only new has is not back yet");
            }
            self.note_returning(&context, Some(&returning), problem).await;
            context.clock.sleep(pause).await;
        }
    }

    /// Tells how far it is.
    async fn note_returning(
        &self,
        context: &Context,
        returning: Option<&Returning>,
        problem: Option<String>,
    ) {
        let count = |state| list::count(&context.records, &context.name, state);
        let counts = futures::join!(count(BROUGHT_BACK), count(ON_BOTH), count(CONFLICT));
        let (Ok(brought_back), Ok(on_both), Ok(conflicts)) = counts else { return };
        let is_done = context.authorities.old.known().is_some_and(|record| record.returning.is_none());
        let state = if is_done { UnreturnedState::Done } else { UnreturnedState::BringingBack };
        let stored = self.change_stored(&context.records, |stored| {
            if stored.unreturned.is_none() {
                stored.unreturned = returning.map(unheard_of);
            }
            let Some(view) = &mut stored.unreturned else { return };
            view.state = state;
            view.problem.clone_from(&problem);
            (view.brought_back, view.on_both, view.conflicts) = (brought_back, on_both, conflicts);
        });
        if let Err(error) = stored.await {
            tracing::warn!(%error, "how far bringing back is could not be stored");
        }
    }

    async fn return_all(&self, context: &Arc<Context>, returning: &Returning) -> Result<(), Halt> {
        let active = self.active.lock().clone().ok_or_else(|| "it is not at work".to_owned())?;
        self.let_new_give_way(context, returning).await?;
        // What dead processes have sent has arrived, or never will.
        if let Some(why) = self.watch.problems().into_iter().next() {
            return Err(Halt::Again(why));
        }
        context.settle_sessions().await?;
        let end = context.mark(Side::New, MARK_LIMIT).await?;
        let (candidates, missed) = candidates(context, returning, end).await?;
        let fingerprints: HashSet<u128> = candidates
            .iter()
            .flat_map(|(namespace, keys)| keys.iter().map(|key| key.fingerprint_in(namespace)))
            .collect();
        tracing::info!(migration = %context.name, documents = fingerprints.len(), "bringing back what only new has");
        let token = raw(&returning.from_old)?;
        let since = Arc::new(Since::new(Arc::clone(context), Arc::clone(&active), token, fingerprints));
        for (namespace, keys) in candidates {
            let keys = keys.into_iter().collect::<Vec<_>>();
            for keys in keys.chunks(MOST_KEYS) {
                bring_back(context, returning, &namespace, keys.to_vec(), &since).await?;
            }
        }
        if let Some(why) = missed {
            return Err(Halt::Incomplete(why));
        }
        let records = &context.records;
        list::settle(records, &context.name).await.map_err(|error| format!("old: {error}"))?;
        self.end_returning(context, returning).await?;
        active.unreturned.forget_written();
        Ok(())
    }

    /// From here on no process can take new's word for the slots, whatever becomes of old's record.
    async fn let_new_give_way(&self, context: &Context, returning: &Returning) -> Result<(), Halt> {
        let _one_at_a_time = self.calls.lock().await;
        context.level_epochs().await.map_err(|error| error.detail)?;
        for giver in Side::BOTH {
            // What had moved before counts, before a part of it is taken back; once only.
            let fence = context.authorities.get(giver).known().and_then(|record| record.fence);
            let Some(fence) = fence.filter(|fence| fence.state == FenceState::Committed) else { continue };
            let gained = context.authorities.get(fence.to).gain(&fence).await;
            gained.map_err(|error| format!("{}: {error}", fence.to))?;
        }
        context.authorities.new.give_way(returning).await.map_err(|error| format!("new: {error}"))?;
        context.publish(|_| ());
        Ok(())
    }

    async fn end_returning(&self, context: &Context, returning: &Returning) -> Result<(), Halt> {
        let _one_at_a_time = self.calls.lock().await;
        if self.stored.lock().phase.is_over() {
            return Err(Halt::Again("it is over".into()));
        }
        let ended = context.authorities.old.end_returning(returning).await;
        let epoch = ended.map_err(|error| format!("old: {error}"))?;
        if let Some(record) = context.authorities.new.known() {
            context.note_company(Side::New, &record);
        }
        context.retries.lock().note_move(Side::New, epoch);
        context.publish(|_| ());
        tracing::info!(migration = %context.name, epoch, "what only new had is back");
        Ok(())
    }
}

/// One of which an earlier process could not store what it had named.
fn unheard_of(returning: &Returning) -> UnreturnedView {
    UnreturnedView {
        since: returning.at,
        reason: String::new(),
        state: UnreturnedState::BringingBack,
        problem: None,
        named: 0,
        all_named: false,
        brought_back: 0,
        on_both: 0,
        conflicts: 0,
        acknowledged: None,
    }
}

fn raw(token: &Document) -> Result<RawDocumentBuf, String> {
    RawDocumentBuf::try_from(token).map_err(|error| error.to_string())
}

/// What may be on new alone: all that its stream tells up to `end`, and what was named before. Without what has been
/// decided already. With it, why its stream does not tell everything, if it does not.
async fn candidates(
    context: &Context,
    returning: &Returning,
    end: Timestamp,
) -> Result<(Candidates, Option<String>), Halt> {
    let keys_in =
        |round, states: &'static [&str]| list::keys_in(&context.records, (&context.name, round), states);
    let old = |error: crate::state::records::RecordError| format!("old: {error}");
    let decided = keys_in(Some(returning.round()), &[BROUGHT_BACK, CONFLICT]).await.map_err(old)?;
    let decided: HashSet<_> = decided.into_iter().collect();
    let mut found = Candidates::new();
    for (namespace, key) in keys_in(None, &[NAMED, ON_BOTH]).await.map_err(old)? {
        found.entry(namespace).or_default().insert(key);
    }
    for (namespace, key) in parked(context, &returning.slots) {
        found.entry(namespace).or_default().insert(key);
    }
    let missed = match told_by_stream(context, returning, end, &mut found).await {
        Ok(()) => None,
        Err(StreamError::Broken(why)) => return Err(Halt::Again(format!("new's stream: {why}"))),
        Err(StreamError::CutOff(why) | StreamError::Lost(why)) => Some(format!(
            "what only new has cannot all be told ({why}). What was named is brought back. The rest is on new alone: \
             compare by hand and write on old what is missing, then abort"
        )),
    };
    for (namespace, keys) in &mut found {
        keys.retain(|key| !decided.contains(&(namespace.clone(), key.clone())));
    }
    Ok((found, missed))
}

async fn told_by_stream(
    context: &Context,
    returning: &Returning,
    end: Timestamp,
    found: &mut Candidates,
) -> Result<(), StreamError> {
    let token = returning.from_new.as_ref().ok_or_else(|| StreamError::CutOff("no checkpoint".into()))?;
    let token = raw(token).map_err(StreamError::CutOff)?;
    let new = &context.clusters.new;
    let (mut stream, mut batch) = ChangeStream::open(new, &context.scope, Some(&token)).await?;
    loop {
        take_in(context, returning, &batch, found)?;
        if batch.position >= end {
            stream.close().await;
            return Ok(());
        }
        if let Err(why) = push_clocks(&**new).await {
            tracing::debug!(why, "the clocks of quiet shards are left to the shards");
        }
        batch = stream.next(IMPATIENCE).await?;
    }
}

fn take_in(
    context: &Context,
    returning: &Returning,
    batch: &Batch,
    found: &mut Candidates,
) -> Result<(), StreamError> {
    let route = context.route();
    for event in &batch.events {
        match event {
            // Old has it, or it is parked.
            Event::Change { time, .. } if returning.passed.is_some_and(|passed| *time <= passed) => {}
            Event::Change { namespace, key, .. } if context.scope.contains(namespace) => {
                let slots = route.as_ref().map(|route| route.slots_of_key(namespace, key));
                if slots.is_none_or(|slots| slots.meets(&returning.slots)) {
                    found.entry(namespace.clone()).or_default().insert(key.clone());
                }
            }
            Event::Change { .. } | Event::Marker => {}
            Event::Structural { kind, namespace } => {
                return Err(StreamError::Lost(format!("{kind} of {namespace} on new")));
            }
            Event::Unreadable(what) => {
                return Err(StreamError::Lost(format!("an event without a readable key: {what}")));
            }
        }
    }
    if found.values().map(BTreeSet::len).sum::<usize>() > MOST {
        return Err(StreamError::Lost(format!("more than {MOST} documents")));
    }
    Ok(())
}

/// Brings a chunk back, and stores what became of each document that differed.
async fn bring_back(
    context: &Context,
    returning: &Returning,
    namespace: &Namespace,
    keys: Vec<Key>,
    since: &Arc<Since>,
) -> Result<(), String> {
    let converger = &context.converger;
    let words = |error: crate::converge::converger::Unavailable| error.to_string();
    let mut keys = converger.only_in(namespace, keys, &returning.slots).await.map_err(words)?;
    let mut free = BTreeSet::new();
    let mut kept: BTreeMap<Key, String> = BTreeMap::new();
    while !keys.is_empty() {
        let brought = converger.bring_back(namespace, keys.clone(), &returning.slots, since.clone()).await;
        let found = since.take();
        free.extend(found.free);
        match brought {
            Ok(report) => {
                kept.extend(report.stuck.into_iter().map(|stuck| (stuck.key, stuck.why)));
                keys.clear();
            }
            Err(why) if found.written.is_empty() => return Err(why.to_string()),
            Err(_) => {
                keys.retain(|key| !found.written.contains(key));
                kept.extend(found.written.into_iter().map(|key| (key, WRITTEN_SINCE.to_owned())));
            }
        }
    }
    let on_new = converger.on_new(namespace, kept.keys().cloned().collect()).await.map_err(words)?;
    let entry = |key, state| Entry::of(namespace.clone(), key, state);
    let brought = free.into_iter().filter(|key| !kept.contains_key(key)).map(|key| entry(key, BROUGHT_BACK));
    let conflicts = on_new.into_iter().map(|(key, document)| {
        let why = kept.get(&key).cloned().unwrap_or_default();
        Entry { kept: Some((why, document)), ..entry(key, CONFLICT) }
    });
    let entries: Vec<Entry> = brought.chain(conflicts).collect();
    let of = (&*context.name, returning.round());
    list::store(&context.records, of, &entries).await.map_err(|error| format!("old: {error}"))
}
