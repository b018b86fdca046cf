//! What a process does first: reads what both clusters say, and takes up every migration where it stood.

use std::sync::Arc;
use std::time::Duration;

use bson::rawdoc;
use futures::FutureExt;
use futures::future::{Either, select};

use super::control::{NamespaceSpec, Phase};
use super::engine::{Engine, RETRY};
use super::running::Running;
use super::stored::{Stored, known_identity};
use crate::clock::timeout;
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::state::record::{AUTHORITY, AuthorityRecord, DATABASE};

/// How long a cluster that can be done without is waited for.
const OTHERS_WORD: Duration = Duration::from_secs(2);

impl Engine {
    /// Reads what is stored and takes up every migration where it stood. Returns once routing is known.
    pub async fn begin(self: &Arc<Self>) {
        let environment = &self.environment;
        let is_alone = environment.clusters.is_none();
        let may_serve = if is_alone { self.may_serve_alone().await } else { self.read_first().await };
        if let Err(why) = may_serve {
            tracing::error!(why, "refusing to serve");
            self.fatal.send_replace(Some(why));
            return;
        }
        environment.routing.publish(|_| ());
        self.ready.send_replace(Vec::new());
        if is_alone {
            return;
        }
        let engine = Arc::clone(self);
        let telling = async move { engine.keep_telling().await };
        environment.spawn.spawn("gauges", telling.boxed());
        let engine = Arc::clone(self);
        let ramping = async move { engine.keep_ramping().await };
        environment.spawn.spawn("ramps", ramping.boxed());
        let engine = Arc::clone(self);
        let rest = async move { engine.finish_beginning().await };
        environment.spawn.spawn("begin", rest.boxed());
    }

    /// Waits until what is served where may be known: either side names every migration that has started, and owns
    /// what it says it owns.
    ///
    /// # Errors
    /// In words, when the clusters are not those that a migration began with.
    async fn read_first(&self) -> Result<(), String> {
        let (old, new) = (self.read_side(Side::Old), self.read_side(Side::New));
        futures::pin_mut!(old, new);
        match select(old, new).await {
            Either::Left((found, new)) => {
                // A cluster that names none may be the wrong one. The other can tell, if it is there.
                if !found? {
                    timeout(&*self.environment.clock, OTHERS_WORD, new).await.unwrap_or(Ok(false))?;
                }
            }
            Either::Right((found, old)) => {
                if !found? {
                    old.await?;
                }
            }
        }
        Ok(())
    }

    /// Goes on until the stored migrations and both sides have been read, then starts their tasks.
    async fn finish_beginning(self: Arc<Self>) {
        // What is stored is shown as soon as it can be read, also while one of the clusters is away.
        let Some(stored) = self.load_stored().await else { return };
        for side in Side::BOTH {
            if let Err(why) = self.read_side(side).await {
                self.fatal.send_replace(Some(why));
                return;
            }
        }
        // Side by side: one that waits for what it lacks keeps no other one waiting.
        futures::future::join_all(stored.iter().map(|running| self.go_on(running))).await;
    }

    /// Makes known what is stored of each migration.
    async fn load_stored(&self) -> Option<Vec<Arc<Running>>> {
        let state = self.environment.state().ok()?;
        let all = loop {
            match Stored::load_all(state).await {
                Ok(all) => break all,
                Err(error) => tracing::warn!(%error, "the stored migrations cannot be read yet"),
            }
            self.environment.clock.sleep(RETRY).await;
        };
        let mut loaded = Vec::new();
        for stored in all {
            let known = self.migrations.lock().await.get(&stored.name).cloned();
            if known.is_some_and(|known| known.stored.lock().created_at != 0) {
                // Made by an operator since: what was read is older than what is known.
                continue;
            }
            let running = self.take_up(&stored).await;
            running.take_up_comparisons(&stored);
            running.limiter.set(stored.throttle);
            running.set_paused(stored.paused);
            if let Some(context) = running.parts() {
                context.converger.violations.learn(&stored.violations);
            }
            *running.stored.lock() = stored;
            self.keep_ddl(&running);
            loaded.push(running);
        }
        self.environment.registry.ddl.known();
        Some(loaded)
    }

    /// Goes on with a migration where an earlier process stood.
    async fn go_on(&self, running: &Arc<Running>) {
        let stored = running.stored.lock().clone();
        let unclean = stored.phase.is_over() && !stored.cleaned && stored.started_at.is_some();
        if unclean && running.parts().is_none() {
            self.equip(running);
        }
        let Some(context) = running.parts() else { return };
        if unclean {
            self.spawn_clean_up(running, &context, 0);
        }
        if stored.phase.mirrors() {
            while let Err(error) = context.parking.load(&context.records).await {
                tracing::warn!(%error, "parked keys cannot be read yet");
                self.environment.clock.sleep(RETRY).await;
            }
            while let Err(error) = running.bypass.load(&context.records).await {
                tracing::warn!(%error, "what was written past the proxy cannot be read yet");
                self.environment.clock.sleep(RETRY).await;
            }
            context.adopt_fences().await;
        }
        if !stored.phase.is_over() && self.fit_together(running, &context).await && stored.phase.mirrors() {
            running.spawn_all(&self.environment);
            running.go_on_comparing(&self.environment);
        }
    }

    /// Reads one side's records and takes up what they name; whether they name any.
    ///
    /// # Errors
    /// In words, when the cluster is not the one that a migration began with.
    async fn read_side(&self, side: Side) -> Result<bool, String> {
        let environment = &self.environment;
        let Some(records) = environment.records.get(side) else { return Ok(false) };
        let (identity, found) = loop {
            // In this order: a migration that starts meanwhile makes its record last.
            let found = records.find(DATABASE, AUTHORITY, rawdoc! {}, 1000).await;
            let identity = known_identity(records).await;
            match (identity, found) {
                (Ok(identity), Ok(found)) => break (identity, found),
                (Err(error), _) | (_, Err(error)) => {
                    tracing::debug!(%side, %error, "its records cannot be read yet")
                }
            }
            environment.clock.sleep(RETRY).await;
        };
        if side != environment.settings.state {
            self.keeps_nothing(side).await?;
        }
        let is_any = !found.is_empty();
        for raw in found {
            let record = AuthorityRecord::read(side, &raw)?;
            if record.side != side && record.phase == Phase::Completed {
                // It was new then, and has all since. Now it may be old itself.
                continue;
            }
            record.check(side, identity.as_deref())?;
            self.check_other(side, &record).await?;
            self.adopt(side, record).await;
        }
        Ok(is_any)
    }

    /// A migration that was only made is known to nobody but the cluster that keeps it: that must not be `side`.
    ///
    /// # Errors
    /// In words, when it is.
    async fn keeps_nothing(&self, side: Side) -> Result<(), String> {
        let Some(records) = self.environment.records.get(side) else { return Ok(()) };
        let stored = loop {
            match Stored::load_all(records).await {
                Ok(stored) => break stored,
                Err(error) => tracing::debug!(%side, %error, "what it keeps cannot be read yet"),
            }
            self.environment.clock.sleep(RETRY).await;
        };
        match stored.into_iter().find(|stored| !stored.phase.is_over()) {
            None => Ok(()),
            Some(Stored { name, .. }) => Err(format!(
                "the uris of [old] and [new] are swapped, or `state` of [migration] is another than before: \
                 migration {name} is kept on {side}, not on {}",
                side.other()
            )),
        }
    }

    /// The other cluster must be the one that the record names, as far as it can be reached now.
    async fn check_other(&self, side: Side, record: &AuthorityRecord) -> Result<(), String> {
        let Some(records) = self.environment.records.get(side.other()) else { return Ok(()) };
        let asked = timeout(&*self.environment.clock, OTHERS_WORD, known_identity(records)).await;
        let Ok(Ok(identity)) = asked else { return Ok(()) };
        let expected = record.identities.get(side.other());
        if identity.as_ref() == Some(expected) {
            return Ok(());
        }
        Err(format!(
            "the {} cluster is not the one that migration {} began with; check [{}] uri",
            side.other(),
            record.name,
            side.other()
        ))
    }

    /// Makes the migration of a record known, with the lease kept from now on.
    async fn adopt(&self, side: Side, record: AuthorityRecord) {
        let named = record.namespaces.iter().chain(&record.patterns).map(NamespaceSpec::plain).collect();
        let stub = Stored::new(record.name.clone(), named, 0);
        let running =
            self.take_up(&Stored { phase: record.phase, ranges: record.ranges.clone(), ..stub }).await;
        let Some(context) = running.parts() else { return };
        // The other cluster's record may not have heard of a collection that came later.
        record
            .namespaces
            .iter()
            .filter_map(|name| Namespace::parse(name))
            .for_each(|it| context.scope.add(it));
        context.authorities.get(side).learn(record);
        context.publish(|_| ());
    }
}
