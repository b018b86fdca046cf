//! Choosing documents whose state is known for certain.

use rand::Rng;

use super::Worker;
use crate::docs::DocState;
use crate::keys::{GROUP_SIZE, Key, MAX_OWN_KEYS};
use crate::prepare::history_count;

const TRIES: usize = 40;

impl Worker {
    /// Preloaded documents are chosen for a third of the writes.
    fn candidate(&mut self) -> (Key, Option<usize>) {
        if self.rng.random_ratio(1, 3)
            && let Some(key) = self.history_candidate()
        {
            return (key, None);
        }
        let slot = self.rng.random_range(0..self.slots.len());
        (self.own_key(self.slots[slot]), Some(slot))
    }

    fn own_key(&self, n: u32) -> Key {
        Key::Own { worker: u16::try_from(self.id).unwrap_or(u16::MAX), n }
    }

    /// Groups of preloaded documents are dealt out to the workers in turn.
    fn history_candidate(&mut self) -> Option<Key> {
        let config = &self.shared.config;
        let documents = history_count(config);
        let groups = usize::try_from(documents / GROUP_SIZE).ok()?;
        let per_group = usize::try_from(GROUP_SIZE).ok()?;
        let mine = groups
            .saturating_sub(self.id)
            .div_ceil(config.workers)
            .min(config.history_per_worker / per_group);
        if mine == 0 {
            return None;
        }
        let group = self.id + self.rng.random_range(0..mine) * config.workers;
        let n = u32::try_from(group).ok()? * GROUP_SIZE + self.rng.random_range(0..GROUP_SIZE);
        (n < documents).then_some(Key::History(n))
    }

    /// Another own document in place of one whose state is not certain.
    fn replace_slot(&mut self, slot: usize) {
        if usize::try_from(self.next_slot).is_ok_and(|next| next < MAX_OWN_KEYS) {
            self.slots[slot] = self.next_slot;
            self.next_slot += 1;
        }
    }

    fn find_settled(
        &mut self,
        taken: &[Key],
        suits: impl Fn(&Option<DocState>) -> bool,
    ) -> Option<(Key, Option<DocState>)> {
        for _ in 0..TRIES {
            let (key, slot) = self.candidate();
            if taken.contains(&key) {
                continue;
            }
            let settled = self.shared.ledgers[self.id].lock().settled(key);
            match (settled, slot) {
                (Some(state), _) if suits(&state) => return Some((key, state)),
                (None, Some(slot)) => self.replace_slot(slot),
                _ => {}
            }
        }
        None
    }

    /// A document that exists.
    pub(super) fn pick_present(&mut self, taken: &[Key]) -> Option<(Key, DocState)> {
        let (key, state) = self.find_settled(taken, Option::is_some)?;
        Some((key, state?))
    }

    /// A document that does not exist.
    pub(super) fn pick_absent(&mut self, taken: &[Key]) -> Option<Key> {
        self.find_settled(taken, Option::is_none).map(|(key, _)| key)
    }

    /// A document that exists or not.
    pub(super) fn pick_any(&mut self) -> Option<(Key, Option<DocState>)> {
        self.find_settled(&[], |_| true)
    }

    /// Several documents that exist.
    pub(super) fn pick_several(&mut self, count: usize) -> Vec<(Key, DocState)> {
        let mut picked: Vec<(Key, DocState)> = Vec::new();
        for _ in 0..count {
            let taken: Vec<_> = picked.iter().map(|(key, _)| *key).collect();
            picked.extend(self.pick_present(&taken));
        }
        picked
    }

    /// A group whose documents are all known for certain, one at least there.
    pub(super) fn pick_group(&mut self) -> Option<Vec<(Key, Option<DocState>)>> {
        let documents = history_count(&self.shared.config);
        for _ in 0..TRIES {
            let (key, _) = self.candidate();
            let group = self.shared.ledgers[self.id].lock().settled_group(key, documents);
            if let Some(group) = group.filter(|group| group.iter().any(|(_, state)| state.is_some())) {
                return Some(group);
            }
        }
        None
    }
}
