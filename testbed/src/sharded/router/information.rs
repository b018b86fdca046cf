//! What the cluster says of itself.

use bson::{Document, doc};

use super::Router;
use super::backend::Repeat;
use super::concern::majority;
use super::failure::{Failure, is_ok, truth};

/// Parts of `serverStatus` that mongos lacks.
const NOT_OF_ROUTERS: [&str; 5] = ["repl", "oplogTruncation", "wiredTiger", "opcountersRepl", "flowControl"];

impl Router {
    pub(super) async fn information(
        &self,
        name: &str,
        database: &str,
        command: Document,
    ) -> Result<Document, Failure> {
        match name {
            "listShards" => {
                let shards = self.config.all("config", &doc! {"find": "shards"}).await?;
                Ok(doc! {"shards": shards, "ok": 1.0})
            }
            "currentOp" => self.current_operations(&command).await,
            "killOp" => self.kill_operation(&command).await,
            "serverStatus" => {
                let status = self.engine.ask(database, &command, Repeat::Yes).await?;
                let kept = status.into_iter().filter(|(key, _)| !NOT_OF_ROUTERS.contains(&key.as_str()));
                let mut status: Document = kept.collect();
                if status.contains_key("process") {
                    status.insert("process", "mongos");
                    status.insert("pid", i64::from(std::process::id()));
                }
                Ok(status)
            }
            "appendOplogNote" => self.append_note(&command).await,
            "flushRouterConfig" => {
                self.forget_all();
                self.engine.command("admin", &doc! {"flushRouterConfig": 1}).await?;
                Ok(doc! {"flushed": true, "ok": 1.0})
            }
            "replSetGetStatus" => {
                let message = "replSetGetStatus is not supported through mongos";
                let mut failure = Failure::new(125, "CommandFailed", message);
                failure.0.insert("info", "mongos");
                Err(failure)
            }
            _ => Ok(doc! {"isdbgrid": 1_i64, "hostname": "127.0.0.1", "ok": 1.0}),
        }
    }

    async fn current_operations(&self, command: &Document) -> Result<Document, Failure> {
        let what = doc! {"allUsers": true, "idleConnections": truth(command, "$all"), "localOps": false};
        let own = ["currentOp", "$all", "$ownOps", "lsid"];
        let filter: Document =
            command.clone().into_iter().filter(|(key, _)| !own.contains(&key.as_str())).collect();
        let pipeline = vec![doc! {"$currentOp": what}, doc! {"$match": filter}];
        let aggregate = doc! {"clusterAggregate": 1, "pipeline": pipeline, "cursor": {}};
        Ok(doc! {"inprog": self.engine.all("admin", &aggregate).await?, "ok": 1.0})
    }

    /// Operations have the name of their shard in their number.
    async fn kill_operation(&self, command: &Document) -> Result<Document, Failure> {
        let operation = command.get_str("op").ok().and_then(|operation| operation.split_once(':'));
        let parsed = operation.and_then(|(shard, number)| Some((shard, number.parse::<i64>().ok()?)));
        let (shard, number) =
            parsed.ok_or_else(|| Failure::new(14, "TypeMismatch", "killOp: op must be \"shard:opid\""))?;
        self.shard(shard).await?.ask("admin", &doc! {"killOp": 1, "op": number}, Repeat::No).await
    }

    /// A note in the oplog of every shard, by which their clocks move on.
    async fn append_note(&self, command: &Document) -> Result<Document, Failure> {
        let data = command.get_document("data").cloned().unwrap_or_default();
        let note = doc! {"appendOplogNote": 1, "data": data, "writeConcern": majority()};
        let replies = self.everywhere("admin", &note).await?;
        let mut by_host = Document::new();
        for (shard, reply) in replies {
            if !is_ok(&reply) {
                return Err(Failure(reply));
            }
            by_host.insert(self.shard(&shard).await?.connection_string(), super::raw::cleaned(reply));
        }
        Ok(doc! {"raw": by_host, "ok": 1.0})
    }
}
