//! The same where only a document tells whose it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Error, Result, ensure};
use async_trait::async_trait;
use bson::raw::RawBsonRef;
use bson::{Document, doc};
use reshard::cluster::command::{Commands, Reply, Request, SendError, SharedCluster};
use reshard::converge::converger::Order;
use reshard::migration::prepare::{plan, prepare};
use reshard::migration::ttl::expire_due;
use reshard::model::namespace::Namespace;
use reshard::model::side::{PerSide, Side};
use reshard::model::slots::SlotSet;
use reshard::policy::canonical::key_of;
use reshard::state::record::StoredRouteKey;

use crate::Bed;
use crate::common::{self, Pair};

const TENANTS: i32 = 40;
const OF_EACH: i32 = 10;

fn by_tenant() -> Vec<StoredRouteKey> {
    vec![StoredRouteKey { namespace: "shop.c".into(), field: "tenant".into() }]
}

fn on_new() -> Vec<i32> {
    let half = SlotSet::percent(50);
    let is_there =
        |tenant: &i32| key_of(RawBsonRef::Int32(*tenant)).is_some_and(|key| half.contains(key.id_slot()));
    (0..TENANTS).filter(is_there).collect()
}

async fn fill(pair: &Pair, more: &Document) -> Result<()> {
    let of = |id: i32| {
        let mut document = doc! { "_id": id, "tenant": id % TENANTS };
        document.extend(more.clone());
        document
    };
    let documents: Vec<Document> = (0..TENANTS * OF_EACH).map(of).collect();
    for cluster in [&pair.clusters.old, &pair.clusters.new] {
        common::run(&**cluster, "shop", &doc! { "insert": "c", "documents": documents.clone() }).await?;
    }
    Ok(())
}

/// What new has changed stays for its tenants, and is put right for the others; so are documents that are missing on
/// one side or the other, and all of it by the same rule.
#[tokio::test(flavor = "multi_thread")]
async fn repair_follows_the_tenant_of_each_document() -> Result<()> {
    let pair = Pair::start().await?;
    fill(&pair, &doc! { "a": "old" }).await?;
    let bed = Bed::divided(pair, 50, by_tenant()).await?;
    bed.unseen(async |pair| {
        let set = doc! { "q": { "_id": { "$lt": 200 } }, "u": { "$set": { "a": "new" } }, "multi": true };
        pair.on_new(doc! { "update": "c", "updates": [set] }).await?;
        let gone = doc! { "q": { "_id": { "$gte": 320 } }, "limit": 0 };
        pair.on_new(doc! { "delete": "c", "deletes": [gone] }).await?;
        Ok(())
    })
    .await?;
    let (state, told) = bed.verify().await;
    ensure!(state.mismatches == 280 && state.repaired == 280 && told.len() == 280, "{state:?}");
    ensure!(bed.are_equal().await?);
    let on_new = on_new();
    let count = async |query: Document| -> Result<i32> {
        Ok(bed.pair.on_old(doc! { "count": "c", "query": query }).await?.get_i32("n")?)
    };
    let theirs = doc! { "$in": on_new.clone() };
    let half = i32::try_from(on_new.len())? * 5;
    ensure!(
        count(doc! { "a": "new" }).await? == half
            && count(doc! { "a": "new", "tenant": theirs.clone() }).await? == half
    );
    // 80 were deleted on new: those of its tenants are gone.
    ensure!(count(doc! { "tenant": theirs, "_id": { "$gte": 320 } }).await? == 0);
    ensure!(count(doc! { "_id": { "$gte": 320 } }).await? == 2 * (TENANTS - i32::try_from(on_new.len())?));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn due_documents_are_removed_where_their_tenant_is() -> Result<()> {
    let pair = Pair::start().await?;
    let index = doc! { "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": 3600 };
    pair.on_old(doc! { "createIndexes": "c", "indexes": [index] }).await?;
    let made = plan(&pair.clusters, &[Namespace::new("shop", "c").into()]).await.map_err(Error::msg)?;
    prepare(&pair.clusters, &made).await.map_err(Error::msg)?;
    let now = bson::DateTime::now().timestamp_millis();
    fill(&pair, &doc! { "t": bson::DateTime::from_millis(now - 7_200_000) }).await?;
    let bed = Bed::divided(pair, 50, by_tenant()).await?;
    // Each once, on its authority: the streams take it to the other.
    let removed = expire_due(&bed.ctx, &made).await.map_err(Error::msg)?;
    ensure!(removed == 400, "{removed}");
    bed.caught_up().await?;
    ensure!(bed.are_equal().await?);
    let left = bed.pair.on_new(doc! { "count": "c" }).await?;
    ensure!(left.get_i32("n")? == 0, "{left}");
    Ok(())
}

/// A cluster to which something happens once a document has been looked for a second time, on either.
struct Meddled {
    cluster: SharedCluster,
    both: PerSide<SharedCluster>,
    looks: Arc<AtomicUsize>,
    meanwhile: Arc<Vec<(Side, Document)>>,
}

#[async_trait]
impl Commands for Meddled {
    async fn run(&self, request: Request) -> std::result::Result<Reply, SendError> {
        let is_look = request.body.get_str("find").is_ok_and(|collection| collection == "c");
        let reply = self.cluster.run(request).await?;
        if is_look && self.looks.fetch_add(1, Ordering::SeqCst) == 1 {
            for (side, command) in &*self.meanwhile {
                let done = common::run(&**self.both.get(*side), "shop", command).await;
                done.map_err(|error| SendError::Unknown(format!("{error:#}")))?;
            }
        }
        Ok(reply)
    }
}

/// Between the look that tells whose a document is and the looks that go before the write, it is deleted, and the other
/// tenant, of the other cluster, takes its `_id`.
#[tokio::test(flavor = "multi_thread")]
async fn converging_does_not_touch_what_has_become_anothers() -> Result<()> {
    let half = SlotSet::percent(50);
    let is_on_new =
        |tenant: i32| key_of(RawBsonRef::Int32(tenant)).is_some_and(|key| half.contains(key.id_slot()));
    let of = |on_new| (0..100).find(|tenant| is_on_new(*tenant) == on_new).context("a tenant");
    let (on_old, on_new) = (of(false)?, of(true)?);
    let mut pair = Pair::start().await?;
    let both = pair.clusters.clone();
    let concern = doc! { "w": "majority" };
    let insert = |tenant| {
        doc! { "insert": "c", "documents": [{ "_id": 1, "tenant": tenant }], "writeConcern": concern.clone() }
    };
    let delete = doc! { "delete": "c", "deletes": [{ "q": { "_id": 1 }, "limit": 1 }], "writeConcern": concern.clone() };
    let looks = Arc::new(AtomicUsize::new(usize::MAX / 2));
    let meanwhile = Arc::new(vec![(Side::Old, delete), (Side::New, insert(on_new))]);
    pair.clusters = PerSide::from_fn(|side| {
        let cluster: SharedCluster = Arc::new(Meddled {
            cluster: both.get(side).clone(),
            both: both.clone(),
            looks: looks.clone(),
            meanwhile: meanwhile.clone(),
        });
        cluster
    });
    let bed = Bed::divided(pair, 50, by_tenant()).await?;
    let (converger, key) = (&bed.ctx.converger, key_of(RawBsonRef::Int32(1)).context("a key")?);
    bed.unseen(async |_| {
        common::run(&*both.old, "shop", &insert(on_old)).await?;
        looks.store(0, Ordering::SeqCst);
        let order = Order::durable(PerSide::default());
        let report = converger.converge(&Namespace::new("shop", "c"), vec![key], &order).await?;
        ensure!(report.stuck.is_empty(), "{report:?}");
        ensure!(looks.load(Ordering::SeqCst) > 2, "it was not looked at again");
        Ok(())
    })
    .await?;
    for side in Side::BOTH {
        let found = common::run(&**both.get(side), "shop", &doc! { "find": "c" }).await?;
        let batch = found.get_document("cursor")?.get_array("firstBatch")?;
        let expected = bson::Bson::from(doc! { "_id": 1, "tenant": on_new });
        ensure!(batch == &vec![expected], "{side}: {found}");
    }
    Ok(())
}
