//! Everything that runs: two clusters, the proxy, and its files.

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::Args;
use crate::child::{self, Proxy};
use crate::cluster::{Cluster, Topology};
use crate::screen::Screen;

/// What the demo plays on; ends when dropped.
pub(crate) struct Scene {
    pub(crate) proxy: Proxy,
    pub(crate) old: Cluster,
    pub(crate) new: Cluster,
    folder: TempDir,
}

impl Scene {
    pub(crate) async fn start(args: &Args, screen: &Screen) -> Result<Self> {
        // Known before anything is started.
        child::program()?;
        let nodes = usize::from(args.nodes);
        match args.topology {
            Topology::Sharded => screen.phase(
                "Two sharded clusters, and reshard between them",
                "Real mongod processes as shards and config servers, the reshard binary, a MongoDB driver as the \
                 application. The router is a mongos if there is one on this machine; else a stand-in, which \
                 has MongoDB's own routing code decide and knows no transactions.",
            ),
            Topology::ReplicaSets => screen.phase(
                "Two real replica sets, and reshard between them",
                "Nothing is simulated: mongod processes, the reshard binary, a MongoDB driver as the application.",
            ),
        }
        screen.live("starting the servers");
        let cluster = |name: &'static str| Cluster::start(args.topology, name, nodes);
        let (old, new) = tokio::try_join!(cluster("old"), cluster("new"))?;
        let folder = tempfile::Builder::new().prefix("reshard-demo-").tempdir()?;
        screen.live("starting reshard");
        let proxy = Proxy::start(folder.path(), &old.uri(), Some(&new.uri())).await.context("the proxy")?;
        screen.done(&format!("old {}  ({})", old.uri(), old.kind()));
        screen.done(&format!("new {}  ({})", new.uri(), new.kind()));
        screen.done(&format!("reshard {}  (admin API {})", proxy.uri, proxy.api.base()));
        Ok(Self { proxy, old, new, folder })
    }

    /// Says what is known of a failure, and keeps the log.
    pub(crate) fn failed(&mut self) {
        eprintln!("\nThe last lines of reshard's log:\n{}", self.proxy.log_tail());
        self.keep_log();
    }

    /// The log outlives the demo.
    pub(crate) fn keep_log(&mut self) {
        self.folder.disable_cleanup(true);
        eprintln!("\nreshard's whole log: {}", self.proxy.log.display());
    }

    pub(crate) fn show_addresses(&self) {
        println!("\nStill running, until Ctrl-C:");
        println!("  application  {}", self.proxy.uri);
        println!("  admin API    {}", self.proxy.api.base());
        println!("  old          {}", self.old.uri());
        println!("  new          {}", self.new.uri());
        println!("  log          {}", self.proxy.log.display());
    }

    pub(crate) async fn end(mut self) {
        self.proxy.end().await;
    }
}
