//! A command as it arrives: its name, namespace, statements and concerns.

use std::time::Duration;

use bson::{RawArray, RawBsonRef, RawDocument, Timestamp};
use reshard::cluster::command::{Request, number};

use super::error::{BAD_VALUE, Failure, Outcome};
use super::sessions::Retryable;
use super::store::Ns;

/// A parsed command.
pub(crate) struct Command<'a> {
    /// The name: its first field.
    pub(crate) name: &'a str,
    /// The value of its first field.
    pub(crate) argument: RawBsonRef<'a>,
    /// All of it.
    pub(crate) body: &'a RawDocument,
    request: &'a Request,
    options: Options<'a>,
}

/// What is asked of every command, most of which give none of it: looked for once.
#[derive(Default)]
struct Options<'a> {
    read_concern: Option<&'a RawDocument>,
    write_concern: Option<&'a RawDocument>,
    max_time: Option<RawBsonRef<'a>>,
    statement: Option<RawBsonRef<'a>>,
    statements: Option<&'a RawArray>,
}

impl<'a> Options<'a> {
    fn of(body: &'a RawDocument) -> Self {
        let mut options = Self::default();
        for (name, value) in body.iter().flatten() {
            match name.as_str() {
                "readConcern" => options.read_concern = value.as_document(),
                "writeConcern" => options.write_concern = value.as_document(),
                "maxTimeMS" => options.max_time = Some(value),
                "stmtId" => options.statement = Some(value),
                "stmtIds" => options.statements = value.as_array(),
                _ => {}
            }
        }
        options
    }
}

/// How a command reads.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ReadConcern {
    /// Only what the majority has.
    pub(crate) majority: bool,
    /// Only from a member that is the primary at that moment.
    pub(crate) linearizable: bool,
    /// Not before this time.
    pub(crate) after: Option<Timestamp>,
}

/// Whether a write waits for the majority, and for how long at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WriteConcern {
    /// Waits.
    pub(crate) majority: bool,
    /// `wtimeout`.
    pub(crate) limit: Option<Duration>,
}

impl<'a> Command<'a> {
    /// Reads a request.
    pub(crate) fn parse(request: &'a Request) -> Outcome<Self> {
        let body: &RawDocument = &request.body;
        let first = body.iter().next().ok_or_else(|| Failure::new(BAD_VALUE, "an empty command"))?;
        let (name, argument) = first?;
        Ok(Self { name: name.as_str(), argument, body, request, options: Options::of(body) })
    }

    /// The namespace that it names.
    pub(crate) fn ns(&self) -> Outcome<Ns> {
        let collection = self.argument.as_str().ok_or_else(|| Failure::new(73, "no collection"))?;
        Ok(self.named(collection))
    }

    /// A collection of its database.
    pub(crate) fn named(&self, collection: &str) -> Ns {
        format!("{}.{collection}", self.request.database).into()
    }

    /// The database.
    pub(crate) fn database(&self) -> &'a str {
        &self.request.database
    }

    /// Documents of an array or of the sequence beside the body.
    pub(crate) fn documents(&self, field: &str) -> Outcome<Vec<&'a RawDocument>> {
        if let Some(sequence) = &self.request.sequence
            && sequence.identifier == field
        {
            return split(&sequence.documents);
        }
        let array = self.body.get_array(field).map_err(|error| Failure::new(BAD_VALUE, error.to_string()))?;
        let document = |value: RawBsonRef<'a>| value.as_document();
        Ok(array.into_iter().flatten().filter_map(document).collect())
    }

    /// A flag that counts as `default` if it is missing.
    pub(crate) fn flag(&self, name: &str, default: bool) -> bool {
        number(self.body, name).map_or(default, |value| value != 0.0)
    }

    /// A number.
    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        number(self.body, name).map(|value| value as i64)
    }

    /// An embedded document.
    pub(crate) fn document(&self, name: &str) -> Option<&'a RawDocument> {
        self.body.get_document(name).ok()
    }

    /// `maxTimeMS`.
    pub(crate) fn max_time(&self) -> Option<Duration> {
        let given = match self.options.max_time? {
            RawBsonRef::Int32(millis) => Some(i64::from(millis)),
            RawBsonRef::Int64(millis) => Some(millis),
            _ => self.number("maxTimeMS"),
        };
        given.filter(|&millis| millis > 0).map(|millis| Duration::from_millis(millis as u64))
    }

    /// Its read concern.
    pub(crate) fn read_concern(&self) -> ReadConcern {
        let Some(concern) = self.options.read_concern else { return ReadConcern::default() };
        ReadConcern {
            majority: concern.get_str("level").is_ok_and(|level| level == "majority"),
            linearizable: concern.get_str("level").is_ok_and(|level| level == "linearizable"),
            after: concern.get_timestamp("afterClusterTime").ok(),
        }
    }

    /// Its write concern.
    pub(crate) fn write_concern(&self, default_majority: bool) -> WriteConcern {
        let Some(concern) = self.options.write_concern else {
            return WriteConcern { majority: default_majority, limit: None };
        };
        let majority = match concern.get("w").ok().flatten() {
            Some(RawBsonRef::String(_)) => true,
            Some(_) => number(concern, "w").is_some_and(|members| members > 1.0),
            None => default_majority,
        };
        let limit = number(concern, "wtimeout").filter(|&millis| millis > 0.0);
        WriteConcern { majority, limit: limit.map(|millis| Duration::from_millis(millis as u64)) }
    }

    /// Its session and number, if it is a retryable write.
    pub(crate) fn retryable(&self) -> Outcome<Option<Retryable>> {
        Retryable::of(self.body)
    }

    /// The id of its statement at `index`.
    pub(crate) fn statement_id(&self, index: usize) -> i32 {
        let given = self.options.statements.and_then(|ids| ids.get(index).ok().flatten());
        let single = || self.options.statement.and_then(RawBsonRef::as_i32);
        given.and_then(RawBsonRef::as_i32).or_else(single).unwrap_or(index as i32)
    }
}

fn split(mut bytes: &[u8]) -> Outcome<Vec<&RawDocument>> {
    let mut documents = Vec::new();
    while let Some(length) = bytes.first_chunk::<4>() {
        let length = i32::from_le_bytes(*length) as usize;
        let (document, rest) =
            bytes.split_at_checked(length).ok_or_else(|| Failure::new(BAD_VALUE, "a broken sequence"))?;
        documents.push(RawDocument::from_bytes(document)?);
        bytes = rest;
    }
    Ok(documents)
}
