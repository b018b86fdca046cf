//! Collections that come into being while a migration runs whose pattern names them become part of it.
//!
//! Nothing need be copied: both streams have shown what the patterns name since the start, so that every
//! document of such a collection is an event. What is left is to make it on new, to write its name and shard
//! keys into both clusters' records, and to publish its route; writes through the proxy wait until then, and
//! so do the tailers with its events. Old's record hears of it first: whoever can read only new's then takes
//! the collection for one that is yet to come, and writes to it wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bson::{doc, rawdoc};

use super::aborting::is_cut_short;
use super::catalog::describe;
use super::context::Context;
use super::control::{Actor, AuditEvent, ControlError, Phase, Refusal, Severity};
use super::engine::Environment;
use super::patterns::{by_pattern, left_out};
use super::preflight::{preflight, single_step_reasons};
use super::prepare::{self, Created, Wanted, change};
use super::running::Running;
use super::sharding::key_of;
use super::stored;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::state::newcomers::{Admitted, Declined, Newcomer};
use crate::state::record::StoredShardKey;

const LIMIT: Duration = Duration::from_secs(10);
/// How long a refusal stands.
const REFUSED_FOR: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(50);
const NAMESPACE_EXISTS: i32 = 48;

fn not_now(why: impl ToString) -> Declined {
    Declined::NotNow(why.to_string())
}

impl From<ControlError> for Declined {
    fn from(error: ControlError) -> Self {
        match error.kind {
            Refusal::Unavailable => Self::NotNow(error.detail),
            // Soon it is known whether the collection is still awaited.
            _ if is_cut_short(&error) => Self::NotNow(error.detail),
            _ => Self::Refused(error.detail),
        }
    }
}

/// What was answered last of each collection, and when.
type Answers = BTreeMap<Namespace, (Duration, Admitted)>;

impl Running {
    /// Answers whoever meets a collection that is to become part of this migration.
    pub(super) async fn admit_newcomers(
        self: Arc<Self>,
        environment: Arc<Environment>,
        context: Arc<Context>,
    ) {
        let Some(mut asked) = context.newcomers.answering() else { return };
        let mut answers = Answers::new();
        while let Some(Newcomer { namespace, make, answer }) = asked.recv().await {
            let now = context.clock.now();
            if let Some((at, refused @ Err(Declined::Refused(_)))) = answers.get(&namespace)
                && now < *at + REFUSED_FOR
            {
                // Whoever is refused may ask again at once, and so may a thousand others.
                let _told = answer.send(refused.clone());
                continue;
            }
            // Started again, this process may know patterns from the records alone.
            while self.stored.lock().created_at == 0 {
                context.clock.sleep(LOOK).await;
            }
            // A move reads and raises epochs too: one at a time.
            let one_at_a_time = self.calls.lock().await;
            let admitted = self.admit(&context, &namespace, make).await;
            drop(one_at_a_time);
            let before = answers.insert(namespace.clone(), (context.clock.now(), admitted.clone()));
            if before.is_none_or(|(_, before)| before != admitted) {
                self.note_newcomer(&environment, &namespace, make, &admitted).await;
            }
            // Who asked may have stopped waiting.
            let _told = answer.send(admitted);
        }
    }

    async fn note_newcomer(
        &self,
        environment: &Environment,
        namespace: &Namespace,
        make: bool,
        admitted: &Admitted,
    ) {
        let result = match admitted {
            Ok(true) => "ok".to_owned(),
            Ok(false) => "it is not there any more".to_owned(),
            Err(why) => why.to_string(),
        };
        let what = match make {
            true => format!("{namespace} comes into being"),
            false => format!("{namespace} has come into being past the proxy"),
        };
        let phase = self.stored.lock().phase.to_string();
        let who = Actor("proxy".into()).0;
        let at = environment.clock.wall_millis();
        let event = AuditEvent {
            at,
            who,
            what: what.clone(),
            from: phase.clone(),
            to: phase,
            result: result.clone(),
            elapsed_ms: None,
        };
        let name = self.stored.lock().name.clone();
        if admitted == &Ok(true) && make {
            tracing::info!(migration = name, what, result, "a collection that a pattern names");
        } else {
            tracing::warn!(migration = name, what, result, "a collection that a pattern names");
        }
        let Ok(state) = environment.state() else { return };
        if let Err(error) = stored::audit(state, &name, &event).await {
            tracing::warn!(%error, ?event, "the audit could not be written");
        }
    }

    /// Makes a collection part of the migration. Harmless to repeat after a crash anywhere in it.
    pub(super) async fn admit(&self, context: &Context, namespace: &Namespace, make: bool) -> Admitted {
        if context.scope.contains(namespace) {
            return Ok(true);
        }
        let (phase, specs) = {
            let stored = self.stored.lock();
            (stored.phase, stored.namespaces.clone())
        };
        if !phase.mirrors() && phase != Phase::Preparing {
            return Err(not_now(format!("migration {} is {phase}", context.name)));
        }
        if is_recorded(context, namespace).await? {
            // By a process that was taken for dead when this one began.
            context.scope.add(namespace.clone());
            context.publish_beside();
            return Ok(true);
        }
        let wanted = by_pattern(&specs, namespace)
            .ok_or_else(|| Declined::Refused("no pattern of the migration names it".into()))?;
        if !self.aborting.unless_asked(is_there(context, namespace, make)).await?? {
            return Ok(false);
        }
        let plan = self.plan_newcomer(context, wanted).await?;
        self.aborting.check()?;
        prepare::prepare(&context.clusters, std::slice::from_ref(&plan)).await.map_err(not_now)?;
        record_newcomer(context, namespace).await?;
        context.scope.add(namespace.clone());
        context.publish_beside();
        Ok(true)
    }

    /// Looks whether it can move, and stores what is to be done for it.
    async fn plan_newcomer(&self, context: &Context, wanted: Wanted) -> Result<Created, Declined> {
        let wanted = [wanted];
        let report = self.aborting.unless_asked(preflight(&context.clusters, &wanted)).await?;
        if !report.ok {
            let refused = report.findings.iter().filter(|finding| finding.severity == Severity::Refused);
            let reasons: Vec<String> = refused
                .map(|finding| format!("{} ({}); {}", finding.message, finding.code, finding.remedy))
                .collect();
            let away =
                report.findings.iter().any(|finding| matches!(&*finding.code, "unreachable" | "unreadable"));
            let reasons = reasons.join("; ");
            return Err(if away { Declined::NotNow(reasons) } else { Declined::Refused(reasons) });
        }
        let plan = self.aborting.unless_asked(prepare::plan(&context.clusters, &wanted)).await?;
        let mut plan = plan.map_err(not_now)?;
        let plan = plan.pop().ok_or_else(|| not_now("nothing is planned"))?;
        // What was begun before a crash is not what was there before.
        let before =
            self.stored.lock().created.iter().find(|known| known.namespace == plan.namespace).cloned();
        let plan = plan.after(before);
        let single_step = single_step_reasons(&report);
        let planned = self.change_stored(&context.records, |stored| {
            stored.created.retain(|known| known.namespace != plan.namespace);
            stored.created.push(plan.clone());
            stored.single_step.extend(single_step.iter().cloned());
        });
        planned.await.map_err(not_now)?;
        Ok(plan)
    }

    /// What came into being while the start was under way, before the streams could show it.
    pub(super) async fn admit_latecomers(&self, context: &Context) -> Result<(), ControlError> {
        let declined = |namespace: &Namespace, why: Declined| {
            let detail =
                format!("{namespace} was made during the start, and cannot become part of it: {why}");
            match why {
                Declined::Refused(_) => ControlError::new(Refusal::Conflict, "latecomer-refused", detail),
                Declined::NotNow(_) => super::engine::unavailable(detail),
            }
        };
        // A start that was cut short may have planned for one, and not recorded it.
        let recorded = context.authorities.old.known().map(|record| record.namespaces).unwrap_or_default();
        let known = context.scope.known();
        for planned in known.iter().filter(|it| !recorded.iter().any(|name| name == it.as_str())) {
            record_newcomer(context, planned).await.map_err(|why| declined(planned, why))?;
        }
        for namespace in left_out(context).await.map_err(super::engine::unavailable)? {
            self.admit(context, &namespace, false).await.map_err(|why| declined(&namespace, why))?;
        }
        Ok(())
    }
}

/// Whether both clusters' records name it already.
async fn is_recorded(context: &Context, namespace: &Namespace) -> Result<bool, Declined> {
    for side in Side::BOTH {
        let record = context.authorities.get(side).refresh().await.map_err(not_now)?;
        if !record.is_some_and(|record| record.namespaces.iter().any(|name| name == namespace.as_str())) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the collection is on old, made there if it is to be.
async fn is_there(context: &Context, namespace: &Namespace, make: bool) -> Admitted {
    let old = &*context.clusters.old;
    let found = describe(old, namespace, LIMIT).await.map_err(not_now)?;
    if found.is_some() {
        return Ok(true);
    }
    if !make {
        // A primary that has been deposed may not know it yet: none can write by majority.
        context.mark(Side::Old, LIMIT).await.map_err(not_now)?;
        return Ok(describe(old, namespace, LIMIT).await.map_err(not_now)?.is_some());
    }
    let made = change(old, namespace.database(), rawdoc! { "create": namespace.collection() }).await;
    match made {
        Ok(()) => Ok(true),
        Err(error) if error.code == Some(NAMESPACE_EXISTS) => Ok(true),
        Err(error) if error.code.is_none() => Err(not_now(error)),
        Err(error) => Err(Declined::Refused(error.to_string())),
    }
}

/// Names it in both clusters' records, with its shard keys.
async fn record_newcomer(context: &Context, namespace: &Namespace) -> Result<(), Declined> {
    let mut names: Vec<String> = context.scope.known().iter().map(|it| it.as_str().to_owned()).collect();
    if !context.scope.contains(namespace) {
        names.push(namespace.as_str().to_owned());
    }
    let known = [&context.authorities.old, &context.authorities.new].map(|authority| authority.known());
    let newest = known.into_iter().flatten().max_by_key(|record| record.epoch);
    let mut keys: PerSide<Vec<StoredShardKey>> = newest.map(|record| record.shard_keys).unwrap_or_default();
    for side in Side::BOTH {
        let found = key_of(&**context.clusters.get(side), namespace).await.map_err(not_now)?;
        let of_side = keys.get_mut(side);
        of_side.retain(|known| known.namespace != namespace.as_str());
        of_side.extend(
            found.map(|key| StoredShardKey { namespace: namespace.as_str().to_owned(), key: key.into() }),
        );
    }
    let keys = bson::serialize_to_bson(&keys).map_err(not_now)?;
    Ok(context.raise_both(doc! { "namespaces": names, "shard_keys": keys }).await?)
}
