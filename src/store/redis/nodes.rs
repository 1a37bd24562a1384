//! The gateways of the fleet: one script a beat, which also says who lives.
//!
//! Invariant: who lives is said by the server's clock, and who is a node by its sealed record.

use std::time::Duration;

use redis::{Cmd, FromRedisValue, Value};

use super::RedisStore;
use super::link::Channel;
use super::seal::At;
use crate::store::rules::{decode, encode};
use crate::store::{ALIVE, LiveNode, Node, Result, StoreError};

pub const BEAT: &str = include_str!("beat.lua");

impl RedisStore {
    /// `None`: the node leaves, or nobody has this name.
    pub(super) async fn tell_of(&self, id: &str, node: Option<&Node>) -> Result<Vec<LiveNode>> {
        let known = self.core.known().await?;
        let place = |id: &[u8]| At::field(self.names().of(&["nodes"]), id);
        let at = place(id.as_bytes());
        let record = node.map(|node| encode(node).map(|content| known.seal.seal(&at, &content))).transpose()?;
        let mut rest = Cmd::new();
        rest.arg(2).arg(self.names().sentinel()).arg(&at.key).arg(known.sentinel()).arg(id);
        rest.arg(record.as_deref().unwrap_or_default()).arg(ALIVE.as_millis() as u64);
        let answer = self.beat.run(&self.core.link, Channel::Rest, &rest, None).await?;
        let unfit = || StoreError::Corrupt("redis answers a beat with something else".into());
        let all = match answer.into_iter().next() {
            Some(Value::BulkString(word)) if word == b"lost" => {
                return Err(self.core.why_lost().await);
            }
            Some(Value::Array(all)) => all,
            _ => return Err(unfit()),
        };
        let mut live = Vec::new();
        for told in all.chunks_exact(3) {
            let told = Value::Array(told.to_vec());
            let (id, silent, record) = <(Vec<u8>, u64, Vec<u8>)>::from_redis_value(told).map_err(|_| unfit())?;
            let at = place(&id);
            match known.seal.open(&at, &record) {
                Some(node) => {
                    live.push(LiveNode { node: decode(node, &at.key)?, silent: Duration::from_millis(silent) });
                }
                None => self.core.alarm(&at.key),
            }
        }
        live.sort_by(|a, b| (&a.node.name, &a.node.id).cmp(&(&b.node.name, &b.node.id)));
        Ok(live)
    }
}
