//! The fail point `onPrimaryTransactionalWrite`, as servers have it: numbered writes lose their connection when they
//! are done, or fail before they are.
//!
//! Whoever sets it wants to see a driver repeat the write. Passed on to a server it would be the proxy that does.

use bson::RawDocument;
use bson::raw::RawBsonRef;

use super::fail_mode::{Mode, whole};

/// The fail point of one address.
#[derive(Debug, Clone, Copy, Default)]
pub struct FailWrite {
    mode: Mode,
    keeps_connection: bool,
    code: Option<i32>,
    entered: i64,
}

/// What a write meets before it is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// Its connection is closed.
    Closed,
    /// It fails with this code.
    Failed(i32),
}

impl FailWrite {
    /// As `configureFailPoint` tells it; how often it was met before is kept.
    ///
    /// # Errors
    /// In words, what is wrong.
    pub fn configured(&self, command: &RawDocument) -> Result<Self, String> {
        let mode = Mode::parse(command.get("mode").ok().flatten())?;
        let Some(RawBsonRef::Document(data)) = command.get("data").ok().flatten() else {
            return Ok(Self { mode, entered: self.entered, ..Self::default() });
        };
        let field = |name: &str| data.get(name).ok().flatten();
        Ok(Self {
            mode,
            keeps_connection: field("closeConnection").and_then(|value| value.as_bool()) == Some(false),
            code: field("failBeforeCommitExceptionCode")
                .and_then(whole)
                .and_then(|code| i32::try_from(code).ok()),
            entered: self.entered,
        })
    }

    /// How often it has been met.
    #[must_use]
    pub fn entered(&self) -> i64 {
        self.entered
    }

    /// Whether a write can meet it.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.mode != Mode::Off
    }

    /// What a numbered write of so many statements meets before it is executed; they count then.
    pub fn before(&mut self, statements: i64) -> Option<Before> {
        let code = self.code?;
        let met = self.enter(statements);
        met.then_some(if self.keeps_connection { Before::Failed(code) } else { Before::Closed })
    }

    /// Whether a numbered write of so many statements, which has been executed just now, closes its connection; they
    /// count then.
    pub fn closes(&mut self, statements: i64) -> bool {
        self.code.is_none() && self.enter(statements) && !self.keeps_connection
    }

    fn enter(&mut self, statements: i64) -> bool {
        let met = self.mode.enter(statements);
        self.entered += i64::from(met);
        met
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{RawDocumentBuf, rawdoc};

    fn of(command: RawDocumentBuf) -> FailWrite {
        FailWrite::default().configured(&command).unwrap()
    }

    #[test]
    fn writes_lose_their_connection_or_fail_before() {
        let mut lost = of(rawdoc! { "mode": "alwaysOn" });
        assert_eq!(lost.before(1), None);
        assert!(lost.closes(1) && lost.closes(5));
        let mut never = of(rawdoc! { "mode": "alwaysOn", "data": { "failBeforeCommitExceptionCode": 1 } });
        assert_eq!(never.before(1), Some(Before::Closed));
        assert!(!never.closes(1));
        let data = rawdoc! { "failBeforeCommitExceptionCode": 7, "closeConnection": false };
        assert_eq!(of(rawdoc! { "mode": "alwaysOn", "data": data }).before(1), Some(Before::Failed(7)));
        let mut nothing = of(rawdoc! { "mode": "alwaysOn", "data": { "closeConnection": false } });
        assert!(nothing.before(1).is_none() && !nothing.closes(1));
    }

    #[test]
    fn statements_are_counted() {
        let mut point = of(rawdoc! { "mode": { "skip": 3 } });
        assert!(!point.closes(2) && point.closes(2) && point.closes(1));
        let mut point = of(rawdoc! { "mode": { "times": 3 } });
        assert!(point.closes(2) && point.closes(1) && !point.closes(1));
        assert_eq!(point.entered(), 2);
    }
}
