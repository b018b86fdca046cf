//! Clients who log in, and may do on both clusters what servers allow them, before, during and after a migration.

mod raw;
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bson::raw::CString;
use bson::{Document, RawDocumentBuf, doc};
use futures::TryStreamExt as _;
use mongodb::Client;
use raw::ask_as;
use reshard::app::{Builder, Proxy};
use reshard::migration::control::{Control as _, Patience};
use reshard::{cluster, listener};
use reshard_loadtest::{Load, Profile};
use reshard_testbed::ReplicaSet;
use support::Operator;
use support::proof::{are_equal_at_rest, each_write_counts_once, load, no_errors, work};
use tokio::net::TcpStream;

const UNAUTHORIZED: i32 = 13;
const AUTHENTICATION_FAILED: i32 = 18;

struct Bed {
    old: ReplicaSet,
    new: ReplicaSet,
    proxy: Proxy,
}

impl Bed {
    /// Two clusters with accounts, users of `shop` on old who are copied to new, and a proxy where clients log in.
    async fn start(name: &str) -> Result<Self> {
        let (old, new) = (format!("{name}-old"), format!("{name}-new"));
        let start =
            |name: String| async move { ReplicaSet::builder(&name).auth("root", "root").start().await };
        let (old, new) = tokio::try_join!(start(old), start(new))?;
        let shop = old.client().await?.database("shop");
        for (user, role) in [("app", "readWrite"), ("reader", "read")] {
            shop.run_command(doc! { "createUser": user, "pwd": format!("pw-{user}"), "roles": [role] })
                .await?;
        }
        let mut listener = listener::Settings::new(SocketAddr::from(([127, 0, 0, 1], 0)));
        listener.entrances[0].login = true;
        let builder = Builder::new(cluster::Settings::parse(&old.uri()).await?, listener)
            .with_new(cluster::Settings::parse(&new.uri()).await?)
            .with_migrations(support::settings());
        Ok(Self { proxy: builder.start().await?, old, new })
    }

    /// As mongodump and mongorestore do.
    async fn copy_users(&self) -> Result<()> {
        let stored = self.old.client().await?.database("admin").collection::<Document>("system.users");
        let users: Vec<Document> = stored.find(doc! { "db": "shop" }).await?.try_collect().await?;
        ensure!(users.len() == 2);
        self.new.client().await?.database("admin").collection("system.users").insert_many(users).await?;
        Ok(())
    }

    fn uri(&self, user: &str, password: &str, options: &str) -> String {
        format!("mongodb://{user}:{password}@{}/?authSource=shop{options}", self.proxy.address())
    }

    async fn client(&self, user: &str) -> Result<Client> {
        Ok(Client::with_uri_str(self.uri(user, &format!("pw-{user}"), "")).await?)
    }
}

/// The code of a server's or the proxy's refusal.
fn code(error: &mongodb::error::Error) -> Option<i32> {
    match &*error.kind {
        mongodb::error::ErrorKind::Command(error) => Some(error.code),
        mongodb::error::ErrorKind::Authentication { .. } => Some(AUTHENTICATION_FAILED),
        _ => None,
    }
}

async fn is_refused<T>(
    what: &str,
    wanted: i32,
    running: impl IntoFuture<Output = mongodb::error::Result<T>>,
) -> Result<()> {
    match running.await {
        Ok(_) => bail!("{what} was not refused"),
        Err(error) => ensure!(code(&error) == Some(wanted), "{what}: {error}"),
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_old_log_in_and_others_do_not() -> Result<()> {
    let bed = Bed::start("login").await?;
    for mechanism in ["SCRAM-SHA-1", "SCRAM-SHA-256"] {
        let options = format!("&authMechanism={mechanism}");
        let shop = Client::with_uri_str(bed.uri("app", "pw-app", &options)).await?.database("shop");
        shop.collection("things").insert_one(doc! { "by": mechanism }).await?;
        let status = shop.run_command(doc! { "connectionStatus": 1 }).await?;
        let users = status.get_document("authInfo")?.get_array("authenticatedUsers")?;
        ensure!(*users == vec![doc! { "user": "app", "db": "shop" }.into()], "{status}");
        for (user, password) in [("app", "pw-other"), ("nobody", "pw-app")] {
            let stranger = Client::with_uri_str(bed.uri(user, password, &options)).await?.database("shop");
            is_refused(user, AUTHENTICATION_FAILED, stranger.run_command(doc! { "ping": 1 })).await?;
        }
    }
    let without = Client::with_uri_str(format!("mongodb://{}/", bed.proxy.address())).await?.database("shop");
    without.run_command(doc! { "ping": 1 }).await?;
    is_refused("a find", UNAUTHORIZED, without.collection::<Document>("things").find_one(doc! {})).await?;
    let reader = bed.client("reader").await?.database("shop");
    ensure!(reader.collection::<Document>("things").count_documents(doc! {}).await? == 2);
    is_refused(
        "a write",
        UNAUTHORIZED,
        reader.run_command(doc! { "insert": "things", "documents": [{ "_id": 1 }] }),
    )
    .await?;
    let elsewhere = bed.client("app").await?.database("elsewhere");
    is_refused("elsewhere", UNAUTHORIZED, elsewhere.run_command(doc! { "find": "things" })).await?;
    ensure!(bed.proxy.shutdown().await);
    Ok(())
}

/// The commands that a server says need no login, and some that do.
async fn commands(bed: &Bed) -> Result<Vec<String>> {
    let listed = bed.old.client().await?.database("admin").run_command(doc! { "listCommands": 1 }).await?;
    let needs_none = |about: &bson::Bson| {
        about.as_document().is_some_and(|about| about.get_bool("requiresAuth").is_ok_and(|needs| !needs))
    };
    let free = listed.get_document("commands")?.iter().filter(|(_, about)| needs_none(about));
    let needing = ["find", "endSessions", "serverStatus", "listDatabases", "usersInfo", "getParameter"];
    let names = free.map(|(name, _)| name.as_str()).chain(needing);
    // What begins so is for servers among themselves.
    let names = names.filter(|name| !name.starts_with('_') && !APART.contains(name));
    Ok(names.map(ToOwned::to_owned).collect())
}

/// What logs in or out, and `hello`, which are looked at elsewhere; what servers have for their own tests; and what they only
/// refuse in other words.
const APART: [&str; 14] = [
    "hello",
    "isMaster",
    "saslStart",
    "saslContinue",
    "authenticate",
    "logout",
    "configureFailPoint",
    "echo",
    "pinHistoryReplicated",
    "refreshLogicalSessionCacheNow",
    "testDeprecation",
    "waitForFailPoint",
    "waitForOngoingChunkSplits",
    "getLastError",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_not_logged_in_is_answered_as_by_a_server() -> Result<()> {
    let bed = Bed::start("stranger").await?;
    let mut server = TcpStream::connect(bed.old.node(0).address()).await?;
    let mut proxy = TcpStream::connect(bed.proxy.address()).await?;
    let names = commands(&bed).await?;
    ensure!(names.iter().any(|name| name == "connectionStatus"), "{names:?}");
    let mut different = Vec::new();
    for name in &names {
        let mut body = RawDocumentBuf::new();
        body.append(CString::try_from(name.as_str())?, 1);
        body.append(bson::cstr!("$db"), "admin");
        let by_server = ask_as(&mut server, 7, &body, Duration::from_secs(20)).await?;
        let by_proxy = ask_as(&mut proxy, 7, &body, Duration::from_secs(20)).await?;
        let told = |reply: &Document| {
            (
                reply.get_f64("ok").ok(),
                reply.get_i32("code").ok(),
                reply.get_document("authInfo").ok().cloned(),
            )
        };
        if told(&by_server) != told(&by_proxy) {
            different.push(format!("{name}: {by_server} and {by_proxy}"));
        }
    }
    ensure!(different.is_empty(), "{names:?}: {different:#?}");
    ensure!(bed.proxy.shutdown().await);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_user_may_do_holds_all_through_a_migration() -> Result<()> {
    let bed = Bed::start("rights").await?;
    bed.copy_users().await?;
    // The load makes its collection in `shop`, as `app`.
    let config = load(bed.uri("app", "pw-app", ""), Profile::Keyed, 3_000);
    let (namespace, collection) = (config.namespace(), config.collection.clone());
    ensure!(config.database == "shop", "{}", config.database);
    Load::prepare(&config).await?;
    let operator = Operator::of(&bed.proxy, &collection);
    let load = Load::start(config).await?;
    operator.create(&[&namespace]).await?;
    let reader = bed.client("reader").await?.database("shop");
    let may_read_only = async || {
        reader.run_command(doc! { "find": &collection, "limit": 1 }).await?;
        let write =
            doc! { "update": &collection, "updates": [{ "q": { "_id": 1 }, "u": { "$set": { "x": 1 } } }] };
        is_refused("a reader's write", UNAUTHORIZED, reader.run_command(write)).await
    };
    may_read_only().await?;
    operator.start().await?;
    operator.until_synced().await?;
    may_read_only().await?;
    for percent in [50, 100] {
        operator.reads(percent).await?;
        operator.writes(percent).await?;
        work(&load, 300).await?;
        may_read_only().await?;
    }
    operator.rollback().await?;
    work(&load, 300).await?;
    operator.reads(100).await?;
    operator.writes(100).await?;
    let level = async { operator.until_level().await };
    are_equal_at_rest(&load, level, (&bed.old, &bed.new), &namespace).await?;
    operator.complete().await?;
    work(&load, 300).await?;
    may_read_only().await?;
    let outcome = load.stop().await;
    no_errors(&outcome.stats.errors)?;
    each_write_counts_once(&outcome, &bed.new.uri()).await?;
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_whom_new_does_not_know_is_told_so() -> Result<()> {
    let bed = Bed::start("unknown").await?;
    let things = bed.client("app").await?.database("shop").collection("things");
    things.insert_one(doc! { "_id": 1 }).await?;
    let operator = Operator::of(&bed.proxy, "unknown");
    operator.create(&["shop.things"]).await?;
    let report = operator.engine.preflight("unknown").await?;
    let found =
        report.findings.iter().find(|finding| finding.code == "users-differ").context("users differ")?;
    for user in ["app@shop", "reader@shop", "root@admin"] {
        ensure!(report.ok && found.message.contains(user), "{found:?}");
    }
    operator.start().await?;
    operator.until_synced().await?;
    // Writes of this process's own user bring new up to date; reads there fall back on old.
    operator.reads(100).await?;
    things.insert_one(doc! { "_id": 2 }).await?;
    ensure!(things.count_documents(doc! {}).await? == 2);
    operator.writes(100).await?;
    let refused =
        things.insert_one(doc! { "_id": 3 }).await.err().context("a user that new does not know")?;
    ensure!(refused.to_string().contains("login at"), "{refused}");
    bed.copy_users().await?;
    things.insert_one(doc! { "_id": 4 }).await?;
    let report = operator.engine.preflight("unknown").await?;
    ensure!(report.findings.iter().all(|finding| !finding.message.contains("app@shop")), "{report:?}");
    bed.proxy.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_transaction_in_the_way_of_a_move_is_ended() -> Result<()> {
    let bed = Bed::start("ends").await?;
    bed.copy_users().await?;
    let client = bed.client("app").await?;
    let things = client.database("shop").collection("things");
    things.insert_one(doc! { "_id": 0 }).await?;
    let operator = Operator::of(&bed.proxy, "ends");
    operator.create(&["shop.things"]).await?;
    operator.start().await?;
    operator.until_synced().await?;
    operator.reads(100).await?;
    let mut session = client.start_session().await?;
    session.start_transaction().await?;
    things.insert_one(doc! { "_id": 1 }).session(&mut session).await?;
    let patience = Patience { max_pause_ms: None, end_transactions_after: Some(1) };
    operator
        .engine
        .set_writes(&support::me(), "ends", 100.into(), patience)
        .await
        .map_err(|error| anyhow::anyhow!("{error:?}"))?;
    ensure!(session.commit_transaction().await.is_err(), "it was ended");
    // Nothing of it is left on the server, long before that would have given it up.
    let open = bed.old.client().await?.database("admin");
    let stages = [
        doc! { "$currentOp": { "allUsers": true, "idleSessions": true } },
        doc! { "$match": { "transaction.parameters.autocommit": false } },
    ];
    let left: Vec<Document> = open.aggregate(stages).await?.try_collect().await?;
    ensure!(left.is_empty(), "{left:?}");
    things.insert_one(doc! { "_id": 2 }).await?;
    bed.proxy.shutdown().await;
    Ok(())
}

/// A user who may set the clock gets times that servers do not sign, and refuse from everybody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_of_a_user_who_may_set_the_clock_reach_no_other() -> Result<()> {
    let bed = Bed::start("clock").await?;
    let admin = bed.old.client().await?.database("admin");
    let privilege = doc! { "resource": { "cluster": true }, "actions": ["advanceClusterTime"] };
    admin.run_command(doc! { "createRole": "clock", "privileges": [privilege], "roles": [] }).await?;
    let roles = vec![bson::Bson::from("readWrite"), doc! { "role": "clock", "db": "admin" }.into()];
    let shop = bed.old.client().await?.database("shop");
    shop.run_command(doc! { "createUser": "keeper", "pwd": "pw-keeper", "roles": roles }).await?;
    let keeper = bed.client("keeper").await?.database("shop").collection("things");
    let plain = bed.client("app").await?;
    let things = plain.database("shop").collection::<Document>("things");
    let mut session = plain.start_session().causal_consistency(true).await?;
    things.insert_one(doc! { "_id": -1 }).session(&mut session).await?;
    for number in 0..50 {
        keeper.insert_one(doc! { "_id": number }).await?;
        let found = things.find_one(doc! { "_id": -1 }).session(&mut session).await?;
        ensure!(found.is_some(), "a causal read after {number}");
    }
    ensure!(bed.proxy.shutdown().await);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_election_fails_no_login() -> Result<()> {
    let bed = Bed::start("election").await?;
    let data = doc! { "failCommands": ["usersInfo"], "errorCode": 11602 };
    let point = doc! { "configureFailPoint": "failCommand", "mode": { "times": 2 }, "data": data };
    bed.old.fail_point(point).await?;
    bed.client("app").await?.database("shop").run_command(doc! { "find": "things" }).await?;
    ensure!(bed.proxy.shutdown().await);
    Ok(())
}
