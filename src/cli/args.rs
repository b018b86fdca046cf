//! What can be written on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::ramp::Ramp;
use crate::migration::control::{Basis, MOST_PARALLEL, Phase, Progress, RangeSpec, Verify};
use crate::model::percent::Percent;
use crate::policy::route_key::RouteKey;
use crate::policy::shard_key::ShardKey;
use crate::policy::zones::Zone;

const EXIT_CODES: &str = "Exit codes:
  0  done
  1  refused (the answer says why; nothing has changed), or a check did not pass
  2  the command line or the configuration is wrong
  3  unavailable: no connection, or a cluster does not answer; try again";

const DEFAULT_ADMIN: &str = "http://127.0.0.1:8080";

/// Moves live data from an old MongoDB cluster to a new one, as a transparent proxy.
#[derive(Debug, Parser)]
#[command(name = "reshard", version, after_help = EXIT_CODES)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the proxy
    Serve {
        /// The configuration file; config/example.toml documents every key
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Check a configuration file and tell every mistake in it
    CheckConfig {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Ask a running proxy whether it can serve (exit code 3 if not), for containers and scripts
    Healthcheck {
        /// Where the admin API is
        #[arg(long, env = "RESHARD_ADMIN", value_name = "URL", default_value = DEFAULT_ADMIN)]
        admin: String,
    },
    /// Create, follow and steer migrations, through the admin API of a running proxy
    Migrate(Box<Migrate>),
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Migrate {
    /// Where the admin API is
    #[arg(long, global = true, env = "RESHARD_ADMIN", value_name = "URL", default_value = DEFAULT_ADMIN)]
    pub(super) admin: String,
    /// Print the answer of the admin API, for scripts; problems too
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Who asks, for the audit; the user's name when left out
    #[arg(long, global = true, env = "RESHARD_ACTOR", value_name = "NAME")]
    pub(super) actor: Option<String>,
    /// Change only if the migration is still at this epoch
    #[arg(long, global = true, value_name = "N")]
    pub(super) epoch: Option<u64>,
    #[command(subcommand)]
    pub(super) action: Action,
}

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Make a migration known; changes nothing else
    Create {
        /// Its name: letters, digits, - and _
        name: String,
        /// What moves, as database.collection, with * for any characters of the collection; may be repeated
        #[arg(long = "namespace", value_name = "DB.COLLECTION", required = true)]
        namespaces: Vec<String>,
        /// By what new is to shard one of them, as DB.COLLECTION=FIELD:1,FIELD:hashed; may be repeated
        #[arg(long = "shard-key", value_name = "DB.COLLECTION=KEY", value_parser = shard_key)]
        shard_keys: Vec<(String, ShardKey)>,
        /// By which field of one of them, instead of _id, reads and writes are divided between the clusters, such
        /// as a tenant's id: all its documents move together; may be repeated
        #[arg(long = "route-key", value_name = "DB.COLLECTION=FIELD", value_parser = route_key)]
        route_keys: Vec<(String, String)>,
        /// Into how many chunks one with a shard key is cut before the copy; may be repeated
        #[arg(long = "initial-chunks", value_name = "DB.COLLECTION=N", value_parser = initial_chunks)]
        initial_chunks: Vec<(String, u32)>,
        /// What of one with a shard key belongs on which shards, in JSON:
        /// DB.COLLECTION={"zone":"eu","min":{"region":"eu"},"max":{"region":"ev"},"shards":["s0"]}; may be repeated
        #[arg(long = "zone", value_name = "DB.COLLECTION=ZONE", value_parser = zone)]
        zones: Vec<(String, Zone)>,
        /// Keys that are moved and brought back by name, as NAME=FROM..TO with bounds in JSON: 'eu="eu-".."eu."',
        /// few=0..1000, late=1000..; the second is no part of it. May be repeated
        #[arg(long = "range", value_name = "NAME=FROM..TO", value_parser = range)]
        ranges: Vec<RangeSpec>,
    },
    /// Look whether it could start; changes nothing (exit code 1 if it could not)
    Preflight { name: String },
    /// Start: write to both clusters and copy
    Start { name: String },
    /// Halt copying and following; application traffic goes on
    Pause { name: String },
    /// End a pause
    Resume { name: String },
    /// List all migrations, or show how one is going
    Status {
        name: Option<String>,
        /// Go on showing until it is over (exit code 1 if it failed)
        #[arg(long, requires = "name")]
        watch: bool,
        /// With --watch: stop as soon as it got this far
        #[arg(long, requires = "watch", value_name = "STATE")]
        until: Option<Until>,
    },
    /// Move reads: the share that new serves
    Reads {
        name: String,
        /// 0 to 100, in steps of 0.1
        percent: Percent,
    },
    /// Move writes: the share of documents whose authority is new
    Writes {
        name: String,
        /// 0 to 100, in steps of 0.1
        percent: Percent,
        /// How long writes may be held in one try (50 to 10000); as configured when left out
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(50..=10_000))]
        max_pause_ms: Option<u64>,
        /// End open transactions after so many tries (1 to 7) that they kept from coming to anything; their
        /// clients are told to run them again
        #[arg(long, value_name = "TRIES", value_parser = clap::value_parser!(u32).range(1..=7))]
        end_transactions_after: Option<u32>,
    },
    /// Move reads and writes by a plan that goes up as its gates hold, and comes down by itself
    Ramp {
        #[command(subcommand)]
        action: Ramp,
    },
    /// Compare both clusters in full, in the background
    Verify {
        name: String,
        /// Wait for the result (exit code 1 if differences are left)
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        how: How,
    },
    /// What comparisons have proved so far, to be kept
    Report {
        name: String,
        /// As a page for a browser
        #[arg(long, conflicts_with = "json")]
        html: bool,
    },
    /// Set how fast the copy may go; a limit that is not given is removed
    #[command(group = clap::ArgGroup::new("limits").required(true).multiple(true))]
    Throttle {
        name: String,
        /// Documents each second
        #[arg(long, value_name = "N", group = "limits", value_parser = rate)]
        documents_per_second: Option<f64>,
        /// Megabytes (10^6 bytes) each second
        #[arg(long, value_name = "N", group = "limits", value_parser = rate)]
        megabytes_per_second: Option<f64>,
        /// Remove all limits: as fast as it can
        #[arg(long, group = "limits", conflicts_with_all = ["documents_per_second", "megabytes_per_second"])]
        none: bool,
    },
    #[command(flatten)]
    Hold(super::pins::Action),
    /// End it with new serving
    Complete {
        name: String,
        /// Before the hold period is over, or without a full verification that went through
        #[arg(long, requires = "reason")]
        force: bool,
        /// Why, for the audit
        #[arg(long)]
        reason: Option<String>,
    },
    /// End it with old serving
    Abort { name: String },
    /// Drop the old copies of a completed migration; cannot be undone
    DropOld { name: String },
    /// Keys that cannot be made equal now
    Conflicts { name: String },
    /// Differences that verifications found
    Mismatches { name: String },
    /// Set which share of the reads also runs on the other cluster, to be compared; 0 switches it off
    Shadow {
        name: String,
        /// 0 to 100, in steps of 0.1
        percent: f64,
        /// Examples of differences show values of documents
        #[arg(long)]
        show_values: bool,
        /// Forget what was found so far
        #[arg(long)]
        reset: bool,
    },
    /// Repeat what is read on old on new as well, so that new meets the load first; without a factor, show how that goes
    Rehearse {
        name: String,
        /// How often each read of old also runs on new: 0.1 to 5, in steps of 0.1; 0 ends it
        factor: Option<f64>,
        /// Ends by itself after so many minutes; 10 by default
        #[arg(long, value_name = "N", requires = "factor", value_parser = clap::value_parser!(u32).range(1..=1440))]
        minutes: Option<u32>,
    },
    /// What shadow reads have found, by query shape
    Diffs {
        name: String,
        /// Leave out so many shapes
        #[arg(long, value_name = "N")]
        after: Option<u64>,
        /// At most so many shapes
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: Option<u16>,
        /// As a table of comma-separated values
        #[arg(long)]
        csv: bool,
        /// As a page of HTML that needs nothing else
        #[arg(long, conflicts_with = "csv")]
        html: bool,
    },
    /// What is asked, by shape, with the latency of both clusters side by side
    Shapes {
        name: String,
        /// Leave out so many
        #[arg(long, value_name = "N", default_value_t = 0)]
        after: u64,
        /// At most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: Option<u16>,
    },
    /// Writes that went past the proxy, newest first; with what was undone
    Bypass {
        name: String,
        /// Only those with a lower number
        #[arg(long, value_name = "NUMBER")]
        before: Option<i64>,
        /// At most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: Option<u16>,
    },
    /// Note that writes which went past the proxy do not matter: only later ones stand in the way of moves
    AcknowledgeBypass {
        name: String,
        /// Why, for the audit
        #[arg(long)]
        reason: String,
        /// Refuse if there are later ones than this number
        #[arg(long, value_name = "NUMBER")]
        up_to: Option<i64>,
    },
    /// Who asked for what, and how it ended
    Events {
        name: String,
        /// Only what is older, in Unix milliseconds
        #[arg(long, value_name = "MILLISECONDS")]
        before: Option<i64>,
        /// At most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: Option<u16>,
    },
}

/// How both sides are compared.
#[derive(Debug, Args)]
pub(super) struct How {
    /// Compare hashes that the servers make, so that documents stay off the network; no proof (see the report)
    #[arg(long)]
    digest: bool,
    /// Compare only a part of each collection, in percent; another one each time
    #[arg(long, value_name = "PERCENT")]
    sample: Option<f64>,
    /// Only tell what differs
    #[arg(long)]
    no_repair: bool,
    /// Documents read of each side each second
    #[arg(long, value_name = "N", value_parser = rate)]
    documents_per_second: Option<f64>,
    /// Megabytes read of each side each second
    #[arg(long, value_name = "N", value_parser = rate)]
    megabytes_per_second: Option<f64>,
    /// Ranges read at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_PARALLEL)))]
    parallel: Option<u8>,
}

impl From<How> for Verify {
    fn from(how: How) -> Self {
        let usual = Self::default();
        Self {
            compare: if how.digest { Basis::Digest } else { Basis::Bytes },
            sample_percent: how.sample.unwrap_or(usual.sample_percent),
            repair: !how.no_repair,
            documents_per_second: how.documents_per_second,
            megabytes_per_second: how.megabytes_per_second,
            parallel: how.parallel.unwrap_or(usual.parallel),
        }
    }
}

/// How far `status --watch` waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Until {
    Copying,
    CatchingUp,
    Synced,
    /// Writes can move: every gate is passed, the full verification too
    Ready,
    Completed,
}

impl Until {
    /// Whether it is this far or further.
    pub(super) fn is_reached(self, progress: &Progress) -> bool {
        let wanted = match self {
            Self::Copying => Phase::Copying,
            Self::CatchingUp => Phase::CatchingUp,
            Self::Synced => Phase::Synced,
            Self::Ready if progress.can_cut_over => return true,
            Self::Ready | Self::Completed => Phase::Completed,
        };
        progress.phase >= wanted && progress.phase <= Phase::Completed
    }
}

/// Reads `shop.orders=customer_id:1,order_id:hashed`.
fn shard_key(text: &str) -> Result<(String, ShardKey), String> {
    let (namespace, fields) = text.split_once('=').ok_or("write DB.COLLECTION=FIELD:1")?;
    let mut pattern = bson::Document::new();
    for field in fields.split(',') {
        let (path, kind) =
            field.rsplit_once(':').ok_or_else(|| format!("{field:?}: write FIELD:1 or FIELD:hashed"))?;
        let kind = if kind == "1" { bson::Bson::Int32(1) } else { bson::Bson::from(kind) };
        pattern.insert(path, kind);
    }
    Ok((namespace.to_owned(), ShardKey::parse(&pattern)?))
}

/// Reads `shop.orders=customer_id`.
fn route_key(text: &str) -> Result<(String, String), String> {
    let (namespace, field) = text.split_once('=').ok_or("write DB.COLLECTION=FIELD")?;
    RouteKey::parse(field)?;
    Ok((namespace.to_owned(), field.to_owned()))
}

/// Reads `few=0..1000`, where either bound may be left out.
fn range(text: &str) -> Result<RangeSpec, String> {
    let (name, bounds) = text.split_once('=').ok_or("write NAME=FROM..TO")?;
    let bound = |text: &str| match text.trim() {
        "" => Some(None),
        text => serde_json::from_str(text).ok().map(Some),
    };
    // Dots may be part of a bound.
    let read = |(at, _)| Some((bound(&bounds[..at])?, bound(&bounds[at + 2..])?));
    let (from, to) = bounds.match_indices("..").find_map(read).ok_or_else(|| {
        format!(
            "{bounds:?} is no range: write FROM..TO, with bounds in JSON (a text in quotes: '\"eu\"..\"ev\"')"
        )
    })?;
    Ok(RangeSpec { name: name.to_owned(), from, to })
}

/// Reads how much may be copied each second.
fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| "a limit is a number above 0; use pause to halt the copy".to_owned())
}

/// Reads `shop.orders=12`.
fn initial_chunks(text: &str) -> Result<(String, u32), String> {
    let (namespace, chunks) = text.split_once('=').ok_or("write DB.COLLECTION=N")?;
    let chunks = chunks.parse().map_err(|_| format!("{chunks:?} is no number of chunks"))?;
    Ok((namespace.to_owned(), chunks))
}

/// Reads `shop.orders={"zone": ...}`.
fn zone(text: &str) -> Result<(String, Zone), String> {
    let (namespace, zone) = text.split_once('=').ok_or("write DB.COLLECTION={\"zone\": ...}")?;
    Ok((namespace.to_owned(), serde_json::from_str(zone).map_err(|error| error.to_string())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_range_is_a_name_and_two_bounds() {
        let read = |text| range(text).map(|spec| (spec.name, spec.from, spec.to));
        assert_eq!(read("few=0..1000"), Ok(("few".into(), Some(json!(0)), Some(json!(1000)))));
        assert_eq!(read("late=1000.."), Ok(("late".into(), Some(json!(1000)), None)));
        assert_eq!(read("early=..-5"), Ok(("early".into(), None, Some(json!(-5)))));
        assert_eq!(
            read(r#"eu="a..b".."c=..d""#),
            Ok(("eu".into(), Some(json!("a..b")), Some(json!("c=..d"))))
        );
        for wrong in ["few", "few=0", "few=a..b", "few=0...5"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
