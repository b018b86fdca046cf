//! Names what only new may have acknowledged of what old has taken back.

use std::time::Duration;

use super::list::{self, Entry, NAMED};
use super::taking::Taken;
use super::view::{UnreturnedState, UnreturnedView};
use crate::clock::timeout;
use crate::migration::context::Context;
use crate::migration::engine::Engine;
use crate::migration::running::Running;
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::model::slots::SlotSet;

/// How long the names may take to be stored.
const NAMING: Duration = Duration::from_secs(20);

impl Engine {
    /// Names what only new may have acknowledged, and stores it. It is in force already: nothing here can fail it.
    pub(super) async fn name(&self, running: &Running, context: &Context, taken: &Taken, reason: &str) {
        let Taken { passed, ref slots, .. } = *taken;
        let noted = running.active.lock().as_ref().map(|active| active.unreturned.beyond(passed, slots));
        let (mut keys, all) = noted.unwrap_or_default();
        keys.extend(parked(context, slots));
        keys.sort();
        keys.dedup();
        // What an earlier process left behind was never noted here: it counts as passed once the stream has.
        let begun = context.converger.own.judged_from(Side::New);
        let mut all_named = all && begun.is_some_and(|begun| passed.is_some_and(|passed| passed >= begun));
        let named = i64::try_from(keys.len()).unwrap_or(i64::MAX);
        let unseen = |view: &UnreturnedView| view.in_the_way(&context.name).is_some();
        let before = running.stored.lock().unreturned.clone();
        let before = before.filter(|view| taken.is_more || unseen(view));
        let storing = store_names(context, keys, taken, before.is_some());
        let stored = timeout(&*self.environment.clock, NAMING, storing).await;
        if let Err(why) = stored.unwrap_or_else(|_| Err("no answer in time".into())) {
            tracing::error!(
                why,
                "what only new has is named when new is there again: it could not be stored now"
            );
            all_named = false;
        }
        let mut view = UnreturnedView {
            since: taken.returning.at,
            reason: reason.to_owned(),
            state: UnreturnedState::WaitingForNew,
            problem: None,
            named,
            all_named,
            brought_back: 0,
            on_both: 0,
            conflicts: before.as_ref().map_or(0, |view| view.conflicts),
            acknowledged: None,
        };
        if let Some(before) = before.filter(|_| taken.is_more) {
            view.named += before.named;
            view.all_named &= before.all_named;
            (view.brought_back, view.on_both) = (before.brought_back, before.on_both);
        }
        let storing = running.change_stored(&context.records, |stored| {
            stored.unreturned = Some(view.clone());
            stored.all_on_new_at = None;
        });
        if let Err(error) = storing.await {
            tracing::warn!(%error, "the rollback is in force; it could not be stored what it has named");
            running.stored.lock().unreturned = Some(view);
        }
    }
}

/// What the stream has passed because it could not be made equal.
pub(super) fn parked(context: &Context, slots: &SlotSet) -> Vec<(Namespace, Key)> {
    let Some(route) = context.route() else { return Vec::new() };
    let parked = context.parking.list().into_iter();
    let parked = parked.filter(|it| slots.meets(&route.slots_of_key(&it.namespace, &it.key)));
    parked.map(|it| (it.namespace, it.key)).collect()
}

/// `goes_on`: there is a list already of which something is still of interest.
async fn store_names(
    context: &Context,
    keys: Vec<(Namespace, Key)>,
    taken: &Taken,
    goes_on: bool,
) -> Result<(), String> {
    let entries = keys.into_iter().map(|(namespace, key)| Entry::of(namespace, key, NAMED));
    let entries: Vec<_> = entries.collect();
    let store = async {
        if !taken.is_more {
            list::clear(&context.records, &context.name, goes_on).await?;
        }
        list::store(&context.records, (&context.name, taken.returning.round()), &entries).await
    };
    store.await.map_err(|error| error.to_string())
}
