//! What clients are told of both clusters: kept from the first start of a migration on, so that a process that
//! takes over tells them the same. A driver that saw a version fall would be right to refuse the proxy.
//!
//! Both clusters keep it: either may be away when a process starts.

use std::sync::Arc;
use std::time::Duration;

use bson::{doc, rawdoc};
use tokio::sync::SetOnce;

use super::control::ControlError;
use super::engine::{Engine, RETRY, unavailable};
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
