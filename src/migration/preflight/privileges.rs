//! Whether the product's user may do what it has to.

use bson::{Document, rawdoc};

use super::LIMIT;
use super::findings::Findings;
use crate::cluster::command::{Commands, Request};
use crate::migration::catalog::{owned, question};
use crate::migration::prepare::Wanted;
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::policy::privileges::{Moving, missing, needed};
use crate::state::record::DATABASE;

/// Refuses a user that lacks something. Where nobody is logged in, the reads that follow tell.
pub(super) async fn check(
    side: Side,
    cluster: &dyn Commands,
    sharded: bool,
    wanted: &[Wanted],
    findings: &mut Findings,
) {
    let names = |of: &dyn Fn(&&Wanted) -> bool| -> Vec<Namespace> {
        wanted.iter().filter(of).map(|wanted| wanted.namespace.clone()).collect()
    };
    let (namespaces, to_shard) = (names(&|_| true), names(&|wanted| wanted.shard_key.is_some()));
    let zones = wanted.iter().any(|wanted| !wanted.zones.is_empty());
    let moving = Moving { namespaces: &namespaces, to_shard: &to_shard, zones };
    let status = Request::new("admin", rawdoc! { "connectionStatus": 1, "showPrivileges": true });
    let status = match question(cluster, status.within(LIMIT)).await {
        Ok(reply) => owned(&reply.body),
        Err(error) => Err(error),
    };
    let info = match status {
        Ok(status) => status.get_document("authInfo").cloned().unwrap_or_default(),
        Err(error) => return findings.not_checked(&format!("the privileges on {side}"), error),
    };
    let list = |field: &str| -> Vec<Document> {
        let items = info.get_array(field).cloned().unwrap_or_default();
        items.into_iter().filter_map(|item| item.as_document().cloned()).collect()
    };
    let users = list("authenticatedUsers");
    if users.is_empty() {
        return;
    }
    let lacking = missing(needed(side, sharded, moving), &list("authenticatedUserPrivileges"));
    if lacking.is_empty() {
        return;
    }
    let user = users.first().and_then(|user| user.get_str("user").ok()).unwrap_or("the user");
    let lacking: Vec<String> = lacking.iter().map(ToString::to_string).collect();
    findings.refuse(
        "missing-privileges",
        "",
        format!("{user} on {side} may not: {}", lacking.join("; ")),
        format!(
            "grant it readAnyDatabase, clusterMonitor{} and hostManager on admin, and readWrite and dbAdmin on \
             {DATABASE} and on each database that moves",
            if sharded { ", clusterManager" } else { "" }
        ),
    );
}
