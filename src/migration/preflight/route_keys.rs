//! Whether a collection can be divided by the field that was asked for.

use bson::{RawDocument, rawdoc};

use super::findings::Findings;
use crate::cluster::command::Commands;
use crate::migration::sampling::sampled;
use crate::model::namespace::Namespace;
use crate::policy::route_key::{RouteKey, is_unfit};

/// Documents looked at.
const SAMPLES: i32 = 1000;

/// Looks at some documents of a collection on old.
pub(super) async fn look(
    cluster: &dyn Commands,
    namespace: &Namespace,
    route_key: &RouteKey,
    findings: &mut Findings,
) {
    let body = rawdoc! {
        "aggregate": namespace.collection(),
        "pipeline": [{ "$sample": { "size": SAMPLES } }, { "$project": route_key.projection() }],
        "cursor": { "batchSize": SAMPLES },
    };
    match sampled(cluster, namespace, body).await {
        Ok(found) => judge(found.iter().map(|document| &**document), namespace, route_key, findings),
        Err(why) => {
            let message = format!("whether it can be divided by {} cannot be told: {why}", route_key.field());
            findings.refuse("route-key", namespace.as_str(), message, "see to the error and look again");
        }
    }
}

fn judge<'a>(
    documents: impl Iterator<Item = &'a RawDocument>,
    namespace: &Namespace,
    route_key: &RouteKey,
    findings: &mut Findings,
) {
    let (mut by_chance, mut unfit) = (true, false);
    for document in documents {
        by_chance &= route_key.suits_id_of(document);
        unfit |= is_unfit(route_key.value_of(document));
    }
    let (of, field) = (namespace.as_str(), route_key.field());
    if !by_chance {
        let message = format!(
            "it has _ids that are neither random (ObjectId, UUID) nor documents that contain {field}: both clusters \
             could accept one _id for documents of different {field}"
        );
        findings.refuse("route-key-ids", of, message, "leave route_key out, so that it is divided by _id");
    }
    if unfit {
        let message = format!("{field} is an array in some documents, and cannot be the route key");
        findings.refuse("route-key-array", of, message, "choose another field, or leave route_key out");
    }
    if by_chance && !unfit {
        let message = format!(
            "it is divided by {field}: single writes that do not name it, and changes of it, are refused while writes \
             are divided"
        );
        findings.info("route-key", of, message, "none");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::RawDocumentBuf;
    use bson::oid::ObjectId;

    fn codes(documents: &[RawDocumentBuf]) -> Vec<String> {
        let mut findings = Findings::default();
        let tenant = RouteKey::parse("tenant").unwrap();
        judge(
            documents.iter().map(|document| &**document),
            &Namespace::new("d", "c"),
            &tenant,
            &mut findings,
        );
        findings.report().findings.into_iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn one_document_that_does_not_suit_is_enough() {
        let good = || rawdoc! { "_id": ObjectId::new(), "tenant": 1 };
        assert_eq!(codes(&[]), ["route-key"]);
        assert_eq!(codes(&[good(), rawdoc! { "_id": { "tenant": 2, "n": 1 }, "tenant": 2 }]), ["route-key"]);
        assert_eq!(codes(&[good(), rawdoc! { "_id": 5, "tenant": 1 }]), ["route-key-ids"]);
        assert_eq!(codes(&[rawdoc! { "_id": ObjectId::new(), "tenant": [1] }, good()]), ["route-key-array"]);
    }
}
