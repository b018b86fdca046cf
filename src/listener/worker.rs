//! The threads that serve clients: one runtime each, nothing hops between them.

use std::net::TcpStream as StdStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

use metrics::{Counter, Gauge, counter, gauge};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::login::Login;
use crate::handover::Kept;
use crate::router::Router;
use crate::state::transactions::UserDigest;
use crate::telemetry::metrics as names;

use super::acceptor::Door;
use super::accounts::Accounts;
use super::client::Client;
use super::hello::{Greeting, SharedCapabilities};
use super::kept::{Known, fits};
use super::session::{Context, SessionEnd, release, serve};
use super::settings::Settings;

/// How long the threads may take to end once their sessions have.
const STOP: Duration = Duration::from_secs(5);

/// What all workers count.
pub(super) struct Clients {
    open: AtomicUsize,
    next_id: AtomicI32,
    gauge: Gauge,
    malformed: Counter,
    unencrypted: Counter,
}

impl Clients {
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// Counts one client for as long as it lives.
pub(super) struct Present(Arc<Clients>);

impl Present {
    pub(super) fn new(clients: &Arc<Clients>) -> Self {
        clients.open.fetch_add(1, Ordering::Relaxed);
        clients.gauge.increment(1.0);
        Self(clients.clone())
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.gauge.decrement(1.0);
    }
}

/// One client on its way to a worker.
pub(super) struct Arrival {
    pub(super) stream: StdStream,
    pub(super) present: Present,
    pub(super) door: Door,
    /// What a process before this one knew of it.
    known: Option<Box<Known>>,
}

/// One thread.
pub struct Worker {
    arrivals: mpsc::UnboundedSender<Arrival>,
    ended: oneshot::Receiver<()>,
}

/// All threads that serve clients.
pub struct Workers {
    workers: Vec<Worker>,
    stop: Stop,
    farewell: Duration,
    /// Some clients must speak TLS.
    encrypt: bool,
    pub(super) clients: Arc<Clients>,
}

/// A user who has logged in.
pub struct User<'a> {
    /// As sessions name it.
    pub digest: UserDigest,
    /// How to log in as the same on the clusters.
    pub login: Arc<Login>,
    /// The worker's router of this process's own user.
    pub beside: &'a Router,
}

/// Builds a router of one worker, on its runtime: of this process's own user, or of another.
pub type BuildRouter = Arc<dyn Fn(Option<User<'_>>) -> Router + Send + Sync>;

impl Workers {
    /// Starts the threads; [`Self::stop`] waits for operations that run as long as the settings say.
    ///
    /// # Errors
    /// When the system gives no thread or no reactor.
    pub fn start(
        settings: &Settings,
        capabilities: &Arc<SharedCapabilities>,
        build: &BuildRouter,
    ) -> std::io::Result<Self> {
        let clients = Arc::new(Clients {
            open: AtomicUsize::new(0),
            next_id: AtomicI32::new(1),
            gauge: gauge!(names::CLIENTS),
            malformed: counter!(names::CLIENTS_MALFORMED),
            unencrypted: counter!(names::CLIENTS_UNENCRYPTED),
        });
        let compressors = settings.compressors;
        let ending = Ending::default();
        let stop = Stop { ending, grace: Arc::new(Mutex::new(settings.drain)) };
        let secret: Arc<[u8]> = rand::random::<[u8; 32]>().to_vec().into();
        let start = |number| {
            let stop = stop.clone();
            let (capabilities, build, secret) = (capabilities.clone(), build.clone(), secret.clone());
            let context = move || Context {
                router: build(None),
                accounts: Accounts::new(build),
                capabilities,
                compressors,
                secret,
            };
            start_worker(number, stop, clients.clone(), context)
        };
        let workers = (0..settings.workers.get()).map(start).collect::<Result<_, _>>()?;
        let encrypt = settings.entrances.iter().any(|entrance| entrance.tls.is_some());
        Ok(Self { workers, stop, farewell: settings.farewell, encrypt, clients })
    }

    /// Hands a client to the worker whose turn it is.
    pub(super) fn hand_over(&self, turn: usize, stream: StdStream, door: Door) {
        self.deal(turn, stream, door, None);
    }

    /// The same with one that a process before this one served.
    pub(super) fn go_on_with(&self, turn: usize, stream: StdStream, door: Door, known: Known) {
        // No two connections may have one number.
        self.clients.next_id.fetch_max(known.connection_id.saturating_add(1), Ordering::Relaxed);
        self.deal(turn, stream, door, Some(Box::new(known)));
    }

    fn deal(&self, turn: usize, stream: StdStream, door: Door, known: Option<Box<Known>>) {
        let arrival = Arrival { stream, present: Present::new(&self.clients), door, known };
        // Fails only while the process ends; the client is then closed.
        _ = self.workers[turn % self.workers.len()].arrivals.send(arrival);
    }

    /// Ends every `hello` that waits, and a moment later closes idle clients, and the others after their running
    /// operation; waits for these up to the grace of the settings, and no longer than `most`. Returns whether all ended
    /// in time.
    ///
    /// A driver whose `hello` is lost gives up its connections as soon as nobody uses them. What it does meanwhile is
    /// still answered, so that also what drivers do not repeat, as `getMore`, meets no connection that was just closed.
    pub async fn stop(self: Arc<Self>, most: Duration) -> bool {
        let farewell = self.farewell;
        self.end(most, farewell).await
    }

    /// As [`Self::stop`], but the clients that can be kept are not closed, nor need they know.
    pub async fn leave_clients(self: Arc<Self>, most: Duration) -> Vec<Kept> {
        let kept = self.stop.ending.kept.clone();
        kept.wanted.store(true, Ordering::Relaxed);
        let farewell = if self.encrypt { self.farewell } else { Duration::ZERO };
        self.end(most, farewell).await;
        std::mem::take(&mut kept.clients.lock())
    }

    async fn end(self: Arc<Self>, most: Duration, farewell: Duration) -> bool {
        let grace = {
            let mut grace = self.stop.grace.lock();
            *grace = (*grace).min(most);
            *grace
        };
        self.stop.ending.farewell.cancel();
        self.until_left(farewell.min(grace)).await;
        self.stop.ending.drain.cancel();
        self.until_left(grace).await;
        let in_time = self.clients.open() == 0;
        let Ok(workers) = Arc::try_unwrap(self) else { return in_time };
        let ended = workers.workers.into_iter().map(|worker| worker.ended);
        _ = tokio::time::timeout(STOP, futures::future::join_all(ended)).await;
        in_time
    }

    /// Waits until there is no client, `limit` at most.
    async fn until_left(&self, limit: Duration) {
        let until = tokio::time::Instant::now() + limit;
        while self.clients.open() > 0 && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// When sessions end, and what becomes of their clients.
#[derive(Clone, Default)]
pub(super) struct Ending {
    /// Those whose `hello` waits.
    pub(super) farewell: CancellationToken,
    /// All, between two requests.
    pub(super) drain: CancellationToken,
    kept: Arc<Keeping>,
}

/// Clients for the next process.
#[derive(Default)]
struct Keeping {
    /// There will be one that goes on with them.
    wanted: AtomicBool,
    clients: Mutex<Vec<Kept>>,
}

impl Ending {
    /// With tokens of its own: waiting for them must not touch a lock that other workers use.
    fn of_worker(&self) -> Self {
        let (farewell, drain) = (self.farewell.child_token(), self.drain.child_token());
        Self { farewell, drain, kept: self.kept.clone() }
    }

    /// Whether the next process goes on with a client.
    pub(super) fn keeps(&self, is_encrypted: bool) -> bool {
        self.kept.wanted.load(Ordering::Relaxed) && !is_encrypted
    }

    /// Completes when it is time to keep a client.
    pub(super) async fn time_to_keep(&self, is_encrypted: bool) {
        self.drain.cancelled().await;
        if !self.keeps(is_encrypted) {
            std::future::pending().await
        }
    }

    fn keep(&self, client: Client, known: &Known) {
        let kept =
            || Some(Kept { socket: client.into_socket()?, known: bson::serialize_to_vec(known).ok()? });
        self.kept.clients.lock().extend(kept());
    }
}

/// How and when a worker ends.
#[derive(Clone)]
struct Stop {
    ending: Ending,
    /// How long operations that run may take to end; read once `drain` is cancelled.
    grace: Arc<Mutex<Duration>>,
}

fn start_worker(
    number: usize,
    stop: Stop,
    clients: Arc<Clients>,
    context: impl FnOnce() -> Context + Send + 'static,
) -> std::io::Result<Worker> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (arrivals, receiver) = mpsc::unbounded_channel();
    let (sender, ended) = oneshot::channel();
    std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        runtime.block_on(async {
            let context = Arc::new(context());
            work(context, stop, clients, receiver).await;
        });
        // What still runs after the grace is dropped with it; a name that is being looked up keeps nobody waiting.
        runtime.shutdown_background();
        _ = sender.send(());
    })?;
    Ok(Worker { arrivals, ended })
}

async fn work(
    context: Arc<Context>,
    stop: Stop,
    clients: Arc<Clients>,
    mut arrivals: mpsc::UnboundedReceiver<Arrival>,
) {
    let sessions = TaskTracker::new();
    let ending = stop.ending.of_worker();
    loop {
        let arrival = tokio::select! {
            biased;
            () = stop.ending.drain.cancelled() => break,
            arrival = arrivals.recv() => arrival,
        };
        let Some(arrival) = arrival else { break };
        sessions.spawn(session(context.clone(), clients.clone(), arrival, ending.clone()));
    }
    ending.drain.cancel();
    arrivals.close();
    // Who has come in meanwhile leaves the same way as the others.
    while let Some(arrival) = arrivals.recv().await {
        sessions.spawn(session(context.clone(), clients.clone(), arrival, ending.clone()));
    }
    sessions.close();
    let grace = *stop.grace.lock();
    if tokio::time::timeout(grace, sessions.wait()).await.is_err() {
        tracing::warn!(
            sessions = sessions.len(),
            "operations were cut off, they ran for longer than the grace"
        );
    }
}

async fn session(context: Arc<Context>, clients: Arc<Clients>, arrival: Arrival, ending: Ending) {
    let Arrival { stream, present, door, known } = arrival;
    let _present = present;
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let peer = stream.peer_addr();
    let shaken = match &door.tls {
        None => Ok(Client::Plain(stream)),
        // Boxed: it is over when the session begins.
        Some(tls) => tokio::select! {
            shaken = Box::pin(Client::encrypted(stream, tls)) => shaken,
            () = ending.drain.cancelled() => return,
        },
    };
    let mut client = match shaken {
        Ok(client) => client,
        Err(why) => {
            clients.unencrypted.increment(1);
            let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
            tracing::warn!(client = peer, why, "closed a client's connection: no TLS");
            return;
        }
    };
    let known_id = known.as_ref().map(|known| known.connection_id);
    let id = known_id.unwrap_or_else(|| clients.next_id.fetch_add(1, Ordering::Relaxed));
    let mut greeting = Greeting::new(id, &door, context.compressors);
    drop(door);
    if let Some(known) = known
        && !(known.tell(&mut greeting, &context) && Box::pin(fits(&greeting, &context, &ending)).await)
    {
        return release(&context, greeting).await;
    }
    match serve(&context, &mut client, greeting, &ending).await {
        Ok(Some(known)) => ending.keep(client, &known),
        Ok(None) | Err(SessionEnd::Left | SessionEnd::Io(_) | SessionEnd::FailPoint) => {}
        Err(error) => {
            clients.malformed.increment(1);
            let peer = client.address().map(|peer| peer.to_string()).unwrap_or_default();
            tracing::warn!(client = peer, %error, "closed a client's connection");
        }
    }
}

#[cfg(test)]
mod tests;
