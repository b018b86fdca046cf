//! What clients are told of both clusters: kept from the first start of a migration on, so that a process that
//! takes over tells them the same. A driver that saw a version fall would be right to refuse the proxy.
//!
//! Both clusters keep it: either may be away when a process starts.

use std::sync::Arc;
use std::time::Duration;

use bson::{Document, doc, rawdoc};
use tokio::sync::SetOnce;

use super::control::{ControlError, Refusal};
use super::engine::{Engine, RETRY, unavailable};
use super::preflight::hello;
use crate::clock::timeout;
use crate::model::capabilities::Capabilities;
use crate::model::side::Side;
use crate::state::record::{AUTHORITY, AuthorityRecord, DATABASE};
use crate::state::records::{RecordError, Records};

/// Where it is kept.
const SHOWN: &str = "shown";
/// How long a start waits until clients are told something at all.
const PATIENCE: Duration = Duration::from_secs(10);

impl Engine {
    /// Clients log in, and act on the clusters as the users that they are.
    pub fn clients_log_in(&self) {
        // Told once, when the process is put together.
        _ = self.clients_log_in.set(());
    }

    /// What clients are told will be known there.
    pub fn will_show(&self, shown: Arc<SetOnce<Capabilities>>) {
        // Told once, when the process is put together.
        _ = self.shown.set(shown);
    }

    /// What clients were told when the migrations began that are under way; `None` when none is.
    pub async fn promised(&self) -> Option<Capabilities> {
        self.environment.clusters.as_ref()?;
        let (old, new) = (self.promised_by(Side::Old), self.promised_by(Side::New));
        futures::pin_mut!(old, new);
        futures::future::select(old, new).await.factor_first().0
    }

    async fn promised_by(&self, side: Side) -> Option<Capabilities> {
        let records = self.environment.records.get(side).as_ref()?;
        loop {
            match promise(records).await {
                Ok(found) => return found,
                // No retry makes it readable; what clients are told is worked out anew.
                Err(RecordError::Malformed(why)) => {
                    tracing::error!(%side, why, "what clients were told does not read");
                    return None;
                }
                Err(error) => tracing::debug!(%side, %error, "what clients were told cannot be read yet"),
            }
            self.environment.clock.sleep(RETRY).await;
        }
    }

    /// Keeps what clients are told, on both clusters.
    pub(super) async fn promise(&self) -> Result<(), ControlError> {
        let Some(shown) = self.shown.get() else { return Ok(()) };
        let Ok(shown) = timeout(&*self.environment.clock, PATIENCE, shown.wait()).await else {
            return Err(unavailable("no server of the clusters has answered yet; try again".into()));
        };
        self.can_all(shown).await?;
        let document = bson::serialize_to_document(shown).map_err(|error| unavailable(error.to_string()))?;
        for side in Side::BOTH {
            let Some(records) = self.environment.records.get(side) else { continue };
            let update = doc! { "$set": document.clone() };
            let kept = records.change(DATABASE, SHOWN, doc! { "_id": "hello" }, update, true).await;
            kept.map_err(|error| unavailable(format!("{side}: {error}")))?;
        }
        Ok(())
    }
}

impl Engine {
    /// Refuses to promise what a cluster cannot keep.
    async fn can_all(&self, shown: &Capabilities) -> Result<(), ControlError> {
        let Some(clusters) = &self.environment.clusters else { return Ok(()) };
        for side in Side::BOTH {
            let (said, _) = hello(&**clusters.get(side))
                .await
                .map_err(|error| unavailable(format!("{side}: {error}")))?;
            let Some((field, can, told)) = beyond(shown, &said) else { continue };
            let detail = format!(
                "{side} has {field} {can}, and clients of this process were told {told}, because {side} did not answer \
                 when it started: restart it, so that they are told what both clusters can do, and start again"
            );
            return Err(ControlError::new(Refusal::Conflict, "told-too-much", detail));
        }
        Ok(())
    }
}

/// What clients were told and a server cannot do: the field of its `hello`, what it can, what was told.
fn beyond(shown: &Capabilities, hello: &Document) -> Option<(&'static str, i32, i32)> {
    let told = [
        ("maxWireVersion", shown.max_wire_version),
        ("maxBsonObjectSize", shown.max_bson_object_size),
        ("maxMessageSizeBytes", shown.max_message_size),
        ("maxWriteBatchSize", shown.max_write_batch_size),
    ];
    let mut can =
        told.into_iter().filter_map(|(field, told)| Some((field, hello.get_i32(field).ok()?, told)));
    can.find(|(_, can, told)| can < told)
}

async fn promise(records: &Records) -> Result<Option<Capabilities>, RecordError> {
    let malformed = |error: bson::error::Error| RecordError::Malformed(error.to_string());
    let under_way = |raw: &bson::RawDocumentBuf| -> Result<bool, RecordError> {
        let record: AuthorityRecord = bson::deserialize_from_slice(raw.as_bytes()).map_err(malformed)?;
        Ok(!record.phase.is_over())
    };
    let migrations = records.find(DATABASE, AUTHORITY, rawdoc! {}, 1000).await?;
    let is_any = migrations.iter().map(under_way).collect::<Result<Vec<_>, _>>()?.contains(&true);
    if !is_any {
        return Ok(None);
    }
    let kept = records.find(DATABASE, SHOWN, rawdoc! { "_id": "hello" }, 1).await?;
    kept.first().map(|raw| bson::deserialize_from_slice(raw.as_bytes()).map_err(malformed)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_promised_than_a_server_can_do() {
        let shown = Capabilities::OF_6_0;
        let hello = |wire: i32, batch: i32| {
            doc! {
                "maxWireVersion": wire, "maxBsonObjectSize": 16_777_216, "maxMessageSizeBytes": 48_000_000,
                "maxWriteBatchSize": batch,
            }
        };
        assert_eq!(beyond(&shown, &hello(17, 100_000)), None);
        assert_eq!(beyond(&shown, &hello(21, 100_000)), None);
        assert_eq!(beyond(&shown, &hello(9, 100_000)), Some(("maxWireVersion", 9, 17)));
        assert_eq!(beyond(&shown, &hello(17, 1_000)), Some(("maxWriteBatchSize", 1_000, 100_000)));
    }
}
