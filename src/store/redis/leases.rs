//! The buckets of the fleet's limits: one script for leases, one for sums.
//!
//! Invariant: a call of a lease is sent once; whether it was done is not known when its answer is lost. Nothing is drawn from a
//! store that was lost, or is not this gateway's.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::{Cmd, FromRedisValue, Value};

use super::core::Core;
use super::link::Channel;
use super::script::Script;
use crate::store::{Buckets, Result, StoreError};

pub struct SharedBuckets {
    core: Arc<Core>,
    lease: Script,
    sum: Script,
}

impl SharedBuckets {
    pub fn new(core: Arc<Core>) -> Self {
        Self { core, lease: Script::new(include_str!("lease.lua")), sum: Script::new(include_str!("sum.lua")) }
    }

    async fn run<T: FromRedisValue>(&self, script: &Script, name: &str, arguments: &[String]) -> Result<T> {
        self.core.is_ours()?;
        let key = self.core.names.bucket(name);
        let mut rest = Cmd::new();
        rest.arg(1).arg(key).arg(arguments);
        let answer = script.run(&self.core.link, Channel::Leases, &rest, None).await?;
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

    async fn probe(&self) -> Result<()> {
        self.core.is_ours()?;
        let ask = redis::cmd("GET").arg(self.core.names.sentinel()).take();
        self.core.link.send(Channel::Leases, &[ask]).await?;
        Ok(())
    }
}
