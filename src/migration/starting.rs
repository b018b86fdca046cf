//! From a name to both clusters being written: create, preflight, start, pause.

use std::sync::Arc;
use std::time::Duration;

use super::asked::checked;
use super::backfill;
use super::context::Context;
use super::control::{
    ControlError, Finding, NamespaceSpec, NewMigration, Phase, PreflightReport, Refusal, Severity,
};
use super::engine::{Engine, no_new, unavailable};
use super::patterns::{by_name, clash, resolve};
use super::preflight::{preflight, single_step_reasons};
use super::prepare::{self, Wanted};
use super::ranges;
use super::running::Running;
use super::sharding::key_of;
use super::stored::Stored;
use super::stream::ChangeStream;
use crate::clock::timeout;
use crate::converge::barriers::lay_out;
use crate::converge::read::time_now;
use crate::model::side::{PerSide, Side};
use crate::state::checkpoint;
use crate::state::record::{AuthorityRecord, StoredShardKey};
use crate::state::table::MigrationRoute;

/// How long a start waits for writes that began before it.
const EARLIER_WRITES: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);

fn to_control(error: impl std::fmt::Display) -> ControlError {
    unavailable(error.to_string())
}

/// A finding as one of the reasons of a refusal: where, what, and after a semicolon what to do about it.
fn in_words(finding: &Finding) -> String {
    let parts = [&finding.namespace, &finding.message].into_iter().filter(|part| !part.is_empty());
    let what = parts.map(String::as_str).collect::<Vec<_>>().join(": ");
    let remedy = if finding.remedy.is_empty() { String::new() } else { format!("; {}", finding.remedy) };
    format!("{}: {what}{remedy}", finding.code)
}

/// Why a migration in `phase` is neither paused nor resumed, and what would fit.
fn no_pause_in(phase: Phase, paused: bool) -> String {
    let wanted =
        if paused { "only one that copies or follows can be paused" } else { "there is nothing to resume" };
    let fitting = match phase {
        Phase::Created => "; start begins it",
        Phase::Preparing => "; its start is not finished: call start again, or abort",
        Phase::Failed => "; resume goes on with it, abort ends it",
        _ => "",
    };
    format!("it is {phase}; {wanted}{fitting}")
}

/// By what both clusters have sharded the collections.
async fn shard_keys(context: &Context) -> Result<PerSide<Vec<StoredShardKey>>, String> {
    let mut keys: PerSide<Vec<StoredShardKey>> = PerSide::default();
    for side in Side::BOTH {
        for namespace in &context.scope.known() {
            let found = key_of(&**context.clusters.get(side), namespace).await?;
            let stored =
                found.map(|key| StoredShardKey { namespace: namespace.as_str().to_owned(), key: key.into() });
            keys.get_mut(side).extend(stored);
        }
    }
    Ok(keys)
}

impl Engine {
    pub(super) async fn create_migration(&self, new: NewMigration) -> Result<Arc<Running>, ControlError> {
        let (namespaces, ranges) = checked(&new)?;
        if self.environment.clusters.is_none() {
            return Err(no_new());
        }
        self.must_be_ready()?;
        self.stored_read().await?;
        let mut migrations = self.migrations.lock().await;
        if let Some(running) = migrations.get(&new.name) {
            let (same, phase) = {
                let stored = running.stored.lock();
                (stored.namespaces == new.namespaces && stored.ranges == ranges, stored.phase)
            };
            if phase.is_over() {
                let detail = format!("migration {} is {phase}; give the new one another name", new.name);
                return Err(ControlError::new(Refusal::Conflict, "name-used", detail));
            }
            return if same {
                Ok(Arc::clone(running))
            } else {
                Err(ControlError::new(
                    Refusal::Conflict,
                    "name-taken",
                    "a migration of that name moves other namespaces, or has other ranges",
                ))
            };
        }
        for (name, other) in migrations.iter() {
            let other = other.stored.lock();
            let claimed =
                |spec: &&NamespaceSpec| namespaces.iter().any(|ns| clash(ns.as_str(), &spec.namespace));
            let taken = other.namespaces.iter().find(claimed);
            if let Some(taken) = taken.filter(|_| other.phase != Phase::Aborted) {
                let detail = format!("{} is already part of migration {name}", taken.namespace);
                return Err(ControlError::new(Refusal::Conflict, "namespace-taken", detail));
            }
        }
        let created_at = self.environment.clock.wall_millis();
        let stored = Stored { ranges, ..Stored::new(new.name.clone(), new.namespaces, created_at) };
        stored.store(self.environment.state()?).await.map_err(to_control)?;
        let running = Running::new(stored, &self.environment);
        migrations.insert(new.name, Arc::clone(&running));
        Ok(running)
    }

    pub(super) fn must_be_ready(&self) -> Result<(), ControlError> {
        let reasons = self.not_ready_now();
        if reasons.is_empty() {
            return Ok(());
        }
        Err(unavailable(reasons.join("; ")).because(reasons))
    }

    pub(super) async fn look_before(&self, running: &Running) -> Result<PreflightReport, ControlError> {
        self.look(running).await.map(|(report, _)| report)
    }

    /// What preflight finds, and what it looked at.
    async fn look(&self, running: &Running) -> Result<(PreflightReport, Vec<Wanted>), ControlError> {
        let clusters = self.environment.clusters.as_ref().ok_or_else(no_new)?;
        let specs = running.stored.lock().namespaces.clone();
        let (report, wanted) = match resolve(&*clusters.old, &specs).await {
            Ok((wanted, patterns)) => (preflight(clusters, &wanted).await.with_patterns(&patterns), wanted),
            Err(why) => {
                let wanted = by_name(&specs);
                (preflight(clusters, &wanted).await.without_patterns(why), wanted)
            }
        };
        let moving: Vec<_> = wanted.iter().map(|wanted| wanted.namespace.clone()).collect();
        let report = report.with_pipelines(&self.environment.registry.pipelines.seen(), &moving);
        match self.clients_log_in.get() {
            Some(()) => Ok((report.with_users(clusters).await, wanted)),
            None => Ok((report, wanted)),
        }
    }

    /// Starts while nobody changes its collections: what such a change has done is found by the start, or it comes
    /// after it and is done on both clusters.
    pub(super) async fn start_undisturbed(&self, running: &Arc<Running>) -> Result<(), ControlError> {
        let (name, phase) = {
            let stored = running.stored.lock();
            (stored.name.clone(), stored.phase)
        };
        if matches!(phase, Phase::Created | Phase::Preparing) {
            let ddl = &self.environment.registry.ddl;
            ddl.close(&name, running.specs());
            let drained = timeout(&*self.environment.clock, EARLIER_WRITES, ddl.drained(&name));
            if running.aborting.unless_asked(drained).await?.is_err() {
                let what = ddl.in_the_way(&name).unwrap_or_else(|| "a change of its collections".into());
                let detail =
                    format!("{what} began before the start and has not ended yet: start again when it has");
                return Err(unavailable(detail));
            }
        }
        self.start_migration(running).await
    }

    /// Changes of its collections wait as long as its start is not finished, and no longer.
    pub(super) fn keep_ddl(&self, running: &Running) {
        let (name, is_preparing) = {
            let stored = running.stored.lock();
            (stored.name.clone(), stored.phase == Phase::Preparing)
        };
        if is_preparing {
            self.environment.registry.ddl.close(&name, running.specs());
        } else {
            self.environment.registry.ddl.open(&name);
        }
    }

    /// Everything up to the first mirror write; harmless to repeat after a crash anywhere in it.
    pub(super) async fn start_migration(&self, running: &Arc<Running>) -> Result<(), ControlError> {
        let phase = running.stored.lock().phase;
        if matches!(phase, Phase::Copying | Phase::CatchingUp | Phase::Synced) {
            // A start that was cut off may have left the records behind.
            return running.parts().ok_or_else(no_new)?.raise_to_mirroring().await;
        }
        if !matches!(phase, Phase::Created | Phase::Preparing) {
            let detail = format!("it is {phase}; only a migration that is created can start");
            return Err(ControlError::new(Refusal::Conflict, "wrong-phase", detail));
        }
        running.aborting.unless_asked(self.promise()).await??;
        let identities = self.identities().await?;
        if phase == Phase::Created {
            let wanted = running.aborting.unless_asked(self.pass_preflight(running)).await??;
            self.plan_new(running, &wanted).await?;
        }
        if running.parts().is_none() {
            self.equip(running);
        }
        let context = running.parts().ok_or_else(no_new)?;
        let plan = running.stored.lock().created.clone();
        running.aborting.check()?;
        prepare::prepare(&context.clusters, &plan).await.map_err(to_control)?;
        let names: Vec<String> =
            context.scope.known().iter().map(|namespace| namespace.as_str().to_owned()).collect();
        let patterns: Vec<String> =
            context.scope.patterns().iter().map(|pattern| pattern.as_str().to_owned()).collect();
        let shard_keys = running.aborting.unless_asked(shard_keys(&context)).await?.map_err(unavailable)?;
        let (route_keys, ranges) = (running.route_keys(), running.key_ranges());
        for side in Side::BOTH {
            lay_out(&**context.clusters.get(side)).await.map_err(unavailable)?;
            let record = AuthorityRecord {
                shard_keys: shard_keys.clone(),
                patterns: patterns.clone(),
                ..AuthorityRecord::begin(&context.name, side, identities.clone(), names.clone())
            }
            .routed_by(route_keys.clone())
            .with_ranges(ranges.all().to_vec());
            context.authorities.get(side).create(&record).await.map_err(to_control)?;
            context.beat(side).await.map_err(to_control)?;
        }
        running.aborting.unless_asked(self.wait_for_earlier_writes(&context)).await??;
        self.open_streams(running, &context).await?;
        running.admit_latecomers(&context).await?;
        running.aborting.unless_asked(self.cut_ranges(running, &context)).await??;
        running.bypass.load(&context.records).await.map_err(to_control)?;
        self.begin_mirroring(running, &context).await
    }

    async fn pass_preflight(&self, running: &Running) -> Result<Vec<Wanted>, ControlError> {
        let (report, wanted) = self.look(running).await?;
        let reasons: Vec<String> = report
            .findings
            .iter()
            .filter(|finding| finding.severity == Severity::Refused)
            .map(in_words)
            .collect();
        if !report.ok {
            let detail = "preflight refuses the start; see reasons".to_owned();
            return Err(ControlError::new(Refusal::Conflict, "preflight-refused", detail).because(reasons));
        }
        running.stored.lock().single_step = single_step_reasons(&report);
        Ok(wanted)
    }

    /// Writes that began before the migration was known take no part in fences: none may be left.
    async fn wait_for_earlier_writes(&self, context: &Context) -> Result<(), ControlError> {
        context.publish(|_| ());
        let give_up = context.clock.now() + EARLIER_WRITES;
        while context.routing.anybody_goes_by_older() {
            if context.clock.now() >= give_up {
                return Err(unavailable(
                    "writes that began before the start have not ended yet; try again".into(),
                ));
            }
            context.clock.sleep(LOOK).await;
        }
        Ok(())
    }

    /// Stores what is to be made on new, and by that what patterns name: from here on it is fixed.
    async fn plan_new(&self, running: &Running, wanted: &[Wanted]) -> Result<(), ControlError> {
        let clusters = self.environment.clusters.as_ref().ok_or_else(no_new)?;
        let plan = running.aborting.unless_asked(prepare::plan(clusters, wanted)).await?;
        let plan = plan.map_err(to_control)?;
        let now = self.environment.clock.wall_millis();
        let planned = running.change_stored(self.environment.state()?, |stored| {
            stored.created.clone_from(&plan);
            stored.phase = Phase::Preparing;
            stored.started_at = Some(now);
        });
        planned.await.map_err(to_control)
    }

    /// Both streams' beginnings, stored before the first mirror write; and the time that the copy reads after.
    async fn open_streams(&self, running: &Running, context: &Context) -> Result<(), ControlError> {
        for side in Side::BOTH {
            let known = checkpoint::load(&context.records, &context.name, side).await.map_err(to_control)?;
            if known.is_some() {
                continue;
            }
            let cluster = context.clusters.get(side);
            let (stream, batch) =
                ChangeStream::open(cluster, &context.scope, None).await.map_err(to_control)?;
            let at = context.clock.wall_millis();
            checkpoint::store(&context.records, &context.name, side, &batch.token, at)
                .await
                .map_err(to_control)?;
            stream.close().await;
        }
        if running.stored.lock().start.is_none() {
            let start = time_now(&*context.clusters.old).await.map_err(unavailable)?;
            running.stored.lock().start = Some(start);
        }
        Ok(())
    }

    async fn cut_ranges(&self, running: &Running, context: &Context) -> Result<(), ControlError> {
        let known = ranges::load(&context.records, &context.name).await.map_err(to_control)?;
        let (mut documents, mut bytes) = (0, 0);
        for namespace in &context.scope.known() {
            let size = ranges::size_of(&*context.clusters.old, namespace).await.map_err(unavailable)?;
            documents += size.documents;
            bytes += size.bytes;
            if ranges::is_cut(&known, namespace) {
                continue;
            }
            let parallel = backfill::parallel(&self.environment.settings, &*context.clusters.new);
            let parallel = parallel.await.map_err(unavailable)?;
            let cut = ranges::split(&*context.clusters.old, namespace, size, parallel)
                .await
                .map_err(unavailable)?;
            ranges::store_all(&context.records, ranges::RANGES, &context.name, &cut)
                .await
                .map_err(to_control)?;
        }
        let mut stored = running.stored.lock();
        stored.total_documents = i64::try_from(documents).unwrap_or(i64::MAX);
        stored.total_bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        Ok(())
    }

    /// Stored first: what is stored as copying and not yet mirrored is raised by whoever finds it, while records
    /// that mirror would let nobody follow the streams after a restart.
    async fn begin_mirroring(&self, running: &Arc<Running>, context: &Context) -> Result<(), ControlError> {
        running.stored.lock().phase = Phase::Copying;
        let written = async {
            running.persist(&context.records).await.map_err(to_control)?;
            context.raise_to_mirroring().await
        };
        if let Err(error) = written.await {
            running.stored.lock().phase = Phase::Preparing;
            let detail = format!("{}; the start is not finished: call start again, or abort", error.detail);
            return Err(ControlError { detail, ..error });
        }
        running.spawn_all(&self.environment);
        Ok(())
    }

    pub(super) async fn set_pause(&self, running: &Running, paused: bool) -> Result<(), ControlError> {
        let phase = running.stored.lock().phase;
        if !paused && running.parts().and_then(|it| it.route()).is_some_and(|it| !it.returning.is_empty()) {
            let detail = "what only new has acknowledged is yet to be brought back to old; see unreturned";
            return Err(ControlError::new(Refusal::Conflict, "bringing-back", detail));
        }
        if phase == Phase::Failed && !paused {
            return self.begin_anew(running).await;
        }
        if !matches!(phase, Phase::Copying | Phase::CatchingUp | Phase::Synced) {
            let detail = no_pause_in(phase, paused);
            return Err(ControlError::new(Refusal::Conflict, "wrong-phase", detail));
        }
        let context = running.parts().ok_or_else(no_new)?;
        let serves = |route: MigrationRoute| !route.owned_by_new.is_empty() || !route.reads_on_new.is_empty();
        if paused && context.route().is_some_and(serves) {
            let detail = "reads or writes are on new; following cannot be paused then. Roll back first";
            return Err(ControlError::new(Refusal::Conflict, "not-while-serving", detail));
        }
        running.set_paused(paused);
        running.persist(&context.records).await.map_err(to_control)
    }
}
