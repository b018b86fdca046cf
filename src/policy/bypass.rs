//! Writes that went past the proxy: how many there were lately, and whether they stand in the way of a move.

use bson::RawDocument;
use bson::raw::RawBson;
use serde::{Deserialize, Serialize};

const HOUR: i64 = 60 * 60 * 1000;
/// So long they stand in the way.
pub const WINDOW_MILLIS: i64 = 24 * HOUR;
/// Of a document that was undone so much is kept.
pub const MOST_IMAGE_BYTES: usize = 16 * 1024;
/// Codes with which a router may answer although a shard is still at work on the write: `HostUnreachable`,
/// `HostNotFound`, `MaxTimeMSExpired`, `NetworkTimeout`, `ShutdownInProgress`, `NetworkInterfaceExceededTimeLimit`,
/// `ExceededTimeLimit`, `SocketException`, `InterruptedAtShutdown`, `InterruptedDueToReplStateChange`,
/// `ConnectionPoolExpired` and kin.
const MAY_GO_ON: [i32; 13] = [6, 7, 50, 89, 91, 202, 262, 9001, 11600, 11602, 384, 317, 133];

/// One of them, for messages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// Unix milliseconds, when it was seen.
    pub at: i64,
    /// `database.collection`.
    pub namespace: String,
    /// The `_id` as extended JSON.
    pub key: String,
}

/// How many there were in the last day, counted by hours, and the last one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    hours: Vec<Hour>,
    /// The last one.
    pub latest: Option<Example>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Hour {
    hour: i64,
    count: i64,
    last: i64,
}

impl Window {
    /// `count` more, of which the last is `latest`.
    pub fn note(&mut self, count: i64, latest: Example) {
        let (at, hour) = (latest.at, latest.at.div_euclid(HOUR));
        match self.hours.iter_mut().find(|known| known.hour == hour) {
            Some(known) => {
                known.count += count;
                known.last = known.last.max(at);
            }
            None => self.hours.push(Hour { hour, count, last: at }),
        }
        self.hours.retain(|known| known.last > at - WINDOW_MILLIS);
        self.latest = Some(latest);
    }

    /// How many are not older than a day at `now`; exact but for the hour that is a day ago.
    #[must_use]
    pub fn count(&self, now: i64) -> i64 {
        self.hours.iter().filter(|hour| hour.last > now - WINDOW_MILLIS).map(|hour| hour.count).sum()
    }
}

/// All that is counted of a migration's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Ever, on either cluster.
    pub total: i64,
    /// Lately, on either cluster.
    pub lately: Window,
    /// Lately, on old, and not acknowledged.
    pub unacknowledged: Window,
    /// How many were on old since the last acknowledgement, however long ago.
    pub open: i64,
}

impl Tally {
    /// `count` more on old or new, of which the last is `latest`.
    pub fn note(&mut self, on_old: bool, count: i64, latest: Example) {
        self.total += count;
        if on_old {
            self.open += count;
            self.unacknowledged.note(count, latest.clone());
        }
        self.lately.note(count, latest);
    }

    /// An operator knows of all that are counted by now: only later ones stand in the way.
    pub fn acknowledge(&mut self) {
        self.open = 0;
        self.unacknowledged = Window::default();
    }

    /// Why writes may not move to new at `now`, in words.
    #[must_use]
    pub fn stands_in_the_way(&self, now: i64) -> Option<String> {
        let count = self.unacknowledged.count(now);
        let latest = self.unacknowledged.latest.as_ref().filter(|_| count > 0)?;
        let Example { at, namespace, key } = latest;
        let at = bson::DateTime::from_millis(*at).try_to_rfc3339_string().unwrap_or_else(|_| at.to_string());
        let writes = if count == 1 { "write" } else { "writes" };
        Some(format!(
            "{count} {writes} of the last 24 h on old went past the proxy, the last at {at} ({namespace}, _id {key}); \
             once writes have moved such a write is undone. Point that writer at the proxy: the gate opens 24 h after the \
             last one; or acknowledge them (bypass lists them, acknowledge-bypass --reason)"
        ))
    }
}

/// Whether a write may still be executed although `reply` has come, through a router.
#[must_use]
pub fn may_go_on(reply: &RawDocument) -> bool {
    let code = |document: &RawDocument| document.get_i32("code").is_ok_and(|code| MAY_GO_ON.contains(&code));
    let errors = reply.get_array("writeErrors").into_iter().flatten().flatten();
    code(reply) || errors.filter_map(|error| error.as_document()).any(code)
}

/// A document as canonical extended JSON, and whether it was cut off at [`MOST_IMAGE_BYTES`].
#[must_use]
pub fn image(document: &RawDocument) -> (String, bool) {
    let mut text = String::from("{");
    for (name, value) in document.iter().flatten() {
        if text.len() > 1 {
            text.push(',');
        }
        let value = bson::Bson::try_from(RawBson::from(value)).map(bson::Bson::into_canonical_extjson);
        let name = serde_json::Value::from(name.as_str());
        match value {
            Ok(value) => text.push_str(&format!("{name}:{value}")),
            Err(_) => text.push_str(&format!("{name}:\"?\"")),
        }
        if text.len() > MOST_IMAGE_BYTES {
            let end = (0..=MOST_IMAGE_BYTES).rev().find(|end| text.is_char_boundary(*end));
            text.truncate(end.unwrap_or(0));
            return (text, true);
        }
    }
    text.push('}');
    (text, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    const NOW: i64 = 1_700_000_000_000;

    fn at(at: i64) -> Example {
        Example { at, namespace: "shop.c".into(), key: "7".into() }
    }

    #[test]
    fn a_write_to_old_stands_in_the_way_for_a_day() {
        let mut tally = Tally::default();
        assert_eq!(tally.stands_in_the_way(NOW), None);
        tally.note(true, 2, at(NOW));
        let why = tally.stands_in_the_way(NOW + WINDOW_MILLIS - 1).unwrap();
        for part in ["2 writes", "2023-11-14T22:13:20Z", "shop.c, _id 7", "24 h after", "acknowledge"] {
            assert!(why.contains(part), "{part}: {why}");
        }
        assert_eq!(tally.stands_in_the_way(NOW + WINDOW_MILLIS), None);
        assert_eq!((tally.total, tally.lately.count(NOW + WINDOW_MILLIS)), (2, 0));
    }

    #[test]
    fn the_day_begins_anew_with_each_write_and_old_ones_are_forgotten() {
        let mut tally = Tally::default();
        for hour in 0..100 {
            tally.note(true, 1, at(NOW + hour * HOUR));
        }
        let last = NOW + 99 * HOUR;
        assert_eq!(tally.unacknowledged.count(last), 24);
        assert!(tally.unacknowledged.hours.len() <= 25, "bounded");
        assert!(tally.stands_in_the_way(last + 23 * HOUR).unwrap().starts_with("1 write "));
        assert_eq!(tally.total, 100);
    }

    #[test]
    fn a_clock_that_was_put_back_opens_nothing() {
        let mut tally = Tally::default();
        tally.note(true, 1, at(NOW));
        assert!(tally.stands_in_the_way(NOW - 3 * HOUR).is_some());
    }

    #[test]
    fn only_writes_after_an_acknowledgement_stand_in_the_way() {
        let mut tally = Tally::default();
        tally.note(true, 5, at(NOW));
        tally.acknowledge();
        assert_eq!(tally.stands_in_the_way(NOW), None);
        assert_eq!((tally.total, tally.lately.count(NOW)), (5, 5));
        tally.note(true, 1, at(NOW + 1));
        assert!(tally.stands_in_the_way(NOW + 1).unwrap().starts_with("1 write "));
    }

    #[test]
    fn writes_to_new_are_counted_and_do_not_stand_in_the_way() {
        let mut tally = Tally::default();
        tally.note(false, 1, at(NOW));
        assert_eq!((tally.stands_in_the_way(NOW), tally.total), (None, 1));
    }

    #[test]
    fn images_keep_types_and_are_bounded() {
        let (text, cut) = image(&rawdoc! { "_id": 1, "n": 5_i64 });
        assert_eq!((text.as_str(), cut), (r#"{"_id":{"$numberInt":"1"},"n":{"$numberLong":"5"}}"#, false));
        let (text, cut) = image(&rawdoc! { "_id": 1, "long": "é".repeat(MOST_IMAGE_BYTES) });
        assert!(cut && text.len() <= MOST_IMAGE_BYTES && text.starts_with(r#"{"_id""#));
    }

    #[test]
    fn a_router_that_gave_up_is_no_proof_of_an_end() {
        assert!(may_go_on(&rawdoc! { "ok": 0.0, "code": 50, "errmsg": "time limit" }));
        assert!(may_go_on(&rawdoc! { "ok": 1.0, "n": 0, "writeErrors": [{ "index": 0, "code": 6 }] }));
        assert!(!may_go_on(&rawdoc! { "ok": 1.0, "n": 0, "writeErrors": [{ "index": 0, "code": 11000 }] }));
        assert!(!may_go_on(&rawdoc! { "ok": 0.0, "code": 9, "errmsg": "FailedToParse" }));
    }
}
