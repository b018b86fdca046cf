//! Every command that the proxy knows by name is in the corpus, or is told here.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use reshard::policy::classify::{Class, classify, rare_names};

use super::corpus;

/// Those that [`classify`] has in its own text.
const FREQUENT: &[&str] = &[
    "hello",
    "isMaster",
    "ismaster",
    "saslStart",
    "saslContinue",
    "authenticate",
    "logout",
    "insert",
    "update",
    "delete",
    "findAndModify",
    "findandmodify",
    "bulkWrite",
    "find",
    "aggregate",
    "count",
    "distinct",
    "listCollections",
    "listIndexes",
    "listDatabases",
    "mapReduce",
    "mapreduce",
    "explain",
    "getMore",
    "killCursors",
    "commitTransaction",
    "abortTransaction",
    "endSessions",
    "refreshSessions",
    "killSessions",
    "killAllSessions",
    "killAllSessionsByPattern",
];

/// What the corpus leaves out, and why.
const LEFT_OUT: &[(&[&str], &str)] = &[
    (&["hello", "isMaster", "ismaster"], "the proxy's own answers: tests/faces.rs"),
    (&["saslStart", "saslContinue", "authenticate"], "logins have a state: tests/login.rs"),
    (&["shutdown", "rotateCertificates", "logRotate"], "would end the servers, or change their files"),
    (
        &[
            "replSetStepDown",
            "replSetReconfig",
            "replSetStepUp",
            "replSetResizeOplog",
            "replSetMaintenance",
            "replSetSyncFrom",
            "replSetFreeze",
        ],
        "would change who leads the set that other cases run on: tests/trouble",
    ),
    (&["configureFailPoint"], "tests/fail_points.rs"),
    (
        &[
            "moveChunk",
            "split",
            "mergeChunks",
            "movePrimary",
            "addShard",
            "removeShard",
            "reshardCollection",
            "refineCollectionShardKey",
            "updateZoneKeyRange",
            "addShardToZone",
            "removeShardFromZone",
            "balancerStart",
            "balancerStop",
            "flushRouterConfig",
        ],
        "a router's own, and of the test bed's stand-in only a part: tests/sharded and testbed/tests",
    ),
];

#[test]
fn every_command_is_asked_for_or_told() -> Result<()> {
    let asked: BTreeSet<String> = corpus()?.iter().map(|case| case.command_name().to_owned()).collect();
    let left_out: BTreeSet<&str> = LEFT_OUT.iter().flat_map(|(names, _)| *names).copied().collect();
    let known: BTreeSet<&str> = FREQUENT.iter().copied().chain(rare_names()).collect();
    let missing: Vec<_> =
        known.iter().filter(|name| !asked.contains(**name) && !left_out.contains(*name)).collect();
    ensure!(missing.is_empty(), "neither in the corpus nor told: {missing:?}");
    let unknown: Vec<_> = left_out.iter().filter(|name| classify(name) == Class::Unknown).collect();
    ensure!(unknown.is_empty(), "told of, and no command: {unknown:?}");
    let both: Vec<_> = left_out.iter().filter(|name| asked.contains(**name)).collect();
    ensure!(both.is_empty(), "told of, and in the corpus: {both:?}");
    Ok(())
}
