//! Turns at work that few do at once: inspecting and compiling what strangers send.
//!
//! Invariant: one owner is in the queue with half as many as there are places, at least one, those at work included.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::counted::Counted;
use crate::domain::OwnerId;

pub struct Turns {
    places: Semaphore,
    /// In the queue or at work, and how many of them there may be.
    inside: AtomicUsize,
    most: usize,
    of_one: usize,
    /// Of those who have some now.
    owners: Mutex<HashMap<OwnerId, Weak<Semaphore>>>,
}

/// A place, and what counts for its owner.
pub struct Turn<'a> {
    _place: SemaphorePermit<'a>,
    _inside: Counted<'a>,
    _own: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// `queue`: what may wait, over all owners.
    pub fn new(places: usize, queue: usize) -> Turns {
        let places = places.max(1);
        Turns {
            places: Semaphore::new(places),
            inside: AtomicUsize::new(0),
            most: places + queue,
            of_one: (places / 2).max(1),
            owners: Mutex::default(),
        }
    }

    /// `None` when there is no place in time, or too many wait already. `owner`: whose turn it is, where it is not the
    /// gateway's own.
    pub async fn take(&self, owner: Option<&OwnerId>, wait: Duration) -> Option<Turn<'_>> {
        let turn = async {
            // The queue of all comes behind that of the owner, who else could fill it.
            let _own = match owner {
                Some(owner) => Some(self.of(owner).acquire_owned().await.ok()?),
                None => None,
            };
            let _inside = Counted::enter(&self.inside, self.most)?;
            Some(Turn { _place: self.places.acquire().await.ok()?, _inside, _own })
        };
        tokio::time::timeout(wait, turn).await.ok().flatten()
    }

    fn of(&self, owner: &OwnerId) -> Arc<Semaphore> {
        let mut owners = self.owners.lock();
        if let Some(own) = owners.get(owner).and_then(Weak::upgrade) {
            return own;
        }
        owners.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Semaphore::new(self.of_one));
        owners.insert(owner.clone(), Arc::downgrade(&own));
        own
    }
}
