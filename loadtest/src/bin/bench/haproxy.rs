//! HAProxy in TCP mode: what a proxy costs that looks at nothing.

use std::env;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::process::Child;

use crate::child::{free_ports, guarded};

const READY: Duration = Duration::from_secs(10);

/// A running HAProxy; killed when dropped.
pub(crate) struct Haproxy {
    _child: Child,
    pub(crate) pid: u32,
    pub(crate) address: SocketAddr,
}

/// The program: `HAPROXY_BIN`, or in the usual places.
pub(crate) fn program() -> Option<PathBuf> {
    if let Some(path) = env::var_os("HAPROXY_BIN") {
        return Some(PathBuf::from(path));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.into_iter().map(|folder| folder.join("haproxy")).find(|path| path.is_file())
}

/// Its version, in one line.
pub(crate) fn version(program: &Path) -> Option<String> {
    let output = std::process::Command::new(program).arg("-v").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next()?;
    Some(line.split(" - ").next().unwrap_or(line).trim().to_owned())
}

impl Haproxy {
    /// Starts it before `server`, with two threads.
    pub(crate) async fn start(program: &Path, folder: &Path, server: &str) -> Result<Self> {
        let (port, _) = free_ports()?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let config = folder.join("haproxy.cfg");
        let text = format!(
            "global\n    nbthread 2\n    maxconn 5000\n\
             defaults\n    mode tcp\n    timeout connect 10s\n    timeout client 1h\n    timeout server 1h\n\
             frontend clients\n    bind {address}\n    default_backend mongodb\n\
             backend mongodb\n    server primary {server}\n"
        );
        fs::write(&config, text).context("writing HAProxy's configuration")?;
        let log = fs::File::create(folder.join("haproxy.log"))?;
        let mut child = guarded(program)
            .arg("-db")
            .arg("-f")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            if child.try_wait()?.is_some() || begun.elapsed() > READY {
                let log = fs::read_to_string(folder.join("haproxy.log")).unwrap_or_default();
                bail!("HAProxy does not listen:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let pid = child.id().context("HAProxy has ended")?;
        Ok(Self { _child: child, pid, address })
    }
}
