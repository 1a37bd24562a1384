//! The buckets of the fleet's limits: one script for leases, one for sums.
//!
//! Invariant: a call of a lease is sent once; whether it was done is not known when its answer is lost. Nothing is drawn from a
//! store that was lost, or is not this gateway's.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue, Value};

use super::core::Core;
use super::link::Channel;
use super::script::Script;
use crate::store::{Buckets, Result, StoreError};

/// How long a probe's own key lives, in milliseconds.
const PROBED: u64 = 1_000;

pub struct SharedBuckets {
    core: Arc<Core>,
    lease: Script,
    sum: Script,
    /// What has failed last, or has no answer yet: of a cluster, a node that is away takes its buckets along.
    doubtful: Mutex<Option<String>>,
}

impl SharedBuckets {
    pub fn new(core: Arc<Core>) -> Self {
        let (lease, sum) = (Script::new(include_str!("lease.lua")), Script::new(include_str!("sum.lua")));
        Self { core, lease, sum, doubtful: Mutex::default() }
    }

    /// Keeps in mind whether the place of this name can be asked.
    async fn watched<T>(&self, name: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.doubtful.lock().get_or_insert_with(|| name.to_owned());
        let answer = call.await;
        let mut doubtful = self.doubtful.lock();
        if answer.is_err() {
            *doubtful = Some(name.to_owned());
        } else if doubtful.as_deref() == Some(name) {
            *doubtful = None;
        }
        answer
    }

    async fn run<T: FromRedisValue>(&self, script: &Script, name: &str, arguments: &[String]) -> Result<T> {
        self.core.is_ours()?;
        let key = self.core.names.bucket(name);
        let mut rest = Cmd::new();
        rest.arg(1).arg(key).arg(arguments);
        let call = async { Ok(script.run(&self.core.link, Channel::Leases, &rest, None).await?) };
        let answer = self.watched(name, call).await?;
        T::from_redis_value(answer.into_iter().next().unwrap_or(Value::Nil))
            .map_err(|_| StoreError::Corrupt("redis answers a limit with something else".into()))
    }
}

#[async_trait]
impl Buckets for SharedBuckets {
    async fn lease(&self, bucket: &str, arguments: Vec<String>) -> Result<Vec<i64>> {
        self.run(&self.lease, bucket, &arguments).await
    }

    async fn add_up(&self, sum: &str, node: &str, used: u64, life: Duration) -> Result<u64> {
        let life = u64::try_from(life.as_millis()).unwrap_or(u64::MAX).max(1);
        let others: String = self.run(&self.sum, sum, &[node.to_owned(), used.to_string(), life.to_string()]).await?;
        others.parse().map_err(|_| StoreError::Corrupt("a sum in redis is no number".into()))
    }

    /// Writes, as a call does: a Redis that is full, or a replica, answers reads.
    async fn probe(&self) -> Result<()> {
        self.core.is_ours()?;
        let name = self.doubtful.lock().clone().unwrap_or_else(|| "probe".into());
        let key = self.core.names.bucket(&name) + ":probe";
        let ask = redis::cmd("SET").arg(key).arg("").arg("PX").arg(PROBED).take();
        let call = async { Ok(self.core.link.send(Channel::Leases, &[ask]).await?) };
        self.watched(&name, call).await.map(drop)
    }
}
