//! Guest threads: a fixed number, a bounded queue, and turns between owners.
//!
//! Invariant: at most `per_owner` runs of one owner, and never more than half of the threads, are under way at once;
//! owners that wait take turns, and a full queue refuses at once. Nothing that waited too long, or whose caller is gone, is run.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::domain::OwnerId;

use super::cancel::Cancel;
use super::sys;

/// Guests give way to the proxy's own threads.
const NICE: i32 = 5;
/// A guest may loop or sleep for as long as its deadline allows, so a thread is a place more than it is a core: the
/// system shares the cores out among those that run.
const THREADS_PER_CORE: usize = 8;
const MIN_THREADS: usize = 16;

type Work = Box<dyn FnOnce() + Send>;

struct Queued {
    id: u64,
    work: Work,
}

#[derive(Default)]
struct Owner {
    running: usize,
    queue: VecDeque<Queued>,
    /// Stands in `ready`.
    listed: bool,
}

#[derive(Default)]
struct State {
    owners: HashMap<OwnerId, Owner>,
    /// Owners with something queued and a place free, each once.
    ready: VecDeque<OwnerId>,
    queued: usize,
    running: usize,
    next_id: u64,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    per_owner: usize,
    max_queued: usize,
}

pub struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    count: usize,
    queue_timeout: Duration,
}

/// The pool has no place, or had none in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    pub retry_after: Duration,
}

impl Pool {
    pub fn start(config: &crate::config::Engine) -> std::io::Result<Pool> {
        let cores = std::thread::available_parallelism().map_or(2, |n| n.get());
        let count = if config.threads == 0 { (cores * THREADS_PER_CORE).max(MIN_THREADS) } else { config.threads };
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            wake: Condvar::new(),
            per_owner: config.per_owner.min(count / 2).max(1),
            max_queued: config.queue,
        });
        let pool =
            Pool { shared, threads: Mutex::new(Vec::with_capacity(count)), count, queue_timeout: config.queue_timeout };
        for n in 0..count {
            let shared = pool.shared.clone();
            let thread = std::thread::Builder::new().name(format!("guest-{n}")).spawn(move || shared.serve())?;
            pool.threads.lock().push(thread);
        }
        Ok(pool)
    }

    /// On threads and waiting.
    pub fn load(&self) -> (u64, u64) {
        let state = self.shared.state.lock();
        (state.running as u64, state.queued as u64)
    }

    /// Runs `work` on a guest thread. Dropping the future takes work that hasn't begun out of the queue, and so does
    /// `cancel`; work that has begun looks at it by itself.
    pub async fn run<T: Send + 'static>(
        &self,
        owner: &OwnerId,
        cancel: &Cancel,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let (started, has_started) = oneshot::channel::<()>();
        let (done, result) = oneshot::channel::<T>();
        let work = Box::new(move || {
            let _ = started.send(());
            // The caller may be gone: then nobody wants the result.
            let _ = done.send(work());
        });
        let id = self.enqueue(owner, work)?;
        let mut place = Place { shared: &self.shared, owner, id, waiting: true };
        let in_time = tokio::time::timeout(self.queue_timeout, cancel.or_cancelled(has_started)).await;
        if !matches!(in_time, Ok(Some(Ok(())))) && place.leave() {
            return Err(self.busy());
        }
        place.waiting = false;
        // A thread that died with the work (a panic in the host) leaves no result.
        result.await.map_err(|_| self.busy())
    }

    /// After the runs under way; what is queued is refused.
    pub fn shutdown(&self) {
        let dropped: Vec<Queued> = {
            let mut state = self.shared.state.lock();
            state.closed = true;
            state.ready.clear();
            state.queued = 0;
            state.owners.values_mut().flat_map(|o| o.queue.drain(..)).collect()
        };
        self.shared.wake.notify_all();
        drop(dropped);
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // A thread can only have ended by a panic that was already reported.
            let _ = thread.join();
        }
    }

    fn busy(&self) -> Busy {
        Busy { retry_after: self.queue_timeout.max(Duration::from_secs(1)) }
    }

    fn enqueue(&self, owner: &OwnerId, work: Work) -> Result<u64, Busy> {
        let mut state = self.shared.state.lock();
        let waiting = state.owners.get(owner).map_or(0, |o| o.queue.len());
        // No owner may fill the queue for all: half of it is the most that one gets.
        let own_share = self.shared.max_queued.div_ceil(2).max(1);
        let has_free_thread = state.queued == 0 && state.running < self.count;
        if state.closed || (!has_free_thread && (state.queued >= self.shared.max_queued || waiting >= own_share)) {
            return Err(self.busy());
        }
        let id = state.next_id;
        state.next_id += 1;
        state.queued += 1;
        state.owners.entry(owner.clone()).or_default().queue.push_back(Queued { id, work });
        state.list(owner, self.shared.per_owner);
        drop(state);
        self.shared.wake.notify_one();
        Ok(id)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl State {
    /// Puts an owner in line when it has work and a place.
    fn list(&mut self, name: &OwnerId, per_owner: usize) {
        if let Some(owner) = self.owners.get_mut(name)
            && !owner.listed
            && !owner.queue.is_empty()
            && owner.running < per_owner
        {
            owner.listed = true;
            self.ready.push_back(name.clone());
        }
    }

    fn next(&mut self, per_owner: usize) -> Option<(OwnerId, Work)> {
        while let Some(name) = self.ready.pop_front() {
            let Some(owner) = self.owners.get_mut(&name) else { continue };
            owner.listed = false;
            let Some(queued) = owner.queue.pop_front() else {
                self.forget(&name);
                continue;
            };
            owner.running += 1;
            self.queued -= 1;
            self.running += 1;
            // Behind the others that wait.
            self.list(&name, per_owner);
            return Some((name, queued.work));
        }
        None
    }

    fn ended(&mut self, name: &OwnerId, per_owner: usize) {
        self.running -= 1;
        if let Some(owner) = self.owners.get_mut(name) {
            owner.running -= 1;
        }
        self.list(name, per_owner);
        self.forget(name);
    }

    /// The map holds only owners with something queued or running.
    fn forget(&mut self, name: &OwnerId) {
        if self.owners.get(name).is_some_and(|o| o.running == 0 && o.queue.is_empty() && !o.listed) {
            self.owners.remove(name);
        }
    }
}

impl Shared {
    fn serve(&self) {
        sys::nice_this_thread(NICE);
        let mut state = self.state.lock();
        loop {
            let Some((owner, work)) = state.next(self.per_owner) else {
                if state.closed {
                    return;
                }
                self.wake.wait(&mut state);
                continue;
            };
            drop(state);
            // A panic in the host must not cost a thread; the caller sees a missing result.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
                tracing::error!("a guest thread panicked");
            }
            state = self.state.lock();
            state.ended(&owner, self.per_owner);
            if !state.ready.is_empty() {
                self.wake.notify_one();
            }
        }
    }
}

/// Work in the queue; taken out when its caller goes away.
struct Place<'a> {
    shared: &'a Shared,
    owner: &'a OwnerId,
    id: u64,
    waiting: bool,
}

impl Place<'_> {
    /// False when the work has begun.
    fn leave(&mut self) -> bool {
        self.waiting = false;
        let mut state = self.shared.state.lock();
        let Some(owner) = state.owners.get_mut(self.owner) else { return state.closed };
        let Some(at) = owner.queue.iter().position(|q| q.id == self.id) else { return false };
        let queued = owner.queue.remove(at);
        state.queued -= 1;
        state.forget(self.owner);
        drop(state);
        // What the work owns may be large; it goes without the lock.
        drop(queued);
        true
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.waiting {
            self.leave();
        }
    }
}
