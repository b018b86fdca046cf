//! Clusters that go away or change their primary in every phase, and clusters of different versions.

mod away;
mod stepdowns;
#[path = "../support/mod.rs"]
mod support;
mod versions;

use bson::{Document, doc};

/// Of a cluster whose changes are heard of late, or no longer are.
fn late_streams(late: bool, by_ms: i32) -> Document {
    let streams = doc! {
        "failCommands": ["getMore"], "namespace": "admin.$cmd.aggregate",
        "blockConnection": true, "blockTimeMS": by_ms,
    };
    let mode = if late { "alwaysOn" } else { "off" };
    doc! { "configureFailPoint": "failCommand", "mode": mode, "data": streams }
}
