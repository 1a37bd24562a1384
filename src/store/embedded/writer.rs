//! The one writer: a thread that puts all waiting writes into one transaction (group commit) and answers each after it.
//!
//! Invariant: a job that fails by its own rules (`NotFound`, `Conflict`, `Limit`) has written nothing of its own, so the others of
//! its group go on; any other error fails the whole group, and nothing of it is kept.

use std::sync::Arc;
use std::thread::JoinHandle;

use redb::WriteTransaction;
use tokio::sync::{mpsc, oneshot};

use super::db::Db;
use crate::store::{Result, StoreError, rules};

/// Writes that may wait; further callers wait for a place.
const MAX_QUEUED: usize = 1024;
/// Writes of one transaction.
const MAX_GROUP: usize = 256;

pub struct Writer {
    jobs: Option<mpsc::Sender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub fn start(db: Arc<Db>) -> Result<Self> {
        let (jobs, queue) = mpsc::channel(MAX_QUEUED);
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || run(&db, queue))
            .map_err(|e| StoreError::Unavailable(format!("no thread for the store: {e}")))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Resolves after the commit. A write whose caller goes away is still done.
    pub async fn submit<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&WriteTransaction) -> Result<T> + Send + 'static,
    {
        let stopped = || StoreError::Unavailable("the store's writer has stopped; see the log".into());
        let (reply, answer) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or_else(stopped)?;
        jobs.send(Box::new(Write { work: Some(work), done: None, reply })).await.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}

impl Drop for Writer {
    /// Waits for what is queued, so that a dropped store has released its file.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(db: &Db, mut queue: mpsc::Receiver<Box<dyn Job>>) {
    while let Some(first) = queue.blocking_recv() {
        let mut group = vec![first];
        while group.len() < MAX_GROUP
            && let Ok(next) = queue.try_recv()
        {
            group.push(next);
        }
        let committed = db.write(|tx| {
            let mut changed = false;
            for job in &mut group {
                changed |= job.run(tx)?;
            }
            Ok(changed)
        });
        for job in group {
            job.finish(&committed);
        }
    }
}

trait Job: Send {
    /// Whether it has written something; `Err` only for faults of the storage.
    fn run(&mut self, tx: &WriteTransaction) -> Result<bool>;
    fn finish(self: Box<Self>, committed: &Result<()>);
}

struct Write<T, F> {
    work: Option<F>,
    done: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
}

impl<T, F> Job for Write<T, F>
where
    T: Send,
    F: FnOnce(&WriteTransaction) -> Result<T> + Send,
{
    fn run(&mut self, tx: &WriteTransaction) -> Result<bool> {
        let Some(work) = self.work.take() else { return Ok(false) };
        let done = work(tx);
        if let Err(e) = &done
            && !e.is_refusal()
        {
            return Err(e.clone());
        }
        let changed = done.is_ok();
        self.done = Some(done);
        Ok(changed)
    }

    fn finish(self: Box<Self>, committed: &Result<()>) {
        // A caller that went away needs no answer.
        let _ = self.reply.send(rules::answer(committed, self.done));
    }
}
