//! What comparisons prove: all bytes everything, samples and digests less, and what was cut short goes on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Error, Result, bail, ensure};
use bson::{Bson, Document, doc, rawdoc};
use parking_lot::Mutex;
use reshard::migration::control::{Basis, Mismatch, Verification, Verify};
use reshard::migration::verify::{VERIFIED, Verifier};
use reshard::model::namespace::DATABASE;
use reshard::model::side::Side;

use crate::common::{Pair, eventually};
use crate::{Bed, fill, spoil_little};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_proved_is_said_with_counts_digests_and_times() -> Result<()> {
    let pair = Pair::start().await?;
    fill(&pair, 3000).await?;
    let bed = Bed::start(pair, 50).await?;
    let (state, _) = bed.verify().await;
    let of = &state.collections[0];
    ensure!(state.collections.len() == 1 && of.namespace == "shop.c", "{state:?}");
    ensure!((of.documents_on_old, of.documents_on_new) == (3008, 3008), "{of:?}");
    ensure!(of.digest_of_old == of.digest_of_new && of.digest_of_old.len() == 32, "{of:?}");
    let proved = state.equal_up_to.expect("a proof");
    let before = bed.ctx.mark(Side::Old, Duration::from_secs(5)).await.map_err(Error::msg)?;
    ensure!(
        proved.old.seconds <= before.time && proved.old.seconds + 60 > before.time,
        "{proved:?} {before}"
    );
    // One that only tells.
    bed.unseen(spoil_little).await?;
    let (state, told) = bed.verify_as(Verify { repair: false, ..Verify::default() }).await;
    let of = &state.collections[0];
    ensure!(of.digest_of_old != of.digest_of_new && (of.mismatches, of.repaired) == (1, 0), "{of:?}");
    ensure!(told.len() == 1 && !told[0].repaired && state.failure.is_none(), "{told:?} {state:?}");
    ensure!(state.equal_up_to.is_none() && !bed.are_equal().await?, "{state:?}");
    let (state, _) = bed.verify().await;
    ensure!((state.mismatches, state.repaired) == (1, 1) && state.equal_up_to.is_some(), "{state:?}");
    ensure!(bed.are_equal().await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_differ_are_named() -> Result<()> {
    let pair = Pair::start().await?;
    let bed = Bed::start(pair, 0).await?;
    bed.unseen(async |pair| {
        let document = |price: Bson| doc! { "_id": 1, "lines": [{ "price": 1 }, { "price": price }], "n": 1 };
        pair.on_old(doc! { "insert": "c", "documents": [document(2.into())] }).await?;
        pair.on_new(doc! { "insert": "c", "documents": [document(2_i64.into())] }).await?;
        Ok(())
    })
    .await?;
    let (_, told) = bed.verify().await;
    ensure!(told.len() == 1 && told[0].paths == ["lines.1.price"], "{told:?}");
    Ok(())
}

/// Digests find what they can, and exactly what their list of blind spots says they do not.
#[tokio::test(flavor = "multi_thread")]
async fn digests_keep_to_their_blind_spots() -> Result<()> {
    let pair = Pair::start().await?;
    fill(&pair, 3000).await?;
    let bed = Bed::start(pair, 0).await?;
    let digest = Verify { compare: Basis::Digest, ..Verify::default() };
    let (state, _) = bed.verify_as(digest).await;
    ensure!(
        state.mismatches == 0 && state.compared_documents == 3008 && state.failure.is_none(),
        "{state:?}"
    );
    let of = &state.collections[0];
    ensure!(of.digest_of_old == of.digest_of_new, "{of:?}");
    // It is no proof.
    ensure!(state.equal_up_to.is_none(), "{state:?}");
    bed.unseen(async |pair| {
        let set = |id: i32, value: Bson| doc! { "q": { "_id": id }, "u": { "$set": { "a": value } } };
        // The same number of another type, or with the same integer part: not seen.
        let unseen = [set(10, 10_i64.into()), set(11, 11.0.into()), set(12, 12.7.into())];
        let seen = [set(20, 21.into()), set(21, "21".into()), set(22, Bson::Null)];
        let updates: Vec<Document> = unseen.into_iter().chain(seen).collect();
        pair.on_new(doc! { "update": "c", "updates": updates }).await?;
        spoil_little(pair).await
    })
    .await?;
    let (state, told) = bed.verify_as(digest).await;
    let told: BTreeSet<_> = told.iter().map(|it| it.key.as_str()).collect();
    ensure!(told == ["20", "21", "22", "3"].into(), "{told:?}");
    ensure!(state.repaired == 4 && !bed.are_equal().await?, "{state:?}");
    let (state, told) = bed.verify().await;
    let told: BTreeSet<_> = told.iter().map(|it| it.key.as_str()).collect();
    ensure!(told == ["10", "11", "12"].into() && state.repaired == 3, "{told:?}");
    ensure!(bed.are_equal().await?);
    Ok(())
}

/// Large enough for several ranges.
async fn fill_ranges(pair: &Pair) -> Result<()> {
    let text = "x".repeat(4000);
    for first in (0..4000).step_by(500) {
        let documents: Vec<Document> =
            (first..first + 500).map(|id| doc! { "_id": id, "a": id, "text": &text }).collect();
        pair.on_old(doc! { "insert": "c", "documents": documents.clone() }).await?;
        pair.on_new(doc! { "insert": "c", "documents": documents }).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_compares_a_part_and_proves_nothing() -> Result<()> {
    let pair = Pair::start().await?;
    fill_ranges(&pair).await?;
    let bed = Bed::start(pair, 0).await?;
    let (state, _) = bed.verify_as(Verify { sample_percent: 30.0, ..Verify::default() }).await;
    ensure!(state.failure.is_none() && state.mismatches == 0 && state.equal_up_to.is_none(), "{state:?}");
    ensure!((1..3000).contains(&state.compared_documents), "{state:?}");
    Ok(())
}

/// What an earlier process has compared is not compared again, and counts.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_cut_short_goes_on_where_it_was() -> Result<()> {
    let pair = Pair::start().await?;
    fill_ranges(&pair).await?;
    let bed = Bed::start(pair, 0).await?;
    bed.unseen(async |pair| {
        let every_tenth =
            doc! { "q": { "_id": { "$mod": [10, 0] } }, "u": { "$set": { "a": 0.5 } }, "multi": true };
        pair.on_new(doc! { "update": "c", "updates": [every_tenth] }).await.map(|_| ())
    })
    .await?;
    let slowly = Verify { documents_per_second: Some(800.0), parallel: 1, ..Verify::default() };
    let (state, told) = (Arc::new(Mutex::new(Verification::default())), Arc::new(Mutex::new(0_u64)));
    let sink = told.clone();
    let found = move |_: Mismatch| *sink.lock() += 1;
    let verifier = Verifier::new(bed.ctx.clone(), slowly);
    let run = verifier.run(state.clone(), &found);
    let some_are_done = eventually("some ranges to be done", async || {
        let stored = bed.ctx.records.find(DATABASE, VERIFIED, rawdoc! { "done": true }, 100).await?;
        Ok(stored.len() >= 2)
    });
    tokio::select! {
        ended = run => bail!("it ended before it was cut short: {ended:?}"),
        waited = some_are_done => waited?,
    }
    let stored = bed.ctx.records.find(DATABASE, VERIFIED, rawdoc! { "done": true }, 100).await?;
    let done: i64 = stored
        .iter()
        .map(|range| {
            range.get_document("tally").and_then(|tally| tally.get_i64("documents_on_old")).unwrap_or(0)
        })
        .sum();
    ensure!(done > 0 && done < 4000, "{done}");
    let (state, after) = bed.go_on(Verify::default()).await;
    ensure!(state.failure.is_none() && state.equal_up_to.is_some(), "{state:?}");
    ensure!(state.compared_documents == 4000 && state.total_documents == 4000, "{state:?}");
    ensure!(state.collections[0].documents_on_new == 4000, "{state:?}");
    ensure!(state.mismatches == 400 && state.repaired == 400, "{state:?}");
    // Those of the ranges that were done are not told again.
    ensure!(after.len() < 400 && after.len() as u64 + *told.lock() >= 400, "{} {}", after.len(), told.lock());
    ensure!(bed.are_equal().await?);
    Ok(())
}
