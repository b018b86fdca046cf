//! `migrate …`: each action is one request, or a few until something has ended.

use bytes::Bytes;
use hyper::http::{HeaderMap, HeaderValue, Method, header};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::args::{Action, Migrate};
use super::client::{Client, ClientError, segment};
use super::failure::Failure;
use super::{output, pins, ramp, rehearsal, shadow, shapes, show, watch};
use crate::admin::{Problem, SetReads, SetWrites};
use crate::migration::control::{
    Acknowledge, Complete, NamespaceSpec, NewMigration, PreflightReport, SetRehearsal, SetShadow, Throttle,
    Verify,
};
use crate::policy::shard_key::ShardKey;
use crate::policy::zones::Zone;

/// A client that knows how to show answers.
pub(super) struct Session {
    client: Client,
    /// Answers are shown as they came.
    pub(super) json: bool,
}

pub(super) async fn run(args: Migrate) -> Result<(), Failure> {
    let session = Session { client: client(&args)?, json: args.json };
    match args.action {
        Action::Create { name, namespaces, shard_keys, route_keys, initial_chunks, zones, ranges } => {
            let namespaces = specs(namespaces, shard_keys, route_keys, initial_chunks, zones)?;
            let new = json!(NewMigration { name, namespaces, ranges });
            session.show(Method::POST, "/v1/migrations", Some(new), show::view).await.map(drop)
        }
        Action::Preflight { name } => {
            let path = path(&name, "preflight");
            let report: PreflightReport = session.show(Method::POST, &path, None, show::preflight).await?;
            if report.ok { Ok(()) } else { Err(Failure::NotPassed) }
        }
        Action::Start { name } => session.step(&name, "start").await,
        Action::Pause { name } => session.step(&name, "pause").await,
        Action::Resume { name } => session.step(&name, "resume").await,
        Action::Abort { name } => session.step(&name, "abort").await,
        Action::DropOld { name } => session.step(&name, "drop-old").await,
        Action::Complete { name, force, reason } => {
            let how = json!(Complete { force, reason });
            session.show(Method::POST, &path(&name, "complete"), Some(how), show::view).await.map(drop)
        }
        Action::Reads { name, percent } => {
            let wanted = json!(SetReads { percent: percent.into() });
            session.show(Method::PUT, &path(&name, "reads"), Some(wanted), show::reads).await.map(drop)
        }
        Action::Writes { name, percent, max_pause_ms, end_transactions_after } => {
            let wanted = json!(SetWrites { percent: percent.into(), max_pause_ms, end_transactions_after });
            session.show(Method::PUT, &path(&name, "writes"), Some(wanted), show::writes).await.map(drop)
        }
        Action::Ramp { action } => ramp::run(&session, action).await,
        Action::Hold(action) => pins::run(&session, action).await,
        Action::Throttle { name, documents_per_second, megabytes_per_second, none: _ } => {
            let wanted = json!(Throttle { documents_per_second, megabytes_per_second });
            session.show(Method::PUT, &path(&name, "throttle"), Some(wanted), show::throttle).await.map(drop)
        }
        Action::Verify { name, wait: true, how } => watch::verify(&session, &name, how.into()).await,
        Action::Verify { name, wait: false, how } => {
            let how = json!(Verify::from(how));
            session.show(Method::POST, &path(&name, "verify"), Some(how), show::verification).await.map(drop)
        }
        Action::Report { name, html: true } => session.page(&path(&name, "verification?format=html")).await,
        Action::Report { name, html: false } => {
            session.look(&path(&name, "verification"), show::verification_report).await
        }
        Action::Status { name: None, .. } => session.look("/v1/migrations", show::list).await,
        Action::Status { name: Some(name), watch: true, until } => {
            watch::status(&session, &name, until).await
        }
        Action::Status { name: Some(name), .. } => {
            let human = |progress: &_| show::progress(&name, progress);
            session.look(&path(&name, "progress"), human).await
        }
        Action::Conflicts { name } => session.look(&path(&name, "conflicts"), show::conflicts).await,
        Action::Mismatches { name } => session.look(&path(&name, "mismatches"), show::mismatches).await,
        Action::Shadow { name, percent, show_values, reset } => {
            let asked = json!(SetShadow { percent, show_values, reset });
            session.show(Method::PUT, &path(&name, "shadow"), Some(asked), shadow::switched).await.map(drop)
        }
        Action::Rehearse { name, factor, minutes } => session.rehearse(&name, factor, minutes).await,
        Action::Diffs { name, after, limit, csv, html } => {
            session.diffs(&name, after, limit, format_of(csv, html)).await
        }
        Action::Shapes { name, after, limit } => session.shapes(&name, after, limit).await,
        Action::Bypass { name, before, limit } => {
            session.look(&page_of(&name, "bypass-writes", before, limit), show::bypass).await
        }
        Action::AcknowledgeBypass { name, reason, up_to } => {
            let asked = json!(Acknowledge { reason, up_to });
            let path = path(&name, "bypass-writes/acknowledge");
            session.show(Method::POST, &path, Some(asked), show::acknowledged).await.map(drop)
        }
        Action::Events { name, before, limit } => {
            session.look(&page_of(&name, "events", before, limit), show::events).await
        }
    }
}

fn format_of(csv: bool, html: bool) -> Option<&'static str> {
    if html { Some("html") } else { csv.then_some("csv") }
}

/// What moves, with all that is said of it.
fn specs(
    namespaces: Vec<String>,
    shard_keys: Vec<(String, ShardKey)>,
    route_keys: Vec<(String, String)>,
    initial_chunks: Vec<(String, u32)>,
    zones: Vec<(String, Zone)>,
) -> Result<Vec<NamespaceSpec>, Failure> {
    let mut namespaces: Vec<_> = namespaces.into_iter().map(NamespaceSpec::plain).collect();
    set(&mut namespaces, "--shard-key", shard_keys, |spec, key| spec.shard_key = Some(key))?;
    set(&mut namespaces, "--route-key", route_keys, |spec, field| spec.route_key = Some(field))?;
    set(&mut namespaces, "--initial-chunks", initial_chunks, |spec, n| spec.initial_chunks = Some(n))?;
    set(&mut namespaces, "--zone", zones, |spec, zone| spec.zones.push(zone))?;
    Ok(namespaces)
}

/// Puts what an option says of some namespaces where it belongs.
fn set<T>(
    namespaces: &mut [NamespaceSpec],
    option: &str,
    given: Vec<(String, T)>,
    put: impl Fn(&mut NamespaceSpec, T),
) -> Result<(), Failure> {
    for (namespace, what) in given {
        match namespaces.iter_mut().find(|spec| spec.namespace == namespace) {
            Some(spec) => put(spec, what),
            None => return Err(Failure::Usage(format!("{option}: {namespace} is no --namespace"))),
        }
    }
    Ok(())
}

/// The path of one resource of a migration.
pub(super) fn path(name: &str, resource: &str) -> String {
    format!("/v1/migrations/{}/{resource}", segment(name))
}

/// The path of one page of a list.
pub(super) fn page_of(name: &str, list: &str, before: Option<i64>, limit: Option<u16>) -> String {
    with_query(path(name, list), [before.map(|n| format!("before={n}")), limit.map(|n| format!("limit={n}"))])
}

fn with_query<const N: usize>(path: String, parts: [Option<String>; N]) -> String {
    let query: Vec<String> = parts.into_iter().flatten().collect();
    if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
}

impl Session {
    /// One request; what the server refuses is a failure.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, Failure> {
        serde_json::from_slice(&self.ask(method, path, body).await?).map_err(|_| stranger())
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Bytes, Failure> {
        let body = body.map(|body| Bytes::from(body.to_string()));
        let answer = self.client.send(method, path, body).await.map_err(unreachable)?;
        if answer.status.is_success() {
            return Ok(answer.body);
        }
        let problem: Problem = serde_json::from_slice(&answer.body).map_err(|_| stranger())?;
        Err(Failure::Problem(Box::new(problem)))
    }

    /// A page, printed as it is.
    async fn page(&self, path: &str) -> Result<(), Failure> {
        let answer = self.ask(Method::GET, path, None).await?;
        output::page(std::str::from_utf8(&answer).map_err(|_| stranger())?);
        Ok(())
    }

    /// What is asked, by shape.
    async fn shapes(&self, name: &str, after: u64, limit: Option<u16>) -> Result<(), Failure> {
        let limit = limit.map(|limit| format!("limit={limit}"));
        let path = with_query(path(name, "shapes"), [Some(format!("after={after}")), limit]);
        self.look(&path, shapes::shapes).await
    }

    /// Begins or ends a rehearsal; without a factor, how it goes.
    async fn rehearse(&self, name: &str, factor: Option<f64>, minutes: Option<u32>) -> Result<(), Failure> {
        let path = path(name, "rehearsal");
        let Some(factor) = factor else { return self.look(&path, rehearsal::view).await };
        let asked = json!(SetRehearsal { factor, minutes, because: None });
        self.show(Method::PUT, &path, Some(asked), rehearsal::view).await.map(drop)
    }

    /// What shadow reads have found.
    async fn diffs(
        &self,
        name: &str,
        after: Option<u64>,
        limit: Option<u16>,
        format: Option<&str>,
    ) -> Result<(), Failure> {
        let parts = [
            after.map(|n| format!("after={n}")),
            limit.map(|n| format!("limit={n}")),
            format.map(|format| format!("format={format}")),
        ];
        let path = with_query(path(name, "diffs"), parts);
        if format.is_some() {
            return self.page(&path).await;
        }
        self.look(&path, shadow::diffs).await
    }

    /// One request whose answer is shown.
    pub(super) async fn show<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        human: impl FnOnce(&T) -> String,
    ) -> Result<T, Failure> {
        let value = self.call(method, path, body).await?;
        let typed = typed(value.clone())?;
        if self.json {
            output::json(&value);
        } else {
            output::text(&human(&typed));
        }
        Ok(typed)
    }

    /// A question whose answer is shown.
    pub(super) async fn look<T: DeserializeOwned>(
        &self,
        path: &str,
        human: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        self.show(Method::GET, path, None, human).await.map(drop)
    }

    /// A step that takes nothing and gives the migration.
    async fn step(&self, name: &str, step: &str) -> Result<(), Failure> {
        self.show(Method::POST, &path(name, step), None, show::view).await.map(drop)
    }
}

/// An answer in the types of the API.
pub(super) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Failure> {
    serde_json::from_value(value).map_err(|_| stranger())
}

/// Whoever answered is no admin API of this version.
pub(super) fn stranger() -> Failure {
    Failure::Unreachable(
        "the answer is not one of reshard's admin API; check --admin or RESHARD_ADMIN, and that both are of \
         the same version"
            .to_owned(),
    )
}

/// Nobody answered, or nobody could be asked.
pub(super) fn unreachable(error: ClientError) -> Failure {
    match error {
        ClientError::Address(_) => Failure::Usage(error.to_string()),
        ClientError::NoAnswer { .. } => Failure::Unreachable(error.to_string()),
    }
}

fn client(args: &Migrate) -> Result<Client, Failure> {
    let mut headers = HeaderMap::new();
    let user =
        || std::env::var("USER").ok().filter(|user| !user.is_empty() && HeaderValue::from_str(user).is_ok());
    let actor = args.actor.clone().or_else(user).unwrap_or_else(|| "cli".to_owned());
    let actor = HeaderValue::from_str(&actor)
        .map_err(|_| Failure::Usage("--actor must be printable ASCII characters".to_owned()))?;
    headers.insert("x-reshard-actor", actor);
    if let Some(epoch) = args.epoch {
        let tag = HeaderValue::from_str(&format!("\"{epoch}\""))
            .map_err(|error| Failure::Usage(error.to_string()))?;
        headers.insert(header::IF_MATCH, tag);
    }
    Client::new(&args.admin, headers).map_err(unreachable)
}
