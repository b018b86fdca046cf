//! Validators younger than their documents.

use crate::support::bed::{Bed, insert, sum, update};
use anyhow::{Result, ensure};
use bson::{cstr, doc, rawdoc};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validators_that_are_younger_than_their_documents() -> Result<()> {
    let bed = Bed::start("trap-validator").await?;
    bed.write(insert((0..20).map(|id| rawdoc! { "_id": id, "age": -1 }))).await?;
    let younger = rawdoc! {
        "collMod": "c", "validator": { "age": { "$gte": 0 } }, "validationLevel": "strict",
    };
    bed.raw(younger).await?;
    bed.move_begins().await?;
    bed.equal().await?;
    let options = bed.new.client().await?.database("shop").run_command(doc! { "listCollections": 1 }).await?;
    ensure!(options.to_string().contains("validator"), "{options}");
    for (round, base) in [("dual", 100), ("half", 200)] {
        for id in 0..20 {
            let change = update(rawdoc! { "_id": id }, rawdoc! { "$inc": { "n": 1 } });
            let refused = bed.raw(change.clone()).await?;
            ensure!(refused.to_string().contains("121"), "{round}: {refused}");
            let mut bypass = change;
            bypass.append(cstr!("bypassDocumentValidation"), true);
            bed.write(bypass).await?;
        }
        let mut bypass = insert((base..base + 20).map(|id| rawdoc! { "_id": id, "age": -id }));
        bypass.append(cstr!("bypassDocumentValidation"), true);
        bed.write(bypass).await?;
        let refused = bed.raw(insert([rawdoc! { "_id": -base, "age": -1 }])).await?;
        ensure!(refused.to_string().contains("121"), "{round}: {refused}");
        bed.equal().await?;
        if round == "dual" {
            bed.half().await?;
        }
    }
    ensure!(sum(&bed.c(), "n").await? == 40);
    bed.proxy.shutdown().await;
    Ok(())
}
