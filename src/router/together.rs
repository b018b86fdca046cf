//! Commands over several collections: all must be served by one cluster, and none may be written past the
//! proxy while it moves.

use bson::RawDocument;

use super::entry::not_sent;
use super::operation::Operation;
use super::pipeline::Router;
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::policy::classify::Class;
use crate::policy::others::Others;
use crate::state::pipelines::Use;
use crate::state::table::{MigrationRoute, RoutingTable};
use crate::wire::error::{ErrorReply, NOT_NOW};

impl Router {
    /// Refuses a command whose collections are not served by one cluster.
    ///
    /// # Errors
    /// The error to answer with.
    pub(super) fn served_together(&self, operation: &Operation<'_>) -> Result<(), ErrorReply> {
        if matches!(operation.command.name, "create" | "collMod") {
            return self.is_no_view_of_what_moves(operation);
        }
        if !matches!(operation.class, Class::Read | Class::PipelineWrite | Class::Write) {
            return Ok(());
        }
        let Some(writer) = &self.writer else { return Ok(()) };
        let table = writer.gate.routing.peek();
        let command = &operation.command;
        let several = command.pipeline.is_some() || operation.class == Class::PipelineWrite;
        if command.name == "bulkWrite" && self.is_divided(operation) {
            // Looked up again under the guard that a start waits for.
            return Err(not_sent(
                "a migration of one of its collections has just begun; send it again".into(),
            ));
        }
        if !several {
            return Ok(());
        }
        let body = RawDocument::from_bytes(&operation.message[operation.parts.body.clone()]).ok();
        let (Some(body), Some(database)) = (body, command.database) else { return Ok(()) };
        let others = Others::of(database, body);
        let own = Namespace::new(database, command.collection().unwrap_or(""));
        let pipelines = &writer.gate.registry.pipelines;
        pipelines.note(&own, &others.read, Use::Joined);
        pipelines.note(&own, &others.written, Use::Written);
        for other in &others.written {
            let moved = table.routes.get(other).or_else(|| table.awaiting(other.as_str()));
            if let Some(route) = moved.filter(|route| !route.phase.is_over()) {
                return Err(ErrorReply::new(
                    NOT_NOW,
                    format!(
                        "{other} cannot be written by {} while migration {} moves it: write it with \
                         insert, update or delete, or wait until the migration is complete",
                        if command.pipeline.is_some() { "$out or $merge" } else { command.name },
                        route.name
                    ),
                ));
            }
        }
        one_cluster(&table, &own, others.read.iter().chain(&others.written))
    }
}

impl Router {
    /// A view lives on old alone, and would go on showing what old has.
    fn is_no_view_of_what_moves(&self, operation: &Operation<'_>) -> Result<(), ErrorReply> {
        let Some(writer) = &self.writer else { return Ok(()) };
        let table = writer.gate.routing.peek();
        let body = RawDocument::from_bytes(&operation.message[operation.parts.body.clone()]).ok();
        let (Some(body), Some(database)) = (body, operation.command.database) else { return Ok(()) };
        if !matches!(body.get("viewOn"), Ok(Some(_))) {
            return Ok(());
        }
        let read = Others::of_view(database, body);
        let moved = |read: &Namespace| table.route(read.as_str()).or_else(|| table.awaiting(read.as_str()));
        match read.iter().find_map(|read| Some((read, moved(read)?))) {
            None => Ok(()),
            Some((read, route)) => Err(ErrorReply::new(
                NOT_NOW,
                format!(
                    "a view of {read} would go on showing what old has, as migration {} moves it: send its pipeline as \
                     an aggregate",
                    route.name
                ),
            )),
        }
    }
}

/// The cluster that serves `namespace` for commands over several collections; `None` while two do.
fn home(table: &RoutingTable, namespace: &Namespace) -> Option<Side> {
    // In the middle of a move in one step neither owns it, and both are equal.
    let sole = |route: &MigrationRoute| match (route.owned_by_old.is_empty(), route.owned_by_new.is_empty()) {
        (_, true) => Some(Side::Old),
        (true, false) => Some(Side::New),
        (false, false) => None,
    };
    // What does not exist yet is nowhere, and comes into being where its migration is.
    let route = table.route(namespace.as_str()).or_else(|| table.awaiting(namespace.as_str()));
    route.map_or(Some(Side::Old), |route| sole(route))
}

fn one_cluster<'a>(
    table: &RoutingTable,
    own: &Namespace,
    others: impl Iterator<Item = &'a Namespace>,
) -> Result<(), ErrorReply> {
    let here = home(table, own);
    for other in others {
        let there = home(table, other);
        if here.is_none() || here != there {
            let by = |side: Option<Side>| side.map_or("both clusters", Side::as_str);
            return Err(ErrorReply::new(
                NOT_NOW,
                format!(
                    "one pipeline cannot use {own}, served by {}, and {other}, served by {}: move together \
                     what is used together",
                    by(here),
                    by(there)
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::phase::Phase;
    use crate::model::slots::SlotSet;
    use std::sync::Arc;

    fn route(writes: u8) -> Arc<MigrationRoute> {
        let new = SlotSet::percent(writes);
        Arc::new(MigrationRoute {
            name: "m".into(),
            epoch: 1,
            phase: Phase::Synced,
            owned_by_old: SlotSet::ALL.minus(&new),
            owned_by_new: new,
            unread: None,
            reads_on_new: new,
            reads_off: Arc::default(),
            held: SlotSet::EMPTY,
            sealed: SlotSet::EMPTY,
            returning: SlotSet::EMPTY,
            taken_back_at: 0,
            moves: Vec::new(),
            ack_both: true,
            shard_keys: Arc::default(),
            patterns: Arc::default(),
            route_keys: Arc::default(),
            key_ranges: Arc::default(),
        })
    }

    fn table() -> RoutingTable {
        let routes = [("d.dual", 0), ("d.half", 50), ("d.moved", 100)];
        let routes = routes.map(|(name, writes)| (Namespace::parse(name).unwrap(), route(writes)));
        RoutingTable { version: 1, routes: routes.into(), patterned: Vec::new() }
    }

    #[test]
    fn one_pipeline_uses_one_cluster() {
        let fits = |own: &str, other: &str| {
            let [own, other] = [own, other].map(|name| Namespace::new("d", name));
            one_cluster(&table(), &own, [other].iter()).is_ok()
        };
        assert!(fits("plain", "plain") && fits("plain", "dual") && fits("dual", "plain"));
        assert!(fits("moved", "moved"));
        assert!(!fits("moved", "plain") && !fits("plain", "moved") && !fits("moved", "dual"));
        assert!(!fits("half", "half") && !fits("half", "plain") && !fits("plain", "half"));
    }
}
