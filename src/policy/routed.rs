//! What a write says about the slots that it is about.

use bson::RawDocument;
use bson::raw::RawBsonRef;

use super::route_change::{Change, change_of};
use super::route_key::{By, RouteKey, is_unfit};
use super::statement::{Statement, has_collation};
use super::writes::{Verb, WriteCommand};
use crate::model::slots::{Slot, SlotSet};

impl WriteCommand {
    /// The slot of whatever a statement can write, if it names one.
    #[must_use]
    pub fn slot_of(&self, statement: &Statement, by: By<'_>) -> Option<Slot> {
        if by.field().is_none() {
            return by.of_key(statement.key.as_ref()?);
        }
        if self.verb == Verb::Insert {
            return by.of_document(&statement.raw);
        }
        let (filter, simple) = self.filter_of(statement)?;
        by.of_filter(filter, simple)
    }

    /// All slots that it may write in. A document whose route key it changes may come to lie in any of them.
    #[must_use]
    pub fn slots(&self, by: By<'_>) -> SlotSet {
        let changes = |statement: &Statement| {
            by.field().is_some_and(|key| self.change_of(statement, key) != Change::None)
        };
        let slot = |statement: &Statement| self.slot_of(statement, by).filter(|_| !changes(statement));
        self.statements.iter().map(slot).collect::<Option<SlotSet>>().unwrap_or(SlotSet::ALL)
    }

    /// Whether it names the slot of each statement.
    #[must_use]
    pub fn is_routed(&self, by: By<'_>) -> bool {
        self.statements.iter().all(|statement| self.slot_of(statement, by).is_some())
    }

    /// Refuses what would take a document away from under its slot. `divided`: two clusters take writes now.
    ///
    /// # Errors
    /// In words, which field it is about and what to do instead.
    pub fn keeps_route_keys(&self, by: By<'_>, divided: bool) -> Result<(), String> {
        let Some(key) = by.field() else { return Ok(()) };
        let (field, namespace) = (key.field(), &self.namespace);
        for statement in &self.statements {
            match self.change_of(statement, key) {
                Change::None => {}
                Change::Value if !divided => {}
                Change::Value => {
                    return Err(format!(
                        "{field} is the route key of {namespace}, and writes are divided between two clusters by it: \
                         name it in the filter, repeat its value in replacements and upserts, and set, unset or \
                         rename it only once all writes are on one cluster"
                    ));
                }
                Change::Unfit => {
                    return Err(format!(
                        "{field} is the route key of {namespace}: as long as the migration runs it may become no array and no \
                         empty timestamp, nor the outcome of an expression, of $push, of $rename or of $replaceWith"
                    ));
                }
            }
        }
        Ok(())
    }

    fn change_of(&self, statement: &Statement, key: &RouteKey) -> Change {
        if self.verb == Verb::Insert {
            let unfit = is_unfit(key.value_of(&statement.raw));
            return if unfit { Change::Unfit } else { Change::None };
        }
        let update = match self.verb {
            Verb::Update => statement.raw.get("u"),
            Verb::FindAndModify => self.body.get("update"),
            Verb::Insert | Verb::Delete => return Change::None,
        };
        let Some(update) = update.ok().flatten() else { return Change::None };
        let named = self.filter_of(statement).and_then(|(filter, simple)| key.named_in(filter, simple));
        let change = change_of(update, key, named.as_ref());
        // An upsert whose filter says nothing about it makes a document with any route key.
        if statement.upsert && named.is_none() { change.max(Change::Value) } else { change }
    }

    /// The filter of an update or a deletion, and whether its texts are taken as they are spelled.
    fn filter_of<'a>(&'a self, statement: &'a Statement) -> Option<(&'a RawDocument, bool)> {
        let simple = !has_collation(&self.body) && !has_collation(&statement.raw);
        let filter = match self.verb {
            Verb::Insert => None,
            Verb::FindAndModify => self.body.get("query").ok().flatten(),
            Verb::Update | Verb::Delete => statement.raw.get("q").ok().flatten(),
        };
        filter.and_then(RawBsonRef::as_document).map(|filter| (filter, simple))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::namespace::Namespace;
    use crate::policy::key_ranges::KeyRanges;
    use bson::{oid::ObjectId, rawdoc};

    fn parse(body: &RawDocument) -> WriteCommand {
        let verb = Verb::of(body.iter().next().unwrap().unwrap().0.as_str()).unwrap();
        WriteCommand::parse(Namespace::new("d", "c"), verb, body, None, ObjectId::new).unwrap()
    }

    fn tenant() -> RouteKey {
        RouteKey::parse("tenant").unwrap()
    }

    fn slots(body: &RawDocument) -> u32 {
        parse(body).slots(By::new(Some(&tenant()), &KeyRanges::none())).len()
    }

    #[test]
    fn a_write_has_the_slot_of_the_tenant_that_it_names() {
        let update = |q: bson::RawDocumentBuf, u: bson::RawDocumentBuf| rawdoc! { "update": "c", "updates": [{ "q": q, "u": u }] };
        let inc = || rawdoc! { "$inc": { "n": 1 } };
        assert_eq!(slots(&update(rawdoc! { "tenant": 7, "n": 1 }, inc())), 1);
        assert_eq!(slots(&update(rawdoc! { "_id": 1 }, inc())), 1024, "whose it is is not known");
        assert_eq!(slots(&update(rawdoc! { "_id": 1, "tenant": 7 }, inc())), 1);
        // Where the document goes is not where it was.
        assert_eq!(
            slots(&update(rawdoc! { "_id": 1, "tenant": 7 }, rawdoc! { "$set": { "tenant": 8 } })),
            1024
        );
        assert_eq!(
            slots(&rawdoc! { "insert": "c", "documents": [{ "tenant": 7 }, { "_id": 5, "tenant": 7.0 }] }),
            1
        );
        assert_eq!(slots(&rawdoc! { "delete": "c", "deletes": [{ "q": { "tenant": 7 }, "limit": 0 }] }), 1);
        assert_eq!(slots(&rawdoc! { "findAndModify": "c", "query": { "tenant": 7 }, "remove": true }), 1);
        let german = rawdoc! { "findAndModify": "c", "query": { "tenant": "x" }, "remove": true, "collation": { "locale": "de" } };
        assert_eq!(slots(&german), 1024);
        let by_id =
            rawdoc! { "update": "c", "updates": [{ "q": { "_id": 1 }, "u": { "$set": { "tenant": 8 } } }] };
        assert_eq!(parse(&by_id).slots(By::ID).len(), 1);
    }

    #[test]
    fn what_changes_a_route_key_is_refused_while_writes_are_divided() {
        let tenant = tenant();
        let may = |body: &RawDocument, divided| {
            parse(body).keeps_route_keys(By::new(Some(&tenant), &KeyRanges::none()), divided).is_ok()
        };
        let update = |q: bson::RawDocumentBuf, u: bson::RawDocumentBuf, upsert: bool| rawdoc! { "update": "c", "updates": [{ "q": q, "u": u, "upsert": upsert }] };
        let set = update(rawdoc! { "_id": 1, "tenant": 7 }, rawdoc! { "$set": { "tenant": 8 } }, false);
        assert!(!may(&set, true) && may(&set, false));
        assert!(parse(&set).keeps_route_keys(By::ID, true).is_ok());
        let replaced = update(rawdoc! { "_id": 1, "tenant": 7 }, rawdoc! { "n": 8 }, false);
        assert!(!may(&replaced, true) && may(&replaced, false));
        assert!(may(&update(rawdoc! { "_id": 1, "tenant": 7 }, rawdoc! { "tenant": 7, "n": 8 }, true), true));
        // An upsert makes a document of the tenant that its filter names, or of one that nobody knows.
        assert!(may(&update(rawdoc! { "tenant": 7 }, rawdoc! { "$set": { "n": 8 } }, true), true));
        assert!(!may(&update(rawdoc! { "n": 7 }, rawdoc! { "$set": { "n": 8 } }, true), true));
        assert!(!may(
            &update(rawdoc! { "tenant": 7 }, rawdoc! { "$setOnInsert": { "tenant": 8 } }, true),
            true
        ));
        let modify = rawdoc! { "findAndModify": "c", "query": { "tenant": 7 }, "update": { "$unset": { "tenant": 1 } } };
        assert!(!may(&modify, true) && may(&modify, false));
        // An array is refused at any time.
        let array = rawdoc! { "insert": "c", "documents": [{ "_id": 1, "tenant": [7] }] };
        assert!(!may(&array, true) && !may(&array, false));
        assert!(!may(&update(rawdoc! { "tenant": 7 }, rawdoc! { "$push": { "tenant": 8 } }, false), false));
    }
}
