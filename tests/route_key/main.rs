//! Collections that are divided by a field of the application: a tenant moves as a whole.

#[path = "../support/mod.rs"]
mod support;

mod killed;
mod pins;
mod range_plans;
mod ranges;
mod refusals;
mod sharded;
mod tenants;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use bson::raw::RawBsonRef;
use bson::{Document, doc};
use reshard::migration::control::{NamespaceSpec, Plan, RangeSpec, Shadow};
use reshard::model::slots::SlotSet;
use reshard::policy::canonical::key_of;
use support::bed::Bed;

pub(crate) const PERCENT: u8 = 50;

pub(crate) fn by_tenant() -> NamespaceSpec {
    NamespaceSpec { route_key: Some("tenant".into()), ..NamespaceSpec::plain("shop.c") }
}

/// Two clusters, and a migration of `shop.c` by tenants that is free to move.
pub(crate) async fn synced(name: &str, documents: Vec<Document>) -> Result<Bed> {
    synced_with(name, documents, Vec::new()).await
}

/// The same with ranges of tenants.
pub(crate) async fn synced_with(name: &str, documents: Vec<Document>, ranges: Vec<RangeSpec>) -> Result<Bed> {
    let bed = Bed::start(name).await?;
    bed.c().insert_many(documents).await?;
    bed.shop()
        .run_command(doc! {
            "createIndexes": "c",
            "indexes": [{ "key": { "tenant": 1, "n": 1 }, "name": "tenant_n", "unique": true }],
        })
        .await?;
    bed.operator.create_with(vec![by_tenant()], ranges).await?;
    bed.operator.start().await?;
    bed.operator.until_synced().await?;
    Ok(bed)
}

/// Whether a tenant is on new once so many percent of the writes are.
pub(crate) fn is_on_new(tenant: i32, percent: u8) -> bool {
    let slots = SlotSet::percent(percent);
    key_of(RawBsonRef::Int32(tenant)).is_some_and(|key| slots.contains(key.id_slot()))
}

/// The first tenants that stay on old and that move to new.
pub(crate) fn tenants() -> Result<[i32; 2]> {
    let first = |on_new: bool| (0..100).find(|tenant| is_on_new(*tenant, PERCENT) == on_new);
    Ok([first(false).context("a tenant of old")?, first(true).context("a tenant of new")?])
}

/// A plan for servers that share two slow processors with their load.
pub(crate) fn patient_plan() -> Plan {
    Plan {
        p99_floor_ms: 5000.0,
        min_oplog_window_seconds: 1.0,
        max_lag_seconds: 30.0,
        max_secondary_lag_seconds: 60.0,
        max_setbacks: 20,
        shadow: Shadow::Off,
        ..Plan::default()
    }
}

/// Half of the writes are on new.
pub(crate) async fn divide(bed: &Bed) -> Result<()> {
    bed.operator.reads(PERCENT).await?;
    bed.operator.writes(PERCENT).await?;
    Ok(())
}

/// Which of the tenants have been written to or read on a cluster under this name.
pub(crate) async fn served(set: &reshard_testbed::ReplicaSet, name: &str) -> Result<BTreeSet<i32>> {
    let profile = Bed::on(set).await?.collection::<Document>("system.profile");
    let found = profile.distinct("command.comment", doc! { "command.comment.by": name }).await?;
    let tenant = |comment: &bson::Bson| comment.as_document()?.get_i32("tenant").ok();
    let tenants: BTreeSet<i32> = found.iter().filter_map(tenant).collect();
    ensure!(tenants.len() == found.len(), "{found:?}");
    Ok(tenants)
}
