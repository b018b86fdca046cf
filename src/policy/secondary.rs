//! What a listener that shows a secondary must not take, so that drivers learn of it as from a server.

use super::classify::Class;

/// Why a command does not belong on a secondary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misplaced {
    /// It changes something.
    Write,
    /// It reads, and is for the primary.
    Read,
}

/// Whether a command belongs on a secondary. `for_secondaries`: its read preference allows one.
///
/// A pipeline that writes is let through with such a preference: drivers send it so, and it is this process that
/// takes it to the primary.
#[must_use]
pub fn misplaced(class: Class, for_secondaries: bool, in_transaction: bool) -> Option<Misplaced> {
    match class {
        Class::Write | Class::Commit | Class::Abort | Class::Ddl => Some(Misplaced::Write),
        _ if in_transaction => Some(Misplaced::Write),
        Class::Read | Class::PipelineWrite | Class::Explain if !for_secondaries => Some(Misplaced::Read),
        Class::Hello
        | Class::Authentication
        | Class::Read
        | Class::PipelineWrite
        | Class::Explain
        | Class::Diagnostic
        | Class::GetMore
        | Class::KillCursors
        | Class::SessionAdmin
        | Class::Admin
        | Class::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secondary_takes_reads_that_may_go_there_and_no_writes() {
        assert_eq!(misplaced(Class::Write, true, false), Some(Misplaced::Write));
        assert_eq!(misplaced(Class::Ddl, false, false), Some(Misplaced::Write));
        assert_eq!(misplaced(Class::Read, false, false), Some(Misplaced::Read));
        assert_eq!(misplaced(Class::Read, true, false), None);
        assert_eq!(misplaced(Class::Read, true, true), Some(Misplaced::Write));
        assert_eq!(misplaced(Class::PipelineWrite, true, false), None);
        assert_eq!(misplaced(Class::PipelineWrite, false, false), Some(Misplaced::Read));
        assert_eq!(misplaced(Class::GetMore, false, false), None);
        assert_eq!(misplaced(Class::Diagnostic, false, false), None);
    }
}
