//! A VM, or the place where one is to be.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::ProxyHandler;
use super::vm::Vm;
use crate::engine::cancel::Cancel;
use crate::engine::scope::MAX_ITEMS;

pub struct Slot {
    pub handler: Weak<ProxyHandler>,
    pub vm: Arc<tokio::sync::Mutex<Option<Box<Vm>>>>,
    pub streams: AtomicUsize,
    pub served: AtomicU64,
    /// It takes no more streams: its VM is worn, or has failed.
    pub closed: AtomicBool,
    pub ticker: Mutex<Option<AbortHandle>>,
    /// It has timers or queues.
    pub serves_events: AtomicBool,
    /// How many items of which queues it is still to be told of. While there are any, a task does.
    ready: Mutex<BTreeMap<u32, usize>>,
    /// Its VM has failed, and nobody waits for what it asked for.
    pub lost: Cancel,
}

impl Slot {
    pub fn new(handler: &Arc<ProxyHandler>) -> Arc<Slot> {
        Arc::new(Slot {
            handler: Arc::downgrade(handler),
            vm: Arc::default(),
            streams: AtomicUsize::new(0),
            served: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            ticker: Mutex::default(),
            serves_events: AtomicBool::new(false),
            ready: Mutex::default(),
            lost: Cancel::default(),
        })
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        if let Some(ticker) = self.ticker.lock().take() {
            ticker.abort();
        }
    }

    /// More items of a queue to be told of; whether there was nothing to tell before.
    pub fn note_ready(&self, queue: u32, more: usize) -> bool {
        let mut ready = self.ready.lock();
        let was_empty = ready.is_empty();
        let items = ready.entry(queue).or_default();
        *items = items.saturating_add(more).min(MAX_ITEMS);
        was_empty
    }

    pub fn next_ready(&self) -> Option<u32> {
        self.ready.lock().keys().next().copied()
    }

    pub fn told_ready(&self, queue: u32) {
        let mut ready = self.ready.lock();
        if let Some(items) = ready.get_mut(&queue) {
            *items -= 1;
            if *items == 0 {
                ready.remove(&queue);
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(ticker) = self.ticker.get_mut().take() {
            ticker.abort();
        }
    }
}
