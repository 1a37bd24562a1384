//! Background work of a running gateway: usage and counters to the store, idle state out of memory, files
//! that nothing needs off the disk.
//!
//! Invariant: what cannot be written stays in memory and is tried again; `flush` at shutdown writes the rest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::App;
use crate::domain::{Timestamp, UsageDelta};
use crate::limit::limiter::Now;
use crate::store::Retention;

/// A kill -9 forgets at most this much usage, and as much of the day and month counters.
pub const FLUSH_EVERY: Duration = Duration::from_secs(5);
const EVICT_EVERY: Duration = Duration::from_secs(30);
/// The first time at start.
const SWEEP_EVERY: Duration = Duration::from_secs(24 * 3600);
const TEND_EVERY: Duration = Duration::from_secs(3600);
/// Calendar windows end after 31 days at most.
const COUNTER_LIFE_SECONDS: i64 = 32 * 86_400;

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
                app.flush().await;
                app.prune().await;
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

    /// Writes usage, execution counts and calendar counters.
    pub async fn flush(&self) {
        let began = Instant::now();
        let usage = self.shared.usage.drain();
        let mut failed = None;
        if !usage.is_empty()
            && let Err(e) = self.store.add_usage(&usage).await
        {
            for UsageDelta { owner, key, day, add } in &usage {
                self.shared.usage.record(owner, key, *day, add);
            }
            failed = Some(e);
        }
        let at = Timestamp::now();
        let ran = self.shared.usage.drain_runs();
        let counts: Vec<_> = ran.into_iter().map(|((owner, name), n)| (owner, name, n, at)).collect();
        if !counts.is_empty()
            && let Err(e) = self.store.count_executions(&counts).await
        {
            for (owner, name, n, _) in &counts {
                self.shared.usage.record_runs(owner, name, *n);
            }
            failed = Some(e);
        }
        let now = Now::read();
        let counters = self.shared.limiter.counters(now);
        if !counters.is_empty()
            && let Err(e) = self.store.save_counters(&counters, now.wall.unix_seconds() - COUNTER_LIFE_SECONDS).await
        {
            failed = Some(e);
        }
        self.shared.metrics.store_operation("flush", began.elapsed());
        self.shared.metrics.store_up.set(i64::from(failed.is_none()));
        if let Some(e) = failed {
            tracing::error!(error = %e, "usage and counters could not be written; they are kept and tried again");
        }
    }
}
