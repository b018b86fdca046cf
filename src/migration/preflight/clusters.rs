//! What is looked at once for each cluster.

use bson::{Bson, Document, Timestamp, rawdoc};

use super::findings::Findings;
use super::{LIMIT, privileges};
use crate::cluster::command::{Commands, Request, ServerId};
use crate::migration::catalog::{Unanswered, owned, question};
use crate::migration::prepare::Wanted;
use crate::model::side::Side;

/// 4.2, the first with all that change streams need.
const OLDEST_WIRE: i64 = 8;
/// A retried write is recognised for this long after a move.
const SESSION_MINUTES: i64 = 30;
/// An oplog that reaches back less is worth a word, in hours.
const SHORT_HOURS: f64 = 24.0;
const COMMAND_NOT_FOUND: i32 = 59;

/// What a cluster said about itself.
pub(super) struct Seen {
    hello: Document,
    server: ServerId,
    config: Document,
    compatibility: Option<String>,
    /// A sharded cluster behind a router.
    pub(super) sharded: bool,
}

/// `None`: it cannot be worked with at all, and the findings say why.
pub(super) async fn look_at_cluster(
    side: Side,
    cluster: &dyn Commands,
    wanted: &[Wanted],
) -> (Option<Seen>, Findings) {
    let mut findings = Findings::default();
    let (hello, server) = match hello(cluster).await {
        Ok(answer) => answer,
        Err(error) => {
            let remedy = "check its URI, user and password, the network, and that it has a primary";
            findings.refuse("unreachable", "", format!("{side} does not answer: {error}"), remedy);
            return (None, findings);
        }
    };
    let sharded = hello.get_str("msg").ok() == Some("isdbgrid");
    if !sharded && hello.get_str("setName").is_err() {
        let message = format!("{side} is a standalone server: it has no oplog to follow");
        let remedy = "restart it with --replSet and call rs.initiate(); one member is enough";
        findings.refuse("standalone", "", message, remedy);
        return (None, findings);
    }
    let wire = whole(hello.get("maxWireVersion")).unwrap_or(0);
    if wire < OLDEST_WIRE {
        let message = format!("{side} is older than MongoDB 4.2 (wire version {wire})");
        findings.refuse("server-too-old", "", message, "upgrade it to 4.2 or later");
        return (None, findings);
    }
    let minutes = whole(hello.get("logicalSessionTimeoutMinutes")).unwrap_or(SESSION_MINUTES);
    if minutes > SESSION_MINUTES {
        let message = format!(
            "sessions on {side} live {minutes} minutes; a write that is retried more than {SESSION_MINUTES} \
             minutes after its document moved is not recognised"
        );
        let remedy = "leave localLogicalSessionTimeoutMinutes at 30, or let no driver retry that late";
        findings.limit("session-timeout", "", message, remedy);
    }
    privileges::check(side, cluster, sharded, wanted, &mut findings).await;
    let compatibility = parameters(side, cluster, &mut findings).await;
    let mut config = Document::new();
    if sharded {
        findings
            .not_checked(&format!("journaling and oplogs of the shards of {side}"), "a router cannot tell");
    } else {
        config = replica_set_config(side, cluster, &mut findings).await;
        look_at_oplog(side, cluster, &mut findings).await;
    }
    (Some(Seen { hello, server, config, compatibility, sharded }), findings)
}

/// What a cluster says of itself, and which server it was.
pub(in crate::migration) async fn hello(cluster: &dyn Commands) -> Result<(Document, ServerId), Unanswered> {
    let ask = |body| question(cluster, Request::new("admin", body).within(LIMIT));
    let reply = match ask(rawdoc! { "hello": 1 }).await {
        // 4.2 and early 4.4 only know the old name.
        Err(error) if error.code == Some(COMMAND_NOT_FOUND) => ask(rawdoc! { "isMaster": 1 }).await?,
        other => other?,
    };
    Ok((owned(&reply.body)?, reply.server))
}

fn whole(value: Option<&Bson>) -> Option<i64> {
    match value? {
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Int64(number) => Some(*number),
        #[expect(clippy::cast_possible_truncation, reason = "saturates")]
        Bson::Double(number) => Some(*number as i64),
        _ => None,
    }
}

/// Looks at server parameters; returns the feature compatibility version where it can be read.
async fn parameters(side: Side, cluster: &dyn Commands, findings: &mut Findings) -> Option<String> {
    let body = rawdoc! { "getParameter": 1, "featureCompatibilityVersion": 1, "notablescan": 1 };
    let parameters = match question(cluster, Request::new("admin", body).within(LIMIT)).await {
        Ok(reply) => owned(&reply.body).unwrap_or_default(),
        Err(error) => {
            findings.not_checked(&format!("the parameters of {side}"), error);
            return None;
        }
    };
    if parameters.get_bool("notablescan").ok() == Some(true) {
        let message = format!("{side} runs with notablescan: commands that use no index fail there");
        findings.limit("no-table-scan", "", message, "switch it off while the migration runs");
    }
    let version = parameters.get_document("featureCompatibilityVersion").ok()?;
    if version.contains_key("targetVersion") {
        let message = format!("{side} is between two feature compatibility versions");
        let remedy = "let setFeatureCompatibilityVersion finish first";
        findings.refuse("compatibility-changing", "", message, remedy);
    }
    version.get_str("version").ok().map(str::to_owned)
}

async fn replica_set_config(side: Side, cluster: &dyn Commands, findings: &mut Findings) -> Document {
    let request = Request::new("admin", rawdoc! { "replSetGetConfig": 1 }).within(LIMIT);
    let config = match question(cluster, request).await {
        Ok(reply) => owned(&reply.body).unwrap_or_default(),
        Err(error) => {
            findings.not_checked(&format!("the replica set configuration of {side}"), error);
            return Document::new();
        }
    };
    let config = config.get_document("config").cloned().unwrap_or_default();
    if config.get_bool("writeConcernMajorityJournalDefault").ok() == Some(false) {
        let message = format!(
            "{side} acknowledges majority writes before they are in a journal: all of its \
                               members together could lose one"
        );
        let remedy = "set writeConcernMajorityJournalDefault to true with rs.reconfig()";
        findings.refuse("majority-not-journaled", "", message, remedy);
    }
    let members = config.get_array("members").cloned().unwrap_or_default();
    let arbiter = |member: &Bson| {
        member.as_document().is_some_and(|member| member.get_bool("arbiterOnly").ok() == Some(true))
    };
    if members.iter().any(arbiter) {
        let message = format!(
            "{side} has an arbiter: with one data member down, majority writes wait, and the \
                               migration with them"
        );
        findings.limit("arbiter", "", message, "add a third data member for the time of the migration");
    }
    config
}

/// How far back the oplog reaches, in seconds; and whether it is full, so that this is all there will be.
///
/// # Errors
/// In words, why it is not known; routers cannot tell.
pub async fn oplog_window_seconds(cluster: &dyn Commands) -> Result<f64, String> {
    oplog(cluster).await.map(|(seconds, _)| seconds).map_err(|error| error.to_string())
}

async fn oplog(cluster: &dyn Commands) -> Result<(f64, bool), Unanswered> {
    let end = |order: i32| {
        let body = rawdoc! {
            "find": "oplog.rs", "sort": { "$natural": order }, "projection": { "ts": 1 }, "limit": 1,
            "singleBatch": true,
        };
        question(cluster, Request::new("local", body).within(LIMIT))
    };
    let time = |reply: crate::cluster::command::Reply| -> Result<Timestamp, Unanswered> {
        let documents = crate::state::records::first_batch(&reply.body).map_err(Unanswered::malformed)?;
        let first = documents.first().and_then(|entry| entry.get_timestamp("ts").ok());
        first.ok_or_else(|| Unanswered::malformed("an oplog without a readable entry"))
    };
    let (first, last) = (time(end(1).await?)?, time(end(-1).await?)?);
    let stats = Request::new("local", rawdoc! { "collStats": "oplog.rs" }).within(LIMIT);
    let stats = owned(&question(cluster, stats).await?.body)?;
    let (size, most) =
        (whole(stats.get("size")).unwrap_or(0), whole(stats.get("maxSize")).unwrap_or(i64::MAX));
    Ok((f64::from(last.time.saturating_sub(first.time)), size >= most / 10 * 9))
}

async fn look_at_oplog(side: Side, cluster: &dyn Commands, findings: &mut Findings) {
    match oplog(cluster).await {
        Err(error) => findings.not_checked(&format!("the oplog of {side}"), error),
        Ok((seconds, full)) if full && seconds < SHORT_HOURS * 3600.0 => {
            let message = format!(
                "the oplog of {side} reaches back {:.1} hours: a copy or a halt that lasts longer has to start over",
                seconds / 3600.0
            );
            let remedy = "make it larger with replSetResizeOplog";
            findings.limit("oplog-window", "", message, remedy);
        }
        Ok((seconds, _)) => {
            let message = format!("the oplog of {side} reaches back {:.1} hours", seconds / 3600.0);
            findings.info("oplog-window", "", message, "");
        }
    }
}

/// Refuses two URIs that lead to one cluster.
pub(super) fn refuse_same_cluster(old: &Seen, new: &Seen, findings: &mut Findings) {
    let id = |seen: &Seen| {
        seen.config.get_document("settings").ok().and_then(|it| it.get("replicaSetId").cloned())
    };
    let process = |seen: &Seen| {
        let version = seen.hello.get_document("topologyVersion").ok();
        version.and_then(|version| version.get("processId").cloned())
    };
    let hosts = |seen: &Seen| -> Vec<String> {
        let listed = seen.hello.get_array("hosts").cloned().unwrap_or_default();
        let listed = listed.into_iter().filter_map(|host| host.as_str().map(str::to_owned));
        listed.chain([seen.server.to_string()]).collect()
    };
    let equal = |one: Option<Bson>, other: Option<Bson>| one.is_some() && one == other;
    let new_hosts = hosts(new);
    if equal(id(old), id(new))
        || equal(process(old), process(new))
        || hosts(old).iter().any(|host| new_hosts.contains(host))
    {
        let remedy = "give the URI of another cluster as new";
        findings.refuse("same-cluster", "", "old and new are the same cluster", remedy);
    }
}

/// Tells of versions that differ.
pub(super) fn compare_versions(old: &Seen, new: &Seen, findings: &mut Findings) {
    let (Some(of_old), Some(of_new)) = (&old.compatibility, &new.compatibility) else { return };
    let number =
        |version: &str| -> Vec<u32> { version.split('.').filter_map(|part| part.parse().ok()).collect() };
    let message = format!("the feature compatibility version is {of_old} on old and {of_new} on new");
    match number(of_new).cmp(&number(of_old)) {
        std::cmp::Ordering::Less => {
            let remedy = "raise it on new, or make sure that nothing later than new's version is used";
            findings.limit("feature-compatibility", "", message, remedy);
        }
        std::cmp::Ordering::Greater => {
            let remedy = "do not use what old does not know before the migration is completed";
            findings.info("feature-compatibility", "", message, remedy);
        }
        std::cmp::Ordering::Equal => {}
    }
}
