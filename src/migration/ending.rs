//! The ends of a migration: complete, abort, and dropping what old still has.

use std::sync::Arc;
use std::time::Duration;

use bson::{doc, rawdoc};
use futures::FutureExt;

use super::context::Context;
use super::control::{Complete, ControlError, Phase};
use super::engine::{Engine, no_new, unavailable};
use super::patterns::left_out;
use super::pins::shown;
use super::prepare::{drop_created, restore_ttl};
use super::ramping::conflict;
use super::running::Running;
use crate::cluster::command::Request;
use crate::converge::active::Registry;
use crate::converge::read::ask;
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::model::slots::SlotSet;
use crate::model::span::spoken;
use crate::policy::retry::OLDEST_RETRY;
use crate::state::checkpoint::CHECKPOINTS;
use crate::state::inflight::Work;
use crate::state::parking::PARKED;
use crate::state::record::{AUTHORITY, DATABASE};

use super::ranges::RANGES;
use super::verify::VERIFIED;

/// Pinned keys that a refusal names.
const NAMED: usize = 10;
const RETRY: Duration = Duration::from_millis(500);

impl Engine {
    pub(super) async fn complete_migration(
        &self,
        running: &Arc<Running>,
        how: &Complete,
    ) -> Result<(), ControlError> {
        let phase = running.stored.lock().phase;
        if phase == Phase::Completed {
            return Ok(());
        }
        let context = running
            .parts()
            .ok_or_else(|| conflict("wrong-phase", format!("it is {phase}; start it first")))?;
        let route = context.route().ok_or_else(no_new)?;
        if route.phase == Phase::Completed {
            // An earlier call decided that, and was cut off.
            return self.finish_end(running, &context, Phase::Completed).await;
        }
        must_not_be_pinned(&context)?;
        if route.owned_by_new != SlotSet::ALL || route.reads_on_new != SlotSet::ALL {
            return Err(conflict("not-all-on-new", "raise reads and writes to 100 first"));
        }
        unadmitted(&context).await?;
        let lacking = self.lacking_to_complete(running);
        let forced = how.force && how.reason.as_ref().is_some_and(|reason| !reason.trim().is_empty());
        if let Some((code, first)) = lacking.first().filter(|_| !forced) {
            let reasons: Vec<String> = lacking.iter().map(|(_, why)| why.clone()).collect();
            let more = if reasons.len() > 1 { " (and more; see reasons)" } else { "" };
            let detail = format!("{first}{more}. To complete it nevertheless, use force and give a reason");
            return Err(conflict(code, detail).because(reasons));
        }
        decide_completed(&context).await?;
        self.finish_end(running, &context, Phase::Completed).await
    }

    /// What only force completes without, each with its code.
    pub(super) fn lacking_to_complete(&self, running: &Running) -> Vec<(&'static str, String)> {
        let stored = running.stored.lock();
        if stored.phase.is_over() {
            return Vec::new();
        }
        let hold = self.environment.settings.hold;
        let since = stored.all_on_new_at.map(|since| self.environment.clock.wall_millis() - since);
        let is_over =
            since.is_some_and(|since| u128::try_from(since).is_ok_and(|held| held >= hold.as_millis()));
        let held =
            (!is_over).then(|| ("hold-period", format!("the hold period of {} is not over", spoken(hold))));
        let unverified = running.unverified(&stored).map(|why| ("not-verified", why));
        let distrusted = running.distrusted(&stored).into_iter().map(|why| ("invariant-violated", why));
        held.into_iter().chain(unverified).chain(distrusted).collect()
    }

    /// Puts back and removes what the migration needed, however often the process is restarted meanwhile.
    pub(super) fn spawn_clean_up(&self, running: &Arc<Running>, context: &Arc<Context>, version: u64) {
        let (running, context) = (Arc::clone(running), Arc::clone(context));
        let clean_up = async move {
            let kinds = [Work::Write, Work::Transaction];
            context.inflight.drained(&context.name, &SlotSet::ALL, version, &kinds).await;
            running.token.cancel();
            context.inflight.drained(&context.name, &SlotSet::ALL, version, &[Work::Converge]).await;
            while let Err(why) = clean_up_once(&running, &context).await {
                tracing::warn!(why, "the clean-up goes on");
                context.clock.sleep(RETRY).await;
            }
        };
        self.environment.spawn.spawn("clean-up", clean_up.boxed());
    }

    pub(super) async fn abort_migration(&self, running: &Arc<Running>) -> Result<(), ControlError> {
        let phase = running.stored.lock().phase;
        if phase == Phase::Aborted {
            return Ok(());
        }
        if phase == Phase::Completed {
            return Err(conflict(
                "wrong-phase",
                "it is completed; new serves, and there is nothing to abort",
            ));
        }
        let Some(context) = running.parts() else {
            let state = self.environment.state()?;
            let stored = running.change_stored(state, |stored| stored.phase = Phase::Aborted).await;
            return stored.map_err(|error| unavailable(error.to_string()));
        };
        if context.route().is_some_and(|route| !route.owned_by_new.is_empty()) {
            return Err(conflict("writes-on-new", "new is the authority of some documents; roll back first"));
        }
        // Old's record is the truth while it owns everything; new hears of it later.
        let old = &context.authorities.old;
        if old.known().is_some() {
            let fields = doc! { "phase": Phase::Aborted.as_str(), "reads_on_new": super::in_force::slots(&SlotSet::EMPTY) };
            let raised = old.raise(old.known().map_or(0, |record| record.epoch), fields).await;
            if !raised.map_err(|error| unavailable(error.to_string()))? {
                return Err(unavailable("the routing changed meanwhile; try again".into()));
            }
        }
        self.finish_end(running, &context, Phase::Aborted).await
    }

    /// Routes everything to old as if the migration had never been. Where writes had moved, their retries may
    /// still come: until they cannot any more, it is remembered what new has executed.
    pub(super) fn leave_to_old(&self, context: &Arc<Context>) -> u64 {
        let moved = context.route().is_some_and(|route| !route.moves.is_empty());
        let forget = |context: &Context, registry: &Registry| {
            registry.remove(&context.name);
            context.routing.publish(|table| table.remove(&context.name))
        };
        let registry = Arc::clone(&self.environment.registry);
        if !moved {
            return forget(context, &registry);
        }
        // What comes into being from now on is none of its business.
        let version = context.publish(|route| route.patterns = [].into()).unwrap_or(0);
        let context = Arc::clone(context);
        let later = async move {
            context.clock.sleep(OLDEST_RETRY).await;
            forget(&context, &registry);
        };
        self.environment.spawn.spawn("retries", later.boxed());
        version
    }

    pub(super) async fn drop_old_copies(&self, running: &Running) -> Result<(), ControlError> {
        if running.stored.lock().phase != Phase::Completed {
            return Err(conflict("wrong-phase", "only a completed migration's old copies can be dropped"));
        }
        let context = running.parts().ok_or_else(no_new)?;
        for namespace in &context.scope.known() {
            let body = rawdoc! { "drop": namespace.collection(), "writeConcern": { "w": "majority" } };
            let request = Request::new(namespace.database(), body);
            match ask(&*context.clusters.old, request).await {
                Err(why) if !why.contains("ns not found") => return Err(unavailable(why)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// As far as can be told before its turn has come.
pub(super) fn may_be_aborted(running: &Running) -> bool {
    let route = running.parts().and_then(|context| context.route());
    !running.stored.lock().phase.is_over() && route.is_none_or(|route| route.owned_by_new.is_empty())
}

/// How a call of `complete` reads in the audit: with the reason given, and with what it was forced past.
pub(super) fn completion(how: &Complete, lacking: &[String]) -> String {
    let mut what = "complete".to_owned();
    if let Some(reason) = how.reason.as_deref().map(str::trim).filter(|reason| !reason.is_empty()) {
        what.push(' ');
        what.push_str(reason);
    }
    if how.force {
        let past =
            if lacking.is_empty() { String::new() } else { format!(", although: {}", lacking.join("; ")) };
        what.push_str(&format!(" (force{past})"));
    }
    what
}

/// New owns everything, so its record decides; while that is not changed nothing has. Old's follows.
async fn decide_completed(context: &Context) -> Result<(), ControlError> {
    let fields = doc! { "phase": Phase::Completed.as_str() };
    context.level_epochs().await?;
    let from = context.epoch();
    let raised = context.authorities.new.raise(from, fields.clone()).await;
    let raised = raised.map_err(|error| {
        unavailable(format!("new: {error}; its record decides whether it is completed: call complete again"))
    })?;
    if !raised {
        return Err(unavailable("another process changed the routing meanwhile; try again".into()));
    }
    if let Err(error) = context.authorities.old.catch_up(from + 1, fields).await {
        tracing::warn!(migration = %context.name, %error, "completed; old's record has not heard of it");
    }
    Ok(())
}

/// With keys that stay on old, not everything is on new, whatever the percentages say.
fn must_not_be_pinned(context: &Context) -> Result<(), ControlError> {
    let pins = context.pins().only_to(Side::Old);
    let keys: Vec<String> = pins.all().iter().map(|pin| shown(&pin.held)).collect();
    if keys.is_empty() {
        return Ok(());
    }
    let (first, more) = keys.split_at(keys.len().min(NAMED));
    let more = if more.is_empty() { String::new() } else { format!(" and {} more (see pins)", more.len()) };
    let detail = format!("pinned to old: {}{more}; unpin them, or pin them to new", first.join(", "));
    Err(conflict("pinned-to-old", detail).because(keys))
}

/// From its completion on, all that the patterns name is looked for on new: nothing may be left behind.
async fn unadmitted(context: &Context) -> Result<(), ControlError> {
    let left = left_out(context).await.map_err(unavailable)?;
    if left.is_empty() {
        return Ok(());
    }
    let left: Vec<&str> = left.iter().map(Namespace::as_str).collect();
    let detail = format!(
        "a pattern of this migration names {}, which did not become part of it and is on old only: drop it there, \
         or write to it through the proxy so that it becomes part",
        left.join(", ")
    );
    Err(conflict("left-out", detail))
}

async fn clean_up_once(running: &Running, context: &Context) -> Result<(), String> {
    let (phase, created) = {
        let stored = running.stored.lock();
        (stored.phase, stored.created.clone())
    };
    if phase == Phase::Completed {
        restore_ttl(&context.clusters.new, &created).await?;
        if let Err(why) = context.level_epochs().await {
            // Old may have been switched off for good: new's record is the newer one, and decides.
            tracing::warn!(migration = %context.name, %why, "old's record may not say that it is completed");
        }
    } else {
        restore_ttl(&context.clusters.old, &created).await?;
        context.sessions.new.settle().await?;
        drop_created(&context.clusters.new, &created).await?;
        for cluster in [&context.clusters.new, &context.clusters.old] {
            let body = rawdoc! {
                "delete": AUTHORITY, "deletes": [{ "q": { "_id": &*context.name }, "limit": 1 }],
                "writeConcern": { "w": "majority" },
            };
            ask(&**cluster, Request::new(DATABASE, body)).await?;
        }
    }
    forget_progress(context).await;
    let stored = running.change_stored(&context.records, |stored| stored.cleaned = true).await;
    stored.map_err(|error| error.to_string())
}

/// What was stored to go on after a restart is of no use any more.
async fn forget_progress(context: &Context) {
    for collection in [CHECKPOINTS, RANGES, VERIFIED, PARKED] {
        let filter = rawdoc! { "migration": &*context.name };
        if let Err(error) = context.records.remove(DATABASE, collection, filter).await {
            tracing::warn!(collection, %error, "left behind");
        }
    }
}
