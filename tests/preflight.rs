//! Preflight against real servers: each refusal by its code, and nothing is changed.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bson::{Document, doc};
use common::{Looking, Pair, codes, connect, eventually, refusals};
use reshard::cluster::command::SharedCluster;
use reshard::migration::control::{PreflightReport, Severity};
use reshard::migration::preflight::{preflight, single_step_reasons};
use reshard::migration::prepare::Wanted;
use reshard::model::namespace::Namespace;
use reshard::model::side::PerSide;
use reshard::shutdown::Tasks;
use reshard_testbed::{ReplicaSet, Standalone, Version};

async fn look(clusters: &PerSide<SharedCluster>, namespaces: &[&str]) -> Result<PreflightReport> {
    let namespaces: Option<Vec<_>> =
        namespaces.iter().map(|name| Namespace::parse(name).map(Wanted::from)).collect();
    let looking = PerSide { old: Looking::at(&clusters.old), new: Looking::at(&clusters.new) };
    let report = preflight(&looking, &namespaces.context("a namespace")?).await;
    ensure!(report.findings.iter().all(|finding| !finding.message.is_empty()));
    let refused = report.findings.iter().filter(|finding| finding.severity == Severity::Refused);
    ensure!(refused.clone().all(|finding| !finding.remedy.is_empty()));
    ensure!(report.ok == (refused.count() == 0));
    Ok(report)
}

fn one(code: &str, namespace: &str) -> Vec<(String, String)> {
    vec![(code.to_owned(), namespace.to_owned())]
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_that_cannot_move_are_refused() -> Result<()> {
    let pair = Pair::start().await?;
    pair.on_old(doc! { "insert": "plain", "documents": [{ "_id": 1 }] }).await?;
    pair.on_old(doc! { "create": "capped", "capped": true, "size": 10_000 }).await?;
    pair.on_old(doc! { "insert": "shown", "documents": [{ "_id": 1 }] }).await?;
    for (view, on) in [("view", "plain-too"), ("inner", "shown"), ("outer", "inner")] {
        pair.on_old(doc! { "create": view, "viewOn": on, "pipeline": [] }).await?;
    }
    pair.on_old(doc! { "create": "time-series", "timeseries": { "timeField": "t" } }).await?;
    pair.on_old(doc! { "create": "default-collation", "collation": { "locale": "de" } }).await?;
    let clustered = doc! { "key": { "_id": 1 }, "unique": true };
    pair.on_old(doc! { "create": "clustered-ttl", "clusteredIndex": clustered, "expireAfterSeconds": 60 })
        .await?;
    let key = bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: vec![7; 16] };
    let fields = doc! { "fields": [{ "path": "ssn", "bsonType": "string", "keyId": key }] };
    pair.on_old(doc! { "create": "queryable-encryption", "encryptedFields": fields }).await?;
    for kind in
        ["capped", "view", "time-series", "default-collation", "clustered-ttl", "queryable-encryption"]
    {
        let namespace = format!("shop.{kind}");
        let before = pair.hashes().await?;
        let report = look(&pair.clusters, &[&namespace]).await?;
        ensure!(refusals(&report) == one(kind, &namespace), "{kind}: {report:#?}");
        ensure!(pair.hashes().await? == before, "{kind} was changed");
    }
    for (namespace, code) in [
        ("shop.nothing", "does-not-exist"),
        ("shop.system.js", "system-collection"),
        ("admin.c", "internal-database"),
        ("local.c", "internal-database"),
        ("config.c", "internal-database"),
        ("reshard.c", "internal-database"),
    ] {
        let report = look(&pair.clusters, &[namespace]).await?;
        ensure!(refusals(&report) == one(code, namespace), "{namespace}: {report:#?}");
    }
    let report = look(&pair.clusters, &["shop.plain", "shop.plain"]).await?;
    ensure!(refusals(&report) == one("named-twice", "shop.plain"), "{report:#?}");
    let report = look(&pair.clusters, &[]).await?;
    ensure!(refusals(&report) == one("no-namespaces", ""), "{report:#?}");
    let report = look(&pair.clusters, &["shop.shown"]).await?;
    ensure!(refusals(&report) == one("shown-by-view", "shop.shown"), "{report:#?}");
    let views = "shop.inner, shop.outer,";
    ensure!(report.findings.iter().any(|finding| finding.message.contains(views)), "{report:#?}");
    let report = look(&pair.clusters, &["shop.plain"]).await?;
    ensure!(report.ok, "{report:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_that_stand_in_the_way_are_refused() -> Result<()> {
    let pair = Pair::start().await?;
    for name in ["full", "kept", "option", "index", "unique", "view"] {
        pair.on_old(doc! { "create": name, "validator": { "a": { "$gt": 0 } } }).await?;
        let indexes = vec![doc! { "key": { "a": 1 }, "name": "a_1" }];
        pair.on_old(doc! { "createIndexes": name, "indexes": indexes }).await?;
    }
    for name in ["full", "kept", "index", "unique"] {
        pair.on_new(doc! { "create": name, "validator": { "a": { "$gt": 0 } } }).await?;
    }
    pair.on_new(doc! { "insert": "full", "documents": [{ "_id": 1, "a": 1 }] }).await?;
    pair.on_new(doc! { "create": "option" }).await?;
    // A sharded collection has one more index, on its shard key.
    let more = vec![doc! { "key": { "shard": 1 }, "name": "shard_1" }];
    pair.on_new(doc! { "createIndexes": "kept", "indexes": more }).await?;
    let other = vec![doc! { "key": { "a": 1 }, "name": "a_1", "sparse": true }];
    pair.on_new(doc! { "createIndexes": "index", "indexes": other }).await?;
    let unique = vec![doc! { "key": { "b": 1 }, "name": "b_1", "unique": true }];
    pair.on_new(doc! { "createIndexes": "unique", "indexes": unique }).await?;
    pair.on_new(doc! { "create": "view", "viewOn": "kept", "pipeline": [] }).await?;
    let before = pair.hashes().await?;
    for (name, code) in [
        ("full", "target-not-empty"),
        ("option", "target-differs"),
        ("index", "target-differs"),
        ("unique", "target-differs"),
        ("view", "view"),
    ] {
        let namespace = format!("shop.{name}");
        let report = look(&pair.clusters, &[&namespace]).await?;
        ensure!(refusals(&report) == one(code, &namespace), "{name}: {report:#?}");
    }
    let report = look(&pair.clusters, &["shop.kept"]).await?;
    ensure!(report.ok && codes(&report, Severity::Info).contains(&one("target-kept", "shop.kept")[0]));
    ensure!(pair.hashes().await? == before);
    common::run(&*pair.clusters.old, "case", &doc! { "create": "c" }).await?;
    common::run(&*pair.clusters.new, "Case", &doc! { "create": "c" }).await?;
    let report = look(&pair.clusters, &["case.c"]).await?;
    ensure!(refusals(&report) == one("database-case", "case.c"), "{report:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_limit_and_builds_refuse() -> Result<()> {
    for version in [Version::Any, Version::V4_4] {
        indexes_of(Pair::of_versions(version, Version::Any).await?).await?;
    }
    Ok(())
}

async fn indexes_of(pair: Pair) -> Result<()> {
    pair.on_old(doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await?;
    let indexes = vec![
        doc! { "key": { "email": 1 }, "name": "email_1", "unique": true },
        doc! { "key": { "_id": 1, "x": 1 }, "name": "id_x", "unique": true },
        doc! { "key": { "t": 1 }, "name": "t_1", "expireAfterSeconds": 60 },
    ];
    pair.on_old(doc! { "createIndexes": "c", "indexes": indexes }).await?;
    let report = look(&pair.clusters, &["shop.c"]).await?;
    ensure!(report.ok, "{report:#?}");
    let reasons = single_step_reasons(&report);
    ensure!(reasons.len() == 1 && reasons[0].contains("shop.c: unique index email_1"), "{reasons:?}");
    ensure!(codes(&report, Severity::Info).contains(&one("ttl-index", "shop.c")[0]));
    let point = "hangAfterStartingIndexBuild";
    pair.sets.old.fail_point(doc! { "configureFailPoint": point, "mode": "alwaysOn" }).await?;
    let old = pair.clusters.old.clone();
    let build = tokio::spawn(async move {
        let indexes = vec![doc! { "key": { "slow": 1 }, "name": "slow_1" }];
        common::run(&*old, "shop", &doc! { "createIndexes": "c", "indexes": indexes }).await
    });
    eventually("the build is seen", async || {
        let report = look(&pair.clusters, &["shop.c"]).await?;
        Ok(refusals(&report) == one("index-build", "shop.c"))
    })
    .await?;
    pair.sets.old.fail_point(doc! { "configureFailPoint": point, "mode": "off" }).await?;
    build.await??;
    ensure!(look(&pair.clusters, &["shop.c"]).await?.ok);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_that_cannot_be_worked_with_are_refused() -> Result<()> {
    let pair = Pair::start().await?;
    let PerSide { old, new } = pair.clusters.clone();
    pair.on_old(doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await?;
    pair.on_new(doc! { "create": "other" }).await?;
    let alone = Standalone::start().await?;
    let standalone = connect(&alone.uri(), &pair.tasks).await?;
    common::run(&*standalone, "shop", &doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await?;
    let before = pair.hashes().await?;
    for clusters in [
        PerSide { old: standalone.clone(), new: new.clone() },
        PerSide { old: old.clone(), new: standalone.clone() },
    ] {
        let report = look(&clusters, &["shop.c"]).await?;
        ensure!(refusals(&report) == one("standalone", ""), "{report:#?}");
    }
    // The same cluster under another name.
    let again = connect(&pair.sets.old.uri().replace("127.0.0.1", "localhost"), &pair.tasks).await?;
    let report = look(&PerSide { old: old.clone(), new: again }, &["shop.c"]).await?;
    ensure!(refusals(&report).contains(&one("same-cluster", "")[0]), "{report:#?}");
    let nobody = connect("mongodb://127.0.0.1:9/?replicaSet=x", &pair.tasks).await?;
    let began = Instant::now();
    for clusters in
        [PerSide { old: nobody.clone(), new: new.clone() }, PerSide { old: old.clone(), new: nobody.clone() }]
    {
        let report = look(&clusters, &["shop.c"]).await?;
        ensure!(refusals(&report) == one("unreachable", ""), "{report:#?}");
    }
    ensure!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    ensure!(pair.hashes().await? == before);
    // A server that hangs, too.
    pair.sets.new.node(0).pause().await?;
    let report = look(&pair.clusters, &["shop.c"]).await?;
    pair.sets.new.node(0).resume().await?;
    ensure!(refusals(&report) == one("unreachable", ""), "{report:#?}");
    Ok(())
}

/// Members of 4.2 and 4.4 can be without majority reads: what new gets would not be what old keeps.
#[tokio::test(flavor = "multi_thread")]
async fn clusters_without_majority_reads() -> Result<()> {
    for version in [Version::V4_2, Version::V4_4] {
        let old = ReplicaSet::builder("preflight-minority").version(version).without_majority_reads();
        let pair =
            Pair::of(old.start().await?, ReplicaSet::builder("preflight-majority").start().await?).await?;
        pair.on_old(doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await?;
        let report = look(&pair.clusters, &["shop.c"]).await?;
        ensure!(refusals(&report) == one("majority-reads-disabled", ""), "{report:#?}");
    }
    Ok(())
}

/// What is hard to bring about on a server is put into its answers.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_tell_of_trouble() -> Result<()> {
    let pair = Pair::start().await?;
    pair.on_old(doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await?;
    let changed = |command, change: fn(&mut Document)| PerSide {
        old: Looking::changed(&pair.clusters.old, command, change),
        new: pair.clusters.new.clone(),
    };
    let old_wire = changed("hello", |hello| {
        hello.insert("maxWireVersion", 7);
    });
    let majority = changed("find", |reply| {
        *reply = doc! { "ok": 0.0, "code": 148, "errmsg": "Majority read concern is not enabled" };
    });
    let between = changed("getParameter", |reply| {
        reply.insert("featureCompatibilityVersion", doc! { "version": "5.0", "targetVersion": "6.0" });
    });
    for (clusters, code) in [
        (old_wire, "server-too-old"),
        (majority, "majority-reads-disabled"),
        (between, "compatibility-changing"),
    ] {
        let report = look(&clusters, &["shop.c"]).await?;
        ensure!(refusals(&report) == one(code, ""), "{report:#?}");
    }
    let newer = changed("getParameter", |reply| {
        reply.insert("featureCompatibilityVersion", doc! { "version": "10.0" });
        reply.insert("notablescan", true);
    });
    let sessions = changed("hello", |hello| {
        hello.insert("logicalSessionTimeoutMinutes", 60);
    });
    let short = changed("collStats", |stats| {
        stats.insert("maxSize", 100);
    });
    for (clusters, expected) in [
        (newer, vec!["no-table-scan", "feature-compatibility"]),
        (sessions, vec!["session-timeout"]),
        (short, vec!["oplog-window"]),
    ] {
        let report = look(&clusters, &["shop.c"]).await?;
        let found = codes(&report, Severity::Limits);
        ensure!(report.ok && found.iter().map(|(code, _)| code.as_str()).eq(expected), "{report:#?}");
    }
    let forbidden = changed("replSetGetConfig", |reply| {
        *reply = doc! { "ok": 0.0, "code": 13, "errmsg": "not authorized" };
    });
    let report = look(&forbidden, &["shop.c"]).await?;
    ensure!(report.ok && codes(&report, Severity::Info).contains(&one("not-checked", "")[0]), "{report:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn majority_writes_must_be_journaled() -> Result<()> {
    let pair = Pair::start().await?;
    pair.on_old(doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await?;
    let node = pair.sets.new.node(0);
    let mut config = node.admin(doc! { "replSetGetConfig": 1 }).await?.get_document("config")?.clone();
    config.insert("writeConcernMajorityJournalDefault", false);
    config.insert("version", config.get_i32("version")? + 1);
    node.admin(doc! { "replSetReconfig": config }).await?;
    let report = look(&pair.clusters, &["shop.c"]).await?;
    ensure!(refusals(&report) == one("majority-not-journaled", ""), "{report:#?}");
    Ok(())
}

/// What operations get that name no concern changes with the cluster that serves them.
#[tokio::test(flavor = "multi_thread")]
async fn default_concerns_that_differ_are_told() -> Result<()> {
    let pair = Pair::start().await?;
    pair.on_old(doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await?;
    let limits = async || Ok::<_, anyhow::Error>(look(&pair.clusters, &["shop.c"]).await?);
    ensure!(codes(&limits().await?, Severity::Limits).is_empty(), "they are the same");
    let set = |concerns: Document| {
        let mut command = doc! { "setDefaultRWConcern": 1 };
        command.extend(concerns);
        command
    };
    let write = doc! { "defaultWriteConcern": { "w": 1, "wtimeout": 70 } };
    let read = doc! { "defaultReadConcern": { "level": "majority" } };
    pair.sets.new.node(0).admin(set(write.clone())).await?;
    pair.sets.old.node(0).admin(set(read)).await?;
    let report = limits().await?;
    ensure!(report.ok && codes(&report, Severity::Limits) == one("defaults-differ", ""), "{report:#?}");
    let told = report.findings.iter().find(|finding| finding.code == "defaults-differ").context("told")?;
    for part in ["{ w: 1, wtimeout: 70 } on new", "of level majority on old and local on new"] {
        ensure!(told.message.contains(part), "{part}: {told:#?}");
    }
    pair.sets.old.node(0).admin(set(write)).await?;
    pair.sets.old.node(0).admin(set(doc! { "defaultReadConcern": {} })).await?;
    let report = limits().await?;
    ensure!(codes(&report, Severity::Limits).is_empty(), "{report:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileges() -> Result<()> {
    let build = |name| ReplicaSet::builder(name).auth("root", "root").start();
    let (old, new) = tokio::try_join!(build("old"), build("new"))?;
    let tasks = Tasks::default();
    let role = |role: &str, db: &str| doc! { "role": role, "db": db };
    let enough = vec![
        role("readAnyDatabase", "admin"),
        role("clusterMonitor", "admin"),
        role("hostManager", "admin"),
        role("readWrite", "shop"),
        role("dbAdmin", "shop"),
        role("readWrite", "reshard"),
        role("dbAdmin", "reshard"),
    ];
    let root = PerSide { old: connect(&old.uri(), &tasks).await?, new: connect(&new.uri(), &tasks).await? };
    common::run(&*root.old, "shop", &doc! { "insert": "c", "documents": [{ "_id": 1 }] }).await?;
    for cluster in [&root.old, &root.new] {
        common::run(&**cluster, "admin", &doc! { "createUser": "enough", "pwd": "p", "roles": &enough })
            .await?;
        let roles = vec![role("readWrite", "shop")];
        common::run(&**cluster, "admin", &doc! { "createUser": "little", "pwd": "p", "roles": roles })
            .await?;
    }
    ensure!(look(&root, &["shop.c"]).await?.ok);
    let of = |set: &ReplicaSet, user: &str| set.uri().replace("root:root", &format!("{user}:p"));
    let with = async |user: &str| -> Result<PerSide<SharedCluster>> {
        let old = connect(&of(&old, user), &tasks).await?;
        Ok(PerSide { old, new: connect(&of(&new, user), &tasks).await? })
    };
    let report = look(&with("enough").await?, &["shop.c"]).await?;
    ensure!(report.ok, "{report:#?}");
    let report = look(&with("little").await?, &["shop.c"]).await?;
    ensure!(refusals(&report).iter().all(|(code, _)| code == "missing-privileges"), "{report:#?}");
    let message = &report.findings[0].message;
    for part in [
        "little on old",
        "find, changeStream on every database",
        "inprog, killop on the cluster",
        "database reshard",
    ] {
        ensure!(message.contains(part), "{part}: {message}");
    }
    ensure!(message.contains("bypassDocumentValidation, collMod on shop.c"), "{message}");
    // Nobody is logged in: the reads tell.
    let open = PerSide {
        old: connect(&format!("mongodb://{}/?replicaSet=old", old.node(0).address()), &tasks).await?,
        new: root.new.clone(),
    };
    let report = look(&open, &["shop.c"]).await?;
    ensure!(refusals(&report) == one("missing-privileges", "shop.c"), "{report:#?}");
    let wrong = PerSide {
        old: connect(&old.uri().replace("root:root", "root:wrong"), &tasks).await?,
        new: root.new.clone(),
    };
    let report = look(&wrong, &["shop.c"]).await?;
    ensure!(refusals(&report) == one("unreachable", ""), "{report:#?}");
    Ok(())
}
