//! The way of one operation: to its cursor, to its transaction, or where the route says.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;

use crate::clock::SharedClock;
use crate::cluster::command::{OnlyIf, ServerId};
use crate::cluster::{Pools, Role, Selection, TopologyKind};
use crate::model::side::Side;
use crate::policy::classify::Class;
use crate::state::ddl::UnderWay;
use crate::state::transactions::UserDigest;
use crate::wire::error::{ErrorReply, HOST_UNREACHABLE};
use crate::wire::reply::overwrite;

use super::cursors::CursorHome;
use super::dispatch::{Dispatch, Replied};
use super::entry::Passing;
use super::meters::Outcome;
use super::migrating::Course;
use super::operation::Operation;
use super::preference;
use super::route::Route;
use super::shapes::transaction_failed;
use super::shared::Shared;
use super::transacting::tell;
use super::transactions::TransactionHome;
use super::writer::{HOLD, Writer};

/// What the client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// The message in the reply buffer.
    Reply,
    /// Nothing: it asked for no reply.
    Silent,
}

/// The data plane of one worker.
pub struct Router {
    pub(super) shared: Arc<Shared>,
    pools: [Option<Arc<Pools>>; 2],
    route: Arc<dyn Route>,
    pub(super) writer: Option<Writer>,
    user: Option<UserDigest>,
}

impl Router {
    /// A router over the pools of its worker; `pools` by [`Side::index`].
    #[must_use]
    pub fn new(shared: Arc<Shared>, pools: [Option<Arc<Pools>>; 2], route: Arc<dyn Route>) -> Self {
        for (side, pools) in Side::BOTH.into_iter().zip(&pools) {
            if let Some(pools) = pools {
                shared.census.add(side, pools);
            }
        }
        Self { shared, pools, route, writer: None, user: None }
    }

    /// With the way through migrations.
    #[must_use]
    pub fn with_writer(mut self, writer: Writer) -> Self {
        self.writer = Some(writer);
        self
    }

    /// As another user than that of the connection strings.
    #[must_use]
    pub fn of_user(mut self, user: UserDigest) -> Self {
        self.user = Some(user);
        self
    }

    /// The pools of a cluster.
    ///
    /// # Errors
    /// An error to answer with when the cluster is not configured.
    pub fn pools(&self, side: Side) -> Result<&Arc<Pools>, ErrorReply> {
        self.pools[side.index()].as_ref().ok_or_else(|| {
            ErrorReply::new(HOST_UNREACHABLE, format!("the {} cluster is not configured", side.as_str()))
        })
    }

    /// The pools of both clusters, by [`Side::index`].
    #[must_use]
    pub fn all_pools(&self) -> &[Option<Arc<Pools>>; 2] {
        &self.pools
    }

    /// The cluster of an operation whose namespace does not migrate.
    pub(super) fn side_outside_migrations(&self, operation: &Operation<'_>) -> Side {
        self.route.side(operation)
    }

    /// Runs one operation; its answer is in `reply` afterwards unless it asked for none.
    /// A dropped future gives the operation up and closes its server connection.
    pub async fn handle(&self, operation: &Operation<'_>, reply: &mut BytesMut) -> Handled {
        let begun = self.shared.clock.now();
        if let Err(error) = self.routing_known().await {
            tell(operation, error, reply);
            return if operation.silent() { Handled::Silent } else { Handled::Reply };
        }
        let (side, result) = match operation.class {
            Class::GetMore => self.get_more(operation, reply).await,
            Class::KillCursors => self.kill_cursors(operation, reply).await,
            Class::SessionAdmin => self.every_cluster(operation, reply).await,
            Class::Write if self.is_divided(operation) => Box::pin(self.divided(operation, reply)).await,
            _ if operation.command.in_transaction() => self.transaction(operation, reply).await,
            Class::Ddl | Class::Admin if self.is_for_both(operation) => {
                Box::pin(self.on_both(operation, reply)).await
            }
            Class::Read if self.lists_both(operation) => Box::pin(self.list_both(operation, reply)).await,
            _ => self.outside_transactions(operation, reply).await,
        };
        let outcome = match &result {
            Ok(true) => Outcome::Ok,
            Ok(false) => Outcome::Refused,
            Err(_) => Outcome::Failed,
        };
        if let Err(error) = result {
            tracing::debug!(command = operation.command.name, error = error.message, "failed");
            tell(operation, error, reply);
        }
        let took = self.shared.clock.now().saturating_sub(begun);
        self.shared.meters.operation(operation.class, side, outcome, took);
        if operation.silent() { Handled::Silent } else { Handled::Reply }
    }

    /// After a start nothing is served until it is known who owns what.
    async fn routing_known(&self) -> Result<(), ErrorReply> {
        let Some(writer) = &self.writer else { return Ok(()) };
        if writer.gate.routing.peek().version > 0 {
            return Ok(());
        }
        let known = writer.gate.routing.changed_since(0);
        let in_time = crate::clock::timeout(&*self.shared.clock, HOLD, known).await;
        in_time.map_err(|_| super::entry::not_sent("the clusters' records cannot be read".into()))
    }

    pub(super) async fn outside_transactions(
        &self,
        operation: &Operation<'_>,
        reply: &mut BytesMut,
    ) -> (Side, Result<bool, ErrorReply>) {
        let mut side = self.route.side(operation);
        // Taken before it is looked up whether the namespace migrates, and kept until there is an answer.
        let writes = matches!(operation.class, Class::Write | Class::PipelineWrite);
        let _passing =
            self.writer.as_ref().filter(|_| writes).map(|writer| Passing::by(&writer.gate.routing));
        if let Some(watched) = self.watched(operation) {
            return Box::pin(self.open_stream(operation, watched, reply)).await;
        }
        if let Err(error) = self.served_together(operation) {
            return (side, Err(error));
        }
        if let Some(created) = Box::pin(self.create_newcomer(operation, reply)).await {
            return (side, created);
        }
        if let Err(error) = self.admit(operation).await {
            return (side, Err(error));
        }
        let _changing = match self.may_change(operation).await {
            Ok(changing) => changing,
            Err(error) => return (side, Err(error)),
        };
        let migration = self.migration_of(operation);
        let mut sampled = None;
        if let Some(route) = &migration {
            sampled = self.sampled(operation, route);
            // Boxed: most operations never come here, and a client's task is as large as its largest await.
            let course = Box::pin(self.through_migration(operation, route, reply)).await;
            match course {
                Ok(Course::Plain(chosen)) => side = chosen,
                Ok(Course::Answered(side, ok)) => {
                    self.hand_over(sampled, operation, side, reply);
                    return (side, Ok(ok));
                }
                Err(error) => return (side, Err(error)),
            }
        }
        let unfollowed = self.unfollowed(operation, migration.is_some());
        let begun = self.shared.clock.now();
        let result = self.plain(operation, side, reply).await;
        if let Some(route) = &migration {
            self.note_read(operation, route, side, begun, &result, reply);
        }
        if let Some(unfollowed) = unfollowed {
            unfollowed.end(&result);
        }
        if result.is_ok() {
            self.hand_over(sampled, operation, side, reply);
        }
        (side, result)
    }

    async fn may_change(&self, operation: &Operation<'_>) -> Result<Option<UnderWay>, ErrorReply> {
        match operation.class {
            Class::Ddl | Class::Admin | Class::Unknown => Box::pin(self.change(operation)).await,
            _ => Ok(None),
        }
    }

    /// Forwards an operation outside transactions to `side` and returns whether the reply says `ok: 1`.
    /// The reply is fit for the client: cursors are known, `$clusterTime` is gone.
    ///
    /// # Errors
    /// The error to answer with.
    pub async fn plain(
        &self,
        operation: &Operation<'_>,
        side: Side,
        reply: &mut BytesMut,
    ) -> Result<bool, ErrorReply> {
        let selection = if operation.class.follows_read_preference() {
            preference::selection(operation.command.read_preference)
        } else {
            Selection::Primary
        };
        let snapshot = self.snapshot(operation, side)?;
        let replied = self.forward(operation, side, &selection, None, reply).await?;
        let ok = self.finish(operation, side, replied, reply);
        if let Some(snapshot) = snapshot.filter(|_| ok) {
            self.note_snapshot(&snapshot, side, reply);
        }
        Ok(ok)
    }

    /// As [`Self::plain`], waiting for a server no longer than `hold`.
    pub(super) async fn plain_within(
        &self,
        operation: &Operation<'_>,
        side: Side,
        hold: Duration,
        reply: &mut BytesMut,
    ) -> Result<bool, ErrorReply> {
        let selection = preference::selection(operation.command.read_preference);
        let pools = self.pools(side)?;
        let patched = operation.patched(pools.times());
        let dispatch = Dispatch {
            side,
            selection: &selection,
            kind: operation.kind(),
            hold: operation.hold().min(hold),
            only_if: None,
            message: operation.message,
            patched: &patched,
        };
        let replied = self.send(&dispatch, reply).await?;
        Ok(self.finish(operation, side, replied, reply))
    }

    /// Sends an operation to `side` with the changes that every message needs. The reply is as the server
    /// sent it; [`Self::finish`] makes it fit for the client.
    ///
    /// # Errors
    /// The error to answer with.
    pub async fn forward(
        &self,
        operation: &Operation<'_>,
        side: Side,
        selection: &Selection,
        only_if: Option<OnlyIf>,
        reply: &mut BytesMut,
    ) -> Result<Replied, ErrorReply> {
        let pools = self.pools(side)?;
        let patched = operation.patched(pools.times());
        let dispatch = Dispatch {
            side,
            selection,
            kind: operation.kind(),
            hold: operation.hold(),
            only_if,
            message: operation.message,
            patched: &patched,
        };
        self.send(&dispatch, reply).await
    }

    /// Sends a message over this worker's pools.
    ///
    /// # Errors
    /// The error to answer with.
    pub async fn send(&self, dispatch: &Dispatch<'_>, reply: &mut BytesMut) -> Result<Replied, ErrorReply> {
        let pools = self.pools(dispatch.side)?;
        dispatch.send(pools, &*self.shared.clock, &self.shared.meters, reply).await
    }

    /// Makes a server's reply fit for the client and returns whether it says `ok: 1`: remembers a new
    /// cursor, gives it another id if its own is taken, removes what belongs to one cluster or server.
    pub fn finish(
        &self,
        operation: &Operation<'_>,
        side: Side,
        replied: Replied,
        reply: &mut BytesMut,
    ) -> bool {
        let Replied { fields, server } = replied;
        let ok = fields.ok;
        if ok
            && let Some(cursor) = &fields.cursor
            && cursor.value != 0
        {
            let awaits = operation.opens_a_waiting_cursor();
            let home = CursorHome { side, server, id: cursor.value, awaits };
            let id = self.shared.cursors.open(home, self.shared.clock.now());
            if id != cursor.value {
                overwrite(reply, &cursor.place, id);
            }
        }
        fields.strip(reply);
        ok
    }

    pub(super) async fn transaction(
        &self,
        operation: &Operation<'_>,
        reply: &mut BytesMut,
    ) -> (Side, Result<bool, ErrorReply>) {
        let command = &operation.command;
        let key = command.session().zip(command.txn_number);
        let now = self.shared.clock.now();
        let known = key.filter(|_| !command.start_transaction);
        let known = known.and_then(|(session, number)| self.shared.transactions.find(&session, number, now));
        let bound = known.as_ref().map(|home| home.side);
        let side = match Box::pin(self.enter_transaction(operation, bound)).await {
            Ok(side) => side.unwrap_or_else(|| self.route.side(operation)),
            Err(error) => {
                if let Some(key) = key.filter(|_| command.start_transaction) {
                    // Nothing was sent: nobody need wait for it.
                    self.shared.open_transactions.take(&key);
                }
                return (bound.unwrap_or(Side::Old), Err(error));
            }
        };
        let selection = self.transaction_server(side, operation.class, known.map(|home| home.server));
        let only_if = key.and_then(|key| self.shared.open_transactions.only_if_held(&key));
        let replied = self.forward(operation, side, &selection, only_if, reply).await;
        let failed = replied.as_ref().map_or(true, |replied| transaction_failed(&replied.fields));
        self.note_besides(operation, side, failed);
        key.iter().for_each(|key| self.note_end(operation, key, side, failed));
        let replied = match replied {
            Ok(replied) => replied,
            Err(error) => return (side, Err(error)),
        };
        if command.start_transaction
            && let Some((session, number)) = key
        {
            let home = TransactionHome { side, server: replied.server.clone(), user: self.user };
            self.shared.transactions.begin(session, number, home, now);
        }
        if let Err(error) =
            Box::pin(self.leave_transaction(operation, side, &replied.server, &replied.fields)).await
        {
            return (side, Err(error));
        }
        let ok = self.finish(operation, side, replied, reply);
        self.add_recovery_token(side, ok, reply);
        (side, Ok(ok))
    }

    /// The primary of a replica set; of a sharded cluster the router that has the transaction. A commit or
    /// an abort goes to any router when that one is gone (its recovery token tells the other what to do).
    fn transaction_server(&self, side: Side, class: Class, server: Option<ServerId>) -> Selection {
        let (Some(server), Ok(pools)) = (server, self.pools(side)) else { return Selection::Primary };
        if !self.is_sharded(side) {
            return Selection::Primary;
        }
        let topology = pools.cluster().topology();
        let gone = topology.server(&server).is_none_or(|known| known.role != Role::Router);
        if gone && matches!(class, Class::Commit | Class::Abort) {
            return Selection::Primary;
        }
        Selection::Server(server)
    }

    pub(super) fn is_sharded(&self, side: Side) -> bool {
        self.pools(side).is_ok_and(|pools| pools.cluster().topology().kind == TopologyKind::Sharded)
    }

    /// Now, on the process's clock.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.shared.clock.now()
    }

    /// The process's clock.
    #[must_use]
    pub fn clock(&self) -> &SharedClock {
        &self.shared.clock
    }
}
