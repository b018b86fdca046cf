//! Whether what the clusters hold at the end, and what readers saw, agrees with what clients were told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bson::raw::RawDocumentBuf;
use bson::{Document, RawDocument};
use reshard::cluster::command::number;

use super::history::{Action, History, Operation, Told};
use crate::mongo::cluster::Cluster;
use crate::mongo::key::Key;

/// An invariant that does not hold.
#[derive(Debug, Clone, thiserror::Error)]
#[error("invariant {invariant}: {text}")]
pub(crate) struct Violation {
    /// Its number in the protocol.
    pub(crate) invariant: u8,
    /// What was found.
    pub(crate) text: String,
}

fn violation(invariant: u8, text: String) -> Violation {
    Violation { invariant, text }
}

/// Documents that were there before the first operation.
pub(crate) type Initial = BTreeMap<(&'static str, Key), RawDocumentBuf>;

/// Checks every key against the cluster that is its authority at the end (invariants 1, 3, 6, 11), and every
/// read. Call it at quiescence.
///
/// # Errors
/// The first violation.
pub(crate) fn check_history<'a>(
    history: &History,
    initial: &Initial,
    authority: impl Fn(&'static str, &Key) -> &'a Cluster,
) -> Result<(), Violation> {
    let operations = history.operations();
    let mut keys: BTreeMap<(&'static str, &Key), Vec<&Operation>> = BTreeMap::new();
    for operation in &operations {
        keys.entry((operation.ns, &operation.key)).or_default().push(operation);
    }
    for ((ns, key), operations) in keys {
        let state = authority(ns, key).state();
        let found = state.primary.store.document(ns, key).cloned();
        drop(state);
        let before = initial.get(&(ns, key.clone())).map(|document| &**document);
        let key = KeyHistory { ns, operations: &operations, before };
        let found = found.as_ref().map(|document| &***document);
        if operations
            .iter()
            .any(|operation| matches!(operation.action, Action::Increment(_) | Action::Push(..)))
        {
            key.check_counts(found)?;
        } else {
            key.check_register(found)?;
        }
    }
    Ok(())
}

/// Checks that two clusters hold the same bytes (invariant 2), `parked` keys apart.
///
/// # Errors
/// The first difference.
pub(crate) fn check_equal(
    left: &Cluster,
    right: &Cluster,
    ns: &str,
    parked: &BTreeSet<Key>,
) -> Result<(), Violation> {
    let (a, b) = (left.documents(ns), right.documents(ns));
    let (a, b): (BTreeMap<_, _>, BTreeMap<_, _>) = (a.into_iter().collect(), b.into_iter().collect());
    for key in a.keys().chain(b.keys()).filter(|key| !parked.contains(*key)) {
        let (one, other) = (a.get(key), b.get(key));
        if one.map(|document| document.as_bytes()) != other.map(|document| document.as_bytes()) {
            let text = format!(
                "{ns}: {} has {}, {} has {}",
                left.name(),
                show(one.map(|document| &***document)),
                right.name(),
                show(other.map(|document| &***document)),
            );
            return Err(violation(2, text));
        }
    }
    Ok(())
}

/// Everything that happened to one key.
struct KeyHistory<'a> {
    ns: &'static str,
    operations: &'a [&'a Operation],
    before: Option<&'a RawDocument>,
}

impl KeyHistory<'_> {
    /// The final state, and every read, is one that some write explains.
    fn check_register(&self, found: Option<&RawDocument>) -> Result<(), Violation> {
        self.check_seen(found, Duration::MAX, Duration::MAX, "the authority ends with")?;
        for read in self.operations {
            if let (Told::Saw(value), Some(answered)) = (&read.told, read.answered) {
                self.check_seen(value.as_deref(), read.invoked, answered, "a reader saw")?;
            }
        }
        Ok(())
    }

    /// Whether `value` can be seen by somebody who asked at `asked` and was answered at `answered`.
    fn check_seen(
        &self,
        value: Option<&RawDocument>,
        asked: Duration,
        answered: Duration,
        who: &str,
    ) -> Result<(), Violation> {
        let makes = |operation: &Operation| match (&operation.action, value) {
            (Action::Put(document), Some(value)) => document.as_bytes() == value.as_bytes(),
            (Action::Delete, None) => true,
            _ => false,
        };
        let overwritten_after = |end: Option<Duration>| {
            end.and_then(|end| {
                self.operations.iter().find(|later| {
                    later.is_durable()
                        && matches!(later.action, Action::Put(_) | Action::Delete)
                        && later.invoked > end
                        && later.answered.is_some_and(|done| done < asked)
                })
            })
        };
        let mut overwriting = None;
        for operation in self.operations {
            if operation.may_have_happened() && operation.invoked < answered && makes(operation) {
                let end = if operation.told == Told::Unknown { None } else { operation.answered };
                match overwritten_after(end) {
                    None => return Ok(()),
                    Some(later) => overwriting = Some(later),
                }
            }
        }
        if self.before.map(RawDocument::as_bytes) == value.map(RawDocument::as_bytes) {
            let durable = |later: &&&Operation| {
                later.is_durable()
                    && matches!(later.action, Action::Put(_) | Action::Delete)
                    && later.answered.is_some_and(|done| done < asked)
            };
            match self.operations.iter().find(durable) {
                None => return Ok(()),
                Some(later) => overwriting = Some(later),
            }
        }
        let undone =
            overwriting.is_some_and(|later| matches!(later.action, Action::Delete)) && value.is_some();
        let text = format!("{}: {who} {}; operations: {}", self.ns, show(value), self.describe());
        Err(violation(if undone { 3 } else { 1 }, text))
    }

    /// Every acknowledged step happened once, every other at most once, a refused one not at all.
    fn check_counts(&self, found: Option<&RawDocument>) -> Result<(), Violation> {
        let mut fields: BTreeMap<&'static str, (i64, i64)> = BTreeMap::new();
        for operation in self.operations {
            match operation.action {
                Action::Increment(field) => {
                    let (least, most) = fields.entry(field).or_default();
                    *least += i64::from(operation.is_durable());
                    *most += i64::from(operation.may_have_happened());
                }
                Action::Push(field, token) => self.check_token(operation, field, token, found)?,
                Action::Read => {}
                Action::Put(_) | Action::Delete => {
                    return Err(violation(0, "a key has both steps and whole writes".to_owned()));
                }
            }
        }
        for (field, (least, most)) in fields {
            let value = |document| number(document, field).unwrap_or(0.0) as i64;
            let grown = found.map_or(0, value) - self.before.map_or(0, value);
            if grown < least || grown > most {
                let text = format!("{}: {field} grew by {grown}, not by {least} to {most}", self.ns);
                return Err(violation(if grown < least { 1 } else { 11 }, text));
            }
        }
        Ok(())
    }

    fn check_token(
        &self,
        operation: &Operation,
        field: &str,
        token: i64,
        found: Option<&RawDocument>,
    ) -> Result<(), Violation> {
        let items = found.and_then(|document| document.get_array(field).ok());
        let items = items.into_iter().flatten().flatten();
        let times = items.filter(|item| item.as_i64() == Some(token)).count();
        let allowed = match operation.told {
            Told::Durable => 1..=1,
            Told::Refused => 0..=0,
            _ => 0..=1,
        };
        if allowed.contains(&times) {
            return Ok(());
        }
        let text = format!("{}: {token} stands {times} times in {field}: {operation:?}", self.ns);
        Err(violation(if times == 0 { 1 } else { 11 }, text))
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        for operation in self.operations {
            let action = match &operation.action {
                Action::Put(document) => show(Some(document)),
                other => format!("{other:?}"),
            };
            let answered = operation.answered.map_or("never".to_owned(), |at| format!("{at:?}"));
            text += &format!("\n  {:?}..{answered} {action} {:?}", operation.invoked, operation.told);
        }
        text
    }
}

fn show(document: Option<&RawDocument>) -> String {
    match document.map(Document::try_from) {
        None => "nothing".to_owned(),
        Some(Ok(document)) => document.to_string(),
        Some(Err(error)) => format!("broken bytes: {error}"),
    }
}
