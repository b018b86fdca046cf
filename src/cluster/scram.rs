//! SCRAM, and its client's side, without IO. Sources: RFC 5802, RFC 7677, specifications/source/auth/auth.md.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::uri::{Credential, Mechanism};

/// Fewer iterations than this would make a stolen exchange easy to break.
const MIN_ITERATIONS: u32 = 4096;

/// Why a SCRAM exchange failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// The server's message does not follow the RFC.
    #[error("unusable SCRAM message from the server: {0}")]
    Malformed(&'static str),
    /// The server could not prove that it knows the user.
    #[error("the server's SCRAM signature is wrong: it does not know this user's keys")]
    WrongSignature,
}

/// The hash function of the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hash {
    /// SCRAM-SHA-1.
    Sha1,
    /// SCRAM-SHA-256.
    Sha256,
}

/// Proof keys, expensive to derive, the same for every connection with the same salt.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// Proves that its owner knows the password.
    pub client: Vec<u8>,
    /// Proves that a server knows the user.
    pub server: Vec<u8>,
}

/// What the server wants the password to be mixed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Bytes.
    pub salt: Vec<u8>,
    /// How often.
    pub iterations: u32,
    nonce: String,
    message: String,
}

/// One login.
pub struct Exchange {
    hash: Hash,
    first_bare: String,
    nonce: String,
}

/// The second message and what the server must answer to it.
pub struct Proof {
    /// The second message.
    pub message: String,
    server_signature: Vec<u8>,
}

impl Hash {
    /// The hash of a SCRAM mechanism; `None` for others.
    pub fn of(mechanism: Mechanism) -> Option<Self> {
        match mechanism {
            Mechanism::ScramSha1 => Some(Self::Sha1),
            Mechanism::ScramSha256 => Some(Self::Sha256),
            Mechanism::X509 => None,
        }
    }

    /// Both.
    pub const ALL: [Self; 2] = [Self::Sha1, Self::Sha256];

    /// The mechanism's name on the wire.
    #[must_use]
    pub fn mechanism_name(self) -> &'static str {
        match self {
            Self::Sha1 => "SCRAM-SHA-1",
            Self::Sha256 => "SCRAM-SHA-256",
        }
    }

    /// The hash of `data`.
    #[must_use]
    pub fn digest(self, data: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha1 => Sha1::digest(data).to_vec(),
            Self::Sha256 => Sha256::digest(data).to_vec(),
        }
    }

    /// The keyed hash of `data`.
    #[must_use]
    pub fn mac(self, key: &[u8], data: &[u8]) -> Vec<u8> {
        // HMAC takes keys of every length, so the error cannot occur; an empty proof would only be refused.
        match self {
            Self::Sha1 => <Hmac<Sha1> as Mac>::new_from_slice(key)
                .map(|mac| mac.chain_update(data).finalize().into_bytes().to_vec()),
            Self::Sha256 => <Hmac<Sha256> as Mac>::new_from_slice(key)
                .map(|mac| mac.chain_update(data).finalize().into_bytes().to_vec()),
        }
        .unwrap_or_default()
    }

    /// Derives the keys; takes milliseconds of processor time.
    pub fn keys(self, credential: &Credential, salt: &[u8], iterations: u32) -> Keys {
        let password = self.prepared_password(credential);
        let salted = match self {
            Self::Sha1 => {
                pbkdf2::pbkdf2_hmac_array::<Sha1, 20>(password.as_bytes(), salt, iterations).to_vec()
            }
            Self::Sha256 => {
                pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password.as_bytes(), salt, iterations).to_vec()
            }
        };
        Keys { client: self.mac(&salted, b"Client Key"), server: self.mac(&salted, b"Server Key") }
    }

    /// The password as the mechanism uses it: MongoDB's SCRAM-SHA-1 hashes it with the user's name.
    fn prepared_password(self, credential: &Credential) -> String {
        let password = credential.password.reveal();
        match self {
            Self::Sha1 => {
                let digest = Md5::digest(format!("{}:mongo:{password}", credential.username).as_bytes());
                digest.iter().map(|byte| format!("{byte:02x}")).collect()
            }
            Self::Sha256 => password.to_owned(),
        }
    }
}

impl Exchange {
    /// Begins a login of `username`; `nonce` is random, printable, and has no comma.
    pub fn new(hash: Hash, username: &str, nonce: String) -> Self {
        let username = username.replace('=', "=3D").replace(',', "=2C");
        Self { hash, first_bare: format!("n={username},r={nonce}"), nonce }
    }

    /// The first message.
    pub fn first(&self) -> String {
        format!("n,,{}", self.first_bare)
    }

    /// Reads the server's answer to the first message.
    ///
    /// # Errors
    /// [`ScramError::Malformed`].
    pub fn challenge(&self, message: &[u8]) -> Result<Challenge, ScramError> {
        let message = text(message)?;
        let nonce = field(message, 'r')?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(ScramError::Malformed("nonce"));
        }
        let salt = BASE64.decode(field(message, 's')?).map_err(|_| ScramError::Malformed("salt"))?;
        let iterations = field(message, 'i')?.parse().map_err(|_| ScramError::Malformed("iterations"))?;
        if iterations < MIN_ITERATIONS {
            return Err(ScramError::Malformed("too few iterations"));
        }
        Ok(Challenge { salt, iterations, nonce: nonce.to_owned(), message: message.to_owned() })
    }

    /// The second message.
    pub fn proof(&self, challenge: &Challenge, keys: &Keys) -> Proof {
        let without_proof = format!("c=biws,r={}", challenge.nonce);
        let auth_message = format!("{},{},{without_proof}", self.first_bare, challenge.message);
        let stored_key = self.hash.digest(&keys.client);
        let signature = self.hash.mac(&stored_key, auth_message.as_bytes());
        let proof: Vec<u8> = keys.client.iter().zip(&signature).map(|(key, sign)| key ^ sign).collect();
        Proof {
            message: format!("{without_proof},p={}", BASE64.encode(proof)),
            server_signature: self.hash.mac(&keys.server, auth_message.as_bytes()),
        }
    }
}

impl Proof {
    /// Checks the server's answer to the second message.
    ///
    /// # Errors
    /// [`ScramError`].
    pub fn verify(&self, message: &[u8]) -> Result<(), ScramError> {
        let signature = field(text(message)?, 'v')?;
        let signature = BASE64.decode(signature).map_err(|_| ScramError::Malformed("signature"))?;
        // Nobody learns anything from how long this comparison takes: the signature is the server's own.
        if signature == self.server_signature { Ok(()) } else { Err(ScramError::WrongSignature) }
    }
}

fn text(message: &[u8]) -> Result<&str, ScramError> {
    std::str::from_utf8(message).map_err(|_| ScramError::Malformed("not UTF-8"))
}

fn field(message: &str, name: char) -> Result<&str, ScramError> {
    let mut fields = message.split(',');
    let value = fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
    value.ok_or(ScramError::Malformed("a field is missing"))
}

#[cfg(test)]
mod tests {
    use super::super::uri::Secret;
    use super::*;

    fn credential(password: &str) -> Credential {
        let (username, source) = ("user".to_owned(), "admin".to_owned());
        Credential { username, password: Secret::new(password), source, mechanism: None }
    }

    /// The exchange of specifications/source/auth/auth.md.
    #[test]
    fn sha_1_vector() {
        let exchange = Exchange::new(Hash::Sha1, "user", "fyko+d2lbbFgONRv9qkxdawL".to_owned());
        assert_eq!(exchange.first(), "n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL");
        let challenge = exchange
            .challenge(
                b"r=fyko+d2lbbFgONRv9qkxdawLHo+Vgk7qvUOKUwuWLIWg4l/9SraGMHEE,s=rQ9ZY3MntBeuP3E1TDVC4w==,i=10000",
            )
            .unwrap();
        let keys = Hash::Sha1.keys(&credential("pencil"), &challenge.salt, challenge.iterations);
        let proof = exchange.proof(&challenge, &keys);
        assert!(proof.message.ends_with("p=MC2T8BvbmWRckDw8oWl5IVghwCY="), "{}", proof.message);
        assert_eq!(proof.verify(b"v=UMWeI25JD1yNYZRMpZ4VHvhZ9e0="), Ok(()));
    }

    /// The exchange of RFC 7677, section 3.
    #[test]
    fn sha_256_vector() {
        let exchange = Exchange::new(Hash::Sha256, "user", "rOprNGfwEbeRWgbNEkqO".to_owned());
        let challenge = exchange
            .challenge(
                b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            )
            .unwrap();
        let keys = Hash::Sha256.keys(&credential("pencil"), &challenge.salt, challenge.iterations);
        let proof = exchange.proof(&challenge, &keys);
        assert!(proof.message.ends_with("p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="));
        assert_eq!(proof.verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), Ok(()));
        assert_eq!(proof.verify(b"v=AAAA"), Err(ScramError::WrongSignature));
        assert!(proof.verify(b"e=other-error").is_err());
    }

    #[test]
    fn a_server_that_does_not_follow_the_rules_is_refused() {
        let exchange = Exchange::new(Hash::Sha256, "a=b,c", "abc".to_owned());
        assert_eq!(exchange.first(), "n,,n=a=3Db=2Cc,r=abc");
        for message in
            ["r=xyzabc,s=AAAA,i=15000", "r=abc,s=AAAA,i=15000", "r=abcd,s=AAAA,i=10", "r=abcd,i=15000"]
        {
            assert!(exchange.challenge(message.as_bytes()).is_err(), "{message}");
        }
    }
}
