//! A load that names its tenants, up, down and back; retries; and documents that two tenants claim.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::support::bed::Bed;
use super::support::{LONG, uri};
use super::{by_tenant, divide, is_on_new, served, synced, tenants};
use anyhow::{Context as _, Result, ensure};
use bson::oid::ObjectId;
use bson::{Document, doc, rawdoc};
use futures::TryStreamExt as _;
use mongodb::{Client, Collection};
use reshard::cluster::command::{Commands as _, Request};
use reshard::cluster::{Cluster, Settings};
use reshard::migration::control::Control as _;
use reshard::shutdown::Tasks;
use reshard::state::records::lsid;
use reshard_testbed::wait_for;
use uuid::Uuid;

const TENANTS: i32 = 40;
const WORKERS: i32 = 4;
const OF_EACH: i32 = 5;

/// What one worker's tenants must have: by tenant and number, how often it was counted.
type Expected = BTreeMap<(i32, i32), i32>;

/// A worker that has some of the tenants for itself, and so knows what each must show.
struct Worker {
    c: Collection<Document>,
    expected: Expected,
    step: i32,
    /// Only what its driver repeats.
    repeatable: bool,
}

impl Worker {
    async fn tenant(&mut self, tenant: i32) -> Result<()> {
        self.step += 1;
        let (c, step) = (&self.c, self.step);
        let n = step % OF_EACH;
        let at = doc! { "tenant": tenant, "n": n };
        match step % 7 {
            // Neither names an `_id`: the tenant says where they go, and their retries too.
            0 | 1 => {
                let done = c.update_one(at, doc! { "$inc": { "count": 1 } }).await?;
                let known = self.expected.get_mut(&(tenant, n));
                ensure!(done.matched_count == u64::from(known.is_some()), "{tenant}/{n}: {done:?}");
                known.into_iter().for_each(|count| *count += 1);
            }
            2 => {
                let done = c.update_one(at, doc! { "$inc": { "count": 1 } }).upsert(true).await?;
                let is_new = !self.expected.contains_key(&(tenant, n));
                ensure!(done.upserted_id.is_some() == is_new, "{tenant}/{n}: {done:?}");
                *self.expected.entry((tenant, n)).or_default() += 1;
            }
            3 => {
                let gone = c.delete_one(at).await?;
                let known = self.expected.remove(&(tenant, n)).is_some();
                ensure!(gone.deleted_count == u64::from(known), "{tenant}/{n}: {gone:?}");
            }
            4 => {
                let inserted = c.insert_one(doc! { "tenant": tenant, "n": n, "count": 0 }).await;
                let known = self.expected.contains_key(&(tenant, n));
                ensure!(inserted.is_err() == known, "{tenant}/{n}: {inserted:?}");
                if !known {
                    self.expected.insert((tenant, n), 0);
                }
            }
            5 if !self.repeatable => {
                let done = c.update_many(doc! { "tenant": tenant }, doc! { "$inc": { "count": 1 } }).await?;
                let mut known = 0;
                for (_, count) in self.expected.range_mut((tenant, 0)..(tenant, OF_EACH)) {
                    *count += 1;
                    known += 1;
                }
                ensure!(done.matched_count == known, "{tenant}: {done:?} of {known}");
            }
            _ => {
                if let Some(found) = c.find_one(at.clone()).await? {
                    let by_id = doc! { "_id": found.get_object_id("_id")?, "tenant": tenant };
                    let with = doc! { "tenant": tenant, "n": n, "count": found.get_i32("count")? + 1 };
                    ensure!(c.replace_one(by_id, with).await?.matched_count == 1, "{tenant}/{n}");
                    *self.expected.get_mut(&(tenant, n)).context("it should not be there")? += 1;
                }
            }
        }
        self.looks_right(tenant).await
    }

    /// Own writes are read through the same proxy.
    async fn looks_right(&self, tenant: i32) -> Result<()> {
        let found: Vec<Document> = self.c.find(doc! { "tenant": tenant }).await?.try_collect().await?;
        let mut shown = Expected::new();
        for document in found {
            let at = (document.get_i32("tenant")?, document.get_i32("n")?);
            ensure!(shown.insert(at, document.get_i32("count")?).is_none(), "{at:?} is there twice");
        }
        let expected: Expected =
            self.expected.range((tenant, 0)..(tenant, OF_EACH)).map(|(at, n)| (*at, *n)).collect();
        ensure!(shown == expected, "tenant {tenant}: {shown:?} instead of {expected:?}");
        Ok(())
    }
}

pub(crate) struct Load {
    workers: Vec<tokio::task::JoinHandle<Result<()>>>,
    ended: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Load {
    pub(crate) async fn start(through: &str) -> Result<Self> {
        Self::start_as(through, false).await
    }

    /// Of operations that drivers repeat when their connection is lost.
    pub(crate) async fn start_repeatable(through: &str) -> Result<Self> {
        Self::start_as(through, true).await
    }

    async fn start_as(through: &str, repeatable: bool) -> Result<Self> {
        let (ended, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut workers = Vec::new();
        for number in 0..WORKERS {
            let c = Client::with_uri_str(through).await?.database("shop").collection("c");
            let mine: Vec<i32> = (0..TENANTS).filter(|tenant| tenant % WORKERS == number).collect();
            let expected = mine.iter().flat_map(|tenant| (0..OF_EACH).map(|n| ((*tenant, n), 0))).collect();
            let mut worker = Worker { c, expected, step: number, repeatable };
            let (ended, done) = (Arc::clone(&ended), Arc::clone(&done));
            workers.push(tokio::spawn(async move {
                while !ended.load(Ordering::Relaxed) {
                    for tenant in &mine {
                        worker.tenant(*tenant).await?;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok(())
            }));
        }
        Ok(Self { workers, ended, done })
    }

    pub(crate) async fn work(&self) -> Result<()> {
        let from = self.done.load(Ordering::Relaxed);
        wait_for("the load to go on", LONG, || async {
            let failed = self.workers.iter().any(tokio::task::JoinHandle::is_finished);
            ensure!(!failed, "a worker has ended");
            Ok(self.done.load(Ordering::Relaxed) > from + 150)
        })
        .await
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.ended.store(true, Ordering::Relaxed);
        for worker in self.workers {
            worker.await??;
        }
        Ok(())
    }
}

pub(crate) fn documents() -> Vec<Document> {
    let of = |tenant: i32| (0..OF_EACH).map(move |n| doc! { "tenant": tenant, "n": n, "count": 0 });
    (0..TENANTS).flat_map(of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_move_as_a_whole_under_load_and_back() -> Result<()> {
    let bed = synced("route-tenants", documents()).await?;
    let load = Load::start(&uri(&bed.proxy)).await?;
    let steps = async {
        load.work().await?;
        for percent in [25, 50] {
            bed.operator.reads(percent).await?;
            load.work().await?;
            bed.operator.writes(percent).await?;
            load.work().await?;
        }
        bed.operator.rollback().await?;
        load.work().await?;
        bed.operator.reads(100).await?;
        bed.operator.writes(50).await?;
        load.work().await?;
        bed.operator.writes(100).await?;
        load.work().await?;
        bed.operator.writes(25).await?;
        load.work().await
    };
    let moved = steps.await;
    load.stop().await?;
    moved?;
    bed.equal().await?;
    bed.operator.found_none_past_the_proxy().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

/// All that names a tenant goes to one cluster, by whatever it is written or read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_a_tenant_is_served_by_one_cluster() -> Result<()> {
    let bed = synced("route-whole", documents()).await?;
    divide(&bed).await?;
    for set in [&bed.old, &bed.new] {
        let database = Bed::on(set).await?;
        // What there is room for by default is less than this test does.
        database.run_command(doc! { "create": "system.profile", "capped": true, "size": 64 << 20 }).await?;
        database.run_command(doc! { "profile": 2 }).await?;
    }
    for tenant in 0..TENANTS {
        let named = |by: &str| rawdoc! { "by": by, "tenant": tenant };
        let update = rawdoc! { "q": { "tenant": tenant, "n": 1 }, "u": { "$inc": { "count": 1 } } };
        bed.write(rawdoc! { "update": "c", "updates": [update], "comment": named("write") }).await?;
        let all = rawdoc! { "q": { "tenant": tenant }, "u": { "$inc": { "count": 1 } }, "multi": true };
        let done = bed.write(rawdoc! { "update": "c", "updates": [all], "comment": named("write") }).await?;
        ensure!(done.get_i32("n")? == OF_EACH, "{done}");
        let more = rawdoc! { "_id": ObjectId::new(), "tenant": tenant, "n": 99 };
        bed.write(rawdoc! { "insert": "c", "documents": [more], "comment": named("write") }).await?;
        let modify = rawdoc! {
            "findAndModify": "c", "query": { "tenant": tenant, "n": 2 }, "update": { "$inc": { "count": 1 } },
            "comment": named("write"),
        };
        bed.write(modify).await?;
        let delete = rawdoc! { "q": { "tenant": tenant, "n": 99 }, "limit": 1 };
        bed.write(rawdoc! { "delete": "c", "deletes": [delete], "comment": named("write") }).await?;
        bed.raw(rawdoc! { "find": "c", "filter": { "tenant": tenant }, "comment": named("read") }).await?;
    }
    for by in ["write", "read"] {
        let (on_old, on_new) = (served(&bed.old, by).await?, served(&bed.new, by).await?);
        ensure!(on_old.is_disjoint(&on_new), "{by}: {on_old:?} {on_new:?}");
        let expected = (0..TENANTS).filter(|tenant| is_on_new(*tenant, super::PERCENT)).collect();
        ensure!(on_new == expected && on_old.len() + on_new.len() == 40, "{by}: {on_new:?} {expected:?}");
    }
    // What names none is still done once for each document, wherever it is.
    let all = bed.c().update_many(doc! { "n": 3 }, doc! { "$inc": { "count": 1 } }).await?;
    ensure!(all.matched_count == 40, "{all:?}");
    ensure!(bed.c().delete_many(doc! { "n": 4 }).await?.deleted_count == 40);
    let unordered = rawdoc! { "insert": "c", "ordered": false, "documents": [
        { "_id": ObjectId::new(), "tenant": 0, "n": 0 }, { "_id": ObjectId::new(), "tenant": 1, "n": 50 },
        { "_id": ObjectId::new(), "tenant": 2, "n": 51 }, { "_id": ObjectId::new(), "n": 51 },
    ] };
    let reply = bed.raw(unordered).await?;
    ensure!(reply.get_i32("n")? == 3 && reply.get_array("writeErrors")?.len() == 1, "{reply}");
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

async fn send(through: &str, session: Uuid, command: Document) -> Result<Document> {
    let tasks = Tasks::default();
    let cluster = Cluster::connect(Settings::parse(through).await?, &tasks).await?;
    let mut body = bson::RawDocumentBuf::try_from(&command)?;
    body.append(bson::cstr!("lsid"), lsid(session));
    body.append(bson::cstr!("txnNumber"), 7_i64);
    let reply = cluster.pools(1).run(Request::new("shop", body)).await?;
    cluster.close();
    let reply = Document::try_from(&*reply.body)?;
    ensure!(reply.get_f64("ok")? == 1.0 && !reply.contains_key("writeErrors"), "{command}: {reply}");
    Ok(reply)
}

/// A retry finds its first attempt by the tenant's slot, whichever cluster has the tenant by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_after_the_tenant_has_moved_counts_once() -> Result<()> {
    let bed = synced("route-retry", documents()).await?;
    let through = uri(&bed.proxy);
    let mut all = Vec::new();
    for tenant in tenants()? {
        let inc = |n: i32| doc! { "q": { "tenant": tenant, "n": n }, "u": { "$inc": { "count": 1 } } };
        let commands = [
            doc! { "update": "c", "updates": [inc(0)] },
            doc! { "update": "c", "updates": [inc(1), inc(2)], "ordered": false },
            doc! { "findAndModify": "c", "query": { "tenant": tenant, "n": 3 }, "update": { "$inc": { "count": 1 } } },
            doc! { "delete": "c", "deletes": [{ "q": { "tenant": tenant, "n": 4 }, "limit": 1 }] },
            doc! { "insert": "c", "documents": [{ "_id": ObjectId::new(), "tenant": tenant, "n": 50 }] },
        ];
        all.extend(commands.map(|command| (Uuid::new_v4(), command)));
    }
    for (session, command) in &all {
        send(&through, *session, command.clone()).await?;
    }
    divide(&bed).await?;
    for (session, command) in &all {
        send(&through, *session, command.clone()).await?;
    }
    for tenant in tenants()? {
        let found: Vec<Document> =
            bed.c().find(doc! { "tenant": tenant }).sort(doc! { "n": 1 }).await?.try_collect().await?;
        let counts: Vec<_> =
            found.iter().map(|it| (it.get_i32("n").ok(), it.get_i32("count").ok())).collect();
        let once = |n| (Some(n), Some(1));
        ensure!(counts == [once(0), once(1), once(2), once(3), (Some(50), None)], "{tenant}: {counts:?}");
    }
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}

/// Two documents of one `_id`, of tenants of which each cluster has one: nobody can tell which is right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_two_tenants_claim_is_a_conflict() -> Result<()> {
    let bed = synced("route-conflict", documents()).await?;
    divide(&bed).await?;
    let [on_old, on_new] = tenants()?;
    let id = ObjectId::new();
    // As long as a transaction holds the `_id` on new, that of old's does not get there.
    let past = bed.new.client().await?;
    let mut session = past.start_session().await?;
    session.start_transaction().await?;
    let there = past.database("shop").collection::<Document>("c");
    there.insert_one(doc! { "_id": id, "tenant": on_new, "n": 70 }).session(&mut session).await?;
    let here = Bed::on(&bed.old).await?.collection::<Document>("c");
    here.insert_one(doc! { "_id": id, "tenant": on_old, "n": 70 }).await?;
    session.commit_transaction().await?;
    wait_for("the conflict to be told", LONG, || async {
        let conflicts = bed.operator.engine.conflicts("m").await?;
        Ok(conflicts.iter().any(|one| one.key.contains(&id.to_hex()) && one.error.contains("tenant")))
    })
    .await?;
    bed.operator.acknowledge().await?;
    let moved = bed.operator.writes(0).await;
    ensure!(
        moved.as_ref().is_err_and(|why| format!("{why:#}").contains("cannot be made equal")),
        "{moved:?}"
    );
    let gone = bed.c().delete_one(doc! { "_id": id, "tenant": on_new }).await?;
    ensure!(gone.deleted_count == 1, "{gone:?}");
    wait_for("the conflict to be over", LONG, || async {
        Ok(bed.operator.engine.conflicts("m").await?.is_empty())
    })
    .await?;
    bed.equal().await?;
    let left = bed.c().find_one(doc! { "tenant": on_old, "n": 70 }).await?;
    ensure!(left.is_some_and(|left| left.get_object_id("_id").ok() == Some(id)));
    bed.proxy.shutdown().await;
    Ok(())
}

/// The field is told where the migration is shown, and outlives the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_divides_by_the_same_field() -> Result<()> {
    let bed = synced("route-successor", documents()).await?;
    divide(&bed).await?;
    let Bed { old, new, proxy, .. } = bed;
    proxy.shutdown().await;
    let proxy = super::support::proxy(&old.uri(), Some(&new.uri())).await?;
    let operator = super::support::Operator::of(&proxy, "m");
    operator.ready().await?;
    ensure!(operator.engine.get("m").await?.namespaces == [by_tenant()]);
    let placed = operator.progress().await?.placements;
    ensure!(placed.iter().any(|placed| placed.route_key.as_deref() == Some("tenant")), "{placed:?}");
    let client = Client::with_uri_str(uri(&proxy)).await?;
    let c = client.database("shop").collection::<Document>("c");
    for tenant in tenants()? {
        let done = c.update_one(doc! { "tenant": tenant, "n": 1 }, doc! { "$inc": { "count": 5 } }).await?;
        ensure!(done.modified_count == 1, "{done:?}");
    }
    operator.until_level().await?;
    super::support::until_equal(&old.uri(), &new.uri(), "shop.c").await?;
    proxy.shutdown().await;
    Ok(())
}
