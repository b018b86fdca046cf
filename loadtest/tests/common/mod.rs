//! A mongod of its own for a test.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bson::{Document, doc};
use mongodb::{Client, Collection};
use reshard_loadtest::{Load, LoadConfig, Outcome, Profile};

/// A replica set of one member; ends with the value.
pub struct Server {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Server {
    /// Starts it, or `None` if there is no mongod on this machine.
    pub async fn start() -> Option<Server> {
        let program = std::env::var("RESHARD_MONGOD").unwrap_or_else(|_| "mongod".into());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new(&program)
            .args(["--replSet", "x", "--bind_ip", "127.0.0.1", "--wiredTigerCacheSizeGB", "0.25", "--quiet"])
            .arg("--dbpath")
            .arg(dir.path())
            .arg("--port")
            .arg(port.to_string())
            .stdout(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            eprintln!("skipped: no {program}; set RESHARD_MONGOD");
            return None;
        };
        let server = Server { child, port, _dir: dir };
        server.initiate().await;
        Some(server)
    }

    async fn initiate(&self) {
        let admin = self.client().await.database("admin");
        let member = doc! { "_id": 0, "host": format!("127.0.0.1:{}", self.port) };
        let config = doc! { "replSetInitiate": { "_id": "x", "members": [member] } };
        admin.run_command(config).await.unwrap();
        for _ in 0..600 {
            let hello = admin.run_command(doc! { "hello": 1 }).await.unwrap();
            if hello.get_bool("isWritablePrimary").unwrap_or(false) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no primary");
    }

    pub fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}/?directConnection=true", self.port)
    }

    pub async fn client(&self) -> Client {
        Client::with_uri_str(self.uri()).await.unwrap()
    }

    pub async fn collection(&self, name: &str) -> Collection<Document> {
        self.client().await.database("loadtest").collection(name)
    }

    /// Kills it without warning and starts it again on the same data.
    pub async fn crash(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let program = std::env::var("RESHARD_MONGOD").unwrap_or_else(|_| "mongod".into());
        let mut command = Command::new(program);
        command.args(["--replSet", "x", "--bind_ip", "127.0.0.1", "--quiet"]);
        command.arg("--dbpath").arg(self._dir.path()).arg("--port").arg(self.port.to_string());
        self.child = command.stdout(Stdio::null()).spawn().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A small load.
pub fn config(server: &Server, collection: &str, profile: Profile) -> LoadConfig {
    LoadConfig {
        uri: server.uri(),
        collection: collection.into(),
        profile,
        workers: 4,
        own_keys_per_worker: 60,
        documents: 500,
        document_size: 400,
        hot_keys: 5,
        drop_first: true,
        ..LoadConfig::default()
    }
}

/// Runs it for some seconds.
pub async fn run(config: LoadConfig, seconds: f64) -> Outcome {
    Load::prepare(&config).await.unwrap();
    let load = Load::start(config).await.unwrap();
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    load.stop().await
}
