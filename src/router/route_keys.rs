//! Writes of collections whose slots are computed from a field of the application.

use super::entry::{Entered, not_sent};
use crate::policy::route_key::By;
use crate::policy::statement::Statement;
use crate::policy::writes::WriteCommand;
use crate::wire::error::{ErrorReply, NOT_NOW};

/// Refuses what `by`, by which the command has entered, does not allow now.
///
/// # Errors
/// The error to answer with; nothing was sent.
pub(super) fn may_run(command: &WriteCommand, entered: &Entered, by: By<'_>) -> Result<(), ErrorReply> {
    let route = &entered.route;
    if route.by(&command.namespace) != by {
        return Err(not_sent("another migration of its collection has just begun; send it again".into()));
    }
    if route.phase.is_over() {
        return Ok(());
    }
    let divided = route.sole_authority().is_none();
    command.keeps_route_keys(by, divided).map_err(|why| ErrorReply::new(NOT_NOW, why))
}

/// Refuses a write of one document that does not say in which slot, while authority is mixed.
///
/// # Errors
/// The error to answer with; nothing was sent.
pub(super) fn must_name_slots(command: &WriteCommand, by: By<'_>) -> Result<(), ErrorReply> {
    let is_single = |statement: &Statement| !statement.multi && command.slot_of(statement, by).is_none();
    if !command.statements.iter().any(is_single) {
        return Ok(());
    }
    let names = by.field().map_or_else(
        || "its _id".to_owned(),
        |key| format!("its route key {}, as a value under the simple collation,", key.field()),
    );
    Err(ErrorReply::new(
        NOT_NOW,
        format!(
            "a write of one document that does not name {names} cannot run while writes are divided between two \
             clusters; move this namespace's writes in one step"
        ),
    ))
}
