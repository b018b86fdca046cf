//! Commands that bring a collection into being that a running migration's pattern names: it becomes part of
//! the migration first, and nothing is written to it before.

use bson::RawDocument;
use bytes::BytesMut;

use super::entry::not_sent;
use super::migrating::namespace_of;
use super::operation::Operation;
use super::pipeline::Router;
use super::writer::{HOLD, Writer};
use crate::clock::timeout;
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::policy::classify::Class;
use crate::policy::newcomers::cannot_move;
use crate::state::newcomers::Declined;
use crate::wire::error::{ErrorReply, NOT_NOW};
use std::time::Duration;

/// How long to wait for a migration that is being taken up.
const LOOK: Duration = Duration::from_millis(50);

impl Router {
    /// Makes the collection of a write, or of new indexes, part of the migration that waits for it.
    ///
    /// # Errors
    /// The error to answer with; nothing was sent.
    pub(super) async fn admit(&self, operation: &Operation<'_>) -> Result<(), ErrorReply> {
        let Some(writer) = &self.writer else { return Ok(()) };
        let creates = operation.class == Class::Write || operation.command.name == "createIndexes";
        if !creates || writer.gate.routing.peek().patterned.is_empty() {
            return Ok(());
        }
        match namespace_of(operation).as_deref().and_then(Namespace::parse) {
            Some(namespace) => Box::pin(admit(writer, &namespace, operation.hold().min(HOLD))).await,
            None => Ok(()),
        }
    }

    /// Creates a collection that a migration waits for: on old, from where it is made on new too. `None`: no
    /// migration does.
    pub(super) async fn create_newcomer(
        &self,
        operation: &Operation<'_>,
        reply: &mut BytesMut,
    ) -> Option<Result<bool, ErrorReply>> {
        let writer = self.writer.as_ref().filter(|_| operation.command.name == "create")?;
        let namespace = namespace_of(operation)?;
        let migration = writer.gate.routing.peek().awaiting(&namespace)?.name.clone();
        let namespace = Namespace::parse(&namespace)?;
        let body = RawDocument::from_bytes(&operation.message[operation.parts.body.clone()]).ok()?;
        if let Some(what) = cannot_move(body) {
            return Some(Err(ErrorReply::new(
                NOT_NOW,
                format!(
                    "{namespace} would be {what}, which cannot move, and a pattern of migration {migration} names it: \
                     use another name, or complete or abort the migration first"
                ),
            )));
        }
        let created = async {
            let ok = self.plain(operation, Side::Old, reply).await?;
            if !ok {
                return Ok(false);
            }
            admit(writer, &namespace, operation.hold().min(HOLD)).await?;
            let completed = {
                let table = writer.gate.routing.peek();
                let route = table.route(namespace.as_str()).filter(|route| route.phase.is_over());
                route.is_some_and(|route| route.sole_authority() == Some(Side::New))
            };
            // The migration was completed meanwhile: new is where it is looked for now.
            if completed { self.plain(operation, Side::New, reply).await } else { Ok(true) }
        };
        Some(created.await)
    }

    /// Refuses what makes a collection inside a transaction: nobody outside would see it.
    ///
    /// # Errors
    /// The error to answer with; nothing was sent.
    pub(super) fn must_exist(&self, operation: &Operation<'_>) -> Result<(), ErrorReply> {
        let (Some(writer), true) =
            (&self.writer, matches!(operation.command.name, "create" | "createIndexes"))
        else {
            return Ok(());
        };
        let table = writer.gate.routing.peek();
        let awaiting =
            namespace_of(operation).and_then(|name| Some((table.awaiting(&name)?.name.clone(), name)));
        match awaiting {
            Some((migration, name)) => Err(ErrorReply::new(
                NOT_NOW,
                format!(
                    "{name} is to become part of migration {migration} when it is made: make it outside of a \
                     transaction"
                ),
            )),
            None => Ok(()),
        }
    }
}

/// Waits until a collection that is about to be written is part of the migration whose pattern names it, if one does.
///
/// # Errors
/// The error to answer with; nothing was sent.
pub async fn admit(writer: &Writer, namespace: &Namespace, hold: Duration) -> Result<(), ErrorReply> {
    let gate = &writer.gate;
    let deadline = gate.clock.now() + hold;
    loop {
        let Some(migration) =
            gate.routing.peek().awaiting(namespace.as_str()).map(|route| route.name.clone())
        else {
            return Ok(());
        };
        let left = deadline.saturating_sub(gate.clock.now());
        let late =
            |why: &str| not_sent(format!("{namespace} is not part of migration {migration} yet: {why}"));
        if left.is_zero() {
            return Err(late("its migration is being started, or ended"));
        }
        let answer = match gate.registry.get(&migration) {
            Some(active) => timeout(&*gate.clock, left, active.newcomers.ask(namespace.clone(), true)).await,
            None => Ok(Err(Declined::NotNow("its migration is being taken up".into()))),
        };
        match answer {
            Ok(Ok(_)) => {}
            Ok(Err(Declined::Refused(why))) => {
                return Err(ErrorReply::new(
                    NOT_NOW,
                    format!(
                        "{namespace} cannot become part of migration {migration}, whose pattern names it: {why}"
                    ),
                ));
            }
            Ok(Err(Declined::NotNow(why))) if gate.clock.now() + LOOK >= deadline => return Err(late(&why)),
            Ok(Err(Declined::NotNow(_))) => gate.clock.sleep(LOOK).await,
            Err(_) => return Err(late("that takes too long")),
        }
    }
}
