//! The store of a fleet: records in Redis (6.2 or later, Valkey, a cluster), sealed with the fleet's record key.
//!
//! Invariant: `Ok` of a write means that Redis has done it, once, whole, and while nothing that it was decided by had changed. How
//! durable that is, is Redis' to say: `appendfsync always`.
//!
//! All records are in one hash slot, since they change together; one ACL rule, `~<prefix>:*`, covers them.

mod advice;
mod batches;
mod blobs;
mod copy;
mod core;
mod fault;
mod follow;
mod id_file;
mod keys;
mod leases;
mod link;
mod modules;
mod nodes;
mod pepper;
mod records;
mod routes;
mod script;
mod seal;
mod servers;
mod store;
mod tx;
mod values;
mod writer;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::core::Core;
use super::{Changes, Result, StoreError};
use crate::domain::{Digest, OwnerId};
use link::Channel;
use script::Script;
use tx::{Step, Tx};
use writer::Writer;

/// The commands that a user of Redis needs beside `~<prefix>:*`; one rule of an ACL, and the README's. Sentinels want `+role` as
/// well, `replicas` want `+wait`, a cluster `+cluster|slots +ping +asking`; with `+info` the store can tell of settings that lose records.
/// Each is tried by `redis/rights.lua`.
pub const COMMANDS: &str = "+get +set +del +exists +pexpire +getrange +hget +hset +hdel +hlen +hgetall +hkeys +lindex +llen \
                            +lrange +rpush +ltrim +zadd +zrem +zlexcount +zrangebylex +zrangebyscore +sadd +srem \
                            +smembers +eval +evalsha +time +client|tracking";

/// The Redis servers. A URL is `redis://`, `rediss://` (which wants the process to have a default provider of rustls) or
/// `unix://`, with user and password or without.
#[derive(Clone)]
pub enum Server {
    Single(String),
    /// Some nodes of a cluster.
    Cluster(Vec<String>),
    /// Sentinels, with users and passwords of their own, and the name under which they know the primary.
    Sentinel {
        urls: Vec<String>,
        primary: String,
    },
}

/// For `rediss://`, in PEM.
#[derive(Clone, Default)]
pub struct Tls {
    /// In the place of the system's authorities.
    pub authorities: Option<Vec<u8>>,
    /// Ours, and its key.
    pub certificate: Option<(Vec<u8>, Vec<u8>)>,
}

/// Who opens the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A gateway, which does not use one that is half copied.
    Gateway,
    /// Who copies from it: it has to be there, and whole.
    Source,
    /// Who copies into it.
    Target,
}

#[derive(Clone)]
pub struct RedisSettings {
    pub server: Server,
    /// In the place of those in the URL.
    pub username: Option<String>,
    pub password: Option<String>,
    /// Of the sentinels.
    pub sentinel_username: Option<String>,
    pub sentinel_password: Option<String>,
    pub tls: Option<Tls>,
    /// What every key begins with, before a `:`.
    pub prefix: String,
    /// The fleet's: who does not have it can write no record that counts.
    pub record_key: [u8; 32],
    /// Fingerprints of the peppers that this gateway knows, newest first; the fleet's newest has to be among them. Without
    /// any, nothing is compared.
    pub peppers: Vec<String>,
    pub purpose: Purpose,
    /// Where this gateway keeps the number of the store that it uses: where another one is, or none, that one was lost.
    /// Without the file it takes what is there, and begins a store where none is.
    pub id_file: Option<PathBuf>,
    /// What a connection may take until it can be used.
    pub connect: Duration,
    /// How many replicas have to have a write before it is told as done; without one, a failover may lose what the primary alone
    /// had. Not of a cluster.
    pub replicas: u32,
    /// What an answer may take. A write may take five times as long, as it may have to be tried again.
    pub response: Duration,
}

impl RedisSettings {
    pub fn new(server: Server, record_key: [u8; 32]) -> Self {
        Self {
            server,
            username: None,
            password: None,
            sentinel_username: None,
            sentinel_password: None,
            tls: None,
            prefix: "wasmgate".into(),
            record_key,
            peppers: Vec::new(),
            purpose: Purpose::Gateway,
            id_file: None,
            replicas: 0,
            connect: Duration::from_secs(1),
            response: Duration::from_secs(1),
        }
    }
}

/// Without anything that could be a secret.
impl fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers = match &self.server {
            Server::Single(_) => 1,
            Server::Cluster(urls) | Server::Sentinel { urls, .. } => urls.len(),
        };
        f.debug_struct("RedisSettings").field("servers", &servers).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

pub struct RedisStore {
    core: Arc<Core>,
    writer: Writer,
    beat: Script,
}

impl RedisStore {
    /// As [`Self::new`], and waits for Redis as long as a connection may take.
    pub fn open(settings: RedisSettings) -> Result<Arc<Self>> {
        let store = Self::new(settings)?;
        let (told, known) = std::sync::mpsc::sync_channel(1);
        let core = store.core.clone();
        store.core.spawn(async move {
            let _ = told.send(core.known().await.map(drop));
        });
        known.recv().map_err(|_| StoreError::Unavailable("the store's thread has ended".into()))??;
        Ok(store)
    }

    /// Asks Redis nothing before it is used. Then an empty store is taken into use; one of a newer schema, or of another
    /// record key, is refused, now and as long as it is there.
    pub fn new(settings: RedisSettings) -> Result<Arc<Self>> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        if settings.prefix.is_empty() || !settings.prefix.chars().all(plain) {
            let bad = "the prefix of Redis' keys: use letters, digits, `-`, `_`, `.` and `:`";
            return Err(StoreError::Unavailable(bad.into()));
        }
        if settings.replicas > 0 && matches!(settings.server, Server::Cluster(_)) {
            let bad = "in a cluster of Redis nobody can wait for `replicas`: use `min-replicas-to-write`";
            return Err(StoreError::Unavailable(bad.into()));
        }
        let core = Arc::new(Core::new(settings)?);
        Ok(Arc::new(Self { writer: Writer::new(core.clone()), core, beat: Script::new(nodes::BEAT) }))
    }

    /// A number that no other store has, also not one that begins anew in the same place; empty before it was seen.
    pub fn store_id(&self) -> &str {
        self.core.store_id().unwrap_or_default()
    }

    /// What Redis is set to that would lose records; what it is not allowed to tell is not among it.
    pub async fn advice(&self) -> Vec<&'static str> {
        self.core.advice().await
    }

    /// Whether Redis answered when it was last asked.
    pub fn is_up(&self) -> bool {
        self.core.link.is_up()
    }

    /// Tells `changes` of what others change, from now on.
    fn begin_following(&self, changes: Arc<dyn Changes>) {
        self.core.spawn(follow::follow(Arc::downgrade(&self.core), changes));
    }

    fn names(&self) -> &Names {
        &self.core.names
    }

    async fn look<T>(&self, look: impl Fn(&mut Tx, &Names) -> Step<T>) -> Result<T> {
        self.core.read(Channel::Rest, |tx| look(tx, self.names())).await
    }

    async fn write<T, F>(&self, lane: &[&str], work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&mut Tx, &Names) -> Step<T> + Send + 'static,
    {
        let names = self.core.names.clone();
        self.writer.submit(lane.join(":"), move |tx| work(tx, &names)).await
    }
}

/// The Redis keys of records; each file has its own.
pub struct Names {
    /// Of all keys of the fleet.
    fleet: String,
    /// Of records.
    prefix: String,
}

impl Names {
    fn new(fleet: &str) -> Self {
        Self { fleet: fleet.to_owned(), prefix: format!("{fleet}:{{r}}:") }
    }

    fn of(&self, parts: &[&str]) -> String {
        self.prefix.clone() + &parts.join(":")
    }

    /// Each blob has a slot of its own, so that a cluster shares them out.
    fn blob(&self, digest: Digest, part: &str) -> String {
        format!("{}:b:{{{}}}:{part}", self.fleet, digest.hex())
    }

    /// What gateways draw from and add up; each has a slot of its own as well.
    fn bucket(&self, name: &str) -> String {
        format!("{}:l:{{{name}}}", self.fleet)
    }

    fn sentinel(&self) -> String {
        self.of(&["sentinel"])
    }

    /// Written with each change of what routes and tiers depend on.
    fn changes(&self) -> String {
        self.of(&["changes"])
    }

    /// What keys begin with whose changes are followed.
    fn followed(&self) -> [String; 4] {
        [self.of(&["kh:"]), self.of(&["th:"]), self.changes(), self.tiers()]
    }

    /// The hash, if this is the Redis key of an API key or of an admin token.
    fn followed_key<'a>(&self, key: &'a str) -> Option<&'a str> {
        ["kh:", "th:"].iter().find_map(|kind| key.strip_prefix(&self.of(&[kind])))
    }

    /// Bounds of an index by letters, whose members begin with the owner and a NUL.
    fn of_owner(owner: &OwnerId) -> [Vec<u8>; 2] {
        [format!("[{owner}\0").into_bytes(), format!("({owner}\u{1}").into_bytes()]
    }
}
