//! The queries of lists: `name=value` joined by `&`.

use super::problem::Problem;

/// The refusal of a query.
pub(super) fn bad(what: &str) -> Box<Problem> {
    Box::new(Problem::invalid("invalid-query", what))
}

/// Its parameters, in order; one without `=` has no value.
pub(super) fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|part| !part.is_empty()).map(|part| part.split_once('=').unwrap_or((part, "")))
}

/// How many a page has at most.
///
/// # Errors
/// It is not between 1 and 1000.
pub(super) fn limit(value: &str) -> Result<u16, Box<Problem>> {
    let number = value.parse::<u16>().ok().filter(|limit| (1..=1000).contains(limit));
    number.ok_or_else(|| bad("limit must be a whole number from 1 to 1000"))
}

/// Where a page begins, for parameter `name`.
///
/// # Errors
/// It is no number.
pub(super) fn next<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, Box<Problem>> {
    value.parse().map_err(|_| bad(&format!("{name} must be a whole number: next of the page before")))
}
