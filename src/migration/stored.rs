//! What is stored of a migration besides routing, and the audit.

use bson::raw::cstr;
use bson::{Document, RawDocumentBuf, Timestamp, doc, rawdoc};
use serde::{Deserialize, Serialize};

use super::control::{
    AuditEvent, EventList, Mismatch, NamespaceSpec, Page, Phase, Throttle, Verification, Verify,
};
use super::plan::{Baselines, StoredPlan};
use super::prepare::Created;
use super::returning::UnreturnedView;
use super::shadow::ShadowView;
use super::switches::StoredOff;
use crate::policy::key_ranges::KeyRange;
use crate::state::record::{DATABASE, SCHEMA};
use crate::state::records::{RecordError, Records};
use crate::state::violations::Violation;

/// Collection of [`Stored`].
pub const MIGRATIONS: &str = "migrations";
/// Collection of [`AuditEvent`]s.
pub const AUDIT: &str = "audit";
/// Collection of the clusters' identities.
pub const IDENTITY: &str = "identity";
const MOST_LISTED: i32 = 1000;
/// More lines are not added to one audit in a millisecond.
const MOST_AT_ONCE: i32 = 100;
const DUPLICATE_KEY: i32 = 11000;
const MOST_RACES: u32 = 10;

/// A migration, as stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stored {
    /// Its name.
    #[serde(rename = "_id")]
    pub name: String,
    /// Version of the format.
    pub schema: i32,
    /// What moves.
    #[serde(with = "specs")]
    pub namespaces: Vec<NamespaceSpec>,
    /// Ranges of keys that are slots of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<KeyRange>,
    /// Where it is in its life.
    pub phase: Phase,
    /// Halted by an operator.
    pub paused: bool,
    /// Unix milliseconds.
    pub created_at: i64,
    /// Unix milliseconds.
    pub started_at: Option<i64>,
    /// When it was completed or aborted; Unix milliseconds.
    #[serde(default)]
    pub ended_at: Option<i64>,
    /// Since when all writes are on new; Unix milliseconds.
    pub all_on_new_at: Option<i64>,
    /// The start of the streams, on old's time line.
    pub start: Option<Timestamp>,
    /// Every range is copied.
    pub copied: bool,
    /// Documents that were copied, once all are.
    #[serde(default)]
    pub copied_documents: i64,
    /// Bytes that were copied, once all are.
    #[serde(default)]
    pub copied_bytes: i64,
    /// What was made on new, and what has to be put back one day.
    pub created: Vec<Created>,
    /// Indexes that force a move in one step, each with its reason.
    pub single_step: Vec<String>,
    /// How fast the copy may go.
    pub throttle: Throttle,
    /// Documents and bytes there were at the start.
    pub total_documents: i64,
    /// Bytes there were at the start.
    pub total_bytes: i64,
    /// Why it failed.
    pub failure: Option<String>,
    /// A stream has missed changes: everything must be compared before it counts as following again.
    #[serde(default)]
    pub recheck: bool,
    /// The last full verification: how it ended, or that it has begun.
    #[serde(default)]
    pub verification: Option<Verification>,
    /// The last comparison of a part, or by digests.
    #[serde(default)]
    pub spot_check: Option<Verification>,
    /// How shadow reads run.
    #[serde(default)]
    pub shadow: ShadowView,
    /// Invariants that did not hold.
    #[serde(default)]
    pub violations: Vec<Violation>,
    /// The ramp by plan, if there is one.
    #[serde(default)]
    pub plan: Option<StoredPlan>,
    /// What old took for each shape before anything was on new.
    #[serde(default)]
    pub baselines: Baselines,
    /// Mirrors are left to the streams alone.
    #[serde(default)]
    pub inline_off: bool,
    /// What else is switched off.
    #[serde(default)]
    pub off: StoredOff,
    /// It is over, and nothing of it is left to be put back or removed.
    #[serde(default)]
    pub cleaned: bool,
    /// The last rollback without new.
    #[serde(default)]
    pub unreturned: Option<UnreturnedView>,
}

/// [`NamespaceSpec`]s as they are stored.
mod specs {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::migration::control::NamespaceSpec;
    use crate::policy::shard_key::{ShardKey, StoredKey};
    use crate::policy::zones::{StoredZone, Zone};

    #[derive(Serialize, Deserialize)]
    struct Spec {
        namespace: String,
        #[serde(default)]
        shard_key: Option<StoredKey>,
        #[serde(default)]
        route_key: Option<String>,
        #[serde(default)]
        initial_chunks: Option<u32>,
        #[serde(default)]
        zones: Vec<StoredZone>,
    }

    pub(super) fn serialize<S: Serializer>(
        specs: &[NamespaceSpec],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let stored = specs.iter().cloned().map(|spec| Spec {
            namespace: spec.namespace,
            shard_key: spec.shard_key.map(StoredKey::from),
            route_key: spec.route_key,
            initial_chunks: spec.initial_chunks,
            zones: spec.zones.into_iter().map(StoredZone::from).collect(),
        });
        serializer.collect_seq(stored)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<NamespaceSpec>, D::Error> {
        let stored = Vec::<Spec>::deserialize(deserializer)?;
        let spec = |spec: Spec| NamespaceSpec {
            namespace: spec.namespace,
            shard_key: spec.shard_key.map(ShardKey::from),
            route_key: spec.route_key,
            initial_chunks: spec.initial_chunks,
            zones: spec.zones.into_iter().map(Zone::from).collect(),
        };
        Ok(stored.into_iter().map(spec).collect())
    }
}

impl Stored {
    /// A migration that has only been named.
    #[must_use]
    pub fn new(name: String, namespaces: Vec<NamespaceSpec>, created_at: i64) -> Self {
        Self {
            name,
            schema: SCHEMA,
            namespaces,
            ranges: Vec::new(),
            phase: Phase::Created,
            paused: false,
            created_at,
            started_at: None,
            ended_at: None,
            all_on_new_at: None,
            start: None,
            copied: false,
            copied_documents: 0,
            copied_bytes: 0,
            created: Vec::new(),
            single_step: Vec::new(),
            throttle: Throttle::default(),
            total_documents: 0,
            total_bytes: 0,
            failure: None,
            recheck: false,
            verification: None,
            spot_check: None,
            shadow: ShadowView::default(),
            violations: Vec::new(),
            plan: None,
            baselines: Vec::new(),
            inline_off: false,
            off: StoredOff::default(),
            cleaned: false,
            unreturned: None,
        }
    }

    /// It is more than the name and the collections that a cluster's record tells at a start.
    #[must_use]
    pub const fn is_read(&self) -> bool {
        self.created_at != 0
    }

    /// Stores it as it is. What a process that died had sent can arrive at any later time; it names the
    /// version that it knew, and changes nothing then.
    ///
    /// # Errors
    /// [`RecordError`].
    pub async fn store(&self, records: &Records) -> Result<(), RecordError> {
        let mut fields =
            bson::serialize_to_document(self).map_err(|error| RecordError::Malformed(error.to_string()))?;
        fields.remove("_id");
        for _ in 0..MOST_RACES {
            let known = records.find(DATABASE, MIGRATIONS, rawdoc! { "_id": &*self.name }, 1).await?;
            let version = known.first().and_then(|raw| raw.get_i64("version").ok());
            fields.insert("version", version.unwrap_or(0) + 1);
            let query = doc! { "_id": &self.name, "version": version };
            let update = doc! { "$set": fields.clone() };
            match records.change(DATABASE, MIGRATIONS, query, update, known.is_empty()).await {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => {}
                Err(RecordError::Refused(error)) if error.code == DUPLICATE_KEY => {}
                Err(error) => return Err(error),
            }
        }
        Err(RecordError::Unavailable("another process changes it all the time".into()))
    }

    /// The last comparison of the kind of `asked`.
    pub(super) fn comparison_mut(&mut self, asked: &Verify) -> &mut Option<Verification> {
        if asked.is_full() { &mut self.verification } else { &mut self.spot_check }
    }

    /// The comparison that was under way when this was stored.
    pub(super) fn unended(&self) -> Option<&Verification> {
        [&self.verification, &self.spot_check].into_iter().flatten().find(|last| last.running)
    }

    /// As a process finds it that follows another: a comparison under way ended with that one, unless this one
    /// can go on with it.
    fn taken_up(mut self) -> Self {
        if self.phase.can_be_compared() {
            return self;
        }
        for last in [&mut self.verification, &mut self.spot_check].into_iter().flatten() {
            if std::mem::take(&mut last.running) {
                last.failure = Some("reshard was restarted before its end".into());
            }
        }
        self
    }

    /// All that are stored.
    ///
    /// # Errors
    /// [`RecordError`]; also for one of a newer format.
    pub async fn load_all(records: &Records) -> Result<Vec<Self>, RecordError> {
        let found = records.find(DATABASE, MIGRATIONS, rawdoc! {}, MOST_LISTED).await?;
        let mut all = Vec::with_capacity(found.len());
        for raw in found {
            let stored: Self = bson::deserialize_from_slice(raw.as_bytes())
                .map_err(|error| RecordError::Malformed(error.to_string()))?;
            if stored.schema != SCHEMA {
                return Err(RecordError::Malformed(format!("{} was stored by another version", stored.name)));
            }
            all.push(stored.taken_up());
        }
        Ok(all)
    }
}

/// Adds a line to the audit.
///
/// # Errors
/// [`RecordError`].
pub async fn audit(records: &Records, migration: &str, event: &AuditEvent) -> Result<(), RecordError> {
    let mut fields =
        bson::serialize_to_document(event).map_err(|error| RecordError::Malformed(error.to_string()))?;
    fields.insert("migration", migration);
    let id = uuid::Uuid::new_v4().simple().to_string();
    records.change(DATABASE, AUDIT, doc! { "_id": id }, doc! { "$set": fields }, true).await.map(|_| ())
}

/// A part of the audit of a migration, newest first.
///
/// # Errors
/// [`RecordError`].
pub async fn audited(records: &Records, migration: &str, page: Page) -> Result<EventList, RecordError> {
    let mut filter = rawdoc! { "migration": migration };
    if let Some(before) = page.before {
        filter.append(cstr!("at"), rawdoc! { "$lt": before });
    }
    let limit = page.limit.map_or(MOST_LISTED, i32::from);
    let found = listed(records, AUDIT, filter, limit.max(MOST_AT_ONCE) + 1).await?;
    Ok(whole_page(found, usize::try_from(limit).unwrap_or(usize::MAX)))
}

/// The first `limit` of `events`, newest first: less rather than a part of one millisecond, as the next page begins
/// with the millisecond before; more only where all are of one.
fn whole_page(mut events: Vec<AuditEvent>, limit: usize) -> EventList {
    let Some(beyond) = events.get(limit).map(|event| event.at) else {
        return EventList { events, next: None };
    };
    let before = events.iter().position(|event| event.at == beyond).filter(|whole| *whole > 0);
    let one = || events.iter().position(|event| event.at != beyond).unwrap_or(events.len());
    let kept = before.unwrap_or_else(one);
    events.truncate(kept);
    let next = events.last().map(|event| event.at);
    EventList { events, next }
}

/// Stores a difference that a verification found.
///
/// # Errors
/// [`RecordError`].
pub async fn store_mismatch(
    records: &Records,
    migration: &str,
    mismatch: &Mismatch,
) -> Result<(), RecordError> {
    let mut fields =
        bson::serialize_to_document(mismatch).map_err(|error| RecordError::Malformed(error.to_string()))?;
    fields.insert("migration", migration);
    let id = format!("{migration}/{}/{}", mismatch.namespace, mismatch.key);
    records
        .change(DATABASE, "mismatches", doc! { "_id": id }, doc! { "$set": fields }, true)
        .await
        .map(|_| ())
}

/// The differences that verifications found, newest first.
///
/// # Errors
/// [`RecordError`].
pub async fn mismatches(records: &Records, migration: &str) -> Result<Vec<Mismatch>, RecordError> {
    listed(records, "mismatches", rawdoc! { "migration": migration }, MOST_LISTED).await
}

async fn listed<T: serde::de::DeserializeOwned>(
    records: &Records,
    collection: &str,
    filter: RawDocumentBuf,
    limit: i32,
) -> Result<Vec<T>, RecordError> {
    let body = rawdoc! {
        "find": collection, "filter": filter, "sort": { "at": -1 }, "limit": limit, "batchSize": limit + 1, "readConcern": { "level": "majority" },
    };
    let reply = records.read(DATABASE, body).await?;
    let found = crate::state::records::first_batch(&reply.body).map_err(RecordError::Malformed)?;
    found
        .iter()
        .map(|raw| {
            bson::deserialize_from_slice(raw.as_bytes())
                .map_err(|error| RecordError::Malformed(error.to_string()))
        })
        .collect()
}

/// The identity of a cluster, made once and for all if it has none.
///
/// # Errors
/// [`RecordError`].
pub async fn identity(records: &Records) -> Result<String, RecordError> {
    let fresh = uuid::Uuid::new_v4().to_string();
    let update: Document = doc! { "$setOnInsert": { "id": fresh } };
    let found = records.change(DATABASE, IDENTITY, doc! { "_id": "cluster" }, update, true).await?;
    let id = found.as_ref().and_then(|raw| raw.get_str("id").ok()).map(str::to_owned);
    id.ok_or_else(|| RecordError::Malformed("an identity without id".into()))
}

/// The identity of a cluster, if it has one.
///
/// # Errors
/// [`RecordError`].
pub async fn known_identity(records: &Records) -> Result<Option<String>, RecordError> {
    let found = records.find(DATABASE, IDENTITY, rawdoc! { "_id": "cluster" }, 1).await?;
    Ok(found.first().and_then(|raw| raw.get_str("id").ok()).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(times: &[i64], limit: usize) -> (Vec<i64>, Option<i64>) {
        let event = |at: &i64| AuditEvent {
            at: *at,
            who: String::new(),
            what: String::new(),
            from: String::new(),
            to: String::new(),
            result: String::new(),
            elapsed_ms: None,
        };
        let list = whole_page(times.iter().map(event).collect(), limit);
        (list.events.iter().map(|event| event.at).collect(), list.next)
    }

    #[test]
    fn a_page_of_the_audit_never_divides_a_millisecond() {
        assert_eq!(page(&[9, 8, 7], 3), (vec![9, 8, 7], None));
        assert_eq!(page(&[9, 8, 7], 2), (vec![9, 8], Some(8)));
        assert_eq!(page(&[9, 8, 8, 7], 2), (vec![9], Some(9)));
        assert_eq!(page(&[9, 9, 9, 8], 2), (vec![9, 9, 9], Some(9)));
        assert_eq!(page(&[9, 9, 9], 1), (vec![9, 9, 9], Some(9)));
        assert_eq!(page(&[], 5), (vec![], None));
    }
}
