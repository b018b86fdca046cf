//! Plays a plan.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reshard::policy::safeguards::Safeguards;
use tokio::sync::{Notify, mpsc, watch};

use super::coverage::{Coverage, moment};
use super::plan::{Act, Plan, What};
use crate::network::Weather;
use crate::rng::Rng;
use crate::scenario::faults::{Faults, Mix};
use crate::scenario::operator::operate;
use crate::scenario::proxy::Proxy;
use crate::scenario::{Options, Scenario};
use crate::world::World;

/// The longest pause of the operator.
const PAUSE: Duration = Duration::from_millis(300);

/// Plays `plan` in its world, checks, and counts what it met.
///
/// # Errors
/// What does not hold.
pub(super) fn play(world: &World, plan: &Plan, safeguards: Safeguards) -> (Result<(), String>, Coverage) {
    world.executor().limit_steps(5_000_000);
    let coverage = Coverage::default();
    let options = Options {
        safeguards,
        mix: Mix::NONE,
        weather: plan.weather.clone(),
        broken: 40,
        reads: plan.reads(),
        ..Options::default()
    };
    let scenario = Scenario::new(world, &options);
    let (front, ledger, history) =
        (scenario.front.clone(), scenario.ledger.clone(), scenario.history.clone());
    let clusters = scenario.site.clusters.clone();
    let main = perform(scenario, plan.clone(), options, coverage.clone());
    let result = world.run(main).map_err(|halt| halt.to_string()).and_then(|result| result);
    coverage.count_changes(&ledger, &clusters);
    coverage.count_told(&history);
    coverage.count_proxies(&front);
    (result, coverage)
}

async fn perform(scenario: Scenario, plan: Plan, options: Options, coverage: Coverage) -> Result<(), String> {
    let world = scenario.site.world.clone();
    if plan.early {
        world.network().set_weather(Weather::calm());
    }
    let begun = Arc::new(watch::Sender::new(false));
    let (sender, mut ended) = mpsc::unbounded_channel::<()>();
    for (client, acts) in plan.clients() {
        let wait = (!plan.early).then(|| begun.subscribe());
        begin_client(&scenario, &options, (client, acts), wait, sender.clone());
    }
    drop(sender);
    let first = scenario.front.start(&scenario.site, 1);
    let started = Notify::new();
    let start = async {
        started.notified().await;
        begun.send_replace(true);
        world.network().set_weather(plan.weather.clone());
    };
    let operator = async {
        let steps = plan.steps();
        operate(world.clone(), scenario.front.clone(), Rng::new(plan.seed), steps, &started, PAUSE).await
    };
    let wait = plan.early.then(|| begun.subscribe());
    let faults = strike(&scenario, &plan, first, wait, &coverage);
    let ((), calls, proxy) = futures::join!(start, operator, faults);
    world.settle().await;
    let _ = ended.recv().await;
    coverage.count_calls(&calls);
    scenario.end(&world, calls, &proxy).await.map(|_| ())
}

/// Waits until the actor may begin; returns when that was.
async fn beginning(world: &World, wait: Option<watch::Receiver<bool>>) -> Duration {
    if let Some(mut wait) = wait {
        let _begun = wait.wait_for(|begun| *begun).await;
    }
    world.executor().now()
}

async fn until(world: &World, at: Duration) {
    world.sleep(at.saturating_sub(world.executor().now())).await;
}

fn begin_client(
    scenario: &Scenario,
    options: &Options,
    (number, acts): (u8, Vec<Act>),
    wait: Option<watch::Receiver<bool>>,
    ended: mpsc::UnboundedSender<()>,
) {
    let world = scenario.site.world.clone();
    let mut client = scenario.client(number, options, &Arc::new(AtomicBool::new(false)));
    world.process(&format!("client-{number}")).spawn("client", async move {
        let zero = beginning(&world, wait).await;
        for act in acts {
            until(&world, zero + act.at).await;
            let What::Client(_, deed, which) = act.what else { continue };
            client.rng = Rng::new(act.seed);
            client.perform(deed, which).await;
        }
        drop(ended);
    });
}

/// Makes things go wrong; returns the proxy that is alive in the end.
async fn strike(
    scenario: &Scenario,
    plan: &Plan,
    proxy: Arc<Proxy>,
    wait: Option<watch::Receiver<bool>>,
    coverage: &Coverage,
) -> Arc<Proxy> {
    let site = &scenario.site;
    let mut faults = Faults {
        site: site.clone(),
        front: scenario.front.clone(),
        rng: Rng::new(plan.seed),
        mix: Mix::NONE,
        stop: Arc::default(),
        proxy,
        number: 1,
        haste: 2,
    };
    let zero = beginning(&site.world, wait).await;
    for (act, fault) in plan.faults() {
        until(&site.world, zero + act.at).await;
        coverage.add(format!("fault: {fault:?}, {}", moment(&site.clusters)));
        faults.rng = Rng::new(act.seed);
        faults.strike(fault).await;
    }
    faults.proxy
}
