//! Obstacles to a move that pass by themselves.

use anyhow::Result;
use bson::{doc, rawdoc};
use reshard_testbed::wait_for;

use crate::support::LONG;
use crate::support::bed::{Bed, insert};

/// The stream of new breaks off, and for a moment it cannot be opened again: what is asked for meanwhile waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_opened_again_refuses_no_move() -> Result<()> {
    let bed = Bed::start("trap-moment").await?;
    bed.move_begins().await?;
    bed.operator.reads(100).await?;
    for percent in [100, 0] {
        let broken = doc! { "failCommands": ["getMore", "aggregate"], "namespace": "admin.$cmd.aggregate", "errorCode": 43 };
        let point = doc! { "configureFailPoint": "failCommand", "mode": { "times": 10 }, "data": broken };
        bed.new.fail_point(point).await?;
        wait_for("the stream of new to be missed", LONG, || async {
            Ok(bed
                .operator
                .progress()
                .await?
                .blocked_by
                .iter()
                .any(|why| why.contains("following new waits")))
        })
        .await?;
        bed.operator.writes(percent).await?;
        bed.write(insert((0..10).map(|id| rawdoc! { "_id": i32::from(percent) + id }))).await?;
    }
    bed.equal().await?;
    bed.proxy.shutdown().await;
    Ok(())
}
