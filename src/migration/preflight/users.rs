//! Whether those who log in through this process can do so on both clusters.

use std::collections::BTreeMap;

use bson::{Bson, Document, rawdoc};

use super::LIMIT;
use super::findings::Findings;
use crate::cluster::command::{Commands, Request, SharedCluster};
use crate::migration::catalog::{owned, question};
use crate::migration::control::PreflightReport;
use crate::model::side::{PerSide, Side};

/// Users that a finding names.
const NAMED: usize = 10;

/// The users of a cluster, as `user@database`, and what they log in with.
type Users = BTreeMap<String, Bson>;

impl PreflightReport {
    /// With what users lack who log in through this process.
    pub async fn with_users(self, clusters: &PerSide<SharedCluster>) -> Self {
        let mut findings = Findings(self.findings);
        let (old, new) = futures::join!(users(&*clusters.old), users(&*clusters.new));
        for (side, users) in [(Side::Old, &old), (Side::New, &new)] {
            if let Err(why) = users {
                findings.not_checked(&format!("the users on {side}, who log in through this process,"), why);
            }
        }
        if let (Ok(old), Ok(new)) = (old, new) {
            let lacking = others(&old, &new);
            if !lacking.is_empty() {
                let named = lacking.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
                let message = format!(
                    "{} of {} users of old cannot log in to new as they are stored there, and will be refused what new \
                     serves: {named}",
                    lacking.len(),
                    old.len()
                );
                let remedy = "copy them as they are stored (mongodump and mongorestore of admin.system.users, with their \
                              roles); a new user with the same password has other credentials";
                findings.limit("users-differ", "", message, remedy);
            }
        }
        findings.report()
    }
}

async fn users(cluster: &dyn Commands) -> Result<Users, String> {
    let body = rawdoc! { "usersInfo": { "forAllDBs": true }, "showCredentials": true };
    let reply = question(cluster, Request::new("admin", body).within(LIMIT)).await;
    let reply = reply.and_then(|reply| owned(&reply.body)).map_err(|error| error.to_string())?;
    let listed = reply.get_array("users").map_err(|error| error.to_string())?;
    Ok(listed.iter().filter_map(Bson::as_document).filter_map(user).collect())
}

fn user(entry: &Document) -> Option<(String, Bson)> {
    let name = format!("{}@{}", entry.get_str("user").ok()?, entry.get_str("db").ok()?);
    // Those of other mechanisms do not log in here.
    let credentials = entry.get_document("credentials").ok()?;
    credentials.keys().any(|name| name.starts_with("SCRAM-")).then(|| (name, Bson::from(credentials.clone())))
}

/// The users of old whom new does not have with the same credentials.
fn others<'a>(old: &'a Users, new: &Users) -> Vec<&'a str> {
    old.iter()
        .filter(|(name, stored)| new.get(*name) != Some(stored))
        .map(|(name, _)| name.as_str())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    #[test]
    fn who_is_stored_otherwise_cannot_log_in() {
        let entry = |name: &str, salt: &str| {
            user(&doc! { "user": name, "db": "shop", "credentials": { "SCRAM-SHA-256": { "salt": salt } } })
                .unwrap()
        };
        let old: Users = [entry("same", "a"), entry("other", "a"), entry("missing", "a")].into();
        let new: Users = [entry("same", "a"), entry("other", "b"), entry("more", "c")].into();
        assert_eq!(others(&old, &new), ["missing@shop", "other@shop"]);
        let external = doc! { "user": "CN=x", "db": "$external", "credentials": { "external": true } };
        assert_eq!(user(&external), None);
    }
}
