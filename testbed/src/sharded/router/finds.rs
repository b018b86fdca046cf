//! Finds that one shard can answer alone, and their cursors.

use std::collections::HashMap;
use std::sync::Arc;

use bson::Document;
use bytes::BytesMut;
use reshard::wire::scan::find;

use super::Router;
use super::backend::{Backend, Repeat};
use super::catalog::is_internal;
use super::failure::{Failure, NAMESPACE_NOT_FOUND};
use super::forward::{ATTEMPTS, Asked};
use super::raw;
use super::seen::Seen;
use super::versioned::pause;

/// `CommandOnShardedViewNotSupportedOnMongod`.
const VIEW: i64 = 169;
/// Cursors that clients leave open are forgotten when there are so many.
const MOST: usize = 10_000;

/// Where cursors live that a shard opened for a client.
pub(super) type Cursors = HashMap<i64, Arc<Backend>>;

impl Router {
    /// Lets one shard answer a find, if it is clear which. Nothing if it is for the engine.
    pub(super) async fn find_on_one(
        &self,
        asked: Asked<'_>,
        reply: &mut BytesMut,
    ) -> Result<Option<()>, Failure> {
        let (database, collection) = (asked.database(), asked.collection());
        if is_internal(database) || collection.is_empty() || !reads_from_primary(asked) {
            return Ok(None);
        }
        let body = asked.body()?;
        let collation = super::targets::compares_otherwise(body.get("collation")?);
        for attempt in 1..=ATTEMPTS {
            let table = match self.table(database, collection, false).await {
                Err(failure) if failure.code() == NAMESPACE_NOT_FOUND => return Ok(None),
                table => table?,
            };
            let shard = match &table.sharding {
                None => table.primary.clone(),
                Some(_) if collation => return Ok(None),
                Some(sharding) => {
                    let Some(key) = sharding.key_of_filter(&raw::document(body, "filter")?) else {
                        return Ok(None);
                    };
                    let Some(shard) = super::targets::owner(sharding, &key) else { return Ok(None) };
                    shard
                }
            };
            match self.to_shard(asked, &table, &shard, Repeat::Yes, reply).await? {
                Some(seen) if seen.code == VIEW => return Ok(None),
                Some(seen) => {
                    if let Some(id) = seen.cursor.filter(|id| *id != 0) {
                        let backend = self.shard(&shard).await?;
                        let mut cursors = self.cursors.lock();
                        if cursors.len() >= MOST {
                            cursors.clear();
                        }
                        cursors.insert(id, backend);
                    }
                    return Ok(Some(()));
                }
                None => self.forget(&table.namespace),
            }
            if attempt > 1 {
                pause(attempt).await;
            }
        }
        Ok(None)
    }

    /// The next batch of a cursor that a shard opened for a client.
    pub(super) async fn more_of_shard(
        &self,
        asked: Asked<'_>,
        id: i64,
        shard: &Backend,
        reply: &mut BytesMut,
    ) -> Result<(), Failure> {
        let patched = self.patched(asked, None, &Document::new())?;
        shard.exchange(&patched.parts(asked.message), reply, Repeat::No).await?;
        let mut seen = Seen::scan(reply)?;
        seen.tell(&self.time, reply);
        seen.strip(reply);
        if seen.cursor.unwrap_or(0) == 0 {
            self.cursors.lock().remove(&id);
        }
        Ok(())
    }
}

/// Other reads the engine sends where they belong.
fn reads_from_primary(asked: Asked<'_>) -> bool {
    let mode = asked.command.read_preference.and_then(|preference| find(preference, b"mode"));
    let level = asked.command.read_concern.and_then(|concern| find(concern, b"level"));
    mode.is_none_or(|mode| mode.as_str() == Some("primary"))
        && level.is_none_or(|level| !matches!(level.as_str(), Some("snapshot" | "available")))
}
