//! The users who have logged in at one worker: each has connections of its own to the clusters, so that servers see
//! who does what, and allow no more than they would without a proxy.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::scram::Stored;
use super::worker::{BuildRouter, User};
use crate::cluster::login::Login;
use crate::cluster::scram::{Hash, Keys};
use crate::router::Router;

/// How long a user without a client keeps connections.
const KEEP: Duration = Duration::from_secs(60);
/// Users of a worker; beyond it those without a client are forgotten at once.
const MOST: usize = 1_000;

/// A user, and the way to the clusters as that user.
pub(super) struct Account {
    /// `user@database`.
    pub(super) name: String,
    pub(super) router: Router,
    pub(super) credentials: Credentials,
}

/// What a user who has logged in is known by.
#[derive(Clone)]
pub(super) struct Credentials {
    /// The database.
    pub(super) source: String,
    pub(super) user: String,
    /// What the servers store.
    pub(super) stored: Stored,
    /// What the client knows instead of the password.
    pub(super) keys: Keys,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Account").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All users of one worker.
pub(super) struct Accounts {
    build: BuildRouter,
    known: Mutex<HashMap<Key, Known>>,
}

/// With another password the same user is another one.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    name: String,
    hash: Hash,
    stored_key: Vec<u8>,
}

struct Known {
    account: Arc<Account>,
    used: Instant,
}

impl Accounts {
    pub(super) fn new(build: BuildRouter) -> Self {
        Self { build, known: Mutex::default() }
    }

    /// The account of who has proven to have `credentials`.
    pub(super) fn of(&self, credentials: Credentials, beside: &Router) -> Arc<Account> {
        let Credentials { source, user, stored, keys } = &credentials;
        let name = format!("{user}@{source}");
        let key = Key { name: name.clone(), hash: stored.hash, stored_key: stored.stored_key.clone() };
        let now = Instant::now();
        let mut known = self.known.lock();
        let is_full = known.len() >= MOST;
        known.retain(|_, it| {
            let is_used = Arc::strong_count(&it.account) > 1;
            is_used || !is_full && now.duration_since(it.used) < KEEP
        });
        let entry = known.entry(key).or_insert_with(|| {
            let (salt, keys) = (stored.salt.clone(), keys.clone());
            let login = Login::with_keys((source, user), stored.hash, salt, stored.iterations, keys);
            let router = (self.build)(Some(User {
                digest: Sha256::digest(&name).into(),
                login: Arc::new(login),
                beside,
            }));
            let credentials = credentials.clone();
            Known { account: Arc::new(Account { name, router, credentials }), used: now }
        });
        entry.used = now;
        entry.account.clone()
    }
}
