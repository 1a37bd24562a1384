//! Background work of a running gateway: usage and counters to the store, idle state out of memory, files
//! that nothing needs off the disk.
//!
//! Invariant: what cannot be written stays in memory, of a shared store in the journal as well, and is tried again; `flush` at
//! shutdown writes the rest.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::App;
use super::journal::Journal;
use super::outbox::Outbox;
use crate::domain::{Name, OwnerId, Timestamp, UsageDelta};
use crate::limit::limiter::Now;
use crate::limit::usage::UsageRecorder;
use crate::store::{Retention, StoreError, told_apart};

/// A kill -9 forgets at most this much usage, and as much of the day and month counters.
pub const FLUSH_EVERY: Duration = Duration::from_secs(5);
const EVICT_EVERY: Duration = Duration::from_secs(30);
/// The first time at start.
const SWEEP_EVERY: Duration = Duration::from_secs(24 * 3600);
const TEND_EVERY: Duration = Duration::from_secs(3600);
/// Calendar windows end after 31 days at most.
const COUNTER_LIFE_SECONDS: i64 = 32 * 86_400;

/// An owner's module, how often it ran, and when that was written first.
type Run = (OwnerId, Name, u64, Timestamp);

/// What is to be added to sums in the store.
#[derive(Serialize, Deserialize)]
pub struct Outboxes {
    usage: Outbox<UsageDelta>,
    runs: Outbox<Run>,
}

/// These, and where they are kept that a shared store does not take.
pub struct Unwritten {
    outboxes: Outboxes,
    journal: Option<Journal>,
}

impl Unwritten {
    /// With what an earlier run has left.
    pub fn open(data_dir: &Path, is_shared: bool, usage: &UsageRecorder) -> Result<Self, StoreError> {
        let (journal, left) = is_shared.then(|| Journal::open(data_dir)).transpose()?.unzip();
        let outboxes = match left.flatten() {
            Some((outboxes, gathered)) => {
                tracing::info!("usage that the store did not have when this gateway ended is sent to it now");
                usage.restore(gathered);
                outboxes
            }
            None => Outboxes { usage: Outbox::new()?, runs: Outbox::new()? },
        };
        Ok(Self { outboxes, journal })
    }

    /// Before what has changed here is sent.
    async fn keep(&mut self, usage: &UsageRecorder, at_all: bool) {
        if let Some(journal) = self.journal.as_mut().filter(|journal| at_all || journal.is_there()) {
            journal.write(&self.outboxes, &usage.gathered()).await;
        }
    }
}

/// Runs until its task is dropped.
pub async fn run(app: Arc<App>) {
    let mut flush = tokio::time::interval(FLUSH_EVERY);
    let mut evict = tokio::time::interval(EVICT_EVERY);
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    let mut tend = tokio::time::interval(TEND_EVERY);
    flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    evict.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = flush.tick() => {
                if app.flush().await {
                    app.prune().await;
                }
            }
            _ = sweep.tick() => app.sweep().await,
            _ = tend.tick() => app.shared.engine.tend_artifacts().await,
            _ = evict.tick() => {
                app.shared.limiter.evict_idle(Now::read());
                app.shared.failures.evict_idle(Instant::now());
            }
        }
    }
}

impl App {
    /// Deletes what is older, or more, than `store` says to keep.
    async fn prune(&self) {
        let keep = self.config().store.clone();
        let now = Timestamp::now();
        let before = |age: Duration| {
            let millis = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
            Timestamp::from_unix_millis(now.unix_millis().saturating_sub(millis)).unwrap_or(now)
        };
        let keep = Retention {
            audit_from: before(keep.audit_keep),
            audit_entries: keep.audit_entries,
            usage_from_day: before(keep.usage_keep).day(),
            now,
        };
        loop {
            match self.store.prune(keep).await {
                Ok(0) => return,
                Ok(gone) => tracing::debug!(gone, "old audit lines, usage rows and values deleted"),
                Err(error) => {
                    tracing::warn!(%error, "old audit lines, usage rows and values stay for now");
                    return;
                }
            }
        }
    }

    /// First what an earlier flush has left.
    async fn write_usage(&self, unwritten: &mut Unwritten) -> Result<(), StoreError> {
        for is_new in [false, true] {
            if is_new {
                unwritten.outboxes.usage.fill(self.shared.usage.drain());
                unwritten.keep(&self.shared.usage, false).await;
            }
            while let Some((batch, rows)) = unwritten.outboxes.usage.unanswered() {
                self.store.add_usage(batch, rows).await?;
                unwritten.outboxes.usage.answered();
            }
        }
        Ok(())
    }

    async fn write_runs(&self, unwritten: &mut Unwritten) -> Result<(), StoreError> {
        for is_new in [false, true] {
            if is_new {
                let (ran, at) = (self.shared.usage.drain_runs(), Timestamp::now());
                unwritten.outboxes.runs.fill(ran.into_iter().map(|((owner, name), n)| (owner, name, n, at)));
                unwritten.keep(&self.shared.usage, false).await;
            }
            while let Some((batch, rows)) = unwritten.outboxes.runs.unanswered() {
                self.store.count_executions(batch, rows).await?;
                unwritten.outboxes.runs.answered();
            }
        }
        Ok(())
    }

    async fn save_counters(&self) -> Result<(), StoreError> {
        let now = Now::read();
        let counters = self.shared.limiter.counters(now);
        if counters.is_empty() {
            return Ok(());
        }
        self.store.save_counters(&counters, now.wall.unix_seconds() - COUNTER_LIFE_SECONDS).await
    }

    /// Writes usage, execution counts and calendar counters; whether it could.
    pub async fn flush(&self) -> bool {
        let began = Instant::now();
        let mut unwritten = self.unwritten.lock().await;
        let writing = async {
            let failed = self.write_usage(&mut unwritten).await.err();
            self.write_runs(&mut unwritten).await.err().or(failed)
        };
        // What too few replicas have counts already: it is not sent again.
        let (mut failed, few) = told_apart(writing).await;
        if failed.is_some() {
            unwritten.keep(&self.shared.usage, true).await;
        } else if let Some(journal) = &mut unwritten.journal {
            journal.remove().await;
        }
        drop(unwritten);
        if let Err(e) = self.save_counters().await {
            failed = Some(e);
        }
        failed = failed.or(few.map(StoreError::from));
        self.shared.metrics.store_operation("flush", began.elapsed());
        let error = failed.clone();
        match (self.shared.set_written(failed), &error) {
            (true, Some(StoreError::Unreplicated(error))) => {
                tracing::error!(%error, "usage and counters are written, and a failover may lose them");
            }
            (true, Some(error)) => {
                tracing::error!(%error, "usage and counters could not be written; they are kept and tried again");
            }
            (true, None) => tracing::info!("usage and counters are written again"),
            (false, _) => {}
        }
        error.is_none()
    }
}
