//! Values that a server would make or change.

use crate::support::bed::{Bed, by_id, insert, update, with_id};
use anyhow::{Context as _, Result, ensure};
use bson::raw::RawBson;
use bson::{RawArrayBuf, RawDocumentBuf, Timestamp, cstr, doc, rawdoc};

const ZERO: Timestamp = Timestamp { time: 0, increment: 0 };

/// Documents nested as deep as servers store them.
fn deep() -> RawDocumentBuf {
    let mut document = rawdoc! { "end": 1 };
    for _ in 0..170 {
        document = rawdoc! { "d": document };
    }
    document
}

async fn strange_values(bed: &Bed, round: &str) -> Result<()> {
    let id = |name: &str| RawBson::String(format!("{name}-{round}"));
    let of = |name: &str| by_id(&id(name));
    let zeros = rawdoc! { "t": ZERO, "in": { "t": ZERO, "l": [ZERO] } };
    bed.write(insert([with_id(id("ts"), &zeros), with_id(id("ts-in"), &rawdoc! { "in": { "t": ZERO } })]))
        .await?;
    bed.write(insert([with_id(id("ts-replace"), &rawdoc! { "a": 1 })])).await?;
    bed.write(update(of("ts-replace"), zeros.clone())).await?;
    bed.write(insert([with_id(id("ts-set"), &rawdoc! { "a": 1 })])).await?;
    bed.write(update(of("ts-set"), rawdoc! { "$set": { "t": ZERO, "x": { "t": ZERO } } })).await?;
    // Only so does a zero stay at the top.
    let literal = rawdoc! { "$replaceWith": { "$literal": with_id(id("ts-stays"), &zeros) } };
    bed.write(insert([with_id(id("ts-stays"), &rawdoc! { "a": 1 })])).await?;
    let mut pipeline = RawArrayBuf::new();
    pipeline.push(literal);
    bed.write(update(of("ts-stays"), pipeline)).await?;

    bed.write(insert(["now", "sys", "rand"].map(|name| with_id(id(name), &rawdoc! { "in": {}, "a": [1] }))))
        .await?;
    let dates = rawdoc! { "$currentDate": { "d": true, "in.t": { "$type": "timestamp" } } };
    bed.write(update(of("now"), dates)).await?;
    let stage = |stage: RawDocumentBuf| {
        let mut pipeline = RawArrayBuf::new();
        pipeline.push(stage);
        pipeline
    };
    bed.write(update(of("sys"), stage(rawdoc! { "$set": { "n": "$$NOW", "c": "$$CLUSTER_TIME" } }))).await?;
    bed.write(update(of("rand"), stage(rawdoc! { "$set": { "r": { "$rand": {} } } }))).await?;

    let mut twice = with_id(id("twice"), &rawdoc! { "a": 1 });
    twice.append(cstr!("b"), "between");
    twice.append(cstr!("a"), 2);
    let mut late_id = rawdoc! { "x": 1, "a": 2 };
    late_id.append(cstr!("_id"), id("late-id"));
    bed.write(insert([
        with_id(id("dollar"), &rawdoc! { "$a": 1, "a.b": { "$c": 2, "d.e": [{ ".": 1 }] }, "": 3 }),
        twice,
        late_id,
        with_id(id("order"), &rawdoc! { "a": 1, "b": 2, "c": 3 }),
        with_id(id("deep"), &deep()),
    ]))
    .await?;
    bed.write(update(of("order"), rawdoc! { "c": 3, "b": 2, "a": 1 })).await?;
    bed.write(update(of("twice"), rawdoc! { "$set": { "z": 1 } })).await?;
    bed.write(update(of("dollar"), rawdoc! { "$set": { "z": 1 } })).await?;
    bed.write(update(of("deep"), rawdoc! { "$set": { "z": 1 } })).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_a_server_would_make_or_change() -> Result<()> {
    let bed = Bed::start("trap-values").await?;
    strange_values(&bed, "before").await?;
    bed.move_begins().await?;
    bed.equal().await?;
    strange_values(&bed, "dual").await?;
    bed.equal().await?;
    bed.half().await?;
    strange_values(&bed, "half").await?;
    for round in ["before", "dual"] {
        let both =
            update(by_id(&RawBson::String(format!("ts-stays-{round}"))), rawdoc! { "$inc": { "a": 1 } });
        bed.write(both).await?;
    }
    bed.equal().await?;
    for round in ["before", "dual", "half"] {
        let kept = bed.c().find_one(doc! { "_id": format!("ts-stays-{round}") }).await?.context("there")?;
        ensure!(kept.get_timestamp("t")? == ZERO, "{kept}");
        let plain = bed.c().find_one(doc! { "_id": format!("ts-{round}") }).await?.context("there")?;
        ensure!(plain.get_timestamp("t")? != ZERO, "{plain}");
        ensure!(plain.get_document("in")?.get_timestamp("t")? == ZERO, "{plain}");
    }
    bed.proxy.shutdown().await;
    Ok(())
}
