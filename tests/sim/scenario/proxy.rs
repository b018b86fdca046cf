//! A proxy as a process of the world: the production control plane and the production way of writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bson::raw::{RawDocumentBuf, cstr};
use bson::{RawBson, RawBsonRef, rawdoc};
use futures::FutureExt;
use futures::future::{Either, select};
use parking_lot::Mutex;
use reshard::cluster::command::{Request, SendError, SharedCluster};
use reshard::converge::active::{Active, Registry};
use reshard::migration::engine::{Engine, Environment, Open, Opened, Settings};
use reshard::migration::holder::{app_name, backfill_app_name};
use reshard::model::namespace::Namespace;
use reshard::model::phase::Phase;
use reshard::model::side::{PerSide, Side};
use reshard::model::slots::SlotSet;
use reshard::policy::canonical;
use reshard::policy::invariants::Invariant;
use reshard::policy::route_key::By;
use reshard::policy::safeguards::Safeguards;
use reshard::policy::writes::WriteCommand;
use reshard::router::Operation;
use reshard::router::entry::{Gate, MOST_HELD, Passing};
use reshard::router::mirroring::{MOST_JOBS, Mirroring};
use reshard::router::newcomers::admit;
use reshard::router::reading::side_of_read;
use reshard::router::writer::{HOLD, Writer};
use reshard::state::inflight::{Inflight, Oldest, Work};
use reshard::state::records::{Records, first_batch};
use reshard::state::table::{MigrationRoute, Routing};
use reshard::wire::error::{ErrorReply, HOST_UNREACHABLE, NO_WRITES_PERFORMED, RETRYABLE_WRITE};
use reshard::wire::op_msg::build;
use tokio::sync::{Semaphore, oneshot, watch};
use uuid::Uuid;

use super::client::NS;
use super::operator::MIGRATION;
use crate::executor::ProcessId;
use crate::mongo::cluster::Cluster;
use crate::process::Process;
use crate::world::World;

/// The length of leases in the scenarios.
pub(crate) const LEASE: Duration = Duration::from_secs(3);

/// How long a reply may wait for the mirror in the scenarios.
pub(crate) const MIRROR_TIMEOUT: Duration = Duration::from_secs(1);

/// What proxies are started on.
#[derive(Clone)]
pub(crate) struct Site {
    /// The world.
    pub(crate) world: World,
    /// Both clusters.
    pub(crate) clusters: PerSide<Cluster>,
    /// What is switched on.
    pub(crate) safeguards: Safeguards,
}

impl Site {
    /// Its start is over, and whoever starts now knows of it.
    pub(crate) fn has_started(&self) -> bool {
        phase(&self.clusters).is_some_and(|phase| phase > Phase::Preparing)
    }

    /// A proxy does not reach the clusters any more, and they find its connections dead.
    pub(crate) fn cut_off(&self, proxy: &Proxy) {
        let (id, holder) = (proxy.process.id, &proxy.engine.environment.holder);
        for side in Side::BOTH {
            let cluster = self.clusters.get(side);
            self.world.network().sever(id, cluster.index());
            for name in [app_name(holder), backfill_app_name(holder, MIGRATION)] {
                cluster.state().connections.close(&name, id);
            }
        }
    }
}

/// What is stored of where the migration is.
pub(crate) fn phase(clusters: &PerSide<Cluster>) -> Option<Phase> {
    let stored = clusters.old.document("reshard.migrations", RawBson::from(MIGRATION).as_raw_bson_ref())?;
    let phase = stored.get_str("phase").ok()?;
    Phase::ALL.into_iter().find(|known| known.as_str() == phase)
}

/// One running proxy.
pub(crate) struct Proxy {
    /// The process that it is.
    pub(crate) process: Process,
    /// Its control plane.
    pub(crate) engine: Arc<Engine>,
    /// Its migrations, as the data plane sees them.
    pub(crate) registry: Arc<Registry>,
    /// Its way of writes.
    pub(crate) writer: Writer,
    /// Reads that a cluster answered that is not the authority of their document.
    mirror_reads: AtomicU64,
    /// It did not get its turn for a while: what it measures of its own waiting says nothing.
    pub(crate) stood_still: AtomicBool,
}

/// How a client reads one document.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    /// Routing sees which document it asks for; else it goes where all such reads of its connection go.
    pub(crate) names_key: bool,
    /// The number of its connection.
    pub(crate) connection: u64,
    /// Only what a majority has.
    pub(crate) majority: bool,
}

impl Reading {
    /// By `_id`.
    pub(crate) const KEYED: Self = Self { names_key: true, connection: 0, majority: false };
}

/// What a client hears.
pub(crate) enum Answer {
    /// A reply, perhaps with errors of single statements.
    Reply(RawDocumentBuf),
    /// An error of the proxy.
    Error(ErrorReply),
    /// The connection broke, or no answer came.
    Lost,
}

const SETTINGS: Settings = Settings {
    max_pause: Duration::from_millis(500),
    mirror_timeout: MIRROR_TIMEOUT,
    lease: LEASE,
    hold: Duration::from_secs(3600),
    backfill_parallel: Some(2),
    // Few enough that several writes follow each other in one; and each of a dead process is barred one by one.
    mirror_sessions: 8,
    state: Side::Old,
};
const RECORD_LIMIT: Duration = Duration::from_secs(10);
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(40);

impl Proxy {
    /// A new process that has not looked at anything yet. `number` makes its id.
    pub(crate) fn new(site: &Site, number: u32) -> Arc<Self> {
        let holder = format!("p{number}");
        let drift = i64::from(number % 3) * 100 - 100;
        let process = site.world.process_with(&app_name(&holder), drift);
        let connect = |app: &str| {
            PerSide::from_fn(|side| site.world.connect_as(&process, site.clusters.get(side), app))
        };
        let clusters = connect(&process.name);
        let clock = process.clock();
        let routing = Arc::new(Routing::default());
        let inflight = Inflight::new(Arc::clone(&routing), clock.clone());
        let registry = Arc::new(Registry::default());
        let records = PerSide::from_fn(|side: Side| {
            let session = Uuid::from_u128(u128::from(number) << 8 | side.index() as u128);
            Some(Arc::new(Records::new(clusters.get(side).clone(), clock.clone(), session, RECORD_LIMIT)))
        });
        let gate = Gate {
            routing: Arc::clone(&routing),
            inflight: Arc::clone(&inflight),
            registry: Arc::clone(&registry),
            waiting: Arc::new(Semaphore::new(MOST_HELD)),
            unsettled: Arc::default(),
            clock: clock.clone(),
        };
        let mirroring = Mirroring {
            spawn: process.spawner(),
            jobs: Arc::new(Semaphore::new(MOST_JOBS)),
            clock: clock.clone(),
        };
        let engine = Engine::new(Environment {
            shadow: None,
            rehearsal: None,
            holder,
            clusters: Some(clusters.clone()),
            open: opener(site, &process),
            settings: SETTINGS,
            clock,
            spawn: process.spawner(),
            routing,
            inflight,
            registry: Arc::clone(&registry),
            safeguards: site.safeguards,
            records,
        });
        let writer = Writer { own: clusters.clone(), clusters, gate, mirroring };
        let (stood_still, mirror_reads) = (AtomicBool::new(false), AtomicU64::new(0));
        Arc::new(Self { process, engine, registry, writer, mirror_reads, stood_still })
    }

    /// Runs `work` as a part of the process; `None` when that dies first.
    pub(crate) async fn within<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        self.process.spawn("call", async move {
            let _ = sender.send(work.await);
        });
        receiver.await.ok()
    }

    /// A client's write over a connection of its own.
    pub(crate) async fn write(self: Arc<Self>, world: &World, command: Arc<WriteCommand>) -> Answer {
        let proxy = Arc::clone(&self);
        let work = self.within(async move { proxy.serve(&command).await });
        match select(std::pin::pin!(work), world.executor().sleep(PATIENCE)).await {
            Either::Left((Some(Ok(body)), _)) => Answer::Reply(body),
            Either::Left((Some(Err(error)), _)) => Answer::Error(error),
            Either::Left((None, _)) | Either::Right(_) => Answer::Lost,
        }
    }

    /// How it routes now.
    pub(crate) fn route(&self) -> Option<Arc<MigrationRoute>> {
        self.writer.gate.routing.load().route(NS).cloned()
    }

    /// What a move of everything would wait for among transactions.
    pub(crate) fn oldest_transaction(&self) -> Option<Oldest> {
        let inflight = &self.writer.gate.inflight;
        inflight.oldest(MIGRATION, &SlotSet::ALL, u64::MAX, &[Work::Transaction])
    }

    /// A client's read of one document, from the cluster that the production way of reads chooses; `None`
    /// when there is no answer.
    pub(crate) async fn read(self: Arc<Self>, id: i32, how: Reading) -> Option<Option<RawDocumentBuf>> {
        let proxy = Arc::clone(&self);
        let found = self.within(async move {
            let namespace = Namespace::parse(NS)?;
            let filter = if how.names_key {
                rawdoc! { "_id": id }
            } else {
                rawdoc! { "_id": { "$in": [id] } }
            };
            let mut find = rawdoc! { "find": namespace.collection(), "filter": filter };
            if how.majority {
                find.append(cstr!("readConcern"), rawdoc! { "level": "majority" });
            }
            let mut body = find.clone();
            body.append(cstr!("$db"), namespace.database());
            let message = build(1, 0, 0, body.as_bytes(), None);
            let operation = Operation::parse(&message, how.connection).ok()?;
            let side = match proxy.route() {
                Some(route) => {
                    let side = side_of_read(&proxy.writer.gate, &operation, &route).await.ok()?.side;
                    let key = canonical::key_of(RawBsonRef::Int32(id))?;
                    let on_mirror =
                        route.authority_of_key(&namespace, &key).is_some_and(|authority| authority != side);
                    proxy.mirror_reads.fetch_add(u64::from(on_mirror), Ordering::Relaxed);
                    side
                }
                None => Side::Old,
            };
            let request = Request::new(namespace.database(), find);
            let reply = proxy.writer.clusters.get(side).run(request).await.ok()?;
            Some(first_batch(&reply.body).ok()?.into_iter().next())
        });
        found.await.flatten()
    }

    async fn serve(&self, command: &WriteCommand) -> Result<RawDocumentBuf, ErrorReply> {
        // As the router does it.
        let _passing = Passing::by(&self.writer.gate.routing);
        admit(&self.writer, &command.namespace, HOLD).await?;
        let route = self.route();
        let by = route.as_ref().map_or(By::ID, |route| route.by(&command.namespace));
        match self.writer.write(command, by).await? {
            Some(written) => Ok(written.body),
            None => plain(&self.writer.clusters.old, command).await.inspect_err(|error| {
                let namespace = command.namespace.as_str();
                self.writer.gate.note_failed(namespace, command.session(), command.txn_number, error);
            }),
        }
    }
}

/// A write of a namespace that does not migrate.
async fn plain(old: &SharedCluster, command: &WriteCommand) -> Result<RawDocumentBuf, ErrorReply> {
    let mut request = Request::new(command.namespace.database(), command.body.clone());
    if let Some((identifier, documents)) = command.sequence() {
        request = request.sequence(identifier, documents);
    }
    let error = |why: String| ErrorReply::new(HOST_UNREACHABLE, why);
    match old.run(request).await {
        Ok(reply) => match reply.error() {
            None => Ok(reply.body),
            Some(problem) => Err(error(problem.to_string()).labelled(vec![RETRYABLE_WRITE])),
        },
        Err(SendError::NotSent(why) | SendError::Busy(why) | SendError::LoginRefused(why)) => {
            Err(error(why).labelled(vec![RETRYABLE_WRITE, NO_WRITES_PERFORMED]))
        }
        Err(SendError::Unknown(why)) => Err(error(why).labelled(vec![RETRYABLE_WRITE])),
    }
}

/// Opens connections under another name, and closes them.
fn opener(site: &Site, process: &Process) -> Open {
    let (site, process) = (site.clone(), process.clone());
    Arc::new(move |name| {
        let clusters =
            PerSide::from_fn(|side| site.world.connect_as(&process, site.clusters.get(side), &name));
        let (servers, id): (PerSide<Cluster>, ProcessId) = (site.clusters.clone(), process.id);
        let close = Box::new(move || {
            for side in Side::BOTH {
                servers.get(side).state().connections.close(&name, id);
            }
        });
        async move { Ok(Opened { clusters, close }) }.boxed()
    })
}

/// Where clients and the operator find the proxy that serves.
#[derive(Clone)]
pub(crate) struct Front {
    serving: Arc<watch::Sender<Option<Arc<Proxy>>>>,
    started: Arc<Mutex<Vec<Arc<Proxy>>>>,
}

impl Front {
    /// Nobody serves yet.
    pub(crate) fn new() -> Self {
        Self { serving: Arc::new(watch::Sender::new(None)), started: Arc::default() }
    }

    /// Starts a proxy; it serves once it knows what is stored.
    pub(crate) fn start(&self, site: &Site, number: u32) -> Arc<Proxy> {
        let proxy = Proxy::new(site, number);
        self.started.lock().push(Arc::clone(&proxy));
        let (front, started) = (self.clone(), Arc::clone(&proxy));
        proxy.process.spawn("begin", async move {
            started.engine.begin().await;
            // One that stood still while it began may find that a successor has begun.
            if front.started.lock().last().is_some_and(|last| Arc::ptr_eq(last, &started)) {
                front.serving.send_replace(Some(Arc::clone(&started)));
            }
        });
        proxy
    }

    /// How often the proxies themselves found that an invariant did not hold.
    pub(crate) fn violations(&self) -> BTreeMap<Invariant, u64> {
        let started = self.started.lock();
        let mut found = BTreeMap::new();
        // What one has found its successors know, too.
        let stood_still = started.iter().any(|proxy| proxy.stood_still.load(Ordering::Relaxed));
        for active in started.iter().filter_map(|proxy| proxy.registry.get(MIGRATION)) {
            for invariant in Invariant::ALL {
                let count = active.converger.violations.count(invariant);
                if count > 0 && !(stood_still && invariant == Invariant::NotDelayed) {
                    *found.entry(invariant).or_default() += count;
                }
            }
        }
        found
    }

    /// The migration as each proxy knew it.
    pub(crate) fn actives(&self) -> Vec<Arc<Active>> {
        self.started.lock().iter().filter_map(|proxy| proxy.registry.get(MIGRATION)).collect()
    }

    /// How often a mirror answered a read.
    pub(crate) fn mirror_reads(&self) -> u64 {
        self.started.lock().iter().map(|proxy| proxy.mirror_reads.load(Ordering::Relaxed)).sum()
    }

    /// Nobody serves for now.
    pub(crate) fn close(&self) {
        self.serving.send_replace(None);
    }

    /// The proxy that serves, once there is one.
    pub(crate) async fn proxy(&self) -> Arc<Proxy> {
        let mut changes = self.serving.subscribe();
        let found = changes.wait_for(Option::is_some).await.map(|found| found.clone());
        found.ok().flatten().unwrap()
    }
}
