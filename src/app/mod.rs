//! The composition root: the only place that sees everything.
mod control;
mod proxy;

pub use proxy::{Builder, Proxy, StartError};

use std::num::NonZeroUsize;

use tokio::signal::unix::{SignalKind, signal};

use crate::cluster::Settings as ClusterSettings;
use crate::config::{ClusterSection, Config, StateHome};
use crate::listener::{Entrance, Settings as ListenerSettings};
use crate::migration::engine::Settings as MigrationSettings;
use crate::model::side::Side;

/// Serves as the configuration says until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// [`StartError`]; clusters that do not answer are no error.
pub async fn run(config: Config) -> Result<(), StartError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let proxy = builder(&config).await?.start().await?;
    let mut fatal = proxy.engine().fatal();
    let refused = tokio::select! {
        biased;
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        Ok(why) = fatal.wait_for(Option::is_some) => why.clone(),
    };
    drop(fatal);
    proxy.shutdown().await;
    refused.map_or(Ok(()), |why| Err(StartError::Refused(why)))
}

/// What the configuration describes.
///
/// # Errors
/// [`StartError::Uri`].
pub async fn builder(config: &Config) -> Result<Builder, StartError> {
    let mut listener = ListenerSettings::new(config.listen.address);
    listener.entrances[0].face = config.listen.face.clone();
    listener.entrances.extend(config.listeners.iter().map(|extra| Entrance {
        name: extra.name.clone(),
        address: extra.address,
        face: extra.face.clone(),
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
