//! Indexes and options that change while a migration runs.

use crate::support::bed::{Bed, insert};
use crate::support::me;
use anyhow::{Result, ensure};
use bson::{RawDocumentBuf, doc, rawdoc};
use reshard::migration::control::Control as _;

/// What would make another collection of it, or take it away, waits for the end of the migration.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_is_not_pulled_away_through_the_proxy() -> Result<()> {
    let bed = Bed::start("trap-pulled").await?;
    bed.write(insert((0..50).map(|id| rawdoc! { "_id": id, "n": id }))).await?;
    bed.move_begins().await?;
    let on_admin = bed.client.database("admin");
    for round in ["dual", "half"] {
        let commands = [
            doc! { "convertToCapped": "c", "size": 4096 },
            doc! { "cloneCollectionAsCapped": "c", "toCollection": "d", "size": 4096 },
            doc! { "drop": "c" },
            doc! { "dropDatabase": 1 },
            doc! { "createSearchIndexes": "c", "indexes": [{ "name": "s", "definition": {} }] },
            doc! { "updateSearchIndex": "c", "name": "s", "definition": {} },
            doc! { "dropSearchIndex": "c", "name": "s" },
        ];
        let mut answers = Vec::new();
        for command in commands {
            answers.push((command.clone(), bed.shop().run_command(command).await));
        }
        for (from, to) in [("shop.c", "shop.d"), ("shop.other", "shop.c")] {
            let command = doc! { "renameCollection": from, "to": to, "dropTarget": true };
            answers.push((command.clone(), on_admin.run_command(command).await));
        }
        let operation = doc! { "op": "i", "ns": "shop.c", "o": { "_id": "unseen" } };
        let command = doc! { "applyOps": [operation] };
        answers.push((command.clone(), on_admin.run_command(command).await));
        for (command, answer) in answers {
            let refused = answer.err().map(|error| error.to_string()).unwrap_or_default();
            let says_why = refused.contains("migration m") && refused.contains("complete or abort it first");
            ensure!(says_why, "{round}: {command}: {refused:?}");
        }
        let joined = doc! { "$lookup": { "from": "c", "localField": "n", "foreignField": "n", "as": "all" } };
        for options in
            [doc! { "viewOn": "c", "pipeline": [] }, doc! { "viewOn": "other", "pipeline": [joined] }]
        {
            let mut create = doc! { "create": "shown" };
            create.extend(options);
            let refused = bed.shop().run_command(create.clone()).await.err().map(|error| error.to_string());
            let refused = refused.unwrap_or_default();
            ensure!(refused.contains("a view of shop.c would go on showing"), "{create}: {refused:?}");
        }
        bed.equal().await?;
        ensure!(bed.c().count_documents(doc! {}).await? == 50);
        if round == "dual" {
            bed.half().await?;
        }
    }
    bed.operator.rollback().await?;
    bed.operator.engine.abort(&me(), "m").await?;
    bed.shop().run_command(doc! { "convertToCapped": "c", "size": 4096 }).await?;
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn indexes_and_options_change_on_both_sides() -> Result<()> {
    let bed = Bed::start("trap-ddl").await?;
    bed.write(insert((0..50).map(|id| rawdoc! { "_id": id, "n": id }))).await?;
    bed.move_begins().await?;
    let mut session = bed.client.start_session().await?;
    session.start_transaction().await?;
    let index = doc! { "createIndexes": "c", "indexes": [{ "key": { "t": 1 }, "name": "t" }] };
    let inside = bed.shop().run_command(index).session(&mut session).await;
    ensure!(inside.is_err_and(|error| error.to_string().contains("one cluster alone")));
    session.abort_transaction().await?;
    for round in ["dual", "half"] {
        let (one, two) = (format!("one-{round}"), format!("two-{round}"));
        let index = |field: &str, name: &str| {
            let mut key = RawDocumentBuf::new();
            key.append(bson::raw::CString::try_from(field).expect("a name"), 1);
            rawdoc! { "key": key, "name": name }
        };
        let both = rawdoc! { "createIndexes": "c", "indexes": [index(&one, &one), index(&two, &two)] };
        bed.raw(both).await?;
        bed.raw(rawdoc! { "dropIndexes": "c", "index": one.as_str() }).await?;
        bed.raw(rawdoc! { "collMod": "c", "index": { "name": two.as_str(), "hidden": true } }).await?;
        bed.raw(rawdoc! { "collMod": "c", "validator": { "round": { "$ne": round } } }).await?;
        // What one side would refuse, the client hears, and nothing is left on the other alone.
        let clash = bed.raw(rawdoc! { "createIndexes": "c", "indexes": [index("n", &two)] }).await;
        ensure!(clash.is_err(), "{clash:?}");
        for set in [&bed.old, &bed.new] {
            let shop = Bed::on(set).await?;
            let indexes = shop.run_command(doc! { "listIndexes": "c" }).await?.to_string();
            ensure!(!indexes.contains(&one) && indexes.contains(&two), "{indexes}");
            ensure!(indexes.contains("\"hidden\": true"), "{indexes}");
            let options = shop.run_command(doc! { "listCollections": 1 }).await?.to_string();
            ensure!(options.contains(&format!("\"$ne\": \"{round}\"")), "{options}");
        }
        if round == "dual" {
            bed.half().await?;
        }
    }
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}
