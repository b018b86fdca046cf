//! Change streams of applications: which cluster serves one, and where it may begin.
//!
//! Old serves them until every write of what they watch has moved to new. From the move on the stream that is
//! open there is shown to its end, up to the move, and then ends with an error that no driver resumes from by
//! itself: tokens of one cluster mean nothing on the other.

use bson::{RawDocument, Timestamp};

use crate::model::moves::Move;
use crate::model::namespace::Namespace;
use crate::model::side::{PerSide, Side};
use crate::model::slots::SlotSet;

/// What a change stream watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched {
    /// One collection.
    Collection(Namespace),
    /// All collections of a database.
    Database(String),
    /// All there are.
    Everything,
}

impl Watched {
    /// What the aggregate `body` on `collection` (`None`: on no collection) of `database` watches; `None`: it is
    /// no change stream.
    #[must_use]
    pub fn by(database: &str, collection: Option<&str>, body: &RawDocument) -> Option<Self> {
        let stage = body.get_array("pipeline").ok()?.into_iter().next()?.ok()?.as_document()?;
        let options = stage.get_document("$changeStream").ok()?;
        Some(match collection {
            Some(collection) => Self::Collection(Namespace::new(database, collection)),
            None if options.get_bool("allChangesForCluster").unwrap_or(false) => Self::Everything,
            None => Self::Database(database.to_owned()),
        })
    }
}

impl Watched {
    /// What a change stream watches whose cursor is named by `database` and `collection`. Of the whole cluster is what
    /// may be of all that is in `admin`.
    #[must_use]
    pub fn by_name(database: &str, collection: &str) -> Self {
        match (database, collection) {
            ("admin", ON_NO_COLLECTION) => Self::Everything,
            (_, ON_NO_COLLECTION) => Self::Database(database.to_owned()),
            _ => Self::Collection(Namespace::new(database, collection)),
        }
    }
}

/// The collection by which cursors of aggregates on no collection go.
const ON_NO_COLLECTION: &str = "$cmd.aggregate";

impl std::fmt::Display for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Collection(namespace) => write!(f, "{namespace}"),
            Self::Database(database) => write!(f, "database {database}"),
            Self::Everything => write!(f, "the whole cluster"),
        }
    }
}

/// What a resume token tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Its cluster time; `None`: it does not read.
    pub time: Option<Timestamp>,
    /// The UUID of the collection whose event it is; `None`: it stands for a time alone.
    pub collection: Option<[u8; 16]>,
}

/// Where a change stream is to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// Now.
    Now,
    /// After a token.
    Token(Token),
    /// At a time.
    Time(Timestamp),
}

impl Beginning {
    /// As the aggregate `body` asks for.
    #[must_use]
    pub fn of(body: &RawDocument) -> Self {
        let stage = body.get_array("pipeline").ok().and_then(|stages| stages.into_iter().next()?.ok());
        let stage = stage.and_then(|stage| stage.as_document());
        let Some(options) = stage.and_then(|stage| stage.get_document("$changeStream").ok()) else {
            return Self::Now;
        };
        let tokens = ["resumeAfter", "startAfter"].into_iter();
        if let Some(token) = tokens.filter_map(|field| options.get_document(field).ok()).next() {
            return Self::Token(Token { time: token_time(token), collection: token_collection(token) });
        }
        options.get_timestamp("startAtOperationTime").map_or(Self::Now, Self::Time)
    }
}

/// The cluster that serves the streams of a collection: new once it has every write, and else old. What a cluster
/// owns whose record is `unread`, is what the other has not got.
#[must_use]
pub fn home(owned_by_old: &SlotSet, owned_by_new: &SlotSet, unread: Option<Side>) -> Side {
    let new_has_all = *owned_by_new == SlotSet::ALL || unread == Some(Side::New);
    if owned_by_old.is_empty() && new_has_all { Side::New } else { Side::Old }
}

/// The times, on both clusters, of the move that made `home` serve the streams; `None`: there was none, or its
/// times were not stored.
#[must_use]
pub fn moved_at(home: Side, owned_by_new: &SlotSet, moves: &[Move]) -> Option<PerSide<Timestamp>> {
    let mut newest: Vec<&Move> = moves.iter().collect();
    newest.sort_by_key(|past| std::cmp::Reverse(past.epoch));
    let all = home == Side::New;
    let mut before = if all { SlotSet::ALL } else { *owned_by_new };
    for past in newest {
        before = match past.former {
            Side::Old => before.minus(&past.slots),
            Side::New => before.or(&past.slots),
        };
        if (before == SlotSet::ALL) != all {
            return past.markers;
        }
    }
    None
}

/// How long after a move a process may still have shown the other cluster's times, in seconds: until it knew of the
/// move; without its lease it would have shown nothing.
const SETTLING: u32 = 15;

/// Whether a stream may begin so on `home`, which serves it since the move at `moved`, as far as times tell: what could
/// be one of either cluster is refused. Of a token with a collection that says more.
#[must_use]
pub fn may_begin(beginning: Beginning, moved: &PerSide<Timestamp>, home: Side) -> bool {
    let latest = moved.old.max(moved.new);
    let latest = Timestamp { time: latest.time.saturating_add(SETTLING), ..latest };
    match beginning {
        Beginning::Now => true,
        // The server says what is wrong with it.
        Beginning::Token(Token { time: None, .. }) => true,
        Beginning::Token(Token { time: Some(time), .. }) => time > latest,
        Beginning::Time(time) => time == *moved.get(home) || time > latest,
    }
}

/// The cluster time that a resume token stands for: its key string begins with the type byte of a timestamp
/// and eight big-endian bytes.
#[must_use]
pub fn token_time(token: &RawDocument) -> Option<Timestamp> {
    let data = token.get_str("_data").ok()?;
    let number = |from: usize| u32::from_str_radix(data.get(from..from + 8)?, 16).ok();
    (data.get(..2)? == "82").then_some(())?;
    Some(Timestamp { time: number(2)?, increment: number(10)? })
}

/// The collection of the event that a resume token stands for: a UUID in its key string, where it stands for one.
#[must_use]
pub fn token_collection(token: &RawDocument) -> Option<[u8; 16]> {
    /// Binary data, 16 bytes, subtype UUID.
    const UUID: &[u8] = b"5A1004";
    let data = token.get_str("_data").ok()?.as_bytes();
    // Behind the time, byte by byte.
    let at = (18..data.len()).step_by(2).find(|at| data[*at..].starts_with(UUID))? + UUID.len();
    let digits = std::str::from_utf8(data.get(at..at + 32)?).ok()?;
    Some(u128::from_str_radix(digits, 16).ok()?.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    fn at(time: u32) -> Timestamp {
        Timestamp { time, increment: 1 }
    }

    fn past(from: u8, to: u8, epoch: u64, former: Side) -> Move {
        let slots = SlotSet::percent(from.max(to)).minus(&SlotSet::percent(from.min(to)));
        let epoch_time = u32::try_from(epoch).unwrap();
        let markers = Some(PerSide { old: at(epoch_time), new: at(epoch_time + 1000) });
        Move { slots, former, epoch, at: 0, markers }
    }

    #[test]
    fn the_time_of_a_token() {
        let token = rawdoc! { "_data": "8263F4A1C2000000052B0229296E04" };
        assert_eq!(token_time(&token), Some(Timestamp { time: 0x63F4_A1C2, increment: 5 }));
        assert_eq!(token_time(&rawdoc! { "_data": "82zz" }), None);
    }

    #[test]
    fn the_collection_of_a_token() {
        let event = "8263F4A1C2000000052B022C0100296E5A1004000102030405060708090A0B0C0D0E0F46645F69640000";
        let token = rawdoc! { "_data": event };
        assert_eq!(token_collection(&token), Some(std::array::from_fn(|n| u8::try_from(n).unwrap())));
        assert_eq!(token_collection(&rawdoc! { "_data": "8263F4A1C2000000052B0229296E04" }), None);
        // Not in the time, and not between two bytes.
        let other = "825A100400000000052B02A5A10040296E04";
        assert_eq!(token_collection(&rawdoc! { "_data": other }), None);
    }

    #[test]
    fn what_a_pipeline_watches() {
        let stream = |options: bson::RawDocumentBuf| rawdoc! { "pipeline": [{ "$changeStream": options }] };
        let orders = Watched::Collection(Namespace::new("shop", "orders"));
        assert_eq!(Watched::by("shop", Some("orders"), &stream(rawdoc! {})), Some(orders));
        assert_eq!(Watched::by("shop", None, &stream(rawdoc! {})), Some(Watched::Database("shop".into())));
        let all = stream(rawdoc! { "allChangesForCluster": true });
        assert_eq!(Watched::by("admin", None, &all), Some(Watched::Everything));
        let other = rawdoc! { "pipeline": [{ "$match": {} }] };
        assert_eq!(Watched::by("shop", Some("orders"), &other), None);
    }

    #[test]
    fn only_the_move_that_changed_the_cluster_counts() {
        let up = [past(0, 50, 2, Side::Old), past(50, 100, 3, Side::Old)];
        assert_eq!(moved_at(Side::New, &SlotSet::ALL, &up), Some(PerSide { old: at(3), new: at(1003) }));
        assert_eq!(
            moved_at(Side::Old, &SlotSet::percent(50), &up[..1]),
            None,
            "old has served them all the time"
        );
        let mut back = up.to_vec();
        back.extend([past(100, 60, 4, Side::New), past(60, 0, 5, Side::New)]);
        assert_eq!(moved_at(Side::Old, &SlotSet::EMPTY, &back), Some(PerSide { old: at(4), new: at(1004) }));
        // Both records tell of a move.
        let twice: Vec<Move> = up.iter().chain(&up).cloned().collect();
        assert_eq!(moved_at(Side::New, &SlotSet::EMPTY, &twice), moved_at(Side::New, &SlotSet::ALL, &up));
    }

    #[test]
    fn what_may_be_of_the_other_cluster_begins_nowhere() {
        let moved = PerSide { old: at(30), new: at(20) };
        let may = |beginning| may_begin(beginning, &moved, Side::New);
        let token = |time| Beginning::Token(Token { time: Some(time), collection: None });
        assert!(may(Beginning::Now) && may(Beginning::Token(Token { time: None, collection: None })));
        for early in [19, 25, 30, 30 + SETTLING] {
            assert!(!may(token(at(early))) && !may(Beginning::Time(at(early))), "{early}");
        }
        assert!(may(token(at(31 + SETTLING))) && may(Beginning::Time(at(31 + SETTLING))));
        assert!(may(Beginning::Time(at(20))), "the time of the move");
    }

    #[test]
    fn new_serves_streams_when_it_has_every_write() {
        assert_eq!(home(&SlotSet::EMPTY, &SlotSet::ALL, None), Side::New);
        // In the middle of the last move.
        assert_eq!(home(&SlotSet::EMPTY, &SlotSet::percent(50), None), Side::Old);
        assert_eq!(home(&SlotSet::ALL, &SlotSet::EMPTY, None), Side::Old);
        // New's record cannot be read.
        assert_eq!(home(&SlotSet::EMPTY, &SlotSet::EMPTY, Some(Side::New)), Side::New);
        assert_eq!(home(&SlotSet::percent(10), &SlotSet::EMPTY, Some(Side::New)), Side::Old);
    }
}
