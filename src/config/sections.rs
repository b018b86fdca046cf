//! The sections of the file, their keys, defaults and limits.

use std::net::SocketAddr;
use std::time::Duration;

use super::Config;
use super::listen::{self, ExtraListener, Listen};
use super::reader::Reader;
use super::section::Section;
use super::uri::{self, Context, MongoUri};
use crate::migration::control::PAUSE_MS;
use crate::telemetry::logging::{Format, Level, Log};

/// `[old]` and `[new]`: a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSection {
    /// How to reach it.
    pub uri: MongoUri,
    /// Connections to each of its servers.
    pub max_connections: u32,
    /// Limit for making one connection, handshake included.
    pub connect_timeout: Duration,
}

/// `[migration]`: limits and timing of migrations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// How long writes may be held while authority moves.
    pub max_pause: Duration,
    /// How long a write waits for the mirror.
    pub mirror_timeout: Duration,
    /// How long a process may go on without hearing from a slot's owner.
    pub lease: Duration,
    /// How long old is kept in step after the last move before `complete` needs `force`.
    pub hold: Duration,
    /// Ranges copied at the same time; 0 leaves it to the kind of new.
    pub backfill_parallel: u32,
    /// Where checkpoints, differences and the audit are kept.
    pub state: StateHome,
}

/// A cluster that keeps reshard's own records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateHome {
    /// The old cluster.
    Old,
    /// The new cluster.
    New,
}

/// `[admin]`: where operators connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// The address to listen on; always loopback.
    pub address: SocketAddr,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What could be read. A section is `None` when something of it that has no default is missing or wrong.
pub(super) struct Draft {
    pub(super) listen: Option<Listen>,
    /// Those that can be read.
    pub(super) listeners: Vec<ExtraListener>,
    pub(super) old: Option<ClusterSection>,
    /// `[new]` is written, right or wrong.
    pub(super) new_is_there: bool,
    pub(super) new: Option<ClusterSection>,
    pub(super) migration: Migration,
    pub(super) admin: Option<Admin>,
    pub(super) log: Log,
}

impl Draft {
    /// All of it, when nothing is missing.
    pub(super) fn whole(self) -> Option<Config> {
        let new = if self.new_is_there { Some(self.new?) } else { None };
        Some(Config {
            listen: self.listen?,
            listeners: self.listeners,
            old: self.old?,
            new,
            migration: self.migration,
            admin: self.admin?,
            log: self.log,
        })
    }
}

/// Reads all sections.
pub(super) fn read(reader: &mut Reader<'_>, context: &Context<'_>) -> Draft {
    let listen = listen::listen(reader.section("listen"), context);
    let listeners = listen::extra(reader, context);
    let old = cluster(reader.section("old"), context, "27018");
    let new_section = reader.section("new");
    let new_is_there = new_section.present();
    let new = new_is_there.then(|| cluster(new_section, context, "27019")).flatten();
    let migration = migration(reader.section("migration"));
    let admin = admin(reader.section("admin"));
    let log = log(reader.section("log"));
    reader.finish();
    Draft { listen, listeners, old, new_is_there, new, migration, admin, log }
}

fn cluster(mut section: Section<'_, '_>, context: &Context<'_>, port: &str) -> Option<ClusterSection> {
    let uri = uri::read(&mut section, context, &format!("\"mongodb://127.0.0.1:{port}/\""));
    let max_connections = section.integer("max_connections", 100, 1..=10_000);
    let connect_timeout = millis(&mut section, "connect_timeout_ms", 5_000, 100, 60_000);
    section.finish();
    Some(ClusterSection { uri: uri?, max_connections, connect_timeout })
}

fn migration(mut section: Section<'_, '_>) -> Migration {
    let migration = Migration {
        max_pause: millis(&mut section, "max_pause_ms", 500, *PAUSE_MS.start(), *PAUSE_MS.end()),
        mirror_timeout: millis(&mut section, "mirror_timeout_ms", 1_000, 10, 60_000),
        lease: millis(&mut section, "lease_ms", 6_000, 1_000, 60_000),
        hold: DAY * section.integer("hold_days", 7, 0..=365),
        backfill_parallel: section.integer("backfill_parallel", 0, 0..=64),
        state: section.choice("state", StateHome::Old, &[("old", StateHome::Old), ("new", StateHome::New)]),
    };
    section.finish();
    migration
}

fn admin(mut section: Section<'_, '_>) -> Option<Admin> {
    let address = address(&mut section, "127.0.0.1:8080");
    section.finish();
    Some(Admin { address: address? })
}

fn log(mut section: Section<'_, '_>) -> Log {
    let level = match section.text("level") {
        None => Level::default(),
        Some(written) => written.value.parse().unwrap_or_else(|error| {
            section.problem(written.line, "level", format!("{error}"));
            Level::default()
        }),
    };
    let format = section.choice("format", Format::Text, &[("text", Format::Text), ("json", Format::Json)]);
    section.finish();
    Log { level, format }
}

fn millis(section: &mut Section<'_, '_>, key: &'static str, default: u32, least: u32, most: u32) -> Duration {
    Duration::from_millis(section.integer(key, default, least..=most).into())
}

/// An address that must be there.
pub(super) fn address(section: &mut Section<'_, '_>, example: &str) -> Option<SocketAddr> {
    let written = section.required("address", &format!("\"{example}\""))?;
    match written.value.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            let message = format!(
                "\"{}\" is not an IP address with a port; write it like \"{example}\" or \"[::1]:{}\"",
                written.value,
                example.rsplit(':').next().unwrap_or_default(),
            );
            section.problem(written.line, "address", message);
            None
        }
    }
}
