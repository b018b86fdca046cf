//! Load generator for any MongoDB address, with a checker that knows every
//! acknowledged write and proves at the end that each took effect exactly once.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use reshard_loadtest::{Load, LoadConfig};
//!
//! let config = LoadConfig { uri: "mongodb://127.0.0.1:27017".into(), ..LoadConfig::default() };
//! Load::prepare(&config).await?;
//! let load = Load::start(config.clone()).await?;
//! load.set_phase("during");
//! let outcome = load.stop().await;
//! let report = outcome.verify(&config.uri).await?;
//! assert!(report.is_clean(), "{report}");
//! # Ok(())
//! # }
//! ```

mod canonical;
mod compare;
mod config;
mod docs;
mod errors;
mod hot;
mod key_fields;
mod keys;
mod latency;
mod ledger;
mod load;
mod ops;
mod outcome;
mod prepare;
mod report;
mod scan;
mod stats;
mod verify;
mod worker;

pub use compare::{Comparison, compare};
pub use config::{LoadConfig, Profile};
pub use errors::{ErrorSample, ErrorStats};
pub use key_fields::KeyFields;
pub use keys::{Key, KeySpace};
pub use load::Load;
pub use ops::{Mix, OpKind};
pub use outcome::Outcome;
pub use report::{Report, Violation, ViolationKind};
pub use stats::{Gap, Glance, Latency, PhaseStats, Stats};
