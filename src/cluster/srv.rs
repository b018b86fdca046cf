//! The routers of a sharded cluster by DNS: a `mongodb+srv` name is looked up again and again.
//! Source: specifications/source/polling-srv-records-for-mongos-discovery.md.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use mongodb::options::ClientOptions;

use super::command::ServerId;
use super::handle::Cluster;
use super::topology::TopologyKind;
use super::uri;

/// How often a name is looked up again.
const INTERVAL: Duration = Duration::from_secs(60);

type Answer = Result<Vec<ServerId>, String>;

/// A name that stands for servers.
#[derive(Clone)]
pub struct Lookup {
    interval: Duration,
    ask: Arc<dyn Fn() -> BoxFuture<'static, Answer> + Send + Sync>,
}

impl fmt::Debug for Lookup {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A connection string has a password.
        write!(formatter, "Lookup(every {:?})", self.interval)
    }
}

impl Lookup {
    /// Of a connection string that has been read once; `None` for one that names its servers itself, or is to know some
    /// of them only.
    pub(super) fn of(uri: &str, options: &ClientOptions) -> Option<Self> {
        let whole = options.srv_max_hosts.is_none_or(|most| most == 0);
        let uri: Arc<str> = Some(uri).filter(|uri| uri.starts_with("mongodb+srv://") && whole)?.into();
        let ask = move || -> BoxFuture<'static, Answer> {
            let uri = uri.clone();
            Box::pin(async move {
                let options = ClientOptions::parse(&*uri).await;
                let options =
                    options.map_err(|error| uri::without_password(&error.kind.to_string(), &uri))?;
                let seeds = options.hosts.iter().map(uri::seed).collect::<Result<_, _>>();
                seeds.map_err(|error| error.to_string())
            })
        };
        Some(Self { interval: INTERVAL, ask: Arc::new(ask) })
    }
}

/// Keeps to what the name stands for, as long as the cluster is not known to be anything but sharded: a replica set says
/// itself who belongs to it.
pub(super) async fn follow(cluster: Weak<Cluster>, lookup: Lookup) {
    let mut pause = lookup.interval;
    loop {
        tokio::time::sleep(pause).await;
        let Some(cluster) = cluster.upgrade() else { return };
        match cluster.topology().kind {
            TopologyKind::Sharded | TopologyKind::Unknown => {}
            TopologyKind::ReplicaSet { .. } | TopologyKind::Standalone => return,
        }
        let heartbeat = cluster.settings().heartbeat;
        pause = match (lookup.ask)().await {
            Ok(seeds) if !seeds.is_empty() => {
                cluster.keep_to(&seeds);
                lookup.interval
            }
            Ok(_) => heartbeat,
            Err(error) => {
                tracing::warn!(
                    error,
                    "the name of a cluster cannot be looked up; its servers stay as they are known"
                );
                heartbeat
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::uri::Settings;
    use super::*;
    use crate::shutdown::Tasks;
    use parking_lot::Mutex;

    const LIMIT: Duration = Duration::from_secs(30);

    fn names(cluster: &Cluster) -> Vec<ServerId> {
        let mut names: Vec<_> =
            cluster.topology().servers.iter().map(|server| server.address.clone()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn routers_come_and_go_with_their_name() {
        // Nobody listens: what is looked up again is a cluster that is not known to be a replica set.
        let answer: Arc<Mutex<Answer>> = Arc::new(Mutex::new(Ok(vec!["127.0.0.1:1".into()])));
        let asked = Arc::new(tokio::sync::Semaphore::new(0));
        let (given, counted) = (answer.clone(), asked.clone());
        let ask = move || -> BoxFuture<'static, Answer> {
            counted.add_permits(1);
            let given = given.lock().clone();
            Box::pin(async move { given })
        };
        let mut settings = Settings::parse("mongodb://127.0.0.1:1/?heartbeatFrequencyMS=500").await.unwrap();
        settings.heartbeat = Duration::from_millis(1);
        settings.lookup = Some(Lookup { interval: Duration::from_millis(1), ask: Arc::new(ask) });
        let tasks = Tasks::default();
        let cluster = Cluster::connect(settings, &tasks).await.unwrap();
        let both: Vec<ServerId> = vec!["127.0.0.1:1".into(), "127.0.0.1:2".into()];
        for (next, expected) in [
            (Ok(both.clone()), both.clone()),
            (Ok(both[1..].to_vec()), both[1..].to_vec()),
            (Ok(Vec::new()), both[1..].to_vec()),
            (Err("no such name".to_owned()), both[1..].to_vec()),
            (Ok(both[..1].to_vec()), both[..1].to_vec()),
        ] {
            *answer.lock() = next.clone();
            let until = async {
                // The first of three may have been asked before, and the second may be under way.
                asked.acquire_many(3).await.unwrap().forget();
                while names(&cluster) != expected {
                    asked.acquire().await.unwrap().forget();
                }
            };
            tokio::time::timeout(LIMIT, until)
                .await
                .unwrap_or_else(|_| panic!("{next:?}: {:?}", names(&cluster)));
        }
    }

    #[tokio::test]
    async fn only_names_are_looked_up() {
        assert!(Settings::parse("mongodb://h/").await.unwrap().lookup.is_none());
    }
}
