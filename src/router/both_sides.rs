//! Changes of indexes and options on both clusters: done on both, or on neither.
//!
//! The mirror goes first. Where it is away or refuses, nothing has happened to what serves the application, and
//! where the authority refuses, what has to be taken back is on the mirror.

use std::sync::Arc;
use std::time::Duration;

use bson::raw::cstr;
use bson::{RawDocumentBuf, rawdoc};
use bytes::BytesMut;

use super::entry::not_sent;
use super::expiry::whole_body;
use super::migrating::Course;
use super::operation::Operation;
use super::pipeline::Router;
use super::writer::Writer;
use crate::cluster::command::Request;
use crate::converge::active::Active;
use crate::converge::catalog::describe;
use crate::converge::read::ask;
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::policy::catalog::Collection;
use crate::policy::ddl::{is_done, undo};
use crate::wire::error::{ErrorReply, HOST_UNREACHABLE};

/// How long a cluster may take to tell what a collection is.
const LOOK: Duration = Duration::from_secs(5);
/// The same, where the answer matters little.
pub(super) const GLANCE: Duration = Duration::from_secs(1);
/// How long taking back may take; an index may have to be built again.
const TAKE_BACK: Duration = Duration::from_secs(60);

/// What became of a change.
pub(super) enum Changed {
    /// Done on both; the authority's reply is in the buffer.
    Done,
    /// Refused by this cluster, whose reply is in the buffer; nothing has changed.
    Refused(Side),
    /// Not done, with the error to answer with; nothing has changed.
    NotDone(ErrorReply),
    /// It may have been done on one of them.
    InDoubt(ErrorReply),
}

impl Changed {
    pub(super) fn course(self, authority: Side) -> Result<Course, ErrorReply> {
        match self {
            Self::Done => Ok(Course::Answered(authority, true)),
            Self::Refused(side) => Ok(Course::Answered(side, false)),
            Self::NotDone(error) | Self::InDoubt(error) => Err(error),
        }
    }
}

/// A change of one collection on two clusters.
pub(super) struct BothSides<'a> {
    pub(super) router: &'a Router,
    pub(super) writer: &'a Writer,
    pub(super) active: &'a Arc<Active>,
    pub(super) namespace: &'a Namespace,
    pub(super) authority: Side,
}

impl BothSides<'_> {
    /// Runs it on the mirror, then on the authority.
    pub(super) async fn run(&self, operation: &Operation<'_>, reply: &mut BytesMut) -> Changed {
        let (authority, mirror) = (self.authority, self.authority.other());
        let name = operation.command.name;
        if name == "createIndexes" && self.is_done(operation).await {
            // As applications ask for their indexes at each start, whether or not the mirror can be reached.
            return match self.router.plain(operation, authority, reply).await {
                Ok(true) => Changed::Done,
                Ok(false) => Changed::Refused(authority),
                Err(error) => Changed::NotDone(error),
            };
        }
        let before = match self.look(mirror, LOOK).await {
            Ok(before) => before,
            Err(why) => {
                return Changed::NotDone(not_sent(format!(
                    "{name} must be done on both clusters, and {mirror} cannot be asked: {why}; nothing has changed, \
                     try again once it answers"
                )));
            }
        };
        match self.router.plain(operation, mirror, reply).await {
            Ok(true) => {}
            Ok(false) => return self.refused_by(mirror, &before).await,
            Err(error) => return self.in_doubt(mirror, &error),
        }
        match self.router.plain(operation, authority, reply).await {
            Ok(true) => Changed::Done,
            Ok(false) => self.refused_by(authority, &before).await,
            Err(error) => self.in_doubt(authority, &error),
        }
    }

    async fn look(&self, side: Side, limit: Duration) -> Result<Collection, String> {
        let found = describe(&**self.writer.own.get(side), self.namespace, limit).await;
        found.map_err(|error| error.to_string())?.ok_or_else(|| format!("{} is not there", self.namespace))
    }

    /// Whether the authority has the indexes already, and the mirror too as far as it can be asked.
    async fn is_done(&self, operation: &Operation<'_>) -> bool {
        let Some(body) = whole_body(operation) else { return false };
        let is_done = |there: &Collection| is_done(&body, there);
        self.look(self.authority, LOOK).await.is_ok_and(|there| is_done(&there))
            && self.look(self.authority.other(), GLANCE).await.map_or(true, |there| is_done(&there))
    }

    /// Takes back what the mirror has done, so that nothing has changed.
    async fn refused_by(&self, side: Side, before: &Collection) -> Changed {
        let mirror = self.authority.other();
        match self.take_back(mirror, before).await {
            Ok(()) => Changed::Refused(side),
            Err(why) => Changed::InDoubt(ErrorReply::new(
                HOST_UNREACHABLE,
                format!(
                    "{side} refused it, and what {mirror} may have done of it could not be taken back ({why}): a \
                     verification tells what differs"
                ),
            )),
        }
    }

    async fn take_back(&self, mirror: Side, before: &Collection) -> Result<(), String> {
        let now = self.look(mirror, LOOK).await?;
        let undo = undo(self.namespace.collection(), before, &now);
        for command in &undo.commands {
            let mut body = RawDocumentBuf::try_from(command).map_err(|error| error.to_string())?;
            body.append(cstr!("writeConcern"), rawdoc! { "w": "majority" });
            let request = Request::new(self.namespace.database(), body).within(TAKE_BACK);
            ask(&**self.writer.own.get(mirror), request).await?;
        }
        if undo.suspend.is_empty() {
            return Ok(());
        }
        self.active.expiries.suspend(self.namespace, &undo.suspend).await
    }

    fn in_doubt(&self, side: Side, error: &ErrorReply) -> Changed {
        let other = if side == self.authority {
            "the other cluster has done it"
        } else {
            "the other cluster has not"
        };
        Changed::InDoubt(ErrorReply::new(
            error.code,
            format!(
                "whether {side} has done it is not known, and {other}: call it again ({})",
                error.message
            ),
        ))
    }
}
