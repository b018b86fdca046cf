//! How much there is: `collStats`, `dbStats`, `dataSize`, `validate`.

use bson::{Bson, Document, RawDocument, doc};

use super::Router;
use super::backend::Repeat;
use super::catalog::split;
use super::failure::{Failure, truth, whole};
use super::raw;
use super::reads::{name_in, shortest};
use super::versioned::Versioned;

const OF_COLLECTION: [&str; 7] =
    ["count", "size", "storageSize", "totalIndexSize", "totalSize", "freeStorageSize", "numOrphanDocs"];
const OF_DATABASE: [&str; 9] = [
    "collections",
    "views",
    "objects",
    "dataSize",
    "storageSize",
    "totalFreeStorageSize",
    "indexes",
    "indexSize",
    "totalSize",
];

impl Router {
    pub(super) async fn sizes(
        &self,
        name: &str,
        database: &str,
        body: &RawDocument,
        command: Document,
    ) -> Result<Document, Failure> {
        match name {
            "collStats" | "collstats" => self.of_collection(name, database, body, &command).await,
            "dbStats" | "dbstats" => self.of_database(database, &command).await,
            "dataSize" | "datasize" => {
                let (database, collection) = split(name_in(&command, name)?)?;
                let (_, replies) = self.on_owners(Versioned::read(database, collection, body)).await?;
                let sum = |field: &str| replies.iter().filter_map(|(_, reply)| whole(reply, field)).sum();
                Ok(doc! {"size": shortest(sum("size")), "numObjects": shortest(sum("numObjects")), "ok": 1.0})
            }
            _ => {
                let validate = Versioned {
                    repeat: Repeat::No,
                    ..Versioned::read(database, name_in(&command, name)?, body)
                };
                let (_, replies) = self.versioned(validate, |table| Ok(table.shards())).await?;
                let mut answer = self.raw_replies(replies).await?;
                let valid = answer.get_document("raw").is_ok_and(|raw| {
                    raw.values().filter_map(Bson::as_document).all(|reply| truth(reply, "valid"))
                });
                answer.insert("valid", valid);
                Ok(answer)
            }
        }
    }

    async fn of_collection(
        &self,
        name: &str,
        database: &str,
        body: &RawDocument,
        command: &Document,
    ) -> Result<Document, Failure> {
        let collection = name_in(command, name)?;
        let (table, replies) = self.on_owners(Versioned::read(database, collection, body)).await?;
        let mut answer = doc! {"ns": &table.namespace, "sharded": table.sharding.is_some()};
        match &table.sharding {
            Some(sharding) => {
                answer.insert("nchunks", shortest(i64::try_from(sharding.chunks.len()).unwrap_or(0)))
            }
            None => answer.insert("primary", &table.primary),
        };
        let (mut indexes, mut index_sizes, mut shards) = (0, Document::new(), Document::new());
        for (shard, reply) in replies {
            add(&mut answer, &reply, &OF_COLLECTION);
            indexes = whole(&reply, "nindexes").unwrap_or(0).max(indexes);
            if let Ok(sizes) = reply.get_document("indexSizes") {
                let names: Vec<&str> = sizes.keys().map(String::as_str).collect();
                add(&mut index_sizes, sizes, &names);
            }
            shards.insert(shard, raw::cleaned(reply));
        }
        if let (Some(count), Some(size)) = (whole(&answer, "count"), whole(&answer, "size"))
            && count > 0
        {
            answer.insert("avgObjSize", shortest(size / count));
        }
        answer.extend(
            doc! {"nindexes": shortest(indexes), "indexSizes": index_sizes, "shards": shards, "ok": 1.0},
        );
        Ok(answer)
    }

    async fn of_database(&self, database: &str, command: &Document) -> Result<Document, Failure> {
        let (mut answer, mut by_host) = (doc! {"db": database}, Document::new());
        for (shard, reply) in self.everywhere(database, command).await? {
            if !super::failure::is_ok(&reply) {
                return Err(Failure(reply));
            }
            add(&mut answer, &reply, &OF_DATABASE);
            if let Some(scale) = reply.get("scaleFactor") {
                answer.insert("scaleFactor", scale.clone());
            }
            by_host.insert(self.shard(&shard).await?.connection_string(), raw::cleaned(reply));
        }
        let mut whole = doc! {"raw": by_host};
        whole.extend(answer);
        whole.insert("ok", 1.0);
        Ok(whole)
    }
}

/// Adds numbers of `more` to those of `sum`.
fn add(sum: &mut Document, more: &Document, fields: &[&str]) {
    for field in fields {
        if let Some(number) = whole(more, field) {
            sum.insert(*field, shortest(whole(sum, field).unwrap_or(0) + number));
        }
    }
}
