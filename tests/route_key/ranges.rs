//! Ranges of keys: one goes first, one stays, and one comes back alone, each with nothing beside it.

use super::support::bed::Bed;
use super::support::{LONG, Operator, me, plant, proxy_with, settings, uri};
use super::synced_with;
use super::tenants::{Load, documents};
use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc};
use reshard::app::Proxy;
use reshard::migration::control::{
    Cluster, Complete, Control as _, Keys, NamespaceSpec, Pinned, RangeSpec, RangeView, SetPins,
};
use reshard::model::percent::Percent;
use reshard::model::slots::{Layout, SlotSet};
use reshard::policy::canonical::key_of;
use serde_json::json;

fn range(name: &str, from: i32, to: i32) -> RangeSpec {
    RangeSpec { name: name.into(), from: Some(json!(from)), to: Some(json!(to)) }
}

/// Of the forty tenants of the load.
pub(crate) fn ranges() -> Vec<RangeSpec> {
    vec![range("first", 5, 10), range("stays", 10, 13), range("late", 30, 35)]
}

pub(crate) fn layout() -> Result<Layout> {
    Layout::with_ranges(ranges().len()).context("few enough")
}

pub(crate) fn slot(name: &str) -> Result<SlotSet> {
    let number = ranges().iter().position(|range| range.name == name).context("a range")?;
    Ok(std::iter::once(layout()?.of_range(number).context("its slot")?).collect())
}

/// What new owns, and whose reads it serves.
pub(crate) fn on_new(proxy: &Proxy) -> Result<[SlotSet; 2]> {
    let table = proxy.engine().environment.routing.load();
    let route = table.route("shop.c").context("a route")?;
    Ok([route.owned_by_new, route.reads_on_new])
}

pub(crate) async fn pin(operator: &Operator, name: &str, to: Cluster) -> Result<Pinned> {
    let asked = SetPins { keys: Vec::new(), ranges: vec![name.into()], to };
    let pinned = operator.engine.pin(&me(), "m", asked).await;
    pinned.map_err(|error| anyhow::anyhow!("pin {name}: {error} {:?}", error.reasons))
}

fn told(views: &[RangeView]) -> Vec<(&str, Cluster, Option<Cluster>)> {
    views.iter().map(|view| (&*view.range.name, view.reads, view.writes)).collect()
}

/// A tenant of a range is not pinned by itself, and others are as ever. The range `first` is on new.
async fn tenants_beside_it(bed: &Bed) -> Result<()> {
    let (operator, first) = (&bed.operator, slot("first")?);
    let (old, new) = (Cluster::Old, Cluster::New);
    let tenant = |tenant: i32, to| SetPins { keys: vec![json!(tenant)], ranges: Vec::new(), to };
    let refused = operator.engine.pin(&me(), "m", tenant(7, old)).await.err().context("in a range")?;
    ensure!(refused.code == "key-in-range" && refused.detail.contains("first"), "{refused:?}");
    let beside = key_of(bson::raw::RawBsonRef::Int32(20)).context("a key")?;
    let beside: SlotSet = std::iter::once(layout()?.of_hash(beside.slot_hash())).collect();
    operator.engine.pin(&me(), "m", tenant(20, new)).await?;
    ensure!(on_new(&bed.proxy)? == [first.or(&beside); 2]);
    let free = Keys { keys: vec![json!(20)], ranges: Vec::new() };
    operator.engine.unpin(&me(), "m", free).await?;
    ensure!(on_new(&bed.proxy)? == [first, first]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_range_goes_first_another_stays_and_the_first_comes_back_alone() -> Result<()> {
    let [first, stays] = [slot("first")?, slot("stays")?];
    let (old, new) = (Cluster::Old, Cluster::New);
    let bed = synced_with("route-ranges", documents(), ranges()).await?;
    let operator = &bed.operator;
    let load = Load::start(&uri(&bed.proxy)).await?;
    let steps = async {
        let pinned = pin(operator, "first", new).await?;
        ensure!(pinned.ramp.percent == 0 && pinned.ramp.attempts > 0, "{pinned:?}");
        ensure!(on_new(&bed.proxy)? == [first, first]);
        let known = operator.progress().await?;
        let expected = [("first", new, Some(new)), ("stays", old, Some(old)), ("late", old, Some(old))];
        ensure!(told(&known.ranges) == expected && known.pins.to_new == 1, "{known:?}");
        load.work().await?;
        tenants_beside_it(&bed).await?;
        pin(operator, "stays", old).await?;
        for percent in [5, 25] {
            operator.reads(percent).await?;
            operator.writes(percent).await?;
            let wanted = layout()?.percent(Percent::whole(percent)).or(&first);
            ensure!(on_new(&bed.proxy)? == [wanted, wanted]);
            let progress = operator.progress().await?;
            ensure!(progress.writes_percent == percent && progress.reads_percent == percent, "{progress:?}");
            load.work().await?;
        }
        operator.reads(100).await?;
        operator.writes(100).await?;
        ensure!(on_new(&bed.proxy)? == [SlotSet::ALL.minus(&stays); 2], "what no pin holds goes at 100");
        load.work().await?;
        let how = Complete { force: true, reason: Some("test".into()) };
        let refused = operator.engine.complete(&me(), "m", how).await.err().context("it stays on old")?;
        ensure!(refused.code == "pinned-to-old" && refused.reasons == ["range stays"], "{refused:?}");
        // Back with the first alone.
        let back = pin(operator, "first", old).await?;
        ensure!(back.ramp.percent == 100 && back.ramp.attempts > 0, "{back:?}");
        let rest = SlotSet::ALL.minus(&stays).minus(&first);
        ensure!(on_new(&bed.proxy)? == [rest, rest]);
        load.work().await?;
        // What stayed goes where the others are.
        let free = Keys { keys: Vec::new(), ranges: vec!["stays".into()] };
        operator.engine.unpin(&me(), "m", free).await?;
        ensure!(on_new(&bed.proxy)? == [SlotSet::ALL.minus(&first); 2]);
        operator.writes(50).await?;
        load.work().await?;
        pin(operator, "stays", new).await?;
        load.work().await
    };
    let moved = steps.await;
    load.stop().await?;
    moved?;
    let before = on_new(&bed.proxy)?;
    let half = layout()?.percent(Percent::whole(50)).or(&stays);
    ensure!(before == [half, SlotSet::ALL.minus(&first)], "{before:?}");
    bed.equal().await?;
    operator.found_none_past_the_proxy().await?;
    bed.proxy.shutdown().await;
    let proxy = proxy_with(&bed.old.uri(), Some(&bed.new.uri()), settings()).await?;
    let operator = Operator::of(&proxy, "m");
    operator.ready().await?;
    ensure!(on_new(&proxy)? == before, "a successor routes otherwise");
    let known = operator.engine.pins("m").await?;
    let expected = [("first", old, Some(old)), ("stays", new, Some(new)), ("late", new, Some(old))];
    ensure!(told(&known.ranges) == expected, "{known:?}");
    let named: Vec<_> = known.pins.iter().map(|pin| (pin.range.as_deref(), pin.to, pin.in_force)).collect();
    ensure!(named == [(Some("first"), old, true), (Some("stays"), new, true)], "{known:?}");
    operator.until_synced().await?;
    let back = operator.rollback().await?;
    ensure!(back.removed_pins == 1 && on_new(&proxy)? == [SlotSet::EMPTY; 2], "{back:?}");
    let audited = operator.engine.events("m").await?;
    ensure!(audited.iter().any(|event| event.what == "pin range first to new"), "{audited:?}");
    reshard_testbed::wait_for("both sides to be equal", LONG, || async {
        Ok(reshard_loadtest::compare(&bed.old.uri(), &bed.new.uri(), "shop.c").await?.is_equal())
    })
    .await?;
    proxy.shutdown().await;
    Ok(())
}

/// Who serves the read of a document, by what was planted on new.
async fn served_by(c: &mongodb::Collection<Document>, id: bson::Bson) -> Result<String> {
    let found = c.find_one(doc! { "_id": id }).await?.context("a document")?;
    Ok(found.get_str("on")?.to_owned())
}

/// Without a route key, ranges are of `_id`s, whatever type a number has; and nothing else comes along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_of_ids_is_served_by_new_with_nothing_beside_it() -> Result<()> {
    let bed = Bed::start("route-range-ids").await?;
    let ids = || (0..200).map(|id| doc! { "_id": id, "on": "old" });
    bed.c().insert_many(ids()).await?;
    let wrong = vec![range("few", 0, 100), range("more", 99, 150)];
    let specs = || vec![NamespaceSpec::plain("shop.c")];
    let refused = bed.operator.create_with(specs(), wrong).await.err().context("they overlap")?;
    ensure!(refused.to_string().contains("few and more overlap"), "{refused}");
    bed.operator.create_with(specs(), vec![range("few", 0, 100)]).await?;
    bed.operator.start().await?;
    bed.operator.until_synced().await?;
    pin(&bed.operator, "few", Cluster::New).await?;
    let planted = (0..200).flat_map(|id| {
        let remove = doc! { "op": "d", "ns": "shop.c", "o": { "_id": id } };
        [remove, doc! { "op": "i", "ns": "shop.c", "o": { "_id": id, "on": "new" } }]
    });
    plant(&bed.new, planted.collect()).await?;
    for id in 0..100 {
        ensure!(served_by(&bed.c(), id.into()).await? == "new", "{id}");
        ensure!(served_by(&bed.c(), f64::from(id).into()).await? == "new", "{id} as a double");
    }
    for id in 100..200 {
        ensure!(served_by(&bed.c(), id.into()).await? == "old", "{id}");
    }
    let asked = SetPins { keys: Vec::new(), ranges: vec!["many".into()], to: Cluster::New };
    let refused = bed.operator.engine.pin(&me(), "m", asked).await.err().context("no such range")?;
    ensure!(refused.code == "no-such-range" && refused.detail.contains("few"), "{refused:?}");
    bed.proxy.shutdown().await;
    Ok(())
}
