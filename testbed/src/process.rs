//! One mongod process.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bson::{Document, doc};
use mongodb::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::{Mutex, RwLock};
use tokio::net::TcpStream;

use crate::access::{self, Access};
use crate::binary::Mongod;
use crate::log_tail;
use crate::ports::Port;
use crate::spawner;
use crate::wait::wait_for;

/// How long a server may take to come up or to end.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// How long a server that listens may take to answer before it counts as hung.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Units of CPU time in /proc: 100 a second on every Linux platform MongoDB runs on.
const CLOCK_TICKS: f64 = 100.0;

/// How often a port lost to a stranger is replaced.
const PORT_ATTEMPTS: usize = 5;

/// What is needed to create a node.
pub(crate) struct Plan<'a> {
    pub(crate) name: String,
    pub(crate) mongod: Mongod,
    pub(crate) folder: &'a Path,
    /// Arguments apart from port, address and data path.
    pub(crate) args: Vec<String>,
    pub(crate) access: Arc<RwLock<Access>>,
}

#[derive(Debug, Default)]
struct State {
    child: Option<Child>,
    last_exit: Option<ExitStatus>,
}

/// One mongod: a member of a [`ReplicaSet`](crate::ReplicaSet), or a [`Standalone`](crate::Standalone).
/// It keeps its address and its data when it is stopped and started again.
#[derive(Debug)]
pub struct Node {
    name: String,
    mongod: Mongod,
    port: Port,
    address: String,
    /// None for a mongos.
    data: Option<PathBuf>,
    log: PathBuf,
    args: Vec<String>,
    access: Arc<RwLock<Access>>,
    state: Mutex<State>,
}

impl Node {
    /// Reserves a port, starts the server and waits until it answers.
    pub(crate) async fn launch(plan: Plan<'_>) -> Result<Self> {
        let data = plan.folder.join(&plan.name);
        let log = plan.folder.join(format!("{}.log", plan.name));
        fs::create_dir(&data).with_context(|| format!("creating {}", data.display()))?;
        for _ in 0..PORT_ATTEMPTS {
            let node = Self::new(&plan, Some(data.clone()), log.clone())?;
            match node.start().await {
                Ok(()) => return Ok(node),
                // Somebody who knows nothing of our reservations was faster.
                Err(_) if node.lost_its_port() => {}
                Err(error) => return Err(error),
            }
        }
        bail!("{} lost its port {PORT_ATTEMPTS} times to other programs", plan.name)
    }

    /// A mongos, which has no data of its own; it is not started yet.
    pub(crate) fn router(plan: Plan<'_>) -> Result<Self> {
        let log = plan.folder.join(format!("{}.log", plan.name));
        Self::new(&plan, None, log)
    }

    fn new(plan: &Plan<'_>, data: Option<PathBuf>, log: PathBuf) -> Result<Self> {
        let port = Port::reserve()?;
        Ok(Self {
            name: plan.name.clone(),
            mongod: plan.mongod.clone(),
            address: format!("127.0.0.1:{}", port.number()),
            port,
            data,
            log,
            args: plan.args.clone(),
            access: plan.access.clone(),
            state: Mutex::default(),
        })
    }

    fn lost_its_port(&self) -> bool {
        self.pid().is_none()
            && fs::read_to_string(&self.log).is_ok_and(|log| log.contains("Address already in use"))
            && fs::remove_file(&self.log).is_ok()
    }

    /// `127.0.0.1:port`
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its name, which is also part of the name of its log.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The binary it runs.
    pub fn mongod(&self) -> &Mongod {
        &self.mongod
    }

    /// URI for a direct connection to this server, with the credentials of the cluster if it has any.
    pub fn uri(&self) -> String {
        self.access.read().uri(&self.address, "directConnection=true")
    }

    /// A client connected directly to this server.
    pub async fn client(&self) -> Result<Client> {
        access::connect(&self.uri()).await
    }

    /// Runs a command on this server's `admin` database, logged in if the cluster has a user.
    pub async fn admin(&self, command: Document) -> Result<Document> {
        self.run("admin", command).await
    }

    /// Runs a command on a database of this server, logged in if the cluster has a user. This works with
    /// 4.2 too, which the driver refuses, unless there is a user or TLS.
    pub async fn run(&self, database: &str, command: Document) -> Result<Document> {
        let name = command.keys().next().cloned().unwrap_or_default();
        let access = self.access.read().clone();
        let answer = access.run(&self.address, database, command).await;
        answer.with_context(|| format!("{name} on {} ({})", self.name, self.address))
    }

    /// The server's answer to `isMaster` (the form of `hello` that all versions know), without login. An
    /// error if there is none within two seconds.
    pub async fn hello(&self) -> Result<Document> {
        let ask = async {
            // Asked first since it fails at once where the driver would look again and again.
            TcpStream::connect(&self.address).await?;
            let access = Access { user: None, ..self.access.read().clone() };
            access.run(&self.address, "admin", doc! {"isMaster": 1}).await
        };
        let answer: Result<Document> = tokio::time::timeout(ANSWER_LIMIT, ask)
            .await
            .unwrap_or_else(|_| Err(anyhow!("no answer in {ANSWER_LIMIT:?}")));
        answer.with_context(|| format!("asking {} ({})", self.name, self.address))
    }

    /// Process id, if it is running (or paused).
    pub fn pid(&self) -> Option<u32> {
        let mut state = self.state.lock();
        let child = state.child.as_mut()?;
        match child.try_wait() {
            Ok(None) => Some(child.id()),
            ended => {
                state.child = None;
                state.last_exit = ended.ok().flatten();
                None
            }
        }
    }

    /// Starts it, if it is not running, and waits until it answers.
    pub async fn start(&self) -> Result<()> {
        if self.pid().is_none() {
            let mut state = self.state.lock();
            state.child = Some(self.spawn()?);
            state.last_exit = None;
        }
        let what = format!("{} ({}) to answer", self.name, self.address);
        // Ends too when the process does: waiting on would not help.
        let answers =
            || async { if self.pid().is_none() { Ok(true) } else { self.hello().await.map(|_| true) } };
        wait_for(&what, START_LIMIT, answers).await.with_context(|| self.log_tail())?;
        if self.pid().is_none() {
            let exit = self.state.lock().last_exit.map_or(String::from("ended"), |exit| exit.to_string());
            bail!("{} ({}): {exit}; {}", self.name, self.address, self.log_tail());
        }
        Ok(())
    }

    fn spawn(&self) -> Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = self.mongod.guarded_command();
        command
            .args(["--bind_ip", "127.0.0.1", "--nounixsocket", "--port"])
            .arg(self.port.number().to_string());
        if let Some(data) = &self.data {
            command.arg("--dbpath").arg(data);
        }
        command.args(&self.args);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A group of its own, so that Ctrl-C reaches the owner alone, who then ends the servers.
        command.process_group(0);
        spawner::spawn(command)
    }

    /// Ends it in an orderly way (SIGTERM) and waits until it is gone. A paused one is resumed for that.
    pub async fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.signal(Signal::SIGCONT)?;
        self.gone().await
    }

    /// Ends it at once (SIGKILL), as a crash would, and waits until it is gone.
    pub async fn kill9(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.gone().await
    }

    async fn gone(&self) -> Result<()> {
        wait_for(&format!("{} ({}) to end", self.name, self.address), STOP_LIMIT, || async {
            self.pid().is_none()
        })
        .await
        .with_context(|| self.log_tail())
    }

    /// Suspends it (SIGSTOP): connections stay open and nothing is answered, as with a hung machine.
    pub async fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        let what = format!("{} ({}) to be suspended", self.name, self.address);
        wait_for(&what, Duration::from_secs(5), || async { self.run_state() == Some('T') }).await
    }

    /// Lets a suspended one go on (SIGCONT).
    pub async fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)?;
        let what = format!("{} ({}) to go on", self.name, self.address);
        wait_for(&what, Duration::from_secs(5), || async { self.run_state() != Some('T') }).await
    }

    /// Sends a signal if the process is there. The child cannot be reaped meanwhile, so the process id
    /// cannot have passed to a stranger.
    fn signal(&self, signal: Signal) -> Result<()> {
        let mut state = self.state.lock();
        let Some(child) = state.child.as_mut() else { return Ok(()) };
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        kill(pid, signal).with_context(|| format!("sending {signal} to {} (pid {pid})", self.name))
    }

    /// Its log, over all its starts.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// The end of the log, for error messages.
    pub fn log_tail(&self) -> String {
        log_tail::tail(&self.log)
    }

    /// CPU time used since it was started, if it is running.
    pub fn cpu_seconds(&self) -> Option<f64> {
        let stat = self.stat()?;
        // Fields 14 and 15 of the line; the first two are already cut off.
        let ticks = |index: usize| stat.split_whitespace().nth(index - 3)?.parse::<f64>().ok();
        Some((ticks(14)? + ticks(15)?) / CLOCK_TICKS)
    }

    /// Memory it holds, if it is running.
    pub fn rss_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    }

    /// `R` running, `S` asleep, `T` suspended and so on.
    fn run_state(&self) -> Option<char> {
        self.stat()?.chars().next()
    }

    /// The line in /proc from the third field on: the second, the name, may hold anything.
    fn stat(&self) -> Option<String> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()?)).ok()?;
        Some(stat.rsplit_once(')')?.1.trim_start().to_owned())
    }
}

impl Drop for Node {
    /// The data is thrown away with it, so there is no need for an orderly end.
    fn drop(&mut self) {
        if let Some(mut child) = self.state.get_mut().child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
