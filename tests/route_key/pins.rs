//! One tenant first, one that stays, and one that comes back alone, under a load that names its tenants.

use super::support::{LONG, Operator, me, proxy_with, settings, uri};
use super::tenants::{Load, documents};
use super::{is_on_new, patient_plan, synced};
use anyhow::{Context as _, Result, ensure};
use bson::doc;
use reshard::app::Proxy;
use reshard::migration::control::{
    Cluster, Complete, Control as _, Keys, PinView, Pinned, Plan, RampStatus, SetPins,
};
use reshard::model::percent::Percent;
use reshard::model::slots::SlotSet;
use reshard::policy::canonical::key_of;
use serde_json::json;

fn slot(tenant: i32) -> Result<SlotSet> {
    let key = key_of(bson::raw::RawBsonRef::Int32(tenant)).context("a key")?;
    Ok(std::iter::once(key.id_slot()).collect())
}

/// What new owns, and whose reads it serves.
fn on_new(proxy: &Proxy) -> Result<[SlotSet; 2]> {
    let table = proxy.engine().environment.routing.load();
    let route = table.route("shop.c").context("a route")?;
    Ok([route.owned_by_new, route.reads_on_new])
}

async fn pin(operator: &Operator, tenant: i32, to: Cluster) -> Result<Pinned> {
    let pinned =
        operator.engine.pin(&me(), "m", SetPins { keys: vec![json!(tenant)], ranges: Vec::new(), to }).await;
    pinned.map_err(|error| anyhow::anyhow!("pin {tenant}: {error} {:?}", error.reasons))
}

async fn unpin(operator: &Operator, tenant: i32) -> Result<Pinned> {
    let unpinned =
        operator.engine.unpin(&me(), "m", Keys { keys: vec![json!(tenant)], ranges: Vec::new() }).await;
    unpinned.map_err(|error| anyhow::anyhow!("unpin {tenant}: {error} {:?}", error.reasons))
}

fn told(pins: &[PinView]) -> Vec<(&str, Cluster, bool)> {
    pins.iter().map(|pin| (pin.key.as_deref().unwrap_or_default(), pin.to, pin.in_force)).collect()
}

/// A tenant that a quarter of the writes takes along, and one that it does not.
fn early_and_late() -> Result<[i32; 2]> {
    let first = |early: bool| (0..40).find(|tenant| is_on_new(*tenant, 25) == early);
    Ok([first(true).context("an early one")?, first(false).context("a late one")?])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_tenant_goes_first_another_stays_and_the_first_comes_back_alone() -> Result<()> {
    let [stays, first] = early_and_late()?;
    let (stay, went) = (slot(stays)?, slot(first)?);
    let bed = synced("route-pins", documents()).await?;
    let operator = &bed.operator;
    let load = Load::start(&uri(&bed.proxy)).await?;
    let steps = async {
        let pinned = pin(operator, first, Cluster::New).await?;
        ensure!(pinned.ramp.percent == 0 && pinned.ramp.attempts > 0, "{pinned:?}");
        ensure!(told(&pinned.pins) == [(first.to_string().as_str(), Cluster::New, true)], "{pinned:?}");
        ensure!(on_new(&bed.proxy)? == [went, went]);
        load.work().await?;
        pin(operator, stays, Cluster::Old).await?;
        for percent in [5, 25] {
            operator.reads(percent).await?;
            operator.writes(percent).await?;
            let wanted = SlotSet::percent(percent).minus(&stay).or(&went);
            ensure!(on_new(&bed.proxy)? == [wanted, wanted]);
            let progress = operator.progress().await?;
            ensure!(progress.writes_percent == percent && progress.reads_percent == percent, "{progress:?}");
            load.work().await?;
        }
        // Down to nothing, what is pinned stays.
        operator.writes(0).await?;
        operator.reads(0).await?;
        ensure!(on_new(&bed.proxy)? == [went, went]);
        load.work().await?;
        operator.reads(100).await?;
        operator.writes(100).await?;
        load.work().await?;
        let how = Complete { force: true, reason: Some("test".into()) };
        let refused = operator.engine.complete(&me(), "m", how).await.err().context("it stays on old")?;
        ensure!(refused.code == "pinned-to-old", "{refused:?}");
        ensure!(refused.reasons == [stays.to_string()], "{refused:?}");
        // Back with the first alone.
        let back = pin(operator, first, Cluster::Old).await?;
        ensure!(back.ramp.percent == 100 && back.ramp.attempts > 0, "{back:?}");
        let wanted = SlotSet::ALL.minus(&stay).minus(&went);
        ensure!(on_new(&bed.proxy)? == [wanted, wanted]);
        load.work().await?;
        // What stayed goes where the others are.
        unpin(operator, stays).await?;
        ensure!(on_new(&bed.proxy)? == [SlotSet::ALL.minus(&went); 2]);
        load.work().await?;
        operator.writes(50).await?;
        load.work().await?;
        pin(operator, stays, Cluster::New).await?;
        load.work().await
    };
    let moved = steps.await;
    load.stop().await?;
    moved?;
    let before = on_new(&bed.proxy)?;
    bed.equal().await?;
    operator.found_none_past_the_proxy().await?;
    bed.proxy.shutdown().await;
    let proxy = proxy_with(&bed.old.uri(), Some(&bed.new.uri()), settings()).await?;
    let operator = Operator::of(&proxy, "m");
    operator.ready().await?;
    ensure!(on_new(&proxy)? == before, "a successor routes otherwise");
    let known = operator.engine.pins("m").await?.pins;
    let (first, stays) = (first.to_string(), stays.to_string());
    let expected = [(first.as_str(), Cluster::Old, true), (stays.as_str(), Cluster::New, true)];
    ensure!(told(&known) == expected, "{known:?}");
    operator.until_synced().await?;
    let back = operator.rollback().await?;
    ensure!(back.removed_pins == 1 && on_new(&proxy)? == [SlotSet::EMPTY; 2], "{back:?}");
    ensure!(told(&operator.engine.pins("m").await?.pins) == expected[..1]);
    let audited = operator.engine.events("m").await?;
    ensure!(audited.iter().any(|event| event.what == "rollback, removing 1 pins to new"), "{audited:?}");
    ensure!(audited.iter().any(|event| event.what == format!("pin {first} to new")), "{audited:?}");
    reshard_testbed::wait_for("both sides to be equal", LONG, || async {
        Ok(reshard_loadtest::compare(&bed.old.uri(), &bed.new.uri(), "shop.c").await?.is_equal())
    })
    .await?;
    proxy.shutdown().await;
    Ok(())
}

/// A process that was cut off in the middle has stored what was meant: it is told, and repeating the call does it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_that_came_to_nothing_is_told_and_can_be_repeated_or_taken_back() -> Result<()> {
    let [_, first] = early_and_late()?;
    let went = slot(first)?;
    let bed = synced("route-pin-held", documents()).await?;
    let operator = &bed.operator;
    operator.reads(100).await?;
    // No marker can be written on new, so that no fence is decided for a move.
    let fails = doc! { "failCommands": ["update"], "errorCode": 8 };
    bed.new
        .fail_point(doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": fails })
        .await?;
    let refused = operator
        .engine
        .pin(&me(), "m", SetPins { keys: vec![json!(first)], ranges: Vec::new(), to: Cluster::New })
        .await;
    let refused = refused.err().context("nothing can move")?;
    bed.new.fail_point(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await?;
    ensure!(refused.detail.contains("the pins are stored"), "{refused:?}");
    let progress = operator.progress().await?;
    ensure!((progress.pins.to_new, progress.pins.not_in_force) == (1, 1), "{progress:?}");
    ensure!(on_new(&bed.proxy)? == [SlotSet::EMPTY, SlotSet::ALL]);
    // A percentage does not finish it.
    operator.until_synced().await?;
    operator.writes(5).await?;
    ensure!(on_new(&bed.proxy)? == [SlotSet::percent(5), SlotSet::ALL]);
    pin(operator, first, Cluster::New).await?;
    ensure!(on_new(&bed.proxy)? == [SlotSet::percent(5).or(&went), SlotSet::ALL]);
    unpin(operator, first).await?;
    ensure!(on_new(&bed.proxy)? == [SlotSet::percent(5), SlotSet::ALL]);
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

/// A plan moves what is not pinned; what comes back alone while it runs does not halt it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_goes_on_with_the_rest() -> Result<()> {
    let [early, late] = early_and_late()?;
    let (stay, went) = (slot(early)?, slot(late)?);
    let bed = synced("route-pin-plan", documents()).await?;
    let operator = &bed.operator;
    let load = Load::start(&uri(&bed.proxy)).await?;
    let steps = async {
        pin(operator, late, Cluster::New).await?;
        let quarter = vec![Percent::whole(25)];
        let plan = Plan {
            reads: quarter.clone(),
            writes: quarter,
            dwell_seconds: 5,
            min_samples: 1,
            ..patient_plan()
        };
        let started = operator.engine.start_plan(&me(), "m", plan).await?;
        ensure!(started.reads_percent == 0 && started.writes_percent == 0, "{started:?}");
        pin(operator, early, Cluster::Old).await?;
        let done = reshard_testbed::wait_for("the plan to be done", LONG * 2, || async {
            Ok(operator.engine.plan("m").await?.status == RampStatus::Done)
        });
        if let Err(error) = done.await {
            return Err(error.context(format!("{:#?}", operator.engine.plan("m").await?)));
        }
        anyhow::Ok(())
    };
    let moved = steps.await;
    load.stop().await?;
    moved?;
    ensure!(on_new(&bed.proxy)? == [SlotSet::percent(25).minus(&stay).or(&went); 2]);
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}
