//! An application: a script that runs in a process of its own, or the Rust driver in this one.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::rust_driver;
use super::stage::{Phase, Stage};

/// How long one run may take.
const LIMIT: Duration = Duration::from_secs(120);

/// What runs.
pub(crate) enum Application {
    /// A program with its arguments.
    Script(Vec<OsString>),
    /// The driver for Rust.
    Rust,
}

/// An application in the middle of a change of phase.
pub(crate) enum Across {
    Script(Box<Child>, JoinHandle<std::io::Result<String>>),
    Rust(oneshot::Sender<()>, JoinHandle<Result<()>>),
}

impl Application {
    /// The script with one more argument.
    pub(crate) fn with(self, word: &str) -> Result<Self> {
        let Self::Script(mut words) = self else { bail!("not a script") };
        words.push(word.into());
        Ok(Self::Script(words))
    }

    /// Runs it inside one phase; it fails if the application does.
    pub(crate) async fn run(&self, stage: &Stage, phase: Phase) -> Result<()> {
        let begun = std::time::Instant::now();
        match self {
            Self::Rust => {
                let run = tokio::time::timeout(LIMIT, rust_driver::run(stage, phase));
                run.await.context("it takes too long")??;
            }
            Self::Script(_) => {
                let child = self.command(stage, phase)?.stdin(Stdio::null()).spawn()?;
                let output = tokio::time::timeout(LIMIT, child.wait_with_output());
                let output = output.await.context("the script takes too long")??;
                let said = String::from_utf8_lossy(&output.stdout);
                print!("{}:\n{said}", phase.name());
                ensure!(output.status.success(), "in phase {}: {}\n{said}", phase.name(), output.status);
            }
        }
        println!("phase {}: {:?}", phase.name(), begun.elapsed());
        Ok(())
    }

    /// Starts it in `before`; gives it once it has opened what is to live on in `after`.
    pub(crate) async fn across(&self, stage: &Stage, before: Phase, after: Phase) -> Result<Across> {
        if matches!(self, Self::Rust) {
            let (ready, opened) = oneshot::channel();
            let (changed, go_on) = oneshot::channel();
            let task = tokio::spawn(rust_driver::across(stage.uri(), before, after, ready, go_on));
            if opened.await.is_err() {
                task.await??;
                bail!("it ended too early");
            }
            return Ok(Across::Rust(changed, task));
        }
        let mut command = self.command(stage, before)?;
        let mut child = command.env("RESHARD_ACROSS", after.name()).stdin(Stdio::piped()).spawn()?;
        let mut said = BufReader::new(child.stdout.take().context("stdout")?);
        let mut line = String::new();
        while line != "ready\n" {
            line.clear();
            let read = tokio::time::timeout(LIMIT, said.read_line(&mut line));
            if read.await.context("the script is not ready in time")?? == 0 {
                break;
            }
            if line.starts_with("FAILED") {
                said.read_to_string(&mut line).await?;
                bail!("{line}");
            }
        }
        ensure!(line == "ready\n", "the script ended too early: {}", child.wait().await?);
        let rest = tokio::spawn(async move {
            let mut text = String::new();
            said.read_to_string(&mut text).await.map(|_| text)
        });
        Ok(Across::Script(Box::new(child), rest))
    }

    fn command(&self, stage: &Stage, phase: Phase) -> Result<Command> {
        let Self::Script(words) = self else { bail!("not a script") };
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .env("RESHARD_URI", stage.uri())
            .env("RESHARD_PHASE", phase.name())
            .env("RESHARD_OLD", stage.old.uri())
            .env("RESHARD_NEW", stage.new.uri())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        Ok(command)
    }
}

impl Across {
    /// Lets it go on after the change.
    pub(crate) async fn finish(self) -> Result<()> {
        match self {
            Self::Rust(changed, task) => {
                _ = changed.send(());
                tokio::time::timeout(LIMIT, task).await.context("it takes too long")???;
            }
            Self::Script(mut child, rest) => {
                let mut stdin = child.stdin.take().context("stdin")?;
                _ = stdin.write_all(b"go\n").await;
                drop(stdin);
                let status = tokio::time::timeout(LIMIT, child.wait());
                let status = status.await.context("the script takes too long")??;
                let said = rest.await??;
                ensure!(status.success(), "across the change: {status}\n{said}");
                print!("across: {said}");
            }
        }
        Ok(())
    }
}
