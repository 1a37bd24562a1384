//! How many proxy connections may be open at once, which a reload may change.
//!
//! Invariant: after a reload to fewer, no new connection is served before so many have ended.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

pub struct Places {
    pub free: Arc<Semaphore>,
    size: Mutex<usize>,
}

impl Places {
    pub fn new(size: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(size)), size: Mutex::new(size) }
    }

    pub fn resize(&self, size: usize) {
        let mut now = self.size.lock();
        if size > *now {
            self.free.add_permits(size - *now);
        } else {
            let gone = self.free.forget_permits(*now - size);
            let owed = u32::try_from(*now - size - gone).unwrap_or(u32::MAX);
            let free = self.free.clone();
            // Open connections hold the rest. It goes as they end: the semaphore is fair, so before new ones get it.
            tokio::spawn(async move {
                if let Ok(places) = free.acquire_many_owned(owed).await {
                    places.forget();
                }
            });
        }
        *now = size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn places_shrink_as_connections_end_and_grow_at_once() {
        let places = Places::new(3);
        let take = || places.free.clone().try_acquire_owned();
        let mut held: Vec<_> = (0..3).map(|_| take().unwrap()).collect();
        places.resize(1);
        // The task that takes back what connections hold has begun to wait.
        tokio::task::yield_now().await;
        held.pop();
        tokio::task::yield_now().await;
        assert!(take().is_err(), "two are still open, and one may be");
        held.pop();
        tokio::task::yield_now().await;
        assert!(take().is_err(), "one is still open");
        held.pop();
        let only = take().unwrap();
        assert!(take().is_err());
        places.resize(2);
        assert!(take().is_ok());
        drop(only);
    }
}
