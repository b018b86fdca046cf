//! Ramps by plan on real servers: up by evidence, down by themselves, and on after a restart.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use bson::{Bson, Document, doc};
use mongodb::Client;
use reshard::app::Proxy;
use reshard::migration::control::{
    AuditEvent, Back, Control as _, Freeze, Gate, Page, Plan, RampDecision, RampStatus, RampView, SetShadow,
    SetSwitches, Shadow, Steer, Verdict,
};
use reshard::model::percent::Percent;
use reshard_loadtest::Profile;
use reshard_testbed::{ReplicaSet, wait_for};
use serde_json::{Value, json};
use support::process::Server;
use support::proof::no_errors;
use support::ramps::{has_broken, looks_until};
use support::trial::Trial;
use support::{LONG, Operator, me, plant, proxy, two_sets, uri};

const DOCUMENTS: i32 = 500;
/// Readers, each with a session of its own: some of them are read on new at every step.
const READERS: usize = 40;

/// A plan for servers that share two slow processors with their load.
fn plan() -> Plan {
    Plan {
        min_samples: 40,
        p99_floor_ms: 1000.0,
        min_oplog_window_seconds: 1.0,
        max_lag_seconds: 30.0,
        max_secondary_lag_seconds: 60.0,
        shadow: Shadow::Off,
        ..Plan::default()
    }
}

/// On a busy machine a ramp comes down now and then, and dwells again.
const RAMPING: Duration = Duration::from_secs(400);

async fn until_ramp(operator: &Operator, what: &str, holds: impl Fn(&RampView) -> bool) -> Result<RampView> {
    let seen =
        wait_for(what, RAMPING, || async { Ok(holds(&operator.engine.plan(&operator.name).await?)) }).await;
    let view = operator.engine.plan(&operator.name).await?;
    let decisions = || operator.engine.decisions(&operator.name, Page::default());
    if seen.is_err() {
        seen.with_context(|| format!("{view:#?} {:#?}", futures::executor::block_on(decisions())))?;
    }
    Ok(view)
}

/// What was decided, once nothing of it is under way any more and `wanted` is among it.
async fn told(operator: &Operator, wanted: impl Fn(&RampDecision) -> bool) -> Result<Vec<RampDecision>> {
    let newest =
        async || anyhow::Ok(operator.engine.decisions(&operator.name, Page::default()).await?.decisions);
    wait_for("decisions to be told to their end", RAMPING, || async {
        let decisions = newest().await?;
        let is_over = decisions.iter().all(|one| one.result != "under way");
        Ok(is_over && decisions.iter().any(&wanted))
    })
    .await?;
    newest().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_plan_reaches_everything_by_itself_under_load() -> Result<()> {
    let (old, new) = two_sets("ramp_clean").await?;
    let trial = Trial::start(old, new, Profile::Keyed, 3_000).await?;
    trial.operator.until_synced().await?;
    let plan = Plan {
        reads: steps(&[25, 100]),
        writes: steps(&[100]),
        dwell_seconds: 10,
        max_setbacks: 20,
        shadow: Shadow::On,
        ..plan()
    };
    let operator = &trial.operator;
    operator.engine.set_shadow(&me(), &operator.name, shadow(20.0)).await?;
    operator.engine.start_plan(&me(), &operator.name, plan).await?;
    let done = until_ramp(operator, "the plan to be done", |ramp| ramp.status == RampStatus::Done).await?;
    ensure!(done.reads_percent == 100 && done.writes_percent == 100, "{done:#?}");
    let decisions = operator.engine.decisions(&operator.name, Page::default()).await?.decisions;
    let ups: Vec<_> = decisions.iter().rev().filter(|one| one.act == "up" && one.result == "ok").collect();
    let passed: Vec<_> = ups.iter().filter_map(|one| one.to).map(|to| [to.reads, to.writes]).collect();
    ensure!(
        passed == [[25, 0], [100, 0], [100, 100]].map(|step| step.map(Percent::whole)) || done.setbacks > 0,
        "{decisions:#?}"
    );
    ensure!(ups.windows(2).all(|two| two[1].at - two[0].at >= 10_000), "it did not dwell: {decisions:#?}");
    ensure!(ups.iter().all(|one| one.gates.iter().all(|gate| gate.verdict == Verdict::Passed)));
    only_slowness_was_at_fault(&decisions)?;
    trial.work(200).await?;
    trial.holds_but_for(no_errors).await.map(drop)
}

/// A slow machine may bring a clean plan down, and is told; nothing else may.
fn only_slowness_was_at_fault(decisions: &[RampDecision]) -> Result<()> {
    let of_speed = ["latency", "lag_old_to_new", "lag_new_to_old", "mirror_failures"];
    for one in decisions.iter().filter(|one| one.act == "down") {
        let mut broken = one.gates.iter().filter(|gate| gate.verdict == Verdict::Broken);
        println!("a clean plan came down: {}", one.why);
        ensure!(broken.all(|gate| of_speed.contains(&gate.name.as_str())), "{decisions:#?}");
    }
    Ok(())
}

fn shadow(percent: f64) -> SetShadow {
    SetShadow { percent, show_values: false, reset: false }
}

/// Asks, from several sessions, until it goes; errors are part of what is tried here.
struct Readers(Arc<AtomicBool>);

impl Readers {
    async fn start(uri: &str) -> Result<Self> {
        let client = Client::with_uri_str(uri).await?;
        let ended = Arc::new(AtomicBool::new(false));
        for _ in 0..READERS {
            let (ended, c) = (Arc::clone(&ended), client.database("shop").collection::<Document>("c"));
            // A causal read goes to the authority.
            let mut session = client.start_session().causal_consistency(false).await?;
            tokio::spawn(async move {
                while !ended.load(Ordering::Relaxed) {
                    _ = c.distinct("n", doc! { "n": { "$lt": 3 } }).session(&mut session).await;
                    // So many at once would leave the servers no time for anything else.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            });
        }
        Ok(Self(ended))
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn filled(uri: &str) -> Result<()> {
    let c = Client::with_uri_str(uri).await?.database("shop").collection::<Document>("c");
    c.insert_many((0..DOCUMENTS).map(|id| doc! { "_id": id, "n": id % 10 })).await?;
    Ok(())
}

/// A migration that may move, and readers.
struct Read {
    new: ReplicaSet,
    operator: Operator,
    uri: String,
    _others: (ReplicaSet, Proxy, Readers),
}

impl Read {
    async fn start(name: &str) -> Result<Self> {
        let (old, new) = two_sets(name).await?;
        let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
        filled(&uri(&proxy)).await?;
        let operator = Operator::of(&proxy, "m");
        operator.create(&["shop.c"]).await?;
        operator.start().await?;
        operator.until_synced().await?;
        let readers = Readers::start(&uri(&proxy)).await?;
        Ok(Self { new, operator, uri: uri(&proxy), _others: (old, proxy, readers) })
    }
}

async fn spoil(new: &ReplicaSet, mut how: Document) -> Result<()> {
    how.insert("failCommands", vec!["distinct"]);
    new.fail_point(doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": how }).await
}

async fn unspoil(new: &ReplicaSet) -> Result<()> {
    new.fail_point(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await
}

/// With half of the reads on new, `how` is done to it: the ramp comes down at the second look at `gate`.
async fn comes_down(
    operator: &Operator,
    new: &ReplicaSet,
    how: Document,
    gate: &str,
    back: Back,
) -> Result<()> {
    let plan = Plan { reads: steps(&[20, 50, 100]), dwell_seconds: 6, back, ..plan() };
    operator.engine.start_plan(&me(), &operator.name, plan).await?;
    until_ramp(operator, "half of the reads to be on new", |ramp| ramp.reads_percent == 50).await?;
    spoil(new, how).await?;
    let spoilt_at = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    until_ramp(operator, "the ramp to come down", |ramp| ramp.setbacks > 0).await?;
    operator.engine.steer_plan(&me(), &operator.name, Steer::Pause).await?;
    unspoil(new).await?;
    let is_down = |one: &RampDecision| one.act == "down" && one.at >= spoilt_at;
    let decisions = told(operator, is_down).await?;
    let down = decisions.iter().rfind(|one| is_down(one));
    let down = down.context("it came down")?;
    let below = if back == Back::Step { 20 } else { 0 };
    ensure!(down.result == "ok" && down.to.is_some_and(|to| to.reads == below), "{decisions:#?}");
    ensure!(has_broken(down, gate) && down.why.contains(gate), "{decisions:#?}");
    let looks = looks_until(down, &decisions);
    ensure!(looks <= 2, "it took {looks} looks: {decisions:#?}");
    ensure!(down.first_broken_look.is_some_and(|first| first < down.look), "{decisions:#?}");
    ensure!(operator.progress().await?.reads_percent <= Percent::whole(50));
    operator.rollback().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_errs_or_is_slow_brings_it_down_at_the_second_look() -> Result<()> {
    let Read { new, operator, .. } = &Read::start("ramp_spoilt").await?;
    comes_down(operator, new, doc! { "errorCode": 8 }, "errors", Back::Zero).await?;
    let slow = doc! { "blockConnection": true, "blockTimeMS": 2500 };
    comes_down(operator, new, slow, "latency", Back::Step).await?;
    let shapes = operator.engine.shapes("m", reshard::migration::control::Part::default()).await?;
    let asked = shapes.shapes.iter().find(|one| one.text.starts_with("{distinct: c")).context("the shape")?;
    ensure!(asked.new.errors > 0 && asked.old.errors == 0, "{asked:?}");
    ensure!(asked.baseline_p99_ms.is_some(), "{asked:?}");
    Ok(())
}

/// What has no shape of its own, the further batches of cursors, is part of the errors of new.
#[tokio::test(flavor = "multi_thread")]
async fn errors_of_further_batches_count() -> Result<()> {
    let read = Read::start("ramp_batches").await?;
    let (new, operator) = (&read.new, &read.operator);
    operator.reads(100).await?;
    let plan = Plan { reads: steps(&[100]), dwell_seconds: 3600, max_error_rate: 0.0001, ..plan() };
    operator.engine.start_plan(&me(), "m", plan).await?;
    let how = doc! { "errorCode": 8, "failCommands": ["getMore"] };
    new.fail_point(doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": how }).await?;
    let c = Client::with_uri_str(&read.uri).await?.database("shop").collection::<Document>("c");
    wait_for("errors to be seen", LONG, || async {
        for _ in 0..20 {
            let mut found = c.find(doc! {}).batch_size(2).await?;
            while found.advance().await.is_ok_and(|more| more) {}
        }
        let seen = operator.engine.plan("m").await?;
        Ok(seen.gates.iter().any(|gate| gate.name == "errors" && gate.verdict == Verdict::Broken))
    })
    .await
}

/// Commits have no shape, name no collection, and are part of the errors of new.
#[tokio::test(flavor = "multi_thread")]
async fn errors_of_commits_count() -> Result<()> {
    let read = Read::start("ramp_commits").await?;
    let (new, operator) = (&read.new, &read.operator);
    operator.reads(100).await?;
    operator.writes(100).await?;
    let plan = Plan { reads: steps(&[100]), dwell_seconds: 3600, max_error_rate: 0.0001, ..plan() };
    operator.engine.start_plan(&me(), "m", plan).await?;
    let how = doc! { "errorCode": 8, "failCommands": ["commitTransaction"] };
    new.fail_point(doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": how }).await?;
    let client = Client::with_uri_str(&read.uri).await?;
    let c = client.database("shop").collection::<Document>("c");
    wait_for("errors to be seen", LONG, || async {
        let mut session = client.start_session().await?;
        session.start_transaction().await?;
        c.find_one(doc! { "_id": 1 }).session(&mut session).await?;
        ensure!(session.commit_transaction().await.is_err(), "it is to fail");
        let seen = operator.engine.plan("m").await?;
        Ok(seen.gates.iter().any(|gate| gate.name == "errors" && gate.verdict == Verdict::Broken))
    })
    .await
}

fn holds_for(ramp: &RampView, namespace: &str) -> bool {
    let is_it = |gate: &&Gate| gate.name == "switched_on";
    let gate = ramp.gates.iter().find(is_it);
    ramp.why.contains(namespace) && gate.is_some_and(|gate| gate.verdict == Verdict::Unknown)
}

/// While one collection is out, nothing goes up; what is broken still comes down.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_is_off_for_one_collection_holds_and_still_comes_down() -> Result<()> {
    let Read { new, operator, .. } = &Read::start("ramp_switched").await?;
    operator.reads(20).await?;
    let switch = async |on, namespace: Option<&str>| {
        let asked =
            SetSwitches { plan: Some(on), namespace: namespace.map(str::to_owned), ..SetSwitches::default() };
        operator.engine.switch(&me(), "m", asked).await
    };
    let off = switch(false, Some("shop.c")).await?;
    ensure!(off.plan && off.namespaces.iter().all(|of| !of.plan) && off.namespaces.len() == 1, "{off:?}");
    let plan = Plan { reads: steps(&[20, 100]), dwell_seconds: 1, back: Back::Zero, ..plan() };
    operator.engine.start_plan(&me(), "m", plan).await?;
    let passed = |gate: &Gate| gate.verdict == Verdict::Passed || gate.name == "switched_on";
    until_ramp(operator, "all other gates to hold", |ramp| {
        holds_for(ramp, "shop.c") && ramp.gates.len() > 1 && ramp.gates.iter().all(passed)
    })
    .await?;
    wait_for("that to be recorded", LONG, || async {
        let decisions = operator.engine.decisions("m", Page::default()).await?.decisions;
        Ok(decisions.iter().any(|one| one.act == "hold" && one.why.contains("switched off for shop.c")))
    })
    .await?;
    ensure!(operator.progress().await?.reads_percent == 20);
    // For everything, whatever is said of one.
    switch(false, None).await?;
    switch(true, Some("shop.c")).await?;
    until_ramp(operator, "it to hold for everything", |ramp| holds_for(ramp, "everything")).await?;
    ensure!(operator.progress().await?.reads_percent == 20);
    spoil(new, doc! { "errorCode": 8 }).await?;
    let down = until_ramp(operator, "the ramp to come down", |ramp| ramp.setbacks > 0).await?;
    ensure!(down.reads_percent == 0, "{down:#?}");
    let events = operator.engine.events("m").await?;
    ensure!(events.iter().any(|event| event.what == "switch plan off for shop.c"), "{events:#?}");
    Ok(())
}

/// It is stored, and goes on once it is switched on again; looks are counted on.
#[tokio::test(flavor = "multi_thread")]
async fn a_successor_finds_the_plan_switched_off_and_counts_its_looks_on() -> Result<()> {
    let (_sets, server) = served("ramp_off").await?;
    let of_c = |on: bool| Some(json!({ "namespace": "shop.c", "plan": on }));
    server.call("PUT", "/v1/migrations/m/switches", of_c(false)).await?;
    let plan = Plan { reads: steps(&[20]), dwell_seconds: 3600, ..plan() };
    server.call("PUT", "/v1/migrations/m/plan", Some(json!(plan))).await?;
    let held = async || {
        wait_for("the plan to be held", LONG, || async {
            let plan = server.call("GET", "/v1/migrations/m/plan", None).await?;
            Ok(plan["why"].as_str().is_some_and(|why| why.contains("switched off for shop.c")))
        })
        .await
    };
    held().await?;
    let looks =
        async || -> Result<f64> { metric(&server, "reshard_migration_ramp_decisions_total", "hold").await };
    wait_for("looks that are not recorded", LONG, || async { Ok(looks().await? >= 4.0) }).await?;
    ensure!(metric(&server, "reshard_migration_switched_off_collections", "plan").await? == 1.0);
    server.kill9()?;
    server.restart().await?;
    held().await?;
    let decisions = async || server.call("GET", "/v1/migrations/m/plan/decisions", None).await;
    let recorded = wait_for("a look of the successor to be recorded", LONG, || async {
        let newest = decisions().await?["decisions"][0]["look"].as_i64();
        Ok(newest.is_some_and(|look| look > 4))
    });
    recorded.await.with_context(|| server.tail())?;
    let _readers = Readers::start(&server.uri()).await?;
    server.call("PUT", "/v1/migrations/m/switches", of_c(true)).await?;
    server.until("m", "its step", |progress| progress["reads_percent"] == 20).await
}

/// The sum of what `/metrics` tells of `name`, where a label is `value`.
async fn metric(server: &Server, name: &str, value: &str) -> Result<f64> {
    let (_, text) = server.text("GET", "/metrics", None).await?;
    let label = format!("=\"{value}\"");
    let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(&label));
    lines.map(|line| Ok(line.rsplit(' ').next().context("a number")?.parse::<f64>()?)).sum()
}

/// The majority is well, so that nothing else sees it; whoever reads at secondaries does.
/// A member that stands still is to hold up no other that copies from it.
async fn all_copy_from_the_primary(set: &ReplicaSet) -> Result<()> {
    let primary = set.node(set.primary().await?);
    let now = primary.admin(doc! { "replSetGetConfig": 1 }).await?;
    let mut config = now.get_document("config")?.clone();
    let version = config.get_i32("version")?;
    config.insert("version", version + 1);
    config.get_document_mut("settings")?.insert("chainingAllowed", false);
    primary.admin(doc! { "replSetReconfig": config }).await?;
    for node in set.nodes().iter().filter(|node| node.address() != primary.address()) {
        node.admin(doc! { "replSetSyncFrom": primary.address() }).await?;
    }
    wait_for("all to copy from the primary", LONG, || async {
        let status = primary.admin(doc! { "replSetGetStatus": 1 }).await?;
        let members = status.get_array("members")?.iter().filter_map(Bson::as_document);
        let mut others = members.filter(|member| !member.get_bool("self").unwrap_or(false));
        Ok(others.all(|member| member.get_str("syncSourceHost").is_ok_and(|at| at == primary.address())))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_secondary_that_lags_brings_it_down() -> Result<()> {
    let (old, new) = tokio::try_join!(
        ReplicaSet::builder("ramp_lags-old").start(),
        ReplicaSet::builder("ramp_lags-new").nodes(3).start()
    )?;
    all_copy_from_the_primary(&new).await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    filled(&uri(&proxy)).await?;
    let operator = &Operator::of(&proxy, "m");
    operator.create(&["shop.c"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    operator.reads(20).await?;
    let plan = Plan {
        reads: steps(&[20, 100]),
        dwell_seconds: 3600,
        max_secondary_lag_seconds: 5.0,
        back: Back::Zero,
        ..plan()
    };
    operator.engine.start_plan(&me(), "m", plan).await?;
    let says = |ramp: &RampView, verdict: Verdict| {
        ramp.gates.iter().any(|gate| gate.name == "secondary_lag_new" && gate.verdict == verdict)
    };
    until_ramp(operator, "level secondaries", |ramp| says(ramp, Verdict::Passed)).await?;
    let secondary = new.node((new.primary().await? + 1) % 3);
    let stop = |mode: &str| doc! { "configureFailPoint": "rsSyncApplyStop", "mode": mode };
    secondary.admin(stop("alwaysOn")).await?;
    let down = until_ramp(operator, "it to come down", |ramp| ramp.setbacks > 0).await?;
    ensure!(says(&down, Verdict::Broken) && down.reads_percent == 0, "{down:#?}");
    ensure!(down.why.contains(secondary.address()), "{down:#?}");
    let lags = ["lag_old_to_new", "lag_new_to_old"];
    let well = |gate: &&Gate| lags.contains(&gate.name.as_str()) && gate.verdict == Verdict::Passed;
    ensure!(down.gates.iter().filter(well).count() == 2, "{down:#?}");
    secondary.admin(stop("off")).await?;
    until_ramp(operator, "it to be level again", |ramp| says(ramp, Verdict::Passed)).await?;
    Ok(())
}

async fn dry_run(operator: &Operator, plan: Plan) -> Result<Vec<RampDecision>> {
    let plan = Plan { dwell_seconds: 1, dry_run: true, ..plan };
    let before = operator.engine.decisions("m", Page::default()).await?.decisions.len();
    operator.engine.start_plan(&me(), "m", plan).await?;
    let done = until_ramp(operator, "its last step", |ramp| ramp.status == RampStatus::Done).await?;
    ensure!(done.reads_percent == 50, "{done:#?}");
    let newest = async || anyhow::Ok(operator.engine.decisions("m", Page::default()).await?.decisions);
    wait_for("that to be recorded", LONG, || async {
        let decisions = newest().await?;
        Ok(decisions.len() > before && decisions[0].act == "done")
    })
    .await?;
    let mut decisions = newest().await?;
    decisions.truncate(decisions.len() - before);
    ensure!(decisions.iter().all(|one| one.dry_run), "{decisions:#?}");
    ensure!(operator.progress().await?.reads_percent == 0);
    Ok(decisions)
}

/// A plan whose every day is frozen.
fn frozen(reads: &[u8]) -> Plan {
    let ever = Freeze { from: "2000-01-01".into(), to: "2999-12-31".into() };
    Plan { reads: steps(reads), freezes: vec![ever], ..plan() }
}

/// It stands still in a freeze, and goes past it with a reason, which the audit has.
async fn past_a_freeze(operator: &Operator) -> Result<Vec<RampDecision>> {
    let dry = Plan { dry_run: true, dwell_seconds: 1, ..frozen(&[20, 50]) };
    operator.engine.start_plan(&me(), "m", dry).await?;
    let held = until_ramp(operator, "it to be held", |ramp| ramp.why.contains("frozen")).await?;
    ensure!(held.status != RampStatus::Done, "{held:#?}");
    let reason = "agreed with the shop".to_owned();
    let done = dry_run(operator, Plan { override_reason: Some(reason.clone()), ..frozen(&[20, 50]) }).await?;
    let events = operator.engine.events("m").await?;
    let told = |event: &AuditEvent| event.what.contains(&reason) && event.who == me().who.0;
    ensure!(events.iter().any(told), "{events:#?}");
    Ok(done)
}

/// A dry run sends nothing to new: what shadow reads measured of it counts, or it is said that nothing was measured.
#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_reaches_its_last_step_and_moves_nothing() -> Result<()> {
    let Read { operator, .. } = &Read::start("ramp_dry").await?;
    let blind = past_a_freeze(operator).await?;
    let unjudged = |one: &RampDecision| one.why.contains("are not judged");
    let judged = |one: &RampDecision| one.gates.iter().any(|gate| gate.name == "errors");
    ensure!(unjudged(&blind[0]) && !blind.iter().any(judged), "{blind:#?}");
    operator.engine.set_shadow(&me(), "m", shadow(50.0)).await?;
    let seeing = dry_run(operator, Plan { reads: steps(&[50]), shadow: Shadow::On, ..plan() }).await?;
    ensure!(judged(&seeing[0]) && !seeing.iter().any(unjudged), "{seeing:#?}");
    Ok(())
}

/// The step below needs new, which is gone: reads return to old, which needs old alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_back_without_new_goes_to_nothing() -> Result<()> {
    let Read { new, operator, .. } = &Read::start("ramp_alone").await?;
    operator.reads(50).await?;
    let plan = Plan { reads: steps(&[20, 50, 100]), dwell_seconds: 3600, back: Back::Step, ..plan() };
    operator.engine.start_plan(&me(), "m", plan).await?;
    until_ramp(operator, "a look", |ramp| !ramp.gates.is_empty()).await?;
    new.kill9_all().await?;
    until_ramp(operator, "no reads on new", |ramp| ramp.reads_percent == 0).await?;
    let decisions = told(operator, |one| one.act == "down").await?;
    let down = decisions.iter().rfind(|one| one.act == "down").context("it came down")?;
    ensure!(down.result == "ok" && down.why.contains("needs old alone"), "{decisions:#?}");
    ensure!(down.to.is_some_and(|to| to.reads == 0), "{decisions:#?}");
    let looks = looks_until(down, &decisions);
    ensure!(looks <= 2, "it took {looks} looks: {decisions:#?}");
    Ok(())
}

/// What new has acknowledged cannot come back without it: the decision says so, and what is left to do. It takes two
/// minutes, as whatever needs new waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_back_that_needs_new_says_what_is_left_to_do() -> Result<()> {
    let Read { new, operator, .. } = &Read::start("ramp_held").await?;
    operator.reads(100).await?;
    operator.writes(50).await?;
    let plan = Plan { reads: steps(&[50, 100]), writes: steps(&[20, 50]), dwell_seconds: 3600, ..plan() };
    operator.engine.start_plan(&me(), "m", plan).await?;
    until_ramp(operator, "a look", |ramp| !ramp.gates.is_empty()).await?;
    new.kill9_all().await?;
    wait_for("a decision that says so", LONG, || async {
        let decisions = operator.engine.decisions("m", Page::default()).await?.decisions;
        let down = decisions.iter().filter(|one| one.act == "down");
        let told = |one: &RampDecision| one.result.contains("reshard migrate rollback m --without-new");
        Ok(down.clone().any(told))
    })
    .await?;
    ensure!(operator.progress().await?.writes_percent == 50);
    Ok(())
}

/// Without shadow reads it stays where it is; with them it goes up, and down again when they find what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn what_shadow_reads_find_decides() -> Result<()> {
    let Read { new, operator, .. } = &Read::start("ramp_shadow").await?;
    let plan =
        Plan { reads: steps(&[20, 50]), dwell_seconds: 6, shadow: Shadow::On, back: Back::Zero, ..plan() };
    operator.engine.start_plan(&me(), "m", plan).await?;
    let gate = |ramp: &RampView, verdict: Verdict| {
        ramp.gates.iter().any(|gate| gate.name == "shadow_differences" && gate.verdict == verdict)
    };
    let held = until_ramp(operator, "it to miss shadow reads", |ramp| gate(ramp, Verdict::Unknown)).await?;
    ensure!(held.reads_percent == 0, "{held:#?}");
    operator.engine.set_shadow(&me(), "m", shadow(10.0)).await?;
    until_ramp(operator, "the first step", |ramp| ramp.reads_percent == 20).await?;
    let wrong = doc! { "op": "i", "ns": "shop.c", "o": { "_id": 1, "n": 1.5 } };
    plant(new, vec![doc! { "op": "d", "ns": "shop.c", "o": { "_id": 1 } }, wrong]).await?;
    let down = until_ramp(operator, "it to come down", |ramp| ramp.setbacks > 0).await?;
    ensure!(gate(&down, Verdict::Broken) && down.reads_percent == 0, "{down:#?}");
    Ok(())
}

/// Both clusters, and a process of its own with the migration `m`, which is free to move.
async fn served(name: &str) -> Result<([ReplicaSet; 2], Server)> {
    let (old, new) = two_sets(name).await?;
    let server = Server::start(&old.uri(), Some(&new.uri())).await?;
    filled(&server.uri()).await?;
    server.create_and_start("m", "shop.c").await?;
    server.until_free("m").await?;
    Ok(([old, new], server))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_goes_on_with_the_plan() -> Result<()> {
    let (_sets, server) = served("ramp_successor").await?;
    let plan = Plan { reads: steps(&[20, 100]), dwell_seconds: 20, min_samples: 20, ..plan() };
    let readers = Readers::start(&server.uri()).await?;
    server.call("PUT", "/v1/migrations/m/plan", Some(json!(plan))).await?;
    server.until("m", "the first step", |progress| progress["reads_percent"] == 20).await?;
    let recorded = wait_for("the first step to be recorded", LONG, || async {
        let list = server.call("GET", "/v1/migrations/m/plan/decisions", None).await?;
        Ok(list["decisions"].as_array().context("decisions")?.iter().any(|one| one["act"] == "up"))
    });
    recorded.await?;
    drop(readers);
    server.kill9()?;
    server.restart().await?;
    let _readers = Readers::start(&server.uri()).await?;
    server.until("m", "the last step", |progress| progress["reads_percent"] == 100).await?;
    let recorded = wait_for("both steps to be recorded", LONG, || async {
        let list = server.call("GET", "/v1/migrations/m/plan/decisions", None).await?;
        let ups = list["decisions"].as_array().context("decisions")?.iter();
        let ups: Vec<_> =
            ups.filter(|one| one["act"] == "up").map(|one| one["to"]["reads"].clone()).collect();
        Ok(ups == [100, 20])
    });
    recorded.await.with_context(|| server.tail())?;
    Ok(())
}

/// New is away, so that nothing can be given back. Whoever asked for a way back does not find a successor going up.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_is_refused_halts_the_plan_for_good() -> Result<()> {
    let ([_old, new], server) = served("ramp_halted").await?;
    server.percent("m", "reads", 100).await?;
    server.percent("m", "writes", 50).await?;
    let plan = Plan { writes: steps(&[50, 100]), dwell_seconds: 3600, ..plan() };
    server.call("PUT", "/v1/migrations/m/plan", Some(json!(plan))).await?;
    new.kill9_all().await?;
    let (status, answer) = server.http("POST", "/v1/migrations/m/rollback", None).await?;
    ensure!(status != 200, "{answer}");
    server.kill9()?;
    new.start_all().await?;
    server.restart().await?;
    wait_for("the plan to be known, and halted", LONG, || async {
        Ok(server.call("GET", "/v1/migrations/m/plan", None).await?["status"] == "paused")
    })
    .await
}

/// The plan neither takes back what an operator did, nor goes on past it, until it is let go on from there.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_by_hand_halts_the_plan_and_it_goes_on_from_there() -> Result<()> {
    let Read { operator, .. } = &Read::start("ramp_by_hand").await?;
    operator.reads(50).await?;
    let plan = Plan { reads: steps(&[20, 50, 100]), dwell_seconds: 3600, ..plan() };
    operator.engine.start_plan(&me(), "m", plan).await?;
    until_ramp(operator, "a look", |ramp| !ramp.gates.is_empty()).await?;
    operator.reads(50).await?;
    ensure!(operator.engine.plan("m").await?.status == RampStatus::Running, "that moved nothing");
    operator.reads(10).await?;
    let halted = operator.engine.plan("m").await?;
    let why = format!("{} moved reads to 10 %", me().who.0);
    ensure!(halted.status == RampStatus::Paused && halted.why.contains(&why), "{halted:#?}");
    wait_for("that to be recorded", LONG, || async {
        let decisions = operator.engine.decisions("m", Page::default()).await?.decisions;
        Ok(decisions.iter().any(|one| one.act == "hold" && one.why.contains(&why)))
    })
    .await?;
    // Once more while it is halted: what counts is what is in force when it goes on.
    operator.reads(5).await?;
    operator.engine.steer_plan(&me(), "m", Steer::Resume).await?;
    let goes_on = |ramp: &RampView| ramp.status == RampStatus::Running && ramp.why.contains("of 3600 s");
    let running = until_ramp(operator, "it to dwell there", goes_on).await?;
    ensure!(running.reads_percent == 5, "{running:#?}");
    let quick = Plan { dwell_seconds: 6, ..running.plan };
    operator.engine.start_plan(&me(), "m", quick).await?;
    let is_above = |ramp: &RampView| ramp.steps.iter().any(|step| step.reads == 20);
    let above = until_ramp(operator, "the step above it", is_above).await?;
    let (first, second) = (above.steps[0], above.steps[1]);
    ensure!(first.reads == 5 && second.reads == 20, "{above:#?}");
    ensure!(first.left_at == Some(second.reached_at) && first.reached_at < second.reached_at, "{above:#?}");
    wait_for("the step to be recorded", LONG, || async {
        let decisions = operator.engine.decisions("m", Page::default()).await?.decisions;
        let up = decisions.iter().rfind(|one| one.act == "up" && one.result == "ok");
        let told = |one: &RampDecision| {
            one.from.reads == 5 && one.reached_at == Some(first.reached_at) && one.left_at == first.left_at
        };
        Ok(up.is_some_and(told))
    })
    .await
}

/// A transaction that stays open holds up a step of writes. The process dies meanwhile: what it tried is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_a_crash_cuts_off_leaves_a_trace() -> Result<()> {
    let (_sets, server) = served("ramp_cut_off").await?;
    let readers = Readers::start(&server.uri()).await?;
    let plan = Plan { reads: steps(&[100]), writes: steps(&[100]), dwell_seconds: 10, ..plan() };
    server.call("PUT", "/v1/migrations/m/plan", Some(json!(plan))).await?;
    server.until("m", "all reads on new", |progress| progress["reads_percent"] == 100).await?;
    let client = Client::with_uri_str(server.uri()).await?;
    let c = client.database("shop").collection::<Document>("c");
    let mut session = client.start_session().await?;
    session.start_transaction().await?;
    c.insert_one(doc! { "_id": "open" }).session(&mut session).await?;
    let decided = async || {
        let list = server.call("GET", "/v1/migrations/m/plan/decisions", None).await?;
        anyhow::Ok(list["decisions"].as_array().context("decisions")?.clone())
    };
    let writes_up = |one: &Value| one["act"] == "up" && one["to"]["writes"] == 100;
    let is_under_way = |one: &Value| writes_up(one) && one["result"] == "under way";
    let under_way = wait_for("a step of writes to be under way", RAMPING, || async {
        Ok(decided().await?.iter().any(is_under_way))
    });
    under_way.await.with_context(|| server.tail())?;
    server.kill9()?;
    drop(readers);
    server.restart().await?;
    let cut_off = wait_for("its end to be told", LONG, || async {
        let decisions = decided().await?;
        let told = |one: &&Value| one["result"].as_str().is_some_and(|result| result.starts_with("cut off"));
        let Some(one) = decisions.iter().find(told) else { return Ok(false) };
        let gates = one["gates"].as_array().context("gates")?;
        ensure!(writes_up(one) && !gates.is_empty() && one["reached_at"].is_i64(), "{one}");
        Ok(true)
    });
    cut_off.await.with_context(|| server.tail())?;
    ensure!(server.call("GET", "/v1/migrations/m/plan", None).await?["status"] == "running");
    Ok(())
}

fn steps(percents: &[u8]) -> Vec<Percent> {
    percents.iter().copied().map(Percent::whole).collect()
}
