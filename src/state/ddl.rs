//! Changes of collections and indexes that are under way in this process, and those that a start keeps waiting.
//!
//! While a migration is being prepared its collections are made on new as they are on old: what changed them
//! meanwhile would reach old alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::clock::{Clock, timeout};
use crate::policy::ddl::Touched;

/// The register; one for each process.
pub struct Ddl {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    /// What is stored has been read: whether a migration is being prepared is known.
    is_known: bool,
    /// Migrations that are being prepared, with what they move.
    closed: BTreeMap<String, Vec<String>>,
    under_way: BTreeMap<u64, (Touched, Arc<str>)>,
    next: u64,
}

impl Default for Ddl {
    fn default() -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

/// A change that is under way; dropping it ends it.
pub struct UnderWay {
    ddl: Arc<Ddl>,
    id: u64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.ddl.state.lock().under_way.remove(&self.id);
        self.ddl.changed.send_replace(());
    }
}

impl Ddl {
    /// Begins a change; waits while it is kept waiting, no longer than `hold`.
    ///
    /// # Errors
    /// In words, what it waited for.
    pub async fn enter(
        self: &Arc<Self>,
        touched: &Touched,
        what: &Arc<str>,
        clock: &dyn Clock,
        hold: Duration,
    ) -> Result<UnderWay, String> {
        let deadline = clock.now() + hold;
        loop {
            let mut changes = self.changed.subscribe();
            let why = match self.try_enter(touched, what) {
                Ok(under_way) => return Ok(under_way),
                Err(why) => why,
            };
            let left = deadline.saturating_sub(clock.now());
            // The sender lives in self, so that waiting cannot fail.
            if timeout(clock, left, changes.changed()).await.is_err() {
                return Err(why);
            }
        }
    }

    fn try_enter(self: &Arc<Self>, touched: &Touched, what: &Arc<str>) -> Result<UnderWay, String> {
        let mut state = self.state.lock();
        if !state.is_known {
            return Err("what is stored of migrations has not been read yet".into());
        }
        let mut closed = state.closed.iter();
        if let Some((migration, _)) = closed.find(|(_, specs)| specs.iter().any(|spec| touched.meets(spec))) {
            return Err(format!(
                "migration {migration} is being started, and has to be started or aborted first"
            ));
        }
        let id = state.next;
        state.next += 1;
        state.under_way.insert(id, (touched.clone(), Arc::clone(what)));
        Ok(UnderWay { ddl: Arc::clone(self), id })
    }

    /// Whether what is stored has been read.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.state.lock().is_known
    }

    /// What is stored has been read, and everything that is being prepared is closed.
    pub fn known(&self) {
        self.state.lock().is_known = true;
        self.changed.send_replace(());
    }

    /// Keeps changes of what `migration` moves waiting.
    pub fn close(&self, migration: &str, specs: Vec<String>) {
        self.state.lock().closed.insert(migration.to_owned(), specs);
    }

    /// Lets them go on.
    pub fn open(&self, migration: &str) {
        if self.state.lock().closed.remove(migration).is_some() {
            self.changed.send_replace(());
        }
    }

    /// A change under way of what `migration` has closed.
    #[must_use]
    pub fn in_the_way(&self, migration: &str) -> Option<Arc<str>> {
        let state = self.state.lock();
        let specs = state.closed.get(migration)?;
        let mut concerned =
            state.under_way.values().filter(|(touched, _)| specs.iter().any(|spec| touched.meets(spec)));
        concerned.next().map(|(_, what)| Arc::clone(what))
    }

    /// Waits until there is none.
    pub async fn drained(&self, migration: &str) {
        let mut changes = self.changed.subscribe();
        while self.in_the_way(migration).is_some() {
            // The sender lives in self, so that waiting cannot fail.
            _ = changes.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::model::namespace::Namespace;
    use futures::FutureExt;

    #[tokio::test]
    async fn a_start_waits_for_what_is_under_way_and_keeps_the_rest_waiting() {
        let ddl = Arc::new(Ddl::default());
        let touched = Touched::Collections(vec![Namespace::new("shop", "c")]);
        let what: Arc<str> = "createIndexes".into();
        let enter = |hold| ddl.enter(&touched, &what, &SystemClock, hold);
        let unread = enter(Duration::ZERO).await.err().unwrap();
        assert!(unread.contains("has not been read"), "{unread}");
        ddl.known();
        let before = enter(Duration::ZERO).await.ok();
        ddl.close("other", vec!["shop.d".into()]);
        assert!(ddl.in_the_way("other").is_none());
        ddl.close("m", vec!["shop.*".into()]);
        let mut drained = Box::pin(ddl.drained("m"));
        assert!(drained.as_mut().now_or_never().is_none());
        assert_eq!(ddl.in_the_way("m").as_deref(), Some("createIndexes"));
        let refused = enter(Duration::ZERO).await.err().unwrap();
        assert!(refused.contains("migration m is being started"), "{refused}");
        drop(before);
        assert!(drained.now_or_never().is_some());
        let mut waiting = Box::pin(enter(Duration::from_secs(60)));
        assert!(waiting.as_mut().now_or_never().is_none());
        ddl.open("m");
        assert!(waiting.await.is_ok());
    }
}
