//! Where the orders lie, and how many shards a query by customer touches: why one changes a shard key.

use anyhow::{Context, Result};
use bson::{Document, doc};
use serde::Serialize;

use crate::cluster::Cluster;
use crate::load::{DATABASE, ORDERS};
use crate::screen::thousands;

/// Customers that are asked for.
const ASKED: i32 = 100;
/// Between one that is asked for and the next: they are numbered up to 500.
const STEP: i32 = 5;

/// How one cluster holds the orders.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// On each shard, asked past the router.
    pub(crate) documents: Vec<u64>,
    /// Shards that a query by customer touches, as the router explains it: mean of many customers.
    pub(crate) touched: f64,
}

impl Spread {
    /// `None` for a replica set.
    pub(crate) async fn of(cluster: &Cluster) -> Result<Option<Self>> {
        let Cluster::Sharded(cluster) = cluster else { return Ok(None) };
        let mut documents = Vec::new();
        for shard in cluster.shards() {
            let orders = shard.client().await?.database(DATABASE).collection::<Document>(ORDERS);
            documents.push(orders.count_documents(doc! {}).await?);
        }
        let database = cluster.client().await?.database(DATABASE);
        let mut touched = 0;
        for customer in (0..ASKED).map(|number| number * STEP) {
            let query = doc! { "find": ORDERS, "filter": { "customer_id": customer } };
            let command = doc! { "explain": query, "verbosity": "queryPlanner" };
            touched += shards_in(&database.run_command(command).await?)?;
        }
        Ok(Some(Self { documents, touched: f64::from(touched) / f64::from(ASKED) }))
    }

    /// `10,000 + 10,000`
    pub(crate) fn documents(&self) -> String {
        let counts: Vec<_> = self.documents.iter().map(|count| thousands(*count)).collect();
        counts.join(" + ")
    }
}

/// How many shards the plan of a router has.
fn shards_in(explained: &Document) -> Result<u32> {
    let plan = explained.get_document("queryPlanner").and_then(|planner| planner.get_document("winningPlan"));
    let shards = plan.and_then(|plan| plan.get_array("shards"));
    let shards = shards.with_context(|| format!("no shards in what a router explained: {explained}"))?;
    Ok(u32::try_from(shards.len())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_of_a_plan_are_counted() {
        let plan = doc! { "stage": "SHARD_MERGE", "shards": [{ "shardName": "s0" }, { "shardName": "s1" }] };
        assert_eq!(shards_in(&doc! { "queryPlanner": { "winningPlan": plan } }).unwrap(), 2);
        assert!(shards_in(&doc! { "queryPlanner": { "winningPlan": { "stage": "COLLSCAN" } } }).is_err());
    }

    #[test]
    fn documents_are_shown_for_each_shard() {
        let spread = Spread { documents: vec![1_000, 20], touched: 2.0 };
        assert_eq!(spread.documents(), "1,000 + 20");
    }
}
