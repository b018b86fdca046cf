//! Logging in on a new connection. Source: specifications/source/auth/auth.md.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use bson::raw::cstr;
use bson::{Binary, RawDocumentBuf, rawdoc, spec::BinarySubtype};
use parking_lot::Mutex;

use super::command::{ServerError, number};
use super::connection::{Connection, ExchangeError};
use super::scram::{Challenge, Exchange, Hash, Keys, ScramError};
use super::uri::{Credential, Mechanism, Secret};

/// Why a login failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoginError {
    /// The connection failed.
    #[error("{0}")]
    Exchange(#[from] ExchangeError),
    /// The server said no.
    #[error("{0}")]
    Server(#[from] ServerError),
    /// The server does not follow the protocol, or does not know the user's keys.
    #[error("{0}")]
    Scram(#[from] ScramError),
    /// Only keys are known, and the server's credentials of the user are others.
    #[error(
        "{0} has other credentials there than where it logged in: passwords are not known here, so copy the user as it \
         is stored (mongodump and mongorestore of admin.system.users)"
    )]
    OtherCredentials(String),
}

/// AuthenticationFailed, MechanismUnavailable, UserNotFound, Unauthorized.
const HOPELESS: [i32; 4] = [18, 334, 11, 13];

impl LoginError {
    /// Whether the same login would fail again.
    pub(super) fn is_hopeless(&self) -> bool {
        match self {
            Self::Exchange(_) => false,
            Self::Server(error) => HOPELESS.contains(&error.code),
            Self::Scram(_) | Self::OtherCredentials(_) => true,
        }
    }
}

/// Logs in as one user, and remembers what is expensive to compute.
pub struct Login {
    credential: Credential,
    keys: Mutex<HashMap<KeyId, Keys>>,
    /// There is no password to compute others from.
    only_keys: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct KeyId {
    mechanism: &'static str,
    salt: Vec<u8>,
    iterations: u32,
}

impl Login {
    pub(super) fn new(credential: Credential) -> Self {
        Self { credential, keys: Mutex::default(), only_keys: false }
    }

    /// As the user `username` of the database `source`, whose password is not known, but what became of it with this
    /// salt and so many iterations.
    #[must_use]
    pub fn with_keys(
        (source, username): (&str, &str),
        hash: Hash,
        salt: Vec<u8>,
        iterations: u32,
        keys: Keys,
    ) -> Self {
        let mechanism = Some(match hash {
            Hash::Sha1 => Mechanism::ScramSha1,
            Hash::Sha256 => Mechanism::ScramSha256,
        });
        let (username, source) = (username.to_owned(), source.to_owned());
        let credential = Credential { username, password: Secret::new(""), source, mechanism };
        let id = KeyId { mechanism: hash.mechanism_name(), salt, iterations };
        Self { credential, keys: Mutex::new(HashMap::from([(id, keys)])), only_keys: true }
    }

    /// Who it is, as `user@database`.
    pub(super) fn name(&self) -> String {
        format!("{}@{}", self.credential.username, self.credential.source)
    }

    /// The user to name in the handshake when the server is to say which mechanisms it takes.
    pub(super) fn user_to_ask_for(&self) -> Option<String> {
        let ask = self.credential.mechanism.is_none();
        ask.then(|| format!("{}.{}", self.credential.source, self.credential.username))
    }

    /// Logs in on `connection`; `offered` is what the server's handshake said about mechanisms.
    pub(super) async fn run(
        &self,
        connection: &mut Connection,
        offered: Option<&[String]>,
    ) -> Result<(), LoginError> {
        let mechanism = self.credential.mechanism.unwrap_or_else(|| best(offered));
        match Hash::of(mechanism) {
            Some(hash) => self.scram(connection, hash).await,
            None => self.x509(connection).await,
        }
    }

    async fn x509(&self, connection: &mut Connection) -> Result<(), LoginError> {
        let mut command = rawdoc! { "authenticate": 1, "mechanism": "MONGODB-X509" };
        if !self.credential.username.is_empty() {
            command.append(cstr!("user"), self.credential.username.as_str());
        }
        command.append(cstr!("$db"), self.credential.source.as_str());
        send(connection, &command).await.map(|_| ())
    }

    async fn scram(&self, connection: &mut Connection, hash: Hash) -> Result<(), LoginError> {
        let nonce = BASE64.encode(rand::random::<[u8; 24]>());
        let exchange = Exchange::new(hash, &self.credential.username, nonce);
        let start = rawdoc! {
            "saslStart": 1,
            "mechanism": hash.mechanism_name(),
            "payload": binary(exchange.first()),
            "options": { "skipEmptyExchange": true },
            "$db": self.credential.source.as_str(),
        };
        let answer = send(connection, &start).await?;
        let challenge = exchange.challenge(payload(&answer)?)?;
        let Some(keys) = self.keys(hash, &challenge).await else {
            let Credential { username, source, .. } = &self.credential;
            return Err(LoginError::OtherCredentials(format!("{username} of {source}")));
        };
        let proof = exchange.proof(&challenge, &keys);
        let answer = self.proceed(connection, &answer, proof.message.clone()).await?;
        proof.verify(payload(&answer)?)?;
        if number(&answer, "done").unwrap_or(0.0) == 0.0 {
            // Servers before 4.4 do not know skipEmptyExchange.
            self.proceed(connection, &answer, String::new()).await?;
        }
        Ok(())
    }

    async fn proceed(
        &self,
        connection: &mut Connection,
        answer: &RawDocumentBuf,
        message: String,
    ) -> Result<RawDocumentBuf, LoginError> {
        let id = answer.get_i32("conversationId").map_err(|_| ScramError::Malformed("conversationId"))?;
        let command = rawdoc! {
            "saslContinue": 1,
            "conversationId": id,
            "payload": binary(message),
            "$db": self.credential.source.as_str(),
        };
        send(connection, &command).await
    }

    async fn keys(&self, hash: Hash, challenge: &Challenge) -> Option<Keys> {
        let id = KeyId {
            mechanism: hash.mechanism_name(),
            salt: challenge.salt.clone(),
            iterations: challenge.iterations,
        };
        if let Some(keys) = self.keys.lock().get(&id) {
            return Some(keys.clone());
        }
        if self.only_keys {
            return None;
        }
        let (credential, salt, iterations) = (self.credential.clone(), id.salt.clone(), id.iterations);
        // Off the reactor: thousands of hash rounds would hold up everything else on this thread.
        let derive = move || hash.keys(&credential, &salt, iterations);
        let keys = match tokio::task::spawn_blocking(derive).await {
            Ok(keys) => keys,
            // Only when the runtime shuts down.
            Err(_) => hash.keys(&self.credential, &id.salt, iterations),
        };
        self.keys.lock().insert(id, keys.clone());
        Some(keys)
    }
}

/// SCRAM-SHA-256 when the server offers it for this user, else what every server has.
fn best(offered: Option<&[String]>) -> Mechanism {
    let sha_256 = Hash::Sha256.mechanism_name();
    if offered.is_some_and(|offered| offered.iter().any(|name| name == sha_256)) {
        Mechanism::ScramSha256
    } else {
        Mechanism::ScramSha1
    }
}

impl std::fmt::Debug for Login {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Login").field("user", &self.credential.username).finish_non_exhaustive()
    }
}

async fn send(connection: &mut Connection, command: &RawDocumentBuf) -> Result<RawDocumentBuf, LoginError> {
    let reply = connection.command(command).await?;
    match ServerError::of(&reply) {
        Some(error) => Err(error.into()),
        None => Ok(reply),
    }
}

fn binary(message: String) -> Binary {
    Binary { subtype: BinarySubtype::Generic, bytes: message.into_bytes() }
}

fn payload(answer: &RawDocumentBuf) -> Result<&[u8], ScramError> {
    let payload = answer.get_binary("payload").map_err(|_| ScramError::Malformed("payload"))?;
    Ok(payload.bytes)
}
