//! Patterns of names: every collection of a database, or those whose names fit.

use super::namespace::{DATABASE, Namespace};

/// Databases of the server and of the product.
pub const INTERNAL: [&str; 4] = ["admin", "local", "config", DATABASE];
/// Collections that servers make for themselves.
const OF_SERVERS: [&str; 4] = ["system.", "enxcol_.", "tmp.agg_out.", "tmp.mr."];

/// `database.collection` with `*` in the collection for any characters, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Namespace);

impl Pattern {
    /// Whether `text` is meant to be one.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        text.contains('*')
    }

    /// Reads one.
    ///
    /// # Errors
    /// In words, what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let name = Namespace::parse(text)
            .ok_or_else(|| format!("{text:?} is no pattern: write \"shop.*\" or \"shop.orders_*\""))?;
        if name.database().contains('*') {
            return Err(format!("{text:?}: a pattern names one database; `*` stands for collections only"));
        }
        if INTERNAL.contains(&name.database()) {
            return Err(format!(
                "{text:?}: database {} belongs to the server or to this product",
                name.database()
            ));
        }
        Ok(Self(name))
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Its database.
    #[must_use]
    pub fn database(&self) -> &str {
        self.0.database()
    }

    /// Whether it names this collection. What servers make for themselves is never named.
    #[must_use]
    pub fn names(&self, database: &str, collection: &str) -> bool {
        database == self.database()
            && !OF_SERVERS.iter().any(|prefix| collection.starts_with(prefix))
            && meet(self.0.collection().as_bytes(), collection.as_bytes(), false)
    }

    /// Whether it names every collection of `database`.
    #[must_use]
    pub fn names_all_of(&self, database: &str) -> bool {
        database == self.database() && self.0.collection().bytes().all(|byte| byte == b'*')
    }

    /// Whether some collection has both names.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.database() == other.database()
            && meet(self.0.collection().as_bytes(), other.0.collection().as_bytes(), true)
    }

    /// The regular expression of the collections that it names.
    #[must_use]
    pub fn regex(&self) -> String {
        let servers = OF_SERVERS.map(escaped).join("|");
        let parts: Vec<String> = self.0.collection().split('*').map(escaped).collect();
        format!("^(?!{servers}){}$", parts.join(".*"))
    }
}

/// Whether two names that may both be one thing exist; in `other`, `*` is a character unless `both`.
fn meet(one: &[u8], other: &[u8], both: bool) -> bool {
    // Row by row: which beginnings of `other` can be those of this beginning of `one`.
    let any = |byte: u8| both && byte == b'*';
    let mut row = vec![true];
    for byte in other {
        row.push(row[row.len() - 1] && any(*byte));
    }
    for byte in one {
        let mut next = vec![row[0] && *byte == b'*'];
        for (index, with) in other.iter().enumerate() {
            let meets = if *byte == b'*' || any(*with) {
                // It stands for nothing here, or takes in what the other side has.
                row[index + 1] || next[index]
            } else {
                byte == with && row[index]
            };
            next.push(meets);
        }
        row = next;
    }
    row[other.len()]
}

fn escaped(text: &str) -> String {
    let special = |c: char| r"\^$.|?*+()[]{}".contains(c);
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    #[test]
    fn stars_stand_for_any_characters_of_a_collection() {
        let all = pattern("shop.*");
        assert!(all.names("shop", "orders") && all.names("shop", "a.b") && !all.names("stop", "orders"));
        let orders = pattern("shop.orders_*_x");
        assert!(orders.names("shop", "orders_1_x") && orders.names("shop", "orders__x"));
        assert!(!orders.names("shop", "orders_x") && !orders.names("shop", "orders_1_y"));
        assert!(pattern("shop.*a*").names("shop", "bab") && !pattern("shop.*a*").names("shop", "bcb"));
        assert!(pattern("shop.a*b*c").names("shop", "abbcbc") && !pattern("shop.a*").names("shop", "ba"));
        assert!(all.names_all_of("shop") && !all.names_all_of("stop") && !orders.names_all_of("shop"));
    }

    #[test]
    fn what_belongs_to_servers_is_never_named() {
        for own in ["system.views", "system.buckets.t", "tmp.agg_out.1", "tmp.mr.x", "enxcol_.a.esc"] {
            assert!(!pattern("shop.*").names("shop", own), "{own}");
        }
        for bad in ["admin.*", "local.*", "config.*", "reshard.*", "*.*", "sh*p.c", "shop", "*"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn patterns_that_could_name_one_collection_overlap() {
        let overlap = |one: &str, other: &str| {
            let (one, other) = (pattern(one), pattern(other));
            assert_eq!(one.overlaps(&other), other.overlaps(&one));
            one.overlaps(&other)
        };
        assert!(overlap("a.*", "a.x*") && overlap("a.*_x", "a.y_*") && overlap("a.x*y", "a.xy*"));
        assert!(!overlap("a.x*", "a.y*") && !overlap("a.*x", "a.*y") && !overlap("a.*", "b.*"));
    }

    #[test]
    fn a_regular_expression_says_the_same() {
        assert_eq!(
            pattern("shop.a.b*c").regex(),
            r"^(?!system\.|enxcol_\.|tmp\.agg_out\.|tmp\.mr\.)a\.b.*c$"
        );
    }
}
