//! Sockets that outlive a process: taken from whoever started this one, and handed to the program that takes its
//! place, together with the connections of its clients.
//!
//! Both follow the convention of systemd (`LISTEN_FDS`, `LISTEN_PID`), with two additions: a program that takes the
//! place of this one is told by `LISTEN_FDS_FIRST_FD` where the sockets begin, as 3 may be in use here; and by
//! `LISTEN_FDNAMES` that the last of them holds its clients.

mod clients;
pub mod signals;

use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{AddressFamily, SocketType};

pub use clients::Kept;

const COUNT: &str = "LISTEN_FDS";
const PROCESS: &str = "LISTEN_PID";
const FIRST: &str = "LISTEN_FDS_FIRST_FD";
const NAMES: &str = "LISTEN_FDNAMES";
/// The name of the socket that holds clients. The number is that of the format of what is known of them: a program
/// that knows another one is not given any.
const CLIENTS: &str = "reshard-clients-1";
/// What a program says that reads the signals that wait for it, see [`signals`].
const SIGNALS: &str = "reshard-signals";
/// Set for a program that is asked what it can take over besides listening sockets.
const ASKED: &str = "RESHARD_TAKES_OVER";
/// Below are standard input, output and error.
const LOWEST: i32 = 3;
/// How long the new program may take to look at its configuration.
const CHECK: Duration = Duration::from_secs(10);

/// What a program that is asked says it can take over, in lines.
#[must_use]
pub fn asked_what_it_takes_over() -> Option<String> {
    std::env::var_os(ASKED).map(|_| format!("{CLIENTS}\n{SIGNALS}"))
}

/// What a new program can take over besides listening sockets.
#[derive(Debug, Clone, Copy)]
pub struct TakesOver {
    /// Clients that are connected.
    pub clients: bool,
    /// Signals that nobody has read.
    pub signals: bool,
}

/// Sockets that this process was started with.
#[derive(Debug, Default)]
pub struct Handed {
    /// By the addresses they listen on.
    listening: Vec<(SocketAddr, TcpListener)>,
    /// Connections of the program whose place this one has taken.
    clients: Vec<Kept>,
    /// Why there are none though there should be.
    lost: Option<io::Error>,
}

/// What a process leaves to the next.
#[derive(Debug, Default)]
pub struct Left {
    /// Sockets that clients can connect to.
    pub listening: Vec<OwnedFd>,
    /// Clients that are connected.
    pub clients: Vec<Kept>,
    /// Signals that nobody has read are left too.
    pub signals: bool,
}

impl Handed {
    /// Those that the environment names. To be called once, before there are threads: it changes the environment.
    ///
    /// # Errors
    /// When one of them is no TCP socket.
    pub fn from_environment() -> io::Result<Self> {
        let holds_clients =
            std::env::var(NAMES).is_ok_and(|names| names.split(':').next_back() == Some(CLIENTS));
        let mut all = listenfd::ListenFd::from_env();
        let (mut listening, mut clients, mut lost) = (Vec::new(), Vec::new(), None);
        let mut count = all.len();
        if holds_clients && count > 0 {
            count -= 1;
            let (family, kind) = (AddressFamily::UNIX.as_raw().into(), SocketType::STREAM.as_raw());
            let kind = i32::try_from(kind).map_err(io::Error::other)?;
            if let Some(parcel) = all.take_custom(count, family, kind, "socket with clients")? {
                // Others can still connect.
                match clients::unpack(parcel) {
                    Ok(unpacked) => clients = unpacked,
                    Err(error) => lost = Some(error),
                }
            }
        }
        for number in 0..count {
            let wrong = |error: io::Error| {
                let why = "write ListenStream=IP:PORT for each address of the configuration";
                io::Error::other(format!("socket {number} of {COUNT} cannot be listened on: {error}; {why}"))
            };
            if let Some(socket) = all.take_tcp_listener(number).map_err(wrong)? {
                socket.set_nonblocking(true).map_err(wrong)?;
                listening.push((socket.local_addr().map_err(wrong)?, socket));
            }
        }
        Ok(Self { listening, clients, lost })
    }

    /// The one that listens on `address`.
    pub fn take(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let position = self.listening.iter().position(|(listens, _)| *listens == address)?;
        Some(self.listening.swap_remove(position).1)
    }

    /// Where those listen that nobody took.
    pub fn left(&self) -> impl Iterator<Item = SocketAddr> {
        self.listening.iter().map(|(address, _)| *address)
    }

    /// The clients.
    ///
    /// # Errors
    /// Why those that came are lost.
    pub fn take_clients(&mut self) -> io::Result<Vec<Kept>> {
        self.lost.take().map_or_else(|| Ok(std::mem::take(&mut self.clients)), Err)
    }
}

/// How a process that served has ended.
#[derive(Debug)]
pub enum End {
    /// For good.
    Stopped,
    /// For a new program, which goes on with these sockets.
    Replaced(Left),
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

    /// Checks that the program is there and takes the configuration as it is now; returns what it takes over
    /// from this one.
    ///
    /// # Errors
    /// Why not, in one line.
    pub async fn check(&self) -> Result<TakesOver, String> {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(["check-config", "--config"]).arg(&self.config);
        for name in [COUNT, PROCESS, FIRST, NAMES] {
            command.env_remove(name);
        }
        command.env(ASKED, "").stdin(Stdio::null()).kill_on_drop(true);
        let program = self.program.display();
        let output = match tokio::time::timeout(CHECK, command.output()).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return Err(format!("{program} cannot be run: {error}")),
            Err(_) => return Err(format!("{program} check-config did not end within {} s", CHECK.as_secs())),
        };
        if output.status.success() {
            let said = String::from_utf8_lossy(&output.stdout);
            let says = |what| said.lines().any(|line| line == what);
            return Ok(TakesOver { clients: says(CLIENTS), signals: says(SIGNALS) });
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Err(format!("{program} check-config: {}: {}", output.status, said.join("; ")))
    }

    /// Makes this process run the program, with what it has left; `last` is what is to be done just before. Does not
    /// return but for an error.
    #[must_use]
    pub fn take_over(self, left: Left, last: impl FnOnce()) -> io::Error {
        let signals = left.signals;
        let ready = self.with(left);
        last();
        let run = |(mut command, _row): (std::process::Command, Vec<OwnedFd>)| {
            if !signals {
                signals::let_through()?;
            }
            Err(command.exec())
        };
        ready.and_then(run).unwrap_or_else(|error: io::Error| error)
    }

    /// How to run the program with what is `left`, and the sockets that must stay open until it runs.
    fn with(self, left: Left) -> io::Result<(std::process::Command, Vec<OwnedFd>)> {
        let Left { listening: mut sockets, clients, .. } = left;
        let mut names = vec![String::new(); sockets.len()];
        if !clients.is_empty() {
            match clients::pack(clients) {
                Ok(parcel) => {
                    sockets.push(parcel);
                    names.push(CLIENTS.to_owned());
                }
                Err(error) => tracing::warn!(%error, "clients are closed: they cannot be handed over"),
            }
        }
        let row = in_a_row(&sockets)?;
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.arguments).env(NAMES, names.join(":"));
        command.env(COUNT, row.len().to_string()).env(PROCESS, std::process::id().to_string());
        if let Some(first) = row.first() {
            command.env(FIRST, first.as_raw_fd().to_string());
        }
        for socket in &row {
            fcntl_setfd(socket, FdFlags::empty())?;
        }
        Ok((command, row))
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
        let mut handed = Handed { listening: vec![(address, socket)], ..Handed::default() };
        assert!(handed.take(SocketAddr::from(([0, 0, 0, 0], address.port()))).is_none());
        assert_eq!(handed.left().collect::<Vec<_>>(), [address]);
        assert!(handed.take(address).is_some());
        assert_eq!(handed.left().count(), 0);
        assert!(handed.take(address).is_none());
    }
}
