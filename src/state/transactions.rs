//! Open transactions, as far as a move may have to end them.

use bson::raw::cstr;
use bson::spec::BinarySubtype;
use bson::{Binary, rawdoc};
use uuid::Uuid;

use super::records::lsid;
use crate::cluster::command::{Request, ServerId, Target};
use crate::model::side::Side;

/// A transaction that nothing waits for any more: none of its statements, nor its commit, is let through again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenUp {
    /// Its session.
    pub session: [u8; 16],
    /// Its number.
    pub number: i64,
    /// Where it runs.
    pub side: Side,
    /// The server that took its first statement; `None` before there is an answer.
    pub server: Option<ServerId>,
    /// The user whose it is; `None`: the one who sends the command.
    pub user: Option<UserDigest>,
}

/// How sessions name the user who has begun them: the SHA-256 of `user@database`.
pub type UserDigest = [u8; 32];

impl GivenUp {
    /// The command that frees what it holds on the server. Of a sharded cluster, only the router that has the
    /// transaction can abort it.
    #[must_use]
    pub fn abort(&self, is_sharded: bool) -> Request {
        if let Some(user) = self.user {
            // Nobody but its user can abort it; its session can be killed.
            let uid = Binary { subtype: BinarySubtype::Generic, bytes: user.to_vec() };
            let mut lsid = lsid(Uuid::from_bytes(self.session));
            lsid.append(cstr!("uid"), uid);
            return Request::new("admin", rawdoc! { "killAllSessionsByPattern": [{ "lsid": lsid }] });
        }
        let body = rawdoc! {
            "abortTransaction": 1, "lsid": lsid(Uuid::from_bytes(self.session)), "txnNumber": self.number,
            "autocommit": false,
        };
        let server = self.server.clone().filter(|_| is_sharded);
        Request::new("admin", body).to(server.map_or(Target::Primary, Target::Server))
    }
}

/// The open transactions of this process.
pub trait Transactions: Send + Sync {
    /// Gives up those that have touched `migration`, but for those whose commit may have been sent.
    fn give_up(&self, migration: &str) -> Vec<GivenUp>;
}
