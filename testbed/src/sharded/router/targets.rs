//! Which shards a single statement of a write goes to, as mongos decides it.

use bson::raw::RawBsonRef;
use bson::{Bson, Document, RawDocument};

use super::failure::Failure;
use super::raw;
use super::table::{Sharding, Table, demands};

/// What a write command does, with the name of its list of statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Insert,
    Update,
    Delete,
}

impl Kind {
    pub(super) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "insert" => Self::Insert,
            "update" => Self::Update,
            "delete" => Self::Delete,
            _ => return None,
        })
    }

    /// The engine's name of the command.
    pub(super) fn cluster_name(self) -> &'static str {
        match self {
            Self::Insert => "clusterInsert",
            Self::Update => "clusterUpdate",
            Self::Delete => "clusterDelete",
        }
    }

    pub(super) fn list(self) -> &'static str {
        match self {
            Self::Insert => "documents",
            Self::Update => "updates",
            Self::Delete => "deletes",
        }
    }
}

/// The shards of one statement. Nothing where it takes more than this knows: then the engine decides.
pub(super) fn targets(
    table: &Table,
    kind: Kind,
    statement: &RawDocument,
) -> Result<Option<Vec<String>>, Failure> {
    let Some(sharding) = &table.sharding else { return Ok(Some(table.shards())) };
    if kind == Kind::Insert {
        let key: Document =
            sharding.key.keys().map(|path| (path.clone(), value_at(statement, path))).collect();
        return Ok(owner(sharding, &key).map(|shard| vec![shard]));
    }
    let several = match kind {
        Kind::Update => raw::truth(statement, "multi"),
        _ => raw::whole(statement, "limit") != Some(1),
    };
    if several || compares_otherwise(statement.get("collation")?) {
        return Ok(None);
    }
    let query = raw::document(statement, "q")?;
    if let Some(key) = sharding.key_of_filter(&query) {
        return Ok(owner(sharding, &key).map(|shard| vec![shard]));
    }
    let exact_id = demands(&query, "_id").is_some();
    let everywhere = exact_id && !raw::truth(statement, "upsert") && !is_replacement(statement);
    Ok(everywhere.then(|| table.shards()))
}

/// The shard of a key; nothing if the key is none, or one that is not hashed here.
pub(super) fn owner(sharding: &Sharding, key: &Document) -> Option<String> {
    if key.values().any(|value| matches!(value, Bson::Array(_))) {
        return None;
    }
    sharding.chunk_of(key).ok().map(|chunk| chunk.shard.clone())
}

/// Whether values are compared by other rules than those by which chunks are cut.
pub(super) fn compares_otherwise(collation: Option<RawBsonRef<'_>>) -> bool {
    let simple = |collation: &RawDocument| collation.get_str("locale").is_ok_and(|it| it == "simple");
    !collation.is_none_or(|collation| collation.as_document().is_some_and(simple))
}

/// A replacement is sent to the shard of what it puts there, if the filter does not say more.
fn is_replacement(update: &RawDocument) -> bool {
    let Ok(Some(RawBsonRef::Document(update))) = update.get("u") else { return false };
    !update.iter().flatten().next().is_some_and(|(key, _)| key.as_str().starts_with('$'))
}

fn value_at(document: &RawDocument, path: &str) -> Bson {
    let found = match path.split_once('.') {
        None => document.get(path).ok().flatten().map(Bson::try_from),
        Some((first, rest)) => {
            return match document.get(first) {
                Ok(Some(RawBsonRef::Document(inner))) => value_at(inner, rest),
                // Not allowed for a shard key: let the engine say so.
                Ok(Some(RawBsonRef::Array(_))) => Bson::Array(Vec::new()),
                _ => Bson::Null,
            };
        }
    };
    found.and_then(Result::ok).unwrap_or(Bson::Null)
}
