//! What does not belong on a secondary that is shown.

use crate::cluster::Selection;
use crate::policy::secondary::{Misplaced, misplaced};
use crate::router::{Operation, preference};
use crate::wire::error::{ErrorReply, NOT_PRIMARY_NO_SECONDARY_OK, NOT_WRITABLE_PRIMARY};

use super::face::Appearance;

/// Where a secondary is shown: the error for a command that does not belong on one.
pub(super) fn not_here(appearance: &Appearance, operation: &Operation<'_>) -> Option<ErrorReply> {
    if appearance.is_writable() {
        return None;
    }
    let command = &operation.command;
    let for_secondaries = preference::selection(command.read_preference) != Selection::Primary;
    let error = match misplaced(operation.class, for_secondaries, command.in_transaction())? {
        Misplaced::Write => {
            ErrorReply::new(NOT_WRITABLE_PRIMARY, "not primary: this address shows a secondary")
        }
        Misplaced::Read => {
            let text = "not primary and no read preference for secondaries: this address shows a secondary";
            ErrorReply::new(NOT_PRIMARY_NO_SECONDARY_OK, text)
        }
    };
    Some(error)
}
