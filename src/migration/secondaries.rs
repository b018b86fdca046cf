//! How far single secondaries are behind: those that an application may read from while the majority is well.

use std::sync::Arc;
use std::time::Duration;

use bson::{RawDocument, RawDocumentBuf, Timestamp, rawdoc};
use futures::future::join_all;

use crate::clock::Clock;
use crate::cluster::command::{Commands, Request, ServerId, Target};
use crate::policy::evidence::Secondaries;

/// How long a member may take to say where it is.
const LIMIT: Duration = Duration::from_secs(2);
/// A secondary gets this often a moment more for what its primary had when the look began: what is on its way is no lag.
const LOOKS: u32 = 6;
const MOMENT: Duration = Duration::from_millis(200);

/// Where a member's oplog ends.
#[derive(Debug, Clone, Copy)]
struct End {
    at: Timestamp,
    millis: i64,
}

/// The secondary of `cluster` that is furthest behind its primary. Asked with `hello`, which needs no privileges.
pub(super) async fn furthest_behind(cluster: &dyn Commands, clock: &dyn Clock) -> Secondaries {
    look(cluster, clock).await.unwrap_or_else(Secondaries::Unknown)
}

async fn look(cluster: &dyn Commands, clock: &dyn Clock) -> Result<Secondaries, String> {
    let primary = hello(cluster, Target::Primary).await?;
    if primary.get_str("msg").is_ok_and(|msg| msg == "isdbgrid") {
        return Err("not to be had through mongos".to_owned());
    }
    let wanted = end(&primary).ok_or("the primary does not say how far it is")?;
    let me = primary.get_str("me").unwrap_or_default().to_lowercase();
    let others = ["hosts", "passives"].into_iter().filter_map(|list| primary.get_array(list).ok());
    let others = others.flatten().flatten().filter_map(|host| Some(host.as_str()?.to_lowercase()));
    let others = others.filter(|host| *host != me);
    let all = others.map(|host| async move {
        let lag = behind(cluster, clock, &host.as_str().into(), wanted).await;
        lag.map(|lag| lag.map(|seconds| (host.clone(), seconds))).map_err(|why| format!("{host}: {why}"))
    });
    let all = join_all(all.collect::<Vec<_>>()).await.into_iter().collect::<Result<Vec<_>, String>>()?;
    let worst = all.into_iter().flatten().max_by(|a, b| a.1.total_cmp(&b.1));
    Ok(worst.map_or(Secondaries::None, |(server, seconds)| Secondaries::Furthest { server, seconds }))
}

/// Seconds that a member is behind what its primary had; `None` where nobody can read.
async fn behind(
    cluster: &dyn Commands,
    clock: &dyn Clock,
    server: &ServerId,
    wanted: End,
) -> Result<Option<f64>, String> {
    let mut lag = None;
    for look in 0..LOOKS {
        if look > 0 {
            clock.sleep(MOMENT).await;
        }
        let member = hello(cluster, Target::Server(Arc::clone(server))).await?;
        if !member.get_bool("secondary").unwrap_or(false) {
            return Ok(None);
        }
        let end = end(&member).ok_or("it does not say how far it is")?;
        if end.at >= wanted.at {
            return Ok(Some(0.0));
        }
        lag = Some(Duration::from_millis(wanted.millis.saturating_sub(end.millis).max(0).unsigned_abs()));
    }
    // Dates are those of writes, whole seconds where little is written.
    Ok(lag.map(|lag| lag.max(MOMENT * (LOOKS - 1)).as_secs_f64()))
}

async fn hello(cluster: &dyn Commands, target: Target) -> Result<RawDocumentBuf, String> {
    // The old name: all versions know it.
    let request = Request::new("admin", rawdoc! { "isMaster": 1 }).within(LIMIT).to(target);
    let reply = cluster.run(request).await.map_err(|error| error.to_string())?;
    reply.error().map_or(Ok(reply.body), |error| Err(error.message))
}

fn end(hello: &RawDocument) -> Option<End> {
    let last = hello.get_document("lastWrite").ok()?;
    let at = last.get_document("opTime").ok()?.get_timestamp("ts").ok()?;
    Some(End { at, millis: last.get_datetime("lastWriteDate").ok()?.timestamp_millis() })
}
