//! What the router reads in a reply that it passes on, and what it takes out.

use std::ops::Range;

use bson::RawDocument;
use bytes::BytesMut;
use reshard::cluster::TimesFor;
use reshard::wire::element::{Elements, TIMESTAMP};
use reshard::wire::header::HEADER_LEN;

use super::failure::{Failure, STALE};
use super::raw;
use super::versioned::is_stale;

/// Where the body of a reply begins, which has no other section.
const BODY: usize = HEADER_LEN + 5;

/// What one walk over a reply finds.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) ok: bool,
    pub(super) code: i64,
    pub(super) write_errors: bool,
    /// The id of a cursor.
    pub(super) cursor: Option<i64>,
    cluster_time: Option<Range<usize>>,
    operation_time: Option<Range<usize>>,
    /// Elements that only shards say.
    surplus: Vec<Range<usize>>,
}

impl Seen {
    pub(super) fn scan(reply: &[u8]) -> Result<Self, Failure> {
        let unusable = |_| Failure::bad_value("unusable reply");
        let mut seen = Self::default();
        for element in Elements::within(reply, BODY..reply.len()).map_err(unusable)? {
            let element = element.map_err(unusable)?;
            match element.key {
                b"ok" => seen.ok = element.as_bool() == Some(true),
                b"code" => seen.code = element.as_i64().unwrap_or(0),
                b"writeErrors" => seen.write_errors = true,
                b"cursor" => {
                    let id = element.children().and_then(|mut fields| {
                        fields.find_map(|field| field.ok().filter(|field| field.key == b"id"))
                    });
                    seen.cursor = id.and_then(|id| id.as_i64());
                }
                b"$clusterTime" => seen.cluster_time = Some(element.value_range()),
                b"operationTime" if element.kind == TIMESTAMP => {
                    seen.operation_time = Some(element.value_range());
                }
                key if raw::is_from_shards(key) => seen.surplus.push(element.range()),
                _ => {}
            }
        }
        Ok(seen)
    }

    /// Whether the command as a whole was refused for its routing table.
    pub(super) fn is_stale(&self) -> bool {
        !self.ok && STALE.iter().any(|code| i64::from(*code) == self.code)
    }

    /// Whether the command or a write in it was.
    pub(super) fn has_stale(&self, reply: &[u8]) -> bool {
        self.is_stale() || (self.write_errors && self.body(reply).is_some_and(is_stale))
    }

    pub(super) fn body<'a>(&self, reply: &'a [u8]) -> Option<&'a RawDocument> {
        RawDocument::from_bytes(reply.get(BODY..)?).ok()
    }

    /// Takes note of the cluster's time.
    pub(super) fn tell(&self, time: &TimesFor, reply: &[u8]) {
        if let Some(place) = &self.cluster_time
            && let Ok(told) = RawDocument::from_bytes(&reply[place.clone()])
        {
            time.observe(told);
        }
    }

    /// The engine's own operation time may lie before what a shard did for it; the cluster's time does not.
    pub(super) fn correct_operation_time(&self, reply: &mut [u8]) {
        let Some(place) = &self.cluster_time else { return };
        let Ok(time) = RawDocument::from_bytes(&reply[place.clone()]) else { return };
        if let (Ok(time), Some(place)) = (time.get_timestamp("clusterTime"), &self.operation_time) {
            let value = (u64::from(time.time) << 32) | u64::from(time.increment);
            reply[place.clone()].copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Takes out what only shards say. All other positions are void after it.
    pub(super) fn strip(&mut self, reply: &mut BytesMut) {
        for range in self.surplus.drain(..).rev() {
            let kept = reply.len() - range.len();
            reply.copy_within(range.end.., range.start);
            reply.truncate(kept);
        }
        for (at, length) in [(0, reply.len()), (BODY, reply.len() - BODY)] {
            let length = i32::try_from(length).unwrap_or(i32::MAX);
            reply[at..at + 4].copy_from_slice(&length.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;
    use reshard::wire::op_msg::{self, OpMsg};

    #[test]
    fn what_shards_say_is_taken_out() {
        let body = rawdoc! {"electionId": 1, "cursor": {"firstBatch": [], "id": 7_i64}, "ok": 1.0, "opTime": {"a": 1}};
        let mut reply = BytesMut::from(&op_msg::build(1, 2, 0, body.as_bytes(), None)[..]);
        let mut seen = Seen::scan(&reply).unwrap();
        assert_eq!((seen.ok, seen.cursor), (true, Some(7)));
        seen.strip(&mut reply);
        let parts = OpMsg::parse(&reply).unwrap();
        let kept = RawDocument::from_bytes(&reply[parts.body]).unwrap();
        assert_eq!(kept, &*rawdoc! {"cursor": {"firstBatch": [], "id": 7_i64}, "ok": 1.0});
    }
}
