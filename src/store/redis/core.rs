//! Transactions against Redis: what is read is verified, what is written is written once, and a store that was lost is noticed.
//!
//! Invariant: that something is absent is said only while the sentinel is there that this process has seen at first.

use std::future::Future;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue, Value};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::advice::advice;
use super::fault::Fault;
use super::link::{Channel, Link};
use super::script::Script;
use super::seal::{At, Seal};
use super::tx::{Step, Stop, Tx};
use super::{Names, Purpose, RedisSettings, copy, id_file, pepper};
use crate::domain::Timestamp;
use crate::store::rules::{decode, encode};
use crate::store::{Result, StoreError, Unreplicated, random_hex};

/// Layout of the records; a store of a newer one is refused.
const SCHEMA: u32 = 1;
/// What the sentinel is sealed for.
const SENTINEL: &str = "wasmgate sentinel";
const COMMIT: &str = include_str!("commit.lua");
const RIGHTS: &str = include_str!("rights.lua");
/// How long an operation is remembered, so that it is not done again: longer than anybody tries.
const REMEMBERED: Duration = Duration::from_secs(300);
/// How often a commit is sent whose answer is missing.
const SENDS: u32 = 3;

pub struct Core {
    pub link: Arc<Link>,
    pub names: Arc<Names>,
    runtime: Handle,
    settings: RedisSettings,
    known: OnceLock<Known>,
    /// Why the store can't be used, as it was found last.
    trouble: Mutex<Option<StoreError>>,
    /// Held by who looks whether the store can be used.
    opening: tokio::sync::Mutex<()>,
    /// Looks at the sentinel that have begun; the number of the last one that has ended, and what it found.
    looks: AtomicU64,
    looked: tokio::sync::Mutex<(u64, Result<()>)>,
    commit: Script,
    /// Held by the commit that waits for replicas: the connection is blocked for as long.
    replicating: tokio::sync::Mutex<()>,
    /// Whose turn it is, when it is ours.
    name: String,
    /// Dropped with the core: the end of the store's thread, on which all of this runs.
    _running: oneshot::Sender<()>,
    forged: AtomicU64,
    /// When a forged record was last told of, Unix milliseconds.
    told: AtomicI64,
}

/// What is known of the store since this process has first seen it.
pub struct Known {
    sentinel: Vec<u8>,
    pub seal: Seal,
    id: String,
}

/// Written into an empty store, and never again.
#[derive(Serialize, Deserialize)]
struct Sentinel {
    schema: u32,
    store: String,
}

pub enum Committed {
    /// And too few replicas have it.
    Done(Option<Unreplicated>),
    Conflict,
    /// The sentinel is not the one that was there.
    Lost,
}

impl Known {
    pub fn id(&self) -> &str {
        &self.id
    }

    /// As it has to be there.
    pub fn sentinel(&self) -> &[u8] {
        &self.sentinel
    }
}

impl Core {
    pub fn new(settings: RedisSettings) -> Result<Self> {
        let (running, runtime) = start_thread()?;
        let names = Arc::new(Names::new(&settings.prefix));
        let link = Link::new(&settings, runtime.clone(), names.sentinel())?;
        Ok(Self {
            link,
            names,
            runtime,
            settings,
            known: OnceLock::new(),
            trouble: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            looks: AtomicU64::new(0),
            looked: tokio::sync::Mutex::new((0, Ok(()))),
            commit: Script::new(COMMIT),
            replicating: tokio::sync::Mutex::default(),
            name: random()?,
            _running: running,
            forged: AtomicU64::new(0),
            told: AtomicI64::new(i64::MIN),
        })
    }

    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// How long a write may take, all of its tries together.
    pub fn patience(&self) -> Duration {
        self.settings.response * 5
    }

    pub fn nonce(&self) -> Result<String> {
        random()
    }

    pub fn forged(&self) -> u64 {
        self.forged.load(Ordering::Relaxed)
    }

    /// A look at several records, without writes.
    pub async fn read<T>(&self, channel: Channel, look: impl Fn(&mut Tx) -> Step<T>) -> Result<T> {
        let known = self.known().await?;
        let mut tx = Tx::new(&known.seal, "");
        loop {
            let found = match look(&mut tx) {
                Ok(found) => found,
                Err(Stop::Need) => {
                    self.fetch_in(channel, &mut tx).await?;
                    continue;
                }
                Err(Stop::Failed(e)) => return Err(e),
                Err(Stop::Barrier) => return Err(StoreError::Corrupt("a look waits for a write".into())),
            };
            self.tell_forged(&tx);
            self.confirm(tx.met_absence).await?;
            return Ok(found);
        }
    }

    pub async fn fetch(&self, tx: &mut Tx<'_>) -> Result<()> {
        self.fetch_in(Channel::Rest, tx).await
    }

    async fn fetch_in(&self, channel: Channel, tx: &mut Tx<'_>) -> Result<()> {
        let questions = tx.questions();
        let answers = self.link.send(channel, &questions).await?;
        tx.answer(answers)
    }

    /// What was not found is not there, rather than lost with the whole store.
    pub async fn confirm(&self, met_absence: bool) -> Result<()> {
        if !met_absence {
            return Ok(());
        }
        self.known().await?;
        // One looks for all that wait: a look counts for whoever had found nothing before it began.
        let begun = self.looks.load(Ordering::SeqCst);
        let mut looked = self.looked.lock().await;
        if looked.0 <= begun {
            let number = self.looks.fetch_add(1, Ordering::SeqCst) + 1;
            let found = match self.sentinel().await {
                Ok(found) => self.saw(found.as_deref()),
                Err(error) => self.note(Err(error)),
            };
            *looked = (number, found);
        }
        looked.1.clone()
    }

    /// What is in the place of the sentinel, as it was just read.
    pub fn saw(&self, found: Option<&[u8]>) -> Result<()> {
        let Some(known) = self.known.get() else { return Ok(()) };
        self.note(if found == Some(&known.sentinel) { Ok(()) } else { Err(self.misfit(found)) })
    }

    /// Keeps whether the store can be used, and tells of it when that changes.
    fn note<T>(&self, found: Result<T>) -> Result<T> {
        let mut trouble = self.trouble.lock();
        let before = std::mem::replace(&mut *trouble, found.as_ref().err().cloned());
        match (before, &*trouble) {
            (before, Some(error)) if before.as_ref() != Some(error) && !matches!(error, StoreError::Unavailable(_)) => {
                tracing::error!(%error, "the store can't be used");
            }
            (Some(before), None) if !matches!(before, StoreError::Unavailable(_)) => {
                tracing::info!("the store can be used again");
            }
            _ => {}
        }
        found
    }

    /// What is known at this moment of why the store can't be used.
    pub fn fault(&self) -> Option<StoreError> {
        let unseen = || StoreError::Unavailable("redis: it has not answered yet".into());
        let trouble = self.link.outage().or_else(|| self.trouble.lock().clone());
        trouble.or_else(|| self.known.get().is_none().then(unseen))
    }

    /// What is wrong with what is in the place of the sentinel that was there.
    pub fn misfit(&self, found: Option<&[u8]>) -> StoreError {
        match found.map(|found| self.read_sentinel(found)) {
            Some(Err(error)) => error,
            Some(Ok(_)) => self.lost("another store has taken the place of the one that this gateway has used"),
            None => self.lost("redis answers, and the store that it had is lost"),
        }
    }

    /// Of a script that has not found the sentinel that was there.
    pub async fn why_lost(&self) -> StoreError {
        self.confirm(true).await.err().unwrap_or_else(|| self.misfit(None))
    }

    fn lost(&self, what: &str) -> StoreError {
        let file = self.settings.id_file.as_ref().map_or("store.id".into(), |file| file.display().to_string());
        StoreError::Lost(format!(
            "{what}: if `store.redis.urls` leads to another Redis or database, correct it; else restore Redis' data; to begin anew, \
             stop all gateways, delete `store.id` in each one's data directory (here `{file}`), and start them"
        ))
    }

    fn read_sentinel(&self, record: &[u8]) -> Result<Sentinel> {
        let content = Seal::new(&self.settings.record_key, SENTINEL).open(&At::key(self.names.sentinel()), record);
        let content = content.ok_or_else(|| {
            let other =
                "this store belongs to another record key, or its sentinel was altered: give this gateway the fleet's \
                 (`store.redis.record_key_file` or `store.redis.record_key_env`)";
            StoreError::Foreign(other.into())
        })?;
        let sentinel: Sentinel = decode(content, "sentinel")?;
        if sentinel.schema > SCHEMA {
            return Err(StoreError::Newer { found: sentinel.schema, known: SCHEMA });
        }
        Ok(sentinel)
    }

    async fn sentinel(&self) -> Result<Option<Vec<u8>>> {
        let answer = self.link.send(Channel::Rest, &[redis::cmd("GET").arg(self.names.sentinel()).take()]).await?;
        Option::<Vec<u8>>::from_redis_value(answer.into_iter().next().unwrap_or(Value::Nil))
            .map_err(|_| StoreError::Corrupt("the sentinel is no record".into()))
    }

    /// Seen at first, or written into an empty store.
    pub async fn known(&self) -> Result<&Known> {
        if let Some(known) = self.known.get() {
            return Ok(known);
        }
        let _turn = self.opening.lock().await;
        if let Some(known) = self.known.get() {
            return Ok(known);
        }
        let known = self.note(self.recognise().await)?;
        self.advice().await.iter().for_each(|advice| tracing::warn!("{advice}"));
        Ok(self.known.get_or_init(|| known))
    }

    async fn recognise(&self) -> Result<Known> {
        let expected = self.settings.id_file.as_deref().map(id_file::read).transpose()?.flatten();
        let sentinel = match self.sentinel().await? {
            Some(found) => found,
            None if expected.is_some() => return Err(self.misfit(None)),
            None if self.settings.purpose == Purpose::Source => {
                let none = "redis has no store of wasmgate under this `prefix`";
                return Err(StoreError::Foreign(none.into()));
            }
            None => {
                let at = At::key(self.names.sentinel());
                let fresh = encode(&Sentinel { schema: SCHEMA, store: random()? })?;
                let fresh = Seal::new(&self.settings.record_key, SENTINEL).seal(&at, &fresh);
                let set = redis::cmd("SET").arg(&at.key).arg(fresh).arg("NX").take();
                self.link.send(Channel::Rest, &[set]).await?;
                // Of several that do this at once one was first.
                self.sentinel().await?.ok_or_else(|| self.misfit(None))?
            }
        };
        let Sentinel { store, .. } = self.read_sentinel(&sentinel)?;
        if expected.as_ref().is_some_and(|expected| *expected != store) {
            return Err(self.misfit(Some(&sentinel)));
        }
        // A record of another store, or of this one before it was lost, is as good as forged.
        let seal = Seal::new(&self.settings.record_key, &format!("wasmgate records of {store}"));
        let known = Known { sentinel, seal, id: store };
        if self.settings.purpose != Purpose::Target {
            copy::check_whole(self, &known.seal).await?;
        }
        let is_read_only = self.settings.purpose == Purpose::Source;
        if !is_read_only {
            self.may_all().await?;
        }
        pepper::agree(self, &known, &self.settings.peppers, is_read_only).await?;
        if let Some(file) = self.settings.id_file.as_deref().filter(|_| expected.is_none() && !is_read_only) {
            id_file::write(file, &known.id)?;
        }
        Ok(known)
    }

    /// Whether the ACL allows all that the store needs, before something fails half-way that is seldom done.
    async fn may_all(&self) -> Result<()> {
        let mut keys = Cmd::new();
        keys.arg(1).arg(self.names.of(&["rights"]));
        let told = Script::new(RIGHTS).run(&self.link, Channel::Rest, &keys, None).await?;
        let missing = told.into_iter().next().map(Vec::<String>::from_redis_value);
        let missing = missing.and_then(std::result::Result::ok).unwrap_or_default();
        if !missing.is_empty() {
            return Err(self.link.denied(&missing.join(" ")));
        }
        // Scripts can't do these; none of them changes anything.
        let mut rest = vec![redis::cmd("CLIENT").arg("TRACKING").arg("OFF").take()];
        if self.settings.replicas > 0 {
            rest.push(redis::cmd("WAIT").arg(0).arg(1).take());
        }
        for command in rest {
            self.link.send(Channel::Rest, &[command]).await?;
        }
        Ok(())
    }

    /// The store's number, once it was seen.
    pub fn store_id(&self) -> Option<&str> {
        self.known.get().map(|known| known.id.as_str())
    }

    /// What Redis is set to that would lose records; nothing when it does not say.
    pub async fn advice(&self) -> Vec<&'static str> {
        let told = self.link.attempt(Channel::Rest, &[redis::cmd("INFO")]).await;
        told.map(|told| told.iter().flat_map(advice).collect()).unwrap_or_default()
    }

    /// Done once, however often it has to be sent: the transaction's nonce names the operation.
    pub async fn commit(&self, lane: &str, tx: &Tx<'_>, wants_turn: bool) -> Result<Committed> {
        match self.commit_to(self.known().await?, lane, tx, wants_turn).await? {
            // What is there instead says more; unless it has come back meanwhile.
            Committed::Lost => Err(self.why_lost().await),
            committed => Ok(committed),
        }
    }

    /// Whether what answers is this gateway's store, as far as is known. For what is in Redis beside the records.
    pub fn is_ours(&self) -> Result<()> {
        match self.fault() {
            None => Ok(()),
            // Whether it can be reached, the call itself shows.
            Some(StoreError::Unavailable(_)) if self.known.get().is_some() => Ok(()),
            Some(error) => Err(error),
        }
    }

    pub async fn commit_to(&self, known: &Known, lane: &str, tx: &Tx<'_>, wants_turn: bool) -> Result<Committed> {
        let commit = tx.commit();
        let names = &self.names;
        let keys = [names.sentinel(), names.of(&["op", tx.nonce()]), names.of(&["turn", lane])];
        let mut rest = Cmd::new();
        rest.arg(keys.len() + commit.keys.len()).arg(&keys[..]).arg(&commit.keys);
        rest.arg(&known.sentinel).arg(&self.name).arg(u8::from(wants_turn));
        rest.arg(REMEMBERED.as_millis() as u64).arg(&commit.arguments);
        // Not longer than the call is waited for.
        let within = (self.settings.response.as_millis() as u64 * 3 / 4).max(1);
        let wait = redis::cmd("WAIT").arg(self.settings.replicas).arg(within).take();
        let wait = (self.settings.replicas > 0).then_some(&wait);
        let _turn = if self.settings.replicas > 0 { Some(self.replicating.lock().await) } else { None };
        let mut sent = 0;
        let answer = loop {
            sent += 1;
            match self.commit.run(&self.link, Channel::Commits, &rest, wait).await {
                // It may have been done: the same operation again is not done twice.
                Err(Fault { is_open: true, .. }) if sent < SENDS && self.link.is_up() => {}
                answer => break answer?,
            }
        };
        match answer.first() {
            Some(Value::BulkString(word)) if word == b"ok" || word == b"done" => match answer.get(1) {
                Some(Value::Int(have)) => {
                    let (have, of) = (u32::try_from(*have).unwrap_or(0), self.settings.replicas);
                    Ok(Committed::Done((have < of).then_some(Unreplicated { have, of })))
                }
                _ => Ok(Committed::Done(None)),
            },
            Some(Value::BulkString(word)) if word == b"conflict" || word == b"wait" => Ok(Committed::Conflict),
            Some(Value::BulkString(word)) if word == b"lost" => Ok(Committed::Lost),
            _ => Err(StoreError::Corrupt("redis answers a commit with something else".into())),
        }
    }

    pub fn tell_forged(&self, tx: &Tx<'_>) {
        tx.forged.iter().for_each(|at| self.alarm(&at.key));
    }

    /// Counts a record that nobody with the record key has written, and tells of one in a while.
    pub fn alarm(&self, key: &str) {
        self.forged.fetch_add(1, Ordering::Relaxed);
        let (now, before) = (Timestamp::now().unix_millis(), self.told.load(Ordering::Relaxed));
        let is_due = now.saturating_sub(before) >= 10_000;
        if is_due && self.told.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            tracing::error!(key, "a record in redis was altered or forged; it counts as absent");
        }
    }
}

/// A thread that outlives whoever happens to need a connection first, until the sender is dropped.
fn start_thread() -> Result<(oneshot::Sender<()>, Handle)> {
    let failed = |e: std::io::Error| StoreError::Unavailable(format!("no thread for the store: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let handle = runtime.handle().clone();
    let (running, stopped) = oneshot::channel::<()>();
    let run = move || drop(runtime.block_on(stopped));
    std::thread::Builder::new().name("store-redis".into()).spawn(run).map_err(failed)?;
    Ok((running, handle))
}

/// 128 random bits in hex digits.
fn random() -> Result<String> {
    random_hex::<16>()
}
