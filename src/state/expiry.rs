//! The seconds of TTL indexes while their expiry is suspended, as the data plane asks for them.

use async_trait::async_trait;

use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::policy::catalog::Index;
use crate::policy::expiry::Which;

/// Keeps the seconds of a migration's TTL indexes; they are put back at its end.
#[async_trait]
pub trait Expiries: Send + Sync {
    /// The index that is meant, as `side` has it now.
    async fn find(&self, namespace: &Namespace, side: Side, which: &Which) -> Result<Option<Index>, String>;

    /// The seconds that are kept for an index.
    fn kept(&self, namespace: &Namespace, index: &str) -> Option<i64>;

    /// Keeps other seconds for an index, or none, over restarts too.
    async fn keep(&self, namespace: &Namespace, index: &str, seconds: Option<i64>) -> Result<(), String>;

    /// Suspends the expiry of indexes on both clusters.
    async fn suspend(&self, namespace: &Namespace, indexes: &[String]) -> Result<(), String>;
}
