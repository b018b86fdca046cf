//! The control plane of this process: all its migrations.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{SetOnce, watch};

use super::context::Context;
use super::control::{ControlError, Phase, Refusal};
use super::expiry::Kept;
use super::holder::mirror_name;
use super::running::Running;
use super::scope::Scope;
use super::stored::{Stored, identity};
use crate::clock::SharedClock;
use crate::cluster::command::SharedCluster;
use crate::converge::active::{Active, Registry};
use crate::converge::converger::Converger;
use crate::converge::lanes::Lanes;
use crate::converge::looks::Looks;
use crate::converge::sessions::Sessions;
use crate::model::capabilities::Capabilities;
use crate::model::side::{PerSide, Side};
use crate::policy::safeguards::Safeguards;
use crate::shutdown::SharedSpawn;
use crate::state::authority::Authority;
use crate::state::inflight::Inflight;
use crate::state::lease::Lease;
use crate::state::own_writes::OwnWrites;
use crate::state::parking::Parking;
use crate::state::records::Records;
use crate::state::table::Routing;
use crate::state::violations::Violations;

/// Times and limits of migrations.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long writes may be held in one attempt, unless the call says otherwise.
    pub max_pause: Duration,
    /// How long a reply may wait for the mirror.
    pub mirror_timeout: Duration,
    /// The length of a lease.
    pub lease: Duration,
    /// How long old is kept following after all writes are on new.
    pub hold: Duration,
    /// Ranges copied at once; `None` leaves it to the kind of new.
    pub backfill_parallel: Option<usize>,
    /// Mirror writes under way at once on each cluster, each in a session of its own.
    pub mirror_sessions: i32,
    /// Where checkpoints and the like are stored.
    pub state: Side,
}

/// Connections opened for one purpose, and how to close them.
pub struct Opened {
    /// Both clusters.
    pub clusters: PerSide<SharedCluster>,
    /// Closes every connection.
    pub close: Box<dyn FnOnce() + Send>,
}

/// Opens connections to both clusters under an application name.
pub type Open = Arc<dyn Fn(String) -> BoxFuture<'static, Result<Opened, String>> + Send + Sync>;

/// What the engine works with.
pub struct Environment {
    /// The id of this process.
    pub holder: String,
    /// Both clusters; `None` in a plain proxy.
    pub clusters: Option<PerSide<SharedCluster>>,
    /// Connections of shadow reads, apart from all others; `None`: they share those of `clusters`.
    pub shadow: Option<PerSide<SharedCluster>>,
    /// Connections of rehearsals to new, apart from all others; `None`: they share those of `clusters`.
    pub rehearsal: Option<SharedCluster>,
    /// Opens more connections.
    pub open: Open,
    /// Times and limits.
    pub settings: Settings,
    /// The clock.
    pub clock: SharedClock,
    /// Starts background tasks.
    pub spawn: SharedSpawn,
    /// Where routes are published.
    pub routing: Arc<Routing>,
    /// The register of work under way.
    pub inflight: Arc<Inflight>,
    /// What the data plane sees.
    pub registry: Arc<Registry>,
    /// All on, but in the simulator.
    pub safeguards: Safeguards,
    /// Records on each cluster.
    pub records: PerSide<Option<Arc<Records>>>,
}

impl Environment {
    /// Where the migrations are stored.
    ///
    /// # Errors
    /// [`ControlError`] in a plain proxy.
    pub fn state(&self) -> Result<&Arc<Records>, ControlError> {
        let kept = self.records.get(self.settings.state).as_ref();
        kept.filter(|_| self.clusters.is_some()).ok_or_else(no_new)
    }
}

/// The refusal of everything that needs a second cluster.
#[must_use]
pub fn no_new() -> ControlError {
    ControlError::new(
        Refusal::Conflict,
        "no-new-cluster",
        "there is no [new] in the configuration; add it and restart",
    )
}

/// All migrations of this process.
pub struct Engine {
    /// What it works with.
    pub environment: Arc<Environment>,
    /// The migrations by name; `None` until they have been read.
    pub(super) migrations: tokio::sync::Mutex<BTreeMap<String, Arc<Running>>>,
    pub(super) ready: watch::Sender<Vec<String>>,
    pub(super) fatal: watch::Sender<Option<String>>,
    /// What clients are told, once it is known; empty where there are none.
    pub(super) shown: OnceLock<Arc<SetOnce<Capabilities>>>,
    /// Clients act on the clusters as the users that they are.
    pub(super) clients_log_in: OnceLock<()>,
}

pub(super) const RETRY: Duration = Duration::from_millis(300);
/// How long a new migration waits until the stored ones have been read.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// How long a process that ends waits for each cluster to hear of it.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

impl Engine {
    /// An engine that knows nothing yet; [`Engine::begin`] reads what is stored.
    #[must_use]
    pub fn new(environment: Environment) -> Arc<Self> {
        Arc::new(Self {
            environment: Arc::new(environment),
            migrations: tokio::sync::Mutex::default(),
            ready: watch::Sender::new(vec![
                "what is stored on old has not been read yet: old does not answer".into(),
            ]),
            fatal: watch::Sender::new(None),
            shown: OnceLock::new(),
            clients_log_in: OnceLock::new(),
        })
    }

    /// Why the process must not serve, once that is known.
    #[must_use]
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.fatal.subscribe()
    }

    /// Waits until what is stored has been read so far that routing is known; for ever in a process that must not
    /// serve.
    pub async fn until_begun(&self) {
        let mut ready = self.ready.subscribe();
        // It cannot fail while this is there.
        _ = ready.wait_for(Vec::is_empty).await;
    }

    pub(super) fn not_ready_now(&self) -> Vec<String> {
        self.ready.borrow().clone()
    }

    /// Why clients cannot be served yet although routing is known; `None` once they can.
    pub(super) fn clients_wait(&self) -> Option<String> {
        let shown = self.shown.get()?;
        let why = "clients wait until it is known what the clusters can do: old does not answer, or new has not within \
                   the first seconds";
        (!shown.initialized()).then(|| why.to_owned())
    }

    /// That the stored migrations are not known yet, so that one which is not found may be there all the same.
    pub(super) fn stored_unread(&self) -> Option<ControlError> {
        let environment = &self.environment;
        if environment.clusters.is_none() || environment.registry.ddl.is_known() {
            return None;
        }
        let home = environment.settings.state;
        let detail =
            format!("the migrations stored on {home} have not been read yet; try again once {home} answers");
        Some(ControlError::new(Refusal::Unavailable, "not-read-yet", detail))
    }

    /// Waits a little until the stored migrations are known: what is stored must not be overwritten.
    ///
    /// # Errors
    /// They are not known yet.
    pub(super) async fn stored_read(&self) -> Result<(), ControlError> {
        let clock = &self.environment.clock;
        let until = clock.now() + READ_LIMIT;
        while let Some(unread) = self.stored_unread() {
            if clock.now() >= until {
                return Err(unread);
            }
            clock.sleep(RETRY).await;
        }
        Ok(())
    }

    /// The running migration of that name, made if it is not there.
    pub(super) async fn take_up(&self, stored: &Stored) -> Arc<Running> {
        let mut migrations = self.migrations.lock().await;
        let running = migrations
            .entry(stored.name.clone())
            .or_insert_with(|| Running::new(stored.clone(), &self.environment));
        if running.parts().is_none() && !matches!(stored.phase, Phase::Created | Phase::Aborted) {
            self.equip(running);
        }
        Arc::clone(running)
    }

    /// Gives a migration its parts, and starts to ask for its leases.
    pub(super) fn equip(&self, running: &Arc<Running>) {
        let environment = &self.environment;
        let (Some(clusters), Ok(state)) = (&environment.clusters, environment.state()) else { return };
        let stored = running.stored.lock().clone();
        let name: Arc<str> = stored.name.as_str().into();
        let prepared = stored.created.iter().filter_map(|created| created.parsed().ok());
        let scope = Arc::new(Scope::new(&stored.namespaces, prepared));
        let clock = environment.clock.clone();
        let sessions = environment.settings.mirror_sessions;
        let authorities = PerSide::from_fn(|side| {
            let lease = Lease::new(clock.clone(), environment.settings.lease);
            let records = environment.records.get(side).clone().unwrap_or_else(|| Arc::clone(state));
            Arc::new(Authority::new(
                side,
                &name,
                &environment.holder,
                sessions,
                records,
                clock.clone(),
                lease,
            ))
        });
        let sessions = PerSide::from_fn(|side| {
            // Named after the migration too: sessions of two migrations must not get in each other's way.
            let holder = mirror_name(&environment.holder, &name);
            Arc::new(Sessions::so_many(sessions, &holder, side, clusters.get(side).clone(), clock.clone()))
        });
        let violations = Violations::new(&name, clock.clone());
        violations.learn(&stored.violations);
        let converger = Arc::new(Converger {
            migration: Arc::clone(&name),
            clusters: clusters.clone(),
            sessions: sessions.clone(),
            inflight: Arc::clone(&environment.inflight),
            lanes: Arc::new(Lanes::default()),
            own: OwnWrites::new(clock.clone()),
            clock: clock.clone(),
            safeguards: environment.safeguards,
            converged: std::sync::atomic::AtomicU64::new(0),
            violations: Arc::new(violations),
            looks: Looks::default(),
            interrupt: tokio::sync::Notify::new(),
        });
        let context = Arc::new(Context {
            name: Arc::clone(&name),
            scope,
            newcomers: Arc::default(),
            clusters: clusters.clone(),
            authorities,
            sessions,
            routing: Arc::clone(&environment.routing),
            inflight: Arc::clone(&environment.inflight),
            converger,
            retries: Arc::default(),
            frontiers: PerSide::default(),
            parking: Arc::new(Parking::new(&name)),
            records: Arc::clone(state),
            clock,
            keeps_mirrors_current: false.into(),
            publishing: Mutex::default(),
            taking_back: Mutex::default(),
            safeguards: environment.safeguards,
        });
        let active = Arc::new(active(environment, running, &context));
        environment.registry.put(&name, &active);
        *running.context.lock() = Some(Arc::clone(&context));
        *running.active.lock() = Some(active);
        let every = environment.settings.lease / 6;
        for side in Side::BOTH {
            running.spawn(environment, "lease", Arc::clone(&context).keep_lease(side, every).boxed());
        }
        let watching =
            Arc::clone(&context).watch_holders(Arc::clone(&running.watch), environment.settings.lease);
        running.spawn(environment, "holders", watching.boxed());
        let newcomers = Arc::clone(running).admit_newcomers(Arc::clone(environment), context);
        running.spawn(environment, "newcomers", newcomers.boxed());
    }

    /// Ends what this process does for its migrations, and says so on both clusters. To be called once no
    /// client is served any more.
    pub async fn leave(&self) {
        let migrations: Vec<_> = self.migrations.lock().await.values().cloned().collect();
        let leaving = migrations.iter().filter_map(|running| {
            running.token.cancel();
            running.parts()
        });
        let leaving = leaving.map(|context| async move { context.leave(LEAVE_LIMIT).await });
        futures::future::join_all(leaving).await;
    }

    /// The migration of that name.
    ///
    /// # Errors
    /// [`ControlError`] when there is none, or what is stored has not been read.
    pub(super) async fn running(&self, name: &str) -> Result<Arc<Running>, ControlError> {
        let found = self.migrations.lock().await.get(name).cloned();
        found.ok_or_else(|| {
            let none = || format!("there is no migration {name}");
            let unread = self.stored_unread();
            unread.unwrap_or_else(|| ControlError::new(Refusal::NotFound, "no-such-migration", none()))
        })
    }

    /// The identities of both clusters, made if they have none.
    pub(super) async fn identities(&self) -> Result<PerSide<String>, ControlError> {
        let of = async |side: Side| {
            let records = self.environment.records.get(side).as_ref().ok_or_else(no_new)?;
            identity(records).await.map_err(|error| unavailable(format!("{side}: {error}")))
        };
        let (old, new) = (of(Side::Old).await?, of(Side::New).await?);
        if old == new {
            return Err(ControlError::new(
                Refusal::Conflict,
                "same-cluster",
                "[old] and [new] are one cluster; give [new] the uri of another",
            ));
        }
        Ok(PerSide { old, new })
    }
}

/// What the data plane sees of a migration.
fn active(environment: &Environment, running: &Arc<Running>, context: &Arc<Context>) -> Active {
    Active::new(
        Arc::clone(&context.converger),
        context.authorities.clone(),
        context.frontiers.clone(),
        Arc::clone(&context.retries),
        Arc::clone(&context.newcomers),
        environment.settings.mirror_timeout,
        Arc::new(Kept { running: Arc::downgrade(running), context: Arc::clone(context) }),
    )
}

/// A cluster does not answer.
#[must_use]
pub fn unavailable(why: String) -> ControlError {
    ControlError::new(Refusal::Unavailable, "unavailable", why)
}
