//! The connections to Redis: made on a thread of the store's own, shared by all callers, bounded in time.
//!
//! Invariant: no call waits longer than its bound, and while Redis is known to be away none waits at all: after failures
//! in a row the breaker opens, and only the probe in the background asks again.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use redis::{Cmd, RedisError, Value};
use tokio::runtime::Handle;

use super::RedisSettings;
use super::fault::{Fault, fault};
use super::servers::{self, Connection, Servers};
use crate::store::{Result, StoreError};

/// Failures in a row that open the breaker.
const FAILURES: u32 = 3;
/// Between two probes.
const PROBE: Duration = Duration::from_millis(250);
/// Between two lines about rights that are missing.
const TELL_AGAIN: Duration = Duration::from_secs(10);

pub type Answered<T> = std::result::Result<T, Fault>;

/// What a call is for. Nothing large stands before a look-up of a key or a call of a lease, and nothing stands behind a commit,
/// which may have to wait for replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    LookUps,
    Leases,
    Commits,
    Blobs,
    Rest,
}

pub struct Link {
    client: Servers,
    /// Where the servers are, for messages.
    place: String,
    prefix: String,
    runtime: Handle,
    slots: [Slot; 5],
    connect: Duration,
    response: Duration,
    /// What the probe reads; any key that the store may read.
    probe: String,
    failures: AtomicU32,
    open: AtomicBool,
    /// When it was last told that the ACL refuses something.
    denied: Mutex<Option<Instant>>,
    /// Why the breaker opened.
    why: Mutex<Option<StoreError>>,
    this: Weak<Link>,
}

#[derive(Default)]
struct Slot {
    current: RwLock<Option<(u64, Connection)>>,
    /// Held by whoever connects.
    connecting: tokio::sync::Mutex<u64>,
}

impl Link {
    /// Connects at the first call.
    pub fn new(settings: &RedisSettings, runtime: Handle, probe: String) -> Result<Arc<Self>> {
        let (client, place) = (Servers::new(settings)?, servers::place(&settings.server)?);
        let slots = Default::default();
        let (connect, response) = (settings.connect, settings.response);
        Ok(Arc::new_cyclic(|this| Self {
            client,
            place,
            prefix: settings.prefix.clone(),
            runtime,
            slots,
            connect,
            response,
            probe,
            failures: AtomicU32::new(0),
            open: AtomicBool::new(false),
            denied: Mutex::default(),
            why: Mutex::default(),
            this: this.clone(),
        }))
    }

    /// For a connection of one's own, and how long that may take.
    pub fn servers(&self) -> (Servers, Duration) {
        (self.client.clone(), self.connect)
    }

    /// Whether Redis answered when it was last asked.
    pub fn is_up(&self) -> bool {
        !self.open.load(Ordering::Relaxed)
    }

    /// While it does not: why.
    pub fn outage(&self) -> Option<StoreError> {
        if self.is_up() { None } else { self.why.lock().clone() }
    }

    /// As the layers above know it.
    pub fn fault(&self, error: &RedisError) -> Fault {
        fault(error).at(&self.place, &self.prefix)
    }

    pub fn denied(&self, what: &str) -> StoreError {
        Fault::denied(what).at(&self.place, &self.prefix).error
    }

    fn unreached(&self, why: impl std::fmt::Display) -> Fault {
        Fault::unreached(why).at(&self.place, &self.prefix)
    }

    /// The answers, in order. An error of one command is the error of all. Nothing that is sent may do more when it is done twice,
    /// but calls of leases, which are sent once.
    pub async fn send(&self, channel: Channel, commands: &[Cmd]) -> Answered<Vec<Value>> {
        if let Some(error) = self.outage() {
            return Err(Fault { error, ..Fault::unreached("it has not answered") });
        }
        let mut sent = self.attempt(channel, commands).await;
        // As after a restart of Redis that nobody has noticed.
        if !matches!(channel, Channel::Leases) && matches!(&sent, Err(Fault { is_broken: true, is_open: true, .. })) {
            sent = self.attempt(channel, commands).await;
        }
        // A node of a cluster that is away has taken its leases and blobs with it: nothing is known by them of the records' node.
        let is_elsewhere = self.client.is_cluster() && matches!(channel, Channel::Leases | Channel::Blobs);
        if let Err(Fault { is_denied: true, error, .. }) = &sent {
            self.tell_denied(error);
        }
        match &sent {
            _ if is_elsewhere => {}
            Err(fault) if fault.is_outage => self.failed(&fault.error),
            _ => self.failures.store(0, Ordering::Relaxed),
        }
        sent
    }

    /// Whoever asked is told that the store is away; this is for the operator.
    pub fn tell_denied(&self, error: &StoreError) {
        let mut told = self.denied.lock();
        if told.is_none_or(|at| at.elapsed() >= TELL_AGAIN) {
            *told = Some(Instant::now());
            tracing::error!(%error, "redis refuses a command");
        }
    }

    /// Once, and whatever comes of it is the caller's to tell.
    pub async fn attempt(&self, channel: Channel, commands: &[Cmd]) -> Answered<Vec<Value>> {
        let slot = &self.slots[channel as usize];
        let (number, mut connection) = self.connection(slot).await?;
        // A call that is given up leaves the connection in order: its answer is read and dropped.
        let fault = match tokio::time::timeout(self.response, connection.send(commands)).await {
            Ok(Ok(values)) => return Ok(values),
            Ok(Err(error)) => self.fault(&error),
            Err(_) => self.unreached(format!("no answer within {:?}", self.response)),
        };
        if fault.is_broken {
            slot.give_up(number);
        }
        Err(fault)
    }

    async fn connection(&self, slot: &Slot) -> Answered<(u64, Connection)> {
        if let Some(current) = slot.current.read().clone() {
            return Ok(current);
        }
        let (is_tls, has_sentinels) = (self.client.is_tls(), self.client.has_sentinels());
        let slow =
            || self.unreached(format!("no connection within {:?}", self.connect)).of_connecting(is_tls, has_sentinels);
        let connect = async {
            let mut made = slot.connecting.lock().await;
            if let Some(current) = slot.current.read().clone() {
                return Ok(current);
            }
            let client = self.client.clone();
            let connect = self.connect;
            // Its driver runs where it was made, so not on the runtime of a caller, which may end.
            let made_there = self.runtime.spawn(async move { client.connect(connect).await });
            let connection = match made_there.await {
                Ok(connection) => connection.map_err(|e| self.fault(&e).of_connecting(is_tls, has_sentinels))?,
                Err(e) => return Err(self.unreached(format!("connecting failed: {e}"))),
            };
            *made += 1;
            *slot.current.write() = Some((*made, connection.clone()));
            Ok((*made, connection))
        };
        tokio::time::timeout(self.connect, connect).await.unwrap_or_else(|_| Err(slow()))
    }

    fn failed(&self, why: &StoreError) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures < FAILURES || !self.is_up() {
            return;
        }
        *self.why.lock() = Some(why.clone());
        if !self.open.swap(true, Ordering::Relaxed) {
            tracing::warn!(error = %why, "redis does not answer; what needs it is refused until it does");
            // What hangs now may hang for ever, as when a cable was pulled.
            self.slots.iter().for_each(Slot::clear);
            self.runtime.spawn(probe(self.this.clone()));
        }
    }
}

/// Closes the breaker when Redis answers again.
async fn probe(link: Weak<Link>) {
    loop {
        tokio::time::sleep(PROBE).await;
        let Some(link) = link.upgrade() else { return };
        let mut ask = redis::cmd("GET");
        ask.arg(&link.probe);
        match link.attempt(Channel::Rest, &[ask]).await {
            Err(fault) if fault.is_outage => {
                link.slots.iter().for_each(Slot::clear);
                *link.why.lock() = Some(fault.error);
            }
            _ => {
                link.failures.store(0, Ordering::Relaxed);
                link.open.store(false, Ordering::Relaxed);
                tracing::info!("redis answers again");
                return;
            }
        }
    }
}

impl Slot {
    fn give_up(&self, number: u64) {
        let mut current = self.current.write();
        if current.as_ref().is_some_and(|(n, _)| *n == number) {
            *current = None;
        }
    }

    fn clear(&self) {
        *self.current.write() = None;
    }
}
