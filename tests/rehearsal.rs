//! Rehearsals on real servers: new gets what the application reads on old, some times over, and what it cannot take ends
//! it while the application notices nothing.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use bson::{Document, doc};
use futures::TryStreamExt as _;
use mongodb::{Client, Collection};
use reshard::migration::control::{Control as _, RehearsalView, SetRehearsal};
use reshard_testbed::wait_for;
use support::{LONG, Operator, me, proxy, two_sets, uri};

const DOCUMENTS: i32 = 200;

/// Reads one document after the other, until told to stop; fails with the first error.
struct Reader {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Reader {
    fn start(things: Collection<Document>) -> Self {
        let (stop, reads) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (told, done) = (stop.clone(), reads.clone());
        let task = tokio::spawn(async move {
            for id in (0..DOCUMENTS).cycle() {
                if told.load(Ordering::Relaxed) {
                    break;
                }
                things.find_one(doc! { "_id": id }).await?.context("a document")?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { stop, reads, task }
    }

    fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    async fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

async fn rehearse(operator: &Operator, factor: f64) -> Result<RehearsalView> {
    let asked = SetRehearsal { factor, ..SetRehearsal::default() };
    let view = operator.engine.set_rehearsal(&me(), &operator.name, asked).await;
    view.map_err(|error| anyhow::anyhow!("{error:?}"))
}

async fn seen(operator: &Operator) -> Result<RehearsalView> {
    operator.engine.rehearsal(&operator.name).await.map_err(|error| anyhow::anyhow!("{error:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_meets_the_load_and_what_it_cannot_take_ends_it() -> Result<()> {
    let (old, new) = two_sets("rehearsal").await?;
    let proxy = proxy(&old.uri(), Some(&new.uri())).await?;
    let things = Client::with_uri_str(uri(&proxy)).await?.database("shop").collection::<Document>("things");
    things.insert_many((0..DOCUMENTS).map(|id| doc! { "_id": id })).await?;
    let on_new = new.client().await?.database("shop");
    let operator = Operator::of(&proxy, "rehearsal");
    operator.create(&["shop.things"]).await?;
    ensure!(rehearse(&operator, 1.0).await.is_err(), "nothing is on new yet");
    operator.start().await?;
    operator.until_synced().await?;
    on_new.run_command(doc! { "profile": 2 }).await?;

    let reader = Reader::start(things.clone());
    let before = reader.reads();
    rehearse(&operator, 3.0).await?;
    wait_for("reads to be repeated", LONG, || async {
        Ok(seen(&operator).await?.counts.rehearsal_reads >= 600)
    })
    .await?;
    let view = seen(&operator).await?;
    let (asked, counts) = (reader.reads() - before + 1, view.counts);
    // One read may be under way: it counts here, and not yet there.
    let all = counts.rehearsal_reads + counts.rehearsal_errors + counts.rehearsal_dropped;
    ensure!(all <= 3 * asked && counts.rehearsal_errors == 0, "{asked} reads: {counts:?}");
    ensure!(view.old.operations > 0 && view.new.operations >= 600 && view.shapes.len() == 1, "{view:?}");
    ensure!(view.ended.is_none() && view.new.p99_ms.is_some(), "{view:?}");
    let profile = on_new.collection::<Document>("system.profile");
    let repeated = doc! { "command.comment": "reshard rehearsal", "ns": "shop.things" };
    let repeated: Vec<Document> = profile.find(repeated).await?.try_collect().await?;
    let ids: BTreeSet<i32> = repeated
        .iter()
        .filter_map(|one| one.get_document("command").ok()?.get_document("filter").ok()?.get_i32("_id").ok())
        .collect();
    ensure!(
        repeated.len() >= 300 && ids.len() > 50,
        "{} repetitions of {} documents",
        repeated.len(),
        ids.len()
    );

    ensure!(rehearse(&operator, 0.0).await?.ended.as_deref() == Some("stopped"));
    rehearse(&operator, 0.5).await?;
    let data = doc! { "failCommands": ["find"], "errorCode": 50, "namespace": "shop.things" };
    new.fail_point(doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data }).await?;
    wait_for("it to end by itself", LONG, || async { Ok(seen(&operator).await?.ended.is_some()) }).await?;
    let view = seen(&operator).await?;
    ensure!(view.ended.as_deref().is_some_and(|why| why.starts_with("new failed")), "{view:?}");
    ensure!(view.counts.rehearsal_factor == 0.0);
    wait_for("the audit to tell of it", LONG, || async {
        let events = operator.engine.events("rehearsal").await;
        let events = events.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        Ok(events.iter().any(|it| it.who == "rehearsal" && it.what.contains("new failed")))
    })
    .await?;
    let before = reader.reads();
    wait_for("the application to read on", LONG, || async { Ok(reader.reads() > before + 50) }).await?;
    reader.stop().await?;
    proxy.shutdown().await;
    Ok(())
}
