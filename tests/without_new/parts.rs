//! Without new a range comes back alone, and a key after it; the rest waits for new and goes on there.

use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc};
use mongodb::Client;
use reshard::migration::control::{AcknowledgeUnreturned, Control as _, Keys, NamespaceSpec, RangeSpec};
use reshard::model::side::Side;
use reshard::model::slots::Layout;
use reshard::policy::canonical::key_of;
use serde_json::json;

use super::support::{LONG, Operator, me, proxy, two_sets, until_equal, uri};
use super::{Orders, all_go_but_one, conflicts, fill, hold_off_the_stream, keys, orders, until_held_off};
use reshard_testbed::{ReplicaSet, wait_for};

/// Documents of the range.
const RANGE: std::ops::Range<i32> = 0..60;
/// One of the others, which comes back with its slot.
const KEY: i32 = 70;

fn of_range() -> Keys {
    Keys { keys: Vec::new(), ranges: vec!["first".into()] }
}

fn of_key() -> Keys {
    Keys { keys: vec![json!(KEY)], ranges: Vec::new() }
}

/// Whether a document comes back with the key.
fn is_beside(id: i32) -> Result<bool> {
    let layout = Layout::with_ranges(1).context("one")?;
    let slot = |id| Some(layout.of_hash(key_of(bson::raw::RawBsonRef::Int32(id))?.slot_hash()));
    Ok(!RANGE.contains(&id) && slot(id) == slot(KEY))
}

/// Sets `n` of the first hundred by one command, whose keys are so many that they are left to the streams.
async fn write(through: &str, n: i32) -> Result<()> {
    let shop = Client::with_uri_str(through).await?.database("shop");
    let updates: Vec<Document> =
        (0..100).map(|id| doc! { "q": { "_id": id }, "u": { "$set": { "n": n } } }).collect();
    let done = shop.run_command(doc! { "update": "c", "updates": updates }).await?;
    ensure!(done.get_i32("n")? == 100 && !done.contains_key("writeErrors"), "{done}");
    Ok(())
}

async fn n(orders: &Orders, id: i32) -> Result<Option<i32>> {
    let found = orders.find_one(doc! { "_id": id }).await?;
    Ok(found.map(|found| found.get_i32("n")).transpose()?)
}

/// A write of a document that new has fails as long as new is away.
async fn must_fail(through: &str, id: i32) -> Result<()> {
    let update = doc! {
        "update": "c", "updates": [{ "q": { "_id": id }, "u": { "$set": { "n": -1 } } }], "maxTimeMS": 300,
    };
    let shop = Client::with_uri_str(through).await?.database("shop");
    let written = shop.run_command(update).await;
    ensure!(written.is_err() || written?.contains_key("writeErrors"), "{id} is new's");
    Ok(())
}

/// A migration with a range, all of it on new, which has what old has not got.
async fn begun(operator: &Operator, new: &ReplicaSet, through: &str, percent: u8) -> Result<()> {
    let range =
        RangeSpec { name: "first".into(), from: Some(json!(RANGE.start)), to: Some(json!(RANGE.end)) };
    operator.create_with(vec![NamespaceSpec::plain("shop.c")], vec![range]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    operator.reads(100).await?;
    operator.writes(percent).await?;
    operator.until_level().await?;
    hold_off_the_stream(new).await?;
    until_held_off(operator).await?;
    write(through, 1).await
}

/// Everything as it should be once new is there again: `on` whose word it is.
async fn must_be_as_written(orders: &Orders) -> Result<()> {
    for id in 0..100 {
        let expected = if id < 5 || id == KEY { 5 } else { 1 };
        ensure!(n(orders, id).await? == Some(expected), "{id}: {:?}, not {expected}", n(orders, id).await?);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_and_then_a_key_come_back_alone() -> Result<()> {
    let (old, new) = two_sets("without-new-parts").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let through = orders(&uri(&proxy)).await?;
    fill(&through).await?;
    let operator = Operator::of(&proxy, "m");
    begun(&operator, &new, &uri(&proxy), 100).await?;
    let refused = operator.take_back_without_new(Some(of_range())).await.expect_err("new answers");
    ensure!(refused.to_string().contains("new answers"), "{refused}");

    new.kill9_all().await?;
    let back = operator.take_back_without_new(Some(of_range())).await?;
    println!("a range without new: {back:?}");
    ensure!(back.unreturned == Some(60) && back.all_named && back.percent == 100, "{back:?}");
    let named = operator.unreturned().await?;
    ensure!(named.documents.iter().map(|it| it.key.clone()).collect::<Vec<_>>().len() == 60, "{named:?}");
    ensure!(named.documents.iter().all(|it| keys(RANGE).contains(&it.key)), "{named:?}");
    ensure!(n(&through, 7).await? == Some(0), "old serves the range");
    for id in 0..5 {
        through.update_one(doc! { "_id": id }, doc! { "$set": { "n": 5 } }).await?;
    }
    must_fail(&uri(&proxy), KEY).await?;
    // Once more says the same, and the key comes after it.
    ensure!(operator.take_back_without_new(Some(of_range())).await?.unreturned == Some(60));
    let beside = (0..100).map(is_beside).collect::<Result<Vec<_>>>()?.into_iter().filter(|it| *it).count();
    let back = operator.take_back_without_new(Some(of_key())).await?;
    ensure!(back.unreturned == Some(60 + beside as u64) && back.all_named, "{beside}: {back:?}");
    through.update_one(doc! { "_id": KEY }, doc! { "$set": { "n": 5 } }).await?;
    let other = (60..100).find(|id| matches!(is_beside(*id), Ok(false))).context("another")?;
    must_fail(&uri(&proxy), other).await?;

    new.start_all().await?;
    operator.until_back().await?;
    must_be_as_written(&through).await?;
    let list = operator.unreturned().await?;
    ensure!(conflicts(&list) == keys((0..5).chain([KEY])), "{:?}", conflicts(&list));
    let progress = operator.progress().await?;
    ensure!(progress.writes_percent == 100 && progress.pins.to_old == 2, "{progress:?}");
    let first = progress.ranges.first().context("the range")?;
    ensure!(first.writes_percent == Some(0.0) && first.reads_percent == 0.0, "{first:?}");
    let counted = first.operations;
    ensure!(counted.writes.new >= 60 && counted.writes.old >= 5 && counted.reads.old >= 60, "{counted:?}");
    let of = |id| proxy_authority(&proxy, id);
    ensure!(of(7) == Some(Side::Old) && of(KEY) == Some(Side::Old) && of(other) == Some(Side::New));
    // The rest goes on as ever, and comes back as ever.
    through.update_one(doc! { "_id": other }, doc! { "$set": { "n": 1 } }).await?;
    let merged = AcknowledgeUnreturned { reason: "merged by hand".into() };
    operator.engine.acknowledge_unreturned(&me(), "m", merged).await?;
    operator.until_level().await?;
    until_equal(&old.uri(), &new.uri(), "shop.c").await?;
    operator.found_none_past_the_proxy().await?;
    operator.rollback().await?;
    must_be_as_written(&orders(&old.uri()).await?).await?;
    proxy.shutdown().await;
    Ok(())
}

fn proxy_authority(proxy: &reshard::app::Proxy, id: i32) -> Option<Side> {
    let table = proxy.engine().environment.routing.load();
    let namespace = reshard::model::namespace::Namespace::new("shop", "c");
    table.route("shop.c")?.authority_of_key(&namespace, &key_of(bson::raw::RawBsonRef::Int32(id))?)
}

/// The process is killed while a part is taken back; its successor knows that part, and takes back the rest as a whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rest_comes_back_after_a_part_and_a_restart() -> Result<()> {
    let (old, new) = two_sets("without-new-rest").await?;
    let first = proxy(&old.uri(), Some(&new.uri())).await?;
    fill(&orders(&uri(&first)).await?).await?;
    let operator = Operator::of(&first, "m");
    begun(&operator, &new, &uri(&first), 100).await?;
    new.kill9_all().await?;
    operator.take_back_without_new(Some(of_range())).await?;
    first.shutdown().await;

    let second = proxy(&old.uri(), Some(&new.uri())).await?;
    let through = orders(&uri(&second)).await?;
    let operator = Operator::of(&second, "m");
    wait_for("the range to be served", LONG, || async { Ok(n(&through, 7).await.is_ok()) }).await?;
    all_go_but_one(&through, 0..5, 5).await?;
    must_fail(&uri(&second), KEY).await?;
    let back = operator.roll_back_without_new().await?;
    ensure!(back.percent == 0 && !back.all_named, "{back:?}");
    all_go_but_one(&through, [KEY], 5).await?;
    new.start_all().await?;
    operator.until_back().await?;
    must_be_as_written(&orders(&old.uri()).await?).await?;
    let merged = AcknowledgeUnreturned { reason: "merged by hand".into() };
    operator.engine.acknowledge_unreturned(&me(), "m", merged).await?;
    operator.until_level().await?;
    until_equal(&old.uri(), &new.uri(), "shop.c").await?;
    second.shutdown().await;
    Ok(())
}
