//! Two processes of the program, of which one serves; the other takes over where that one died or stands still.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::bed::lasts;
use crate::support::process::Server;
use crate::support::relay::Relay;

pub(crate) struct Proxies {
    both: [Server; 2],
    serving: AtomicUsize,
    /// What applications connect to; it leads to the one that serves.
    front: Relay,
    faketime: Option<PathBuf>,
}

impl Proxies {
    /// One of them serves, the other has not been started.
    pub(crate) async fn start(old: &str, new: &str) -> Result<Self> {
        let both = [Server::prepare(old, Some(new))?, Server::prepare(old, Some(new))?];
        let front = Relay::to(&address(&both[0])).await?;
        let faketime = faketime();
        if faketime.is_none() {
            println!("there is no libfaketime (package faketime): all clocks are right");
        }
        let proxies = Self { both, serving: AtomicUsize::default(), front, faketime };
        proxies.spawn(proxies.now(), 0)?;
        proxies.now().until_ready().await?;
        Ok(proxies)
    }

    /// For applications.
    pub(crate) fn uri(&self) -> String {
        self.front.uri()
    }

    /// The one that serves.
    pub(crate) fn now(&self) -> &Server {
        &self.both[self.serving.load(Ordering::Relaxed)]
    }

    /// Starts one with a clock that is so many seconds ahead. How much time passes is told right all the same.
    fn spawn(&self, server: &Server, ahead: i8) -> Result<()> {
        let mut program = Command::new(env!("CARGO_BIN_EXE_reshard"));
        if let Some(library) = self.faketime.as_ref().filter(|_| ahead != 0) {
            program.env("LD_PRELOAD", library).env("FAKETIME", format!("{ahead:+}s"));
            program.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        server.spawn_by(program)
    }

    pub(crate) fn restart(&self, ahead: i8) -> Result<()> {
        self.now().kill9()?;
        self.spawn(self.now(), ahead)
    }

    /// Starts the other one, and leads applications there; returns the one that has served.
    fn change(&self, ahead: i8) -> Result<&Server> {
        let before = self.now();
        self.serving.fetch_xor(1, Ordering::Relaxed);
        self.spawn(self.now(), ahead)?;
        self.front.lead_to(address(self.now()));
        Ok(before)
    }

    pub(crate) fn succeed(&self, ahead: i8) -> Result<()> {
        self.now().kill9()?;
        self.change(ahead).map(drop)
    }

    /// The one that serves stands still, and the other takes over. Then it goes on, knowing nothing of that, until
    /// somebody ends it. What applications had sent it is still there, and some may stay connected to it.
    pub(crate) async fn overtake(
        &self,
        hangs: Duration,
        lingers: Duration,
        stay: bool,
        ahead: i8,
    ) -> Result<()> {
        self.now().signal(Signal::STOP)?;
        let before = self.change(ahead)?;
        if !stay {
            self.front.reset();
        }
        lasts(hangs).await;
        before.signal(Signal::CONT)?;
        lasts(lingers).await;
        before.kill9()
    }

    /// Nor by one that was ended since. That a reply was late may be this machine's fault.
    pub(crate) fn no_invariant_was_broken(&self) -> Result<()> {
        for log in self.both.each_ref().map(Server::log_text) {
            let broken = |line: &&str| {
                line.contains("an invariant does not hold") && !line.contains("mirror_does_not_delay")
            };
            let broken = log.lines().find(broken);
            ensure!(broken.is_none(), "{broken:?}");
        }
        Ok(())
    }

    pub(crate) fn tails(&self) -> String {
        let [first, second] = self.both.each_ref().map(Server::tail);
        format!("{first}\n--- the other:\n{second}")
    }
}

fn address(server: &Server) -> String {
    format!("127.0.0.1:{}", server.listen)
}

fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|library| library.exists())
}
