//! Unique values that swap, and validators younger than their documents.

use crate::support::bed::{Bed, delete, insert, sum, update};
use anyhow::{Result, ensure};
use bson::{cstr, doc, rawdoc};

/// Gives each of `ids` the value of the next one, by way of a value that nobody has.
async fn rotate(bed: &Bed, ids: &[i32]) -> Result<()> {
    let mut session = bed.client.start_session().await?;
    loop {
        session.start_transaction().await?;
        let swapped = async {
            let mut values = Vec::new();
            for id in ids {
                let found = bed.c().find_one(doc! { "_id": id }).session(&mut session).await?;
                values.push(found.and_then(|found| found.get("u").cloned()));
                let away = doc! { "$set": { "u": format!("away-{id}") } };
                bed.c().update_one(doc! { "_id": id }, away).session(&mut session).await?;
            }
            values.rotate_left(1);
            for (id, value) in ids.iter().zip(values) {
                let next = doc! { "$set": { "u": value }, "$inc": { "swaps": 1 } };
                bed.c().update_one(doc! { "_id": id }, next).session(&mut session).await?;
            }
            session.commit_transaction().await
        };
        match swapped.await {
            Ok(()) => return Ok(()),
            Err(error) if error.contains_label("TransientTransactionError") => {
                let _ended = session.abort_transaction().await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unique_values_that_swap_between_documents() -> Result<()> {
    let bed = Bed::start("trap-swap").await?;
    let unique =
        rawdoc! { "createIndexes": "c", "indexes": [{ "key": { "u": 1 }, "name": "u", "unique": true }] };
    bed.raw(unique).await?;
    bed.write(insert((0..9).map(|id| rawdoc! { "_id": id, "u": id, "swaps": 0 }))).await?;
    bed.move_begins().await?;
    for ids in [&[0, 1][..], &[2, 3, 4], &[5, 6], &[1, 0], &[8, 7, 6, 5, 4, 3]] {
        rotate(&bed, ids).await?;
    }
    // Without a transaction: the value is taken by one that comes after its former holder has gone.
    bed.write(delete(rawdoc! { "_id": 8 })).await?;
    bed.write(insert([rawdoc! { "_id": 20, "u": 100 }])).await?;
    bed.equal().await?;
    bed.operator.reads(100).await?;
    ensure!(bed.operator.writes(50).await.is_err(), "two authorities would take one value twice");
    bed.operator.writes(100).await?;
    for ids in [&[0, 1][..], &[1, 0], &[2, 3, 4, 5]] {
        rotate(&bed, ids).await?;
    }
    bed.equal().await?;
    let swaps: i32 = sum(&bed.c(), "swaps").await?;
    ensure!(swaps >= 12 + 8, "{swaps} values were given");
    ensure!(bed.operator.progress().await?.blocked_by.is_empty());
    bed.proxy.shutdown().await;
    Ok(())
}

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
