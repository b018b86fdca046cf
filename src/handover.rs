//! Listening sockets that outlive a process: taken from whoever started this one, and handed to the program that
//! takes its place.
//!
//! Both follow the convention of systemd (`LISTEN_FDS`, `LISTEN_PID`), with one addition: a program that takes the
//! place of this one is told by `LISTEN_FDS_FIRST_FD` where the sockets begin, as 3 may be in use here.

use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

const COUNT: &str = "LISTEN_FDS";
const PROCESS: &str = "LISTEN_PID";
const FIRST: &str = "LISTEN_FDS_FIRST_FD";
/// What systemd adds, and nobody here reads.
const NAMES: &str = "LISTEN_FDNAMES";
/// Below are standard input, output and error.
const LOWEST: i32 = 3;
/// How long the new program may take to look at its configuration.
const CHECK: Duration = Duration::from_secs(10);

/// Sockets that this process was started with, by the addresses they listen on.
#[derive(Debug, Default)]
pub struct Handed(Vec<(SocketAddr, TcpListener)>);

impl Handed {
    /// Those that the environment names. To be called once, before there are threads: it changes the environment.
    ///
    /// # Errors
    /// When one of them is no TCP socket.
    pub fn from_environment() -> io::Result<Self> {
        let mut all = listenfd::ListenFd::from_env();
        let mut handed = Vec::new();
        for number in 0..all.len() {
            let wrong = |error: io::Error| {
                let why = "write ListenStream=IP:PORT for each address of the configuration";
                io::Error::other(format!("socket {number} of {COUNT} cannot be listened on: {error}; {why}"))
            };
            if let Some(socket) = all.take_tcp_listener(number).map_err(wrong)? {
                socket.set_nonblocking(true).map_err(wrong)?;
                handed.push((socket.local_addr().map_err(wrong)?, socket));
            }
        }
        Ok(Self(handed))
    }

    /// The one that listens on `address`.
    pub fn take(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let position = self.0.iter().position(|(listens, _)| *listens == address)?;
        Some(self.0.swap_remove(position).1)
    }

    /// Where those listen that nobody took.
    pub fn left(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().map(|(address, _)| *address)
    }
}

/// How a process that served has ended.
#[derive(Debug)]
pub enum End {
    /// For good.
    Stopped,
    /// For a new program, which listens on these sockets.
    Replaced(Vec<OwnedFd>),
}

/// The program on disk as this process was called.
#[derive(Debug, Clone)]
pub struct Successor {
    program: PathBuf,
    arguments: Vec<OsString>,
    config: PathBuf,
}

impl Successor {
    /// Of this process, whose configuration is in `config`.
    #[must_use]
    pub fn of_this(config: &Path) -> Self {
        let mut arguments = std::env::args_os();
        let called = PathBuf::from(arguments.next().unwrap_or_default());
        Self { program: called, arguments: arguments.collect(), config: config.to_owned() }
    }

    /// Whether the program is there and takes the configuration as it is now.
    ///
    /// # Errors
    /// Why not, in one line.
    pub async fn check(&self) -> Result<(), String> {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(["check-config", "--config"]).arg(&self.config);
        for name in [COUNT, PROCESS, FIRST, NAMES] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).kill_on_drop(true);
        let program = self.program.display();
        let output = match tokio::time::timeout(CHECK, command.output()).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return Err(format!("{program} cannot be run: {error}")),
            Err(_) => return Err(format!("{program} check-config did not end within {} s", CHECK.as_secs())),
        };
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Err(format!("{program} check-config: {}: {}", output.status, said.join("; ")))
    }

    /// Makes this process run the program, with `sockets`. Does not return but for an error.
    #[must_use]
    pub fn take_over(self, sockets: &[OwnedFd]) -> io::Error {
        let row = match in_a_row(sockets) {
            Ok(row) => row,
            Err(error) => return error,
        };
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.arguments).env_remove(NAMES);
        command.env(COUNT, row.len().to_string()).env(PROCESS, std::process::id().to_string());
        if let Some(first) = row.first() {
            command.env(FIRST, first.as_raw_fd().to_string());
        }
        for socket in &row {
            if let Err(error) = fcntl_setfd(socket, FdFlags::empty()) {
                return error.into();
            }
        }
        command.exec()
    }
}

/// Copies whose numbers follow one another.
fn in_a_row(sockets: &[OwnedFd]) -> io::Result<Vec<OwnedFd>> {
    let mut row: Vec<OwnedFd> = Vec::with_capacity(sockets.len());
    let mut lowest = LOWEST;
    while let Some(socket) = sockets.get(row.len()) {
        let copy = fcntl_dupfd_cloexec(socket, lowest)?;
        let follows = row.is_empty() || copy.as_raw_fd() == lowest;
        if !follows {
            // A number in between is in use: begin anew behind it.
            row.clear();
            lowest = copy.as_raw_fd();
            continue;
        }
        lowest = copy.as_raw_fd() + 1;
        row.push(copy);
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    #[test]
    fn numbers_in_use_are_stepped_over() {
        let kept: Vec<OwnedFd> = (0..4).map(|_| socket().into()).collect();
        let addresses = |sockets: &[OwnedFd]| -> Vec<SocketAddr> {
            let address =
                |socket: &OwnedFd| TcpListener::from(socket.try_clone().unwrap()).local_addr().unwrap();
            sockets.iter().map(address).collect()
        };
        // Every other number behind is in use.
        let mut holes = Vec::new();
        for number in (kept[3].as_raw_fd() + 2..).step_by(2).take(6) {
            holes.push(fcntl_dupfd_cloexec(&kept[0], number).unwrap());
        }
        let row = in_a_row(&kept).unwrap();
        let first = row[0].as_raw_fd();
        let numbers: Vec<i32> = row.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect();
        assert_eq!(numbers, (first..first + 4).collect::<Vec<_>>());
        assert_eq!(addresses(&row), addresses(&kept));
        assert!(in_a_row(&[]).unwrap().is_empty());
    }

    #[test]
    fn sockets_are_known_by_their_exact_addresses() {
        let socket = socket();
        let address = socket.local_addr().unwrap();
        let mut handed = Handed(vec![(address, socket)]);
        assert!(handed.take(SocketAddr::from(([0, 0, 0, 0], address.port()))).is_none());
        assert_eq!(handed.left().collect::<Vec<_>>(), [address]);
        assert!(handed.take(address).is_some());
        assert_eq!(handed.left().count(), 0);
        assert!(handed.take(address).is_none());
    }
}
