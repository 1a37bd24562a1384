//! A bounded map that makes room by second chance (CLOCK).
//!
//! Invariant: never more than `cap` entries, and an entry that is busy is never put out. The one unused for longest goes
//! (about): putting out the newest would let two addresses that take turns in the last place have no limit at all.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// Entries looked at to find one that can go.
const MAX_STEPS: usize = 64;

pub struct Table<K, V> {
    index: HashMap<K, usize>,
    slots: Vec<Option<Slot<K, V>>>,
    free: Vec<usize>,
    hand: usize,
    cap: usize,
}

struct Slot<K, V> {
    key: K,
    value: V,
    touched: bool,
}

impl<K: Clone + Eq + Hash, V> Table<K, V> {
    pub fn new(cap: usize) -> Self {
        Self { index: HashMap::new(), slots: Vec::new(), free: Vec::new(), hand: 0, cap: cap.max(1) }
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn get<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let place = *self.index.get(key)?;
        self.slots[place].as_mut().map(|slot| &mut slot.value)
    }

    /// The entry, made when it is missing. `None`: full of busy entries.
    pub fn entry(&mut self, key: &K, make: impl FnOnce() -> V, busy: impl Fn(&V) -> bool) -> Option<&mut V> {
        let place = match self.index.get(key) {
            Some(place) => *place,
            None => {
                let place = self.room(busy)?;
                self.index.insert(key.clone(), place);
                self.slots[place] = Some(Slot { key: key.clone(), value: make(), touched: false });
                place
            }
        };
        self.slots[place].as_mut().map(|slot| {
            slot.touched = true;
            &mut slot.value
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.slots.iter().flatten().map(|slot| (&slot.key, &slot.value))
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.slots.iter_mut().flatten().map(|slot| &mut slot.value)
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&mut V) -> bool) {
        for place in 0..self.slots.len() {
            if let Some(slot) = &mut self.slots[place]
                && !keep(&mut slot.value)
            {
                self.remove(place);
            }
        }
    }

    fn remove(&mut self, place: usize) {
        if let Some(slot) = self.slots[place].take() {
            self.index.remove(&slot.key);
            self.free.push(place);
        }
    }

    fn room(&mut self, busy: impl Fn(&V) -> bool) -> Option<usize> {
        if self.free.is_empty() && self.slots.len() < self.cap {
            self.slots.push(None);
            return Some(self.slots.len() - 1);
        }
        let mut spare = None;
        for _ in 0..MAX_STEPS.min(2 * self.slots.len()) {
            if !self.free.is_empty() {
                break;
            }
            let place = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            match &mut self.slots[place] {
                Some(slot) if busy(&slot.value) => {}
                Some(slot) if slot.touched => {
                    slot.touched = false;
                    spare.get_or_insert(place);
                }
                _ => {
                    self.remove(place);
                    break;
                }
            }
        }
        if self.free.is_empty()
            && let Some(place) = spare
        {
            self.remove(place);
        }
        self.free.pop()
    }
}
