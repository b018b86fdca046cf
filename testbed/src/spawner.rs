//! Starts server processes that end together with this process, also when it is killed with SIGKILL.
//!
//! `setpriv --pdeathsig KILL` asks the kernel to kill the server when its parent ends. The kernel counts
//! the *thread* that started it as the parent, so all are started by one thread that never ends.

use std::ffi::OsStr;
use std::io;
use std::process::{Child, Command};
use std::sync::{LazyLock, OnceLock, mpsc};
use std::thread;

use anyhow::{Context, Result, anyhow};

struct Request {
    command: Command,
    reply: mpsc::Sender<io::Result<Child>>,
}

static SPAWNER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();

static HAS_SETPRIV: LazyLock<bool> = LazyLock::new(|| {
    let output = Command::new("setpriv").arg("--help").output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("--pdeathsig"))
});

/// A command for `program` that is killed when this process ends. Where `setpriv` is missing the command
/// is a plain one: then only an orderly end (or a panic) of this process takes the server with it.
pub(crate) fn guarded(program: impl AsRef<OsStr>) -> Command {
    if *HAS_SETPRIV {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        return command;
    }
    Command::new(program)
}

/// Spawns `command` from the long-lived thread.
pub(crate) fn spawn(command: Command) -> Result<Child> {
    let sender = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        let run = move || {
            for mut request in requests {
                let child = request.command.spawn();
                // The asker may be gone: nobody would end this child then.
                if let Err(mpsc::SendError(Ok(mut child))) = request.reply.send(child) {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        };
        // Without the thread every later send fails, which is reported there.
        let _ = thread::Builder::new().name(String::from("testbed-spawner")).spawn(run);
        sender
    });
    let name = command.get_program().to_string_lossy().into_owned();
    let (reply, answer) = mpsc::channel();
    sender.send(Request { command, reply }).map_err(|_| anyhow!("the spawner thread is gone"))?;
    answer.recv().context("the spawner thread is gone")?.with_context(|| format!("starting {name}"))
}
