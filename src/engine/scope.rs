//! What proxy-wasm filters share: data and queues, by owner and `vm_id`.
//!
//! Invariant: a guest reaches nothing of another owner's, and all of a scope is bounded. A scope lives as long as one of
//! its handlers, whatever becomes of their VMs.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::domain::OwnerId;

/// Of a scope's data, keys and values, and of each queue.
const MAX_BYTES: usize = 4 << 20;
const MAX_KEYS: usize = 10_000;
const MAX_QUEUES: usize = 256;
pub const MAX_ITEMS: usize = 10_000;

type Key = (OwnerId, String);

/// All that are in use.
#[derive(Default)]
pub struct Scopes {
    all: Mutex<HashMap<Key, Weak<Scope>>>,
    /// One number a queue, so that a guest can use those of other scopes of its owner.
    last_queue: AtomicU32,
}

pub struct Scope {
    key: Key,
    scopes: Arc<Scopes>,
    data: Mutex<Data>,
    queues: Mutex<HashMap<u32, Queue>>,
}

#[derive(Default)]
struct Data {
    values: HashMap<Vec<u8>, (Bytes, u32)>,
    bytes: usize,
    last_cas: u32,
}

/// Told of the items that come into a queue.
pub trait Listener: Send + Sync {
    fn queue_ready(&self, queue: u32, items: usize);
}

struct Queue {
    name: Vec<u8>,
    items: VecDeque<Bytes>,
    bytes: usize,
    listener: Option<Weak<dyn Listener>>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    NotFound,
    CasMismatch,
    Full,
}

impl Scopes {
    pub fn of(self: &Arc<Self>, owner: &OwnerId, vm_id: &str) -> Arc<Scope> {
        let key = (owner.clone(), vm_id.to_owned());
        let mut all = self.all.lock();
        if let Some(scope) = all.get(&key).and_then(Weak::upgrade) {
            return scope;
        }
        let scope = Scope { key: key.clone(), scopes: self.clone(), data: Mutex::default(), queues: Mutex::default() };
        let scope = Arc::new(scope);
        all.insert(key, Arc::downgrade(&scope));
        scope
    }

    fn find(&self, key: &Key) -> Option<Arc<Scope>> {
        self.all.lock().get(key).and_then(Weak::upgrade)
    }

    fn of_owner(&self, owner: &OwnerId) -> Vec<Arc<Scope>> {
        let all = self.all.lock();
        all.iter().filter(|((of, _), _)| of == owner).filter_map(|(_, scope)| scope.upgrade()).collect()
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let mut all = self.scopes.all.lock();
        // A new one may have taken its place.
        if all.get(&self.key).is_some_and(|scope| scope.strong_count() == 0) {
            all.remove(&self.key);
        }
    }
}

impl Scope {
    /// The value and its number, for a later [`Self::set`].
    pub fn get(&self, key: &[u8]) -> Option<(Bytes, u32)> {
        self.data.lock().values.get(key).cloned()
    }

    /// `cas`: 0, or the number that the value still has to have. A key without a value takes any.
    pub fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), Refused> {
        let mut data = self.data.lock();
        let before = data.values.get(key).map(|(value, number)| (value.len(), *number));
        if before.is_some_and(|(_, number)| cas != 0 && cas != number) {
            return Err(Refused::CasMismatch);
        }
        let added = if before.is_some() { value.len() } else { key.len() + value.len() };
        let bytes = data.bytes - before.map_or(0, |(len, _)| len) + added;
        if bytes > MAX_BYTES || (before.is_none() && data.values.len() >= MAX_KEYS) {
            return Err(Refused::Full);
        }
        data.bytes = bytes;
        data.last_cas = data.last_cas.wrapping_add(1).max(1);
        let number = data.last_cas;
        data.values.insert(key.to_vec(), (Bytes::copy_from_slice(value), number));
        Ok(())
    }

    /// The queue of this name, made if there is none.
    pub fn register(&self, name: &[u8]) -> Result<u32, Refused> {
        let mut queues = self.queues.lock();
        if let Some((id, _)) = queues.iter().find(|(_, queue)| queue.name == name) {
            return Ok(*id);
        }
        if queues.len() >= MAX_QUEUES || name.len() > 256 {
            return Err(Refused::Full);
        }
        let id = self.scopes.last_queue.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1);
        queues.insert(id, Queue { name: name.to_vec(), items: VecDeque::new(), bytes: 0, listener: None });
        Ok(id)
    }

    /// A queue of this owner's by name.
    pub fn resolve(&self, vm_id: &str, name: &[u8]) -> Option<u32> {
        let scope = self.scopes.find(&(self.key.0.clone(), vm_id.to_owned()))?;
        let queues = scope.queues.lock();
        queues.iter().find(|(_, queue)| queue.name == name).map(|(id, _)| *id)
    }

    /// From now on this one is told, also of what is in the queue already. One that was told of it is not told again.
    pub fn listen(&self, id: u32, listener: &Weak<dyn Listener>) {
        let waiting = {
            let mut queues = self.queues.lock();
            let Some(queue) = queues.get_mut(&id) else { return };
            if queue.listener.as_ref().is_some_and(|known| known.ptr_eq(listener)) {
                return;
            }
            queue.listener = Some(listener.clone());
            queue.items.len()
        };
        if let Some(listener) = listener.upgrade().filter(|_| waiting > 0) {
            listener.queue_ready(id, waiting);
        }
    }

    pub fn enqueue(&self, queue: u32, item: &[u8]) -> Result<(), Refused> {
        let listener = self.with_queue(queue, |queue| {
            if queue.items.len() >= MAX_ITEMS || queue.bytes + item.len() > MAX_BYTES {
                return Err(Refused::Full);
            }
            queue.bytes += item.len();
            queue.items.push_back(Bytes::copy_from_slice(item));
            Ok(queue.listener.clone())
        })??;
        if let Some(listener) = listener.and_then(|listener| listener.upgrade()) {
            listener.queue_ready(queue, 1);
        }
        Ok(())
    }

    /// `Ok(None)`: it is empty.
    pub fn dequeue(&self, queue: u32) -> Result<Option<Bytes>, Refused> {
        self.with_queue(queue, |queue| {
            let item = queue.items.pop_front();
            queue.bytes -= item.as_ref().map_or(0, Bytes::len);
            item
        })
    }

    fn with_queue<R>(&self, id: u32, work: impl FnOnce(&mut Queue) -> R) -> Result<R, Refused> {
        if let Some(queue) = self.queues.lock().get_mut(&id) {
            return Ok(work(queue));
        }
        for scope in self.scopes.of_owner(&self.key.0) {
            if let Some(queue) = scope.queues.lock().get_mut(&id) {
                return Ok(work(queue));
            }
        }
        Err(Refused::NotFound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> OwnerId {
        name.parse().unwrap()
    }

    #[test]
    fn values_change_only_under_their_number() {
        let scope = Arc::new(Scopes::default()).of(&owner("a"), "");
        assert_eq!(scope.get(b"k"), None);
        scope.set(b"k", b"1", 77).unwrap();
        let (value, cas) = scope.get(b"k").unwrap();
        assert_eq!(&value[..], b"1");
        assert_ne!(cas, 0);
        assert_eq!(scope.set(b"k", b"2", cas + 1), Err(Refused::CasMismatch));
        scope.set(b"k", b"2", cas).unwrap();
        assert_eq!(scope.set(b"k", b"3", cas), Err(Refused::CasMismatch), "each write has a number of its own");
        scope.set(b"k", b"", 0).unwrap();
        assert_eq!(scope.get(b"k").unwrap().0.len(), 0);
    }

    #[test]
    fn scopes_are_of_one_owner_and_one_name_and_end_with_the_last_user() {
        let scopes = Arc::new(Scopes::default());
        let a = scopes.of(&owner("a"), "vm");
        a.set(b"k", b"1", 0).unwrap();
        assert!(scopes.of(&owner("a"), "vm").get(b"k").is_some());
        assert!(scopes.of(&owner("a"), "").get(b"k").is_none());
        assert!(scopes.of(&owner("b"), "vm").get(b"k").is_none());
        let queue = a.register(b"q").unwrap();
        assert_eq!(a.register(b"q"), Ok(queue));
        assert_eq!(scopes.of(&owner("a"), "").resolve("vm", b"q"), Some(queue));
        let stranger = scopes.of(&owner("b"), "vm");
        assert_eq!(stranger.resolve("vm", b"q"), None);
        assert_eq!(stranger.enqueue(queue, b"x"), Err(Refused::NotFound), "by its number neither");
        scopes.of(&owner("a"), "").enqueue(queue, b"x").unwrap();
        assert_eq!(a.dequeue(queue), Ok(Some(Bytes::from_static(b"x"))));
        assert_eq!(a.dequeue(queue), Ok(None));
        drop(a);
        assert!(scopes.of(&owner("a"), "vm").get(b"k").is_none());
        drop(stranger);
        assert!(scopes.all.lock().len() <= 2);
    }

    /// Of how many items, and how often.
    #[derive(Default)]
    struct Told(Mutex<Vec<usize>>);

    impl Listener for Told {
        fn queue_ready(&self, _: u32, items: usize) {
            self.0.lock().push(items);
        }
    }

    #[test]
    fn a_listener_is_told_of_each_item_once() {
        let scope = Arc::new(Scopes::default()).of(&owner("a"), "");
        let queue = scope.register(b"q").unwrap();
        let listeners = [Arc::new(Told::default()), Arc::new(Told::default())];
        let [first, second] = listeners.each_ref().map(|l| Arc::downgrade(l) as Weak<dyn Listener>);
        let told = || listeners.each_ref().map(|listener| std::mem::take(&mut *listener.0.lock()));
        scope.listen(queue, &first);
        scope.enqueue(queue, b"x").unwrap();
        scope.enqueue(queue, b"x").unwrap();
        (0..9).for_each(|_| scope.listen(queue, &first));
        assert_eq!(told(), [vec![1, 1], vec![]]);
        (0..9).for_each(|_| scope.listen(queue, &second));
        scope.enqueue(queue, b"x").unwrap();
        assert_eq!(told(), [vec![], vec![2, 1]], "the queue is the second one's now");
    }

    #[test]
    fn all_of_it_is_bounded() {
        let scope = Arc::new(Scopes::default()).of(&owner("a"), "");
        let big = vec![0; MAX_BYTES / 2];
        scope.set(b"1", &big, 0).unwrap();
        assert_eq!(scope.set(b"2", &big, 0), Err(Refused::Full), "its key counts");
        scope.set(b"1", b"", 0).unwrap();
        scope.set(b"2", &big, 0).unwrap();
        let queue = scope.register(b"q").unwrap();
        for _ in 0..MAX_ITEMS {
            scope.enqueue(queue, b"").unwrap();
        }
        assert_eq!(scope.enqueue(queue, b""), Err(Refused::Full));
        for n in 0..MAX_QUEUES - 1 {
            scope.register(format!("{n}").as_bytes()).unwrap();
        }
        assert_eq!(scope.register(b"one more"), Err(Refused::Full));
    }
}
