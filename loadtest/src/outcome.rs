//! What a load leaves behind: its numbers, and all that is known of its writes.

use std::sync::Arc;

use anyhow::Result;

use crate::load::Shared;
use crate::report::Report;
use crate::stats::Stats;
use crate::verify;

/// A finished load.
#[derive(Debug)]
pub struct Outcome {
    /// The numbers.
    pub stats: Stats,
    pub(crate) shared: Arc<Shared>,
}

impl Outcome {
    /// Reads the collection at an address and checks that every acknowledged
    /// write took effect exactly once, and every other at most once. Can be
    /// called for several addresses.
    pub async fn verify(&self, uri: &str) -> Result<Report> {
        verify::verify(&self.shared, uri).await
    }
}
