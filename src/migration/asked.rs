//! What is asked of a new migration, checked before anything is made of it.

use super::control::{ControlError, NamespaceSpec, NewMigration, Refusal};
use super::key_ranges::declared;
use crate::model::namespace::Namespace;
use crate::model::pattern::Pattern;
use crate::policy::key_ranges::KeyRange;
use crate::policy::naming;
use crate::policy::route_key::RouteKey;

/// More are of no use to an empty collection.
const MOST_CHUNKS: u32 = 8192;

/// The namespaces and the ranges of a new migration, checked.
///
/// # Errors
/// [`ControlError`] that names everything that is wrong, each with its field.
pub(super) fn checked(new: &NewMigration) -> Result<(Vec<Namespace>, Vec<KeyRange>), ControlError> {
    let mut wrong = Vec::new();
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if new.name.is_empty() || new.name.len() > 64 || !new.name.chars().all(allowed) {
        wrong.push("name: use 1 to 64 letters, digits, '-' and '_'".to_owned());
    }
    if new.namespaces.is_empty() {
        wrong.push("namespaces: name at least one \"database.collection\"".to_owned());
    }
    let mut namespaces: Vec<Namespace> = Vec::new();
    for spec in &new.namespaces {
        match read(&spec.namespace) {
            Ok(parsed) if namespaces.contains(&parsed) => {
                wrong.push(format!("namespaces: {parsed} is named twice"));
            }
            Ok(parsed) => namespaces.push(parsed),
            Err(why) => wrong.push(format!("namespaces: {why}")),
        }
        wrong.extend(route_key_problem(spec).map(|why| format!("namespaces: {}: {why}", spec.namespace)));
        wrong.extend(layout_problem(spec).map(|why| format!("namespaces: {}: {why}", spec.namespace)));
    }
    let ranges = declared(&new.ranges).unwrap_or_else(|problems| {
        wrong.extend(problems.into_iter().map(|why| format!("ranges: {why}")));
        Vec::new()
    });
    match wrong.as_slice() {
        [] => Ok((namespaces, ranges)),
        [one] => Err(invalid(one.clone())),
        several => {
            let detail = format!("{} things are wrong with it; see reasons", several.len());
            Err(invalid(detail).because(wrong))
        }
    }
}

fn invalid(detail: String) -> ControlError {
    ControlError::new(Refusal::Invalid, "invalid-migration", detail)
}

/// A name or a pattern.
fn read(text: &str) -> Result<Namespace, String> {
    if Pattern::is_meant(text) {
        Pattern::parse(text)?;
    }
    let parsed = Namespace::parse(text).ok_or_else(|| format!("{text:?} is not \"database.collection\""))?;
    naming::problem(&parsed).map_or(Ok(parsed), Err)
}

/// What is wrong with the field that is to divide a collection.
fn route_key_problem(spec: &NamespaceSpec) -> Option<String> {
    let field = spec.route_key.as_ref()?;
    if Pattern::is_meant(&spec.namespace) {
        return Some(
            "route_key needs one collection, and a pattern names many; name it by itself".to_owned(),
        );
    }
    RouteKey::parse(field).err()
}

/// What makes no sense about how a collection is to lie on new, whatever new is.
fn layout_problem(spec: &NamespaceSpec) -> Option<String> {
    let without_key = |field| format!("{field} needs shard_key, by which the collection is cut; give both");
    match spec {
        NamespaceSpec { shard_key: None, initial_chunks: Some(_), .. } => Some(without_key("initial_chunks")),
        NamespaceSpec { shard_key: None, zones, .. } if !zones.is_empty() => Some(without_key("zones")),
        NamespaceSpec { initial_chunks: Some(chunks), .. } if !(1..=MOST_CHUNKS).contains(chunks) => {
            Some(format!("initial_chunks is {chunks}; use 1 to {MOST_CHUNKS}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::control::RangeSpec;

    fn asked(name: &str, namespaces: &[&str]) -> NewMigration {
        let namespaces = namespaces.iter().map(|namespace| NamespaceSpec::plain(*namespace)).collect();
        NewMigration { name: name.to_owned(), namespaces, ranges: Vec::new() }
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let mut new = asked("or ders", &["shop.orders", "admin.x", "a..b", "shop.orders", "shop"]);
        new.namespaces[0].initial_chunks = Some(2);
        let refused = checked(&new).unwrap_err();
        assert_eq!(refused.kind, Refusal::Invalid);
        for part in ["name: ", "initial_chunks needs", "admin.x", "a..b", "named twice", "\"shop\" is not"] {
            let told = refused.reasons.iter().filter(|why| why.contains(part)).count();
            assert_eq!(told, 1, "{part}: {:?}", refused.reasons);
        }
        assert_eq!(refused.reasons.len(), 6);
    }

    #[test]
    fn a_route_key_is_a_field_of_one_collection() {
        let with = |namespace: &str, field: &str| {
            let mut new = asked("orders", &[namespace]);
            new.namespaces[0].route_key = Some(field.to_owned());
            checked(&new).map(drop).map_err(|error| error.detail)
        };
        assert_eq!(with("shop.orders", "customer_id"), Ok(()));
        let path = with("shop.orders", "customer.id").unwrap_err();
        assert!(path.starts_with("namespaces: shop.orders: route_key: \"customer.id\" is a path"), "{path}");
        assert!(with("shop.*", "customer_id").unwrap_err().contains("a pattern names many"));
        assert!(with("shop.orders", "_id").unwrap_err().contains("leave it out"));
    }

    #[test]
    fn what_is_wrong_with_ranges_is_told_too() {
        let mut new = asked("orders", &["shop.orders"]);
        let range = |name: &str, from: i32, to: i32| RangeSpec {
            name: name.to_owned(),
            from: Some(from.into()),
            to: Some(to.into()),
        };
        new.ranges = vec![range("first", 0, 10), range("second", 10, 20)];
        assert_eq!(checked(&new).unwrap().1.len(), 2);
        new.ranges = vec![range("first", 0, 10), range("second", 9, 20)];
        assert_eq!(checked(&new).unwrap_err().detail, "ranges: first and second overlap");
    }

    #[test]
    fn one_thing_is_the_detail() {
        let refused = checked(&asked("orders", &[])).unwrap_err();
        assert_eq!(refused.detail, "namespaces: name at least one \"database.collection\"");
        assert!(refused.reasons.is_empty());
        assert_eq!(checked(&asked("orders", &["shop.orders", "shop.o_*"])).unwrap().0.len(), 2);
    }
}
