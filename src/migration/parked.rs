//! Parked keys: put there durably, and looked at again from time to time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::context::Context;
use super::running::Running;
use crate::clock::Clock;
use crate::converge::converger::{BATCH, Order, Stuck};
use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::PerSide;
use crate::state::parking::{MOST, Parked, Parking};
use crate::state::records::Records;

const PARKED_EVERY: Duration = Duration::from_secs(5);

/// Parks what is stuck, durably.
///
/// # Errors
/// In words, why it is not parked.
pub async fn park(
    parking: &Parking,
    records: &Records,
    namespace: &Namespace,
    stuck: Vec<Stuck>,
    clock: &dyn Clock,
) -> Result<(), String> {
    for Stuck { key, why } in stuck {
        if parking.is_full() && !parking.contains(namespace, &key) {
            return Err(format!("{key:?} of {namespace} is not parked: more than {MOST} keys are"));
        }
        let since = clock.wall_millis();
        let parked = Parked { namespace: namespace.clone(), key, why, since, tries: 0 };
        parking.park(records, parked).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

impl Running {
    /// Looks at parked keys again from time to time.
    pub(super) async fn retry_parked(self: Arc<Self>, context: Arc<Context>) {
        loop {
            context.clock.sleep(PARKED_EVERY).await;
            let mut all: BTreeMap<Namespace, Vec<Key>> = BTreeMap::new();
            for parked in context.parking.list() {
                all.entry(parked.namespace).or_default().push(parked.key);
            }
            for (namespace, keys) in all {
                for keys in keys.chunks(BATCH) {
                    retry(&context, &namespace, keys).await;
                }
            }
        }
    }
}

async fn retry(context: &Context, namespace: &Namespace, keys: &[Key]) {
    let order = Order::durable(PerSide::default());
    let looked = context.parking.before_look(namespace, keys);
    let Ok(report) = context.converger.converge(namespace, keys.to_vec(), &order).await else { return };
    let stuck: BTreeSet<&Key> = report.stuck.iter().map(|stuck| &stuck.key).collect();
    let equal = keys.iter().filter(|key| !stuck.contains(key));
    if let Err(error) = context.parking.unpark(&context.records, namespace, &looked, equal).await {
        tracing::warn!(%error, "keys stay parked although they are equal");
    }
    // Those that had to make room for one of these, and cannot come back, are not parked yet.
    let (known, new): (Vec<_>, Vec<_>) =
        report.stuck.into_iter().partition(|stuck| context.parking.contains(namespace, &stuck.key));
    for Stuck { key, why } in known {
        context.parking.note_try(namespace, &key, why);
    }
    if let Err(why) = park(&context.parking, &context.records, namespace, new, &*context.clock).await {
        tracing::warn!(why, "left to the mirror's stream");
    }
}
