//! A small map in front of the key cache, for keys that were just found good: a quicker keyed hash of the presented text
//! finds the record without HMAC-SHA256 and without the cache's book-keeping.
//!
//! Invariant: nothing found here is older than the last invalidation. A slot counts only while the generation under which
//! it was written is the current one, and [`Front::forget_all`] is called after the cache behind has let go.
//!
//! The tag is SipHash-2-4 with 128 bits under a secret key: a text that meets another's tag can't be found without that
//! key, and whoever reads it out of this process's memory finds the pepper there as well. So nothing here helps more to an
//! API key than the cache's own hashes do.

use std::hash::Hasher as _;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use siphasher::sip128::{Hasher128, SipHasher24};

/// A power of two; each takes a key that is in use just now.
const SLOTS: usize = 4096;

pub struct Front<T> {
    key: [u8; 16],
    generation: AtomicU64,
    slots: Box<[Mutex<Option<Slot<T>>>]>,
}

struct Slot<T> {
    tag: u128,
    generation: u64,
    value: T,
}

/// Where a text was looked for, and the generation in which that was.
#[derive(Clone, Copy)]
pub struct Place {
    tag: u128,
    generation: u64,
}

impl<T: Clone> Front<T> {
    pub fn new(key: [u8; 16]) -> Self {
        Self { key, generation: AtomicU64::new(0), slots: (0..SLOTS).map(|_| Mutex::new(None)).collect() }
    }

    /// To be asked before the cache behind is, so that what is put here later is no older than the generation says.
    pub fn place(&self, text: &str) -> Place {
        let generation = self.generation.load(Ordering::Acquire);
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write(text.as_bytes());
        Place { tag: hasher.finish128().as_u128(), generation }
    }

    pub fn get(&self, place: Place) -> Option<T> {
        let slot = self.slot(place).lock();
        let found = slot.as_ref().filter(|s| s.tag == place.tag && s.generation == place.generation)?;
        Some(found.value.clone())
    }

    pub fn put(&self, place: Place, value: T) {
        let Place { tag, generation } = place;
        let before = self.slot(place).lock().replace(Slot { tag, generation, value });
        drop(before);
    }

    pub fn forget_all(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn slot(&self, place: Place) -> &Mutex<Option<Slot<T>>> {
        &self.slots[place.tag as usize & (SLOTS - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_before_everything_was_forgotten_is_gone() {
        let front = Front::new([7; 16]);
        let place = front.place("a");
        assert_eq!(front.get(place), None);
        front.put(place, 1);
        assert_eq!(front.get(front.place("a")), Some(1));
        assert_eq!(front.get(front.place("b")), None);
        let before = front.place("a");
        front.forget_all();
        assert_eq!(front.get(front.place("a")), None);
        // A reader that was overtaken by the invalidation puts what nobody takes.
        front.put(before, 2);
        assert_eq!(front.get(front.place("a")), None);
    }
}
