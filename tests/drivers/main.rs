//! Applications in several drivers, unmodified, through the real program and a migration.
//!
//! Each has its own clusters and its own proxy; pymongo, Node and Rust try every face of it. Needs `python3` (with `venv`), `node` with
//! `npm`, a C compiler with libmongoc, Perl with its driver, and for the first run a network to install the others.

mod application;
mod rust_driver;
mod stage;
mod tools;

use anyhow::{Error, Result, bail};
use application::Application;
use stage::{Face, Phase, Stage};

/// Takes an application through all phases, with one run inside each and one across each change.
async fn through_all_phases(name: &str, application: &Application, face: Face) -> Result<()> {
    let mut stage = Stage::start(name, face, [1, 1]).await?;
    // What fails in one phase does not hide what fails in the next.
    let mut failures = Vec::new();
    let end = Box::pin(go(&mut stage, application, &mut failures)).await;
    failures.extend(end.err());
    if failures.is_empty() {
        return Ok(());
    }
    let failures: Vec<_> = failures.iter().map(|error| format!("{error:#}")).collect();
    bail!("{}\nthe proxy's log ends with:\n{}", failures.join("\n"), stage.log_tail())
}

async fn go(stage: &mut Stage, application: &Application, failures: &mut Vec<Error>) -> Result<()> {
    failures.extend(application.run(stage, Phase::Plain).await.err());
    stage.configure_new().await?;
    for (before, phase) in Phase::ALL.iter().zip(&Phase::ALL[1..]) {
        let across = application.across(stage, *before, *phase).await;
        stage.enter(*phase).await?;
        let gone = async { across?.finish().await }.await;
        failures.extend(gone.err().map(|error| error.context(format!("into {}", phase.name()))));
        failures.extend(application.run(stage, *phase).await.err());
    }
    stage.both_sides_are_equal().await
}

/// Reads for secondaries are answered by secondaries of the cluster: its primary refuses them.
async fn reads_of_secondaries(name: &str, application: &Application) -> Result<()> {
    let stage = Stage::start(name, Face::ReplicaSet, [3, 1]).await?;
    application.run(&stage, Phase::Plain).await.map_err(|error| error.context(stage.log_tail()))
}

/// The primaries of both clusters step down under an application, half of whose writes are on new.
async fn nobody_sees_elections(name: &str, application: &Application, face: Face) -> Result<()> {
    let mut stage = Stage::start(name, face, [3, 3]).await?;
    application.run(&stage, Phase::Plain).await?;
    stage.configure_new().await?;
    for phase in [Phase::Dual, Phase::Reads, Phase::Half] {
        stage.enter(phase).await?;
    }
    let running = application.across(&stage, Phase::Half, Phase::Half).await?;
    for cluster in [&stage.old, &stage.new] {
        cluster.stepdown().await?;
    }
    running.finish().await.map_err(|error| error.context(stage.log_tail()))?;
    stage.both_sides_are_equal().await
}

/// A change stream that is open while half of its collection is on new ends when all of it is.
async fn sees_the_end_of_a_stream(name: &str, application: &Application) -> Result<()> {
    let mut stage = Stage::start(name, Face::ReplicaSet, [1, 1]).await?;
    application.run(&stage, Phase::Plain).await?;
    stage.configure_new().await?;
    for phase in [Phase::Dual, Phase::Reads, Phase::Half] {
        stage.enter(phase).await?;
    }
    let running = application.across(&stage, Phase::Half, Phase::Moved).await?;
    stage.enter(Phase::Moved).await?;
    running.finish().await.map_err(|error| error.context(stage.log_tail()))?;
    stage.both_sides_are_equal().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pymongo_sees_the_end_of_a_stream() -> Result<()> {
    sees_the_end_of_a_stream("pymongo-streams", &tools::python_script("python/streams.py").await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_sees_the_end_of_a_stream() -> Result<()> {
    sees_the_end_of_a_stream("node-streams", &tools::node_script("streams.mjs", "node/streams.mjs").await?)
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pymongo_async_sees_no_elections() -> Result<()> {
    let application = tools::python_script("python/elections_async.py").await?;
    nobody_sees_elections("pymongo-async-elections", &application, Face::Mongos).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libmongoc_sees_no_elections() -> Result<()> {
    let application = tools::c_program("c-elections", "c/elections.c").await?;
    nobody_sees_elections("c-elections", &application, Face::ReplicaSet).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn perl_sees_no_elections() -> Result<()> {
    let application = tools::perl_script("perl/elections.pl").await?;
    nobody_sees_elections("perl-elections", &application, Face::Mongos).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pymongo_sees_no_elections() -> Result<()> {
    let application = tools::python_script("python/elections.py").await?;
    nobody_sees_elections("pymongo-elections", &application, Face::ReplicaSet).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_sees_no_elections() -> Result<()> {
    let application = tools::node_script("elections.mjs", "node/elections.mjs").await?;
    nobody_sees_elections("node-elections", &application, Face::Mongos).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongoose_sees_no_elections() -> Result<()> {
    let application = tools::node_script("elections.mjs", "node/elections.mjs").await?;
    nobody_sees_elections("mongoose-elections", &application.with("mongoose")?, Face::ReplicaSet).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongosh_sees_no_elections() -> Result<()> {
    let application = tools::mongosh("elections.js", "mongosh/elections.js").await?;
    nobody_sees_elections("mongosh-elections", &application, Face::ReplicaSet).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pymongo_reads_of_secondaries() -> Result<()> {
    reads_of_secondaries("pymongo-reads", &tools::python_script("python/secondaries.py").await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_reads_of_secondaries() -> Result<()> {
    reads_of_secondaries("node-reads", &tools::node_script("secondaries.mjs", "node/secondaries.mjs").await?)
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pymongo() -> Result<()> {
    through_all_phases("pymongo", &tools::python().await?, Face::Mongos).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pymongo_of_a_replica_set() -> Result<()> {
    through_all_phases("pymongo-rs", &tools::python().await?, Face::ReplicaSet).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pymongo_behind_a_balancer() -> Result<()> {
    through_all_phases("pymongo-lb", &tools::python().await?, Face::LoadBalanced).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_and_mongoose() -> Result<()> {
    through_all_phases("node", &tools::node().await?, Face::Mongos).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_and_mongoose_of_a_replica_set() -> Result<()> {
    through_all_phases("node-rs", &tools::node().await?, Face::ReplicaSet).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_and_mongoose_behind_a_balancer() -> Result<()> {
    through_all_phases("node-lb", &tools::node().await?, Face::LoadBalanced).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libmongoc() -> Result<()> {
    through_all_phases("c", &tools::c().await?, Face::Mongos).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn perl() -> Result<()> {
    through_all_phases("perl", &tools::perl().await?, Face::Mongos).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongosh() -> Result<()> {
    through_all_phases("mongosh", &tools::mongosh("mongosh.js", "mongosh/app.js").await?, Face::Mongos).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rust() -> Result<()> {
    through_all_phases("rust", &Application::Rust, Face::Mongos).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rust_of_a_replica_set() -> Result<()> {
    through_all_phases("rust-rs", &Application::Rust, Face::ReplicaSet).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rust_behind_a_balancer() -> Result<()> {
    through_all_phases("rust-lb", &Application::Rust, Face::LoadBalanced).await
}
