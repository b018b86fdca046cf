//! The ends of the list that a query takes a part of, and which documents at one place of its order may be there.

use bson::raw::RawDocumentBuf;
use bson::{Bson, RawDocument};

use super::answer::Terms;
use super::sorting::Sort;

/// The part of a list that a query takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cut {
    /// It leaves out documents before it.
    pub skips: bool,
    /// It ends after so many, if there are as many.
    pub most: Option<u64>,
}

impl Cut {
    /// Of this part the first documents; `None`: it is not understood how many.
    #[must_use]
    pub fn limited(self, number: Option<u64>) -> Self {
        let number = number.unwrap_or(0);
        Self { most: Some(self.most.map_or(number, |most| most.min(number))), ..self }
    }

    /// Of this part all but the first documents.
    #[must_use]
    pub fn skipping(self, number: Option<u64>) -> Self {
        let number = number.unwrap_or(0);
        Self { skips: true, most: self.most.map(|most| most.saturating_sub(number)) }
    }

    /// Whether a list of so many documents may go on behind its end.
    fn ends_early(self, documents: usize) -> bool {
        self.most.is_some_and(|most| documents as u64 >= most)
    }
}

/// What documents that only one side has are to the ends of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// They stand where it was cut off, at one place of the order with others: the query does not say which of them
    /// belong to it. Or there are none.
    Allow,
    /// The same, as far as what they show tells.
    Untold,
    /// They belong to it, or do not.
    Differ,
}

/// Two replies to one query.
pub(super) struct Replies<'a> {
    pub(super) served: &'a [RawDocumentBuf],
    pub(super) shadow: &'a [RawDocumentBuf],
    pub(super) terms: &'a Terms,
}

impl Replies<'_> {
    /// What documents that only one of them has are to the ends of the list.
    pub(super) fn at_the_ends(&self, missing: &[&RawDocument], extra: &[&RawDocument]) -> Ends {
        if missing.is_empty() && extra.is_empty() {
            return Ends::Allow;
        }
        let sort = self.terms.sort.as_ref().filter(|sort| !sort.is_total());
        let Some((sort, cut)) = sort.zip(self.terms.cut).filter(|_| missing.len() == extra.len()) else {
            return Ends::Differ;
        };
        let ends_early = cut.ends_early(self.served.len());
        if !cut.skips && !ends_early {
            // All of the list is there: nothing can be left out for another.
            return Ends::Differ;
        }
        if self.terms.hidden || !sort.holds(&keys(sort, self.served)) {
            return Ends::Untold;
        }
        let (missing, extra) = (keys(sort, missing), keys(sort, extra));
        let end = |of_served: Option<&RawDocumentBuf>, of_shadow: Option<&RawDocumentBuf>| {
            let (left, right) = (sort.key(of_served?), sort.key(of_shadow?));
            sort.may_tie(&left, &right).then_some(left)
        };
        let begin = end(self.served.first(), self.shadow.first()).filter(|_| cut.skips);
        let last = end(self.served.last(), self.shadow.last()).filter(|_| ends_early);
        let ends: Vec<Vec<Bson>> = begin.into_iter().chain(last).collect();
        let is_at_one = |key: &Vec<Bson>| ends.iter().any(|end| sort.may_tie(key, end));
        let at =
            |end: &Vec<Bson>, keys: &[Vec<Bson>]| keys.iter().filter(|key| sort.may_tie(key, end)).count();
        // Each end has as many of either: a document in another's place, at the same place of the order.
        let balanced = ends.iter().all(|end| at(end, &missing) == at(end, &extra));
        if balanced && missing.iter().chain(&extra).all(is_at_one) { Ends::Allow } else { Ends::Differ }
    }

    /// Whether the shadow has the documents in an order that the query does not allow. An order that not even the served
    /// reply keeps as it is understood here is not judged.
    pub(super) fn misplaced(&self) -> bool {
        let sort = self.terms.sort.as_ref().filter(|_| !self.terms.hidden);
        sort.is_some_and(|sort| sort.holds(&keys(sort, self.served)) && !sort.holds(&keys(sort, self.shadow)))
    }
}

fn keys<D: AsRef<RawDocument>>(sort: &Sort, documents: &[D]) -> Vec<Vec<Bson>> {
    documents.iter().map(|document| sort.key(document.as_ref())).collect()
}
