//! Whoever reads the log may go away, or stop reading.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use bson::{Document, doc};
use mongodb::Client;
use reshard_testbed::ReplicaSet;

use crate::support::process::Server;

/// Runs the rest of its command line with a log that is a pipe, which is closed at the other end, or full.
const READER: &str = "
import os, sys
what, program = sys.argv[1], sys.argv[2:]
there, here = os.pipe()
os.dup2(here, 2)
if what == 'closed':
    os.close(there)
else:
    os.set_inheritable(there, True)
    os.set_blocking(here, False)
    try:
        while True:
            os.write(here, bytes(65536))
    except BlockingIOError:
        os.set_blocking(here, True)
os.execv(program[0], program)
";

async fn is_served(reader: &str) -> Result<()> {
    let set = ReplicaSet::builder(&format!("log-{reader}")).start().await?;
    let server = Server::prepare(&set.uri(), None)?;
    server.reconfigure(|text| format!("{text}[log]\nlevel = \"trace\"\n"))?;
    let mut command = Command::new("python3");
    command.args(["-c", READER, reader, env!("CARGO_BIN_EXE_reshard")]).stderr(Stdio::null());
    server.spawn_by(command)?;
    server.until_ready().await?;
    let c = Client::with_uri_str(server.uri()).await?.database("shop").collection::<Document>("c");
    for id in 0..500 {
        c.insert_one(doc! { "_id": id }).await?;
    }
    ensure!(c.count_documents(doc! {}).await? == 500 && !server.has_ended());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reader_of_the_log_goes_away() -> Result<()> {
    is_served("closed").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reader_of_the_log_stops_reading() -> Result<()> {
    is_served("stalled").await
}
