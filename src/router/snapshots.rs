//! Snapshots of sessions. The first read of one is answered with a time, and the others ask for the same; that time means
//! something on one cluster only.

use std::collections::HashMap;
use std::time::Duration;

use bson::{RawDocument, Timestamp};
use bytes::BytesMut;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use super::operation::Operation;
use super::pipeline::Router;
use crate::model::side::Side;
use crate::policy::classify::Class;
use crate::wire::error::{ErrorReply, SNAPSHOT_TOO_OLD};
use crate::wire::op_msg::OpMsg;
use crate::wire::scan::find;

/// No server keeps snapshots for so long, unless told to: five minutes are usual.
const KEEP: Duration = Duration::from_secs(60 * 60);
/// Snapshots that are known at once; one that is forgotten must be begun anew.
const MOST: usize = 10_000;

/// The session, and the time.
type Key = (u64, u64);

/// The clusters of the snapshots that sessions read at.
#[derive(Debug, Default)]
pub struct Snapshots(Mutex<HashMap<Key, (Side, Duration)>>);

impl Snapshots {
    fn side(&self, key: Key) -> Option<Side> {
        self.0.lock().get(&key).map(|(side, _)| *side)
    }

    fn note(&self, key: Key, side: Side, now: Duration) {
        let mut known = self.0.lock();
        if known.len() >= MOST && !known.contains_key(&key) {
            known.retain(|_, (_, used)| now.saturating_sub(*used) < KEEP);
            if known.len() >= MOST {
                known.clear();
            }
        }
        known.insert(key, (side, now));
    }
}

/// A read of a snapshot.
pub(super) struct Snapshot {
    session: u64,
}

impl Router {
    /// Whether a read that goes to `side` is one of a snapshot.
    ///
    /// # Errors
    /// The error to answer with: its time is not one of that cluster.
    pub(super) fn snapshot(
        &self,
        operation: &Operation<'_>,
        side: Side,
    ) -> Result<Option<Snapshot>, ErrorReply> {
        let (Some(writer), Some(concern)) = (&self.writer, operation.command.read_concern) else {
            return Ok(None);
        };
        let is_snapshot = find(concern, b"level").is_some_and(|level| level.as_str() == Some("snapshot"));
        if !is_snapshot || operation.class != Class::Read {
            return Ok(None);
        }
        let session = operation.command.session();
        let session =
            session.map_or_else(|| xxh3_64(&operation.client.to_le_bytes()), |session| xxh3_64(&session));
        let time = find(concern, b"atClusterTime").and_then(|time| time.value().try_into().ok());
        if let Some(time) = time.map(u64::from_le_bytes) {
            match self.shared.snapshots.side((session, time)) {
                Some(known) if known == side => {}
                None if writer.gate.routing.peek().routes.is_empty() => {}
                known => return Err(too_old(known, side)),
            }
        }
        Ok(Some(Snapshot { session }))
    }

    /// Takes note of the time that `reply` says the snapshot is of.
    pub(super) fn note_snapshot(&self, snapshot: &Snapshot, side: Side, reply: &BytesMut) {
        let body =
            OpMsg::parse(reply).ok().and_then(|parts| RawDocument::from_bytes(&reply[parts.body]).ok());
        let Some(body) = body else { return };
        let of_cursor = body.get_document("cursor").and_then(|cursor| cursor.get_timestamp("atClusterTime"));
        let Ok(Timestamp { time, increment }) = of_cursor.or_else(|_| body.get_timestamp("atClusterTime"))
        else {
            return;
        };
        let time = u64::from(time) << 32 | u64::from(increment);
        self.shared.snapshots.note((snapshot.session, time), side, self.now());
    }
}

fn too_old(known: Option<Side>, side: Side) -> ErrorReply {
    let of = known.map_or("it is not known (any more) of which cluster".to_owned(), |known| {
        format!("it is one of {known}")
    });
    let why = format!(
        "this snapshot cannot be read on {side}, which serves this collection now: {of}; begin a new one"
    );
    ErrorReply::new(SNAPSHOT_TOO_OLD, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded() {
        let snapshots = Snapshots::default();
        for number in 0..MOST as u64 + 10 {
            snapshots.note((number, 1), Side::New, Duration::from_secs(number));
        }
        assert!(snapshots.0.lock().len() <= MOST);
        assert_eq!(snapshots.side((MOST as u64 + 9, 1)), Some(Side::New));
        assert_eq!(snapshots.side((MOST as u64 + 9, 2)), None);
    }
}
