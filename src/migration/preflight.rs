//! A look at both clusters before a migration starts. It changes nothing.
//!
//! Everything that is known to end badly is refused here, by name and with a way out; what only limits how
//! writes can be moved is said too.

mod clusters;
mod collections;
mod defaults;
mod findings;
mod pipelines;
mod privileges;
mod route_keys;
mod sharding;
mod users;
mod views;

pub(super) use clusters::hello;

use std::collections::BTreeSet;
use std::time::Duration;

use self::clusters::{Seen, look_at_cluster, refuse_same_cluster};
use self::findings::Findings;
use crate::cluster::command::SharedCluster;
use crate::migration::control::{PreflightReport, Severity};
use crate::migration::prepare::Wanted;
use crate::model::namespace::Namespace;
use crate::model::pattern::INTERNAL;
use crate::model::side::{PerSide, Side};
use crate::policy::catalog::{Index, unique_across};
use crate::policy::route_key::RouteKey;

pub use self::clusters::oplog_window_seconds;

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(5);
/// The code of findings that make writes move in one step.
const UNIQUE: &str = "unique-index";

/// Looks at both clusters and at what is to move.
pub async fn preflight(clusters: &PerSide<SharedCluster>, wanted: &[Wanted]) -> PreflightReport {
    let mut findings = Findings::default();
    let named: Vec<Namespace> = wanted.iter().map(|wanted| wanted.namespace.clone()).collect();
    let allowed = names(&named, &mut findings);
    let find = |namespace: &Namespace| wanted.iter().find(|wanted| wanted.namespace == *namespace).cloned();
    let allowed: Vec<Wanted> = allowed.iter().filter_map(find).collect();
    let (old, new) = futures::join!(
        look_at_cluster(Side::Old, &*clusters.old, &allowed),
        look_at_cluster(Side::New, &*clusters.new, &allowed),
    );
    let seen = PerSide { old: findings.take(old), new: findings.take(new) };
    if let PerSide { old: Some(old), new: Some(new) } = &seen {
        refuse_same_cluster(old, new, &mut findings);
        clusters::compare_versions(old, new, &mut findings);
        defaults::compare(clusters, &mut findings).await;
    }
    if !findings.refused() {
        findings.info(
            "change-streams",
            "",
            "change streams of applications show the product's writes too, merged, once documents are served by new, and \
             end with code 280 when all writes have moved",
            "open them anew then: the error names the time to begin at (startAtOperationTime)",
        );
    }
    if is_seen(&seen, Side::Old) {
        let moving: Vec<_> = allowed.iter().map(|wanted| wanted.namespace.clone()).collect();
        views::look(&*clusters.old, &moving, &mut findings).await;
    }
    for wanted in &allowed {
        collections::look(clusters, &seen, wanted, &mut findings).await;
    }
    findings.report()
}

/// Refuses names that cannot move; the others are returned, each once.
fn names(namespaces: &[Namespace], findings: &mut Findings) -> Vec<Namespace> {
    if namespaces.is_empty() {
        findings.refuse("no-namespaces", "", "there is nothing to move", "name at least one collection");
    }
    let mut known = BTreeSet::new();
    for namespace in namespaces {
        let of = namespace.as_str();
        if INTERNAL.contains(&namespace.database()) {
            let message =
                format!("database {} belongs to the server or to this product", namespace.database());
            findings.refuse("internal-database", of, message, "leave it out");
        } else if namespace.collection().starts_with("system.") {
            let message = "a system collection belongs to the server";
            findings.refuse("system-collection", of, message, "leave it out");
        } else if namespace.collection().starts_with("enxcol_.") {
            let message = "it holds the metadata of a collection with queryable encryption";
            findings.refuse("queryable-encryption", of, message, "leave it out");
        } else if !known.insert(namespace.clone()) {
            findings.refuse("named-twice", of, "it is named more than once", "name each collection once");
        }
    }
    known.into_iter().collect()
}

/// Why writes must move in one step (0 to 100), from a report; empty when they can move little by little.
#[must_use]
pub fn single_step_reasons(report: &PreflightReport) -> Vec<String> {
    let limits = report.findings.iter().filter(|finding| finding.severity == Severity::Limits);
    limits
        .filter(|finding| finding.code == UNIQUE)
        .map(|finding| format!("{}: {}", finding.namespace, finding.message))
        .collect()
}

/// As [`single_step_reasons`], from the indexes of one namespace.
#[must_use]
pub fn single_step_reasons_of(
    namespace: &Namespace,
    indexes: &[Index],
    route_key: Option<&RouteKey>,
) -> Vec<String> {
    let unique = unique_across(indexes, route_key.map(RouteKey::field)).into_iter();
    unique.map(|index| format!("{namespace}: {}", unique_message(index, route_key))).collect()
}

fn unique_message(index: &Index, route_key: Option<&RouteKey>) -> String {
    let first = route_key.map_or("_id", RouteKey::field);
    format!(
        "unique index {} does not begin with {first}: while two clusters take writes, each could accept the same \
         value for another document",
        index.name()
    )
}

/// Whether a cluster was seen.
const fn is_seen(seen: &PerSide<Option<Seen>>, side: Side) -> bool {
    seen.get(side).is_some()
}
