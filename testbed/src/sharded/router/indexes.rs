//! Indexes.

use bson::{Document, RawDocument, doc};

use super::Router;
use super::backend::Repeat;
use super::collections::{renamed, with_defaults};
use super::concern::majority;
use super::failure::{Failure, NAMESPACE_NOT_FOUND};
use super::reads::name_in;
use super::versioned::{Versioned, decoded};
use super::{failure, raw};

impl Router {
    pub(super) async fn indexes(
        &self,
        name: &str,
        database: &str,
        body: &RawDocument,
        command: Document,
    ) -> Result<Document, Failure> {
        let collection = name_in(&command, name)?.to_owned();
        match name {
            "createIndexes" => {
                let body = self.with_write_concern(body)?;
                let create = Versioned { create: true, ..Versioned::read(database, &collection, &body) };
                let (_, replies) = self.versioned(create, |table| Ok(table.shards())).await?;
                self.raw_replies(replies).await
            }
            "listIndexes" => self.list_indexes(database, &collection, body).await,
            _ => {
                let command = with_defaults(command, doc! {"writeConcern": majority()});
                let command = renamed(command, name, "_shardsvrDropIndexes");
                self.on_primary(database, database, &command, false).await
            }
        }
    }

    /// From one shard that owns some of the collection.
    async fn list_indexes(
        &self,
        database: &str,
        collection: &str,
        body: &RawDocument,
    ) -> Result<Document, Failure> {
        let body = raw::with(&raw::without(body, &["cursor"])?, &doc! {"cursor": {"batchSize": 1000}})?;
        let list = Versioned { repeat: Repeat::Yes, ..Versioned::read(database, collection, &body) };
        let replies = self.versioned(list, |table| Ok(table.shards().into_iter().take(1).collect())).await;
        match replies {
            Err(failure) if failure.code() == NAMESPACE_NOT_FOUND => {
                Err(Failure::not_found(format!("ns does not exist: {database}.{collection}")))
            }
            replies => {
                let (_, reply) = decoded(replies?.1, false)?.pop().unwrap_or_default();
                if failure::is_ok(&reply) { Ok(reply) } else { Err(Failure(reply)) }
            }
        }
    }
}
