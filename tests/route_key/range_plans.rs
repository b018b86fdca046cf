//! Plans that move a range of keys as a whole, on evidence, and bring it back by themselves.

use super::ranges::{layout, on_new, pin, ranges, slot};
use super::support::bed::Bed;
use super::support::{LONG, Operator, me, uri};
use super::tenants::{Load, documents};
use super::{patient_plan, synced_with};
use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc};
use mongodb::Client;
use reshard::migration::control::{
    Cluster, Control as _, Page, Plan, RampDecision, RampStatus, RampView, Verdict,
};
use reshard::model::percent::Percent;
use reshard::model::slots::SlotSet;
use reshard_testbed::wait_for;

const DWELL: u32 = 10;

/// A plan that moves a range.
fn plan(range: &str) -> Plan {
    Plan { range: Some(range.into()), dwell_seconds: DWELL, min_samples: 5, ..patient_plan() }
}

async fn decided(operator: &Operator) -> Result<Vec<RampDecision>> {
    Ok(operator.engine.decisions("m", Page::default()).await?.decisions)
}

async fn until(operator: &Operator, what: &str, holds: impl Fn(&RampView) -> bool) -> Result<RampView> {
    let seen = wait_for(what, LONG * 3, || async { Ok(holds(&operator.engine.plan("m").await?)) }).await;
    let view = operator.engine.plan("m").await?;
    seen.with_context(|| format!("{view:#?}"))?;
    Ok(view)
}

/// What makes no sense is refused at once, and one plan is followed at a time.
async fn refusals(operator: &Operator) -> Result<()> {
    let refused = async |plan: Plan| {
        let refused = operator.engine.start_plan(&me(), "m", plan).await.err();
        refused.map(|error| error.code).context("it should be refused")
    };
    ensure!(refused(plan("nowhere")).await? == "no-such-range");
    ensure!(refused(Plan { reads: vec![Percent::whole(7)], ..plan("first") }).await? == "invalid-plan");
    let waits = Plan { dwell_seconds: 3600, ..plan("late") };
    operator.engine.start_plan(&me(), "m", waits).await?;
    ensure!(refused(plan("first")).await? == "plan-running");
    ensure!(refused(Plan { range: None, ..plan("first") }).await? == "plan-running");
    operator.engine.stop_plan(&me(), "m").await?;
    Ok(())
}

/// With its reads failing on new, a range comes back alone, at the second look.
async fn comes_back(bed: &Bed) -> Result<()> {
    let operator = &bed.operator;
    let strict = Plan { dwell_seconds: 3600, max_error_rate: 0.0001, ..plan("first") };
    operator.engine.start_plan(&me(), "m", strict).await?;
    until(operator, "a look", |ramp| !ramp.gates.is_empty()).await?;
    ensure!(on_new(&bed.proxy)? == [slot("first")?; 2]);
    // Nothing but the application asks for that.
    let fails = doc! { "failCommands": ["distinct"], "errorCode": 8 };
    let how = doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": fails };
    bed.new.fail_point(how).await?;
    let c = Client::with_uri_str(uri(&bed.proxy)).await?.database("shop").collection::<Document>("c");
    let down = wait_for("the range to come back", std::time::Duration::from_secs(40), || async {
        _ = c.distinct("count", doc! { "tenant": 7 }).await;
        Ok(operator.engine.plan("m").await?.setbacks > 0)
    });
    if let Err(error) = down.await {
        let seen = (operator.engine.plan("m").await?, decided(operator).await?);
        return Err(error.context(format!("{seen:#?}")));
    }
    bed.new.fail_point(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await?;
    ensure!(on_new(&bed.proxy)? == [SlotSet::EMPTY; 2]);
    wait_for("that to be recorded", LONG, || async {
        Ok(decided(operator).await?.iter().any(|one| one.act == "down" && one.result == "ok"))
    })
    .await?;
    let decisions = decided(operator).await?;
    let down = decisions.iter().find(|one| one.act == "down").context("it came down")?;
    ensure!(down.why.contains("errors") && down.from.writes == 100, "{decisions:#?}");
    ensure!(down.first_broken_look == Some(down.look - 1), "{decisions:#?}");
    ensure!(down.to.is_some_and(|to| to.reads == 0 && to.writes == 0), "{decisions:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_moves_a_range_alone_and_brings_it_back() -> Result<()> {
    let bed = synced_with("route-range-plan", documents(), ranges()).await?;
    let operator = &bed.operator;
    refusals(operator).await?;
    let load = Load::start(&uri(&bed.proxy)).await?;
    let steps = async {
        let started = operator.engine.start_plan(&me(), "m", plan("first")).await?;
        ensure!(started.reads_percent == 0 && started.plan.reads.is_empty(), "{started:?}");
        until(operator, "the plan to be done", |ramp| ramp.status == RampStatus::Done).await?;
        let decisions = decided(operator).await?;
        let up = decisions.iter().rfind(|one| one.act == "up" && one.result == "ok").context("a step")?;
        ensure!(up.at - started.since >= i64::from(DWELL) * 1000, "it did not wait: {decisions:#?}");
        ensure!(up.gates.iter().all(|gate| gate.verdict == Verdict::Passed), "{decisions:#?}");
        ensure!(on_new(&bed.proxy)? == [slot("first")?; 2]);
        load.work().await
    };
    let moved = steps.await;
    load.stop().await?;
    moved?;
    comes_back(&bed).await?;
    // Who brings a range back does not find its plan moving it again.
    operator.engine.stop_plan(&me(), "m").await?;
    let waits = Plan { dwell_seconds: 3600, ..plan("late") };
    operator.engine.start_plan(&me(), "m", waits).await?;
    pin(operator, "first", Cluster::Old).await?;
    ensure!(operator.engine.plan("m").await?.status == RampStatus::Running, "another range");
    pin(operator, "late", Cluster::Old).await?;
    ensure!(operator.engine.plan("m").await?.status == RampStatus::Paused);
    let audited = operator.engine.events("m").await?;
    let by_plan = |what: &str| audited.iter().any(|event| event.what == what && event.who == "plan");
    ensure!(by_plan("pin range first to new") && by_plan("pin range first to old"), "{audited:#?}");
    // Percentages go on without what is pinned.
    operator.reads(5).await?;
    let rest = layout()?.percent(Percent::whole(5));
    ensure!(on_new(&bed.proxy)? == [SlotSet::EMPTY, rest]);
    bed.equal().await?;
    operator.found_none_past_the_proxy().await?;
    bed.proxy.shutdown().await;
    Ok(())
}
