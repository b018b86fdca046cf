//! Which of many statements a cluster has executed, found out by asking how many of some it has.
//!
//! A batch that was cut short leaves one edge between what is done and what is not, one with errors a few: each
//! edge costs as many questions as the batch can be halved.

use std::ops::Range;

/// A search among statements, numbered from 0.
#[derive(Debug)]
pub struct Search {
    /// Parts that are neither executed as a whole nor not at all, each with how many of it are; not known of the
    /// first one yet.
    open: Vec<(Range<usize>, Option<usize>)>,
    executed: Vec<usize>,
}

impl Search {
    /// Among so many statements.
    #[must_use]
    pub fn among(all: usize) -> Self {
        let everything = (all > 0).then_some((0..all, None));
        Self { open: everything.into_iter().collect(), executed: Vec::new() }
    }

    /// The part to ask about next: how many of it are executed? `None`: all is known.
    #[must_use]
    pub fn question(&self) -> Option<Range<usize>> {
        self.open.last().map(|(part, known)| match known {
            None => part.clone(),
            Some(_) => part.start..middle(part),
        })
    }

    /// So many of the part asked about are.
    pub fn answer(&mut self, count: usize) {
        match self.open.pop() {
            None => {}
            Some((part, None)) => self.settle(part, count),
            Some((part, Some(total))) => {
                let middle = middle(&part);
                self.settle(middle..part.end, total.saturating_sub(count));
                self.settle(part.start..middle, count);
            }
        }
    }

    fn settle(&mut self, part: Range<usize>, count: usize) {
        if count >= part.len() {
            self.executed.extend(part);
        } else if count > 0 {
            self.open.push((part, Some(count)));
        }
    }

    /// The numbers of those executed, in ascending order.
    #[must_use]
    pub fn executed(mut self) -> Vec<usize> {
        self.executed.sort_unstable();
        self.executed
    }
}

fn middle(part: &Range<usize>) -> usize {
    part.start + part.len() / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is found, and how many questions that took.
    fn find(executed: &[bool]) -> (Vec<usize>, usize) {
        let mut search = Search::among(executed.len());
        let mut questions = 0;
        while let Some(part) = search.question() {
            questions += 1;
            search.answer(executed[part].iter().filter(|one| **one).count());
        }
        (search.executed(), questions)
    }

    fn expected(executed: &[bool]) -> Vec<usize> {
        (0..executed.len()).filter(|index| executed[*index]).collect()
    }

    #[test]
    fn one_question_is_enough_for_all_or_nothing() {
        assert_eq!(find(&[]), (Vec::new(), 0));
        assert_eq!(find(&[true]), (vec![0], 1));
        assert_eq!(find(&[false; 100_000]).1, 1);
        assert_eq!(find(&[true; 100_000]).1, 1);
    }

    #[test]
    fn the_edge_in_a_large_batch_is_found_with_few_questions() {
        for edge in [1, 2, 49_999, 50_000, 50_001, 77_777, 99_999] {
            let executed: Vec<bool> = (0..100_000).map(|index| index < edge).collect();
            let (found, questions) = find(&executed);
            assert_eq!(found, expected(&executed), "{edge}");
            assert!(questions <= 18, "{questions} questions for an edge at {edge}");
        }
    }

    #[test]
    fn each_statement_that_failed_costs_as_many_as_the_batch_can_be_halved() {
        let executed: Vec<bool> = (0..100_000).map(|index| index % 10_007 != 5).collect();
        let (found, questions) = find(&executed);
        assert_eq!(found, expected(&executed));
        assert!(questions <= 1 + 10 * 17, "{questions}");
    }

    proptest! {
        #[test]
        fn whatever_is_executed_is_found(executed in prop::collection::vec(any::<bool>(), 0..200)) {
            let (found, questions) = find(&executed);
            prop_assert_eq!(found, expected(&executed));
            prop_assert!(questions <= executed.len());
        }
    }
}
