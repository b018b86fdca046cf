//! What clients send to log in: the bodies of `saslStart` and `saslContinue`, without IO.

use bson::RawDocument;

use crate::cluster::scram::Hash;
use crate::wire::error::{BAD_VALUE, ErrorReply, MECHANISM_UNAVAILABLE};

/// Of the one login that a connection can have under way.
pub const CONVERSATION: i32 = 1;

/// A `saslStart`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start<'a> {
    /// The mechanism.
    pub hash: Hash,
    /// The first message.
    pub payload: &'a [u8],
    /// The client goes without the last, empty messages.
    pub skips_empty: bool,
}

impl<'a> Start<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// The answer to one that cannot be followed.
    pub fn parse(body: &'a RawDocument) -> Result<Self, ErrorReply> {
        let mechanism = body.get_str("mechanism").unwrap_or_default();
        let Some(hash) = Hash::ALL.into_iter().find(|hash| hash.mechanism_name() == mechanism) else {
            let text = format!(
                "mechanism {mechanism:?} is not a way to log in here; SCRAM-SHA-256 and SCRAM-SHA-1 are"
            );
            return Err(ErrorReply::new(MECHANISM_UNAVAILABLE, text));
        };
        let options = body.get_document("options");
        let skips_empty = options.and_then(|options| options.get_bool("skipEmptyExchange")).unwrap_or(false);
        Ok(Self { hash, payload: payload(body)?, skips_empty })
    }
}

/// Whether a `saslContinue` goes on with the login that is under way.
#[must_use]
pub fn continues(body: &RawDocument) -> bool {
    body.get_i32("conversationId").is_ok_and(|id| id == CONVERSATION)
}

/// The message in it.
///
/// # Errors
/// The answer to one without.
pub fn payload(body: &RawDocument) -> Result<&[u8], ErrorReply> {
    let payload = body.get_binary("payload").map(|payload| payload.bytes);
    payload.map_err(|_| ErrorReply::new(BAD_VALUE, "a payload is missing"))
}
