//! What the proxy needs to know about a command, from one walk over its body.

use std::ops::Range;

use super::element::{ARRAY, BINARY, DOCUMENT, Element, Elements, INT64, ScanError, TIMESTAMP};

/// The UUID of a logical session.
pub type SessionId = [u8; 16];

/// The fields of a command that decide where it goes. Positions count from the start of the message.
#[derive(Debug, Clone)]
pub struct Command<'a> {
    /// The first element: its key is the command's name.
    pub first: Element<'a>,
    /// The command's name.
    pub name: &'a str,
    /// `$db`.
    pub database: Option<&'a str>,
    /// `collection` of a `getMore`.
    pub collection_field: Option<&'a str>,
    /// `lsid` with whatever it holds.
    pub lsid: Option<Element<'a>>,
    /// `txnNumber`.
    pub txn_number: Option<i64>,
    /// `startTransaction: true`.
    pub start_transaction: bool,
    /// `autocommit`.
    pub autocommit: Option<bool>,
    /// `$readPreference`.
    pub read_preference: Option<Element<'a>>,
    /// `readConcern`.
    pub read_concern: Option<Element<'a>>,
    /// `writeConcern`.
    pub write_concern: Option<Element<'a>>,
    /// `$clusterTime`.
    pub cluster_time: Option<Element<'a>>,
    /// `recoveryToken` of a commit or an abort.
    pub recovery_token: Option<Element<'a>>,
    /// `maxTimeMS`, milliseconds.
    pub max_time_ms: Option<i64>,
    /// `pipeline` of an aggregate.
    pub pipeline: Option<Element<'a>>,
    /// `cursors` of a `killCursors`.
    pub cursors: Option<Element<'a>>,
    /// `out` of a `mapReduce`.
    pub out: Option<Element<'a>>,
}

impl<'a> Command<'a> {
    /// Reads the command whose body document lies at `body` of `message`.
    ///
    /// # Errors
    /// [`ScanError`] when the body is not a document, is empty, or its name is not UTF-8.
    pub fn scan(message: &'a [u8], body: Range<usize>) -> Result<Self, ScanError> {
        let mut elements = Elements::within(message, body)?;
        let first = elements.next().ok_or(ScanError("empty command"))??;
        let name = std::str::from_utf8(first.key).map_err(|_| ScanError("command name"))?;
        let mut command = Self::named(first, name);
        for element in elements {
            let element = element?;
            if element.key == b"$clusterTime" && command.cluster_time.is_some() {
                // Servers refuse it, and one of them could be overlooked here and pass.
                return Err(ScanError("$clusterTime twice"));
            }
            command.take(element);
        }
        Ok(command)
    }

    fn named(first: Element<'a>, name: &'a str) -> Self {
        Self {
            first,
            name,
            database: None,
            collection_field: None,
            lsid: None,
            txn_number: None,
            start_transaction: false,
            autocommit: None,
            read_preference: None,
            read_concern: None,
            write_concern: None,
            cluster_time: None,
            recovery_token: None,
            max_time_ms: None,
            pipeline: None,
            cursors: None,
            out: None,
        }
    }

    fn take(&mut self, element: Element<'a>) {
        match element.key {
            b"$db" => self.database = element.as_str(),
            b"collection" => self.collection_field = element.as_str(),
            b"lsid" if element.kind == DOCUMENT => self.lsid = Some(element),
            b"txnNumber" => self.txn_number = element.as_i64(),
            b"startTransaction" => self.start_transaction = element.as_bool() == Some(true),
            b"autocommit" => self.autocommit = element.as_bool(),
            b"$readPreference" if element.kind == DOCUMENT => self.read_preference = Some(element),
            b"readConcern" if element.kind == DOCUMENT => self.read_concern = Some(element),
            b"writeConcern" if element.kind == DOCUMENT => self.write_concern = Some(element),
            b"$clusterTime" => self.cluster_time = Some(element),
            b"recoveryToken" => self.recovery_token = Some(element),
            b"maxTimeMS" => self.max_time_ms = element.as_i64(),
            b"pipeline" if element.kind == ARRAY => self.pipeline = Some(element),
            b"cursors" if element.kind == ARRAY => self.cursors = Some(element),
            b"out" if element.kind == DOCUMENT => self.out = Some(element),
            _ => {}
        }
    }

    /// The collection that the command names: its first value, or `collection` of a `getMore`.
    #[must_use]
    pub fn collection(&self) -> Option<&'a str> {
        self.first.as_str().or(self.collection_field)
    }

    /// The session's UUID.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        let id = find(self.lsid?, b"id").filter(|id| id.kind == BINARY)?;
        // Length, subtype, then the 16 bytes.
        id.value().get(5..)?.try_into().ok()
    }

    /// Whether it is a statement of a transaction (also its commit and its abort).
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.autocommit == Some(false) && self.txn_number.is_some()
    }

    /// Whether a server recognises it when it is sent again: a number, and outside a transaction.
    #[must_use]
    pub fn retryable_write(&self) -> bool {
        self.txn_number.is_some() && self.autocommit.is_none()
    }

    /// The `w: 0` of an unacknowledged write.
    #[must_use]
    pub fn unacknowledged(&self) -> Option<Element<'a>> {
        find(self.write_concern?, b"w").filter(|w| w.as_i64() == Some(0))
    }

    /// Whether it must read what came before some time (`readConcern.afterClusterTime`). What is no timestamp is
    /// for the server to refuse.
    #[must_use]
    pub fn after_cluster_time(&self) -> Option<Element<'a>> {
        find(self.read_concern?, b"afterClusterTime").filter(|time| time.kind == TIMESTAMP)
    }

    /// Whether the pipeline writes (`$out`, `$merge`). Walks the stages, so only asked of an aggregate.
    #[must_use]
    pub fn pipeline_writes(&self) -> bool {
        let Some(stages) = self.pipeline.and_then(|pipeline| pipeline.children()) else { return false };
        stages
            .flatten()
            .filter_map(|stage| stage.children())
            .any(|stage| stage.flatten().next().is_some_and(|name| matches!(name.key, b"$out" | b"$merge")))
    }

    /// Whether a `mapReduce` writes nothing: its result is in its reply.
    #[must_use]
    pub fn is_inline(&self) -> bool {
        let mut fields = self.out.and_then(|out| out.children()).into_iter().flatten();
        matches!(fields.next(), Some(Ok(first)) if first.key == b"inline")
    }

    /// Whether a `killCursors` has a list of cursor ids, and nothing else in it.
    #[must_use]
    pub fn names_cursors(&self) -> bool {
        let ids = self.cursors.and_then(|cursors| cursors.children());
        ids.is_some_and(|mut ids| ids.all(|id| id.is_ok_and(|id| id.kind == INT64)))
    }

    /// The cursor ids of a `killCursors`, with where each value lies.
    pub fn cursor_ids(&self) -> impl Iterator<Item = (i64, Range<usize>)> {
        let ids = self.cursors.and_then(|cursors| cursors.children());
        ids.into_iter().flatten().flatten().filter_map(|id| Some((id.as_i64()?, id.value_range())))
    }
}

/// The element `key` of a document.
#[must_use]
pub fn find<'a>(document: Element<'a>, key: &[u8]) -> Option<Element<'a>> {
    document.children()?.flatten().find(|element| element.key == key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    fn scan(bytes: &[u8]) -> Command<'_> {
        Command::scan(bytes, 0..bytes.len()).unwrap()
    }

    #[test]
    fn fields_of_a_transaction_statement() {
        let id = bson::Binary::from(bson::Uuid::from_bytes([7; 16]));
        let body = rawdoc! {
            "insert": "c", "$db": "d", "lsid": { "id": id }, "txnNumber": 5_i64,
            "startTransaction": true, "autocommit": false, "writeConcern": { "w": 0 },
            "readConcern": { "afterClusterTime": bson::Timestamp { time: 1, increment: 2 } },
        };
        let command = scan(body.as_bytes());
        assert_eq!(command.name, "insert");
        assert_eq!(command.collection(), Some("c"));
        assert_eq!(command.database, Some("d"));
        assert_eq!(command.session(), Some([7; 16]));
        assert_eq!(command.txn_number, Some(5));
        assert!(command.start_transaction && command.in_transaction() && !command.retryable_write());
        assert!(command.unacknowledged().is_some());
        assert!(command.after_cluster_time().is_some());
    }

    #[test]
    fn pipelines_that_write_are_found() {
        let reads = rawdoc! { "aggregate": "c", "pipeline": [{ "$match": { "$out": 1 } }] };
        assert!(!scan(reads.as_bytes()).pipeline_writes());
        let writes =
            rawdoc! { "aggregate": "c", "pipeline": [{ "$match": {} }, { "$merge": { "into": "x" } }] };
        assert!(scan(writes.as_bytes()).pipeline_writes());
    }

    #[test]
    fn cursors_of_followers_are_found() {
        let more = rawdoc! { "getMore": 77_i64, "collection": "c", "$db": "d" };
        let more = scan(more.as_bytes());
        assert_eq!((more.first.as_i64(), more.collection()), (Some(77), Some("c")));
        let kill = rawdoc! { "killCursors": "c", "cursors": [1_i64, 2_i64] };
        let ids: Vec<_> = scan(kill.as_bytes()).cursor_ids().map(|(id, _)| id).collect();
        assert_eq!(ids, [1, 2]);
        assert!(scan(kill.as_bytes()).names_cursors());
        for none in
            [rawdoc! { "killCursors": "c", "cursors": 5 }, rawdoc! { "killCursors": "c", "cursors": ["x"] }]
        {
            assert!(!scan(none.as_bytes()).names_cursors());
        }
    }

    #[test]
    fn an_empty_body_is_no_command() {
        let body = rawdoc! {};
        assert!(Command::scan(body.as_bytes(), 0..5).is_err());
        assert!(Command::scan(body.as_bytes(), 0..50).is_err());
    }

    #[test]
    fn a_cluster_time_cannot_hide_behind_another() {
        let time = rawdoc! { "clusterTime": 1 };
        let mut body = rawdoc! { "ping": 1, "$clusterTime": time.clone() };
        body.append(bson::cstr!("$clusterTime"), time);
        assert!(Command::scan(body.as_bytes(), 0..body.as_bytes().len()).is_err());
    }

    #[test]
    fn only_a_timestamp_is_a_time_to_read_after() {
        let body = rawdoc! { "find": "c", "readConcern": { "afterClusterTime": 5 } };
        assert!(scan(body.as_bytes()).after_cluster_time().is_none());
    }
}
