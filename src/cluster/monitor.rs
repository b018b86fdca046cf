//! Watching one server: asks it `hello` again and again, for as long as it belongs to the cluster.
//! Source: specifications/source/server-discovery-and-monitoring/server-monitoring.md.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::connection::Connection;
use super::connector::ConnectError;
use super::handle::Cluster;
use super::hello::{self, HelloReply, TopologyVersion};
use super::member::Member;
use crate::model::span::spoken;

/// Checks that somebody asks for follow each other no faster than this.
pub(super) const MIN_INTERVAL: Duration = Duration::from_millis(500);

/// New connections for checks that somebody asks for follow each other no faster than this.
const RECHECK_INTERVAL: Duration = Duration::from_millis(100);

/// A connection for checks, and what comes next on it.
struct Link {
    connection: Connection,
    hello_ok: bool,
    /// Let the server hold its answer back until it is not as described here any more.
    hold: Option<TopologyVersion>,
    /// The server can hold answers back.
    can_hold: bool,
}

struct Monitor {
    cluster: Arc<Cluster>,
    member: Arc<Member>,
    link: Option<Link>,
    last_recheck: Option<Instant>,
}

/// Watches `member` until it is removed.
pub(super) async fn watch(cluster: Arc<Cluster>, member: Arc<Member>) {
    let stop = member.stop.clone();
    let mut monitor = Monitor { cluster, member, link: None, last_recheck: None };
    tokio::select! {
        () = stop.cancelled() => {}
        () = monitor.run() => {}
    }
}

/// A check that failed, or was given up because somebody wants a new one.
enum Interrupted {
    Failed(String),
    /// The server did not answer in time.
    Hung(String),
    Recheck,
}

impl Monitor {
    async fn run(&mut self) {
        loop {
            let began = Instant::now();
            let was_linked = self.link.is_some();
            match self.check().await {
                Ok(()) if self.link.as_ref().is_some_and(|link| link.can_hold) => {}
                Ok(()) => self.pause(began).await,
                Err(Interrupted::Recheck) => {
                    self.link = None;
                    if let Some(last) = self.last_recheck.replace(Instant::now()) {
                        sleep_until(last + RECHECK_INTERVAL).await;
                    }
                }
                Err(Interrupted::Hung(error)) => {
                    self.link = None;
                    self.cluster.note_hung(&self.member, error);
                    self.pause(began).await;
                }
                Err(Interrupted::Failed(error)) => {
                    self.link = None;
                    tracing::debug!(server = %self.member.address, error, "check failed");
                    self.cluster.note_check_failed(&self.member, error);
                    // A broken connection may be all that is wrong: ask again at once on a new one.
                    if !was_linked {
                        self.pause(began).await;
                    }
                }
            }
        }
    }

    /// Waits for the next heartbeat; less when somebody seeks a server.
    async fn pause(&self, began: Instant) {
        sleep_until(began + MIN_INTERVAL).await;
        tokio::select! {
            () = sleep_until(began + self.cluster.settings().heartbeat) => {}
            () = self.member.wake.notified() => {}
            () = self.member.recheck.notified() => {}
        }
    }

    async fn check(&mut self) -> Result<(), Interrupted> {
        let Some(link) = &mut self.link else {
            return self.check_on_new_connection().await;
        };
        let settings = self.cluster.settings();
        let began = Instant::now();
        let hold = link.hold.take();
        let command = hello::check(link.hello_ok, hold.map(|version| (version, settings.heartbeat)));
        let limit = settings.connect_timeout + hold.map_or(Duration::ZERO, |_| settings.heartbeat);
        let answer = timeout(limit, link.connection.command(&command));
        let answer = tokio::select! {
            answer = answer => answer,
            () = self.member.recheck.notified(), if hold.is_some() => return Err(Interrupted::Recheck),
        };
        let hello = answer
            .map_err(|_| Interrupted::Hung(format!("no answer to hello within {}", spoken(limit))))?
            .map_err(|error| error.to_string())
            .and_then(|answer| HelloReply::parse(&answer).map_err(|error| error.to_string()))
            .map_err(Interrupted::Failed)?;
        // After an answer that was held back for the whole time, one that is not measures the round trip.
        let changed = hold.is_some_and(|version| hello.topology_version != Some(version));
        link.can_hold = hello.topology_version.is_some();
        link.hold = hello.topology_version.filter(|_| hold.is_none() || changed);
        let rtt = hold.is_none().then(|| began.elapsed());
        self.cluster.note_hello(&self.member.address, &hello, rtt);
        Ok(())
    }

    async fn check_on_new_connection(&mut self) -> Result<(), Interrupted> {
        let opened = self.cluster.connector().open_for_checks(&self.member.address).await;
        let opened = opened.map_err(|error| match error {
            ConnectError::TimedOut(error) => Interrupted::Hung(error),
            ConnectError::Unreachable(error) | ConnectError::Hopeless(error) => Interrupted::Failed(error),
        })?;
        self.link = Some(Link {
            connection: opened.connection,
            hello_ok: opened.hello.hello_ok,
            hold: opened.hello.topology_version,
            can_hold: opened.hello.topology_version.is_some(),
        });
        self.cluster.note_hello(&self.member.address, &opened.hello, Some(opened.rtt));
        Ok(())
    }
}
