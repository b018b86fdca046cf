//! Signals that end this process, or make it restart.
//!
//! They are blocked for as long as it lives, and read from files (`signalfd`). One that is blocked waits, also over
//! `exec`: whenever it comes, before the new program can do anything about it too, it neither ends the process out of
//! order nor is it lost.

use std::io;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::unix::AsyncFd;

/// Those that end it in order.
const STOP: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];
/// The one that makes it restart in place.
const RESTART: [Signal; 1] = [Signal::SIGUSR2];

/// What a process can be told by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// To end in order.
    Stop,
    /// To let the program on disk take its place.
    Restart,
}

/// Signals that wait until they are read.
#[derive(Debug)]
pub struct Blocked {
    stop: SignalFd,
    /// Apart from the others, so that looking for a stop takes no restart from the next program.
    restart: SignalFd,
}

impl Blocked {
    /// Of this process. To be called before there are threads: those that come later have them blocked too.
    ///
    /// # Errors
    /// When too many files are open.
    pub fn before_threads() -> io::Result<Self> {
        all().thread_block()?;
        Ok(Self { stop: file(&STOP)?, restart: file(&RESTART)? })
    }

    /// To be read on this runtime.
    ///
    /// # Errors
    /// When the system does not tell when there is one.
    #[allow(deprecated, reason = "its successor is unsafe, for files that are not owned as these are")]
    pub fn listen(self) -> io::Result<Signals> {
        Ok(Signals { stop: AsyncFd::new(self.stop)?, restart: AsyncFd::new(self.restart)? })
    }
}

/// Signals as they come.
#[derive(Debug)]
pub struct Signals {
    stop: AsyncFd<SignalFd>,
    restart: AsyncFd<SignalFd>,
}

impl Signals {
    /// The next one; a stop before a restart.
    pub async fn next(&mut self) -> Told {
        tokio::select! {
            biased;
            () = read(&self.stop) => Told::Stop,
            () = read(&self.restart) => Told::Restart,
        }
    }

    /// Completes when it is to stop. A restart is left to be read.
    pub async fn stop(&mut self) {
        read(&self.stop).await;
    }

    /// Whether it was told to stop meanwhile. What it is not asked for here waits for the next program.
    #[must_use]
    pub fn stop_has_come(&self) -> bool {
        // Not by what the runtime has heard of, which may be late.
        matches!(self.stop.get_ref().read_signal(), Ok(Some(_)))
    }
}

/// No signal waits from now on, in this thread, which is all that there is or becomes another program: for one that
/// does not know that it must read them. A stop that waits takes effect at once.
///
/// # Errors
/// When too many files are open.
pub fn let_through() -> io::Result<()> {
    // One that waits would end the program that it is to bring.
    while file(&RESTART)?.read_signal()?.is_some() {}
    Ok(all().thread_unblock()?)
}

fn all() -> SigSet {
    STOP.into_iter().chain(RESTART).collect()
}

fn file(signals: &[Signal]) -> io::Result<SignalFd> {
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    Ok(SignalFd::with_flags(&signals.iter().copied().collect(), flags)?)
}

/// Completes when there was one, which is read.
async fn read(file: &AsyncFd<SignalFd>) {
    let one = |file: &AsyncFd<SignalFd>| {
        file.get_ref().read_signal()?.ok_or_else(|| io::Error::from(io::ErrorKind::WouldBlock))
    };
    loop {
        let Ok(mut ready) = file.readable().await else { return std::future::pending().await };
        match ready.try_io(one) {
            Ok(Ok(_)) => return,
            // An error is not expected, and a signal must not be made up of it.
            Ok(Err(error)) => {
                tracing::error!(%error, "signals cannot be read");
                return std::future::pending().await;
            }
            Err(_nothing_there) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use nix::sys::signal::raise;

    // `raise` tells this thread alone, which has them blocked: the other tests of the process hear nothing.

    #[tokio::test]
    async fn what_came_before_anybody_listened_is_read_a_stop_first() {
        let blocked = Blocked::before_threads().unwrap();
        for signal in [Signal::SIGUSR2, Signal::SIGUSR2, Signal::SIGTERM] {
            raise(signal).unwrap();
        }
        let mut signals = blocked.listen().unwrap();
        assert_eq!(signals.next().await, Told::Stop);
        assert_eq!(signals.next().await, Told::Restart);
        assert_eq!(signals.next().now_or_never(), None);
        raise(Signal::SIGINT).unwrap();
        assert_eq!(signals.next().await, Told::Stop);
    }

    #[tokio::test]
    async fn looking_for_a_stop_takes_no_restart() {
        let mut signals = Blocked::before_threads().unwrap().listen().unwrap();
        raise(Signal::SIGUSR2).unwrap();
        assert!(!signals.stop_has_come());
        raise(Signal::SIGTERM).unwrap();
        assert!(signals.stop_has_come() && !signals.stop_has_come());
        assert_eq!(signals.next().await, Told::Restart);
    }

    #[test]
    fn what_waits_to_restart_does_not_end_who_does_not_know_of_it() {
        let _blocked = Blocked::before_threads().unwrap();
        raise(Signal::SIGUSR2).unwrap();
        // Else the process of all these tests ends here.
        let_through().unwrap();
        let blocked = SigSet::thread_get_mask().unwrap();
        assert!(all().iter().all(|signal| !blocked.contains(signal)));
    }
}
