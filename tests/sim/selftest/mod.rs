//! The world tested against itself: what the schedules rest on.

mod acknowledging;
mod checking;
mod execution;
mod failover;
mod retries;
mod storage;
mod streams;
mod transport;
mod workload;

use bson::RawDocument;
use bson::raw::RawDocumentBuf;
use reshard::cluster::command::{Reply, Request, SendError, SharedCluster};

use crate::mongo::cluster::{Cluster, ClusterOptions};
use crate::network::Weather;
use crate::process::Process;
use crate::world::World;

/// A world with one cluster and one client, in calm weather.
struct Rig {
    world: World,
    cluster: Cluster,
    process: Process,
    client: SharedCluster,
}

impl Rig {
    fn new(seed: u64) -> Self {
        let world = World::new(seed, Weather::calm());
        let cluster = world.cluster("old", ClusterOptions::default());
        let process = world.process("client");
        let client = world.connect(&process, &cluster);
        Self { world, cluster, process, client }
    }

    /// Runs a test to its end.
    fn run<F: Future<Output = ()> + Send + 'static>(self, test: impl FnOnce(Self) -> F) {
        let world = self.world.clone();
        world.run(test(self)).unwrap();
        world.end();
    }
}

/// Runs a command on the database `app`.
async fn try_ask(client: &SharedCluster, body: RawDocumentBuf) -> Result<Reply, SendError> {
    client.run(Request::new("app", body)).await
}

/// Runs a command on the database `app` that is answered.
async fn ask(client: &SharedCluster, body: RawDocumentBuf) -> Reply {
    try_ask(client, body).await.unwrap()
}

fn field<'a>(reply: &'a Reply, name: &str) -> bson::RawBsonRef<'a> {
    reply.body.get(name).unwrap().unwrap_or(bson::RawBsonRef::Null)
}

/// The code of the first write error.
fn write_error(reply: &Reply) -> Option<&RawDocument> {
    reply.body.get_array("writeErrors").ok()?.into_iter().next()?.ok()?.as_document()
}

/// The documents of a cursor's reply.
fn batch(reply: &Reply) -> Vec<&RawDocument> {
    let cursor = reply.body.get_document("cursor").unwrap();
    let batch = cursor.get_array("firstBatch").or_else(|_| cursor.get_array("nextBatch")).unwrap();
    batch.into_iter().map(|document| document.unwrap().as_document().unwrap()).collect()
}
