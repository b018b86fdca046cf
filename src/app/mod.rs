//! The composition root: the only place that sees everything.
mod capabilities;
mod control;
mod proxy;
mod sockets;

pub use proxy::{Builder, Proxy, StartError};

use std::num::NonZeroUsize;

use crate::cluster::Settings as ClusterSettings;
use crate::config::{ClusterSection, Config, StateHome};
use crate::converge::sessions::SESSIONS;
use crate::handover::signals::{Blocked, Told};
use crate::handover::{End, Handed, Left, Successor, TakesOver};
use crate::listener::{Entrance, Settings as ListenerSettings};
use crate::migration::engine::Settings as MigrationSettings;
use crate::model::side::Side;

/// What a process serves with.
#[derive(Debug)]
pub struct Launch {
    /// The configuration.
    pub config: Config,
    /// Sockets that it was started with.
    pub handed: Handed,
    /// How it is told to end or to restart.
    pub signals: Blocked,
    /// What takes its place when it is told to restart.
    pub successor: Successor,
}

/// Serves as the configuration says until SIGTERM or SIGINT, or SIGUSR2 if its successor takes the configuration,
/// then drains.
///
/// # Errors
/// [`StartError`]; clusters that do not answer are no error.
pub async fn run(launch: Launch) -> Result<End, StartError> {
    let mut signals = launch.signals.listen()?;
    let proxy = builder(&launch.config).await?.with_sockets(launch.handed).start().await?;
    let mut fatal = proxy.engine().fatal();
    let next = loop {
        let told = tokio::select! {
            biased;
            told = signals.next() => told,
            Ok(why) = fatal.wait_for(Option::is_some) => {
                break Next::Refused(why.clone().unwrap_or_default());
            }
        };
        if told == Told::Stop {
            break Next::End;
        }
        let checked = tokio::select! {
            biased;
            // Who wants it to stop does not want another, and need not wait for it.
            () = signals.stop() => break Next::End,
            checked = launch.successor.check() => checked,
        };
        match checked {
            Ok(takes_over) => break Next::Program(takes_over),
            Err(error) => tracing::error!(%error, "not restarted, and nothing has changed"),
        }
    };
    drop(fatal);
    match next {
        Next::End => {
            proxy.shutdown().await;
            Ok(End::Stopped)
        }
        Next::Refused(why) => {
            proxy.shutdown().await;
            Err(StartError::Refused(why))
        }
        Next::Program(TakesOver { clients: keep_clients, signals: left_signals }) => {
            tracing::info!(keep_clients, "restarting: new clients wait until the new program serves them");
            let left = proxy.hand_over(keep_clients).await;
            // The last look: a stop that comes later waits for the new program.
            let stop = signals.stop_has_come();
            Ok(if stop { End::Stopped } else { End::Replaced(Left { signals: left_signals, ..left }) })
        }
    }
}

/// What comes after serving.
enum Next {
    End,
    Refused(String),
    Program(TakesOver),
}

/// What the configuration describes.
///
/// # Errors
/// [`StartError::Uri`].
pub async fn builder(config: &Config) -> Result<Builder, StartError> {
    let mut listener = ListenerSettings::new(config.listen.address);
    listener.entrances[0].face = config.listen.face.clone();
    listener.entrances[0].tls.clone_from(&config.listen.tls);
    listener.entrances[0].login = config.listen.login;
    listener.entrances.extend(config.listeners.iter().map(|extra| Entrance {
        name: extra.name.clone(),
        address: extra.address,
        face: extra.face.clone(),
        tls: extra.tls.clone(),
        login: extra.login,
    }));
    listener.max_clients = usize::try_from(config.listen.max_connections).unwrap_or(usize::MAX);
    listener.compressors = config.listen.compressors;
    if let Some(workers) = usize::try_from(config.listen.workers).ok().and_then(NonZeroUsize::new) {
        listener.workers = workers;
    }
    let old = cluster(Side::Old, &config.old).await?;
    let mut builder = Builder::new(old, listener).with_admin(config.admin.address);
    if let Some(new) = &config.new {
        builder = builder.with_new(cluster(Side::New, new).await?);
    }
    Ok(builder.with_migrations(MigrationSettings {
        max_pause: config.migration.max_pause,
        mirror_timeout: config.migration.mirror_timeout,
        lease: config.migration.lease,
        hold: config.migration.hold,
        backfill_parallel: usize::try_from(config.migration.backfill_parallel).ok().filter(|&set| set > 0),
        mirror_sessions: SESSIONS,
        state: match config.migration.state {
            StateHome::Old => Side::Old,
            StateHome::New => Side::New,
        },
    }))
}

async fn cluster(side: Side, section: &ClusterSection) -> Result<ClusterSettings, StartError> {
    let parsed = ClusterSettings::parse(section.uri.expose()).await;
    let mut settings = parsed.map_err(|error| StartError::Uri(side, error))?;
    settings.max_pool_size = section.max_connections;
    settings.connect_timeout = section.connect_timeout;
    Ok(settings)
}
