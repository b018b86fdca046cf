//! `_id`s of every type, and one number in many forms.

use std::str::FromStr as _;

use crate::support::bed::{Bed, by_id, delete, insert, raw, update, with_id};
use crate::support::me;
use anyhow::{Context as _, Result, ensure};
use bson::raw::RawBson;
use bson::spec::BinarySubtype;
use bson::{Decimal128, RawArrayBuf, RawDocumentBuf, Timestamp, oid::ObjectId, rawdoc};
use reshard::migration::control::Control as _;

fn decimal(text: &str) -> Decimal128 {
    Decimal128::from_str(text).expect("a decimal")
}

/// `_id`s of every type; each is one key, and no two are equal.
fn ids() -> Vec<RawBson> {
    let nested = rawdoc! { "b": -0.0, "a": [1, 2.5, { "c": null }], "$d": "x" };
    let mut ids: Vec<RawBson> = vec![
        RawBson::Int32(1),
        RawBson::Double(2.0),
        RawBson::Int64(3),
        RawBson::Decimal128(decimal("4.00")),
        RawBson::Double(-0.0),
        RawBson::Double(f64::NAN),
        RawBson::Double(f64::INFINITY),
        RawBson::Decimal128(decimal("-Infinity")),
        RawBson::Double(0.1),
        RawBson::Decimal128(decimal("0.1")),
        RawBson::Int64(9_007_199_254_740_993),
        RawBson::Double(9_007_199_254_740_992.0),
        RawBson::Int64(i64::MAX),
        RawBson::Double(9_223_372_036_854_775_808.0),
        RawBson::Decimal128(decimal("1E+6000")),
        RawBson::Null,
        RawBson::MinKey,
        RawBson::MaxKey,
        RawBson::Boolean(true),
        RawBson::String(String::new()),
        RawBson::String("1".into()),
        RawBson::String("é\u{0}z".into()),
        RawBson::String("x".repeat(1500)),
        RawBson::ObjectId(ObjectId::from_bytes([7; 12])),
        RawBson::DateTime(bson::DateTime::from_millis(-1)),
        RawBson::Timestamp(Timestamp { time: 0, increment: 0 }),
        RawBson::Timestamp(Timestamp { time: 7, increment: 1 }),
        RawBson::JavaScriptCode("f()".into()),
        RawBson::Document(rawdoc! {}),
        RawBson::Document(rawdoc! { "a": 1, "b": 2 }),
        RawBson::Document(rawdoc! { "b": 2, "a": 1 }),
        RawBson::Document(rawdoc! { "a": { "_id": NumberForms::Long.of(1) } }),
    ];
    let mut plain = RawDocumentBuf::new();
    for (name, value) in nested.iter().flatten().filter(|(name, _)| !name.as_str().starts_with('$')) {
        plain.append(name, value);
    }
    ids.push(RawBson::Document(plain));
    for subtype in [BinarySubtype::Generic, BinarySubtype::Uuid, BinarySubtype::UserDefined(0x80)] {
        ids.push(RawBson::Binary(bson::Binary { subtype, bytes: vec![9; 16] }));
    }
    ids
}

/// One number in the types that are one `_id`.
#[derive(Clone, Copy)]
enum NumberForms {
    Int,
    Long,
    Double,
    Decimal,
}

impl NumberForms {
    const ALL: [Self; 4] = [Self::Int, Self::Long, Self::Double, Self::Decimal];

    fn of(self, value: i32) -> RawBson {
        match self {
            Self::Int => RawBson::Int32(value),
            Self::Long => RawBson::Int64(value.into()),
            Self::Double => RawBson::Double(value.into()),
            Self::Decimal => RawBson::Decimal128(decimal(&format!("{value}.00"))),
        }
    }
}

/// Each key by its value: changed, and deleted and made again as another type.
async fn work_on_ids(bed: &Bed, round: i32) -> Result<()> {
    for id in ids() {
        let reply = bed.write(update(by_id(&id), rawdoc! { "$inc": { "n": 1 } })).await?;
        ensure!(reply.get_i32("n")? == 1, "{id:?}: {reply}");
        let find = rawdoc! { "find": "c", "filter": by_id(&id) };
        let found = bed.raw(find).await?;
        let batch = found.get_document("cursor")?.get_array("firstBatch")?;
        ensure!(batch.len() == 1, "{id:?}: {batch:?}");
        let n = batch[0].as_document().context("a document")?.get_i32("n")?;
        ensure!(n == round, "{id:?}: n is {n}, not {round}");
    }
    for (number, from) in (100..).zip(NumberForms::ALL) {
        for (number, to) in (number * 10..).zip(NumberForms::ALL) {
            let _gone = bed.write(delete(by_id(&NumberForms::Int.of(number)))).await?;
            bed.write(insert([with_id(from.of(number), &rawdoc! { "form": "from" })])).await?;
            let gone = bed.write(delete(by_id(&to.of(number)))).await?;
            ensure!(gone.get_i32("n")? == 1, "{number}");
            bed.write(insert([with_id(to.of(number), &rawdoc! { "form": "to" })])).await?;
            let form = NumberForms::ALL[usize::try_from(round).unwrap_or(0) % 4];
            bed.write(update(by_id(&form.of(number)), rawdoc! { "form": round })).await?;
        }
    }
    // A batch that names one key in four forms.
    let incs: Vec<_> = NumberForms::ALL
        .iter()
        .map(|form| rawdoc! { "q": by_id(&form.of(1000)), "u": { "$inc": { "all": 1 } } })
        .collect();
    let mut updates = RawArrayBuf::new();
    incs.into_iter().for_each(|inc| updates.push(inc));
    let reply = bed.write(rawdoc! { "update": "c", "updates": updates }).await?;
    ensure!(reply.get_i32("n")? == 4, "{reply}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_of_every_type_and_one_number_in_many_forms() -> Result<()> {
    let bed = Bed::start("trap-ids").await?;
    bed.write(insert(ids().into_iter().map(|id| with_id(id, &rawdoc! { "n": 0 })))).await?;
    bed.move_begins().await?;
    bed.equal().await?;
    work_on_ids(&bed, 1).await?;
    bed.equal().await?;
    // A change of form that the streams see only when it is over.
    bed.operator.engine.pause(&me(), "m").await?;
    let past = Bed::on(&bed.old).await?;
    for (number, form) in (1000..).zip(NumberForms::ALL) {
        raw(&past, delete(by_id(&form.of(number)))).await?;
        raw(&past, insert([with_id(NumberForms::Double.of(number), &rawdoc! { "form": "past" })])).await?;
    }
    bed.operator.engine.resume(&me(), "m").await?;
    bed.operator.until_bypass(2 * NumberForms::ALL.len() as u64).await?;
    bed.operator.acknowledge().await?;
    bed.operator.until_synced().await?;
    bed.equal().await?;
    bed.half().await?;
    work_on_ids(&bed, 2).await?;
    bed.equal().await?;
    for id in ids() {
        bed.write(delete(by_id(&id))).await?;
    }
    bed.equal().await?;
    bed.write(insert(ids().into_iter().map(|id| with_id(id, &rawdoc! { "n": 2 })))).await?;
    work_on_ids(&bed, 3).await?;
    bed.operator.rollback().await?;
    work_on_ids(&bed, 4).await?;
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}
