//! How a member serves one command: wait as its read concern says, run it, wait as its write concern says.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bson::raw::{RawDocumentBuf, cstr};
use bson::{Timestamp, rawdoc};
use futures::future::select;
use reshard::cluster::command::{Reply, Request, Target};

use super::cluster::Cluster;
use super::command::{Command, ReadConcern, WriteConcern};
use super::cursor::Source;
use super::error::{
    Failure, INTERRUPTED, INVALID_OPTIONS, MAX_TIME_EXPIRED, NOT_PRIMARY, Outcome, STEPPED_DOWN, labels,
};
use super::log::Op;
use super::state::{Place, State};
use super::{about, admin, find_and_modify, read, stream, write_command};
use crate::executor::ProcessId;

/// Who sent a command.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The process.
    pub(crate) process: ProcessId,
    /// The `appName` of its connection.
    pub(crate) app: Arc<str>,
}

/// One command while it is served.
struct Service<'a> {
    cluster: &'a Cluster,
    command: Command<'a>,
    app: &'a str,
    operation: i32,
    /// The term of the member that serves it.
    term: u32,
    /// When `maxTimeMS` is over.
    deadline: Option<Duration>,
}

/// What a wait looks at.
enum Look<T> {
    Done(T),
    Wait,
}

impl Cluster {
    /// Serves one command to its reply. It begins `delay` after its arrival; it can be killed before.
    pub(crate) async fn serve(&self, caller: &Caller, request: &Request, delay: Duration) -> Reply {
        let command = match Command::parse(request) {
            Ok(command) => command,
            Err(failure) => return self.refuse(&failure),
        };
        let now = self.inner.executor.now();
        let deadline = command.max_time().filter(|_| command.name != "getMore").map(|limit| now + limit);
        let (operation, term) = {
            let mut state = self.state();
            let Some(place) = route(&mut state, caller, request) else {
                drop(state);
                return self.refuse(&Failure::new(NOT_PRIMARY, "not primary"));
            };
            let term = state.member(place).term;
            (state.connections.begin(&caller.app, command.name), term)
        };
        let service = Service { cluster: self, command, app: &caller.app, operation, term, deadline };
        let reply = service.run(delay).await;
        self.inner.state.lock().connections.finish(operation);
        reply
    }

    fn refuse(&self, failure: &Failure) -> Reply {
        let server = self.inner.state.lock().primary.server.clone();
        Reply { body: failure.reply(), operation_time: None, server }
    }
}

/// The member that a command reaches. A process that has heard of the new primary never asks the old one.
fn route(state: &mut State, caller: &Caller, request: &Request) -> Option<Place> {
    let primary = state.primary.term;
    let Target::Server(server) = &request.target else {
        let unaware = state.views.get(&caller.process).is_none_or(|&term| term < primary);
        if state.stale.is_some() && unaware && state.rng.chance(500) {
            return Some(Place::Stale);
        }
        state.views.insert(caller.process, primary);
        return Some(Place::Primary);
    };
    if state.primary.server == *server {
        return Some(Place::Primary);
    }
    state.stale.as_ref().filter(|stale| stale.member.server == *server).map(|_| Place::Stale)
}

impl Service<'_> {
    async fn run(&self, delay: Duration) -> Reply {
        let concern = self.command.read_concern();
        if !delay.is_zero() {
            self.cluster.inner.executor.sleep(delay).await;
        }
        let result = match self.wait_for_time(concern).await {
            Ok(()) if self.command.name == "getMore" => self.get_more().await,
            Ok(()) => self.execute().await,
            Err(failure) => Err(failure),
        };
        let mut body = match result {
            Ok(body) => body,
            Err(failure) => failure.reply(),
        };
        let failed = body.get("ok").ok().flatten().is_some();
        if !failed {
            body.append(cstr!("ok"), 1.0);
        }
        let state = self.cluster.inner.state.lock();
        let place = state.place_of(self.term).unwrap_or(Place::Primary);
        let member = state.member(place);
        let time = if concern.majority { state.majority(place).time } else { member.applied };
        Reply { body, operation_time: Some(time), server: member.server.clone() }
    }

    /// Runs the command and waits for the majority if it has to.
    async fn execute(&self) -> Outcome<RawDocumentBuf> {
        let (body, wrote, concern) = {
            let mut state = self.cluster.state();
            self.check_killed(&state)?;
            let place = self.place(&state)?;
            let concern = self.command.write_concern(state.default_majority);
            let seen = state.member(place).tail.len();
            let body = dispatch(&mut state, place, &self.command);
            if let Some(observer) = state.observer.clone() {
                state.member(place).tail.range(seen..).for_each(|entry| observer(self.app, place, entry));
            }
            let body = body?;
            if self.command.read_concern().linearizable {
                // As servers do it: an empty entry that the majority must get proves who is primary.
                let (member, clock, _) = state.writer(place);
                member.append(clock.tick(), 0, Op::Noop, None);
                (body, Some(state.member(place).applied), WriteConcern { majority: true, limit: None })
            } else {
                (body, is_write(self.command.name).then(|| state.member(place).applied), concern)
            }
        };
        let Some(time) = wrote else { return Ok(body) };
        self.cluster.schedule_commit();
        if !concern.majority {
            return Ok(body);
        }
        let limit = concern.limit.map(|limit| self.cluster.inner.executor.now() + limit);
        let waited = self.wait(limit.or(self.deadline), |state, place| {
            if state.majority(place).time >= time { Look::Done(()) } else { Look::Wait }
        });
        if self.command.read_concern().linearizable {
            return waited.await.map(|()| body);
        }
        Ok(with_concern_error(body, waited.await, limit.is_some()))
    }

    /// Waits until the member has what `afterClusterTime` asks for.
    async fn wait_for_time(&self, concern: ReadConcern) -> Outcome<()> {
        let Some(after) = concern.after else { return Ok(()) };
        {
            let mut state = self.cluster.state();
            self.catch_up(&mut state, after)?;
        }
        self.cluster.schedule_commit();
        self.wait(self.deadline, |state, place| {
            let has = if concern.majority { state.majority(place).time } else { state.member(place).applied };
            if has >= after { Look::Done(()) } else { Look::Wait }
        })
        .await
    }

    /// A primary that is behind a time that is known writes an empty entry to get there.
    fn catch_up(&self, state: &mut State, after: Timestamp) -> Outcome<()> {
        let known = state.clock.time;
        if after > known {
            let message = format!(
                "readConcern afterClusterTime {after:?} must not be greater than clusterTime {known:?}"
            );
            return Err(Failure::new(INVALID_OPTIONS, message));
        }
        if self.place(state)? == Place::Primary && state.primary.applied < after {
            state.noop();
        }
        Ok(())
    }

    /// Reads on; a stream waits for events.
    async fn get_more(&self) -> Outcome<RawDocumentBuf> {
        let id = self.command.number("getMore").unwrap_or(0);
        let size = self.command.number("batchSize").map(|size| size as usize);
        let limit = self.command.max_time().unwrap_or(Duration::from_secs(1));
        let end = self.cluster.inner.executor.now() + limit;
        let executor = &self.cluster.inner.executor;
        self.wait(Some(end), |state, place| {
            let Some(cursor) = state.cursors.take(id) else { return Look::Done(Err(read::not_found(id))) };
            let is_stream = matches!(cursor.source, Source::Stream(_));
            let elsewhere = cursor.term != self.term;
            state.cursors.put_back(id, cursor);
            if elsewhere {
                return Look::Done(Err(read::not_found(id)));
            }
            if !is_stream {
                return Look::Done(read::more(state, place, id, size));
            }
            match stream::more(state, place, id, size, executor.now() < end) {
                Ok(Some(reply)) => Look::Done(Ok(reply)),
                Ok(None) => Look::Wait,
                Err(failure) => Look::Done(Err(failure)),
            }
        })
        .await?
    }

    fn check_killed(&self, state: &State) -> Outcome<()> {
        if state.connections.killed(self.operation) {
            return Err(Failure::new(INTERRUPTED, "operation was interrupted"));
        }
        Ok(())
    }

    fn place(&self, state: &State) -> Outcome<Place> {
        state.place_of(self.term).ok_or_else(stepped_down)
    }

    /// Looks again at every change, until `end`, a step-down or `killOp`. At `end` it looks once more.
    async fn wait<T>(
        &self,
        end: Option<Duration>,
        mut look: impl FnMut(&mut State, Place) -> Look<T>,
    ) -> Outcome<T> {
        loop {
            {
                let mut state = self.cluster.state();
                self.check_killed(&state)?;
                let place = self.place(&state)?;
                if let Look::Done(value) = look(&mut state, place) {
                    return Ok(value);
                }
            }
            // Nobody runs between the look and this.
            let mut changed = pin!(self.cluster.inner.changed.notified());
            changed.as_mut().enable();
            let Some(end) = end else {
                changed.await;
                continue;
            };
            let now = self.cluster.inner.executor.now();
            if now >= end {
                return Err(Failure::new(MAX_TIME_EXPIRED, "operation exceeded time limit"));
            }
            let _ = select(changed, self.cluster.inner.executor.sleep(end - now)).await;
        }
    }
}

fn stepped_down() -> Failure {
    Failure::new(STEPPED_DOWN, "operation was interrupted")
}

fn with_concern_error(mut body: RawDocumentBuf, waited: Outcome<()>, timed: bool) -> RawDocumentBuf {
    if let Err(failure) = waited {
        let code = if timed && failure.code == MAX_TIME_EXPIRED { 64 } else { failure.code };
        body.append(cstr!("writeConcernError"), rawdoc! { "code": code, "errmsg": failure.message });
        if code == STEPPED_DOWN {
            body.append(cstr!("errorLabels"), labels());
        }
    }
    body
}

fn is_write(name: &str) -> bool {
    matches!(
        name,
        "insert"
            | "update"
            | "delete"
            | "findAndModify"
            | "findandmodify"
            | "create"
            | "createIndexes"
            | "drop"
            | "appendOplogNote"
    )
}

fn dispatch(state: &mut State, place: Place, command: &Command<'_>) -> Outcome<RawDocumentBuf> {
    if let Some(told) = about::run(state, place, command) {
        return Ok(told);
    }
    match command.name {
        "insert" | "update" | "delete" => write_command::run(state, place, command),
        "findAndModify" | "findandmodify" => find_and_modify::run(state, place, command),
        "find" => read::find(state, place, command),
        "count" => read::count(state, place, command),
        "aggregate" if stream::is_stream(command) => stream::open(state, place, command),
        "aggregate" if admin::is_current_op(command) => admin::current_op(state, command),
        "aggregate" => read::aggregate(state, place, command),
        _ => admin::run(state, place, command),
    }
}
