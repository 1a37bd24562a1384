//! Guest threads: as many as there are runs under way, up to a bound; a bounded queue, and turns between owners.
//!
//! A run begins when there is a place for it, a place for its owner, and memory for it to begin with; then it needs a
//! run permit (`permits.rs`), which bounds how many of the threads compute at once.
//!
//! Invariant: at most `per_owner` runs of one owner, and never more than half of the places, are under way at once;
//! owners that wait take turns, and a full queue refuses at once. Nothing that waited too long, or whose caller is gone, is run.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::domain::OwnerId;

use super::budget::{Account, Budget, Reserved};
use super::cancel::Cancel;
use super::permits::Permits;
use super::{RunError, stack, sys};

/// Guests give way to the proxy's own threads.
const NICE: i32 = 5;
/// A guest may loop or sleep for as long as its deadline allows: a place has to cost little, so that many owners can do
/// that at once and leave places to others.
const THREADS_PER_CORE: usize = 64;
const MIN_THREADS: usize = 256;
const MAX_THREADS: usize = 1024;
/// A thread that had nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(10);

type Work = Box<dyn FnOnce(Reserved) + Send>;

/// What a run needs of the guest memory before it can begin, and whose it is.
pub struct Need {
    pub account: Arc<Account>,
    pub bytes: u64,
}

impl Need {
    /// Of a guest that has its memory.
    pub fn nothing(account: &Arc<Account>) -> Need {
        Need { account: account.clone(), bytes: 0 }
    }
}

struct Queued {
    id: u64,
    need: Need,
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
    threads: usize,
    /// The one idle for the shortest time is last, and the first to be called.
    idle: Vec<Arc<Condvar>>,
}

struct Shared {
    state: Mutex<State>,
    handles: Mutex<HashMap<u64, std::thread::JoinHandle<()>>>,
    budget: Arc<Budget>,
    permits: Arc<Permits>,
    per_owner: usize,
    max_queued: usize,
    max_threads: usize,
}

pub struct Pool {
    shared: Arc<Shared>,
    queue_timeout: Duration,
}

/// The pool has no place, or had none in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    pub retry_after: Duration,
}

impl From<Busy> for RunError {
    fn from(busy: Busy) -> RunError {
        RunError::Busy { retry_after: busy.retry_after }
    }
}

impl Pool {
    pub fn start(config: &crate::config::Engine, budget: &Arc<Budget>) -> std::io::Result<Pool> {
        let cores = std::thread::available_parallelism().map_or(2, |n| n.get());
        let by_cores = (cores * THREADS_PER_CORE).clamp(MIN_THREADS, MAX_THREADS);
        let max_threads = if config.threads == 0 { by_cores } else { config.threads };
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            handles: Mutex::default(),
            budget: budget.clone(),
            permits: Permits::new(cores.saturating_sub(1).max(1)),
            per_owner: config.per_owner.min(max_threads / 2).max(1),
            max_queued: config.queue,
            max_threads,
        });
        let pool = Arc::downgrade(&shared);
        budget.on_freed(Box::new(move || {
            if let Some(shared) = pool.upgrade() {
                shared.call_a_thread(shared.state.lock());
            }
        }));
        // The first one now: a system that gives no threads is found out at start.
        shared.state.lock().threads = 1;
        shared.start_thread(0)?;
        Ok(Pool { shared, queue_timeout: config.queue_timeout })
    }

    /// Under way and waiting.
    pub fn load(&self) -> (u64, u64) {
        let state = self.shared.state.lock();
        (state.running as u64, state.queued as u64)
    }

    /// Runs `work` on a guest thread with the memory that it needs. Dropping the future takes work that hasn't begun out
    /// of the queue, and so does `cancel`; work that has begun looks at it by itself.
    pub async fn run<T: Send + 'static>(
        &self,
        owner: &OwnerId,
        cancel: &Cancel,
        need: Need,
        work: impl FnOnce(Reserved) -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let (started, has_started) = oneshot::channel::<()>();
        let (done, result) = oneshot::channel::<T>();
        let work = Box::new(move |memory: Reserved| {
            let _ = started.send(());
            // The caller may be gone: then nobody wants the result.
            let _ = done.send(work(memory));
        });
        let id = self.enqueue(owner, need, work)?;
        let mut place = Place { shared: &self.shared, owner, id, waiting: true };
        let in_time = tokio::time::timeout(self.queue_timeout, cancel.or_cancelled(has_started)).await;
        if !matches!(in_time, Ok(Some(Ok(())))) && place.leave() {
            return Err(self.busy());
        }
        place.waiting = false;
        // A thread that died with the work (a panic in the host) leaves no result.
        result.await.map_err(|_| self.busy())
    }

    /// As [`Self::run`], with what has to come back where no thread takes the work in time.
    pub async fn run_with<I: Send + 'static, T: Send + 'static>(
        &self,
        owner: &OwnerId,
        cancel: &Cancel,
        need: Need,
        input: I,
        work: impl FnOnce(I, Reserved) -> T + Send + 'static,
    ) -> Result<T, (I, Busy)> {
        let ours = Arc::new(Mutex::new(Some(input)));
        let theirs = ours.clone();
        let job = move |memory| {
            // The lock ends here; the guest runs without it.
            let input = theirs.lock().take();
            input.map(|input| work(input, memory))
        };
        match self.run(owner, cancel, need, job).await {
            Ok(Some(done)) => Ok(done),
            Ok(None) => unreachable!("only this function takes the input back, after the pool has let the work go"),
            Err(busy) => {
                let input = ours.lock().take().expect("a guest thread that took the input gives a result");
                Err((input, busy))
            }
        }
    }

    /// After the runs under way; what is queued is refused.
    pub fn shutdown(&self) {
        let dropped: Vec<Queued> = {
            let mut state = self.shared.state.lock();
            state.closed = true;
            state.ready.clear();
            state.queued = 0;
            for idle in state.idle.drain(..) {
                idle.notify_one();
            }
            state.owners.values_mut().flat_map(|o| o.queue.drain(..)).collect()
        };
        drop(dropped);
        let threads = std::mem::take(&mut *self.shared.handles.lock());
        for thread in threads.into_values() {
            // A thread can only have ended by a panic that was already reported.
            let _ = thread.join();
        }
    }

    fn busy(&self) -> Busy {
        Busy { retry_after: self.queue_timeout.max(Duration::from_secs(1)) }
    }

    fn enqueue(&self, owner: &OwnerId, need: Need, work: Work) -> Result<u64, Busy> {
        let shared = &self.shared;
        let mut state = shared.state.lock();
        let waiting = state.owners.get(owner).map_or(0, |o| o.queue.len());
        // No owner may fill the queue for all: half of it is the most that one gets.
        let own_share = shared.max_queued.div_ceil(2).max(1);
        let has_free_thread = state.queued == 0 && state.running < shared.max_threads;
        if state.closed || (!has_free_thread && (state.queued >= shared.max_queued || waiting >= own_share)) {
            return Err(self.busy());
        }
        let id = state.next_id;
        state.next_id += 1;
        state.queued += 1;
        state.owners.entry(owner.clone()).or_default().queue.push_back(Queued { id, need, work });
        state.list(owner, shared.per_owner);
        shared.call_a_thread(state);
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

    /// The first owner in line whose next run there is memory for; the others keep their places.
    fn next(&mut self, per_owner: usize, budget: &Budget) -> Option<(OwnerId, Work, Reserved)> {
        let mut at = 0;
        while let Some(name) = self.ready.get(at) {
            let queued = self.owners.get(name).and_then(|owner| owner.queue.front());
            match queued.map(|queued| queued.need.reserve(budget)) {
                Some(None) => at += 1,
                Some(Some(memory)) => return self.begin(at, memory, per_owner),
                None => {
                    if let Some(name) = self.ready.remove(at) {
                        self.owners.entry(name.clone()).or_default().listed = false;
                        self.forget(&name);
                    }
                }
            }
        }
        None
    }

    fn begin(&mut self, at: usize, memory: Reserved, per_owner: usize) -> Option<(OwnerId, Work, Reserved)> {
        let name = self.ready.remove(at)?;
        let owner = self.owners.get_mut(&name)?;
        owner.listed = false;
        let queued = owner.queue.pop_front()?;
        owner.running += 1;
        self.queued -= 1;
        self.running += 1;
        // Behind the others that wait.
        self.list(&name, per_owner);
        Some((name, queued.work, memory))
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

impl Need {
    fn reserve(&self, budget: &Budget) -> Option<Reserved> {
        self.account.reserve(self.bytes).or_else(|| {
            budget.await_memory();
            // Some may have come back before that was known.
            self.account.reserve(self.bytes)
        })
    }
}

impl Shared {
    /// Has a thread look at the queue: an idle one, or a new one while there may be more.
    fn call_a_thread(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.ready.is_empty() {
            return;
        }
        if let Some(idle) = state.idle.pop() {
            idle.notify_one();
            return;
        }
        if state.threads >= self.max_threads || state.closed {
            return;
        }
        state.threads += 1;
        let id = state.next_id;
        state.next_id += 1;
        drop(state);
        if let Err(error) = self.start_thread(id) {
            // What waits is served by the threads that there are, or refused in time.
            tracing::warn!(%error, "can't start a guest thread");
            self.state.lock().threads -= 1;
        }
    }

    fn start_thread(self: &Arc<Self>, id: u64) -> std::io::Result<()> {
        let shared = self.clone();
        // Held, so that a thread finds its own handle when it ends.
        let mut handles = self.handles.lock();
        let thread = std::thread::Builder::new().name(format!("guest-{id}")).spawn(move || shared.serve(id))?;
        handles.insert(id, thread);
        Ok(())
    }

    fn serve(self: Arc<Self>, id: u64) {
        sys::nice_this_thread(NICE);
        let _stack = stack::OfThread;
        let call = Arc::new(Condvar::new());
        let mut state = self.state.lock();
        loop {
            if let Some((owner, work, memory)) = state.next(self.per_owner, &self.budget) {
                // There may be memory for more than this one.
                self.call_a_thread(state);
                self.run(work, memory);
                state = self.state.lock();
                state.ended(&owner, self.per_owner);
                continue;
            }
            if state.closed {
                return;
            }
            state.idle.push(call.clone());
            call.wait_for(&mut state, IDLE);
            // Who is called is taken out of the list.
            if let Some(at) = state.idle.iter().position(|idle| Arc::ptr_eq(idle, &call)) {
                state.idle.remove(at);
                state.threads -= 1;
                drop(state);
                self.handles.lock().remove(&id);
                return;
            }
        }
    }

    fn run(&self, work: Work, memory: Reserved) {
        let _entered = self.permits.enter();
        // A panic in the host must not cost a thread; the caller sees a missing result.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(memory))).is_err() {
            tracing::error!("a guest thread panicked");
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
