//! TTL indexes that are made or changed while a migration runs: suspended on both clusters like the others, with
//! their seconds kept until its end.

use std::sync::Arc;

use bson::raw::{RawArrayBuf, RawDocumentBuf, cstr};
use bson::{RawDocument, rawdoc};
use bytes::BytesMut;

use super::both_sides::{BothSides, Changed, GLANCE};
use super::migrating::Course;
use super::operation::Operation;
use super::pipeline::Router;
use crate::clock::timeout;
use crate::converge::active::Active;
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::policy::catalog::Index;
use crate::policy::expiry::{self, Change, Which, changes, course, rewritten};
use crate::wire::error::{BAD_VALUE, ErrorReply, NOT_NOW};
use crate::wire::op_msg::build;

/// A command that sets times to live.
pub(super) struct Expiring {
    namespace: Namespace,
    body: RawDocumentBuf,
    changes: Vec<Change>,
}

/// What was kept for an index before.
type Former = (String, Option<i64>);

impl Expiring {
    /// The times to live that an operation sets; `None` when it sets none.
    ///
    /// # Errors
    /// What to answer to one that cannot be set now.
    pub(super) fn of(operation: &Operation<'_>) -> Result<Option<Self>, ErrorReply> {
        let command = &operation.command;
        let namespace = command.database.zip(command.collection());
        let (Some((database, collection)), Some(body)) = (namespace, whole_body(operation)) else {
            return Ok(None);
        };
        let changes = changes(command.name, &body).map_err(|why| ErrorReply::new(BAD_VALUE, why))?;
        let namespace = Namespace::new(database, collection);
        Ok((!changes.is_empty()).then_some(Self { namespace, body, changes }))
    }

    /// Keeps the seconds, and makes the command that clusters get instead, if any; what was kept before goes
    /// to `former`.
    async fn instead(
        &self,
        active: &Active,
        first: Side,
        former: &mut Vec<Former>,
    ) -> Result<Option<RawDocumentBuf>, String> {
        let mut instead = Vec::new();
        for change in &self.changes {
            let there = active.expiries.find(&self.namespace, first, &change.which).await?;
            let name = match (&there, &change.which) {
                (Some(index), _) => index.name(),
                (None, Which::Name(name)) => name,
                (None, Which::Key(_)) => continue,
            };
            let kept = active.expiries.kept(&self.namespace, name);
            match course(change, there.as_ref(), kept) {
                expiry::Course::AsItIs => {}
                expiry::Course::AlreadyThere => {
                    // Applications ask for their indexes at each start, also while the mirror cannot be asked.
                    let other = active.expiries.find(&self.namespace, first.other(), &change.which);
                    let on_both = match timeout(&*active.converger.clock, GLANCE, other).await {
                        Ok(Ok(other)) => {
                            there.as_ref().zip(other).is_some_and(|(here, there)| here.same_as(&there))
                        }
                        Ok(Err(_)) | Err(_) => true,
                    };
                    let now = there.as_ref().and_then(Index::ttl).filter(|_| !on_both);
                    instead.push((change.place, now));
                }
                expiry::Course::Compare(seconds) => instead.push((change.place, Some(seconds))),
                expiry::Course::Save(seconds) => {
                    active.expiries.keep(&self.namespace, name, Some(change.seconds)).await?;
                    former.push((name.to_owned(), kept));
                    instead.push((change.place, Some(seconds)));
                }
            }
        }
        rewritten(&self.body, &instead)
    }

    /// Nothing has changed: what was kept is kept again.
    async fn undo(&self, active: &Active, former: Vec<Former>) {
        for (name, kept) in former.into_iter().rev() {
            if let Err(why) = active.expiries.keep(&self.namespace, &name, kept).await {
                tracing::warn!(index = name, why, "the seconds of a refused change stay noted");
            }
        }
    }
}

impl Router {
    /// Sets times to live on both clusters, suspended.
    pub(super) async fn set_expiry(
        &self,
        operation: &Operation<'_>,
        active: &Arc<Active>,
        first: Side,
        expiring: Expiring,
        reply: &mut BytesMut,
    ) -> Result<Course, ErrorReply> {
        let _one_at_a_time = active.expiry_changes.lock().await;
        let mut former = Vec::new();
        let body = match expiring.instead(active, first, &mut former).await {
            Ok(Some(body)) => body,
            Ok(None) => {
                let body = rawdoc! { "note": "all indexes already exist", "ok": 1.0 };
                reply.clear();
                reply.extend_from_slice(&build(0, operation.request_id(), 0, body.as_bytes(), None));
                return Ok(Course::Answered(first, true));
            }
            Err(why) => {
                expiring.undo(active, former).await;
                let why = format!("the time to live cannot be suspended and kept now ({why}); try again");
                return Err(ErrorReply::new(NOT_NOW, why));
            }
        };
        let message = build(operation.request_id(), 0, 0, body.as_bytes(), None);
        let instead = Operation::parse(&message, operation.client)
            .map_err(|error| ErrorReply::new(BAD_VALUE, error.to_string()))?;
        let Some(writer) = &self.writer else { return Ok(Course::Plain(first)) };
        let namespace = &expiring.namespace;
        let both = BothSides { router: self, writer, active, namespace, authority: first };
        let changed = both.run(&instead, reply).await;
        if matches!(changed, Changed::Refused(_) | Changed::NotDone(_)) {
            expiring.undo(active, former).await;
            return changed.course(first);
        }
        // Where it is in doubt whether it was done, the seconds stay kept.
        let names: Vec<String> = former.into_iter().map(|(name, _)| name).collect();
        if let Err(why) = active.expiries.suspend(namespace, &names).await {
            // As it was made, nothing later than 1972 expires.
            tracing::warn!(%namespace, why, "a time to live is not suspended in full");
        }
        changed.course(first)
    }
}

/// The body, with the indexes in it that came as a sequence beside it.
pub(super) fn whole_body(operation: &Operation<'_>) -> Option<RawDocumentBuf> {
    let message = operation.message;
    let mut body = RawDocument::from_bytes(&message[operation.parts.body.clone()]).ok()?.to_owned();
    for sequence in &operation.parts.sequences {
        if &message[sequence.identifier.clone()] != b"indexes" {
            return None;
        }
        let mut array = RawArrayBuf::new();
        let mut rest = &message[sequence.documents.clone()];
        while let Some(length) = rest.first_chunk().map(|four| i32::from_le_bytes(*four)) {
            let (one, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            array.push(RawDocument::from_bytes(one).ok()?.to_owned());
            rest = after;
        }
        body.append(cstr!("indexes"), array);
    }
    Some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_found_in_the_body_and_beside_it() {
        let index = rawdoc! { "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": 60 };
        let found = |body: RawDocumentBuf, sequence: Option<(&str, &[u8])>| {
            let message = build(1, 0, 0, body.as_bytes(), sequence);
            let operation = Operation::parse(&message, 0).unwrap();
            Expiring::of(&operation).unwrap().map(|expiring| (expiring.body, expiring.changes.len()))
        };
        let inside = rawdoc! { "createIndexes": "c", "$db": "d", "indexes": [index.clone()] };
        assert_eq!(found(inside.clone(), None), Some((inside, 1)));
        let beside = rawdoc! { "createIndexes": "c", "$db": "d" };
        let documents = [index.as_bytes(), index.as_bytes()].concat();
        let (body, changes) = found(beside.clone(), Some(("indexes", &documents))).unwrap();
        assert_eq!((body.get_array("indexes").unwrap().into_iter().count(), changes), (2, 2));
        assert_eq!(found(beside, None), None);
    }
}
