//! What an operator has switched off: for all that a migration moves, or for some of its collections.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use crate::model::namespace::Namespace;

/// For what something is off; also how it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Off {
    /// For everything, whatever is said of single collections.
    #[serde(default)]
    pub all: bool,
    /// For these, as `database.collection`.
    #[serde(default)]
    pub namespaces: BTreeSet<String>,
}

impl Off {
    /// Whether it is off for a collection.
    #[must_use]
    pub fn is_for(&self, namespace: &str) -> bool {
        self.all || self.namespaces.contains(namespace)
    }

    /// Whether it is off for anything.
    #[must_use]
    pub fn is_for_any(&self) -> bool {
        self.all || !self.namespaces.is_empty()
    }

    /// Switches for one collection, or by itself for everything.
    pub fn switch(&mut self, namespace: Option<&Namespace>, on: bool) {
        match namespace {
            None => self.all = !on,
            Some(namespace) if on => _ = self.namespaces.remove(namespace.as_str()),
            Some(namespace) => _ = self.namespaces.insert(namespace.as_str().to_owned()),
        }
    }
}

/// The same for those who ask all the time: one look where nothing is off.
#[derive(Debug, Default)]
pub struct SwitchedOff {
    any: AtomicBool,
    off: ArcSwap<Off>,
}

impl SwitchedOff {
    /// From now on.
    pub fn set(&self, off: Off) {
        if **self.off.load() == off {
            return;
        }
        let any = off.is_for_any();
        self.off.store(off.into());
        self.any.store(any, Ordering::Release);
    }

    /// Whether it is off for anything.
    #[must_use]
    pub fn is_for_any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Whether it is off for a collection.
    #[must_use]
    pub fn is_for(&self, namespace: &Namespace) -> bool {
        self.is_for_any() && self.off.load().is_for(namespace.as_str())
    }

    /// [`Self::is_for`], by the parts of a name.
    #[must_use]
    pub fn is_for_name(&self, database: &str, collection: &str) -> bool {
        self.is_for_any() && self.is_for(&Namespace::new(database, collection))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_collection_is_switched_by_itself_and_all_together() {
        let (orders, carts) = (Namespace::new("shop", "orders"), Namespace::new("shop", "carts"));
        let (mut off, switched) = (Off::default(), SwitchedOff::default());
        let mut told = |namespace: Option<&Namespace>, on| {
            off.switch(namespace, on);
            switched.set(off.clone());
            (switched.is_for(&orders), switched.is_for_name("shop", "carts"), switched.is_for_any())
        };
        assert_eq!(told(Some(&orders), false), (true, false, true));
        assert_eq!(told(None, false), (true, true, true));
        assert_eq!(told(Some(&carts), true), (true, true, true), "all is off");
        assert_eq!(told(None, true), (true, false, true), "what is said of one stays");
        assert_eq!(told(Some(&orders), true), (false, false, false));
    }
}
