//! Whether a plant is told, and what its plan made of it.

use anyhow::{Context as _, Result, ensure};
use bson::doc;
use mongodb::options::FindOptions;
use reshard::migration::control::{Control as _, Part, Place, RampDecision, Verdict, Verify};
use reshard_testbed::wait_for;

use crate::draw::{Change, DOCUMENTS, Finder, Kind, Plant};
use crate::field::{Field, RAMPING, decisions, until_ramp};
use crate::support::ramps::{has_broken, looks_until};
use crate::support::{LONG, Operator, me};

impl Field {
    /// By the report that is for it.
    pub(crate) async fn is_told(&self, plant: &Plant, operator: &Operator) -> Result<()> {
        let told = match (plant.kind, plant.finder) {
            (Kind::Index, _) => self.index_is_told(plant, operator).await,
            (Kind::Slow | Kind::Errors, _) => self.new_is_told(plant, operator).await,
            (_, Finder::Shadow) => self.document_is_told(plant, operator).await,
            (_, Finder::Verification) => self.document_is_found(plant, operator).await,
        };
        let report = || futures::executor::block_on(operator.engine.diffs(&operator.name, Part::default()));
        told.with_context(|| format!("{:?}", report()))
    }

    /// By the shadow reads' report: which document, and where in it.
    async fn document_is_told(&self, plant: &Plant, operator: &Operator) -> Result<()> {
        let (kind, place) = match plant.kind {
            Kind::Missing => ("missing", None),
            Kind::Extra => ("extra", None),
            _ => ("changed", Some(place(plant.change))),
        };
        wait_for("shadow reads to tell of the document", LONG, || async {
            let report = operator.engine.diffs(&operator.name, Part::default()).await?;
            Ok(report.shapes.iter().flat_map(|shape| &shape.examples).any(|one| {
                let fields = one.fields.iter().map(|field| (field.path.as_str(), field.kind.as_str()));
                let told = place.is_none_or(|place| fields.clone().any(|field| field == place));
                one.key.as_deref() == Some(&number(key(plant))) && one.kind == kind && told
            }))
        })
        .await
    }

    /// By a verification, which leaves it as it is.
    async fn document_is_found(&self, plant: &Plant, operator: &Operator) -> Result<()> {
        let asked = Verify { repair: false, ..Verify::default() };
        operator.engine.verify(&me(), &plant.name, asked).await?;
        let kind = match plant.kind {
            Kind::Missing => "missing_on_mirror",
            Kind::Extra => "extra_on_mirror",
            _ => "content",
        };
        wait_for("a verification to tell of the document", LONG, || async {
            let progress = operator.progress().await?;
            let ended = progress.verification.is_some_and(|last| !last.running && last.mismatches == 1);
            let found = operator.engine.mismatches(&plant.name).await?;
            let is_it = found.first().is_some_and(|one| {
                let place =
                    plant.kind != Kind::Wrong || one.paths.contains(&place(plant.change).0.to_owned());
                one.key == key(plant).to_string() && one.kind == kind && !one.repaired && place
            });
            Ok(ended && is_it)
        })
        .await
        .with_context(|| {
            format!("{:?}", futures::executor::block_on(operator.engine.mismatches(&plant.name)))
        })
    }

    /// By the explanation of a read that old answers by an index.
    async fn index_is_told(&self, plant: &Plant, operator: &Operator) -> Result<()> {
        // Explained as soon as it is seen, since no read of its shape has been yet.
        let by_rank = || FindOptions::builder().sort(doc! { "rank": 1, "_id": 1 }).build();
        wait_for("an explanation to tell of the index", LONG, || async {
            let filter = doc! { "rank": { "$in": [plant.id, plant.id + 1] } };
            let _is_slow = self.of(plant).find(filter).with_options(by_rank()).await?;
            let report = operator.engine.diffs(&operator.name, Part::default()).await?;
            Ok(report.shapes.iter().any(|shape| {
                let scans = [&shape.old_access, &shape.new_access]
                    .map(|access| access.as_ref().map(|access| access.scan.as_str()));
                scans == [Some("index"), Some("collection")]
            }))
        })
        .await
    }

    /// By the shapes, beside what old does.
    async fn new_is_told(&self, plant: &Plant, operator: &Operator) -> Result<()> {
        wait_for("new to be told to be worse", LONG, || async {
            let list = operator.engine.shapes(&operator.name, Part::default()).await?;
            let of_command = format!("{{{}: {}", plant.command, plant.name);
            Ok(list.shapes.iter().filter(|shape| shape.text.starts_with(&of_command)).any(|shape| {
                if plant.kind == Kind::Errors {
                    return shape.new.errors > 0 && shape.old.errors == 0;
                }
                let slower = shape.new.p99_ms.zip(shape.old.p99_ms);
                slower.is_some_and(|(new, old)| new > 2000.0 && new > old)
            }))
        })
        .await
    }

    /// Its plan, by the gate that is for it, within two looks.
    pub(crate) async fn has_stopped(&self, plant: &Plant, operator: &Operator, since: i64) -> Result<()> {
        if plant.finder == Finder::Verification {
            return self.waits(operator).await;
        }
        let gate = match plant.kind {
            Kind::Wrong | Kind::Missing | Kind::Extra => "shadow_differences",
            Kind::Index | Kind::Slow => "latency",
            Kind::Errors => "errors",
        };
        // On a busy machine another gate may have been first: then it goes up again, and comes down by its own; but for
        // differences, which are found on old too, and keep it where it is.
        let stops = |one: &&RampDecision| {
            let from_nothing =
                gate == "shadow_differences" && one.act == "hold" && one.from == Place::default();
            let is_over = one.result != "under way";
            is_over && one.at >= since && has_broken(one, gate) && (one.act == "down" || from_nothing)
        };
        let recorded = wait_for("its gate to stop it, and that to be recorded", RAMPING, || async {
            Ok(decisions(operator).await?.iter().any(|one| stops(&one)))
        });
        let recorded = recorded.await;
        let all = decisions(operator).await?;
        recorded.with_context(|| format!("{all:#?}"))?;
        let stop = all.iter().rfind(stops).context("it stopped")?;
        ensure!(stop.why.contains(gate), "{all:#?}");
        if stop.act == "down" {
            ensure!(stop.result == "ok" && stop.to.is_some_and(|to| to.reads == 0), "{all:#?}");
            let looks = looks_until(stop, &all);
            ensure!(looks <= 2, "it took {looks} looks: {all:#?}");
        }
        Ok(())
    }

    /// It goes no further: whatever is known to differ stands in the way.
    async fn waits(&self, operator: &Operator) -> Result<()> {
        let last = operator.progress().await?.verification.and_then(|last| last.finished_at);
        let told = last.context("a verification")?;
        until_ramp(operator, "the plan to wait", |ramp| {
            let ready = ramp.gates.iter().find(|gate| gate.name == "ready");
            ready.is_some_and(|gate| gate.verdict != Verdict::Passed && gate.detail.contains("1 differences"))
        })
        .await?;
        let all = decisions(operator).await?;
        let later = all.iter().filter(|one| one.at > told && one.act == "up").count();
        ensure!(later <= 1, "it went on: {all:#?}");
        ensure!(operator.progress().await?.writes_percent == 0);
        Ok(())
    }
}

/// The `_id` that is told.
fn key(plant: &Plant) -> i32 {
    if plant.kind == Kind::Extra { DOCUMENTS + plant.id } else { plant.id }
}

fn number(id: i32) -> String {
    format!("{{\"$numberInt\":\"{id}\"}}")
}

/// Where a change is seen, and what it is called.
fn place(change: Change) -> (&'static str, &'static str) {
    match change {
        Change::Value => ("text", "value"),
        Change::Type => ("n", "type"),
        Change::FieldLost => ("text", "field_missing"),
        Change::FieldMore => ("more", "field_extra"),
        Change::FieldOrder => ("", "field_order"),
    }
}
