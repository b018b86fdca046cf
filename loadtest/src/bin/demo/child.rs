//! The proxy as a process of its own.

use std::env;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::api::Api;

const READY: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(10);
const TAIL: usize = 20;

/// A running proxy; killed when dropped.
pub(crate) struct Proxy {
    child: Child,
    pub(crate) api: Api,
    /// What applications connect to.
    pub(crate) uri: String,
    pub(crate) log: PathBuf,
}

/// The program: `RESHARD_BIN`, or next to this one.
pub(crate) fn program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("RESHARD_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "RESHARD_BIN is {}, which is no file", path.display());
        return Ok(path);
    }
    let own = env::current_exe().context("where this program is")?;
    let path = own.with_file_name("reshard");
    ensure!(
        path.is_file(),
        "there is no {}; build it with `cargo build --release -p reshard` (or name it in RESHARD_BIN)",
        path.display()
    );
    Ok(path)
}

pub(crate) fn free_ports() -> Result<(u16, u16)> {
    let (one, other) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    Ok((one.local_addr()?.port(), other.local_addr()?.port()))
}

/// A command for `program` that ends with this process, however that ends.
pub(crate) fn guarded(program: &Path) -> Command {
    let help = std::process::Command::new("setpriv").arg("--help").output();
    let can = help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--pdeathsig"));
    if !can {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

impl Proxy {
    /// Starts it between two clusters, or before one; files go to `folder`.
    pub(crate) async fn start(folder: &Path, old: &str, new: Option<&str>) -> Result<Self> {
        let program = program()?;
        let (listen, admin) = free_ports()?;
        let config = folder.join("reshard.toml");
        let new = new.map_or(String::new(), |uri| format!("[new]\nuri = \"{uri}\"\n\n"));
        let text = format!(
            "[listen]\naddress = \"127.0.0.1:{listen}\"\n\n[old]\nuri = \"{old}\"\n\n{new}\
             [admin]\naddress = \"127.0.0.1:{admin}\"\n"
        );
        std::fs::write(&config, text).context("writing the configuration")?;
        let log = folder.join("reshard.log");
        let file = File::create(&log).context("creating the log")?;
        let child = guarded(&program)
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // Ctrl-C in the terminal is for the demo, which ends its children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let api = Api::new(format!("http://127.0.0.1:{admin}"));
        let mut proxy = Self { child, api, uri: format!("mongodb://127.0.0.1:{listen}/"), log };
        proxy.ready().await?;
        Ok(proxy)
    }

    async fn ready(&mut self) -> Result<()> {
        let start = Instant::now();
        while !self.api.is_ready().await {
            if let Some(status) = self.child.try_wait()? {
                bail!("reshard ended with {status}:\n{}", self.log_tail());
            }
            ensure!(start.elapsed() < READY, "reshard is not ready after {READY:?}:\n{}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Its process id.
    #[allow(dead_code, reason = "for the benchmarks")]
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The end of its log.
    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    /// Ends it in an orderly way.
    pub(crate) async fn end(&mut self) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if tokio::time::timeout(END, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}
