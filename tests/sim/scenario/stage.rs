//! Stories: schedules of which each step is told, and only the small times are left to the seed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reshard::model::side::Side;
use reshard::policy::invariants::Invariant;
use reshard::policy::safeguards::Safeguards;
use tokio::sync::Notify;

use super::client::Client;
use super::faults::Mix;
use super::operator::{PAUSE, Step, operate};
use super::proxy::Proxy;
use super::{Options, Scenario};
use crate::network::Weather;
use crate::world::World;

/// The proxy that serves in the end; or what the story could not do.
pub(super) type Ending = Result<Arc<Proxy>, String>;

/// A migration of which a story is told. Nothing goes wrong by itself.
pub(super) struct Stage {
    /// What it is made of.
    pub(super) scenario: Scenario,
    /// Its world.
    pub(super) world: World,
    options: Options,
    stop: Arc<AtomicBool>,
}

/// Plays `story`, lets everything settle under the proxy that it returns, and checks.
///
/// # Errors
/// What does not hold; or what the story could not do.
pub(super) fn tell<F>(
    world: &World,
    safeguards: Safeguards,
    story: impl FnOnce(Arc<Stage>) -> F,
) -> Result<(), String>
where
    F: Future<Output = Ending> + Send + 'static,
{
    told(world, safeguards, story).0
}

/// What came of a story.
pub(super) type Told = (Result<(), String>, BTreeMap<Invariant, u64>);

/// The same, with what its proxies found broken.
pub(super) fn told<F>(world: &World, safeguards: Safeguards, story: impl FnOnce(Arc<Stage>) -> F) -> Told
where
    F: Future<Output = Ending> + Send + 'static,
{
    world.executor().limit_steps(5_000_000);
    let options =
        Options { safeguards, mix: Mix::NONE, weather: Weather::calm(), broken: 0, ..Options::default() };
    let scenario = Scenario::new(world, &options);
    let stage = Arc::new(Stage { scenario, world: world.clone(), options, stop: Arc::default() });
    let front = stage.scenario.front.clone();
    let story = story(Arc::clone(&stage));
    let main = async move {
        let last = story.await?;
        stage.world.settle().await;
        stage.scenario.end(&stage.world, super::Calls::default(), &last).await.map(|_| ())
    };
    let result = world.run(main).map_err(|halt| halt.to_string()).and_then(|result| result);
    (result, front.violations())
}

impl Stage {
    /// Starts proxy `number`, and returns it once it serves.
    pub(super) async fn proxy(&self, number: u32) -> Arc<Proxy> {
        self.scenario.front.close();
        self.scenario.front.start(&self.scenario.site, number);
        self.scenario.front.proxy().await
    }

    /// A client that does what it is told.
    pub(super) fn client(&self, number: u8) -> Client {
        self.scenario.client(number, &self.options, &self.stop)
    }

    /// What the operator asks of the proxy that serves.
    ///
    /// # Errors
    /// Which step was given up, and why.
    pub(super) async fn steps(&self, steps: &[Step]) -> Result<(), String> {
        let (front, rng) = (self.scenario.front.clone(), self.world.rng());
        let calls = operate(self.world.clone(), front, rng, steps.to_vec(), &Notify::new(), PAUSE).await;
        calls.given_up.map_or(Ok(()), Err)
    }

    /// Everything up to where reads are on new.
    ///
    /// # Errors
    /// Which step was given up, and why.
    pub(super) async fn synced(&self) -> Result<(), String> {
        self.steps(&[Step::Create, Step::Start, Step::Reads(100)]).await
    }

    /// The network's number of a cluster.
    pub(super) fn index(&self, side: Side) -> usize {
        self.scenario.site.clusters.get(side).index()
    }

    /// Waits for `millis`, more or less.
    pub(super) async fn a_while(&self, millis: u64) {
        let (low, high) = (Duration::from_millis(millis / 2), Duration::from_millis(millis));
        let pause = self.world.rng().between(low, high);
        self.world.sleep(pause).await;
    }
}
