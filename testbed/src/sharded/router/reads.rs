//! Reads that have no cluster command: `count`, `distinct`, `explain`; and the end of cursors.

use bson::{Bson, Document, RawDocument, RawDocumentBuf, doc};

use super::Router;
use super::backend::Repeat;
use super::dispatch::cluster_name;
use super::failure::{Failure, NAMESPACE_NOT_FOUND, whole};
use super::raw;
use super::table::distinct;
use super::versioned::{Versioned, decoded};

/// `CommandOnShardedViewNotSupportedOnMongod`.
const VIEW: i32 = 169;

impl Router {
    pub(super) async fn count(
        &self,
        database: &str,
        body: &RawDocument,
        command: &Document,
    ) -> Result<Document, Failure> {
        let collection = name_in(command, "count")?;
        let skip = whole(command, "skip").unwrap_or(0);
        let limit = whole(command, "limit").unwrap_or(0).abs();
        let table = match self.table(database, collection, false).await {
            Err(failure) if failure.code() == NAMESPACE_NOT_FOUND => return Ok(doc! {"n": 0, "ok": 1.0}),
            table => table?,
        };
        let (mut skip_here, mut body) = (skip, body.to_owned());
        if table.shards().len() == 1 {
            // It does not matter if this changes meanwhile: the skip is then on each shard or on none.
            skip_here = 0;
        } else {
            let wanted = if limit > 0 {
                doc! {"limit": limit + skip}
            } else {
                Document::new()
            };
            body = raw::with(&raw::without(&body, &["skip", "limit"])?, &wanted)?;
        }
        let counted = self.on_owners(Versioned::read(database, collection, &body)).await;
        let replies = match counted {
            Err(failure) if failure.code() == VIEW => {
                return self.count_of_view(database, collection, command, skip, limit).await;
            }
            Err(failure) if failure.code() == NAMESPACE_NOT_FOUND => Vec::new(),
            counted => counted?.1,
        };
        let found: i64 = replies.iter().filter_map(|(_, reply)| whole(reply, "n")).sum();
        let found = (found - skip_here).max(0);
        Ok(doc! {"n": shortest(if limit > 0 { found.min(limit) } else { found }), "ok": 1.0})
    }

    async fn count_of_view(
        &self,
        database: &str,
        view: &str,
        command: &Document,
        skip: i64,
        limit: i64,
    ) -> Result<Document, Failure> {
        let query = command.get_document("query").cloned().unwrap_or_default();
        let mut pipeline = vec![doc! {"$match": query}];
        pipeline.extend((skip > 0).then(|| doc! {"$skip": skip}));
        pipeline.extend((limit > 0).then(|| doc! {"$limit": limit}));
        pipeline.push(doc! {"$count": "n"});
        let aggregate = doc! {"clusterAggregate": view, "pipeline": pipeline, "cursor": {}};
        let found = self.engine.all(database, &aggregate).await?;
        let found = found.first().and_then(|found| whole(found, "n")).unwrap_or(0);
        Ok(doc! {"n": shortest(found), "ok": 1.0})
    }

    pub(super) async fn distinct(
        &self,
        database: &str,
        body: &RawDocument,
        command: &Document,
    ) -> Result<Document, Failure> {
        let collection = name_in(command, "distinct")?;
        let replies = match self.on_owners(Versioned::read(database, collection, body)).await {
            Err(failure) if failure.code() == NAMESPACE_NOT_FOUND => Vec::new(),
            Err(failure) if failure.code() == VIEW => return self.distinct_of_view(database, command).await,
            replies => replies?.1,
        };
        let mut values = Vec::new();
        for (_, mut reply) in replies {
            if let Ok(found) = reply.get_array_mut("values") {
                values.append(found);
            }
        }
        Ok(doc! {"values": distinct(values), "ok": 1.0})
    }

    async fn distinct_of_view(&self, database: &str, command: &Document) -> Result<Document, Failure> {
        let key = format!("${}", name_in(command, "key")?);
        let query = command.get_document("query").cloned().unwrap_or_default();
        let pipeline = vec![doc! {"$match": query}, doc! {"$unwind": &key}, doc! {"$group": {"_id": &key}}];
        let view = name_in(command, "distinct")?;
        let aggregate = doc! {"clusterAggregate": view, "pipeline": pipeline, "cursor": {}};
        let found = self.engine.all(database, &aggregate).await?;
        let values = found.into_iter().filter_map(|mut group| group.remove("_id")).collect();
        Ok(doc! {"values": distinct(values), "ok": 1.0})
    }

    /// Of a find or an aggregate the engine explains; of others each shard that owns some of the collection.
    pub(super) async fn explain(&self, database: &str, command: &Document) -> Result<Document, Failure> {
        let inner = command.get_document("explain").map_err(|error| Failure::bad_value(error.to_string()))?;
        let name = inner.keys().next().map_or("", String::as_str);
        let verbosity = command.get("verbosity").cloned();
        let rest = verbosity.map(|verbosity| ("verbosity".to_owned(), verbosity));
        let target =
            inner.iter().filter(|(key, _)| *key != "$db").map(|(key, value)| (key.clone(), value.clone()));
        if matches!(name, "find" | "aggregate") {
            let cluster = cluster_name(name).unwrap_or(name).to_owned();
            let target: Document =
                target.map(|(key, value)| (if key == name { cluster.clone() } else { key }, value)).collect();
            let explain = doc! {"explain": target}.into_iter().chain(rest).collect();
            return self.engine.ask(database, &explain, Repeat::Yes).await;
        }
        let collection = name_in(inner, name)?.to_owned();
        let explain: Document =
            doc! {"explain": target.collect::<Document>()}.into_iter().chain(rest).collect();
        let body = RawDocumentBuf::try_from(&explain)?;
        let (_, replies) = self.on_owners(Versioned::read(database, &collection, &body)).await?;
        let mut shards = Vec::new();
        for (shard, mut reply) in replies {
            let plan = reply.remove("queryPlanner").unwrap_or(Bson::Null);
            let stats = reply.remove("executionStats").map(|stats| ("executionStats".to_owned(), stats));
            let host = self.shard(&shard).await?.connection_string().to_owned();
            let entry = doc! {"shardName": shard, "connectionString": host, "queryPlanner": plan};
            shards.push(entry.into_iter().chain(stats).collect::<Document>());
        }
        let stage = if shards.len() == 1 { "SINGLE_SHARD" } else { "SHARD_MERGE" };
        Ok(doc! {
            "queryPlanner": {"mongosPlannerVersion": 1, "winningPlan": {"stage": stage, "shards": shards}},
            "ok": 1.0,
        })
    }

    /// Ends change streams. Cursors of the engine end there when they time out; here they are gone at once.
    pub(super) async fn kill_cursors(&self, database: &str, command: &Document) -> Result<Document, Failure> {
        let ids = command.get_array("cursors").map_err(|error| Failure::bad_value(error.to_string()))?;
        for id in ids.iter().filter_map(|id| id.as_i64().or_else(|| id.as_i32().map(i64::from))) {
            let stream = self.streams.lock().remove(&id);
            match stream {
                Some(stream) => stream.close().await,
                None => self.kill_elsewhere(database, command, id).await?,
            }
        }
        let none = Vec::<Bson>::new;
        Ok(doc! {
            "cursorsKilled": ids.clone(),
            "cursorsNotFound": none(),
            "cursorsAlive": none(),
            "cursorsUnknown": none(),
            "ok": 1.0,
        })
    }

    async fn kill_elsewhere(&self, database: &str, command: &Document, id: i64) -> Result<(), Failure> {
        let shard = self.cursors.lock().remove(&id);
        match shard {
            Some(shard) => {
                let kill = doc! {"killCursors": command.get("killCursors"), "cursors": [id]};
                shard.ask(database, &kill, Repeat::No).await?;
            }
            None => self.killed.lock().add(id),
        }
        Ok(())
    }

    /// The replies of shards by their connection strings, and the first error among them.
    pub(super) async fn raw_replies(&self, replies: super::versioned::Replies) -> Result<Document, Failure> {
        let (mut by_host, mut failed) = (Document::new(), None);
        for (shard, reply) in decoded(replies, false)? {
            let reply = raw::cleaned(reply);
            if !super::failure::is_ok(&reply) && failed.is_none() {
                failed = Some(reply.clone());
            }
            by_host.insert(self.shard(&shard).await?.connection_string(), reply);
        }
        let mut answer = doc! {"raw": by_host, "ok": if failed.is_some() { 0.0 } else { 1.0 }};
        for field in ["errmsg", "code", "codeName"] {
            if let Some(value) = failed.as_ref().and_then(|failed| failed.get(field)) {
                answer.insert(field, value.clone());
            }
        }
        Ok(answer)
    }
}

/// The collection that a command names.
pub(super) fn name_in<'a>(command: &'a Document, field: &str) -> Result<&'a str, Failure> {
    command.get_str(field).map_err(|_| {
        Failure::new(73, "InvalidNamespace", format!("collection name has invalid type: {field}"))
    })
}

/// A number as servers send it: in 32 bits if it fits.
pub(super) fn shortest(number: i64) -> Bson {
    i32::try_from(number).map_or(Bson::Int64(number), Bson::Int32)
}
