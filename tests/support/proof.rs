//! Load, and the proof that each acknowledged write took effect exactly once.

use std::time::Duration;

use anyhow::{Result, ensure};
use reshard_loadtest::{ErrorStats, Load, LoadConfig, Outcome, Profile, compare};
use reshard_testbed::{ReplicaSet, wait_for};

use super::LONG;

/// As many as a migration has to hold for before anybody trusts it with more.
pub(crate) const DOCUMENTS: usize = 200_000;
/// How many where something happens in every phase: several such trials share two cores.
pub(crate) const HALF_AS_MANY: usize = 100_000;

/// How many clients write at once.
pub(crate) const WORKERS: usize = 6;

pub(crate) fn load(uri: String, profile: Profile, documents: usize) -> LoadConfig {
    LoadConfig {
        uri,
        database: "shop".into(),
        collection: match profile {
            Profile::Keyed => "orders".into(),
            Profile::Unique => "customers".into(),
        },
        profile,
        workers: WORKERS,
        documents,
        document_size: 400,
        ..LoadConfig::default()
    }
}

/// Waits until the load has made so many more operations: that is how long a phase lasts here.
pub(crate) async fn work(load: &Load, operations: u64) -> Result<()> {
    let from = load.snapshot().total.operations;
    wait_for("the load to go on", LONG, || async {
        Ok(load.snapshot().total.operations >= from + operations)
    })
    .await
}

/// Every acknowledged write took effect exactly once, and both sides are equal by bytes.
pub(crate) async fn prove(
    outcome: Outcome,
    old: &ReplicaSet,
    new: &ReplicaSet,
    through: &str,
    namespace: &str,
) -> Result<()> {
    prove_between(outcome, &old.uri(), &new.uri(), through, namespace).await
}

/// [`prove`] between any two clusters.
pub(crate) async fn prove_between(
    outcome: Outcome,
    old: &str,
    new: &str,
    through: &str,
    namespace: &str,
) -> Result<()> {
    each_write_counts_once(&outcome, through).await?;
    are_equal(old, new, namespace).await
}

/// Every acknowledged write took effect exactly once.
pub(crate) async fn each_write_counts_once(outcome: &Outcome, through: &str) -> Result<()> {
    let report = outcome.verify(through).await?;
    ensure!(report.is_clean(), "{report}\n{:#?}", outcome.stats.errors);
    Ok(())
}

/// Both sides are equal by bytes, or are so soon.
pub(crate) async fn are_equal(old: &str, new: &str, namespace: &str) -> Result<()> {
    let last = parking_lot::Mutex::new(None);
    let waited = wait_for("both sides to be equal", Duration::from_secs(60), || async {
        let comparison = compare(old, new, namespace).await?;
        let is_equal = comparison.is_equal();
        *last.lock() = Some(comparison.to_string());
        Ok(is_equal)
    })
    .await;
    ensure!(waited.is_ok(), "{namespace}: {:?}", last.into_inner());
    Ok(())
}

/// While nobody writes: both sides are equal by bytes. Then the load goes on.
pub(crate) async fn are_equal_at_rest(
    load: &Load,
    level: impl Future<Output = Result<()>>,
    (old, new): (&ReplicaSet, &ReplicaSet),
    namespace: &str,
) -> Result<()> {
    ensure!(load.pause().await, "the load does not come to rest");
    level.await?;
    are_equal(&old.uri(), &new.uri(), namespace).await?;
    load.resume("after a rest");
    Ok(())
}

/// The application saw no error at all.
pub(crate) fn no_errors(errors: &ErrorStats) -> Result<()> {
    ensure!(errors.total == 0, "the application saw errors: {errors:?}");
    Ok(())
}

/// Operations that no driver repeats.
const UNREPEATED: [&str; 4] = ["update_many", "delete_many", "hot_update_many", "bulk"];

/// So many errors at most, and only of operations that no driver repeats.
pub(crate) fn few_errors_of_the_unrepeated(errors: &ErrorStats, most: usize) -> Result<()> {
    let repeated = |operation: &String| !UNREPEATED.contains(&operation.as_str());
    ensure!(
        usize::try_from(errors.total)? <= most && !errors.by_operation.keys().any(repeated),
        "the application saw errors: {errors:?}"
    );
    Ok(())
}

/// The proxy was killed once: what was under way broke off, one operation of each worker at most, and only
/// of those that no driver repeats. Else there was no error.
pub(crate) fn no_errors_but_of_one_death(errors: &ErrorStats, workers: usize) -> Result<()> {
    ensure!(errors.by_label.keys().all(|label| label == "Io"), "the application saw errors: {errors:?}");
    few_errors_of_the_unrepeated(errors, workers)
}
