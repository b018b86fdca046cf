//! What must differ between two servers that do the same: the whole list.

use bson::{Bson, Document};

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
