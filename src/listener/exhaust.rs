//! Exhaust cursors: a `getMore` that allows it is answered batch after batch, unasked, until its cursor ends.
//!
//! Members of replica sets do it; routers, as drivers know, did not until 7.1.

use bytes::BytesMut;

use crate::policy::classify::{Class, classify};
use crate::wire::op_msg::{EXHAUST_ALLOWED, MORE_TO_COME, OpMsg};
use crate::wire::reply::ReplyFields;
use crate::wire::scan::Command;

use super::face::Appearance;

/// Where the flags of an OP_MSG lie, and where its number and what it answers to.
const FLAGS: std::ops::Range<usize> = 16..20;
const NUMBER: std::ops::Range<usize> = 4..8;
const ANSWERS_TO: std::ops::Range<usize> = 8..12;

/// Whether an OP_MSG is a `getMore` that may be answered so.
pub(super) fn is_allowed(appearance: &Appearance, message: &[u8]) -> bool {
    let allowed = |parts: &OpMsg| parts.flags & EXHAUST_ALLOWED != 0 && parts.flags & MORE_TO_COME == 0;
    let Some(parts) = OpMsg::parse(message).ok().filter(allowed) else { return false };
    matches!(appearance, Appearance::Member(_))
        && Command::scan(message, parts.body).is_ok_and(|command| classify(command.name) == Class::GetMore)
}

/// Marks a reply as one that another follows, if its cursor is still open.
pub(super) fn mark(reply: &mut BytesMut) -> bool {
    let open = |fields: &ReplyFields| fields.ok && fields.cursor.as_ref().is_some_and(|id| id.value != 0);
    if !ReplyFields::scan(reply).is_ok_and(|fields| open(&fields)) {
        return false;
    }
    reply[FLAGS].copy_from_slice(&MORE_TO_COME.to_le_bytes());
    true
}

/// The number of a reply, which the next one answers to.
pub(super) fn number(reply: &[u8]) -> [u8; 4] {
    reply.get(NUMBER).and_then(|number| number.try_into().ok()).unwrap_or_default()
}

/// Makes a reply the answer to the one before it.
pub(super) fn follow(reply: &mut BytesMut, number: [u8; 4]) {
    if let Some(place) = reply.get_mut(ANSWERS_TO) {
        place.copy_from_slice(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::face::{Face, ReplicaSet};
    use crate::wire::op_msg::build;
    use bson::oid::ObjectId;
    use bson::{RawDocumentBuf, rawdoc};
    use std::net::SocketAddr;

    fn member() -> Appearance {
        let set = ReplicaSet { name: "s".into(), host: None, tags: Vec::new(), secondaries: Vec::new() };
        let bound = [SocketAddr::from(([127, 0, 0, 1], 1))];
        Appearance::of(&Face::ReplicaSet(set), ObjectId::new(), &bound).remove(0)
    }

    #[test]
    fn only_a_get_more_that_allows_it_is_answered_so_and_by_members_only() {
        let message = |flags: u32, body: RawDocumentBuf| build(1, 0, flags, body.as_bytes(), None);
        let more = || rawdoc! { "getMore": 5_i64, "collection": "c", "$db": "d" };
        assert!(is_allowed(&member(), &message(EXHAUST_ALLOWED, more())));
        assert!(!is_allowed(&Appearance::Router, &message(EXHAUST_ALLOWED, more())));
        assert!(!is_allowed(&member(), &message(0, more())));
        assert!(!is_allowed(&member(), &message(EXHAUST_ALLOWED, rawdoc! { "find": "c", "$db": "d" })));
    }

    #[test]
    fn a_reply_is_marked_while_its_cursor_is_open() {
        let reply = |id: i64, ok: f64| {
            let body = rawdoc! { "cursor": { "nextBatch": [], "id": id, "ns": "d.c" }, "ok": ok };
            BytesMut::from(&*build(7, 1, 0, body.as_bytes(), None))
        };
        let mut open = reply(5, 1.0);
        assert!(mark(&mut open));
        assert_eq!(OpMsg::parse(&open).unwrap().flags, MORE_TO_COME);
        assert!(!mark(&mut reply(0, 1.0)) && !mark(&mut reply(5, 0.0)));
        let mut next = reply(5, 1.0);
        follow(&mut next, number(&open));
        assert_eq!(OpMsg::parse(&next).unwrap().header.response_to, 7);
    }
}
