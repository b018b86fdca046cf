//! What to run, where, and how hard.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use crate::key_fields::KeyFields;
use crate::keys::{MAX_OWN_KEYS, MAX_WORKERS};
use crate::ops::Mix;

/// Which kinds of operations a collection can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// For a collection moved by percent: every single-document write names
    /// its `_id`; multi-updates by `group`; no transactions.
    Keyed,
    /// A unique index on `email`, transactions, and single-document writes
    /// that name no `_id`.
    Unique,
}

/// Settings of a load. `LoadConfig::default()` is a small closed loop against
/// a local server.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// Address that the load is sent to.
    pub uri: String,
    /// Further addresses of the same data (other proxies); workers are spread
    /// over all of them.
    pub more_uris: Vec<String>,
    /// Database name.
    pub database: String,
    /// Collection name.
    pub collection: String,
    /// Kinds of operations.
    pub profile: Profile,
    /// Weights that replace those of the profile.
    pub mix: Option<Mix>,
    /// Writers; each does one operation at a time. In an open loop this bounds
    /// what is outstanding.
    pub workers: usize,
    /// Total operations per second; `None`: as fast as it goes (closed loop only).
    pub rate: Option<f64>,
    /// Arrivals at a fixed rate, latency counted from the intended start.
    pub open_loop: bool,
    /// Documents that all workers write to.
    pub hot_keys: usize,
    /// Unique tokens pushed to one hot document at most.
    pub tokens_per_hot_key: usize,
    /// Documents that only one worker writes to, per worker.
    pub own_keys_per_worker: usize,
    /// Documents that exist before the load starts, written by `Load::prepare`.
    pub documents: usize,
    /// Preloaded documents that one worker may change, at most.
    pub history_per_worker: usize,
    /// Approximate size of a document in bytes.
    pub document_size: usize,
    /// Everything random and every `_id` derives from it. Two loads in one
    /// collection need different seeds.
    pub seed: u64,
    /// Fields beside `_id` that documents have and operations name.
    pub key_fields: KeyFields,
    /// Drop the collection before preloading.
    pub drop_first: bool,
    /// Documents that are not of this load are no violation.
    pub allow_foreign: bool,
    /// `true`/`false` as `_id`s of two documents (they exist once per collection).
    pub bool_ids: bool,
    /// Compare what reads return with what was acknowledged to the same worker.
    pub check_reads: bool,
    /// An operation without an answer for so long is given up; its outcome is
    /// unknown.
    pub operation_timeout: Duration,
    /// How long `Load::stop` waits for operations under way; later ones count
    /// as unknown.
    pub drain_timeout: Duration,
    /// How many error messages and examples are kept.
    pub keep_examples: usize,
    /// Name of the first phase.
    pub first_phase: String,
}

impl Default for LoadConfig {
    fn default() -> Self {
        Self {
            uri: "mongodb://127.0.0.1:27017".into(),
            more_uris: Vec::new(),
            database: "loadtest".into(),
            collection: "items".into(),
            profile: Profile::Keyed,
            mix: None,
            workers: 16,
            rate: None,
            open_loop: false,
            hot_keys: 50,
            tokens_per_hot_key: 2_000,
            own_keys_per_worker: 200,
            documents: 0,
            history_per_worker: 20_000,
            document_size: 1_000,
            seed: 1,
            key_fields: KeyFields::default(),
            drop_first: false,
            allow_foreign: false,
            bool_ids: true,
            check_reads: true,
            operation_timeout: Duration::from_secs(120),
            drain_timeout: Duration::from_secs(90),
            keep_examples: 20,
            first_phase: "load".into(),
        }
    }
}

impl LoadConfig {
    /// The weights in force.
    pub fn effective_mix(&self) -> Mix {
        self.mix.clone().unwrap_or_else(|| Mix::of(self.profile))
    }

    /// `database.collection`
    pub fn namespace(&self) -> String {
        format!("{}.{}", self.database, self.collection)
    }

    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.workers > 0, "at least one worker is needed");
        ensure!(self.workers <= MAX_WORKERS, "at most {MAX_WORKERS} workers");
        ensure!(self.own_keys_per_worker >= 20, "at least 20 own keys per worker are needed");
        ensure!(
            self.own_keys_per_worker * 2 <= MAX_OWN_KEYS,
            "at most {} own keys per worker",
            MAX_OWN_KEYS / 2
        );
        ensure!((1..=30_000).contains(&self.hot_keys), "between 1 and 30000 hot keys");
        ensure!(self.documents < 1 << 25, "at most {} documents", (1 << 25) - 1);
        ensure!(!self.open_loop || self.rate.is_some(), "an open loop needs a rate");
        ensure!(self.rate.is_none_or(|rate| rate > 0.0), "the rate must be above 0");
        ensure!(self.effective_mix().total() > 0, "all weights are 0");
        Ok(())
    }
}
