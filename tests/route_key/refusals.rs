//! What would take documents away from under their tenants is refused, with the reason.

use super::support::bed::Bed;
use super::support::me;
use super::{by_tenant, divide, synced, tenants};
use anyhow::{Context as _, Result, bail, ensure};
use bson::oid::ObjectId;
use bson::{Bson, Document, bson, doc};
use mongodb::Client;
use reshard::migration::control::{Control as _, NamespaceSpec, NewMigration, Patience, Severity};

fn document(id: impl Into<Bson>, tenant: impl Into<Bson>, n: i32) -> Document {
    doc! { "_id": id.into(), "tenant": tenant.into(), "n": n }
}

/// Refused by the proxy, with a reason that names the field.
async fn refused(bed: &Bed, command: Document) -> Result<()> {
    match bed.shop().run_command(command.clone()).await {
        Ok(reply) => bail!("{command} was done: {reply}"),
        Err(error) => ensure!(error.to_string().contains("tenant"), "{command}: {error}"),
    }
    Ok(())
}

fn update(q: Document, u: Bson) -> Document {
    doc! { "update": "c", "updates": [{ "q": q, "u": u }] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_stays_what_it_is_while_writes_are_divided() -> Result<()> {
    let [on_old, on_new] = tenants()?;
    let ids = [ObjectId::new(), ObjectId::new()];
    let documents =
        [on_old, on_new].into_iter().zip(ids).map(|(tenant, id)| document(id, tenant, 1)).collect();
    let bed = synced("route-refusals", documents).await?;
    // Before that, it may change, but become no array.
    let at = |tenant: i32, id: ObjectId| doc! { "_id": id, "tenant": tenant };
    let set = |tenant: i32| bson!({ "$set": { "tenant": tenant } });
    bed.shop().run_command(update(at(on_old, ids[0]), set(77))).await?;
    bed.shop().run_command(update(doc! { "_id": ids[0] }, set(on_old))).await?;
    let arrays = async || {
        refused(&bed, update(at(on_old, ids[0]), bson!({ "$push": { "tenant": 1 } }))).await?;
        refused(&bed, doc! { "insert": "c", "documents": [document(ObjectId::new(), vec![1, 2], 5)] }).await
    };
    arrays().await?;
    divide(&bed).await?;
    arrays().await?;
    for change in [
        set(on_new),
        bson!({ "$unset": { "tenant": 1 } }),
        bson!({ "$rename": { "tenant": "was" } }),
        bson!({ "$inc": { "tenant": 1 } }),
        bson!({ "n": 5 }),
        bson!({ "tenant": on_new, "n": 5 }),
        bson!([{ "$set": { "tenant": on_new } }]),
        bson!([{ "$unset": "tenant" }]),
    ] {
        refused(&bed, update(at(on_old, ids[0]), change.clone())).await?;
        refused(&bed, doc! { "findAndModify": "c", "query": at(on_old, ids[0]), "update": change }).await?;
    }
    // Whose it is is not said.
    refused(&bed, update(doc! { "_id": ids[0] }, bson!({ "$inc": { "k": 1 } }))).await?;
    let german =
        doc! { "q": { "tenant": "a" }, "u": { "$inc": { "k": 1 } }, "collation": { "locale": "de" } };
    refused(&bed, doc! { "update": "c", "updates": [german] }).await?;
    let upsert = doc! { "q": { "k": 9 }, "u": { "$set": { "n": 2 } }, "upsert": true, "multi": true };
    refused(&bed, doc! { "update": "c", "updates": [upsert] }).await?;
    // What leaves it alone is done.
    for allowed in [
        bson!({ "$set": { "tenant": on_old, "k": 1 } }),
        bson!({ "tenant": on_old, "n": 1 }),
        bson!([{ "$set": { "k": 2 } }]),
    ] {
        let done = bed.shop().run_command(update(at(on_old, ids[0]), allowed)).await?;
        ensure!(done.get_i32("n")? == 1, "{done}");
    }
    bed.equal().await?;
    bed.operator.reads(100).await?;
    bed.operator.writes(100).await?;
    bed.shop().run_command(update(at(on_old, ids[0]), set(88))).await?;
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

/// Such writes may be retried, and then choose another document: they move in one step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retryable_writes_that_name_no_tenant_force_a_single_step() -> Result<()> {
    let [on_old, _] = tenants()?;
    let id = ObjectId::new();
    let bed = synced("route-single-step", vec![document(id, on_old, 1)]).await?;
    let retrying = Client::with_uri_str(super::support::uri(&bed.proxy)).await?;
    let c = retrying.database("shop").collection::<Document>("c");
    c.update_one(doc! { "tenant": on_old, "n": 1 }, doc! { "$inc": { "k": 1 } }).await?;
    bed.operator.reads(100).await?;
    bed.operator.writes(25).await?;
    bed.operator.writes(0).await?;
    c.update_one(doc! { "_id": id }, doc! { "$inc": { "k": 1 } }).await?;
    let moved = bed.operator.engine.set_writes(&me(), "m", 25.into(), Patience::default()).await;
    let error = moved.err().context("it moved in parts")?;
    ensure!(error.reasons.iter().any(|why| why.contains("route key")), "{error} {:?}", error.reasons);
    bed.operator.writes(100).await?;
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

/// An array that was there before is found before anything is divided.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_array_is_found_before_writes_are_divided() -> Result<()> {
    let [on_old, _] = tenants()?;
    let bed = synced("route-array", vec![document(ObjectId::new(), on_old, 1)]).await?;
    let past = Bed::on(&bed.old).await?.collection::<Document>("c");
    past.insert_one(document(ObjectId::new(), vec![1, 2], 5)).await?;
    bed.equal().await?;
    bed.operator.until_bypass(1).await?;
    bed.operator.acknowledge().await?;
    bed.operator.reads(100).await?;
    let moved = bed.operator.engine.set_writes(&me(), "m", 25.into(), Patience::default()).await;
    ensure!(moved.is_err_and(|error| error.code == "route-key-array"));
    bed.operator.writes(100).await?;
    bed.proxy.shutdown().await;
    Ok(())
}

async fn preflight(bed: &Bed, name: &str, spec: NamespaceSpec) -> Result<Vec<(Severity, String)>> {
    let new = NewMigration { name: name.into(), namespaces: vec![spec], ranges: Vec::new() };
    bed.operator.engine.create(&me(), new).await?;
    let report = bed.operator.engine.preflight(name).await?;
    bed.operator.engine.abort(&me(), name).await?;
    Ok(report.findings.into_iter().map(|finding| (finding.severity, finding.code)).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preflight_tells_what_cannot_be_divided() -> Result<()> {
    let bed = Bed::start("route-preflight").await?;
    bed.operator.ready().await?;
    let has = |found: &[(Severity, String)], severity, code: &str| {
        found.iter().any(|(known, of)| *known == severity && of == code)
    };
    bed.c().insert_one(document(ObjectId::new(), 1, 1)).await?;
    let indexes = doc! { "createIndexes": "c", "indexes": [
        { "key": { "tenant": 1, "n": 1 }, "name": "tenant_n", "unique": true },
    ] };
    bed.shop().run_command(indexes).await?;
    let by_id = preflight(&bed, "a", NamespaceSpec::plain("shop.c")).await?;
    ensure!(has(&by_id, Severity::Limits, "unique-index"), "{by_id:?}");
    let divided = preflight(&bed, "b", by_tenant()).await?;
    ensure!(has(&divided, Severity::Info, "route-key"), "{divided:?}");
    ensure!(!has(&divided, Severity::Limits, "unique-index"), "{divided:?}");
    bed.c().insert_one(document(5, 1, 2)).await?;
    let ids = preflight(&bed, "c", by_tenant()).await?;
    ensure!(has(&ids, Severity::Refused, "route-key-ids"), "{ids:?}");
    bed.c().delete_one(doc! { "_id": 5 }).await?;
    bed.c().insert_one(document(ObjectId::new(), vec![1, 2], 3)).await?;
    let array = preflight(&bed, "d", by_tenant()).await?;
    ensure!(has(&array, Severity::Refused, "route-key-array"), "{array:?}");
    bed.proxy.shutdown().await;
    Ok(())
}
