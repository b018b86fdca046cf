//! What is done to the clusters past the proxy.

use crate::support::bed::{Bed, delete, insert, raw, sum, update};
use crate::support::{LONG, Operator, me, proxy_with};
use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc, rawdoc};
use reshard::migration::control::{Acknowledge, Control as _, Page, Patience, Phase};
use reshard_testbed::wait_for;

/// Waits until the migration has failed, and returns why.
async fn failed(operator: &Operator) -> Result<String> {
    wait_for("the migration to fail", LONG, || async {
        Ok(operator.progress().await?.phase == Phase::Failed)
    })
    .await?;
    operator.engine.get(&operator.name).await?.failure.context("a reason")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collections_taken_away_past_the_proxy() -> Result<()> {
    let bed = Bed::start("trap-taken").await?;
    let old = Bed::on(&bed.old).await?;
    for (name, what) in [("dropped", "drop"), ("renamed", "rename"), ("replaced", "rename")] {
        bed.c().insert_one(doc! { "_id": name }).await?;
        let operator = Operator::of(&bed.proxy, name);
        operator.create(&["shop.c"]).await?;
        operator.start().await?;
        operator.until_synced().await?;
        let admin = bed.old.client().await?.database("admin");
        match name {
            "dropped" => old.collection::<Document>("c").drop().await?,
            "renamed" => {
                admin.run_command(doc! { "renameCollection": "shop.c", "to": "shop.elsewhere" }).await?;
            }
            _ => {
                old.collection("other").insert_one(doc! { "_id": "another" }).await?;
                let onto = doc! { "renameCollection": "shop.other", "to": "shop.c", "dropTarget": true };
                admin.run_command(onto).await?;
            }
        }
        let why = failed(&operator).await?;
        ensure!(why.contains(what), "{name}: {why}");
        bed.c().insert_one(doc! { "_id": format!("after-{name}") }).await?;
        ensure!(bed.c().find_one(doc! { "_id": format!("after-{name}") }).await?.is_some());
        operator.engine.abort(&me(), name).await?;
        wait_for("new to be cleaned up", LONG, || async {
            Ok(Bed::on(&bed.new).await?.list_collection_names().await?.is_empty())
        })
        .await?;
        ensure!(bed.c().find_one(doc! { "_id": format!("after-{name}") }).await?.is_some());
    }
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_go_past_the_proxy() -> Result<()> {
    let bed = Bed::start("trap-past").await?;
    bed.write(insert((0..50).map(|id| rawdoc! { "_id": id, "n": 0 }))).await?;
    bed.move_begins().await?;
    let (old, new) = (Bed::on(&bed.old).await?, Bed::on(&bed.new).await?);
    for round in 0..10 {
        for id in 0..20 {
            let inc = update(rawdoc! { "_id": id }, rawdoc! { "$inc": { "n": 1 } });
            let (through, past) = tokio::join!(bed.write(inc.clone()), raw(&old, inc));
            through?;
            past?;
        }
        raw(&old, insert([rawdoc! { "_id": format!("past-{round}"), "n": 0 }])).await?;
        raw(&old, delete(rawdoc! { "_id": 40 + round })).await?;
        // On the mirror nobody may write: whatever it is, it is undone.
        raw(&new, update(rawdoc! { "_id": 20 + round }, rawdoc! { "$inc": { "n": 7 } })).await?;
        raw(&new, insert([rawdoc! { "_id": format!("phantom-{round}"), "n": 1000 }])).await?;
        raw(&new, delete(rawdoc! { "_id": 30 + round })).await?;
    }
    wait_for("all of it to be followed", LONG, || async {
        bed.operator.acknowledge().await?;
        let progress = bed.operator.progress().await?;
        Ok(progress.lag_seconds == Some(0.0) && progress.blocked_by.is_empty())
    })
    .await?;
    bed.equal().await?;
    ensure!(sum(&old.collection("c"), "n").await? == 10 * 20 * 2);
    ensure!(new.collection::<Document>("c").count_documents(doc! {}).await? == 50);
    bed.proxy.shutdown().await;
    Ok(())
}

/// What the gate says when it is asked to let writes move.
async fn refused(operator: &Operator, percent: u8) -> Result<String> {
    let asked = operator.engine.set_writes(&me(), &operator.name, percent.into(), Patience::default()).await;
    let refused = asked.err().context("it moved")?;
    ensure!(refused.code == "blocked", "{refused:?}");
    Ok(refused.detail)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_past_the_proxy_stand_in_the_way_until_they_are_acknowledged() -> Result<()> {
    let bed = Bed::start("trap-gate").await?;
    bed.write(insert((0..20).map(|id| rawdoc! { "_id": id, "n": 0 }))).await?;
    bed.move_begins().await?;
    let (old, new) = (Bed::on(&bed.old).await?, Bed::on(&bed.new).await?);
    raw(&old, insert([rawdoc! { "_id": "past", "n": 0 }])).await?;
    raw(&old, update(rawdoc! { "_id": 1 }, rawdoc! { "$inc": { "n": 1 } })).await?;
    raw(&old, delete(rawdoc! { "_id": 2 })).await?;
    bed.operator.until_bypass(3).await?;
    bed.operator.reads(100).await?;
    let why = refused(&bed.operator, 10).await?;
    ensure!(why.contains("3 writes") && why.contains("shop.c, _id {\"$numberInt\":\"2\"}"), "{why}");
    ensure!(bed.operator.progress().await?.blocked_by.iter().any(|why| why.contains("went past the proxy")));
    let report = bed.operator.bypass().await?;
    let kinds: Vec<_> = report.writes.iter().map(|one| (one.number, one.kind.as_str(), one.undone)).collect();
    ensure!(kinds == [(3, "delete", false), (2, "update", false), (1, "insert", false)], "{report:?}");
    ensure!(report.writes.iter().all(|one| one.side == "old" && one.image.is_none()), "{report:?}");
    let second = Page { before: Some(3), limit: Some(1) };
    let second = bed.operator.engine.bypass_writes("m", second).await?;
    ensure!(second.writes == report.writes[1..2] && second.next == Some(2), "{second:?}");

    let asked = |reason: &str, up_to| Acknowledge { reason: reason.into(), up_to };
    let acknowledge = async |asked| bed.operator.engine.acknowledge_bypass_writes(&me(), "m", asked).await;
    let no_reason = acknowledge(asked(" ", None)).await.err().map(|error| error.code);
    ensure!(no_reason == Some("reason-missing"), "{no_reason:?}");
    let not_all_seen = acknowledge(asked("known", Some(2))).await.err().map(|error| error.code);
    ensure!(not_all_seen == Some("more-bypass-writes"), "{not_all_seen:?}");
    let made = acknowledge(asked("known", Some(3))).await?;
    ensure!(
        (made.writes, made.up_to, &*made.latest) == (3, 3, "shop.c, _id {\"$numberInt\":\"2\"}"),
        "{made:?}"
    );
    let audit = bed.operator.engine.events("m").await?;
    ensure!(
        audit.iter().any(|event| event.what.contains("3 writes") && event.what.contains("known")),
        "{audit:?}"
    );
    bed.operator.writes(10).await?;

    // On new they are listed, and stand in nobody's way.
    raw(&new, insert([rawdoc! { "_id": "on-new", "n": 0 }])).await?;
    bed.operator.until_bypass(4).await?;
    bed.operator.writes(20).await?;
    raw(&old, update(rawdoc! { "_id": 3 }, rawdoc! { "$inc": { "n": 1 } })).await?;
    bed.operator.until_bypass(5).await?;
    ensure!(refused(&bed.operator, 30).await?.contains("1 write "));
    bed.operator.writes(10).await?;
    bed.operator.rollback().await?;
    bed.proxy.shutdown().await;

    // The next process knows.
    let proxy = proxy_with(&bed.old.uri(), Some(&bed.new.uri()), super::support::settings()).await?;
    let operator = Operator::of(&proxy, "m");
    operator.ready().await?;
    wait_for("nothing else to be in the way", LONG, || async {
        Ok(operator.progress().await.is_ok_and(|progress| progress.blocked_by.len() == 1))
    })
    .await?;
    let progress = operator.progress().await?;
    ensure!(progress.blocked_by[0].contains("1 write "), "{progress:?}");
    ensure!((progress.bypass_writes, progress.bypass_writes_total) == (5, 5), "{progress:?}");
    operator.acknowledge().await?;
    operator.reads(100).await?;
    operator.writes(100).await?;
    proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_move_undoes_is_kept() -> Result<()> {
    let bed = Bed::start("trap-undone").await?;
    bed.write(insert((0..20).map(|id| rawdoc! { "_id": id, "n": 0 }))).await?;
    bed.move_begins().await?;
    bed.operator.reads(100).await?;
    bed.operator.writes(100).await?;
    let old = Bed::on(&bed.old).await?;
    raw(&old, update(rawdoc! { "_id": 1 }, rawdoc! { "$set": { "n": 7_i64 } })).await?;
    raw(&old, insert([rawdoc! { "_id": "phantom", "n": 1 }])).await?;
    raw(&old, delete(rawdoc! { "_id": 2 })).await?;
    raw(&old, update(rawdoc! { "_id": 3 }, rawdoc! { "$set": { "long": "x".repeat(100_000) } })).await?;
    raw(&Bed::on(&bed.new).await?, update(rawdoc! { "_id": 4 }, rawdoc! { "$set": { "n": 7 } })).await?;
    bed.operator.until_bypass(5).await?;
    wait_for("all of it to be undone or followed", LONG, || async {
        bed.operator.acknowledge().await?;
        let equal = reshard_loadtest::compare(&bed.old.uri(), &bed.new.uri(), "shop.c").await?.is_equal();
        Ok(equal && bed.operator.bypass().await?.writes.iter().filter(|one| one.undone).count() == 4)
    })
    .await?;
    let listed = bed.operator.bypass().await?.writes;
    let of =
        |key: &str| listed.iter().find(|one| one.key == key).with_context(|| format!("{key}: {listed:?}"));
    let updated = of(r#"{"$numberInt":"1"}"#)?;
    ensure!(
        updated.image.as_deref() == Some(r#"{"_id":{"$numberInt":"1"},"n":{"$numberLong":"7"}}"#),
        "{updated:?}"
    );
    let phantom = of(r#""phantom""#)?;
    ensure!(phantom.image.as_deref() == Some(r#"{"_id":"phantom","n":{"$numberInt":"1"}}"#), "{phantom:?}");
    let deleted = of(r#"{"$numberInt":"2"}"#)?;
    ensure!(deleted.kind == "delete" && deleted.image.is_none(), "{deleted:?}");
    let long = of(r#"{"$numberInt":"3"}"#)?;
    ensure!(long.image_truncated && long.image.as_ref().is_some_and(|image| image.len() <= 16 * 1024), "cut");
    ensure!(!of(r#"{"$numberInt":"4"}"#)?.undone, "new has the authority");
    ensure!(bed.c().find_one(doc! { "_id": 1 }).await? == Some(doc! { "_id": 1, "n": 0 }), "it was undone");
    bed.proxy.shutdown().await;
    Ok(())
}
