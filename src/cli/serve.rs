//! `serve` and `check-config`.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::failure::Failure;
use super::output;
use crate::app::{Launch, StartError};
use crate::config::Config;
use crate::handover::signals::{self, Blocked};
use crate::handover::{self, End, Handed, Successor};
use crate::listener::face::{Face, Secondary};
use crate::telemetry::logging;

/// How long the last lines of the log may take.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Runs `app` with the configuration in `file`, on as many threads as it says. When a new program is to take its
/// place, this process goes on as that one.
pub(super) fn serve<App, Run>(file: &Path, app: App) -> Result<(), Failure>
where
    App: FnOnce(Launch) -> Run,
    Run: Future<Output = Result<End, StartError>>,
{
    // First of all, and before there are threads.
    let signals = Blocked::before_threads()
        .map_err(|error| Failure::Failed(format!("cannot listen to signals: {error}")))?;
    let handed = Handed::from_environment().map_err(|error| Failure::Usage(error.to_string()))?;
    let config = load(file)?;
    let log = logging::init(&config.log).map_err(|error| Failure::Failed(format!("cannot log: {error}")))?;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(workers) = usize::try_from(config.listen.workers).ok().filter(|workers| *workers > 0) {
        builder.worker_threads(workers);
    }
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start threads: {error}")))?;
    let successor = Successor::of_this(file);
    let launch = Launch { config, handed, signals, successor: successor.clone() };
    let end = runtime.block_on(app(launch)).map_err(|error| not_served(file, &error));
    // A name that is being looked up keeps nobody waiting.
    runtime.shutdown_background();
    let last_lines = || log.flush_within(LAST_LINES);
    match end.inspect_err(|_| last_lines())? {
        End::Stopped => {
            last_lines();
            Ok(())
        }
        End::Replaced(left) => {
            let error = successor.take_over(left, last_lines);
            Err(Failure::Failed(format!("ended, but the new program cannot take over: {error}")))
        }
    }
}

/// What the configuration can mend is told with its file.
fn not_served(file: &Path, error: &StartError) -> Failure {
    match error {
        StartError::Uri(..) | StartError::Refused(_) => {
            Failure::Usage(format!("{}: {error}", file.display()))
        }
        _ => Failure::Failed(error.to_string()),
    }
}

/// Tells what is wrong with `file`, or what it means.
pub(super) fn check(file: &Path) -> Result<(), Failure> {
    // A process that is about to restart, which has them blocked, asks. This one reads none.
    signals::let_through().map_err(|error| Failure::Failed(format!("cannot be ended: {error}")))?;
    let config = load(file)?;
    let new = match &config.new {
        Some(new) => new.uri.to_string(),
        None => "none (plain proxy)".to_owned(),
    };
    let listeners: String =
        config.listeners.iter().map(|extra| also(&extra.name, extra.address, &extra.face)).collect();
    let listen = also("listen", config.listen.address, &config.listen.face);
    output::text(&format!(
        "{}: good\n{listen}{listeners}  old     {}\n  new     {new}\n  admin   http://{}",
        file.display(),
        config.old.uri,
        config.admin.address
    ));
    // Not for people: a process that is about to restart asks.
    if let Some(what) = handover::asked_what_it_takes_over() {
        output::text(&what);
    }
    Ok(())
}

/// A line for a listener, and one for each secondary that it shows.
fn also(name: &str, address: SocketAddr, face: &Face) -> String {
    let shown = match face {
        // What most configurations have is not worth a word.
        Face::Mongos => String::new(),
        Face::LoadBalanced => format!(" ({})", face.name()),
        Face::ReplicaSet(set) => {
            format!(" ({} {}, {})", face.name(), set.name, set.host.as_deref().unwrap_or("by its address"))
        }
    };
    let secondary = |other: &Secondary| {
        let host = other.host.as_deref().unwrap_or("by its address");
        format!("          {} (secondary, {host})\n", other.address)
    };
    let secondaries: String = face.secondaries().map(secondary).collect();
    format!("  {name:7} {address}{shown}\n{secondaries}")
}

fn load(file: &Path) -> Result<Config, Failure> {
    Config::load(file).map_err(|error| Failure::Usage(error.to_string()))
}
