//! Writes, in lanes: what can meet the same records waits in one queue, and what waits together is committed together.
//!
//! Invariant: of one lane at most one transaction of this process is under way, so only other processes can conflict with it; one
//! that has lost twice asks for the turn, for which the others wait, so that nobody loses for ever. A job that is refused by the
//! rules has written nothing, and the others of its group go on.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::core::{Committed, Core};
use super::tx::{Step, Stop, Tx};
use crate::store::{Result, StoreError, Unreplicated, replicas, rules};

/// Writes that may wait; further callers wait for a place.
const MAX_QUEUED: usize = 1024;
/// Writes of one transaction.
const MAX_GROUP: usize = 256;
/// Bytes of one transaction, unless a single write has more: Redis does nothing else meanwhile.
const MAX_BYTES: usize = 1 << 20;
/// Conflicts after which a write is given up.
const MAX_TRIES: u32 = 100;

/// Done, and whether too few replicas have it.
type Written = Option<Unreplicated>;

type Lanes = Arc<Mutex<HashMap<String, VecDeque<Box<dyn Job>>>>>;

pub struct Writer {
    core: Arc<Core>,
    lanes: Lanes,
    room: Arc<Semaphore>,
}

impl Writer {
    pub fn new(core: Arc<Core>) -> Self {
        Self { core, lanes: Lanes::default(), room: Arc::new(Semaphore::new(MAX_QUEUED)) }
    }

    /// Resolves after the commit. A write whose caller goes away is still done.
    pub async fn submit<T, F>(&self, lane: String, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&mut Tx) -> Step<T> + Send + 'static,
    {
        let late = || StoreError::Unavailable("redis: the write was not done in time, or its answer is missing".into());
        let written = async {
            let place = self.room.clone().acquire_owned().await.map_err(|_| late())?;
            let (reply, answer) = oneshot::channel();
            self.queue(lane, Box::new(Write { work, done: None, reply, _place: place }));
            answer.await.unwrap_or_else(|_| Err(late()))
        };
        let (done, few) =
            tokio::time::timeout(self.core.patience() * 2, written).await.unwrap_or_else(|_| Err(late()))?;
        replicas::found(few)?;
        Ok(done)
    }

    fn queue(&self, lane: String, job: Box<dyn Job>) {
        let mut lanes = self.lanes.lock();
        if let Some(waiting) = lanes.get_mut(&lane) {
            waiting.push_back(job);
            return;
        }
        lanes.insert(lane.clone(), [job].into());
        self.core.spawn(run(self.core.clone(), self.lanes.clone(), lane));
    }
}

/// Until nothing waits in the lane.
async fn run(core: Arc<Core>, lanes: Lanes, lane: String) {
    loop {
        let mut group: VecDeque<_> = {
            let mut lanes = lanes.lock();
            match lanes.get_mut(&lane) {
                Some(waiting) if !waiting.is_empty() => {
                    let end = waiting.len().min(MAX_GROUP);
                    waiting.drain(..end).collect()
                }
                _ => {
                    lanes.remove(&lane);
                    return;
                }
            }
        };
        while !group.is_empty() {
            let (done, result) = write(&core, &lane, &mut group).await;
            for job in group.drain(..done) {
                job.finish(&result);
            }
        }
    }
}

/// How many of the group's first jobs have their result.
async fn write(core: &Core, lane: &str, group: &mut VecDeque<Box<dyn Job>>) -> (usize, Result<Written>) {
    let everybody = group.len();
    let end = Instant::now() + core.patience();
    for attempt in 0..MAX_TRIES {
        if Instant::now() > end {
            break;
        }
        let done = match attempt_once(core, lane, group, attempt).await {
            Ok(Some((done, written))) => return (done, Ok(written)),
            Ok(None) => pause(attempt).await,
            Err(e) => Err(e),
        };
        if let Err(e) = done {
            return (everybody, Err(e));
        }
    }
    (everybody, Err(StoreError::Unavailable("redis: too many others write the same: try again".into())))
}

/// `None`: somebody else was faster.
async fn attempt_once(
    core: &Core,
    lane: &str,
    group: &mut VecDeque<Box<dyn Job>>,
    attempt: u32,
) -> Result<Option<(usize, Written)>> {
    let known = core.known().await?;
    let nonce = core.nonce()?;
    let mut tx = Tx::new(&known.seal, &nonce);
    let done = loop {
        tx.begin();
        let mut done = 0;
        for job in group.iter_mut() {
            match job.run(&mut tx) {
                Ok(()) => tx.keep(),
                Err(Stop::Need) => tx.discard(),
                Err(Stop::Barrier) => break,
                Err(Stop::Failed(e)) if e.is_refusal() => tx.discard(),
                Err(Stop::Failed(e)) => return Err(e),
            }
            done += 1;
            if tx.bytes() > MAX_BYTES {
                break;
            }
        }
        if !tx.lacks_something() {
            break done;
        }
        core.fetch(&mut tx).await?;
    };
    core.tell_forged(&tx);
    if done == 0 {
        return Err(StoreError::Corrupt("a write waits for itself".into()));
    }
    if !tx.has_writes() {
        core.confirm(tx.met_absence).await?;
        return Ok(Some((done, None)));
    }
    Ok(match core.commit(lane, &tx, attempt >= 2).await? {
        Committed::Done(written) => Some((done, written)),
        Committed::Conflict | Committed::Lost => None,
    })
}

/// Shorter than it takes to lose the turn, and never the same for two.
async fn pause(attempt: u32) -> Result<()> {
    if attempt > 0 {
        let mut byte = [0];
        getrandom::fill(&mut byte).map_err(|e| StoreError::Unavailable(format!("no random bytes: {e}")))?;
        let most = 1_000 << attempt.min(4);
        tokio::time::sleep(Duration::from_micros(u64::from(byte[0]) * most / 256)).await;
    }
    Ok(())
}

trait Job: Send {
    fn run(&mut self, tx: &mut Tx) -> Step<()>;
    fn finish(self: Box<Self>, committed: &Result<Written>);
}

struct Write<T, F> {
    work: F,
    done: Option<Result<T>>,
    reply: oneshot::Sender<Result<(T, Written)>>,
    /// Among those that may wait, also when the caller has gone.
    _place: OwnedSemaphorePermit,
}

impl<T, F> Job for Write<T, F>
where
    T: Send,
    F: Fn(&mut Tx) -> Step<T> + Send,
{
    fn run(&mut self, tx: &mut Tx) -> Step<()> {
        match (self.work)(tx) {
            Ok(done) => {
                self.done = Some(Ok(done));
                Ok(())
            }
            Err(Stop::Failed(e)) => {
                self.done = Some(Err(e.clone()));
                Err(Stop::Failed(e))
            }
            Err(stop) => Err(stop),
        }
    }

    fn finish(self: Box<Self>, committed: &Result<Written>) {
        let written = committed.as_ref().ok().copied().flatten();
        let done = rules::answer(&committed.clone().map(drop), self.done);
        // A caller that went away needs no answer.
        let _ = self.reply.send(done.map(|done| (done, written)));
    }
}
