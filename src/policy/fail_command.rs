//! The fail point `failCommand`, as servers have it: which commands fail, and how.
//!
//! Tests of applications and drivers set it where they connect, and expect to meet its errors there. Passed on to a
//! server it would fail the proxy instead, which tries again, and knows nothing of the name that the application
//! gave itself. So it lives at the address that it was set at, as it lives in a router.

use std::time::Duration;

use bson::raw::RawBsonRef;
use bson::{RawArrayBuf, RawDocument, RawDocumentBuf};

use super::fail_mode::{Mode, whole};
use super::failover::Kind;

/// The fail point of one address.
#[derive(Debug, Clone, Default)]
pub struct FailCommand {
    mode: Mode,
    data: Data,
    entered: i64,
}

#[derive(Debug, Clone, Default)]
struct Data {
    commands: Vec<String>,
    all: bool,
    namespace: Option<String>,
    application: Option<String>,
    block: Option<Duration>,
    close: bool,
    code: Option<i32>,
    write_concern_error: Option<RawDocumentBuf>,
    labels: Option<RawArrayBuf>,
}

/// A command that may fail.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Its name.
    pub name: &'a str,
    /// `$db`.
    pub database: &'a str,
    /// The collection that it names.
    pub collection: Option<&'a str>,
    /// The name of its application.
    pub application: Option<&'a str>,
    /// How it may be repeated.
    pub kind: Kind,
}

/// What happens to a command instead of, or before, being executed.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    /// First, it waits so long.
    pub block: Option<Duration>,
    /// What then.
    pub end: End,
}

/// How a command ends.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// As ever.
    Executed,
    /// With its connection.
    Closed,
    /// With this code and these labels.
    Failed(i32, RawArrayBuf),
}

/// What is added to the answer of a command that was executed.
#[derive(Debug, Clone, PartialEq)]
pub struct Addition {
    /// `writeConcernError`.
    pub write_concern_error: RawDocumentBuf,
    /// `errorLabels`; may be empty.
    pub labels: RawArrayBuf,
}

impl FailCommand {
    /// As `configureFailPoint` tells it; how often it was met before is kept.
    ///
    /// # Errors
    /// In words, what is wrong.
    pub fn configured(&self, command: &RawDocument) -> Result<Self, String> {
        let mode = Mode::parse(command.get("mode").ok().flatten())?;
        let data = match command.get("data").ok().flatten() {
            Some(RawBsonRef::Document(data)) => Data::parse(data)?,
            None => Data::default(),
            Some(_) => return Err("'data' must be an object".to_owned()),
        };
        Ok(Self { mode, data, entered: self.entered })
    }

    /// How often it has been met.
    #[must_use]
    pub fn entered(&self) -> i64 {
        self.entered
    }

    /// Whether a command can meet it.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.mode != Mode::Off
    }

    /// What a command meets before it is executed; it counts then.
    pub fn before(&mut self, asked: &Asked<'_>) -> Option<Effect> {
        let Data { block, close, code, .. } = self.data;
        let meets = (block.is_some() || close || code.is_some()) && self.data.concerns(asked);
        if !(meets && self.enter()) {
            return None;
        }
        let end = match code {
            _ if close => End::Closed,
            None | Some(0) => End::Executed,
            Some(code) => {
                let labels = self.data.labels.clone();
                End::Failed(code, labels.unwrap_or_else(|| labels_of(code, asked.kind, false)))
            }
        };
        Some(Effect { block, end })
    }

    /// What is added to the answer of a command; it counts then.
    pub fn after(&mut self, asked: &Asked<'_>) -> Option<Addition> {
        let error = self.data.write_concern_error.clone()?;
        if !(self.data.concerns(asked) && self.enter()) {
            return None;
        }
        let code = error.get_i32("code").unwrap_or(0);
        let labels = self.data.labels.clone().unwrap_or_else(|| labels_of(code, asked.kind, true));
        Some(Addition { write_concern_error: error, labels })
    }

    fn enter(&mut self) -> bool {
        let met = self.mode.enter(1);
        self.entered += i64::from(met);
        met
    }
}

impl Data {
    fn parse(data: &RawDocument) -> Result<Self, String> {
        let field = |name: &str| data.get(name).ok().flatten();
        let text = |name: &str| field(name).and_then(|value| value.as_str()).map(str::to_owned);
        let yes = |name: &str| field(name).and_then(|value| value.as_bool()) == Some(true);
        let number = |name: &str| field(name).and_then(whole);
        let block = match number("blockTimeMS").map(u64::try_from) {
            _ if !yes("blockConnection") => None,
            Some(Ok(millis)) => Some(Duration::from_millis(millis)),
            Some(Err(_)) => return Err("'blockTimeMS' must be non-negative".to_owned()),
            None => return Err("must specify 'blockTimeMS' when 'blockConnection' is true".to_owned()),
        };
        let commands = field("failCommands").and_then(|value| value.as_array());
        let commands = commands.into_iter().flatten().flatten();
        Ok(Self {
            commands: commands.filter_map(|name| Some(name.as_str()?.to_owned())).collect(),
            all: yes("failAllCommands"),
            namespace: text("namespace"),
            application: text("appName"),
            block,
            close: yes("closeConnection"),
            code: number("errorCode").and_then(|code| i32::try_from(code).ok()),
            write_concern_error: match field("writeConcernError") {
                Some(RawBsonRef::Document(error)) => Some(error.to_owned()),
                _ => None,
            },
            labels: match field("errorLabels") {
                Some(RawBsonRef::Array(labels)) => Some(labels.to_owned()),
                _ => None,
            },
        })
    }

    fn concerns(&self, asked: &Asked<'_>) -> bool {
        // What sets it can always unset it. The older spellings of a name stand for the same command.
        let named = || self.commands.iter().any(|name| name.eq_ignore_ascii_case(asked.name));
        let in_place = |namespace: &String| match namespace.split_once('.') {
            Some((database, rest)) => {
                database == asked.database && asked.collection.unwrap_or("$cmd") == rest
            }
            None => *namespace == asked.database,
        };
        asked.name != "configureFailPoint"
            && self.application.as_deref().is_none_or(|name| asked.application == Some(name))
            && self.namespace.as_ref().is_none_or(in_place)
            && (self.all || named())
    }
}

/// The labels that a server gives an error by itself; `executed`: it is one of a write concern.
#[must_use]
pub fn labels_of(code: i32, kind: Kind, executed: bool) -> RawArrayBuf {
    let retryable = matches!(
        code,
        6 | 7 | 89 | 91 | 134 | 189 | 262 | 358 | 9001 | 10107 | 11600 | 11602 | 13435 | 13436 | 50915
    );
    let transient = matches!(code, 24 | 112 | 246 | 251 | 267);
    let mut labels = RawArrayBuf::new();
    match kind {
        Kind::Statement if executed => {}
        Kind::Statement if transient || retryable => labels.push("TransientTransactionError"),
        Kind::Commit | Kind::Abort if transient && !executed => labels.push("TransientTransactionError"),
        Kind::RetryableWrite | Kind::Commit | Kind::Abort if retryable => labels.push("RetryableWriteError"),
        _ => {}
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    fn of(mode: impl Into<bson::RawBson>, data: RawDocumentBuf) -> FailCommand {
        let command = rawdoc! { "configureFailPoint": "failCommand", "mode": mode.into(), "data": data };
        FailCommand::default().configured(&command).unwrap()
    }

    fn asked(name: &str) -> Asked<'_> {
        let application = Some("shop");
        Asked { name, database: "d", collection: Some("c"), application, kind: Kind::RetryableWrite }
    }

    #[test]
    fn it_counts_what_it_concerns() {
        let mut point =
            of(rawdoc! { "times": 2 }, rawdoc! { "failCommands": ["isMaster", "find"], "errorCode": 1 });
        assert!(point.before(&asked("insert")).is_none());
        assert!(point.before(&asked("ismaster")).is_some());
        assert!(point.is_on());
        assert!(point.before(&asked("find")).is_some());
        assert!(!point.is_on());
        assert!(point.before(&asked("find")).is_none());
        assert_eq!(point.entered(), 2);
        let mut point = of(rawdoc! { "skip": 1 }, rawdoc! { "failAllCommands": true, "errorCode": 1 });
        assert!(point.before(&asked("configureFailPoint")).is_none());
        assert!(point.before(&asked("find")).is_none());
        assert!(point.before(&asked("find")).is_some());
        assert!(point.before(&asked("find")).is_some());
        assert!(of("off", rawdoc! { "failAllCommands": true, "errorCode": 1 }).before(&asked("x")).is_none());
    }

    #[test]
    fn it_asks_for_names() {
        let meets = |field: &str, value: &str| {
            let mut data = rawdoc! { "failCommands": ["find"], "errorCode": 1 };
            data.append(bson::raw::CString::try_from(field).unwrap(), value);
            of("alwaysOn", data).before(&asked("find")).is_some()
        };
        assert!(meets("appName", "shop") && !meets("appName", "other"));
        assert!(meets("namespace", "d.c") && !meets("namespace", "d.x") && !meets("namespace", "x.c"));
    }

    #[test]
    fn errors_have_the_labels_of_a_server_or_those_that_are_told() {
        let failed = |data: RawDocumentBuf, kind: Kind| {
            let effect = of("alwaysOn", data).before(&Asked { kind, ..asked("insert") }).unwrap();
            let End::Failed(_, labels) = effect.end else { panic!("{effect:?}") };
            labels.into_iter().flatten().filter_map(|one| Some(one.as_str()?.to_owned())).collect::<Vec<_>>()
        };
        let data = |code: i32| rawdoc! { "failCommands": ["insert"], "errorCode": code };
        assert_eq!(failed(data(11600), Kind::RetryableWrite), ["RetryableWriteError"]);
        assert_eq!(failed(data(11600), Kind::Statement), ["TransientTransactionError"]);
        assert_eq!(failed(data(112), Kind::Commit), ["TransientTransactionError"]);
        assert!(failed(data(11600), Kind::Once).is_empty());
        assert!(failed(data(8), Kind::RetryableWrite).is_empty());
        let mut told = data(11600);
        told.append(bson::cstr!("errorLabels"), RawArrayBuf::new());
        assert!(failed(told, Kind::RetryableWrite).is_empty());
    }

    #[test]
    fn errors_of_write_concerns_come_after() {
        let error = rawdoc! { "code": 91, "errmsg": "x" };
        let data = rawdoc! { "failCommands": ["insert"], "writeConcernError": error.clone() };
        let mut point = of(rawdoc! { "times": 1 }, data);
        assert!(point.before(&asked("insert")).is_none());
        let addition = point.after(&asked("insert")).unwrap();
        assert_eq!(addition.write_concern_error, error);
        assert!(!addition.labels.is_empty());
        assert!(point.after(&asked("insert")).is_none());
    }

    #[test]
    fn what_is_wrong_is_told() {
        let wrong = |command: RawDocumentBuf| FailCommand::default().configured(&command).is_err();
        assert!(wrong(rawdoc! { "mode": "on" }) && wrong(rawdoc! {}) && wrong(rawdoc! { "mode": {} }));
        assert!(wrong(rawdoc! { "mode": "alwaysOn", "data": { "blockConnection": true } }));
        assert!(wrong(rawdoc! { "mode": "alwaysOn", "data": 5 }));
    }
}
