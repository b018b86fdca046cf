//! What must hold before writes are divided by a field of the application.

use std::time::Duration;

use bson::rawdoc;

use super::context::Context;
use super::control::ControlError;
use super::engine::unavailable;
use super::ramping::conflict;
use crate::cluster::command::Request;
use crate::converge::read::ask;
use crate::state::records::first_batch;
use crate::state::table::MigrationRoute;

/// For a look at all documents of a collection.
const LIMIT: Duration = Duration::from_secs(15 * 60);

impl Context {
    /// Refuses to divide collections of which a document has an array as its route key: it would be found by each of
    /// its members, whoever they belong to. None can come about later: writes that could make one are refused from
    /// the start on. While writes are divided, it has been looked at.
    ///
    /// # Errors
    /// [`ControlError`] that names the collection.
    pub(super) async fn must_have_no_arrays(&self, route: &MigrationRoute) -> Result<(), ControlError> {
        let Some(side) = route.sole_authority() else { return Ok(()) };
        for (namespace, route_key) in route.route_keys.iter() {
            let body = rawdoc! {
                "find": namespace.collection(), "filter": route_key.arrays(), "projection": { "_id": 1 }, "limit": 1,
                "singleBatch": true, "readConcern": { "level": "majority" },
            };
            let request = Request::new(namespace.database(), body).within(LIMIT);
            let why = |why: String| unavailable(format!("{namespace} on {side}: {why}"));
            let reply = ask(&**self.clusters.get(side), request).await.map_err(why)?;
            let found = first_batch(&reply.body).map_err(why)?;
            if let Some(document) = found.first() {
                let field = route_key.field();
                let detail = format!(
                    "{field}, the route key of {namespace}, is an array in the document with {document:?}: make it a \
                     value, or use 0 or 100"
                );
                return Err(conflict("route-key-array", detail));
            }
        }
        Ok(())
    }
}
