//! Which collections can be part of a migration, by their names alone.

use crate::model::namespace::Namespace;
use crate::model::pattern::INTERNAL;

/// The server's limits, in bytes; older ones have a lower limit for the whole name.
const MOST_OF_DATABASE: usize = 63;
const MOST: usize = 255;

/// Why no collection of that name can be moved, in words; `None` when one can.
#[must_use]
pub fn problem(namespace: &Namespace) -> Option<String> {
    let (database, collection) = (namespace.database(), namespace.collection());
    let forbids = |what: &str| Some(format!("{namespace}: {what}"));
    if INTERNAL.contains(&database) {
        return forbids(&format!(
            "database {database} belongs to the server or to this product; leave it out"
        ));
    }
    if collection.starts_with("system.") {
        return forbids("the server keeps system collections itself; leave it out");
    }
    if database.len() > MOST_OF_DATABASE || namespace.as_str().len() > MOST {
        return forbids("MongoDB has no such long names: 63 bytes for the database, 255 in all");
    }
    if database.contains(['/', '\\', ' ', '"', '$', '\0']) {
        return forbids("MongoDB forbids /, \\, spaces, quotation marks and $ in the name of a database");
    }
    if collection.starts_with('.') {
        return forbids("MongoDB forbids a dot at the beginning of a collection's name");
    }
    if collection.contains(['$', '\0']) {
        return forbids("MongoDB forbids $ in the name of a collection");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(name: &str) -> Option<String> {
        problem(&Namespace::parse(name).unwrap())
    }

    #[test]
    fn names_that_can_be_moved() {
        for name in
            ["shop.orders", "shop.orders.2024", "shop.a b", "shop.*", "Shop-1.système", "shop.systems"]
        {
            assert_eq!(told(name), None);
        }
    }

    #[test]
    fn names_that_cannot() {
        for (name, why) in [
            ("admin.x", "database admin belongs"),
            ("reshard.audit", "database reshard belongs"),
            ("shop.system.views", "system collections"),
            ("a..b", "dot at the beginning"),
            ("a b.c", "name of a database"),
            ("a$.c", "name of a database"),
            ("a.b$c", "$ in the name of a collection"),
        ] {
            assert!(told(name).is_some_and(|told| told.contains(why) && told.starts_with(name)), "{name}");
        }
        assert!(told(&format!("{}.c", "d".repeat(64))).is_some());
        assert!(told(&format!("d.{}", "c".repeat(254))).is_some());
        assert!(told(&format!("{}.c", "d".repeat(63))).is_none());
    }
}
