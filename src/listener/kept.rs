//! Clients that outlive the process: what the next one must know of a connection to go on with it.
//!
//! It finds each where this one left it, between two requests. Not kept are connections that are encrypted, as their
//! keys cannot be passed on, and those that are about to log in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use tokio::time::timeout;

use crate::cluster::scram::{Hash, Keys};
use crate::handover::Kept;
use crate::model::capabilities::Capabilities;
use crate::wire::compressed::{Compressor, Compressors};

use super::acceptor::Listener;
use super::accounts::Credentials;
use super::belongings::{Belongings, OpenCursors, OpenTransactions};
use super::face::{Face, ReplicaSet};
use super::hello::Greeting;
use super::scram::Stored;
use super::session::Context;
use super::settings::Entrance;
use super::waiting::Waiting;
use super::worker::{Ending, Workers};

/// What is known of a client.
#[derive(Serialize, Deserialize)]
pub(super) struct Known {
    /// What it came in by, see [`sign`].
    sign: String,
    /// What it was told of the clusters, by this process or one before it.
    told: Option<Capabilities>,
    pub(super) connection_id: i32,
    introduced: bool,
    application: Option<String>,
    balanced: bool,
    agreed: Vec<String>,
    hello: Option<Hello>,
    unread: ByteBuf,
    user: Option<LoggedIn>,
    /// Of a client behind a balancer.
    cursors: OpenCursors,
    /// The same.
    transactions: OpenTransactions,
    /// It came in by what is not there any more, or looks otherwise now.
    #[serde(skip)]
    refused: bool,
}

/// A `hello` that waits.
#[derive(Serialize, Deserialize)]
struct Hello {
    message: ByteBuf,
    answers_to: i32,
    streams: bool,
}

/// Who has logged in.
#[derive(Serialize, Deserialize)]
struct LoggedIn {
    source: String,
    user: String,
    mechanism: String,
    salt: ByteBuf,
    iterations: u32,
    stored_key: ByteBuf,
    server_key: ByteBuf,
    client_key: ByteBuf,
}

/// All that a client can tell of the socket it came in by: the next process may go on with it only where that is the
/// same.
pub(super) fn sign(bound: SocketAddr, entrance: &Entrance) -> Arc<str> {
    let Entrance { face, tls, login, .. } = entrance;
    let set = match face {
        Face::Mongos | Face::LoadBalanced => String::new(),
        Face::ReplicaSet(ReplicaSet { name, host, tags, secondaries }) => {
            let others = secondaries.iter().map(|other| (other.address, &other.host, &other.tags));
            format!("{:?}", (name, host, tags, others.collect::<Vec<_>>()))
        }
    };
    format!("{bound} {} {set} tls={} login={login}", face.name(), tls.is_some()).into()
}

impl Known {
    /// Of the client behind `greeting`; `None`: it is about to log in.
    pub(super) fn of(greeting: &mut Greeting) -> Option<Self> {
        if greeting.pending.is_some() {
            return None;
        }
        let agreed = Compressor::ALL.into_iter().filter(|one| greeting.agreed.contain(*one));
        let hello = greeting.waiting.take().map(|waiting| Hello {
            message: ByteBuf::from(waiting.message),
            answers_to: waiting.answers_to,
            streams: waiting.streams,
        });
        let belongings = greeting.belongings.take().unwrap_or_default();
        let (cursors, transactions) = belongings.into_parts();
        Some(Self {
            sign: greeting.sign.to_string(),
            told: greeting.told,
            connection_id: greeting.connection_id,
            introduced: greeting.introduced,
            application: greeting.application.take().map(Into::into),
            balanced: greeting.balanced,
            agreed: agreed.map(|one| one.name().to_owned()).collect(),
            hello,
            unread: ByteBuf::from(std::mem::take(&mut greeting.unread)),
            user: greeting.account.take().map(|account| LoggedIn::of(&account.credentials)),
            cursors,
            transactions,
            refused: false,
        })
    }

    /// Makes `greeting`, which is new, know it. Returns whether its client may be served: not, if it came in by what
    /// is not there any more.
    pub(super) fn tell(self, greeting: &mut Greeting, context: &Context) -> bool {
        greeting.told = self.told;
        greeting.introduced = self.introduced;
        greeting.application = self.application.map(Into::into);
        greeting.balanced = self.balanced;
        let agreed =
            Compressor::ALL.into_iter().filter(|one| self.agreed.iter().any(|name| name == one.name()));
        greeting.agreed = agreed.fold(Compressors::NONE, Compressors::with);
        greeting.waiting = self.hello.map(|Hello { message, answers_to, streams }| {
            Box::new(Waiting::left_by_another(message.into_vec().into(), answers_to, streams))
        });
        greeting.unread = self.unread.into_vec().into();
        let credentials = self.user.and_then(LoggedIn::credentials);
        greeting.account = credentials.map(|credentials| context.accounts.of(credentials, &context.router));
        if !self.cursors.is_empty() || !self.transactions.is_empty() {
            greeting.belongings = Some(Box::new(Belongings::from_parts(self.cursors, self.transactions)));
        }
        !self.refused
    }
}

/// How long a client that knows the clusters already waits for this process to know them: as long as its operations wait
/// for a server, at an election for example.
const UNTIL_KNOWN: Duration = Duration::from_secs(30);

/// Whether a client that another process served may be served: not, if it was told of more than there is now, as it
/// would not ask again. Waits until that is known, or the next process is to look.
pub(super) async fn fits(greeting: &Greeting, context: &Context, ending: &Ending) -> bool {
    let Some(told) = greeting.told else { return true };
    tokio::select! {
        biased;
        shown = timeout(UNTIL_KNOWN, context.capabilities.wait()) => {
            shown.is_ok_and(|shown| told.and(*shown) == told)
        }
        () = ending.time_to_keep(false) => true,
        () = ending.drain.cancelled() => false,
    }
}

impl LoggedIn {
    fn of(Credentials { source, user, stored, keys }: &Credentials) -> Self {
        Self {
            source: source.clone(),
            user: user.clone(),
            mechanism: stored.hash.mechanism_name().to_owned(),
            salt: ByteBuf::from(stored.salt.as_slice()),
            iterations: stored.iterations,
            stored_key: ByteBuf::from(stored.stored_key.as_slice()),
            server_key: ByteBuf::from(stored.server_key.as_slice()),
            client_key: ByteBuf::from(keys.client.as_slice()),
        }
    }

    /// `None`: a mechanism that is not known here. The client must log in again.
    fn credentials(self) -> Option<Credentials> {
        let hash = Hash::ALL.into_iter().find(|hash| hash.mechanism_name() == self.mechanism)?;
        let server_key = self.server_key.into_vec();
        Some(Credentials {
            source: self.source,
            user: self.user,
            keys: Keys { client: self.client_key.into_vec(), server: server_key.clone() },
            stored: Stored {
                hash,
                salt: self.salt.into_vec(),
                iterations: self.iterations,
                stored_key: self.stored_key.into_vec(),
                server_key,
            },
        })
    }
}

/// Goes on with `clients`, of the sockets of `listeners`; returns how many those are. The others are closed.
pub fn take_on(clients: Vec<Kept>, listeners: &[&Listener], workers: &Workers) -> usize {
    let mut taken = 0;
    for (turn, Kept { socket, known }) in clients.into_iter().enumerate() {
        let Ok(mut known) = bson::deserialize_from_slice::<Known>(&known) else { continue };
        let same = listeners.iter().find(|listener| *listener.sign() == *known.sign);
        // What one that is refused has left open must be ended all the same.
        let Some(listener) = same.or(listeners.first()) else { continue };
        taken += usize::from(same.is_some());
        known.refused = same.is_none();
        workers.go_on_with(turn, socket.into(), listener.door(), known);
    }
    taken
}
