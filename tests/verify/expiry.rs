//! Documents that are due while expiry is suspended.

use std::collections::BTreeSet;

use anyhow::{Error, Result, ensure};
use bson::{Bson, Document, doc};
use reshard::migration::prepare::{plan, prepare};
use reshard::migration::ttl::expire_due;
use reshard::model::namespace::Namespace;
use reshard::model::side::Side;

use crate::Bed;
use crate::common::{self, Pair};

#[tokio::test(flavor = "multi_thread")]
async fn due_documents_are_removed_on_their_authority() -> Result<()> {
    let pair = Pair::start().await?;
    let partial = doc! { "kind": "brief" };
    let indexes = vec![
        // Hidden from queries, and removes documents all the same.
        doc! { "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": 3600, "hidden": true },
        doc! { "key": { "u": 1 }, "name": "u_1", "expireAfterSeconds": 0, "partialFilterExpression": partial },
    ];
    pair.on_old(doc! { "createIndexes": "c", "indexes": indexes }).await?;
    let made = plan(&pair.clusters, &[Namespace::new("shop", "c").into()]).await.map_err(Error::msg)?;
    prepare(&pair.clusters, &made).await.map_err(Error::msg)?;
    let now = bson::DateTime::now().timestamp_millis();
    let at = |seconds: i64| bson::DateTime::from_millis(now + seconds * 1000);
    let mut documents: Vec<Document> = (0..700).map(|id| doc! { "_id": id, "t": at(-7200) }).collect();
    documents.extend([
        doc! { "_id": "later", "t": at(-1800) },
        doc! { "_id": "no date", "t": 5 },
        doc! { "_id": "one of many", "t": [at(-7200), at(7200)] },
        doc! { "_id": "brief", "u": at(-1), "kind": "brief" },
        doc! { "_id": "lasting", "u": at(-1) },
    ]);
    for cluster in [&pair.clusters.old, &pair.clusters.new] {
        common::run(&**cluster, "shop", &doc! { "insert": "c", "documents": documents.clone() }).await?;
    }
    let bed = Bed::start(pair, 50).await?;
    let removed = expire_due(&bed.ctx, &made).await.map_err(Error::msg)?;
    ensure!(removed == 702, "{removed}");
    bed.caught_up().await?;
    ensure!(bed.are_equal().await?);
    let left = bed.pair.on_new(doc! { "distinct": "c", "key": "_id" }).await?;
    let left: BTreeSet<_> = left.get_array("values")?.iter().filter_map(Bson::as_str).collect();
    ensure!(left == ["lasting", "later", "no date"].into(), "{left:?}");
    ensure!(expire_due(&bed.ctx, &made).await.map_err(Error::msg)? == 0);
    // Without the lease nothing is removed.
    bed.pair.on_old(doc! { "insert": "c", "documents": [{ "_id": 1, "t": at(-7200) }] }).await?;
    bed.caught_up().await?;
    for side in Side::BOTH {
        bed.ctx.authorities.get(side).lease.lost();
    }
    ensure!(expire_due(&bed.ctx, &made).await.map_err(Error::msg)? == 0);
    Ok(())
}
