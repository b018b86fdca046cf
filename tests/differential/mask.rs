//! What must differ between two servers that do the same: the whole list, for all tests of this folder.

use anyhow::{Context as _, Result};
use bson::{Bson, Document};

/// Commands whose replies tell of one server, and what of them is compared when they succeed: how much there is on its
/// disk, how it plans, what runs on it, what it is called. A failure is compared whole.
pub(crate) const PARTS: &[(&str, &[&str])] = &[
    ("ok", &["ok"]),
    ("cursor", &["cursor.ns", "ok"]),
    ("batch", &["cursor.firstBatch", "cursor.ns", "ok"]),
    ("database", &["db", "views", "scaleFactor", "ok"]),
    ("read_concern", &["defaultReadConcern", "ok"]),
    ("size", &["ns", "count", "size", "nindexes", "capped", "ok"]),
    // Written by the mirror, too: how many bytes of a collection are where is each cluster's own.
    ("size_of_what_moves", &["ns", "nindexes", "scaleFactor", "ok"]),
    ("data_size", &["size", "numObjects", "estimate", "ok"]),
    ("validity", &["ns", "valid", "nrecords", "ok"]),
    ("plan", &["queryPlanner.namespace", "ok"]),
    ("whole_plan", &["queryPlanner.parsedQuery", "queryPlanner.namespace", "command", "ok"]),
    ("session", &["timeoutMinutes", "ok"]),
];

/// The part of a reply by that name.
///
/// # Errors
/// There is no such row in [`PARTS`].
pub(crate) fn part(name: &str, reply: &Document) -> Result<Document> {
    let (_, fields) = PARTS.iter().find(|(known, _)| *known == name).with_context(|| name.to_owned())?;
    let field = |path: &&str| {
        let mut value = Bson::Document(reply.clone());
        for name in path.split('.') {
            value = value.as_document()?.get(name)?.clone();
        }
        Some(((*path).to_owned(), value))
    };
    Ok(fields.iter().filter_map(field).collect())
}

/// The lists of a reply in some order, where servers give none.
pub(crate) fn in_order(reply: &mut Document) {
    for list in ["results", "values"] {
        if let Ok(list) = reply.get_array_mut(list) {
            list.sort_by_key(ToString::to_string);
        }
    }
    let batch = reply.get_document_mut("cursor").and_then(|cursor| cursor.get_array_mut("firstBatch"));
    if let Ok(batch) = batch {
        batch.sort_by_key(ToString::to_string);
    }
}

const CURSOR_NOT_FOUND: i32 = 43;

/// Fields of every reply that tell times, elections and the way through a cluster.
const OF_ONE_CLUSTER: [&str; 6] =
    ["operationTime", "$clusterTime", "electionId", "opTime", "recoveryToken", "atClusterTime"];

/// The same for both, if only these differ.
pub(crate) fn mask(reply: &mut Document) {
    for field in OF_ONE_CLUSTER {
        reply.remove(field);
    }
    if let Ok(cursor) = reply.get_document_mut("cursor") {
        cursor.remove("atClusterTime");
        // Chosen by each server by itself; whether there is one counts.
        if cursor.get_i64("id").is_ok_and(|id| id != 0) {
            cursor.insert("id", 1_i64);
        }
        collections(cursor);
    }
    generated_ids(reply);
    roles(reply);
    shards(reply);
    if let Ok(text) = reply.get_str("errmsg") {
        // The proxy knows its cursors itself, and marks what it says itself.
        let text = if reply.get_i32("code").is_ok_and(|code| code == CURSOR_NOT_FOUND) {
            text.trim_start_matches("reshard: ")
        } else {
            text
        };
        let text = without_given_names(text);
        reply.insert("errmsg", text);
    }
    for list in ["cursorsKilled", "cursorsAlive", "cursorsNotFound", "cursorsUnknown"] {
        if let Ok(ids) = reply.get_array_mut(list) {
            ids.fill(Bson::Int64(1));
        }
    }
}

/// Each server gives its own UUIDs to collections.
fn collections(cursor: &mut Document) {
    let Ok(batch) = cursor.get_array_mut("firstBatch") else { return };
    for one in batch.iter_mut().filter_map(Bson::as_document_mut) {
        if let Ok(info) = one.get_document_mut("info")
            && info.contains_key("uuid")
        {
            info.insert("uuid", "given");
        }
    }
}

/// What a router makes of its shards' answers: which shard said what, and in which order they did.
fn shards(reply: &mut Document) {
    if let Some(Bson::Document(raw)) = reply.remove("raw") {
        let mut said: Vec<Document> =
            raw.into_iter().filter_map(|(_, said)| said.as_document().cloned()).collect();
        said.iter_mut().for_each(mask);
        said.dedup();
        reply.insert("raw", said);
    }
    let place = |one: &Bson| one.as_document().and_then(|one| one.get_i32("index").ok());
    if let Ok(upserted) = reply.get_array_mut("upserted") {
        upserted.sort_by_key(place);
    }
}

/// The fields by name: a router lays them out in another order than a server, and the proxy's are a server's.
pub(crate) fn by_name(reply: Document) -> Document {
    let mut fields: Vec<_> = reply.into_iter().collect();
    fields.sort_by(|one, other| one.0.cmp(&other.0));
    fields.into_iter().collect()
}

/// Ids that servers make: of upserted documents and of users.
fn generated_ids(reply: &mut Document) {
    let made = |of: &mut Document, field: &str| {
        if matches!(of.get(field), Some(Bson::ObjectId(_) | Bson::Binary(_))) {
            of.insert(field, "made");
        }
    };
    for (list, field) in [("upserted", "_id"), ("users", "userId")] {
        if let Ok(all) = reply.get_array_mut(list) {
            all.iter_mut().filter_map(Bson::as_document_mut).for_each(|one| made(one, field));
        }
    }
}

/// A server keeps the roles that a role has in a set.
fn roles(reply: &mut Document) {
    let Ok(roles) = reply.get_array_mut("roles") else { return };
    for role in roles.iter_mut().filter_map(Bson::as_document_mut) {
        if let Ok(all) = role.get_array_mut("inheritedRoles") {
            all.sort_by_key(ToString::to_string);
        }
    }
}

/// Messages without the ids of cursors, collections and index builds: runs of more than seven hexadecimal digits,
/// and what hangs on them.
fn without_given_names(text: &str) -> String {
    let is_given = |word: &str| {
        let first = word.split('-').next().unwrap_or_default();
        first.len() > 7 && first.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let words = text.split(' ').map(|word| {
        let bare = word.trim_end_matches([':', ',']);
        if is_given(bare) { word.replace(bare, "given") } else { word.to_owned() }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Of commands that nobody wrote (`twisted.rs`) what is not compared. Plans tell how long they took, and a limit of time
/// may be met on one side. Times of clusters and tokens of transactions do not pass the proxy; it hears of every write,
/// and knows itself which cursors there are, before a server could look at the rest of a command. For a secondary, which
/// these sets have not got, it waits.
pub(crate) fn is_left_out(command: &Document) -> bool {
    let name = command.keys().next().map_or("", String::as_str);
    let fields = ["$clusterTime", "recoveryToken", "maxTimeMS", "explain"];
    let concern = command.get_document("writeConcern").ok().and_then(|concern| concern.get("w"));
    let is_silent = matches!(concern, Some(Bson::Int32(0) | Bson::Int64(0)));
    let preference =
        command.get_document("$readPreference").and_then(|preference| preference.get_str("mode"));
    is_silent
        || preference.is_ok_and(|mode| mode == "secondary")
        || fields.into_iter().any(|field| command.contains_key(field))
        || ["getMore", "killCursors"].contains(&name)
}

/// And of two faults each may tell another one: the proxy sends the fields of a write in another order.
pub(crate) fn are_refused(one: &Document, other: &Document) -> bool {
    [one, other].into_iter().all(|reply| reply.get_f64("ok").is_ok_and(|ok| ok == 0.0))
}

/// Nor times and ids that servers give, each its own, wherever they stand; and without a `$sort`, which may have been
/// taken away, groups come in any order.
pub(crate) fn mask_of_twisted(reply: &mut Document) {
    mask(reply);
    reply.iter_mut().for_each(|(_, value)| without_given(value));
    in_order(reply);
}

fn without_given(value: &mut Bson) {
    match value {
        Bson::ObjectId(_) | Bson::Timestamp(_) | Bson::DateTime(_) => *value = "given".into(),
        Bson::Document(inside) => inside.iter_mut().for_each(|(_, value)| without_given(value)),
        Bson::Array(inside) => inside.iter_mut().for_each(without_given),
        _ => {}
    }
}
