//! A bounded map: CLOCK eviction (a second chance for what was used since the hand passed).
//!
//! Insertion never evicts; [`Clock::trim`] does, when an operation is over. So what an operation
//! has just loaded is still there when it tries again, however small the bound.

use crate::key::mix;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// Hasher for inode and block numbers, which the volume itself chose: nobody else can make them
/// collide.
#[derive(Clone, Copy, Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = mix(self.0 ^ n);
    }
}

pub(crate) type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;
pub(crate) type NumberSet<K> = std::collections::HashSet<K, BuildHasherDefault<NumberHasher>>;

struct Slot<K, V> {
    key: K,
    value: V,
    weight: usize,
    used: bool,
}

/// See the module.
pub(crate) struct Clock<K, V> {
    index: NumberMap<K, usize>,
    slots: Vec<Slot<K, V>>,
    hand: usize,
    weight: usize,
    bound: usize,
}

impl<K: Copy + Eq + Hash, V> Clock<K, V> {
    pub(crate) fn new(bound: usize) -> Self {
        Self { index: NumberMap::default(), slots: Vec::new(), hand: 0, weight: 0, bound }
    }

    /// Sum of the weights.
    pub(crate) fn weight(&self) -> usize {
        self.weight
    }

    pub(crate) fn get(&mut self, key: &K) -> Option<&V> {
        let slot = &mut self.slots[*self.index.get(key)?];
        slot.used = true;
        Some(&slot.value)
    }

    /// Without counting as use.
    pub(crate) fn peek(&self, key: &K) -> Option<&V> {
        Some(&self.slots[*self.index.get(key)?].value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V, weight: usize) {
        self.weight += weight;
        if let Some(&i) = self.index.get(&key) {
            let slot = &mut self.slots[i];
            self.weight -= slot.weight;
            *slot = Slot { key, value, weight, used: true };
            return;
        }
        self.index.insert(key, self.slots.len());
        self.slots.push(Slot { key, value, weight, used: true });
    }

    pub(crate) fn remove(&mut self, key: &K) {
        if let Some(&i) = self.index.get(key) {
            self.remove_at(i);
        }
    }

    fn remove_at(&mut self, i: usize) {
        let slot = self.slots.swap_remove(i);
        self.index.remove(&slot.key);
        self.weight -= slot.weight;
        if let Some(moved) = self.slots.get(i) {
            self.index.insert(moved.key, i);
        }
    }

    /// Evicts down to the bound.
    pub(crate) fn trim(&mut self) {
        while self.weight > self.bound && !self.slots.is_empty() {
            if self.hand >= self.slots.len() {
                self.hand = 0;
            }
            if std::mem::take(&mut self.slots[self.hand].used) {
                self.hand += 1;
            } else {
                // The last slot takes this place and is looked at next.
                self.remove_at(self.hand);
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.index.clear();
        self.slots.clear();
        self.weight = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_the_used_survive() {
        let mut c = Clock::new(10);
        for k in 0u64..10 {
            c.insert(k, k * 2, 1);
        }
        c.trim();
        assert_eq!(c.weight(), 10);
        c.insert(10, 20, 1);
        c.trim(); // everything was used: the hand goes round once and takes one
        assert_eq!(c.weight(), 10);
        for k in 0..200u64 {
            let _ = c.get(&10);
            c.insert(100 + k, 0, 1);
            c.trim();
            assert!(c.weight() <= 10);
            assert_eq!(c.peek(&10), Some(&20), "used between all insertions");
        }
        c.insert(10, 21, 5);
        assert_eq!(c.peek(&10), Some(&21));
        c.remove(&10);
        assert_eq!(c.peek(&10), None);
        c.insert(1, 1, 1000);
        c.trim();
        assert!(c.weight() <= 10);
    }
}
