//! Two clusters, the program between them, and its operator.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bson::{Document, doc};
use hyper::http::{HeaderMap, Method};
use reshard::cli::client::Client;
use reshard_testbed::{ReplicaSet, wait_for, wait_for_value};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

const LIMIT: Duration = Duration::from_secs(60);
/// Migrations with what they move: one whose writes can be divided, one that moves in one step, one that stays.
/// `media` are files in GridFS, whose chunks have a unique index.
const MIGRATIONS: [(&str, &[&str]); 3] = [
    ("items", &["app.items"]),
    ("accounts", &["app.accounts", "app.orders", "app.media.files", "app.media.chunks"]),
    ("stock", &["app.stock"]),
];

/// What an application finds the migration at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// No new cluster.
    Plain,
    /// Both clusters are written to and equal.
    Dual,
    /// Half of the reads are served by new.
    Reads,
    /// Half of `app.items` belongs to new.
    Half,
    /// All of `app.items`, `app.accounts` and `app.orders` belongs to new.
    Moved,
}

impl Phase {
    pub(crate) const ALL: [Self; 5] = [Self::Plain, Self::Dual, Self::Reads, Self::Half, Self::Moved];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Dual => "dual",
            Self::Reads => "reads",
            Self::Half => "half",
            Self::Moved => "moved",
        }
    }
}

/// Which of the proxy's faces applications connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Face {
    /// A router, where applications log in.
    Mongos,
    /// A replica set with one secondary.
    ReplicaSet,
    /// A service behind a balancer.
    LoadBalanced,
}

impl Face {
    fn logs_in(self) -> bool {
        self == Self::Mongos
    }
}

/// The listeners beside `[listen]`, on free ports.
const LISTENERS: &str = "[listeners.set]\naddress = \"127.0.0.1:0\"\nface = \"replica-set\"\nset_name = \"app\"\n\
                         secondaries = [{ address = \"127.0.0.1:0\" }]\n\
                         [listeners.service]\naddress = \"127.0.0.1:0\"\nface = \"load-balanced\"\n";

/// The program, running.
struct Program {
    child: Child,
    log: PathBuf,
    address: String,
    /// By the name of the listener.
    addresses: Vec<(String, String)>,
    admin: Client,
}

/// Two clusters and a proxy.
pub(crate) struct Stage {
    pub(crate) old: ReplicaSet,
    pub(crate) new: ReplicaSet,
    face: Face,
    folder: tempfile::TempDir,
    program: Program,
}

impl Stage {
    /// With a proxy that knows the old cluster only; old and new have so many members.
    pub(crate) async fn start(name: &str, face: Face, members: [usize; 2]) -> Result<Self> {
        let start = |name: String, members| async move {
            let builder = ReplicaSet::builder(&name).nodes(members);
            if face.logs_in() { builder.auth("root", "root").start().await } else { builder.start().await }
        };
        let (old, new) = tokio::try_join!(
            start(format!("{name}-old"), members[0]),
            start(format!("{name}-new"), members[1])
        )?;
        if face.logs_in() {
            let roles = ["readWriteAnyDatabase", "dbAdminAnyDatabase", "clusterMonitor"];
            let user = doc! { "createUser": "app", "pwd": "secret", "roles": roles.to_vec() };
            old.client().await?.database("admin").run_command(user).await?;
        }
        let folder = tempfile::tempdir()?;
        let program = Program::start(folder.path().join("plain"), face, &old.uri(), None).await?;
        Ok(Self { old, new, face, folder, program })
    }

    /// The connection string of applications.
    pub(crate) fn uri(&self) -> String {
        let of = |listener: &str| -> Vec<_> {
            let all = self.program.addresses.iter().filter(|(name, _)| name == listener);
            all.map(|(_, address)| address.as_str()).collect()
        };
        match self.face {
            Face::Mongos => format!("mongodb://app:secret@{}/", self.program.address),
            Face::ReplicaSet => format!("mongodb://{}/?replicaSet=app", of("set").join(",")),
            Face::LoadBalanced => format!("mongodb://{}/?loadBalanced=true", of("service").join(",")),
        }
    }

    /// The end of the proxy's log.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.program.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Starts the proxy again, with the new cluster. What migrates is there by then, used or not.
    pub(crate) async fn configure_new(&mut self) -> Result<()> {
        let app = self.old.client().await?.database("app");
        let there = app.list_collection_names().await?;
        for name in
            ["media.files", "media.chunks"].into_iter().filter(|name| !there.contains(&(*name).to_owned()))
        {
            app.create_collection(name).await?;
        }
        if self.face.logs_in() {
            self.copy_user().await?;
        }
        self.program.stop().await?;
        let folder = self.folder.path().join("migrating");
        self.program = Program::start(folder, self.face, &self.old.uri(), Some(&self.new.uri())).await?;
        Ok(())
    }

    /// As mongodump and mongorestore do.
    async fn copy_user(&self) -> Result<()> {
        let of = |client: mongodb::Client| client.database("admin").collection::<Document>("system.users");
        let stored = of(self.old.client().await?).find_one(doc! { "user": "app" }).await?;
        of(self.new.client().await?).insert_one(stored.context("the user of applications")?).await?;
        Ok(())
    }

    /// Brings the migrations to `phase`, from the one before it.
    pub(crate) async fn enter(&self, phase: Phase) -> Result<()> {
        match phase {
            Phase::Plain => Ok(()),
            Phase::Dual => self.start_migrations().await,
            Phase::Reads => {
                self.set("items", "reads", 50).await?;
                self.set("accounts", "reads", 50).await?;
                self.set("stock", "reads", 50).await
            }
            Phase::Half => self.set("items", "writes", 50).await,
            Phase::Moved => {
                self.set("accounts", "reads", 100).await?;
                self.set("items", "reads", 100).await?;
                self.set("accounts", "writes", 100).await?;
                self.set("items", "writes", 100).await
            }
        }
    }

    async fn start_migrations(&self) -> Result<()> {
        for (name, namespaces) in MIGRATIONS {
            let namespaces: Vec<_> = namespaces.iter().map(|name| json!({ "namespace": name })).collect();
            let body = json!({ "name": name, "namespaces": namespaces });
            self.ask(Method::POST, "/v1/migrations", Some(body)).await?;
            self.ask(Method::POST, &format!("/v1/migrations/{name}/start"), None).await?;
        }
        for (name, _) in MIGRATIONS {
            self.until_free_to_move(name).await?;
        }
        Ok(())
    }

    async fn set(&self, name: &str, what: &str, percent: u8) -> Result<()> {
        self.until_free_to_move(name).await?;
        let body = json!({ "percent": percent });
        let answer = self.ask(Method::PUT, &format!("/v1/migrations/{name}/{what}"), Some(body)).await?;
        ensure!(answer["percent"] == percent, "{answer}");
        Ok(())
    }

    async fn until_free_to_move(&self, name: &str) -> Result<()> {
        let path = format!("/v1/migrations/{name}/progress");
        wait_for("the migration to be synced and free to move", LIMIT, || async {
            let progress = self.ask(Method::GET, &path, None).await?;
            if progress["can_cut_over"] != true {
                let reasons = progress["blocked_by"].as_array().context("reasons")?;
                let lacking = |why: &Value| why.as_str().is_some_and(|why| why.contains("migrate verify"));
                if reasons.iter().all(lacking) && progress["verification"]["running"] != true {
                    self.ask(Method::POST, &format!("/v1/migrations/{name}/verify"), None).await?;
                }
                bail!("{progress}");
            }
            Ok(true)
        })
        .await
    }

    /// Both clusters have the same in the collections that move.
    pub(crate) async fn both_sides_are_equal(&self) -> Result<()> {
        for namespace in MIGRATIONS.iter().flat_map(|(_, namespaces)| *namespaces) {
            wait_for("both clusters to be equal", LIMIT, || async {
                let comparison =
                    reshard_loadtest::compare(&self.old.uri(), &self.new.uri(), namespace).await?;
                ensure!(comparison.is_equal(), "{namespace}: {comparison}");
                Ok(true)
            })
            .await?;
        }
        Ok(())
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        ask(&self.program.admin, method, path, body).await
    }
}

impl Program {
    async fn start(folder: PathBuf, face: Face, old: &str, new: Option<&str>) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        let (config, log) = (folder.join("reshard.toml"), folder.join("log"));
        let new = new.map(|uri| format!("[new]\nuri = {uri:?}\n")).unwrap_or_default();
        let login = face.logs_in();
        // A debug build between two servers on a busy machine needs more time than the default.
        let text = format!(
            "[listen]\naddress = \"127.0.0.1:0\"\nlogin = {login}\n[old]\nuri = {old:?}\n{new}{LISTENERS}[admin]\naddress = \
             \"127.0.0.1:0\"\n[migration]\nmax_pause_ms = 3000\nlease_ms = 6000\n[log]\nlevel = \
             \"info,reshard::router=debug\"\nformat = \"json\"\n"
        );
        fs::write(&config, text)?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_reshard"))
            .args(["serve", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .kill_on_drop(true)
            .spawn()?;
        let serving = wait_for_value("the proxy to serve", LIMIT, || {
            let found = look(&mut child, &log);
            async move { found }
        })
        .await?;
        let field = |name: &str| -> Result<String> {
            let fields = serving.get("fields").unwrap_or(&serving);
            let text = fields[name].as_str().with_context(|| format!("{name} in {serving}"))?;
            Ok(text.trim_start_matches("Some(").trim_end_matches(')').to_owned())
        };
        let (address, admin) = (field("address")?, field("admin")?);
        let admin = Client::new(&format!("http://{admin}"), HeaderMap::new())?;
        wait_for("the proxy to be ready", LIMIT, || async {
            ask(&admin, Method::GET, "/readyz", None).await.map(|_| true)
        })
        .await?;
        let addresses = listening(&log)?;
        Ok(Self { child, log, address, addresses, admin })
    }

    async fn stop(&mut self) -> Result<()> {
        let id = self.child.id().context("the proxy has ended by itself")?;
        let killed = Command::new("kill").arg(id.to_string()).status().await?;
        ensure!(killed.success());
        let status =
            tokio::time::timeout(LIMIT, self.child.wait()).await.context("the proxy does not stop")??;
        ensure!(status.success(), "the proxy ended with {status}");
        Ok(())
    }
}

/// The listeners and where they listen, as the log says.
fn listening(log: &PathBuf) -> Result<Vec<(String, String)>> {
    let text = fs::read_to_string(log)?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let fields = lines.map(|line| line.get("fields").cloned().unwrap_or(line));
    let found = fields.filter_map(|fields| {
        Some((fields["listener"].as_str()?.to_owned(), fields["address"].as_str()?.to_owned()))
    });
    Ok(found.collect())
}

/// The line of the log that says where it serves.
fn look(child: &mut Child, log: &PathBuf) -> Result<Option<Value>> {
    let text = fs::read_to_string(log)?;
    let serving = text.lines().find(|line| line.contains("serving clients"));
    if let Some(line) = serving {
        return Ok(Some(serde_json::from_str(line)?));
    }
    if let Some(status) = child.try_wait()? {
        bail!("it ended with {status}:\n{text}");
    }
    Ok(None)
}

async fn ask(admin: &Client, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
    let what = format!("{method} {path}");
    let answer = admin.send(method, path, body.map(|body| body.to_string().into())).await?;
    let text = String::from_utf8_lossy(&answer.body);
    ensure!(answer.status.is_success(), "{what}: {} {text}", answer.status);
    serde_json::from_slice(&answer.body).with_context(|| format!("{what}: {text}"))
}
