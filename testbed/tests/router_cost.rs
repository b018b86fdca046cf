//! What the router of the test bed costs. Prints; asserts nothing, since machines differ.

use std::time::Instant;

use bson::{Document, doc};
use mongodb::options::{ReadConcern, ReadPreference};
use reshard_testbed::ShardedCluster;

const COMMANDS: i32 = 3000;

struct Meter<'a> {
    cluster: &'a ShardedCluster,
    begin: Instant,
    own: f64,
    engine: f64,
    shards: f64,
}

impl<'a> Meter<'a> {
    fn start(cluster: &'a ShardedCluster) -> Self {
        let (own, engine, shards) = Self::times(cluster);
        Self { cluster, begin: Instant::now(), own, engine, shards }
    }

    fn times(cluster: &ShardedCluster) -> (f64, f64, f64) {
        let own = cluster.router().own_cpu_seconds();
        let shards = cluster.shards().iter().map(|shard| shard.cpu_seconds()).sum();
        (own, cluster.router().cpu_seconds() - own, shards)
    }

    fn print(self, what: &str) {
        let per = |seconds: f64| seconds * 1e6 / f64::from(COMMANDS);
        let (own, engine, shards) = Self::times(self.cluster);
        println!(
            "{what:24} {:6.0} us; CPU: router {:4.0} us, engine {:4.0} us, shards {:4.0} us",
            per(self.begin.elapsed().as_secs_f64()),
            per(own - self.own),
            per(engine - self.engine),
            per(shards - self.shards),
        );
    }
}

#[tokio::test]
#[ignore = "prints what commands cost"]
async fn cost_of_commands() {
    let cluster = ShardedCluster::builder().start().await.unwrap();
    cluster.shard_collection("shop.orders", doc! {"k": 1}).await.unwrap();
    cluster.split("shop.orders", doc! {"k": COMMANDS / 2}).await.unwrap();
    cluster.move_chunk("shop.orders", doc! {"k": COMMANDS / 2}, 1, true).await.unwrap();
    let client = cluster.client().await.unwrap();
    let orders = client.database("shop").collection::<Document>("orders");

    let meter = Meter::start(&cluster);
    for k in 0..COMMANDS {
        client.database("admin").run_command(doc! {"ping": k}).await.unwrap();
    }
    meter.print("ping");
    let meter = Meter::start(&cluster);
    for k in 0..COMMANDS {
        orders.insert_one(doc! {"_id": k, "k": k, "n": 0}).await.unwrap();
    }
    meter.print("insert");
    let meter = Meter::start(&cluster);
    for k in 0..COMMANDS {
        assert!(orders.find_one(doc! {"k": k}).await.unwrap().is_some());
    }
    meter.print("find by key");
    let meter = Meter::start(&cluster);
    for k in 0..COMMANDS {
        assert!(orders.find_one(doc! {"_id": k}).await.unwrap().is_some());
    }
    meter.print("find by _id");
    let meter = Meter::start(&cluster);
    for k in 0..COMMANDS {
        let find = orders.find_one(doc! {"k": k}).read_concern(ReadConcern::majority());
        assert!(find.await.unwrap().is_some());
    }
    meter.print("find, majority");
    let meter = Meter::start(&cluster);
    for k in 0..COMMANDS {
        orders.update_one(doc! {"k": k}, doc! {"$inc": {"n": 1}}).await.unwrap();
    }
    meter.print("update");
    let meter = Meter::start(&cluster);
    for k in 0..COMMANDS {
        orders.find_one_and_update(doc! {"k": k}, doc! {"$inc": {"n": 1}}).await.unwrap();
    }
    meter.print("findAndModify");
    let mut session = client.start_session().causal_consistency(true).await.unwrap();
    let meter = Meter::start(&cluster);
    for k in 0..COMMANDS / 2 {
        orders.update_one(doc! {"k": k}, doc! {"$inc": {"n": 1}}).session(&mut session).await.unwrap();
        let find = orders.find_one(doc! {"k": k}).selection_criteria(ReadPreference::Primary.into());
        assert!(find.session(&mut session).await.unwrap().is_some());
    }
    meter.print("causal, a half each");
}
