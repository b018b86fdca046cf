//! The recovery token of a transaction: what its driver knows of where it runs, and shows at the commit.
//!
//! A driver takes it for what it is and keeps the last one. The proxy's names the cluster, and has that of a router of the
//! cluster inside, which is what the router gets back.

use bson::{RawDocument, RawDocumentBuf};
use bytes::BytesMut;

use super::operation::Operation;
use crate::model::side::Side;
use crate::wire::element::{DOCUMENT, Element};
use crate::wire::patch::{Patch, document_element};
use crate::wire::reply::{ReplyFields, append_element, remove_element};
use crate::wire::scan::find;

const NAME: &str = "recoveryToken";
const CLUSTER: &str = "reshard";
const THEIRS: &str = "router";

/// Makes the token in `reply`, of a transaction on `side`, the proxy's.
pub(super) fn show(side: Side, reply: &mut BytesMut) {
    let Ok(fields) = ReplyFields::scan(reply) else { return };
    let mut token = RawDocumentBuf::new();
    token.append(bson::cstr!("reshard"), side.as_str());
    if let Some(theirs) = fields.recovery_token {
        let value = theirs.start + 1 + NAME.len() + 1..theirs.end;
        let Ok(document) = RawDocument::from_bytes(&reply[value]) else { return };
        token.append(bson::cstr!("router"), document.to_owned());
        remove_element(reply, theirs);
    }
    append_element(reply, &document_element(NAME, token.as_bytes()));
}

/// Gives a server back what it gave.
pub(super) fn give_back(token: Element<'_>, patch: &mut Patch) {
    if find(token, CLUSTER.as_bytes()).is_none() {
        return;
    }
    match find(token, THEIRS.as_bytes()).filter(|theirs| theirs.kind == DOCUMENT) {
        Some(theirs) => patch.replace(token.value_range(), theirs.value().to_vec()),
        None => patch.remove(token.range()),
    }
}

/// The cluster that the driver says its transaction runs on.
pub(super) fn cluster(operation: &Operation<'_>) -> Option<Side> {
    match find(operation.command.recovery_token?, CLUSTER.as_bytes())?.as_str()? {
        "old" => Some(Side::Old),
        "new" => Some(Side::New),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;
    use crate::cluster::TimesFor;
    use crate::wire::op_msg::{OpMsg, build};

    /// What a client is shown for what a server says.
    fn shown(reply: &RawDocument) -> RawDocumentBuf {
        let mut message = BytesMut::from(&build(1, 2, 0, reply.as_bytes(), None)[..]);
        show(Side::New, &mut message);
        let parts = OpMsg::parse(&message).unwrap();
        let body = RawDocument::from_bytes(&message[parts.body]).unwrap();
        assert_eq!(body.get_f64("ok").unwrap().to_bits(), 1.0_f64.to_bits());
        body.get_document(NAME).unwrap().to_owned()
    }

    /// What a server is sent for what a client sends, and the cluster that it names.
    fn sent(token: &RawDocument) -> (Option<RawDocumentBuf>, Option<Side>) {
        let mut commit = rawdoc! { "commitTransaction": 1 };
        commit.append(bson::cstr!("recoveryToken"), token.to_owned());
        commit.append(bson::cstr!("$db"), "admin");
        let message = build(1, 0, 0, commit.as_bytes(), None);
        let operation = Operation::parse(&message, 1).unwrap();
        let patched = operation.patched(&TimesFor::default());
        let bytes: Vec<u8> = patched.parts(&message).iter().flat_map(|part| part.to_vec()).collect();
        let body = OpMsg::parse(&bytes).unwrap().body;
        let body = RawDocument::from_bytes(&bytes[body]).unwrap();
        assert_eq!(body.get_str("$db").unwrap(), "admin");
        (body.get_document(NAME).ok().map(ToOwned::to_owned), cluster(&operation))
    }

    #[test]
    fn a_router_gets_back_what_it_gave() {
        for theirs in [rawdoc! { "recoveryShardId": "shard-1" }, rawdoc! {}] {
            for at_the_end in [false, true] {
                let mut reply = RawDocumentBuf::new();
                if at_the_end {
                    reply.append(bson::cstr!("ok"), 1.0);
                }
                reply.append(bson::cstr!("recoveryToken"), theirs.clone());
                if !at_the_end {
                    reply.append(bson::cstr!("ok"), 1.0);
                }
                assert_eq!(sent(&shown(&reply)), (Some(theirs.clone()), Some(Side::New)));
            }
        }
    }

    #[test]
    fn a_server_that_gave_none_gets_none() {
        let token = shown(&rawdoc! { "n": 1, "ok": 1.0 });
        assert_eq!(token, rawdoc! { "reshard": "new" });
        assert_eq!(sent(&token), (None, Some(Side::New)));
    }

    #[test]
    fn a_token_from_elsewhere_is_left_alone() {
        let token = rawdoc! { "recoveryShardId": "shard-1" };
        assert_eq!(sent(&token), (Some(token), None));
    }
}
