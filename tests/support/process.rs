//! The real program as a process of its own, to be killed.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use reshard_testbed::wait_for;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{LONG, wants_verification};

/// A `reshard serve`, on ports that stay the same over restarts.
pub(crate) struct Server {
    folder: TempDir,
    config: PathBuf,
    pub(crate) listen: u16,
    pub(crate) admin: u16,
    child: parking_lot::Mutex<Option<Child>>,
}

/// Nothing else stands in the way of a move.
pub(crate) fn but_for_a_verification(progress: &Value) -> bool {
    let mut reasons = progress["blocked_by"].as_array().into_iter().flatten().filter_map(Value::as_str);
    progress["blocked_by"].is_array() && reasons.all(wants_verification)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Server {
    /// Writes a configuration and starts the program.
    pub(crate) async fn start(old: &str, new: Option<&str>) -> Result<Self> {
        let server = Self::prepare(old, new)?;
        server.restart().await?;
        Ok(server)
    }

    /// Writes a configuration.
    pub(crate) fn prepare(old: &str, new: Option<&str>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (listen, admin) = (free_port()?, free_port()?);
        let new = new.map_or(String::new(), |uri| format!("[new]\nuri = \"{uri}\"\n"));
        let text = format!(
            "[listen]\naddress = \"127.0.0.1:{listen}\"\n[old]\nuri = \"{old}\"\n{new}\
             [admin]\naddress = \"127.0.0.1:{admin}\"\n\
             [migration]\nlease_ms = 3000\nmax_pause_ms = 2000\nbackfill_parallel = 2\n"
        );
        let config = folder.path().join("reshard.toml");
        std::fs::write(&config, text)?;
        Ok(Self { folder, config, listen, admin, child: parking_lot::Mutex::default() })
    }

    /// Starts the program (again), and waits until it is ready.
    pub(crate) async fn restart(&self) -> Result<()> {
        self.spawn()?;
        self.until_ready().await
    }

    pub(crate) fn spawn(&self) -> Result<()> {
        self.spawn_by(Command::new(env!("CARGO_BIN_EXE_reshard")))
    }

    /// Starts what becomes the program when it is given its arguments.
    pub(crate) fn spawn_by(&self, mut command: Command) -> Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log())?;
        let child = command
            .args(["serve", "--config"])
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        *self.child.lock() = Some(child);
        Ok(())
    }

    pub(crate) async fn until_ready(&self) -> Result<()> {
        let ready = wait_for("reshard to be ready", LONG, || async {
            Ok(self.get("/readyz").await.is_ok_and(|(status, _)| status == 200))
        })
        .await;
        ready.with_context(|| self.tail())
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("reshard.log")
    }

    /// All of its log.
    pub(crate) fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// The number of its process.
    pub(crate) fn pid(&self) -> Result<u32> {
        self.child.lock().as_ref().map(Child::id).context("it does not run")
    }

    /// The end of its log.
    pub(crate) fn tail(&self) -> String {
        let text = self.log_text();
        text.lines().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// How many lines of its log have these words.
    pub(crate) fn times_logged(&self, words: &str) -> usize {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        text.lines().filter(|line| line.contains(words)).count()
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid()?)?).context("no process")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Changes its configuration file; returns what was there.
    pub(crate) fn reconfigure(&self, change: impl FnOnce(String) -> String) -> Result<String> {
        let before = std::fs::read_to_string(&self.config)?;
        std::fs::write(&self.config, change(before.clone()))?;
        Ok(before)
    }

    /// Ends it without a chance to do anything.
    pub(crate) fn kill9(&self) -> Result<()> {
        if let Some(mut child) = self.child.lock().take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&self) -> bool {
        self.child.lock().as_mut().is_none_or(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    /// What it told the system when it ended by itself.
    pub(crate) fn exit_code(&self) -> Option<i32> {
        self.child.lock().as_mut().and_then(|child| child.try_wait().ok().flatten()?.code())
    }

    pub(crate) fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}/", self.listen)
    }

    pub(crate) async fn get(&self, path: &str) -> Result<(u16, Value)> {
        self.http("GET", path, None).await
    }

    /// One call of the admin API.
    pub(crate) async fn http(&self, method: &str, path: &str, body: Option<Value>) -> Result<(u16, Value)> {
        let (status, body) = self.text(method, path, body).await?;
        Ok((status, serde_json::from_str(&body).unwrap_or(Value::Null)))
    }

    /// The same, whatever it answers.
    pub(crate) async fn text(&self, method: &str, path: &str, body: Option<Value>) -> Result<(u16, String)> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let body = body.map_or(String::new(), |body| body.to_string());
        let call = async {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.admin)).await?;
            let head = format!(
                "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\nconnection: close\r\n\r\n",
                self.admin,
                body.len()
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
        };
        let answer = tokio::time::timeout(LONG, call).await??;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, body.to_owned()))
    }

    /// A call that must succeed.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let (status, answer) = self.http(method, path, body).await?;
        ensure!(status < 300, "{method} {path}: {status} {answer}");
        Ok(answer)
    }

    /// A call that is repeated until it succeeds, as an operator's script does on 409 and 503.
    pub(crate) async fn insist(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let last = parking_lot::Mutex::new(String::new());
        let answer = parking_lot::Mutex::new(Value::Null);
        let done = wait_for("a call to succeed", LONG, || async {
            match self.call(method, path, body.clone()).await {
                Ok(value) => {
                    *answer.lock() = value;
                    Ok(true)
                }
                Err(error) => {
                    *last.lock() = error.to_string();
                    Ok(false)
                }
            }
        })
        .await;
        if done.is_err() {
            bail!("{}\n{}", last.into_inner(), self.tail());
        }
        Ok(answer.into_inner())
    }

    pub(crate) async fn create_and_start(&self, name: &str, namespace: &str) -> Result<()> {
        self.create_and_start_as(name, json!({ "namespace": namespace })).await
    }

    /// The same with all that can be said of a collection.
    pub(crate) async fn create_and_start_as(&self, name: &str, spec: Value) -> Result<()> {
        let new = json!({ "name": name, "namespaces": [spec] });
        self.insist("POST", "/v1/migrations", Some(new)).await?;
        self.insist("POST", &format!("/v1/migrations/{name}/start"), None).await?;
        Ok(())
    }

    pub(crate) async fn percent(&self, name: &str, what: &str, percent: u8) -> Result<()> {
        let path = format!("/v1/migrations/{name}/{what}");
        self.insist("PUT", &path, Some(json!({ "percent": percent }))).await.map(|_| ())
    }

    pub(crate) async fn until(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
        let last = parking_lot::Mutex::new(Value::Null);
        let waited = wait_for(what, LONG, || async {
            let Ok((200, progress)) = self.get(&format!("/v1/migrations/{name}/progress")).await else {
                return Ok(false);
            };
            let holds = holds(&progress);
            *last.lock() = progress;
            Ok(holds)
        })
        .await;
        waited.with_context(|| format!("{:#}\n{}", last.into_inner(), self.tail()))
    }

    /// Waits until writes may move, and asks for the full verification that this needs, as often as it takes.
    pub(crate) async fn until_free(&self, name: &str) -> Result<()> {
        let verify = format!("/v1/migrations/{name}/verify");
        let waited = wait_for("the migration to be free to move", LONG, || async {
            let Ok((200, progress)) = self.get(&format!("/v1/migrations/{name}/progress")).await else {
                return Ok(false);
            };
            let verifying = progress["verification"]["running"] == true;
            if progress["can_cut_over"] != true && but_for_a_verification(&progress) && !verifying {
                self.http("POST", &verify, None).await?;
            }
            Ok(progress["can_cut_over"] == true)
        })
        .await;
        waited.with_context(|| self.tail())
    }

    pub(crate) async fn until_level(&self, name: &str) -> Result<()> {
        let level = |progress: &Value| {
            let all_through = progress["bypass_writes_total"] == 0;
            but_for_a_verification(progress) && progress["lag_seconds"] == 0.0 && all_through
        };
        self.until(name, "both streams to be level", level).await?;
        // A late reply may be this machine's.
        let (_, metrics) = self.text("GET", "/metrics", None).await?;
        let broken = metrics.lines().find(|line| {
            line.starts_with("reshard_invariant_violations_total{")
                && !line.contains("mirror_does_not_delay")
                && !line.ends_with(" 0")
        });
        ensure!(broken.is_none(), "{broken:?}\n{}", self.tail());
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.kill9();
    }
}
