//! Views that show what is to move. They stay on old, and would go on showing what old has.

use std::collections::{BTreeMap, BTreeSet};

use bson::{RawDocument, rawdoc};

use super::LIMIT;
use super::findings::Findings;
use crate::cluster::command::{Commands, Request};
use crate::migration::catalog::question;
use crate::model::namespace::Namespace;
use crate::policy::others::Others;
use crate::state::records::first_batch;

/// Looks for views on old that read what is `moving`.
pub(super) async fn look(old: &dyn Commands, moving: &[Namespace], findings: &mut Findings) {
    let databases: BTreeSet<&str> = moving.iter().map(Namespace::database).collect();
    for database in databases {
        let body = rawdoc! { "listCollections": 1, "filter": { "type": "view" } };
        let listed = question(old, Request::new(database, body).within(LIMIT)).await;
        let listed = listed.map_err(|error| error.to_string());
        match listed.and_then(|reply| first_batch(&reply.body).map_err(|error| error.to_string())) {
            Ok(views) => {
                let views = views.iter().filter_map(|entry| read_by(database, entry)).collect();
                refuse(&views, moving, findings);
            }
            Err(error) => findings.not_checked(&format!("the views in {database} on old"), error),
        }
    }
}

/// A view, and the collections and views that it reads.
fn read_by(database: &str, entry: &RawDocument) -> Option<(Namespace, Vec<Namespace>)> {
    let view = Namespace::new(database, entry.get_str("name").ok()?);
    let options = entry.get_document("options").ok()?;
    Some((view, Others::of_view(database, options)))
}

fn refuse(views: &BTreeMap<Namespace, Vec<Namespace>>, moving: &[Namespace], findings: &mut Findings) {
    for namespace in moving {
        let mut showing = BTreeSet::from([namespace]);
        // Views of views show it too.
        loop {
            let shows = |read: &Vec<Namespace>| read.iter().any(|one| showing.contains(one));
            let more: Vec<_> = views.iter().filter(|(_, read)| shows(read)).map(|(view, _)| view).collect();
            let before = showing.len();
            showing.extend(more);
            if showing.len() == before {
                break;
            }
        }
        showing.remove(namespace);
        if showing.is_empty() {
            continue;
        }
        let named: Vec<_> = showing.iter().map(|view| view.as_str()).collect();
        let message =
            format!("on old it is shown by {}, which would go on showing what old has", named.join(", "));
        let remedy =
            "drop them, and let applications send their pipelines as aggregates; or leave the collection out";
        findings.refuse("shown-by-view", namespace.as_str(), message, remedy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_of_views_and_joins_show_it_too() {
        let name = |name: &str| Namespace::new("shop", name);
        let entry = |name: &str, options: &RawDocument| {
            read_by("shop", &rawdoc! { "name": name, "type": "view", "options": options.to_owned() }).unwrap()
        };
        let joins = rawdoc! { "viewOn": "customers", "pipeline": [{ "$lookup": { "from": "orders", "as": "o", "pipeline": [] } }] };
        let views = BTreeMap::from([
            entry("open", &rawdoc! { "viewOn": "orders", "pipeline": [] }),
            entry("late", &rawdoc! { "viewOn": "open", "pipeline": [] }),
            entry("joined", &joins),
            entry("other", &rawdoc! { "viewOn": "customers", "pipeline": [] }),
        ]);
        let mut findings = Findings::default();
        refuse(&views, &[name("orders"), name("alone")], &mut findings);
        let report = findings.report();
        assert!(!report.ok && report.findings.len() == 1, "{report:?}");
        assert!(report.findings[0].message.contains("shop.joined, shop.late, shop.open,"), "{report:?}");
    }
}
