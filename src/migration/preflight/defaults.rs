//! What operations get that name no concern of their own: the default of the cluster that serves them.

use bson::{Bson, Document, rawdoc};

use super::LIMIT;
use super::findings::Findings;
use crate::cluster::command::{Commands, Request, SharedCluster};
use crate::migration::catalog::{Unanswered, owned, question};
use crate::model::side::{PerSide, Side};

const COMMAND_NOT_FOUND: i32 = 59;

/// The defaults of a cluster, as servers apply them.
#[derive(Debug, PartialEq)]
struct Defaults {
    /// For writes: `w`, `j` and `wtimeout`.
    write: [Bson; 3],
    /// For reads: the level.
    read: String,
}

/// Tells of defaults that differ: what applications get changes with the move then, though nothing of theirs does.
pub(super) async fn compare(clusters: &PerSide<SharedCluster>, findings: &mut Findings) {
    let (old, new) = futures::join!(defaults(&*clusters.old), defaults(&*clusters.new));
    for (side, defaults) in [(Side::Old, &old), (Side::New, &new)] {
        if let Err(why) = defaults {
            findings.not_checked(&format!("the default read and write concern of {side}"), &why.message);
        }
    }
    let (Ok(old), Ok(new)) = (old, new) else { return };
    let mut differ = Vec::new();
    if old.write != new.write {
        let (old, new) = (spoken(&old.write), spoken(&new.write));
        differ.push(format!(
            "writes that name no write concern are acknowledged by {old} on old and by {new} on new"
        ));
    }
    if old.read != new.read {
        let (old, new) = (&old.read, &new.read);
        differ.push(format!("reads that name no read concern are of level {old} on old and {new} on new"));
    }
    if !differ.is_empty() {
        let remedy = "set the same on both with setDefaultRWConcern, or let applications name the concerns they rely on";
        let message = format!("{}: that changes for applications as they move", differ.join("; "));
        findings.limit("defaults-differ", "", message, remedy);
    }
}

async fn defaults(cluster: &dyn Commands) -> Result<Defaults, Unanswered> {
    let request = Request::new("admin", rawdoc! { "getDefaultRWConcern": 1 }).within(LIMIT);
    match question(cluster, request).await {
        Ok(reply) => Ok(effective(&owned(&reply.body)?)),
        // 4.2 has none that can be set.
        Err(error) if error.code == Some(COMMAND_NOT_FOUND) => Ok(effective(&Document::new())),
        Err(error) => Err(error),
    }
}

/// Of what a cluster tells. What it does not name is what servers do without a default.
fn effective(told: &Document) -> Defaults {
    let write = told.get_document("defaultWriteConcern").cloned().unwrap_or_default();
    let or = |name: &str, otherwise: Bson| match write.get(name) {
        None | Some(Bson::Null) => otherwise,
        Some(Bson::Int64(number)) => i32::try_from(*number).map_or(Bson::Int64(*number), Bson::Int32),
        #[expect(clippy::cast_possible_truncation, reason = "numbers of members and milliseconds")]
        Some(Bson::Double(number)) => Bson::Int32(*number as i32),
        Some(other) => other.clone(),
    };
    let read = told.get_document("defaultReadConcern").ok();
    let read = read.and_then(|read| read.get_str("level").ok()).unwrap_or("local");
    Defaults {
        write: [or("w", Bson::Int32(1)), or("j", Bson::Boolean(false)), or("wtimeout", Bson::Int32(0))],
        read: read.to_owned(),
    }
}

/// As one writes it; what is as usual is left out.
fn spoken([w, journaled, timeout]: &[Bson; 3]) -> String {
    let journaled =
        if *journaled == Bson::Boolean(false) { String::new() } else { format!(", j: {journaled}") };
    let timeout = if *timeout == Bson::Int32(0) { String::new() } else { format!(", wtimeout: {timeout}") };
    format!("{{ w: {w}{journaled}{timeout} }}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    #[test]
    fn what_is_not_named_is_what_servers_do() {
        let plain = effective(&Document::new());
        let named = doc! {
            "defaultReadConcern": { "level": "local" },
            "defaultWriteConcern": { "w": 1_i64, "wtimeout": 0.0 }, "defaultWriteConcernSource": "global",
        };
        assert_eq!(effective(&named), plain);
        assert_eq!(spoken(&plain.write), "{ w: 1 }");
        let other =
            effective(&doc! { "defaultWriteConcern": { "w": "majority", "j": true, "wtimeout": 500 } });
        assert_ne!(other, plain);
        assert_eq!(spoken(&other.write), "{ w: \"majority\", j: true, wtimeout: 500 }");
    }
}
