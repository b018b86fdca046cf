//! The seconds of a migration's TTL indexes, kept with it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;

use super::catalog::describe;
use super::context::Context;
use super::running::Running;
use super::stored::Stored;
use super::ttl;
use crate::model::namespace::Namespace;
use crate::model::side::Side;
use crate::policy::catalog::Index;
use crate::policy::expiry::{Which, is_meant};
use crate::state::expiry::Expiries;

const LIMIT: Duration = Duration::from_secs(10);

/// What `stored.created` says, for the data plane.
pub(super) struct Kept {
    pub(super) running: Weak<Running>,
    pub(super) context: Arc<Context>,
}

fn of<'a>(stored: &'a mut Stored, namespace: &Namespace) -> Option<&'a mut Vec<(String, i64)>> {
    let created = stored.created.iter_mut().find(|created| created.namespace == namespace.as_str());
    created.map(|created| &mut created.ttl)
}

#[async_trait]
impl Expiries for Kept {
    async fn find(&self, namespace: &Namespace, side: Side, which: &Which) -> Result<Option<Index>, String> {
        let found = describe(&**self.context.clusters.get(side), namespace, LIMIT).await;
        let found = found.map_err(|error| error.to_string())?;
        Ok(found.and_then(|found| found.indexes.into_iter().find(|index| is_meant(which, index))))
    }

    fn kept(&self, namespace: &Namespace, index: &str) -> Option<i64> {
        let running = self.running.upgrade()?;
        let mut stored = running.stored.lock();
        let kept = of(&mut stored, namespace)?;
        kept.iter().find(|(name, _)| name == index).map(|(_, seconds)| *seconds)
    }

    async fn keep(&self, namespace: &Namespace, index: &str, seconds: Option<i64>) -> Result<(), String> {
        let running = self.running.upgrade().ok_or("the migration is over")?;
        let keep = |stored: &mut Stored| {
            if let Some(kept) = of(stored, namespace) {
                kept.retain(|(name, _)| name != index);
                kept.extend(seconds.map(|seconds| (index.to_owned(), seconds)));
            }
        };
        running.change_stored(&self.context.records, keep).await.map_err(|error| error.to_string())
    }

    async fn suspend(&self, namespace: &Namespace, indexes: &[String]) -> Result<(), String> {
        let indexes: Vec<_> = indexes.iter().map(|name| (name.clone(), 0)).collect();
        for side in Side::BOTH {
            ttl::suspend(&**self.context.clusters.get(side), namespace, &indexes).await?;
        }
        Ok(())
    }
}
