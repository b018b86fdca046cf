//! The command line tool, and what is left when it is killed.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use reshard_testbed::wait_for;

const PATIENCE: Duration = Duration::from_secs(30);

/// A set of one started by the tool: its URI, and the process id of its mongod.
fn up() -> Result<(Child, String, u32)> {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_reshard-testbed"))
        .args(["up", "--name", "cli", "--auth", "ann:secret"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stdout = tool.stdout.take().context("no stdout")?;
    let mut stderr = tool.stderr.take().context("no stderr")?;
    let mut uri = String::new();
    BufReader::new(stdout).read_line(&mut uri)?;
    if uri.is_empty() {
        let mut error = String::new();
        stderr.read_to_string(&mut error)?;
        bail!("no URI: {error}");
    }
    let mut line = String::new();
    BufReader::new(stderr).read_line(&mut line)?;
    let pid = line.split_once(" pid ").and_then(|(_, rest)| rest.split_whitespace().next());
    Ok((tool, uri.trim().to_owned(), pid.context("no pid")?.parse()?))
}

async fn gone(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}");
    wait_for("the server to be gone", PATIENCE, || async { !Path::new(&path).exists() }).await
}

#[tokio::test]
async fn runs_until_stdin_closes() {
    let (mut tool, uri, pid) = up().unwrap();
    assert!(
        uri.starts_with("mongodb://ann:secret@127.0.0.1:")
            && uri.ends_with("?replicaSet=cli&authSource=admin")
    );
    let client = mongodb::Client::with_uri_str(&uri).await.unwrap();
    client.database("shop").collection("orders").insert_one(bson::doc! {"_id": 1}).await.unwrap();
    drop(tool.stdin.take());
    assert!(tool.wait().unwrap().success());
    gone(pid).await.unwrap();
}

#[tokio::test]
async fn no_server_outlives_a_killed_tool() {
    let (mut tool, _, pid) = up().unwrap();
    tool.kill().unwrap();
    tool.wait().unwrap();
    gone(pid).await.unwrap();
}
