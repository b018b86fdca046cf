//! The command line tool, and what is left when it is killed.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reshard_testbed::{Standalone, wait_for};

const PATIENCE: Duration = Duration::from_secs(30);

/// A set of one started by the tool: its URI, and the process id and the log of its (first) mongod.
fn up() -> Result<(Child, String, u32, PathBuf)> {
    run(&["up", "--name", "cli", "--auth", "ann:secret"])
}

fn run(arguments: &[&str]) -> Result<(Child, String, u32, PathBuf)> {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_reshard-testbed"))
        .args(arguments)
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
    let log = line.split_once(" log ").context("no log")?.1.trim();
    Ok((tool, uri.trim().to_owned(), pid.context("no pid")?.parse()?, PathBuf::from(log)))
}

async fn gone(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}");
    wait_for("the server to be gone", PATIENCE, || async { !Path::new(&path).exists() }).await
}

#[tokio::test]
async fn runs_until_stdin_closes() {
    let (mut tool, uri, pid, log) = up().unwrap();
    assert!(
        uri.starts_with("mongodb://ann:secret@127.0.0.1:")
            && uri.ends_with("?replicaSet=cli&authSource=admin")
    );
    let client = mongodb::Client::with_uri_str(&uri).await.unwrap();
    client.database("shop").collection("orders").insert_one(bson::doc! {"_id": 1}).await.unwrap();
    drop(tool.stdin.take());
    assert!(tool.wait().unwrap().success());
    gone(pid).await.unwrap();
    assert!(!log.parent().unwrap().exists());
}

#[tokio::test]
async fn a_sharded_cluster_runs_until_stdin_closes() {
    let (mut tool, uri, pid, log) = run(&["sharded", "--shards", "1"]).unwrap();
    let client = mongodb::Client::with_uri_str(&uri).await.unwrap();
    client.database("shop").collection("orders").insert_one(bson::doc! {"_id": 1}).await.unwrap();
    let hello = client.database("admin").run_command(bson::doc! {"hello": 1}).await.unwrap();
    assert_eq!(hello.get_str("msg").unwrap(), "isdbgrid");
    drop(tool.stdin.take());
    assert!(tool.wait().unwrap().success());
    gone(pid).await.unwrap();
    assert!(!log.parent().unwrap().exists());
}

/// It names the servers on stderr once it has told the URI.
#[tokio::test]
async fn servers_go_on_though_nobody_reads_stderr() {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_reshard-testbed"));
    tool.args(["sharded", "--shards", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut tool = tool.spawn().unwrap();
    drop(tool.stderr.take());
    let mut uri = String::new();
    BufReader::new(tool.stdout.take().unwrap()).read_line(&mut uri).unwrap();
    let client = mongodb::Client::with_uri_str(uri.trim()).await.unwrap();
    for _ in 0..100 {
        client.database("admin").run_command(bson::doc! {"ping": 1}).await.unwrap();
    }
    drop(tool.stdin.take());
    assert!(tool.wait().unwrap().success());
}

#[tokio::test]
async fn ends_in_order_on_a_signal() {
    let (mut tool, _, pid, log) = up().unwrap();
    kill(Pid::from_raw(i32::try_from(tool.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert!(tool.wait().unwrap().success());
    gone(pid).await.unwrap();
    assert!(!log.parent().unwrap().exists());
}

#[tokio::test]
async fn no_server_outlives_a_killed_tool() {
    let (mut tool, _, pid, log) = up().unwrap();
    tool.kill().unwrap();
    tool.wait().unwrap();
    gone(pid).await.unwrap();
    // The data is removed by the next test bed that starts.
    let _next = Standalone::start().await.unwrap();
    assert!(!log.exists());
}

fn mongod(variables: &[(&str, &Path)]) -> Result<Output> {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_reshard-testbed"));
    Ok(tool.args(["mongod", "--version", "6.0"]).envs(variables.iter().copied()).output()?)
}

#[test]
fn the_users_own_mongod_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("my-mongod");
    // Written by a process of its own: a file that this one has open for writing, a parallel test's
    // child may inherit for a moment, and then it cannot be run.
    let script = "printf '#!/bin/sh\\necho db version v6.0.99\\n' > \"$0\" && chmod +x \"$0\"";
    assert!(Command::new("sh").args(["-c", script]).arg(&own).status().unwrap().success());
    let output = mongod(&[("RESHARD_MONGOD", &own)]).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), own.to_string_lossy());

    let missing = folder.path().join("missing");
    let output = mongod(&[("RESHARD_MONGOD", &missing)]).unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("$RESHARD_MONGOD"), "{error}");
}

#[test]
#[ignore = "downloads a mongod into an empty cache"]
fn parallel_processes_fetch_once() {
    let cache = tempfile::tempdir().unwrap();
    let outputs: Vec<Output> = std::thread::scope(|scope| {
        let fetch = || mongod(&[("RESHARD_TESTBED_CACHE", cache.path())]);
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(fetch)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
    });
    for output in &outputs {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout, outputs[0].stdout);
    }
    let left: Vec<_> =
        std::fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "the lock and the mongod, but there is {left:?}");
}
