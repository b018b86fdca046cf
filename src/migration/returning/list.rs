//! The list of what only new may have acknowledged, as it is stored: `reshard.unreturned`.

use bson::raw::{RawBson, RawBsonRef, RawDocumentBuf, cstr};
use bson::spec::BinarySubtype;
use bson::{RawDocument, rawdoc};

use super::view::{Unreturned, UnreturnedList, UnreturnedPage};
use crate::migration::bypass::shown;
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::policy::canonical::key_of;
use crate::state::record::DATABASE;
use crate::state::records::{RecordError, Records, first_batch};

/// Where it is stored.
pub(crate) const UNRETURNED: &str = "unreturned";
/// Named, and no more is known yet.
pub(super) const NAMED: &str = "named";
/// Old has it now.
pub(super) const BROUGHT_BACK: &str = "brought_back";
/// Old had it anyway.
pub(super) const ON_BOTH: &str = "on_both";
/// It has changed on both.
pub(super) const CONFLICT: &str = "conflict";
/// Names stored at once.
const BATCH: usize = 1000;
/// Of a document so much is shown.
const MOST_SHOWN: usize = 16 * 1024;
/// A larger document has no room beside its name.
const MOST_KEPT: usize = 16_700_000;

/// One document of the list.
pub(super) struct Entry {
    pub(super) namespace: Namespace,
    pub(super) key: Key,
    pub(super) state: &'static str,
    /// Of a conflict: why, and what new has.
    pub(super) kept: Option<(String, Option<RawDocumentBuf>)>,
}

impl Entry {
    pub(super) const fn of(namespace: Namespace, key: Key, state: &'static str) -> Self {
        Self { namespace, key, state, kept: None }
    }
}

/// The id of a key in the list.
fn id(migration: &str, fingerprint: u128) -> String {
    format!("{migration}/{fingerprint:032x}")
}

/// Stores documents of the list, or what has become of them. What was said of one that is named again stays. `round` is
/// [`Returning::round`](crate::state::returning::Returning::round).
pub(super) async fn store(
    records: &Records,
    (migration, round): (&str, i64),
    entries: &[Entry],
) -> Result<(), RecordError> {
    let (large, small): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry.kept.is_some());
    for entries in small.chunks(BATCH).chain(large.chunks(1)) {
        let mut updates = Vec::new();
        for entry in entries {
            updates.extend_from_slice(update(migration, round, entry)?.as_bytes());
        }
        let body = rawdoc! { "update": UNRETURNED, "ordered": false };
        let reply = records.write(DATABASE, body, Some(("updates", updates))).await?;
        if let Ok(errors) = reply.body.get_array("writeErrors") {
            return Err(RecordError::Malformed(format!("{errors:?}")));
        }
    }
    Ok(())
}

fn update(migration: &str, round: i64, entry: &Entry) -> Result<RawDocumentBuf, RecordError> {
    let mut fields = rawdoc! {
        "migration": migration, "namespace": entry.namespace.as_str(), "key": entry.key.value(),
    };
    let mut update = RawDocumentBuf::new();
    if entry.state == NAMED {
        update.append(cstr!("$setOnInsert"), rawdoc! { "state": NAMED, "round": round });
    } else {
        fields.append(cstr!("state"), entry.state);
        fields.append(cstr!("round"), round);
    }
    if let Some((why, on_new)) = &entry.kept {
        fields.append(cstr!("why"), why.as_str());
        if let Some(document) = on_new {
            if document.as_bytes().len() > MOST_KEPT {
                let why = format!("{:?} of {} is too large to be kept", entry.key, entry.namespace);
                return Err(RecordError::Malformed(why));
            }
            // As bytes: no server may object to what is in it, or change it.
            let bytes = bson::Binary { subtype: BinarySubtype::Generic, bytes: document.as_bytes().to_vec() };
            fields.append(cstr!("on_new"), bytes);
        }
    }
    update.append(cstr!("$set"), fields);
    let id = id(migration, entry.key.fingerprint_in(&entry.namespace));
    Ok(rawdoc! { "q": { "_id": id }, "u": update, "upsert": true })
}

/// What is still named only is on both, now that everything else is back.
pub(super) async fn settle(records: &Records, migration: &str) -> Result<(), RecordError> {
    // Without a number: an update of many cannot carry one, and repeating it is harmless.
    let body = rawdoc! {
        "update": UNRETURNED,
        "updates": [{
            "q": { "migration": migration, "state": NAMED }, "u": { "$set": { "state": ON_BOTH } }, "multi": true,
        }],
        "writeConcern": { "w": "majority" },
    };
    records.read(DATABASE, body).await.map(|_| ())
}

/// A new rollback without new begins a new list; `but_conflicts`: with those of the one before, which nobody has looked at.
pub(super) async fn clear(
    records: &Records,
    migration: &str,
    but_conflicts: bool,
) -> Result<(), RecordError> {
    let mut filter = rawdoc! { "migration": migration };
    if but_conflicts {
        filter.append(cstr!("state"), rawdoc! { "$ne": CONFLICT });
    }
    records.remove(DATABASE, UNRETURNED, filter).await
}

/// How many documents are in `state`.
pub(super) async fn count(records: &Records, migration: &str, state: &str) -> Result<i64, RecordError> {
    let body = rawdoc! {
        "count": UNRETURNED, "query": { "migration": migration, "state": state },
        "readConcern": { "level": "majority" },
    };
    let reply = records.read(DATABASE, body).await?;
    let counted = crate::cluster::command::number(&reply.body, "n").unwrap_or(0.0);
    #[expect(clippy::cast_possible_truncation, reason = "a count")]
    Ok(counted as i64)
}

/// The keys in `state`, all of them; with a round, those of which that was said in it.
pub(super) async fn keys_in(
    records: &Records,
    (migration, round): (&str, Option<i64>),
    state: &[&str],
) -> Result<Vec<(Namespace, Key)>, RecordError> {
    let mut keys = Vec::new();
    let mut after = format!("{migration}/");
    loop {
        let states: bson::raw::RawArrayBuf = state.iter().map(|state| RawBson::from(*state)).collect();
        let mut filter = rawdoc! {
            "migration": migration, "_id": { "$gt": after.as_str() }, "state": { "$in": states },
        };
        if let Some(round) = round {
            filter.append(cstr!("round"), round);
        }
        let page = page(records, filter, 1000, rawdoc! { "namespace": 1, "key": 1 }).await?;
        let Some(last) = page.last() else { return Ok(keys) };
        last.get_str("_id")
            .map_err(|error| RecordError::Malformed(error.to_string()))?
            .clone_into(&mut after);
        keys.extend(page.iter().filter_map(|stored| named(stored)));
    }
}

async fn page(
    records: &Records,
    filter: RawDocumentBuf,
    limit: i32,
    projection: RawDocumentBuf,
) -> Result<Vec<RawDocumentBuf>, RecordError> {
    let body = rawdoc! {
        "find": UNRETURNED, "filter": filter, "sort": { "_id": 1 }, "limit": limit, "batchSize": limit + 1,
        "singleBatch": true, "projection": projection, "readConcern": { "level": "majority" },
    };
    first_batch(&records.read(DATABASE, body).await?.body).map_err(RecordError::Malformed)
}

fn named(stored: &RawDocument) -> Option<(Namespace, Key)> {
    let namespace = Namespace::parse(stored.get_str("namespace").ok()?)?;
    Some((namespace, key_of(stored.get("key").ok().flatten()?)?))
}

/// A part of the list, for operators.
pub(crate) async fn listed(
    records: &Records,
    migration: &str,
    asked: &UnreturnedPage,
) -> Result<UnreturnedList, RecordError> {
    let limit = asked.limit.unwrap_or(100);
    let after = format!("{migration}/{}", asked.after.as_deref().unwrap_or(""));
    let filter = rawdoc! { "migration": migration, "_id": { "$gt": after } };
    let found = page(records, filter, i32::from(limit), RawDocumentBuf::new()).await?;
    let is_last = found.len() < usize::from(limit);
    let last = found.last().and_then(|last| last.get_str("_id").ok()?.rsplit('/').next());
    let next = last.filter(|_| !is_last).map(str::to_owned);
    Ok(UnreturnedList { documents: found.iter().filter_map(|stored| shown_as(stored)).collect(), next })
}

fn shown_as(stored: &RawDocument) -> Option<Unreturned> {
    let (namespace, key) = named(stored)?;
    let on_new = match stored.get("on_new") {
        Ok(Some(RawBsonRef::Binary(bytes))) => {
            let document = bson::Document::try_from(RawDocument::from_bytes(bytes.bytes).ok()?).ok()?;
            let mut text = bson::Bson::Document(document).into_relaxed_extjson().to_string();
            let end = (0..=MOST_SHOWN.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
            text.truncate(end.unwrap_or(0));
            Some(text)
        }
        _ => None,
    };
    Some(Unreturned {
        namespace: namespace.as_str().to_owned(),
        key: shown(&key),
        state: stored.get_str("state").unwrap_or(NAMED).to_owned(),
        why: stored.get_str("why").ok().map(str::to_owned),
        on_new,
    })
}
