//! The server's side of SCRAM, without IO. Sources: RFC 5802, RFC 7677, specifications/source/auth/auth.md.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::cluster::scram::{Hash, Keys};

/// What a server stores of a user for one mechanism.
#[derive(Clone, PartialEq, Eq)]
pub struct Stored {
    /// Which mechanism.
    pub hash: Hash,
    /// What the password was mixed with.
    pub salt: Vec<u8>,
    /// How often.
    pub iterations: u32,
    /// Proves that a client knows the password.
    pub stored_key: Vec<u8>,
    /// Proves to a client that the server knows it.
    pub server_key: Vec<u8>,
}

/// Why a login goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The message does not follow the RFC.
    Malformed(&'static str),
    /// The password is wrong.
    WrongProof,
}

/// The client's first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct First {
    /// Who wants to log in.
    pub user: String,
    header: &'static str,
    bare: String,
    nonce: String,
}

/// A login after the first messages of both.
pub struct Exchange {
    first: First,
    nonce: String,
    /// The answer to the client's first message.
    pub message: String,
}

/// A client that knows the password, and the last message that it gets.
pub struct Proven {
    /// What it knows instead of the password.
    pub keys: Keys,
    /// The last message.
    pub message: String,
}

impl First {
    /// Reads it.
    ///
    /// # Errors
    /// [`Refused::Malformed`].
    pub fn parse(message: &[u8]) -> Result<Self, Refused> {
        let message = text(message)?;
        // No channel binding: nothing of MongoDB has any.
        let (header, bare) = [("n,,", "biws"), ("y,,", "eSws")]
            .into_iter()
            .find_map(|(header, encoded)| Some((encoded, message.strip_prefix(header)?)))
            .ok_or(Refused::Malformed("a client's first message begins with \"n,,\""))?;
        let (user, nonce) = (field(bare, 'n')?, field(bare, 'r')?);
        if user.is_empty() || nonce.is_empty() {
            return Err(Refused::Malformed("a user and a nonce"));
        }
        let user = user.replace("=2C", ",").replace("=3D", "=");
        Ok(Self { user, header, bare: bare.to_owned(), nonce: nonce.to_owned() })
    }
}

impl Exchange {
    /// The answer to `first`; `nonce` is random, printable, and has no comma.
    pub fn begin(first: First, nonce: &str, stored: &Stored) -> Self {
        let nonce = format!("{}{nonce}", first.nonce);
        let message = format!("r={nonce},s={},i={}", BASE64.encode(&stored.salt), stored.iterations);
        Self { first, nonce, message }
    }

    /// Checks the client's second message.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn prove(&self, message: &[u8], stored: &Stored) -> Result<Proven, Refused> {
        let message = text(message)?;
        let (without_proof, proof) =
            message.rsplit_once(",p=").ok_or(Refused::Malformed("a proof is missing"))?;
        if field(without_proof, 'c')? != self.first.header || field(without_proof, 'r')? != self.nonce {
            return Err(Refused::Malformed("another exchange"));
        }
        let proof = BASE64.decode(proof).map_err(|_| Refused::Malformed("a proof in Base64"))?;
        let hash = stored.hash;
        let auth_message = format!("{},{},{without_proof}", self.first.bare, self.message);
        let signature = hash.mac(&stored.stored_key, auth_message.as_bytes());
        if proof.len() != signature.len() {
            return Err(Refused::WrongProof);
        }
        let client: Vec<u8> = proof.iter().zip(&signature).map(|(proof, sign)| proof ^ sign).collect();
        if !equal_in_constant_time(&hash.digest(&client), &stored.stored_key) {
            return Err(Refused::WrongProof);
        }
        let server_signature = hash.mac(&stored.server_key, auth_message.as_bytes());
        let message = format!("v={}", BASE64.encode(server_signature));
        Ok(Proven { keys: Keys { client, server: stored.server_key.clone() }, message })
    }
}

fn equal_in_constant_time(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

fn text(message: &[u8]) -> Result<&str, Refused> {
    std::str::from_utf8(message).map_err(|_| Refused::Malformed("UTF-8"))
}

fn field(message: &str, name: char) -> Result<&str, Refused> {
    let mut fields = message.split(',');
    let value = fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
    value.ok_or(Refused::Malformed("a field is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of a client's message of RFC 7677, section 3.
    fn stored() -> Stored {
        let decode = |text| BASE64.decode(text).unwrap();
        let salted = pbkdf2::pbkdf2_hmac_array::<sha2::Sha256, 32>(
            b"pencil",
            &decode("W22ZaJ0SNY7soEsUEjb6gQ=="),
            4096,
        );
        let hash = Hash::Sha256;
        Stored {
            hash,
            salt: decode("W22ZaJ0SNY7soEsUEjb6gQ=="),
            iterations: 4096,
            stored_key: hash.digest(&hash.mac(&salted, b"Client Key")),
            server_key: hash.mac(&salted, b"Server Key"),
        }
    }

    fn begun() -> Exchange {
        let first = First::parse(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO").unwrap();
        Exchange::begin(first, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", &stored())
    }

    const FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                         p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    #[test]
    fn the_exchange_of_the_rfc() {
        let exchange = begun();
        assert_eq!(
            exchange.message,
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let proven = exchange.prove(FINAL.as_bytes(), &stored()).ok().unwrap();
        assert_eq!(proven.message, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        // What it shows of itself is the key to log in with elsewhere.
        assert_eq!(Hash::Sha256.digest(&proven.keys.client), stored().stored_key);
    }

    #[test]
    fn whoever_does_not_know_the_password_is_refused() {
        let wrong = FINAL.replace("dHzb", "dHzc");
        assert_eq!(begun().prove(wrong.as_bytes(), &stored()).err(), Some(Refused::WrongProof));
        let mut other = stored();
        other.stored_key[0] ^= 1;
        assert_eq!(begun().prove(FINAL.as_bytes(), &other).err(), Some(Refused::WrongProof));
        for malformed in [
            FINAL.replace("c=biws", "c=eSws"),
            FINAL.replace("$k0", "$k1"),
            FINAL.replace(",p=", ",x="),
            FINAL.replace("dHzb", "d!zb"),
        ] {
            let refused = begun().prove(malformed.as_bytes(), &stored()).err();
            assert!(matches!(refused, Some(Refused::Malformed(_))), "{malformed}");
        }
        let short = FINAL.split("dHzb").next().unwrap().to_owned() + "dHzb";
        assert_eq!(begun().prove(short.as_bytes(), &stored()).err(), Some(Refused::WrongProof));
    }

    #[test]
    fn first_messages() {
        assert_eq!(First::parse(b"n,,n=a=2Cb=3Dc,r=x").unwrap().user, "a,b=c");
        for bad in [
            &b"p=tls-unique,,n=a,r=x"[..],
            b"n,a=b,n=a,r=x",
            b"n,,n=a",
            b"n,,r=x",
            b"n,,n=,r=x",
            b"\xff",
            b"",
        ] {
            assert!(First::parse(bad).is_err());
        }
    }
}
