//! A server without replication.

use std::sync::Arc;

use anyhow::{Context, Result};
use mongodb::Client;
use parking_lot::RwLock;

use crate::access::Access;
use crate::binary::{Mongod, Version};
use crate::builder::ServerOptions;
use crate::data_dir::DataDir;
use crate::process::{Node, Plan};

/// A mongod that is no replica set, such as a proxy has to refuse. It runs until this is dropped.
#[derive(Debug)]
pub struct Standalone {
    // Dropped before the data it uses.
    node: Node,
    _data: DataDir,
}

impl Standalone {
    /// Starts one of any version.
    pub async fn start() -> Result<Self> {
        Self::start_version(Version::Any).await
    }

    /// Starts one of this version.
    pub async fn start_version(version: Version) -> Result<Self> {
        let mongod = Mongod::find(version).await?;
        let data = DataDir::create("standalone")?;
        let args = ServerOptions::default().args(&mongod);
        let access = Arc::new(RwLock::new(Access::default()));
        let plan = Plan { name: String::from("standalone"), mongod, folder: data.path(), args, access };
        let node = Node::launch(plan).await.context("starting a standalone server")?;
        Ok(Self { node, _data: data })
    }

    /// `mongodb://host:port/?directConnection=true`
    pub fn uri(&self) -> String {
        self.node.uri()
    }

    /// A client of it.
    pub async fn client(&self) -> Result<Client> {
        self.node.client().await
    }

    /// The server.
    pub fn node(&self) -> &Node {
        &self.node
    }
}
